"""Servers that give metadata back, and the way from a thread to its runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both; what is known of servers is learned again."""
    op.create_table("journal_servers", sa.Column("base_url", sa.Text, primary_key=True))
    op.create_index("ix_journal_runs_thread", "journal_runs", ["thread_id"])
