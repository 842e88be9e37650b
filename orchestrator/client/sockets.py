"""The asynchronous client's sockets, and what may be left in one when an answer is complete.

Bytes after a complete answer would be taken for the answer to the next request. They arrive with the
answer's own last bytes, and httpcore's connection keeps them where nobody sees them. So the last byte of
everything that was read is held back until it is asked for: an answer that is complete without it was not
all that came, and its socket says that it is readable, which an idle connection must not be. httpcore closes
such a connection before it sends anything.

Imported on first use, because it imports httpcore.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import httpcore

from orchestrator.client.dialing import acquire

if TYPE_CHECKING:
    from orchestrator.client.dialing import Places

__all__ = ["TidyBackend", "undecrypted"]


def undecrypted(tls: object) -> bool:
    """Say whether TLS between memory buffers holds what left its socket and was not read yet.

    Args:
        tls: The `ssl_object` of an idle stream, which is not read again if this is true; of other kinds, that
            read no more from their socket than they were asked for, or `None`.
    """
    if not isinstance(tls, ssl.SSLObject):
        return False
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError:
        return True
    return True


class TidyBackend(httpcore.AsyncNetworkBackend):
    """Connects as another does; a cancelled TLS handshake leaves nothing open, and leftovers are known.

    Args:
        backend: The other.
        places: How many connections may be opened at once.
    """

    def __init__(self, backend: httpcore.AsyncNetworkBackend, places: Places) -> None:
        self._backend = backend
        self._places = places

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        """Connect; what comes back is as tidy.

        Raises:
            httpcore.PoolTimeout: It was not its turn in time.
            httpcore.ConnectError: It could not, or the connection was lost before anything could be sent.
        """
        place = self._places.to(host, port)
        await acquire(place)
        try:
            stream = await self._backend.connect_tcp(host, port, *args, **kwargs)
        finally:
            place.release()
        try:
            return _TidyStream(stream)
        except AttributeError as error:
            # uvloop takes the socket off a connection that was reset by now, and anyio looks at it all the
            # same. Any other error than this one would leave open whether the request was sent.
            await stream.aclose()
            raise httpcore.ConnectError("the connection was lost as soon as it was made") from error


class _TidyStream(httpcore.AsyncNetworkStream):
    """A connected socket; writing and closing go straight to the stream it stands for."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._last = b""
        self._tls = stream.get_extra_info("ssl_object")
        # Bound here, so that they cost no further call.
        self._read = stream.read
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's signature
        if self._last:
            data, self._last = self._last, b""
            return data
        data = await self._read(max_bytes, timeout)
        if len(data) < 2:
            return data
        self._last = data[-1:]
        return data[:-1]

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        try:
            return _TidyStream(await self._stream.start_tls(*args, **kwargs))
        except BaseException:
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._last or self._stream.get_extra_info(info)) or undecrypted(self._tls)
        return self._stream.get_extra_info(info)
