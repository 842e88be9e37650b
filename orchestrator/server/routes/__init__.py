"""The 23 operations of the protocol: one module per kind of object, each with its list of routes.

A route reads a request, asks the store or the engine, and answers. It holds no state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.server.routes import assistants, messages, runs, steps, threads

if TYPE_CHECKING:
    from starlette.routing import Route

__all__ = ["all_routes"]


def all_routes() -> list[Route]:
    """Return the routes of every operation, without a prefix."""
    # Runs come first: POST /threads/runs must not be taken for a thread whose id is "runs".
    return [*runs.routes(), *threads.routes(), *messages.routes(), *steps.routes(), *assistants.routes()]
