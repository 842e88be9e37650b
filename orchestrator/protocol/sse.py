"""The event stream format: bytes in any chunking become server-sent events.

Owns the parsing rules of the WHATWG HTML standard, section "Server-sent events". Knows nothing of sockets,
and nothing of what an event means: that is `orchestrator.protocol.events`. The fields `id` and `retry` are
ignored, because this protocol cannot reopen a stream.
"""

from __future__ import annotations

import re
from sys import intern
from typing import Final

import msgspec

__all__ = ["EventTooLarge", "SSEDecoder", "ServerSentEvent"]

_BOM: Final = b"\xef\xbb\xbf"

# How nearly all servers write nearly all events; what is written otherwise is read line by line.
_PLAIN: Final = re.compile(rb"event: ([^\n]*)\ndata: ([^\n]*)\n\n")
_PLAIN_BYTES: Final = len(b"event: \ndata: \n\n")


def _name(value: bytes) -> str:
    # Events are kept, and have the same few names.
    return intern(value.decode("utf-8", "replace"))


class EventTooLarge(ValueError):
    """One event grew past the decoder's bound; the decoder is of no further use."""


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event as it was sent.

    Attributes:
        event: Its name; `""` when the server named none.
        data: Its data lines, joined by line feeds.
    """

    event: str
    data: bytes


class SSEDecoder:
    """Cuts a byte stream into events, one decoder per stream.

    Lines end in CRLF, LF or CR, also when a chunk ends between the two. What is incomplete when the stream
    ends is never an event: the standard drops it, and half a payload would be no use anyway. Neither blocks
    nor waits; not thread-safe.

    Args:
        max_event_bytes: The most that one event may hold in memory.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_event", "_line", "_line_bytes", "_max", "_size")

    def __init__(self, *, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._max = max_event_bytes
        self._at_start = True
        self._after_cr = False
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._event = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take in the next bytes and return the events they complete.

        Args:
            chunk: Bytes as they came, cut anywhere.

        Raises:
            EventTooLarge: An event is larger than `max_event_bytes`.
        """
        if len(chunk) <= self._max and self._may_be_plain(chunk):
            plain = _PLAIN.findall(chunk)
            if sum([len(name) + len(data) for name, data in plain]) + _PLAIN_BYTES * len(plain) == len(chunk):
                return [ServerSentEvent(_name(name), data) for name, data in plain]
        events = [event for line in self._complete_lines(chunk) if (event := self._take(line)) is not None]
        if self._size + self._line_bytes > self._max:
            raise self._too_large()
        return events

    def _may_be_plain(self, chunk: bytes) -> bool:
        """Whether nothing is left of earlier chunks, and this one has no line end but the usual one."""
        if self._line_bytes or self._data or self._event or self._after_cr or b"\r" in chunk:
            return False
        self._at_start = self._at_start and (not chunk or chunk.startswith(_BOM[:1]))
        return not self._at_start

    def _complete_lines(self, chunk: bytes) -> list[bytes]:
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, rest = chunk.rpartition(b"\n")
        if newline:
            self._line.append(head)
            lines = b"".join(self._line).split(b"\n")
            self._line.clear()
            self._line_bytes = 0
        else:
            lines = []
        # Parts of an unfinished line are joined once, when it ends: joining at each chunk would be quadratic.
        self._line.append(rest)
        self._line_bytes += len(rest)
        return lines

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value) + 1
            if self._size > self._max:
                raise self._too_large()
        elif field == b"event":
            self._event = _name(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        name, data = self._event, self._data
        self._event, self._data, self._size = "", [], 0
        return ServerSentEvent(name, b"\n".join(data)) if data else None

    def _too_large(self) -> EventTooLarge:
        return EventTooLarge(f"an event of the stream is larger than {self._max} bytes")
