"""Two processes on one journal with leases of 50 ms, each stopped again and again for longer than that.

Whoever was stopped finds its runs taken over when it goes on, and must not write or send anything for them.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from crashing import TOOLS, Effects
from journals import journal_in, journal_url
from nursery import Child, nursery
from pausing import LEASE_S, SCRIPT, Job
from stage import definition
from storm import KEY, Citadel

from orchestrator.client import ThreadsClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from orchestrator.journal.entries import JournalHistory
    from orchestrator.journal.sql import SQLJournal
    from orchestrator.protocol.objects import Run
    from orchestrator.server.database import Database

ROUNDS = 2
OUTPUTS = ("look-seats", "book-seat", "book-meal")
UNKNOWN = "no result: the process that made this call died"


def depose(children: list[Child], ends: list[Future[int]], journal: SQLJournal) -> None:
    """Stop a process that conducts runs, until the other one has taken one of them over."""
    never = threading.Event()
    for child, end in cycle(zip(children, ends, strict=True)):
        if all(end.done() for end in ends):
            return
        owned = set() if end.done() else conducted(journal, child)
        if owned:
            os.kill(child.pid, signal.SIGSTOP)
            # Where it is stopped in the middle of a commit, nobody else comes to write: it is let go again.
            until = time.monotonic() + 20 * LEASE_S
            while owned & conducted(journal, child) and time.monotonic() < until:
                never.wait(LEASE_S / 5)
            os.kill(child.pid, signal.SIGCONT)
            if any(run.epoch > 1 for run in journal.runs(ended=True, limit=1000)):
                return
        never.wait(LEASE_S / 10)


def conducted(journal: SQLJournal, child: Child) -> set[str]:
    """The keys of the open runs whose last owner was this process."""
    runs = journal.runs(ended=False, limit=1000)
    return {run.key for run in runs if run.owner is not None and f":{child.pid}:" in run.owner}


def torment(children: list[Child], ends: list[Future[int]], seed: int) -> None:
    """Stop one process after the other past its lease, until all have ended."""
    dice = random.Random(seed)
    never = threading.Event()
    while not all(end.done() for end in ends):
        never.wait(dice.uniform(0.02, 0.15))
        child, end = dice.choice(list(zip(children, ends, strict=True)))
        if end.done():
            continue
        try:
            os.kill(child.pid, signal.SIGSTOP)
            never.wait(LEASE_S * dice.uniform(1.2, 3))
            os.kill(child.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it has ended


@pytest.mark.parametrize("runs", [24, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_two_processes_that_are_stopped_past_their_leases_do_nothing_twice(
    tmp_path: Path, database: Database, runs: int
) -> None:
    journal_in(database).prepare()
    citadel = Citadel(tmp_path, SCRIPT, log_level="info")
    with citadel.standing(), nursery(tmp_path, "pausing") as processes, ThreadPoolExecutor(2) as pool:
        with ThreadsClient(citadel.base_url, api_key=KEY) as client:
            assistant = client.create_assistant(model="rules", tools=[definition(name) for name in TOOLS]).id
            jobs = [
                Job(
                    name=name,
                    journal=journal_url(database),
                    base_url=citadel.base_url,
                    api_key=KEY,
                    assistant=assistant,
                    keys=[f"k{number}" for number in range(runs)],
                    directory=str(tmp_path),
                )
                for name in ("left", "right")
            ]
            children = [processes.spawn(asdict(job)) for job in jobs]
            ends = [pool.submit(child.wait) for child in children]
            depose(children, ends, journal_in(database))
            torment(children, ends, seed=runs)
            assert [end.result() for end in ends] == [0, 0], processes.log.read_text()
            left, right = (json.loads((tmp_path / f"{job.name}.json").read_text()) for job in jobs)
            made = runs_by_key(client, citadel, left)
        citadel.fall(signal.SIGTERM)

    assert left == right
    journal = journal_in(database)
    histories = {key: journal.show(key) for key in left}
    executed = Counter(words[0] for words in Effects(tmp_path / "effects").lines)
    accepted = Counter(
        re.findall(r"/runs/(run_\w+)/submit_tool_outputs\b.* status=200\b", citadel.log.read_text())
    )
    wrong = [
        f"{key}: {what}"
        for key, report in left.items()
        for what in (
            *result_is_wrong(key, report, executed),
            *journal_is_wrong(report, histories[key]),
            *server_is_wrong(report, made.get(key, []), accepted),
        )
    ]
    assert wrong == [], processes.log.read_text()
    assert max(history.run.epoch for history in histories.values()) > 1, "no run was taken over"


def runs_by_key(
    client: ThreadsClient, citadel: Citadel, report: dict[str, dict[str, Any]]
) -> dict[str, list[Run]]:
    """The runs on the server, by the key that their metadata has."""
    threads = set(re.findall(r"method=POST .*/threads/(thread_\w+)/runs\b", citadel.log.read_text()))
    threads |= {one["thread_id"] for one in report.values()}
    made: dict[str, list[Run]] = {}
    for thread in threads:
        for run in client.list_runs(thread).data:
            made.setdefault((run.metadata or {})["order"], []).append(run)
    return made


def result_is_wrong(key: str, report: dict[str, Any], executed: Counter[str]) -> Iterator[str]:
    outputs = [output for _, _, output in report["calls"]]
    if report["status"] != "completed" or len(outputs) != len(OUTPUTS):
        yield f"it ended as {report['status']} with the calls {report['calls']}"
    elif report["text"] != f"order {key}: {', '.join(outputs)}":
        yield f"it says {report['text']!r}"
    for (call_id, name, output), expected in zip(report["calls"], OUTPUTS, strict=False):
        times = executed[call_id]
        if name == "book" and times > 1:
            yield f"{call_id} was executed {times} times"
        if output != expected and not output.startswith(UNKNOWN):
            yield f"{call_id} gave {output}"
        if output == expected and times == 0:
            yield f"{call_id} was never executed and gave {output}"


def journal_is_wrong(report: dict[str, Any], history: JournalHistory) -> Iterator[str]:
    if (history.run.state, history.run.status) != ("ended", "completed"):
        yield f"the journal says that it is {history.run.state}, {history.run.status}"
    if [event.seq for event in history.events] != list(range(1, len(history.events) + 1)):
        yield f"the time line has gaps: {[event.seq for event in history.events]}"
    if any(later.epoch < earlier.epoch for earlier, later in pairwise(history.events)):
        yield f"somebody wrote late: {[(event.kind, event.epoch) for event in history.events]}"
    ended = Counter(event.detail for event in history.events if event.kind == "tool call ended")
    if len(ended) != len(OUTPUTS) or set(ended.values()) != {1}:
        yield f"outcomes were recorded like this: {ended}"
    kept = [[call.call_id, call.name, call.output] for call in history.calls]
    if kept != report["calls"]:
        yield f"the journal has the calls {kept}, and the result {report['calls']}"


def server_is_wrong(report: dict[str, Any], made: list[Run], accepted: Counter[str]) -> Iterator[str]:
    if [run.id for run in made] != [report["run_id"]]:
        yield f"the server has {[run.id for run in made]}, and not {report['run_id']} alone"
    if accepted[report["run_id"]] != ROUNDS:
        yield f"{accepted[report['run_id']]} submissions were accepted"
