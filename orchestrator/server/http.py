"""What all routes share: reading a request, writing an answer, and streaming one.

Owns the translation between Starlette's requests and the server's own values. Knows no operation.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec
from starlette.responses import Response

from orchestrator.server import requests
from orchestrator.server.queries import UnknownCursorError
from orchestrator.server.refusal import RefusalError, invalid, missing_beta, not_found
from orchestrator.server.repetition import repeat_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.engine import Engine
    from orchestrator.server.execution import Execution
    from orchestrator.server.repetition import Repeat, Repetitions
    from orchestrator.server.schema import Kind
    from orchestrator.server.sse import Subscription
    from orchestrator.server.store import Shelf

__all__ = [
    "BODY_LIMIT",
    "Backend",
    "EventStream",
    "answer",
    "backend",
    "check_beta",
    "check_include",
    "found",
    "made_before",
    "paged",
    "read",
    "read_bytes",
    "repeat",
]

BODY_LIMIT: Final = 8 * 1024 * 1024
"""The most bytes of a request's body."""

_INCLUDABLE: Final = "step_details.tool_calls[*].file_search.results[*].content"
"""What `include[]` may name. It has nothing to add here: there is no file search."""

B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What the routes work on: all of it is one namespace's, so that nothing of another can be reached.

    Attributes:
        store: Where its objects are kept.
        engine: What decides on its runs.
        execution: What works on them, and knows which threads they lock.
        repetitions: What idempotency keys stand for.
        clock: Unix seconds.
    """

    store: Shelf
    engine: Engine
    execution: Execution
    repetitions: Repetitions
    clock: Callable[[], float] = time.time

    def now(self) -> int:
        """Unix seconds, whole, as objects carry them."""
        return int(self.clock())


def backend(request: Request) -> Backend:
    """Return the backend of the caller's namespace."""
    return cast("Backend", request.app.state.backends[request.state.namespace])


async def read_bytes(request: Request) -> bytes:
    """Read a request's body, checking headers first.

    Raises:
        RefusalError: 400 without the beta header, 415 for a body that is not JSON, 413 for one too large.
    """
    check_beta(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise RefusalError(413, f"The request body is larger than {BODY_LIMIT} bytes.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != "application/json":
        raise RefusalError(415, "The body must be sent with 'Content-Type: application/json'.")
    return bytes(body)


async def read(request: Request, kind: type[B]) -> B:
    """Read and check a request's body.

    Raises:
        RefusalError: As `read_bytes`, and 400 for a body that does not fit the schema.
    """
    return cast("B", requests.decode(await read_bytes(request), cast("Any", kind)))


def check_beta(request: Request) -> None:
    """See that the caller asks for this protocol: by the beta header or, as Azure's do, by `api-version`.

    Raises:
        RefusalError: 400, code `invalid_beta`.
    """
    if "api-version" in request.query_params:
        return
    if "assistants=v2" not in ",".join(request.headers.getlist("openai-beta")).replace(" ", "").split(","):
        raise missing_beta()


def check_include(request: Request) -> None:
    """See that `include[]` names what can be included.

    Raises:
        RefusalError: 400.
    """
    for name in request.query_params.getlist("include[]"):
        if name != _INCLUDABLE:
            raise invalid(f"Invalid value for 'include[]': expected '{_INCLUDABLE}'.", "include[]")


def repeat(request: Request, body: msgspec.Struct) -> Repeat | None:
    """Read the request's `Idempotency-Key`, if it has one."""
    key = request.headers.get("idempotency-key")
    if not key:
        return None
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return repeat_of(key, scope=request.state.namespace, path=path, fields=requests.given(body))


def answer(payload: JSON) -> Response:
    """Answer 200 with an object."""
    return Response(msgspec.json.encode(payload), media_type="application/json")


async def made_before(request: Request, kind: Kind, noun: str, object_id: str) -> Response:
    """Answer a repeated create with what the first one made, as it is now.

    Raises:
        RefusalError: 404: it was deleted.
    """
    return answer(found(await backend(request).store.get(kind, object_id), noun, object_id))


def found(body: JSON | None, noun: str, object_id: str, **belongs_to: str) -> JSON:
    """Return a body that was looked up, unless it is missing or belongs elsewhere.

    Raises:
        RefusalError: 404.
    """
    if body is None or any(body[name] != value for name, value in belongs_to.items()):
        raise not_found(noun, object_id)
    return body


async def paged(request: Request, kind: Kind, **filters: str) -> Response:
    """Answer with the page of a list that the query asks for.

    Raises:
        RefusalError: 400 for a limit, order or cursor that is not acceptable.
    """
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("Invalid value for 'order': expected 'asc' or 'desc'.", "order")
    try:
        page = await backend(request).store.page(
            kind,
            limit=_limit(query.get("limit", "20")),
            descending=order == "desc",
            after=query.get("after"),
            before=query.get("before"),
            **filters,
        )
    except UnknownCursorError as error:
        raise invalid(f"No object with id '{error.cursor}' is in this list.", error.parameter) from None
    return answer(page)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= 100):
        raise invalid("Invalid value for 'limit': expected an integer from 1 to 100.", "limit")
    return int(text)


class EventStream(Response):
    """Sends a subscription's events until it ends or the client is gone; the run goes on either way.

    Args:
        subscription: What to send.
    """

    media_type = "text/event-stream"

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._subscription = subscription

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - the signature of an ASGI application
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve the stream as an ASGI application."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        watcher = asyncio.create_task(_end_on_disconnect(receive, self._subscription))
        try:
            async for chunk in self._subscription.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._subscription.end()
            watcher.cancel()


async def _end_on_disconnect(receive: Receive, subscription: Subscription) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    subscription.end()
