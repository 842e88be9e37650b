"""Does to requests what a script's faults order: refuses, cuts, stalls, expires and fails.

Owns the ASGI layer between the server's door and its routes. Which request meets which fault is decided by
`orchestrator.server.faults`.

A connection can be cut only where the server's own listener runs (`serve`, `running_server()`); mounted in
another server, the layer leaves the answer unfinished, and that server closes the connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.server.faults import Action, Answer, Drop, End, Expire, Fail, Stall, operation_of
from orchestrator.server.http import BODY_LIMIT, backend
from orchestrator.server.matching import PatternTimeoutError
from orchestrator.server.refusal import RefusalError
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrator.server.faults import Faults

__all__ = ["SabotageLayer"]

_log = get_logger(__name__)

_EVENT_END: Final = b"\n\n"


class _AnsweredError(Exception):
    """Leaves the routes: what the client gets was decided here."""


class SabotageLayer:
    """An ASGI layer that plays faults.

    Args:
        app: What is behind it.
        faults: What is played.
    """

    def __init__(self, app: ASGIApp, *, faults: Faults) -> None:
        self._app = app
        self._faults = faults
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as an ASGI application."""
        operation = operation_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
            return
        incoming = _Incoming(receive)
        action = await self._due(operation, await incoming.body())
        if action is not None:
            _log.info("server.fault", operation=operation, kind=type(action).__name__.lower())
        with suppress(_AnsweredError):
            if action is None:
                await self._app(scope, incoming, send)
            elif isinstance(action, Drop | End | Stall) and action.after_events is not None:
                await self._app(scope, incoming, _interrupted(action, scope, incoming, send))
            else:
                await self._begin(action, scope, incoming, send)
                await self._app(scope, incoming, send)

    async def _due(self, operation: str, body: bytes) -> Action | None:
        try:
            if not self._faults.may_block:
                return self._faults.due(operation, body)
            async with self._turn:
                return await asyncio.to_thread(self._faults.due, operation, body)
        except PatternTimeoutError as error:
            raise RefusalError(500, f"The script's pattern {error}.", type="server_error") from None

    async def _begin(self, action: Action, scope: Scope, incoming: _Incoming, send: Send) -> None:
        """Do what comes before the request is looked at, or instead of its answer."""
        if isinstance(action, Answer | Drop) and action.performed:
            await self._perform(scope, incoming)
        if isinstance(action, Answer):
            await _response(action)(scope, incoming, send)
            raise _AnsweredError
        if isinstance(action, Drop):
            await _cut_off(scope, incoming)
        elif isinstance(action, Stall):
            await incoming.silence(action.seconds)
        elif isinstance(action, Expire | Fail):
            _end_run(scope, action)

    async def _perform(self, scope: Scope, incoming: _Incoming) -> None:
        """Let the request take effect, and drop its answer: it is decided when that would begin."""

        async def begin(_message: Message) -> None:
            raise _AnsweredError

        with suppress(_AnsweredError):
            await self._app(scope, incoming, begin)


class _Incoming:
    """A request's messages, of which the body can be read ahead."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: list[Message] = []

    async def __call__(self) -> Message:
        """Return the next message, as an ASGI `receive`."""
        return self._read.pop(0) if self._read else await self._receive()

    async def body(self) -> bytes:
        """Read the body ahead, or the beginning of one that is too large; the routes read it again."""
        body, more = bytearray(), True
        while more and len(body) <= BODY_LIMIT:
            message = await self._receive()
            self._read.append(message)
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)

    async def silence(self, seconds: float) -> None:
        """Wait, or until the client is gone."""
        watcher = asyncio.create_task(self.until_gone())
        try:
            await asyncio.wait([watcher], timeout=seconds)
        finally:
            watcher.cancel()

    async def until_gone(self) -> None:
        """Wait until the client is gone; others may look for its messages meanwhile."""
        while (message := await self._receive())["type"] != "http.disconnect":
            self._read.append(message)


class _Interrupted:
    """An ASGI `send` that does something after so many events of a stream.

    Args:
        send: Where the answer goes.
        events: How many events pass first.
        act: What is done then; may raise to leave the routes.
    """

    def __init__(self, send: Send, events: int, act: Callable[[], Awaitable[None]]) -> None:
        self._send = send
        self._left = events
        self._act: Callable[[], Awaitable[None]] | None = act

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start" and not _is_stream(message):
            self._act = None
        act, body = self._act, message.get("body", b"")
        if act is None or message["type"] != "http.response.body" or body.count(_EVENT_END) < self._left:
            self._left -= body.count(_EVENT_END)
            await self._send(message)
            return
        head = b"".join(event + _EVENT_END for event in body.split(_EVENT_END)[: self._left])
        self._act = None
        if head:
            await self._send({**message, "body": head, "more_body": True})
        await act()
        await self._send({**message, "body": body[len(head) :]})


def _interrupted(action: Drop | End | Stall, scope: Scope, incoming: _Incoming, send: Send) -> Send:
    async def act() -> None:
        if isinstance(action, Stall):
            await incoming.silence(action.seconds)
        elif isinstance(action, Drop):
            await _cut_off(scope, incoming)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _AnsweredError

    assert action.after_events is not None
    return _Interrupted(send, action.after_events, act)


def _is_stream(start: MutableMapping[str, Any]) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
    )


def _response(action: Answer) -> Response:
    error = RefusalError(action.status, action.message, code=action.code, type=action.type)
    headers = {}
    if action.retry_after_s is not None:
        headers["retry-after"] = f"{action.retry_after_s:g}"
    return Response(error.body(), status_code=action.status, headers=headers, media_type="application/json")


async def _cut_off(scope: Scope, incoming: _Incoming) -> None:
    cut_off = getattr(scope["app"].state, "cut_off", None)
    if cut_off is not None:
        cut_off(scope["client"])
        await incoming.until_gone()
    raise _AnsweredError


def _end_run(scope: Scope, action: Expire | Fail) -> None:
    execution = backend(Request(scope)).execution
    parts = scope["path"].split("/")
    active = execution.get(parts[parts.index("runs") + 1])
    if active is None:
        return
    if isinstance(action, Expire):
        execution.interrupt(active, "expired")
    else:
        execution.interrupt(active, "failed", error={"code": action.code, "message": action.message})
