"""The four operations on threads, and how a new thread with its messages is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from orchestrator.server import http, objects, refusal
from orchestrator.server.requests import CreateThread, ModifyThread, given
from orchestrator.server.routes.messages import new_message

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.protocol.objects import JSON

__all__ = ["new_thread", "routes"]


def routes() -> list[Route]:
    """Return the routes."""
    one = "/threads/{thread_id}"
    return [
        Route("/threads", _create, methods=["POST"]),
        Route(one, _get, methods=["GET"]),
        Route(one, _modify, methods=["POST"]),
        Route(one, _delete, methods=["DELETE"]),
    ]


def new_thread(body: CreateThread, *, now: int) -> tuple[JSON, list[JSON]]:
    """Build a thread and its first messages; nothing is stored."""
    fields = given(body, "messages")
    thread = objects.thread(
        created_at=now,
        tool_resources=fields.get("tool_resources"),
        metadata=fields.get("metadata") or {},
    )
    return thread, [new_message(message, thread_id=thread["id"], now=now) for message in body.messages]


async def _create(request: Request) -> Response:
    backend = http.backend(request)
    body = await http.read(request, CreateThread)
    repeat = http.repeat(request, body)
    async with backend.repetitions.alone(repeat) as made:
        if made is not None:
            return await http.made_before(request, "threads", "thread", made)
        thread, messages = new_thread(body, now=backend.now())
        backend.store.save("threads", thread)
        for message in messages:
            backend.store.save("messages", message)
        backend.repetitions.note(repeat, thread["id"], thread_id=thread["id"])
        await backend.store.settle()
    return http.answer(thread)


async def _get(request: Request) -> Response:
    http.check_beta(request)
    return http.answer(await _found(request))


async def _modify(request: Request) -> Response:
    fields = given(await http.read(request, ModifyThread))
    if "metadata" in fields:
        fields["metadata"] = fields["metadata"] or {}
    thread_id = request.path_params["thread_id"]
    changed = await http.backend(request).store.change(
        "threads", thread_id, lambda thread: thread.update(fields)
    )
    return http.answer(http.found(changed, "thread", thread_id))


async def _delete(request: Request) -> Response:
    http.check_beta(request)
    backend = http.backend(request)
    thread = await _found(request)
    if holder := backend.execution.holder(thread["id"]):
        raise refusal.thread_locked(thread["id"], holder, doing="delete")
    await backend.store.delete("threads", thread["id"])
    return http.answer(objects.deleted(thread["id"], "thread.deleted"))


async def _found(request: Request) -> JSON:
    thread_id = request.path_params["thread_id"]
    return http.found(await http.backend(request).store.get("threads", thread_id), "thread", thread_id)
