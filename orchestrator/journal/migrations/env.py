"""How the journal's tables came to be what they are: one step per version, applied when a journal is opened.

Owns what Alembic runs around the steps, which share the connection and transaction of whoever asked. The
steps are the files under `versions/`, for SQLite and PostgreSQL alike; a released one is never changed.
Nothing imports any of this: it is no package, and Alembic finds it by its directory.
"""

from __future__ import annotations

from alembic import context

from orchestrator.journal.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
