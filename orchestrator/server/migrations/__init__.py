"""How the server's tables came to be what they are: one step per version, applied when a server starts.

Owns every change of the layout, in order, for SQLite and PostgreSQL alike; a step that was released is never
changed. Alembic runs `env.py` and the files under `versions/`; nothing imports them.
"""
