"""The two operations on run steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from orchestrator.server import http

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["routes"]


def routes() -> list[Route]:
    """Return the routes."""
    every = "/threads/{thread_id}/runs/{run_id}/steps"
    return [
        Route(every, _list, methods=["GET"]),
        Route(f"{every}/{{step_id}}", _get, methods=["GET"]),
    ]


async def _list(request: Request) -> Response:
    http.check_beta(request)
    http.check_include(request)
    run_id = request.path_params["run_id"]
    await http.backend(request).engine.get_run(request.path_params["thread_id"], run_id)
    return await http.paged(request, "steps", run_id=run_id)


async def _get(request: Request) -> Response:
    http.check_beta(request)
    http.check_include(request)
    thread_id, run_id, step_id = (request.path_params[name] for name in ("thread_id", "run_id", "step_id"))
    body = await http.backend(request).store.get("steps", step_id)
    return http.answer(http.found(body, "run step", step_id, thread_id=thread_id, run_id=run_id))
