"""The body of an endpoint's answer as JSON texts, whether it is an event stream or one JSON object.

Owns telling the two apart, because endpoints that cannot stream answer a streaming request with JSON, and
some gateways mislabel streams. Pure: it is fed bytes in any chunking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.protocol.sse import SSEDecoder
from orchestrator.server.chat.answer import UnreadableAnswerError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Incoming"]

_STREAM_STARTS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


class Incoming:
    """One body on its way in.

    Args:
        content_type: The answer's header, perhaps `""`.
        max_bytes: The most bytes that are taken.

    Attributes:
        done: Whether the endpoint said that this was all.
    """

    def __init__(self, content_type: str, *, max_bytes: int) -> None:
        self.done = False
        self._left = max_bytes
        # The bound on the whole body is one on each event, too.
        self._events = SSEDecoder(max_event_bytes=max_bytes)
        self._is_stream = "event-stream" in content_type
        self._whole: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take in the next bytes and yield the JSON texts they complete; after `[DONE]` nothing is taken.

        Raises:
            UnreadableAnswerError: The body is larger than allowed; what the bytes up to there complete is
                yielded before, however many came at once.
        """
        taken = chunk[: self._left]
        self._left -= len(taken)
        if not self._whole and taken.lstrip().startswith(_STREAM_STARTS):
            self._is_stream = True
        if self._is_stream:
            for event in self._events.feed(taken):
                if event.data.strip() == b"[DONE]":
                    self.done = True
                    return
                yield event.data
        else:
            self._whole.append(taken)
        if len(taken) < len(chunk):
            raise UnreadableAnswerError("is larger than this server takes")

    def end(self) -> list[bytes]:
        """Return what the end of the body completes: a JSON object that came whole is all there is."""
        whole = b"".join(self._whole)
        if whole:
            self.done = True
        return [whole] if whole else []
