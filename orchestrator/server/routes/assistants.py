"""The five operations on assistants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from orchestrator.server import http, objects
from orchestrator.server.requests import CreateAssistant, ModifyAssistant, given

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.protocol.objects import JSON

__all__ = ["routes"]


def routes() -> list[Route]:
    """Return the routes."""
    one = "/assistants/{assistant_id}"
    return [
        Route("/assistants", _list, methods=["GET"]),
        Route("/assistants", _create, methods=["POST"]),
        Route(one, _get, methods=["GET"]),
        Route(one, _modify, methods=["POST"]),
        Route(one, _delete, methods=["DELETE"]),
    ]


async def _list(request: Request) -> Response:
    http.check_beta(request)
    return await http.paged(request, "assistants")


async def _create(request: Request) -> Response:
    backend = http.backend(request)
    body = await http.read(request, CreateAssistant)
    repeat = http.repeat(request, body)
    async with backend.repetitions.alone(repeat) as made:
        if made is not None:
            return await http.made_before(request, "assistants", "assistant", made)
        assistant = objects.assistant(created_at=backend.now(), fields=_fields(body))
        backend.store.save("assistants", assistant)
        backend.repetitions.note(repeat, assistant["id"])
        await backend.store.settle()
    return http.answer(assistant)


async def _get(request: Request) -> Response:
    http.check_beta(request)
    return http.answer(await _found(request))


async def _modify(request: Request) -> Response:
    fields = _fields(await http.read(request, ModifyAssistant))
    assistant_id = request.path_params["assistant_id"]
    changed = await http.backend(request).store.change(
        "assistants", assistant_id, lambda assistant: assistant.update(fields)
    )
    return http.answer(http.found(changed, "assistant", assistant_id))


async def _delete(request: Request) -> Response:
    http.check_beta(request)
    assistant = await _found(request)
    await http.backend(request).store.delete("assistants", assistant["id"])
    return http.answer(objects.deleted(assistant["id"], "assistant.deleted"))


async def _found(request: Request) -> JSON:
    assistant_id = request.path_params["assistant_id"]
    body = await http.backend(request).store.get("assistants", assistant_id)
    return http.found(body, "assistant", assistant_id)


def _fields(body: ModifyAssistant) -> JSON:
    """Null clears a field; what may not be null in an assistant becomes its default."""
    fields = given(body)
    if "metadata" in fields:
        fields["metadata"] = fields["metadata"] or {}
    return fields
