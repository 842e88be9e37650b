"""Many runs in a storm: connections reset, the server killed and started again, actors killed, all at random.

Everything is real and the chances are seeded. What comes of it is held against the server's own store: each
handle tells the truth, each tool call was executed once, and nothing is left.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import sqlite3
import threading
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from inquest import TOOLS, Inquest, Kind, Plan, Workshop, script
from stage import PATIENCE_S, assert_nothing_left, definition
from storm import KEY, Citadel, FickleJournal, Lightning, Rapids

from orchestrator import Orchestrator, RestartPolicy, RunHandle, Timing
from orchestrator.client import RetryPolicy, ThreadsClient
from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.supervision import roster

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PATIENT = Timing(
    retry=RetryPolicy(attempts=60, base_s=0.05, cap_s=0.5, settle_s=0.1),
    cancel_timeout_s=30.0,
    poll_min_s=0.05,
    poll_max_s=0.3,
)
"""Enough attempts to outlast a restart of the server."""

UNDYING = RestartPolicy(max_restarts=10_000, backoff_s=0.005, backoff_cap_s=0.05)
MORTAL = RestartPolicy(max_restarts=1, backoff_s=0.005)

PLACES = 50
"""Runs at work at once; as many again wait for their turn."""

KINDS: tuple[Kind, ...] = ("quiet", "one", "wide", "deep", "deep", "stumbling", "broken")


def plans(rng: random.Random, count: int) -> list[Plan]:
    """A mixture; the last of them are under way when everything is closed."""
    tags = [f"t{number}" for number in range(count)]
    late = [Plan(tag=tag, kind=rng.choice(("slow", "deep")), closed=True) for tag in tags[: count // 12]]
    tight = [Plan(tag=tag, kind=rng.choice(KINDS), tight=True) for tag in tags[len(late) : 2 * len(late)]]
    others = [_plan(rng, tag) for tag in tags[2 * len(late) :]]
    return [*others, *tight, *late]


def _plan(rng: random.Random, tag: str) -> Plan:
    kind = rng.choice(KINDS)
    match rng.randrange(10):
        case 0:
            return Plan(tag=tag, kind=kind, cancel_after=rng.randint(0, 25))
        case 1:
            return Plan(tag=tag, kind="slow", cancel_after=rng.randint(1, 7))
        case 2:
            return Plan(tag=tag, kind=rng.choice((kind, "slow")), deadline_s=rng.uniform(0.05, 6.0))
        case _:
            return Plan(tag=tag, kind=kind)


class Fleet:
    """The orchestrators of a storm, and the runs they were given."""

    def __init__(self, rng: random.Random, rapids: Rapids, citadel: Citadel, workshop: Workshop) -> None:
        self.handles: list[tuple[Plan, RunHandle]] = []
        self._rng = rng
        self._direct = citadel.base_url
        self._ended = threading.Semaphore(0)
        self._undying = self._orchestrator(rapids, workshop, UNDYING)
        self._mortal = self._orchestrator(rapids, workshop, MORTAL)
        self._assistant = ""

    def _orchestrator(self, rapids: Rapids, workshop: Workshop, restart: RestartPolicy) -> Orchestrator:
        return Orchestrator(
            base_url=rapids.base_url,
            api_key=KEY,
            tools=workshop.tools,
            timing=PATIENT,
            restart=restart,
            max_concurrent_runs=PLACES,
            deadline_s=300.0,
        )

    def enlist(self, client: ThreadsClient) -> None:
        tools = [definition(name) for name in TOOLS]
        self._assistant = client.create_assistant(model="rules", tools=tools).id

    def start(self, plan: Plan) -> None:
        orchestrator = self._mortal if plan.tight else self._undying
        begun: list[RunHandle] = []
        events = 0

        def count(_: object) -> None:
            nonlocal events
            events += 1  # restarts too, so that a run which is not seen to move is cancelled as well
            if events == plan.cancel_after:
                begun[0].cancel()

        # A quarter meets a server that refuses connections while it is down; the others, a proxy that breaks.
        base_url = self._direct if self._rng.random() < 0.25 else None
        handle = orchestrator.start(
            self._assistant,
            messages=f"{plan.kind} {plan.tag}",
            watch=self._rng.choice(("stream", "stream", "poll")),
            deadline_s=plan.deadline_s,
            base_url=base_url,
            api_key=KEY,
            stream_to=count if plan.cancel_after else None,
        )
        begun.append(handle)
        if plan.cancel_after == 0:
            handle.cancel()
        self.handles.append((plan, handle))
        handle.future.add_done_callback(lambda _: self._ended.release())

    def carry_out(self, plans: Iterable[Plan], *, at_once: int) -> Iterator[int]:
        """Start runs, one for each that ends, until all have ended; yields how many have."""
        todo = iter(plans)
        open_runs = ended = 0
        while True:
            for plan in islice(todo, at_once - open_runs):
                self.start(plan)
                open_runs += 1
            if not open_runs:
                return
            assert self._ended.acquire(timeout=3 * PATIENCE_S), self._undying.runs()
            open_runs -= 1
            ended += 1
            yield ended

    def close(self) -> None:
        """Cancel what is under way, in the middle of everything."""
        self._mortal.close()
        self._undying.close()


def storm(directory: Path, seed: int, runs: int, falls: int, counts: dict[str, Any]) -> None:
    rng = random.Random(seed)
    todo = plans(rng, runs)
    workshop = Workshop(seed)
    citadel = Citadel(directory, script())
    with ExitStack() as weather:
        weather.enter_context(citadel.standing())
        rapids = weather.enter_context(Rapids(citadel.port, seed).flowing())
        fleet = Fleet(rng, rapids, citadel, workshop)
        weather.callback(fleet.close)
        with ThreadsClient(citadel.base_url, api_key=KEY) as client:
            fleet.enlist(client)
        lightning = weather.enter_context(Lightning(seed, 1.0).striking())
        early = [plan for plan in todo if not plan.closed]
        ends = {(fall + 1) * len(early) // (falls + 1): fall for fall in range(falls)}
        for ended in fleet.carry_out(early, at_once=2 * PLACES):
            if ended in ends:
                citadel.fall(signal.SIGTERM if ends[ended] % 3 == 2 else signal.SIGKILL)
                citadel.rise()
        for plan in todo[len(early) :]:
            fleet.start(plan)
        fleet.close()
    counts |= {"faults": dict(rapids.faults), "lightning": lightning.strikes, "lives": citadel.lives}
    assert_nothing_left(citadel.base_url)
    assert_nothing_left(rapids.base_url)
    # By their types: to ask other objects what they are, such as proxies, makes them look for it.
    tasks = [thing for thing in gc.get_objects() if issubclass(type(thing), asyncio.Task)]
    assert [task for task in tasks if not task.done()] == []
    with citadel.standing(), ThreadsClient(citadel.base_url, api_key=KEY) as client:
        inquest = Inquest(client, workshop)
        for plan, handle in fleet.handles:
            inquest.examine(plan, handle)
        citadel.fall(signal.SIGTERM)
    counts |= {"found": dict(inquest.found), "executed": sum(workshop.calls.values())}
    counts |= {"ambiguous": inquest.ambiguous}
    assert not inquest.wrong, "\n".join(inquest.wrong)
    assert active_in_store(citadel) <= inquest.named
    assert citadel.log.read_text() == ""


def active_in_store(citadel: Citadel) -> set[str]:
    """The ids of all runs in the server's file that are not over."""
    store = sqlite3.connect(citadel.db)
    try:
        rows = store.execute("SELECT id, status FROM runs").fetchall()
    finally:
        store.close()
    return {id_ for id_, status in rows if status in ACTIVE_STATUSES}


@pytest.mark.parametrize(
    ("seed", "runs", "falls"),
    [
        (1, 180, 3),
        pytest.param(2, 2000, 12, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_in_a_storm_every_run_ends_as_the_server_says_every_call_is_made_once_and_nothing_is_left(
    tmp_path: Path,
    seed: int,
    runs: int,
    falls: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "orchestrator")
    journals: list[FickleJournal] = []

    def journal() -> FickleJournal:
        journals.append(FickleJournal(seed + len(journals), 0.05))
        return journals[-1]

    monkeypatch.setattr(roster, "MemoryJournal", journal)
    counts: dict[str, Any] = {}
    try:
        storm(tmp_path, seed, runs, falls, counts)
    finally:
        strikes = [dict(journal.strikes) for journal in journals]
        print(counts, strikes)  # noqa: T201 - what the storm did, beside what failed in it
