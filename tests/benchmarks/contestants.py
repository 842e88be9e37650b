"""Who sees two-leg runs through, each in a process of its own, and what it costs that process.

`python tests/benchmarks/contestants.py NAME BASE_URL RUNS SPREAD_S` sees one wave through and prints what was
measured, as JSON. A wave is so many runs, each on a thread of its own, whose starts are spread over so many
seconds; 0 starts all at once. What is made once for all (imports, connections, the look at the assistant) is
made by a wave before, which is not measured. Peers are used at their best: raw events in place of their
helpers, the server's own hint for the next poll, their warnings off.

Needs the extra `bench` for some of the peers; `available` says which.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import math
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import psutil
from fleet import ask_server, percentile, resident_bytes
from stub_server import allow_many_files
from two_legs import POLL_MS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

THREADS: Final = 200
"""How many threads a blocking peer gets: with more, it spends its time between them."""

OUTPUTS: Final = [{"tool_call_id": "call_0", "output": "14"}, {"tool_call_id": "call_1", "output": "64"}]
PATIENCE_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one wave cost.

    Attributes:
        runs: How many there were.
        cpu_s: CPU time of the process, in all its threads, from the first start to the last result.
        wall_s: How long that took.
        delays_s: From the moment a run was over on the server to the moment its result was there, sorted.
        open_bytes: By how much the process's resident memory grew until the last start.
    """

    runs: int
    cpu_s: float
    wall_s: float
    delays_s: list[float] = field(default_factory=list)
    open_bytes: int = 0

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for each run."""
        return 1e3 * self.cpu_s / self.runs

    def delay_ms(self, share: float) -> float:
        """The delay that this share of the runs does not exceed, in ms; NaN where none was taken."""
        return 1e3 * percentile(self.delays_s, share) if self.delays_s else math.nan


class Clock:
    """Takes the time of a wave, and says when each run is to start."""

    def __init__(self, runs: int, spread_s: float) -> None:
        self.runs = runs
        self._spread_s = spread_s
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wait_s(self, number: int) -> float:
        """How long the start of a run is off."""
        due = self._wall + number * self._spread_s / self.runs
        return max(0.0, due - time.perf_counter()) if self._spread_s else 0.0

    def stop(self, **more: Any) -> Round:
        """What it took."""
        cpu_s, wall_s = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return Round(runs=self.runs, cpu_s=cpu_s, wall_s=wall_s, **more)


# Ours.


def double(number: int) -> str:
    """Twice the number."""
    return str(2 * number)


async def square(number: int) -> str:
    """The number's square."""
    return str(number * number)


def ours(
    base_url: str,
    runs: int,
    spread_s: float,
    *,
    watch: Any = "stream",
    journal: bool = False,
    collector: bool = True,
) -> Round:
    """The orchestrator, as users get it: logs at info level to a file."""
    from orchestrator import Orchestrator, RunHandle

    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "runs.log"
        logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        url = f"sqlite:///{Path(directory) / 'runs.db'}" if journal else None
        with Orchestrator(
            base_url=base_url,
            api_key="k",
            tools=[double, square],
            max_concurrent_runs=runs + 1,
            watch=watch,
            journal=url,
        ) as orchestrator:
            handles: list[RunHandle] = []
            seen: dict[str, float] = {}
            pace = threading.Event()

            def start(number: int, name: str) -> RunHandle:
                return orchestrator.start("asst_1", messages="go", thread_id=f"thread_{name}_{number}")

            def note(handle: RunHandle, _: object) -> None:
                seen[handle.run_id or ""] = time.monotonic()

            for handle in [start(number, "warm") for number in range(runs if not spread_s else 50)]:
                handle.result(PATIENCE_S)
            before = resident_bytes()
            if not collector:
                gc.disable()
            clock = Clock(runs, spread_s)
            for number in range(runs):
                wait_s = clock.wait_s(number)
                if wait_s:
                    pace.wait(wait_s)
                handle = start(number, "run")
                handles.append(handle)
                if spread_s:
                    handle.future.add_done_callback(partial(note, handle))
            # As it is: a collection now would keep runs waiting that end just then.
            grown = psutil.Process().memory_info().rss - before
            results = [handle.result(PATIENCE_S) for handle in handles]
            measured = clock.stop(open_bytes=grown)
            assert all(result.status == "completed" and len(result.tool_calls) == 2 for result in results)
    if spread_s:
        return Round(**asdict(measured) | {"delays_s": delays(base_url, seen)})
    return measured


def delays(base_url: str, seen: dict[str, float]) -> list[float]:
    """How long after its end on the server each run was seen to be over."""
    ended: dict[str, float] = ask_server(base_url, "ended")
    return sorted(at - ended[run_id] for run_id, at in seen.items())


# The floor.


class _Raw(asyncio.Protocol):
    """Sends what a run's two requests are, and reads what answers them; parses nothing."""

    HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\naccept: text/event-stream\r\n"
    HEAD += b"openai-beta: assistants=v2\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No more than an interface: the transports of other loops do not inherit from it.
        self.transport = cast("asyncio.Transport", transport)

    def begin(self, thread: str, run: str) -> asyncio.Future[None]:
        body = b'{"assistant_id":"asst_1","additional_messages":[{"role":"user","content":"go"}],"metadata":'
        body += b'{"orchestrator_nonce":"0123456789abcdef0123456789abcdef"},"stream":true}'
        self._submission = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs".encode()
        self.over = asyncio.get_running_loop().create_future()
        self.transport.write(self.HEAD % (f"/v1/threads/{thread}/runs".encode(), len(body), body))
        return self.over

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n0\r\n\r\n"):
            return
        if self._submission:
            body = json.dumps({"tool_outputs": OUTPUTS, "stream": True}).encode()
            self.transport.write(self.HEAD % (self._submission, len(body), body))
            self._submission = b""
        else:
            self.over.set_result(None)


def floor(base_url: str, runs: int, spread_s: float) -> Round:
    """Raw sockets: the same bytes, and nothing is made of them."""
    import uvloop

    where = urlsplit(base_url)
    port = where.port or 80

    async def main() -> Round:
        loop = asyncio.get_running_loop()
        made = [(await loop.create_connection(_Raw, where.hostname or "", port))[1] for _ in range(runs)]
        clock = Clock(runs, spread_s)
        waits = []
        for number, raw in enumerate(made):
            wait_s = clock.wait_s(number)
            if wait_s:
                await asyncio.sleep(wait_s)
            waits.append(raw.begin(f"thread_{number}", f"run_{number + 1}"))
        await asyncio.wait(waits)
        return clock.stop()

    return uvloop.run(main())


# The peers.


async def spread(clock: Clock, one: Callable[[str], Awaitable[None]]) -> Round:
    """See a wave through with a task for each run."""
    tasks: list[asyncio.Task[None]] = []
    for number in range(clock.runs):
        wait_s = clock.wait_s(number)
        if wait_s:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(f"thread_run_{number}")))  # type: ignore[arg-type]  # a coroutine
    await asyncio.gather(*tasks)
    return clock.stop()


def async_openai(base_url: str, runs: int, spread_s: float, *, aiohttp: bool, stream: bool) -> Round:
    """`AsyncOpenAI`, with a task for each run."""
    import openai

    async def main() -> Round:
        http: Any = openai.DefaultAioHttpClient() if aiohttp else None
        async with openai.AsyncOpenAI(
            base_url=base_url, api_key="k", max_retries=0, timeout=PATIENCE_S, http_client=http
        ) as client:
            api: Any = client.beta.threads

            async def streamed(thread: str) -> None:
                asked = await api.runs.create(
                    thread, assistant_id="asst_1", additional_messages=_GO, stream=True
                )
                async for event in asked:
                    if event.event == "thread.run.requires_action":
                        run_id = event.data.id
                answered = await api.runs.submit_tool_outputs(
                    run_id, thread_id=thread, tool_outputs=OUTPUTS, stream=True
                )
                async for event in answered:
                    if event.event == "thread.run.completed":
                        status = event.data.status
                assert status == "completed"

            async def polled(thread: str) -> None:
                run = await api.runs.create_and_poll(
                    thread_id=thread, assistant_id="asst_1", additional_messages=_GO
                )
                run = await api.runs.submit_tool_outputs_and_poll(
                    run_id=run.id, thread_id=thread, tool_outputs=OUTPUTS
                )
                await api.messages.list(thread, run_id=run.id)
                assert run.status == "completed"

            one: Any = streamed if stream else polled
            await spread(Clock(20, 0.0), one)
            return await spread(Clock(runs, spread_s), one)

    return asyncio.run(main())


def threaded(clock: Clock, one: Callable[[str], None]) -> Round:
    """See a wave through with a bounded number of threads."""
    with ThreadPoolExecutor(min(THREADS, clock.runs)) as pool:
        for _ in pool.map(one, [f"thread_run_{number}" for number in range(clock.runs)]):
            pass
    return clock.stop()


def sync_openai(base_url: str, runs: int, spread_s: float, *, stream: bool) -> Round:
    """`OpenAI`, with a thread for each run, as far as there are threads."""
    import openai

    with openai.OpenAI(base_url=base_url, api_key="k", max_retries=0, timeout=PATIENCE_S) as client:
        api: Any = client.beta.threads

        def streamed(thread: str) -> None:
            for event in api.runs.create(thread, assistant_id="asst_1", additional_messages=_GO, stream=True):
                if event.event == "thread.run.requires_action":
                    run_id = event.data.id
            answered = api.runs.submit_tool_outputs(
                run_id, thread_id=thread, tool_outputs=OUTPUTS, stream=True
            )
            assert "thread.run.completed" in [event.event for event in answered]

        def polled(thread: str) -> None:
            run = api.runs.create_and_poll(thread_id=thread, assistant_id="asst_1", additional_messages=_GO)
            run = api.runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread, tool_outputs=OUTPUTS)
            api.messages.list(thread, run_id=run.id)
            assert run.status == "completed"

        one = streamed if stream else polled
        threaded(Clock(20, 0.0), one)
        return threaded(Clock(runs, spread_s), one)


def azure_agents(base_url: str, runs: int, spread_s: float) -> Round:
    """`azure-ai-agents`: `create_and_process`, with a thread for each run, as far as there are threads."""
    from azure.ai.agents import AgentsClient
    from azure.ai.agents.models import FunctionTool, ToolSet
    from azure.core.credentials import AzureKeyCredential
    from azure.core.pipeline.policies import AzureKeyCredentialPolicy

    toolset = ToolSet()
    toolset.add(FunctionTool({twice, squared}))
    with AgentsClient(
        endpoint=base_url.removesuffix("/v1") + "/api/projects/tests",
        credential=_NoToken(),
        authentication_policy=AzureKeyCredentialPolicy(AzureKeyCredential("k"), "api-key"),
        retry_total=0,
    ) as client:
        client.enable_auto_function_calls(toolset)
        pause_s: Any = POLL_MS / 1000  # whole seconds, says its signature

        def one(thread: str) -> None:
            run = client.runs.create_and_process(
                thread_id=thread, agent_id="asst_1", toolset=toolset, polling_interval=pause_s
            )
            assert run.status == "completed"

        threaded(Clock(20, 0.0), one)
        return threaded(Clock(runs, spread_s), one)


def twice(number: int) -> str:
    """Twice the number, in words: this peer takes no output that is a number."""
    return f"it is {2 * number}"


def squared(number: int) -> str:
    """The number's square, likewise."""
    return f"it is {number * number}"


twice.__name__, squared.__name__ = "double", "square"


class _NoToken:
    def get_token(self, *_: str, **__: Any) -> Any:
        raise AssertionError("the key is enough")


_GO: Final[Any] = [{"role": "user", "content": "go"}]

CONTESTANTS: Final[dict[str, Callable[[str, int, float], Round]]] = {
    "floor": floor,
    "ours, streamed": ours,
    "ours, streamed, SQLite journal": lambda *wave: ours(*wave, journal=True),
    "ours, streamed, collector off": lambda *wave: ours(*wave, collector=False),
    "ours, polled": lambda *wave: ours(*wave, watch="poll"),
    "AsyncOpenAI, streamed, aiohttp": lambda *wave: async_openai(*wave, aiohttp=True, stream=True),
    "AsyncOpenAI, polled, aiohttp": lambda *wave: async_openai(*wave, aiohttp=True, stream=False),
    "AsyncOpenAI, streamed": lambda *wave: async_openai(*wave, aiohttp=False, stream=True),
    "AsyncOpenAI, polled": lambda *wave: async_openai(*wave, aiohttp=False, stream=False),
    "OpenAI, streamed, threads": lambda *wave: sync_openai(*wave, stream=True),
    "OpenAI, polled, threads": lambda *wave: sync_openai(*wave, stream=False),
    "azure-ai-agents, polled, threads": azure_agents,
}
"""By name: what sees a wave of so many runs through."""


def missing(name: str) -> str | None:
    """The package that a contestant needs and that is not installed, or `None`."""
    needs = {"aiohttp": "httpx_aiohttp", "OpenAI": "openai", "azure": "azure.ai.agents", "floor": "uvloop"}
    for word, package in needs.items():
        if word in name and importlib.util.find_spec(package.partition(".")[0]) is None:
            return package
    return None


def main(arguments: Sequence[str]) -> None:
    """See one wave through, and print what it cost."""
    name, base_url, runs, spread_s = arguments
    warnings.simplefilter("ignore")
    allow_many_files()
    print(json.dumps(asdict(CONTESTANTS[name](base_url, int(runs), float(spread_s)))))


if __name__ == "__main__":
    main(sys.argv[1:])
