"""Everything a tool may ask for at once, drawn by lot: every run ends, and nothing is left.

A world draws what its tools ask for, what stands around them, who decides, and what becomes of each
execution; people approve, deny and cancel meanwhile. What comes of it is not foretold, only what must hold of
all of it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from stage import PATIENCE_S, TOOLS, Stage, wait_until

from orchestrator import Retry, ToolContext, tool
from orchestrator.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator import ApprovalRequest, Invocation, Orchestrator, RunHandle, Tool

pytestmark = pytest.mark.usefixtures("nothing_is_left")

RUNS = 40


class World:
    """What is drawn for one orchestrator.

    Attributes:
        executions: How often each execution of a call was begun, by run, call and attempt.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.executions: Counter[tuple[str, str, int]] = Counter()
        self._lock = threading.Lock()

    def tool(self, name: str) -> Tool[..., Any]:
        async def work_async(context: ToolContext) -> str:
            await asyncio.sleep(self.chance.random() / 50)
            return self._outcome(context)

        def work(context: ToolContext) -> str:
            context.stop.wait(self.chance.random() / 50)
            return self._outcome(context)

        ways: list[Any] = [False, True, lambda _: self.chance.random() < 0.5]
        options: dict[str, Any] = {
            "retries": self.chance.choice([None, 0, 2]),
            "max_concurrency": self.chance.choice([None, 1, 2]),
            "approval": self.chance.choice(ways),
            "timeout_s": self.chance.choice([0.05, 0.2, 5.0]),
            "on_error": self.chance.choice(["report", "report", "fail"]),
        }
        return tool(name=name, **options)(self.chance.choice([work, work_async]))

    def _outcome(self, context: ToolContext) -> str:
        with self._lock:
            self.executions[context.run_id, context.call_id, context.attempt] += 1
        drawn = self.chance.random()
        if drawn < 0.2:
            raise Retry("again", after_s=self.chance.random() / 50)
        if drawn < 0.3:
            raise ValueError("no")
        if drawn < 0.4:
            context.stop.wait(0.1)
        if drawn < 0.5:
            context.progress("on its way", drawn)
        return "done"

    def middleware(self) -> list[Any]:
        def plain(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
            return "known" if self.chance.random() < 0.1 else call_next(invocation)

        async def asynchronous(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
            return await call_next(invocation)

        chains = [[], [plain], [asynchronous], [plain, asynchronous], [asynchronous, plain] * 2]
        return self.chance.choice(chains)

    def hook(self) -> Any:
        def decide(_: ApprovalRequest) -> bool | str | None:
            return self.chance.choice([True, False, "not today", None, None])

        async def decide_async(request: ApprovalRequest) -> bool | str | None:
            return decide(request)

        return self.chance.choice([None, decide, decide_async])


@contextmanager
def people(runs: list[RunHandle], world: World) -> Iterator[None]:
    """Two who decide of whatever waits, and one who cancels some of the runs."""
    over = threading.Event()

    def decide() -> None:
        while not over.wait(0.002):
            for run in runs:
                for request in run.snapshot().approvals:
                    with suppress(ValueError):  # somebody was quicker
                        world.chance.choice([run.approve, run.deny])(request.call_id)

    def cancel() -> None:
        for run in world.chance.sample(runs, RUNS // 8):
            over.wait(0.01)
            run.cancel()

    threads = [threading.Thread(target=work) for work in (decide, decide, cancel)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def ended(run: RunHandle) -> str:
    try:
        return run.result(PATIENCE_S).status
    except ToolFailed:
        return run.status or ""


def play(stage: Stage, seed: int) -> None:
    world = World(seed)
    with stage.orchestrator(
        tools=[world.tool(name) for name in TOOLS],
        middleware=world.middleware(),
        approve=world.hook(),
        tool_threads=world.chance.choice([2, 8]),
    ) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="all") for _ in range(RUNS)]
        with people(runs, world):
            ends = Counter(ended(run) for run in runs)
        wait_until(lambda: is_at_rest(orchestrator))
    assert ends.keys() <= {"completed", "cancelled"}
    assert [run.snapshot().approvals for run in runs] == [()] * RUNS
    assert set(world.executions.values()) <= {1}, "an execution was begun twice"
    for run in runs:
        if run.status == "completed":
            submits = [one for one in stage.requests(run.thread_id, "POST") if one.endswith("outputs")]
            assert len(submits) == 1
            assert len(run.result(0).tool_calls) == len(TOOLS)


def is_at_rest(orchestrator: Orchestrator) -> bool:
    """Whether no call runs, none holds or awaits a place, and no thread is stuck."""
    executor = orchestrator._roster._executor
    return not (executor._live or executor._workplace.limits._places or executor.stuck_threads)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_together_every_run_ends_and_nothing_is_left(stage: Stage, seed: int) -> None:
    play(stage, seed)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_of_two_hundred_such_worlds_none_keeps_a_run_or_leaves_anything(stage: Stage) -> None:
    for seed in range(100, 300):
        play(stage, seed)
