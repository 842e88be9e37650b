"""Objects as rows with a JSON body, and which run an idempotency key made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_FILTERS = {
    "assistants": (),
    "threads": (),
    "messages": ("thread_id", "run_id"),
    "runs": ("thread_id", "status"),
    "steps": ("thread_id", "run_id"),
}


def upgrade() -> None:
    """Create the tables; a file that holds them is stamped with this version instead."""
    for kind, filters in _FILTERS.items():
        op.create_table(
            kind,
            sa.Column("id", sa.String(64), primary_key=True),
            sa.Column("seq", sa.BigInteger, nullable=False, unique=True),
            sa.Column("body", sa.LargeBinary, nullable=False),
            *(sa.Column(name, sa.String(64), index=True) for name in filters),
        )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("thread_id", sa.String(64), nullable=False, index=True),
    )
    op.create_table("meta", sa.Column("schema_version", sa.Integer, primary_key=True))
