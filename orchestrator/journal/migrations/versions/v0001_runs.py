"""Runs, their tool calls, their submissions and their time lines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ORDINAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "journal_runs",
        sa.Column("ordinal", _ORDINAL, primary_key=True, autoincrement=True),
        sa.Column("key", sa.String(255), nullable=False, unique=True),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("organization", sa.Text),
        sa.Column("project", sa.Text),
        sa.Column("assistant_id", sa.Text, nullable=False),
        sa.Column("thread_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("asked", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("lease_until", sa.Double),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("outcome", sa.LargeBinary),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_journal_runs_owner", "journal_runs", ["owner"])
    op.create_index("ix_journal_runs_open", "journal_runs", ["ended_at", "lease_until"])
    op.create_table(
        "journal_tool_calls",
        _of_run(),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("call_id", sa.String(255), primary_key=True),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("arguments", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("output", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("duration_s", sa.Double, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "journal_submissions",
        _of_run(),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_table(
        "journal_events",
        _of_run(),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )


def _of_run() -> sa.Column[int]:
    parent = sa.ForeignKey("journal_runs.ordinal", ondelete="CASCADE")
    return sa.Column("run", _ORDINAL, parent, primary_key=True, autoincrement=False)
