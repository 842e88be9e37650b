"""kill -9 at every step of a run's life, and another process that takes the run up.

A first run lists the points (`crashing`); then for each of them a process conducts a run of its own up to
there and dies, and a second process, with the same journal, sees the run to its verdict. The server is a
process of its own and notices nothing but lost connections.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from crashing import SCRIPT, TOOLS, Effects, Job
from journals import journal_in, journal_url
from nursery import Nursery, nursery
from stage import definition
from storm import KEY, Citadel

from orchestrator.client import ThreadsClient
from orchestrator.errors import UnknownRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from server.postgresql import PostgreSQL

    from orchestrator.journal.entries import JournalHistory
    from orchestrator.server.database import Database

AT_ONCE = 6
"""How many runs are conducted at the same time; most of the time each of them waits for a lease to end."""

TEXT = "order {key}: look-seats, {booked}, {paid}"
UNKNOWN = "no result: the process that made this call died"


@dataclass
class Walk:
    """Crash after crash.

    Args:
        citadel: The server.
        client: Asks it directly.
        assistant: The runs' assistant.
        nursery: Where processes come from.
        directory: Where each crash has a directory of its own.
        database: Makes the journal's database for a crash, with its tables, in that directory.

    Attributes:
        killed: The points at which a process was killed.
        missed: The points that a process did not come by this time.
        wrong: What was not as it must be, a line each.
    """

    citadel: Citadel
    client: ThreadsClient
    assistant: str
    nursery: Nursery
    directory: Path
    database: Callable[[Path], Database]
    killed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def points(self, watch: str) -> list[str]:
        """Conduct one run to its end; return the points it passes, in order."""
        job = self._job("whole", watch, None)
        assert self.nursery.run(asdict(job)) == 0, self.nursery.log.read_text()
        report = self._report(job, "conduct")
        assert report["text"] == TEXT.format(key=job.key, booked="book-seat", paid="book-meal")
        return list(report["points"])

    def walk(self, points: list[str], watch: str) -> None:
        """Crash at each of the points, some at a time."""
        ways = ("resume", "start", "attach")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tasks = [
                pool.submit(self._crash, f"{watch}{number}", watch, point, ways[number % len(ways)])
                for number, point in enumerate(points)
            ]
            for task in tasks:
                task.result()

    def _job(self, key: str, watch: str, fatal: str | None) -> Job:
        directory = self.directory / key
        directory.mkdir()
        return Job(
            what="conduct",
            journal=journal_url(self.database(directory)),
            base_url=self.citadel.base_url,
            api_key=KEY,
            assistant=self.assistant,
            key=key,
            directory=str(directory),
            watch=watch,
            thread=self.client.create_thread().id if watch == "poll" else None,
            fatal=fatal,
        )

    def _crash(self, key: str, watch: str, point: str, way: str) -> None:
        job = self._job(key, watch, point)
        code = self.nursery.run(asdict(job))
        if code != -signal.SIGKILL:
            self.missed.append(point)
            if code != 0:
                self._note(job, f"the first process ended with {code}")
            return
        self.killed.append(point)
        died_with = self._history(job)
        again = asdict(job) | {"what": way, "fatal": None}
        code = self.nursery.run(again)
        if code == 0:
            self._examine(job, self._report(job, way), died_with)
        else:
            self._note(job, f"the process that was to take it up by {way}() ended with {code}")

    def _report(self, job: Job, what: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.directory / job.key / f"{what}.json").read_text())
        return report

    def _history(self, job: Job) -> JournalHistory | None:
        try:
            return journal_in(job.journal).show(job.key)
        except UnknownRun:
            return None

    def _examine(self, job: Job, report: dict[str, Any], died_with: JournalHistory | None) -> None:
        """Hold what there is now against what must be."""
        note = partial(self._note, job)
        outputs = [output for _, _, output in report["calls"]]
        told = outputs[:1] + ["{}" if output.startswith(UNKNOWN) else output for output in outputs[1:]]
        if report["status"] != "completed" or told[:1] != ["look-seats"]:
            note(f"it ended as {report['status']} with the calls {report['calls']}")
        elif not set(told) <= {"look-seats", "book-seat", "book-meal", "{}"} or len(told) != 3:
            note(f"the calls are {report['calls']}")
        elif report["text"] != TEXT.format(key=job.key, booked=outputs[1], paid=outputs[2]):
            note(f"it says {report['text']!r}")
        self._examine_server(job, report, note)
        self._examine_journal(job, report, died_with, note)
        self._examine_effects(job, report, died_with, note)

    def _examine_server(self, job: Job, report: dict[str, Any], note: Callable[[str], None]) -> None:
        runs = [run for thread in self._threads_of(job) for run in self.client.list_runs(thread).data]
        ours = [run for run in runs if run.metadata and run.metadata.get("order") == job.key]
        if [run.id for run in ours] != [report["run_id"]]:
            note(f"the server has the runs {[run.id for run in ours]}, and not {report['run_id']} alone")
            return
        steps = self.client.list_run_steps(ours[0].thread_id, ours[0].id, order="asc").data
        calls = [
            call for step in steps for call in (step.step_details and step.step_details.tool_calls) or ()
        ]
        answered = [[call["id"], call["function"]["name"], call["function"]["output"]] for call in calls]
        if answered != report["calls"]:
            note(f"the server was answered {answered}, and the result says {report['calls']}")
        accepted = len(re.findall(rf"/runs/{ours[0].id}/submit_tool_outputs\b.* status=200\b", self._log()))
        if accepted != 2:
            note(f"{accepted} submissions were accepted for two batches")

    def _threads_of(self, job: Job) -> set[str]:
        if job.thread is not None:
            return {job.thread}
        history = self._history(job)
        assert history is not None
        # Whatever thread a run was made on meanwhile that nobody else knows: its message has the key.
        made = set(re.findall(r"path=\S*/threads/(thread_\w+)/runs status=200", self._log()))
        return {thread for thread in made if thread == history.run.thread_id or self._says(thread, job.key)}

    def _says(self, thread: str, key: str) -> bool:
        return any(f"order {key}" == message.text for message in self.client.list_messages(thread).data)

    def _log(self) -> str:
        return self.citadel.log.read_text()

    def _examine_journal(
        self,
        job: Job,
        report: dict[str, Any],
        died_with: JournalHistory | None,
        note: Callable[[str], None],
    ) -> None:
        history = self._history(job)
        assert history is not None
        if (history.run.state, history.run.status) != ("ended", "completed"):
            note(f"the journal says that it is {history.run.state}, {history.run.status}")
        if [event.seq for event in history.events] != list(range(1, len(history.events) + 1)):
            note(f"the time line has gaps: {[event.seq for event in history.events]}")
        if any(later.epoch < earlier.epoch for earlier, later in pairwise(history.events)):
            note(f"somebody wrote late: {[(event.kind, event.epoch) for event in history.events]}")
        over = died_with is not None and died_with.run.state == "ended"
        owners = 1 if died_with is None or over else 2
        if history.run.epoch != owners:
            note(f"it had {history.run.epoch} owners, and not {owners}")
        kept = [[call.call_id, call.name, call.output] for call in history.calls]
        if kept != report["calls"]:
            note(f"the journal has the calls {kept}, and the result {report['calls']}")

    def _examine_effects(
        self,
        job: Job,
        report: dict[str, Any],
        died_with: JournalHistory | None,
        note: Callable[[str], None],
    ) -> None:
        executed = [words[0] for words in Effects(self.directory / job.key / "effects").lines]
        recorded = (
            {call.call_id for call in died_with.calls if call.state == "finished"} if died_with else set()
        )
        begun = {call.call_id for call in died_with.calls} if died_with else set()
        for call_id, name, output in report["calls"]:
            times = executed.count(call_id)
            unknown = output.startswith(UNKNOWN)
            if call_id in recorded and (times != 1 or unknown):
                note(f"{name}, whose outcome was recorded, was executed {times} times: {output}")
            if times > (2 if name == "look" else 1) or (times == 0 and not unknown):
                note(f"{name} was executed {times} times: {output}")
            if unknown and (name != "book" or call_id not in begun):
                note(f"{name} had not begun and is called unknown")

    def _note(self, job: Job, what: str) -> None:
        self.wrong.append(f"{job.key}, killed at {job.fatal!r}: {what}")

    def assert_right(self, *, killed: int) -> None:
        """Fail where anything was wrong, or too few processes were killed."""
        assert self.wrong == [], self.nursery.log.read_text()
        assert len(self.killed) >= killed, self.missed
        assert len(self.missed) <= max(1, len(self.killed) // 10), self.missed


@contextmanager
def walking(directory: Path, database: Callable[[Path], Database]) -> Iterator[Walk]:
    citadel = Citadel(directory, SCRIPT, log_level="info")
    with (
        citadel.standing(),
        ThreadsClient(citadel.base_url, api_key=KEY) as client,
        nursery(directory, "crashing") as children,
    ):
        assistant = client.create_assistant(model="rules", tools=[definition(name) for name in TOOLS]).id
        yield Walk(citadel, client, assistant, children, directory, database)


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Walk]:
    template = tmp_path / "template.sqlite"
    journal_in(template).prepare()

    def copy(directory: Path) -> Path:
        return shutil.copy(template, directory / "runs.sqlite")

    with walking(tmp_path, copy) as walk:
        yield walk


@pytest.fixture
def on_postgresql(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[Walk]:
    def schema(_: Path) -> str:
        url = postgresql.schema()
        journal_in(url).prepare()
        return url

    with walking(tmp_path, schema) as walk:
        yield walk


def without_twins(points: list[str]) -> list[str]:
    """The points without those after which nothing happens before another one."""
    return [point for point in points if not point.endswith(": after")]


def test_a_run_survives_a_crash_at_each_of_its_steps_on_sqlite(on_sqlite: Walk) -> None:
    points = without_twins(on_sqlite.points("stream"))
    on_sqlite.walk(points, "stream")
    on_sqlite.assert_right(killed=max(40, len(points) * 9 // 10))


STEPS = (
    "journal opens: committed",
    "journal keeps creating round 0, 0 outcomes, thread, status None: committed",
    "stream 1 opens: after",
    "journal keeps acting round 1, 0 outcomes, run, status requires_action: not committed",
    "book seat: took effect",
    "journal keeps submitting round 1, 2 outcomes, run, status requires_action: committed",
    "stream 2 opens: before",
    "journal ends: committed",
)


def test_a_run_survives_a_crash_at_some_of_its_steps_on_postgresql(on_postgresql: Walk) -> None:
    on_postgresql.walk(list(STEPS), "stream")
    on_postgresql.assert_right(killed=len(STEPS))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_run_survives_a_crash_at_every_point(request: pytest.FixtureRequest, kind: str) -> None:
    walk: Walk = request.getfixturevalue(f"on_{kind}")
    for watch in ("stream", "poll"):
        walk.walk(walk.points(watch), watch)
    walk.assert_right(killed=250)
