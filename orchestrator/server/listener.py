"""A listening socket and the uvicorn server on it, made the same way for a process and for a test.

Owns how uvicorn is configured and how it stops: open streams are ended first, so that a stop takes
fractions of a second however long the runs behind them last. Knows no operation and no file.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from starlette.applications import Starlette

__all__ = ["Server", "listen", "url_of"]

_GRACE_S: Final = 2
"""How long requests that are being answered may take to finish, once their streams were ended."""

_LAST_RESORT_S: Final = _GRACE_S + 3
"""When uvicorn cancels what answers them, with a stack trace for each; they should be gone long before."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 picks a free one. It accepts nothing yet.

    Raises:
        OSError: The host is unknown, or the port is taken or not allowed.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, prefix: str) -> str:
    """Return the base URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{prefix}"


class Server(uvicorn.Server):
    """A uvicorn server that tells when it listens, ends its streams first, and exits with 0 on a signal.

    Args:
        app: What `orchestrator.server.app.create_app` made.
        on_listening: Called once on the server's loop when connections are accepted.
    """

    def __init__(self, app: Starlette, *, on_listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                # Even beside httptools, which would read on and on in a head that does not end.
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # Longer than clients keep idle connections, so that they rarely write to one being closed.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_LAST_RESORT_S,
            )
        )
        self._app = app
        self._on_listening = on_listening
        self._loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        self._loop = asyncio.get_running_loop()
        self._app.state.cut_off = self.cut_off
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then stop as uvicorn does; who does not read or send meanwhile is cut off."""
        for backend in self._app.state.backends.values():
            backend.execution.end_streams()
        cut_off = self._loop.call_later(_GRACE_S, self._cut_off)
        await super().shutdown(sockets)
        cut_off.cancel()

    def cut_off(self, client: tuple[str, int]) -> None:
        """Drop one connection without another word; on the server's loop.

        Args:
            client: Its other end, as in an ASGI scope.
        """
        for connection in self.server_state.connections:
            if getattr(connection, "client", None) == tuple(client) and connection.transport is not None:
                connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Stop on the first signal; on the second, cut off whoever is still being answered.

        uvicorn's own would raise the signal again after the stop, and the process would die of it.
        """
        if self.should_exit and self.started:
            self._loop.call_soon_threadsafe(self._cut_off)
        self.should_exit = True

    def _cut_off(self) -> None:
        """Drop every connection: to what answers on it, the client has left."""
        for connection in self.server_state.connections:
            if connection.transport is not None:
                connection.transport.abort()
