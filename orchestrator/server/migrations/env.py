"""What Alembic runs around the steps: they share the connection and the transaction of whoever asked."""

from __future__ import annotations

from alembic import context

from orchestrator.server.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
