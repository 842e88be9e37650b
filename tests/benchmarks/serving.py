"""What the embedded server itself can do: runs per second of its CPU time, and streams open at once.

`python tests/benchmarks/serving.py [RUNS] [STREAMS]` (default 2,000 and 5,000) starts the server in a process
of its own, on a SQLite file, and prints what it measures. A run has two legs: a create whose stream ends with
two tool calls, and a submission whose stream ends with the message and the verdict. The client is raw
sockets, so that the processor is the server's. `test_serving.py` holds the figures to what is promised.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from stub_server import allow_many_files

from orchestrator.client import ThreadsClient

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-bench"
PATIENCE_S = 120.0
RULES = """
piece_chars: 8
rules:
  - match: '^two'
    steps:
      - call: [{tool: double, arguments: {number: 1}}, {tool: square, arguments: {number: 2}}]
      - say: 'Twice one is {double}, and two squared is {square}.'
  - match: '^wait'
    steps: [{think_s: 300}, {say: 'at last'}]
"""
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("double", "square")
]
_CALLS = re.compile(rb'"id":"(call_[^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a number of two-leg runs took.

    Attributes:
        runs: How many, all completed.
        wall_s: From the first create to the last verdict.
        cpu_s: The server's own share of that, in all its threads.
    """

    runs: int
    wall_s: float
    cpu_s: float

    @property
    def per_core_second(self) -> float:
        """Runs per second of the server's CPU time."""
        return self.runs / self.cpu_s


@dataclass(frozen=True, kw_only=True)
class Open:
    """What a number of open streams cost.

    Attributes:
        streams: How many runs were streamed at once.
        kb_each: The server's resident memory for each, in KB.
        get_ms: How long a GET of a run takes beside them, the median in milliseconds.
        closed_s: How long the server takes to end all of them and itself.
    """

    streams: int
    kb_each: float
    get_ms: float
    closed_s: float


class _Line:
    """One connection, for one request after the other."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        self._host, self._port = url.hostname, url.port

    async def __aenter__(self) -> _Line:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body | {"stream": True}).encode()
        head = (
            f"POST /v1{path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\nauthorization: Bearer {KEY}\r\n"
            "content-type: application/json\r\nopenai-beta: assistants=v2\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)

    async def until(self, mark: bytes) -> bytes:
        return await self._reader.readuntil(mark)

    async def stream(self, path: str, body: dict[str, Any]) -> bytes:
        """Ask for a stream and read it to its end."""
        self.send(path, body)
        return await self.until(b"\r\n0\r\n\r\n")


async def _two_legs(line: _Line, thread_id: str, assistant_id: str) -> None:
    said = [{"role": "user", "content": "two legs"}]
    runs = f"/threads/{thread_id}/runs"
    first = await line.stream(runs, {"assistant_id": assistant_id, "additional_messages": said})
    asked = first[first.index(b"event: thread.run.requires_action") :]
    run = re.search(rb'"id":"(run_[^"]+)"', asked)
    assert run is not None, first
    outputs = [{"tool_call_id": id_.decode(), "output": "2"} for id_ in dict.fromkeys(_CALLS.findall(asked))]
    last = await line.stream(f"{runs}/{run[1].decode()}/submit_tool_outputs", {"tool_outputs": outputs})
    assert b"event: thread.run.completed" in last, last


async def _serve_runs(base_url: str, threads: list[str], assistant_id: str, runs: int) -> None:
    left = iter(range(runs))

    async def work(thread_id: str) -> None:
        async with _Line(base_url) as line:
            for _ in left:
                await _two_legs(line, thread_id, assistant_id)

    async with asyncio.TaskGroup() as group:
        for thread_id in threads:
            group.create_task(work(thread_id))


async def _open_streams(base_url: str, threads: list[str], assistant_id: str) -> list[_Line]:
    lines: list[_Line] = []
    place = asyncio.Semaphore(64)  # the listener's queue is no part of what is measured

    async def begin(thread_id: str) -> None:
        async with place:
            line = await _Line(base_url).__aenter__()
            said = [{"role": "user", "content": "wait"}]
            line.send(
                f"/threads/{thread_id}/runs", {"assistant_id": assistant_id, "additional_messages": said}
            )
            await line.until(b"event: thread.run.in_progress")
            lines.append(line)

    async with asyncio.TaskGroup() as group:
        for thread_id in threads:
            group.create_task(begin(thread_id))
    return lines


@contextmanager
def serving(directory: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the server in a process of its own; where it listens, and the process."""
    script = directory / "rules.yaml"
    script.write_text(RULES)
    command = [sys.executable, "-m", "orchestrator", "serve", "--port", "0", "--api-key", KEY]
    command += ["--db", str(directory / "bench.sqlite"), "--script", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            base_url = process.stdout.readline().split()[-1]
            yield base_url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@contextmanager
def _prepared(base_url: str, threads: int) -> Iterator[tuple[ThreadsClient, str, list[str]]]:
    with ThreadsClient(base_url, api_key=KEY) as client:
        assistant = client.create_assistant(model="rules", tools=TOOLS).id
        yield client, assistant, [client.create_thread().id for _ in range(threads)]


def measure_runs(runs: int, *, at_once: int = 100) -> Served:
    """Serve runs, so many of them at once."""
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(Path(directory)) as (base_url, server),
        _prepared(base_url, at_once) as (_, assistant, threads),
    ):
        asyncio.run(_serve_runs(base_url, threads, assistant, at_once))  # everything is imported and warm
        before, began = server.cpu_times(), time.monotonic()
        asyncio.run(_serve_runs(base_url, threads, assistant, runs))
        after = server.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return Served(runs=runs, wall_s=time.monotonic() - began, cpu_s=cpu_s)


def measure_streams(streams: int) -> Open:
    """Keep streams open, and see what they cost."""
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(Path(directory)) as (base_url, server),
        _prepared(base_url, streams) as (client, assistant, threads),
    ):

        async def main() -> Open:
            before = server.memory_info().rss
            lines = await _open_streams(base_url, threads, assistant)
            assert len(lines) == streams
            held = server.memory_info().rss - before
            gets = []
            for _ in range(20):
                began = time.perf_counter()
                await asyncio.to_thread(client.get_thread, threads[0])
                gets.append(time.perf_counter() - began)
            began = time.monotonic()
            server.terminate()
            for line in lines:
                await line.until(b"\r\n0\r\n\r\n")  # it ends its streams as they ought to end
            await asyncio.to_thread(server.wait, PATIENCE_S)
            closed_s = time.monotonic() - began
            for line in lines:
                await line.__aexit__()
            return Open(
                streams=streams,
                kb_each=held / streams / 1024,
                get_ms=statistics.median(gets) * 1e3,
                closed_s=closed_s,
            )

        return asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def main(runs: int = 2000, streams: int = 5000) -> None:
    """Print the figures."""
    allow_many_files()
    served = measure_runs(runs)
    print(f"{served.runs} two-leg runs: {served.per_core_second:.0f} per core-second, ", end="")
    print(f"{served.runs / served.wall_s:.0f} per second")
    kept = measure_streams(streams)
    print(
        f"{kept.streams} open streams: {kept.kb_each:.0f} KB each, a GET beside them {kept.get_ms:.1f} ms, ",
        end="",
    )
    print(f"all ended within {kept.closed_s:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
