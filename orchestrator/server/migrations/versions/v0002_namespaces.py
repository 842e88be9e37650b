"""A namespace for every object, and a token of the server that works on the database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"

_KINDS = ("assistants", "threads", "messages", "runs", "steps")


def upgrade() -> None:
    """Give what there is to the heir: until now, every key reached every object."""
    heir = context.config.attributes["heir"]
    for kind in _KINDS:
        with op.batch_alter_table(kind) as table:
            table.add_column(sa.Column("namespace", sa.String(64), nullable=True))
        op.execute(sa.table(kind, sa.column("namespace")).update().values(namespace=heir))
        with op.batch_alter_table(kind) as table:
            table.alter_column("namespace", existing_type=sa.String(64), nullable=False)
            # In files of version 1 it has another name, which holds 64 bits in SQLite all the same.
            table.alter_column("seq", existing_type=sa.Integer, type_=sa.BigInteger, existing_nullable=False)
    op.create_index("ix_assistants_namespace_seq", "assistants", ["namespace", "seq"])
    # Their keys are hashes of what no caller is known by any more.
    op.execute(sa.table("idempotency").delete())
    op.create_table("tenure", sa.Column("token", sa.String(64), primary_key=True))
    op.drop_table("meta")
