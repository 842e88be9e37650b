"""A server that costs next to nothing, in a process of its own, so that only the client is measured.

`with stub_server() as base_url:` starts it and ends it. It answers every GET with one run of 2.4 KB, and
every POST with an event stream: a run's creation, then as many bytes of message deltas as the header
`x-stub-bytes` asks for and `done`; without that header the stream stays open, and silent, until the client
hangs up. Speaks just as much HTTP/1.1 as the clients that are measured need. Imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

RUN = {
    "id": "run_1",
    "object": "thread.run",
    "created_at": 1_700_000_000,
    "thread_id": "thread_1",
    "assistant_id": "asst_1",
    "status": "in_progress",
    "model": "rules",
    "instructions": "Be brief. " * 100,
    "tools": [
        {
            "type": "function",
            "function": {"name": f"tool_{n}", "parameters": {"type": "object", "properties": {}}},
        }
        for n in range(10)
    ],
    "metadata": {},
    "parallel_tool_calls": True,
}

TEXT = "words and words " * 50

DELTA = {
    "id": "msg_1",
    "object": "thread.message.delta",
    "delta": {"content": [{"index": 0, "type": "text", "text": {"value": TEXT}}]},
}


def _event(name: str, payload: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(payload)}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_BODY = json.dumps(RUN).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_BODY),
    _BODY,
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + _chunk(_event("thread.run.created", RUN))
)
DELTA_BYTES = len(_event("thread.message.delta", DELTA))
"""The size of one delta event on the wire."""

_BLOCK_EVENTS = 64
_BLOCK = _event("thread.message.delta", DELTA) * _BLOCK_EVENTS
# Cut off any event's border, so that a reader meets events in halves all the time.
_BLOCK_CHUNKS = _chunk(_BLOCK[:10_007]) + _chunk(_BLOCK[10_007:])
_DONE = _chunk(b"event: done\ndata: [DONE]\n\n") + b"0\r\n\r\n"


def deltas_in(stream_bytes: int) -> int:
    """How many deltas the server sends when it is asked for so many bytes."""
    return -(-stream_bytes // len(_BLOCK)) * _BLOCK_EVENTS


def allow_many_files() -> int:
    """Raise this process's limit of open files as far as it goes; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's own name
        if self._sending is not None:
            self._sending.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            request_line, *lines = head.split(b"\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
            length = int(headers.get(b"content-length", 0))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(request_line, headers)

    def _answer(self, request_line: bytes, headers: dict[bytes, bytes]) -> None:
        if request_line.startswith(b"GET"):
            self._transport.write(_ANSWER)
            return
        self._transport.write(_STREAM)
        if b"x-stub-bytes" in headers:
            blocks = deltas_in(int(headers[b"x-stub-bytes"])) // _BLOCK_EVENTS
            self._sending = asyncio.get_running_loop().create_task(self._send(blocks))

    async def _send(self, blocks: int) -> None:
        for _ in range(blocks):
            await self._writable.wait()
            self._transport.write(_BLOCK_CHUNKS)
        self._transport.write(_DONE)


async def serve(connection: Callable[[], asyncio.Protocol]) -> None:
    """Print a port and serve it until the parent is done, or dies."""
    allow_many_files()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent holds the other end.
    await loop.run_in_executor(None, sys.stdin.read)


def stub_server() -> AbstractContextManager[str]:
    """Run this server; yields its base URL. See `serving`."""
    return serving(__file__)


@contextmanager
def serving(script: str, *arguments: str) -> Iterator[str]:
    """Run a script that calls `serve`, in a process of its own; yield its base URL.

    Raises:
        RuntimeError: It did not start.
    """
    with subprocess.Popen(
        [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{script} did not start")
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.stdin.close()


if __name__ == "__main__":
    asyncio.run(serve(_Connection))
