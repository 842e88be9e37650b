"""Workers die and are told to end while they have runs, and all runs reach their verdicts all the same."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import exceptions
from workforce import wait_until

from orchestrator.workers.celery import wake_up_waiting

if TYPE_CHECKING:
    from brokers import Broker
    from celery.result import AsyncResult
    from workforce import Worker, Workforce

    from orchestrator.journal.entries import JournalRun

RULES: list[dict[str, Any]] = [
    {
        "match": "^fetch (?P<word>.+)",
        "steps": [
            {"think_s": 0.3},
            {"call": {"tool": "fetch", "arguments": {"word": "{word}"}}},
            {"think_s": 0.3},
            {"say": "got {fetch}"},
        ],
    },
    {"match": "^dawdle", "steps": [{"think_s": 60}, {"say": "at last"}]},
]

QUIET_S = 5.0
"""How long nothing happens before it is looked why."""


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What a storm did.

    Attributes:
        killed: How many runs were in the hands of the worker that was killed.
        recovered_s: Seconds from its death to when the last of those was in other hands.
        terminated_s: Seconds that the other worker took to end.
        took_s: Seconds for everything.
        taken_over: How many runs changed hands.
        executed: How often the tool was executed, over all runs.
    """

    killed: int
    recovered_s: float
    terminated_s: float
    took_s: float
    taken_over: int
    executed: int


def weather(
    at_work: Workforce, workers: list[Worker], *, runs: int, restart: Broker | None, patience_s: float
) -> Aftermath:
    """Send runs to three workers, kill one in the middle, tell one to end, and check what comes of all runs.

    Args:
        at_work: The application.
        workers: Three of them.
        runs: How many runs.
        restart: The broker, where it is to be restarted, too.
        patience_s: How long all of it may take.
    """
    at_work.app.set_current()
    # Results stay in their backend, which outlives a storm.
    storm = uuid4().hex
    began = time.monotonic()
    stage = at_work.stage
    threads = [stage.thread() for _ in range(runs)]
    with ThreadPoolExecutor(4) as senders:
        sent = list(
            senders.map(
                lambda number: at_work.task.delay(
                    stage.assistant,
                    key=f"{storm}-{number}",
                    thread_id=threads[number],
                    messages=f"fetch {number}",
                    deadline_s=patience_s,
                ),
                range(runs),
            )
        )
    _wait_until_ended(at_work, runs // 4, runs)
    wait_until(lambda: _held_by(at_work, workers[0]) != [], "a run of the first worker")
    killed = _held_by(at_work, workers[0])
    workers[0].kill()
    killed_at = time.time()
    workers[1].terminate()
    told_at = time.monotonic()
    if restart is not None:
        restart.restart()
    assert workers[1].wait() == 0
    terminated_s = time.monotonic() - told_at
    results = [_outcome(at_work, one, began + patience_s) for one in sent]
    took_s = time.monotonic() - began

    assert [result["text"] for result in results] == [f"got {number}" for number in range(runs)]
    assert {result["status"] for result in results} == {"completed"}
    for number, thread in enumerate(threads):
        assert [run.id for run in stage.runs(thread)] == [results[number]["run_id"]], thread
    ended = at_work.journal.runs(ended=True, limit=runs + 1)
    assert Counter(run.status for run in ended) == {"completed": runs}
    executed = at_work.calls.read_text(encoding="utf-8").split("\n")[:-1]
    assert {line.split()[1] for line in executed} == {str(number) for number in range(runs)}
    return Aftermath(
        killed=len(killed),
        recovered_s=max(_taken_over_at(at_work, run) for run in killed) - killed_at,
        terminated_s=terminated_s,
        took_s=took_s,
        taken_over=sum(run.epoch > 1 for run in ended),
        executed=len(executed),
    )


def _outcome(at_work: Workforce, task: AsyncResult, until: float) -> dict[str, Any]:
    """What a task resolves to; else how it stands for everybody who has to do with it."""
    while True:
        try:
            result: dict[str, Any] = task.get(timeout=QUIET_S)
        except exceptions.TimeoutError:
            standing = (task.id, task.state, task.info, at_work.journal.show(task.id))
            assert time.monotonic() < until, standing
            idle = all(run.state == "waiting" for run in at_work.journal.runs(limit=1000))
            if idle and at_work.broker == "redis":
                # Redis gives back late what a worker that died had fetched and not begun.
                wake_up_waiting(QUIET_S)
        else:
            return result


def _wait_until_ended(at_work: Workforce, ended: int, runs: int) -> None:
    wait_until(lambda: len(at_work.journal.runs(limit=runs)) <= runs - ended, f"{ended} outcomes")


def _held_by(at_work: Workforce, worker: Worker) -> list[JournalRun]:
    pids = {str(pid) for pid in worker.pids()}
    runs = at_work.journal.runs(limit=1000)
    return [run for run in runs if run.held and run.owner is not None and pids & {*run.owner.split(":")}]


def _taken_over_at(at_work: Workforce, run: JournalRun) -> float:
    """When somebody else had the run, or it was over, by the journal's own clock."""
    history = at_work.journal.show(run.key)
    later = [event.at.timestamp() for event in history.events if event.epoch > run.epoch]
    # The worker may have been quicker than its death.
    return min(later) if later else run.updated_at.timestamp()
