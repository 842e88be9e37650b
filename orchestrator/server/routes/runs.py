"""The seven operations on runs; three of them stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from orchestrator.server import http, requests
from orchestrator.server.engine import Started
from orchestrator.server.requests import CreateRun, CreateThread, CreateThreadAndRun, given
from orchestrator.server.routes.messages import new_message
from orchestrator.server.routes.threads import new_thread

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["routes"]


def routes() -> list[Route]:
    """Return the routes."""
    every, one = "/threads/{thread_id}/runs", "/threads/{thread_id}/runs/{run_id}"
    return [
        Route("/threads/runs", _create_with_thread, methods=["POST"]),
        Route(every, _list, methods=["GET"]),
        Route(every, _create, methods=["POST"]),
        Route(one, _get, methods=["GET"]),
        Route(one, _modify, methods=["POST"]),
        Route(f"{one}/cancel", _cancel, methods=["POST"]),
        Route(f"{one}/submit_tool_outputs", _submit, methods=["POST"]),
    ]


async def _create(request: Request) -> Response:
    http.check_include(request)
    backend = http.backend(request)
    body = await http.read(request, CreateRun)
    thread_id = request.path_params["thread_id"]
    started = await backend.engine.create_run(
        thread_id,
        given(body, "stream", "additional_messages"),
        [
            new_message(message, thread_id=thread_id, now=backend.now())
            for message in body.additional_messages or ()
        ],
        stream=body.stream is True,
        repeat=http.repeat(request, body),
    )
    return _answer(started)


async def _create_with_thread(request: Request) -> Response:
    backend = http.backend(request)
    body = await http.read(request, CreateThreadAndRun)
    wanted = body.thread if isinstance(body.thread, CreateThread) else CreateThread()
    thread, messages = new_thread(wanted, now=backend.now())
    started = await backend.engine.create_thread_and_run(
        thread,
        given(body, "stream", "thread", "tool_resources"),
        messages,
        stream=body.stream is True,
        repeat=http.repeat(request, body),
    )
    return _answer(started)


async def _list(request: Request) -> Response:
    http.check_beta(request)
    thread_id = request.path_params["thread_id"]
    http.found(await http.backend(request).store.get("threads", thread_id), "thread", thread_id)
    return await http.paged(request, "runs", thread_id=thread_id)


async def _get(request: Request) -> Response:
    http.check_beta(request)
    return http.answer(await http.backend(request).engine.get_run(*_ids(request)))


async def _modify(request: Request) -> Response:
    fields = given(await http.read(request, requests.ModifyMetadata))
    engine = http.backend(request).engine
    if "metadata" not in fields:
        return http.answer(await engine.get_run(*_ids(request)))
    return http.answer(await engine.modify_run(*_ids(request), fields["metadata"] or {}))


async def _cancel(request: Request) -> Response:
    await http.read_bytes(request)
    return http.answer(await http.backend(request).engine.cancel(*_ids(request)))


async def _submit(request: Request) -> Response:
    body = await http.read(request, requests.SubmitToolOutputs)
    outputs = [(output.tool_call_id, output.output) for output in body.tool_outputs]
    started = await http.backend(request).engine.submit(*_ids(request), outputs, stream=body.stream is True)
    return _answer(started)


def _ids(request: Request) -> tuple[str, str]:
    return request.path_params["thread_id"], request.path_params["run_id"]


def _answer(started: Started) -> Response:
    return http.answer(started.run) if started.stream is None else http.EventStream(started.stream)
