"""The five operations on messages, and how a request becomes a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from orchestrator.server import http, objects, refusal
from orchestrator.server.requests import CreateMessage, ModifyMetadata, given

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.protocol.objects import JSON

__all__ = ["new_message", "routes"]


def routes() -> list[Route]:
    """Return the routes."""
    every, one = "/threads/{thread_id}/messages", "/threads/{thread_id}/messages/{message_id}"
    return [
        Route(every, _list, methods=["GET"]),
        Route(every, _create, methods=["POST"]),
        Route(one, _get, methods=["GET"]),
        Route(one, _modify, methods=["POST"]),
        Route(one, _delete, methods=["DELETE"]),
    ]


def new_message(body: CreateMessage, *, thread_id: str, now: int) -> JSON:
    """Build a message that a client sent; nothing is stored."""
    return objects.message(
        created_at=now,
        thread_id=thread_id,
        role=body.role,
        content=_content(body.content),
        metadata=given(body).get("metadata") or {},
    )


def _content(content: str | list[JSON]) -> list[JSON]:
    """A text is sent as a string and kept as an object with annotations; images are kept as they are."""
    if isinstance(content, str):
        return [objects.text_part(content)]
    return [objects.text_part(part["text"]) if part["type"] == "text" else part for part in content]


async def _list(request: Request) -> Response:
    http.check_beta(request)
    thread_id = await _thread_id(request)
    filters = {"thread_id": thread_id}
    if "run_id" in request.query_params:
        filters["run_id"] = request.query_params["run_id"]
    return await http.paged(request, "messages", **filters)


async def _create(request: Request) -> Response:
    backend = http.backend(request)
    body = await http.read(request, CreateMessage)
    thread_id = await _thread_id(request)
    repeat = http.repeat(request, body)
    async with backend.repetitions.alone(repeat) as made:
        if made is not None:
            return await http.made_before(request, "messages", "message", made)
        # From here to the save nothing is awaited, so the thread cannot be locked in between.
        _check_unlocked(request, thread_id, "add messages to")
        message = new_message(body, thread_id=thread_id, now=backend.now())
        backend.store.save("messages", message)
        backend.repetitions.note(repeat, message["id"], thread_id=thread_id)
        await _settle_in_thread(request, message)
    return http.answer(message)


async def _settle_in_thread(request: Request, message: JSON) -> None:
    """Wait until a message is on disk, and take it back if its thread was deleted before it."""
    store = http.backend(request).store
    if await store.get("threads", message["thread_id"]) is None:
        await store.delete("messages", message["id"])
        raise refusal.not_found("thread", message["thread_id"])


async def _get(request: Request) -> Response:
    http.check_beta(request)
    return http.answer(await _found(request))


async def _modify(request: Request) -> Response:
    body = await http.read(request, ModifyMetadata)

    def change(message: JSON) -> None:
        _belonging(request, message)
        if message["status"] == "in_progress":
            raise refusal.invalid(f"Can't modify {message['id']} while run {message['run_id']} writes it.")
        message["metadata"] = given(body).get("metadata", message["metadata"]) or {}

    message_id = request.path_params["message_id"]
    return http.answer(
        _belonging(request, await http.backend(request).store.change("messages", message_id, change))
    )


async def _delete(request: Request) -> Response:
    http.check_beta(request)
    message = await _found(request)
    _check_unlocked(request, message["thread_id"], "delete messages of")
    await http.backend(request).store.delete("messages", message["id"])
    return http.answer(objects.deleted(message["id"], "thread.message.deleted"))


def _check_unlocked(request: Request, thread_id: str, doing: str) -> None:
    if holder := http.backend(request).execution.holder(thread_id):
        raise refusal.thread_locked(thread_id, holder, doing=doing)


async def _thread_id(request: Request) -> str:
    thread_id: str = request.path_params["thread_id"]
    http.found(await http.backend(request).store.get("threads", thread_id), "thread", thread_id)
    return thread_id


async def _found(request: Request) -> JSON:
    body = await http.backend(request).store.get("messages", request.path_params["message_id"])
    return _belonging(request, body)


def _belonging(request: Request, message: JSON | None) -> JSON:
    """Return the message that the path names, unless it is missing or in another thread."""
    thread_id, message_id = request.path_params["thread_id"], request.path_params["message_id"]
    return http.found(message, "message", message_id, thread_id=thread_id)
