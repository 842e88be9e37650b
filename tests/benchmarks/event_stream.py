"""How fast an event stream is read, and how much memory that takes, on both clients.

`python tests/benchmarks/event_stream.py [MEGABYTES]` streams that much (default 256) of message deltas of
about 900 bytes from a server in another process and prints a table. `test_event_stream.py` bounds the memory.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from stub_server import DELTA_BYTES, TEXT, deltas_in, stub_server

from orchestrator.client import AsyncThreadsClient, ThreadsClient
from orchestrator.protocol.events import DoneEvent, MessageDeltaEvent, StreamEvent

MB = 1_000_000
WARM_UP_BYTES = 4 * MB
LOOK_EVERY = 2_000


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What it took to read one stream.

    Attributes:
        deltas: The deltas that arrived.
        streamed_bytes: What they took on the wire.
        grown_bytes: How far the process's resident memory rose above where it was before, at most.
        wall_s: How long it took.
        cpu_s: This process's share of that.
    """

    deltas: int
    streamed_bytes: int
    grown_bytes: int
    wall_s: float
    cpu_s: float


class _Meter:
    """Takes in the events of one stream and keeps nothing of them."""

    def __init__(self) -> None:
        gc.collect()
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.deltas = 0
        self.is_done = False

    def take(self, event: StreamEvent) -> None:
        if isinstance(event, MessageDeltaEvent):
            assert event.data.text == TEXT
            self.deltas += 1
            if self.deltas % LOOK_EVERY == 0:
                self._highest = max(self._highest, self._process.memory_info().rss)
        self.is_done = isinstance(event, DoneEvent)

    def reading(self) -> Reading:
        assert self.is_done
        return Reading(
            deltas=self.deltas,
            streamed_bytes=self.deltas * DELTA_BYTES,
            grown_bytes=max(self._highest, self._process.memory_info().rss) - self._before,
            wall_s=time.perf_counter() - self._wall,
            cpu_s=time.process_time() - self._cpu,
        )


def _request(stream_bytes: int) -> dict[str, Any]:
    return {"assistant_id": "asst_1", "headers": {"x-stub-bytes": str(stream_bytes)}}


def read_blocking(base_url: str, stream_bytes: int) -> Reading:
    """Read so many bytes of deltas with the blocking client, after a warm-up."""
    with ThreadsClient(base_url, api_key="k") as client:
        for size in (WARM_UP_BYTES, stream_bytes):
            with client.stream_run("thread_1", **_request(size)) as stream:
                meter = _Meter()
                for event in stream:
                    meter.take(event)
                reading = meter.reading()
    assert reading.deltas == deltas_in(stream_bytes)
    return reading


def read_asynchronously(base_url: str, stream_bytes: int) -> Reading:
    """Read so many bytes of deltas with the asynchronous client, after a warm-up."""

    async def read() -> Reading:
        async with AsyncThreadsClient(base_url, api_key="k") as client:
            for size in (WARM_UP_BYTES, stream_bytes):
                async with client.stream_run("thread_1", **_request(size)) as stream:
                    meter = _Meter()
                    async for event in stream:
                        meter.take(event)
                    reading = meter.reading()
        return reading

    reading = asyncio.run(read())
    assert reading.deltas == deltas_in(stream_bytes)
    return reading


READERS: dict[str, Callable[[str, int], Reading]] = {
    "blocking": read_blocking,
    "asynchronous": read_asynchronously,
}


def row(name: str, reading: Reading) -> str:
    """Put a reading into a line of the table."""
    return (
        f"| {name} | {reading.streamed_bytes / MB:,.0f} MB | {reading.grown_bytes / MB:.1f} MB"
        f" | {reading.streamed_bytes / MB / reading.wall_s:,.0f} MB/s"
        f" | {1e6 * reading.cpu_s / reading.deltas:.1f} µs |"
    )


def main() -> None:
    """Print the table."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    print("| client | streamed | memory grew by | speed | CPU per event |\n|---|---|---|---|---|")
    with stub_server() as base_url:
        for name, read in READERS.items():
            print(row(name, read(base_url, megabytes * MB)), flush=True)


if __name__ == "__main__":
    main()
