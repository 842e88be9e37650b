"""One deadline for a blocking request as a whole, whatever its phases are allowed.

A blocking read cannot be interrupted, and httpx gives each read the whole time anew: a server that sends a
byte now and then would be waited for without end. Here every operation on a socket gets no more than what is
left. Imported on first use, because it imports httpcore.
"""

from __future__ import annotations

import math
import os
import socket
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import httpcore

from orchestrator.client.sockets import undecrypted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["PunctualBackend", "ends_at"]

_END: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def ends_at(moment: float) -> Iterator[None]:
    """Bound what this thread does inside with the sockets of a `PunctualBackend`.

    Args:
        moment: Seconds on the monotonic clock.
    """
    token = _END.set(moment)
    try:
        yield
    finally:
        _END.reset(token)


def _left_s(timeout_s: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    left_s = _END.get() - time.monotonic()
    if left_s <= 0:
        raise error("the time for the request is over")
    if left_s == math.inf:
        return timeout_s
    return left_s if timeout_s is None else min(timeout_s, left_s)


class PunctualBackend(httpcore.NetworkBackend):
    """Connects as another does, in the time that is left."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect; what comes back is as punctual."""
        left_s = _left_s(timeout, httpcore.ConnectTimeout)
        return _PunctualStream(self._backend.connect_tcp(host, port, left_s, local_address, socket_options))


class _PunctualStream(httpcore.NetworkStream):
    """A connected socket that knows of leftovers, as `sockets` explains."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._last = b""
        self._tls = stream.get_extra_info("ssl_object")
        self._pid = os.getpid()
        self._closed = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._last:
            data, self._last = self._last, b""
            return data
        data = self._stream.read(max_bytes, _left_s(timeout, httpcore.ReadTimeout))
        if not data and self._closed:
            # Shut down by us. The peer did not end anything: an answer without a length would seem complete.
            raise httpcore.ReadError("the connection was closed while it was read")
        if len(data) < 2:
            return data
        self._last = data[-1:]
        return data[:-1]

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._closed = True
        # Closing alone does not wake a thread that reads. A forked child must not touch its parent's sockets.
        if self._pid == os.getpid():
            with suppress(OSError):
                # Not `SSLSocket`'s own, which would let that thread read what is still encrypted.
                socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = _left_s(timeout, httpcore.ConnectTimeout)
        return _PunctualStream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._last or self._stream.get_extra_info(info)) or undecrypted(self._tls)
        return self._stream.get_extra_info(info)
