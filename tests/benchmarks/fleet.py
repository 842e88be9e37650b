"""Thousands of runs in one process: whether all come out right, what they cost, how fast a cancel is sent.

`python tests/benchmarks/fleet.py [RUNS]` (default 5,000) prints what it measures against a run server in
another process. `test_fleet.py` holds the figures to what is promised, with fewer runs and, in the long
profile, with 5,000.

Memory is the process's resident set after `gc.collect()`, with the allocator's free pages given back to the
system where it can (`malloc_trim`), so that what is left is held by somebody.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import psutil
from run_server import calls_of, run_server
from stub_server import allow_many_files

from orchestrator import Orchestrator, RunHandle
from orchestrator.runtime import acquire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.runs.request import Watch

PATIENCE_S = 120.0
ROUNDS, CALLS = 2, 2
LAG_EVERY_S = 0.005


def double(number: int) -> str:
    """Twice the number."""
    return str(2 * number)


async def square(number: int) -> str:
    """The number's square."""
    await asyncio.sleep(0)
    return str(number * number)


def expected_text(number: int) -> str:
    """What a run of this number says in the end."""
    calls = [call for round_ in range(ROUNDS) for call in calls_of(number, round_ + 1, CALLS)]
    return " ".join(str(2 * n if name == "double" else n * n) for name, n in calls)


@dataclass(frozen=True, kw_only=True)
class Wave:
    """What it took to see a number of runs through that were all open at the same time.

    Attributes:
        runs: How many.
        failed: The runs that did not complete with the right outputs, and why.
        threads: All the threads beside the main one, by name without number, once every tool had run.
        wall_s: From the first start to the last result.
        cpu_s: This process's share of that.
        open_bytes: How much more memory the process had while all were open.
        left_bytes: How much more it had once all were over and forgotten than before the first wave.
    """

    runs: int
    failed: list[str] = field(repr=False)
    threads: dict[str, int]
    wall_s: float
    cpu_s: float
    open_bytes: int
    left_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cancels:
    """How open runs were cancelled beside others.

    Attributes:
        runs: How many were open.
        latencies_s: From before each `cancel()` to the arrival of its bytes, sorted.
        lags_s: By how much callbacks on the actors' loop came late meanwhile, sorted.
        beside: How many runs with tools came and went meanwhile.
        failed: Runs that did not end as they ought to, and why.
        converged_s: From `cancel_all()` of those that were left until each had its result.
        cancelled_at_last: How many those were.
        closed_s: How long `close()` took then.
    """

    runs: int
    latencies_s: list[float] = field(repr=False)
    lags_s: list[float] = field(repr=False)
    beside: int
    failed: list[str] = field(repr=False)
    converged_s: float
    cancelled_at_last: int
    closed_s: float


def ask_server(base_url: str, path: str, *, method: str = "GET") -> Any:
    """Ask the run server something beside the protocol."""
    with urlopen(Request(f"{base_url}/stub/{path}", method=method), timeout=PATIENCE_S) as answer:
        return json.load(answer)


def orchestrator(base_url: str, runs: int, *, watch: Watch = "stream") -> Orchestrator:
    """The orchestrator that is measured: as shipped, but for room for so many runs."""
    return Orchestrator(
        base_url=base_url, api_key="k", tools=[double, square], max_concurrent_runs=runs, watch=watch
    )


def start(fleet: Orchestrator, number: int, **metadata: object) -> RunHandle:
    """Start a run of `ROUNDS` rounds; the metadata tells the server what else to do."""
    plan = {"rounds": ROUNDS, "calls": CALLS, "number": number} | metadata
    return fleet.start("asst_1", messages="go", metadata={name: str(value) for name, value in plan.items()})


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what no event announces."""
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{holds} never came true")
        pause.wait(0.02)


def all_open(base_url: str, handles: list[RunHandle], *, streams: int) -> None:
    """Wait until the server and the orchestrator agree that all these runs are in progress."""
    wait_until(lambda: all(handle.status == "in_progress" for handle in handles))
    wait_until(lambda: bool(ask_server(base_url, "report")["open_streams"] >= streams))


def resident_bytes() -> int:
    """This process's resident memory, without what could be given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def our_threads() -> dict[str, int]:
    """How many threads orchestrators have, by name without number."""
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    kinds = [name.rstrip("0123456789").rstrip("-") for name in names]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def failures(numbers: range, handles: list[RunHandle]) -> list[str]:
    """Wait for runs; say which did not complete with the right outputs."""
    wrong = []
    for number, handle in zip(numbers, handles, strict=True):
        try:
            result = handle.result(PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - all of them are counted, not only the first
            wrong.append(f"{handle.key}: {error!r}")
            continue
        errors = [call.error for call in result.tool_calls if call.error]
        if result.status != "completed" or result.text != expected_text(number) or errors:
            wrong.append(f"{handle.key}: {result.status}, {result.text!r}, {errors}")
    return wrong


def waves(base_url: str, runs: int, count: int, *, watch: Watch = "stream") -> list[Wave]:
    """See `count` waves of so many runs through, one after the other, in one orchestrator."""
    measured: list[Wave] = []
    with orchestrator(base_url, runs, watch=watch) as fleet:
        # What the first run makes once for all is no growth.
        assert failures(range(1), [start(fleet, 0)]) == []
        at_first = resident_bytes()
        gates = (f"{watch}-{runs}-{wave}" for wave in range(count))
        measured.extend(_wave(base_url, fleet, runs, gate=gate, at_first=at_first) for gate in gates)
    return measured


def _wave(base_url: str, fleet: Orchestrator, runs: int, *, gate: str, at_first: int) -> Wave:
    before = resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    handles = [start(fleet, number, gate=gate) for number in range(runs)]
    all_open(base_url, handles, streams=0 if gate.startswith("poll") else runs)
    pause, pause_cpu = time.perf_counter(), time.process_time()
    open_bytes = resident_bytes() - before
    wall, cpu = wall + time.perf_counter() - pause, cpu + time.process_time() - pause_cpu
    ask_server(base_url, f"gates/{gate}", method="POST")
    failed = failures(range(runs), handles)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # Tool threads are there from the first call on: looked at here, it is all there ever were.
    threads = our_threads()
    handles.clear()
    return Wave(
        runs=runs,
        failed=failed,
        threads=threads,
        wall_s=wall,
        cpu_s=cpu,
        open_bytes=open_bytes,
        left_bytes=resident_bytes() - at_first,
    )


@contextmanager
def lag_sampled() -> Iterator[list[float]]:
    """Have the actors' loop note by how much its timers are late; yields the list, whole after the block."""
    thread = acquire()
    lags: list[float] = []
    over = threading.Event()
    stopped = threading.Event()

    def sample(due: float) -> None:
        lags.append(max(0.0, time.monotonic() - due))
        if over.is_set():
            stopped.set()
        else:
            thread.loop.call_later(LAG_EVERY_S, sample, time.monotonic() + LAG_EVERY_S)

    try:
        thread.call_soon(sample, time.monotonic())
        yield lags
    finally:
        over.set()
        stopped.wait(PATIENCE_S)
        thread.release()


def cancels(base_url: str, runs: int, count: int, *, over_s: float, every_s: float, beside: int) -> Cancels:
    """Open runs, cancel some of them one by one beside others that come and go, then all that are left.

    Args:
        base_url: The run server.
        runs: How many runs are opened.
        count: How many of them are cancelled one by one.
        over_s: How long their starts take.
        every_s: The pause between two cancels.
        beside: After how many cancels each a run with tools is started.
    """
    pace = threading.Event()
    fleet = orchestrator(base_url, 2 * runs)
    held: list[RunHandle] = []
    begun = time.monotonic()
    for number in range(runs):
        pace.wait(max(0.0, begun + number * over_s / runs - time.monotonic()))
        held.append(start(fleet, number, until="cancelled"))
    all_open(base_url, held, streams=runs)

    called: dict[str | None, float] = {}
    others: list[RunHandle] = []
    chosen = held[:: max(1, runs // count)][:count]
    with lag_sampled() as lags:
        begun = time.monotonic()
        for index, handle in enumerate(chosen):
            if index % beside == 0:
                others.append(start(fleet, len(others), think_ms=20))
            pace.wait(max(0.0, begun + index * every_s - time.monotonic()))
            called[handle.run_id] = time.monotonic()
            handle.cancel()
        failed = failures(range(len(others)), others)
        ended = [handle.result(PATIENCE_S).status for handle in chosen]
    arrived = ask_server(base_url, "cancels")
    failed += [f"cancelled one: {status}" for status in ended if status != "cancelled"]

    begun = time.monotonic()
    left = fleet.cancel_all()
    ended = [handle.result(PATIENCE_S).status for handle in left]
    converged = time.monotonic()
    failed += [f"one of all: {status}" for status in ended if status != "cancelled"]
    fleet.close()
    return Cancels(
        runs=runs,
        latencies_s=sorted(arrived[run_id] - at for run_id, at in called.items()),
        lags_s=sorted(lags),
        beside=len(others),
        failed=failed,
        converged_s=converged - begun,
        cancelled_at_last=len(left),
        closed_s=time.monotonic() - converged,
    )


def percentile(ordered: list[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def wave_row(name: str, wave: Wave) -> str:
    """Put a wave into a line of the table."""
    return (
        f"| {name} | {wave.runs:,} | {len(wave.failed)} | {wave.wall_s:.1f} s"
        f" | {1e3 * wave.cpu_s / wave.runs:.1f} ms | {wave.open_bytes / 1e3 / wave.runs:.0f} KB"
        f" | {wave.left_bytes / 1e6:+.1f} MB |"
    )


def latency_row(name: str, ordered: list[float]) -> str:
    """Put latencies into a line of the table."""
    figures = (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
    return f"| {name} | {len(ordered):,} | {' | '.join(f'{1e3 * figure:.1f} ms' for figure in figures)} |"


WAVE_HEAD = (
    "| runs | at once | failed | in all | CPU per run | memory per open run | left of it |\n"
    "|---|---|---|---|---|---|---|"
)
LATENCY_HEAD = "| | samples | p50 | p99 | max |\n|---|---|---|---|---|"


def ending(measured: Cancels) -> str:
    """Say how the rest ended."""
    return (
        f"cancel_all() of {measured.cancelled_at_last:,} runs: all cancelled after "
        f"{measured.converged_s:.1f} s, closed {measured.closed_s:.2f} s later"
    )


def main() -> None:
    """Print the tables."""
    allow_many_files()
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    with run_server() as base_url:
        print(WAVE_HEAD)
        streamed = waves(base_url, runs, 4)
        for number, wave in enumerate(streamed, 1):
            print(wave_row(f"streamed, wave {number}", wave), flush=True)
        for wave in waves(base_url, runs // 10, 1, watch="poll"):
            print(wave_row("polled", wave), flush=True)
        print(f"\nThreads: {streamed[0].threads}\nServer: {ask_server(base_url, 'report')}\n")
        measured = cancels(base_url, runs, runs // 10, over_s=runs / 500, every_s=0.01, beside=5)
        print(LATENCY_HEAD)
        print(latency_row(f"cancel() to the wire, beside {runs:,} open runs", measured.latencies_s))
        print(latency_row("lag of the actors' loop meanwhile", measured.lags_s))
        print(f"\n{measured.beside} runs with tools came and went meanwhile; {ending(measured)}")
        for failure in [*measured.failed, *(failure for wave in streamed for failure in wave.failed)][:20]:
            print(failure)


if __name__ == "__main__":
    main()
