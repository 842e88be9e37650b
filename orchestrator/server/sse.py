"""The server's side of an event stream: encoding, and one reader's queue of what is still to be sent.

Owns the bytes of an event (one `data:` line each, PROTOCOL.md "Server-sent events") and `Subscription`. Knows
neither runs nor HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["DONE", "Subscription", "encode"]

DONE: Final = b"event: done\ndata: [DONE]\n\n"
"""The event that closes a stream in good order."""


def encode(event: str, payload: Any) -> bytes:
    """Encode one event; JSON has no line breaks of its own, so the payload stays on one line."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(payload))


class Subscription:
    """What one reader of a stream has still to be sent; lives on the server's loop, never blocks a writer.

    Nothing is dropped: a slow reader's queue is bounded by what one leg of one run says.
    """

    __slots__ = ("_chunks", "_ended", "_wake")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._ended = False
        self._wake = asyncio.Event()

    def send(self, chunk: bytes) -> None:
        """Queue encoded events; after `end()` they are dropped."""
        if not self._ended:
            self._chunks.append(chunk)
            self._wake.set()

    def end(self) -> None:
        """Let the reader finish after what is queued; may be repeated."""
        self._ended = True
        self._wake.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what is queued, joined, until `end()`: a burst of events is one write to the socket."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._chunks:
                chunk = b"".join(self._chunks)
                self._chunks.clear()
                yield chunk
            if self._ended and not self._chunks:
                return
