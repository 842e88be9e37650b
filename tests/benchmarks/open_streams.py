"""What a GET costs beside many open streams: our client, httpx as shipped, and openai-python's.

`python tests/benchmarks/open_streams.py` measures each client in a process of its own, one after the other
against one stub server, and prints a table: CPU time per GET of a 2.4 KB run, decoded, beside 1 to 5,000 open
streams. A measurement that has not ended after a minute is given up, and the table says so.
`test_open_streams.py` holds our figures to being flat.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

from stub_server import allow_many_files, stub_server

PATIENCE_S = 60.0
REPETITIONS = 7
GETS = 100

Open: TypeAlias = Callable[[], Awaitable[Any]]
Get: TypeAlias = Callable[[], Awaitable[Any]]
Client: TypeAlias = Callable[[str, int, AsyncExitStack], Awaitable[tuple[Open, Get]]]
"""Makes a client for a server and a number of streams, and returns how to open one and how to GET a run."""


async def ours(base_url: str, streams: int, stack: AsyncExitStack) -> tuple[Open, Get]:
    from orchestrator.client import AsyncThreadsClient

    client = await stack.enter_async_context(
        AsyncThreadsClient(base_url, api_key="k", max_connections=streams)
    )
    return (
        lambda: stack.enter_async_context(client.stream_run("thread_1", assistant_id="asst_1")),
        lambda: client.get_run("thread_1", "run_1"),
    )


async def httpx_as_shipped(base_url: str, streams: int, stack: AsyncExitStack) -> tuple[Open, Get]:
    import httpx

    limits = httpx.Limits(max_connections=streams + 10)
    client = await stack.enter_async_context(httpx.AsyncClient(limits=limits))
    url = f"{base_url}/threads/thread_1/runs"

    async def get() -> Any:
        return (await client.get(f"{url}/run_1")).json()

    return lambda: stack.enter_async_context(client.stream("POST", url, json={"stream": True})), get


async def openai_python(base_url: str, streams: int, stack: AsyncExitStack) -> tuple[Open, Get]:
    import httpx2
    import openai

    # Its own limit is 1,000 connections: the GET beside 1,000 streams would wait for ever.
    http = openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_connections=streams + 10))
    client = await stack.enter_async_context(
        openai.AsyncOpenAI(base_url=base_url, api_key="k", http_client=http, max_retries=0)
    )
    runs = client.beta.threads.runs

    async def open_stream() -> None:
        stream = await runs.create("thread_1", assistant_id="asst_1", stream=True)
        stack.push_async_callback(stream.close)

    return open_stream, lambda: runs.retrieve("run_1", thread_id="thread_1")


CLIENTS: dict[str, Client] = {
    "ours": ours,
    "httpx as shipped": httpx_as_shipped,
    "openai-python": openai_python,
}
STREAMS = (1, 100, 1_000, 5_000)


async def measure(client: str, base_url: str, streams: int) -> list[float]:
    """Return the CPU time of a GET beside so many open streams, in µs, as each repetition had it."""
    async with AsyncExitStack() as stack:
        open_stream, get = await CLIENTS[client](base_url, streams, stack)
        for _ in range(streams):
            await open_stream()
        for _ in range(GETS):
            await get()
        gc.collect()
        repetitions = []
        for _ in range(REPETITIONS):
            begun = time.process_time()
            for _ in range(GETS):
                await get()
            repetitions.append(1e6 * (time.process_time() - begun) / GETS)
        return repetitions


def measured(client: str, base_url: str, streams: int) -> list[float] | None:
    """Measure in a process of its own; `None` when that takes more than `PATIENCE_S`.

    Raises:
        subprocess.CalledProcessError: The client failed.
    """
    command = [sys.executable, "-W", "ignore", __file__, client, base_url, str(streams)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True)
    except subprocess.TimeoutExpired:
        return None
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    """Print the table; the figure is the median of the repetitions, the ratio is to one stream."""
    print(f"| CPU µs per GET beside | {' | '.join(f'{count:,}' for count in STREAMS)} open streams |")
    print(f"|---|{'---|' * len(STREAMS)}")
    with stub_server() as base_url:
        for client in CLIENTS:
            cells = []
            first = 0.0
            for streams in STREAMS:
                figures = measured(client, base_url, streams)
                if figures is None:
                    cells.append(f"> {PATIENCE_S:.0f} s in all")
                    continue
                figure = statistics.median(figures)
                first = first or figure
                cells.append(f"{figure:,.0f} (ratio {figure / first:.1f})")
            print(f"| {client} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        allow_many_files()
        print(*asyncio.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
