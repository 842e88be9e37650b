"""The embedded server: the Threads/Runs protocol over HTTP, on SQLite or PostgreSQL, in front of a model.

Start it with `orchestrator.server.serve.run` (blocking, a process of its own) or with
`orchestrator.testing.running_server` (a thread in this process); mount it elsewhere with
`orchestrator.server.app.create_app`. Nothing is imported here: Starlette, uvicorn and SQLAlchemy are loaded
by whoever starts a server.
"""
