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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crashing import SCRIPT, TOOLS, Effects, Job
from journals import journal_in, journal_url
from nursery import Nursery, nursery
from sqlalchemy import insert
from stage import definition
from storm import KEY, Citadel

from orchestrator.client import ThreadsClient
from orchestrator.errors import UnknownRun
from orchestrator.journal.schema import servers
from orchestrator.journal.sql import SQLJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.postgresql import PostgreSQL

    from orchestrator.journal.entries import JournalHistory
    from orchestrator.protocol.objects import Run
    from orchestrator.server.database import Database

AT_ONCE = 6
"""How many runs are conducted at the same time; most of the time each of them waits for a lease to end."""

ROUNDS = 2
OUTPUTS = ("look-seats", "book-seat", "book-meal")
TEXT = "order {key}: look-seats, {booked}, {paid}"
UNKNOWN = "no result: the process that made this call died"


@dataclass(frozen=True, kw_only=True)
class Crash:
    """A run that was taken up.

    Attributes:
        job: What the process was to do that died.
        left: What it left in the journal, or `None` for nothing.
        report: What the second process says of the run.
        history: What the journal says then.
    """

    job: Job
    left: JournalHistory | None
    report: dict[str, Any]
    history: JournalHistory


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
        crashes: The runs that were taken up.
        missed: The points that a process did not come by this time.
        wrong: What was not as it must be, a line each.
    """

    citadel: Citadel
    client: ThreadsClient
    assistant: str
    nursery: Nursery
    directory: Path
    database: Callable[[Path], Database]
    crashes: list[Crash] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def points(self, watch: str) -> list[str]:
        """Conduct one run to its end; return the points it passes, in order."""
        job = self._job(f"whole_{watch}", watch, None)
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
        database = self.database(directory)
        if watch == "poll":
            self._know_server(database)
        return Job(
            what="conduct",
            journal=journal_url(database),
            base_url=self.citadel.base_url,
            api_key=KEY,
            assistant=self.assistant,
            key=key,
            directory=str(directory),
            watch=watch,
            thread=self.client.create_thread().id if watch == "poll" else None,
            fatal=fatal,
        )

    def _know_server(self, database: Database) -> None:
        """As if an earlier run had seen that the server gives metadata back.

        A run that makes its thread learns that by itself. On a thread that it was given, with a server that
        nobody has met before, a create cut in the middle is an `AmbiguousOutcome`, and rightly so.
        """
        with journal_in(database)._database.writing() as connection:
            connection.execute(insert(servers).values(base_url=self.citadel.base_url))

    def _crash(self, key: str, watch: str, point: str, way: str) -> None:
        job = self._job(key, watch, point)
        code = self.nursery.run(asdict(job))
        if code != -signal.SIGKILL:
            self.missed.append(point)
            if code != 0:
                self._note(job, f"the first process ended with {code}")
            return
        left = self._history(job)
        code = self.nursery.run(asdict(job) | {"what": way, "fatal": None})
        history = self._history(job)
        if code != 0 or history is None:
            self._note(job, f"the process that was to take it up by {way}() ended with {code}")
        else:
            self.crashes.append(Crash(job=job, left=left, report=self._report(job, way), history=history))

    def _report(self, job: Job, what: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.directory / job.key / f"{what}.json").read_text())
        return report

    def _history(self, job: Job) -> JournalHistory | None:
        try:
            return SQLJournal(job.journal).show(job.key)
        except UnknownRun:
            return None

    def _note(self, job: Job, what: str) -> None:
        self.wrong.append(f"{job.key}, killed at {job.fatal!r}: {what}")

    def examine(self) -> None:
        """Hold what there is now against what must be."""
        made = self._made()
        for crash in self.crashes:
            for what in (*verdict(crash), *time_line(crash), *effects(crash), *self._server(crash, made)):
                self._note(crash.job, what)
        # It has written about every request only when it has ended.
        self.citadel.fall(signal.SIGTERM)
        accepted = Counter(re.findall(r"/runs/(run_\w+)/submit_tool_outputs\b.* status=200\b", self._log()))
        for crash in self.crashes:
            if accepted[crash.report["run_id"]] != ROUNDS:
                self._note(crash.job, f"{accepted[crash.report['run_id']]} submissions were accepted")

    def _log(self) -> str:
        return self.citadel.log.read_text()

    def _made(self) -> dict[str, list[Run]]:
        """The runs on the server, by the key that their metadata has, wherever they are."""
        threads = set(re.findall(r"method=POST .*/threads/(thread_\w+)/runs\b", self._log()))
        threads |= {str(crash.report["thread_id"]) for crash in self.crashes}
        made: dict[str, list[Run]] = {}
        for thread in threads:
            for run in self.client.list_runs(thread).data:
                made.setdefault((run.metadata or {})["order"], []).append(run)
        return made

    def _server(self, crash: Crash, made: dict[str, list[Run]]) -> Iterator[str]:
        runs = made.get(crash.job.key, [])
        if [run.id for run in runs] != [crash.report["run_id"]]:
            yield f"the server has {[run.id for run in runs]}, and not {crash.report['run_id']} alone"
            return
        (run,) = runs
        steps = self.client.list_run_steps(run.thread_id, run.id, order="asc").data
        calls = [
            call for step in steps for call in (step.step_details and step.step_details.tool_calls) or ()
        ]
        answered = [[call["id"], call["function"]["name"], call["function"]["output"]] for call in calls]
        if answered != crash.report["calls"]:
            yield f"the server was answered {answered}, and the result says {crash.report['calls']}"
        asked = self.client.list_messages(run.thread_id, order="asc").data
        if [message.role for message in asked] != ["user", "assistant"]:
            yield f"the thread has the messages {[message.text for message in asked]}"

    def assert_right(self, *, killed: int) -> None:
        """Fail where anything was wrong, or too few processes were killed."""
        self.examine()
        assert self.wrong == [], self.nursery.log.read_text()
        assert len(self.crashes) >= killed, self.missed
        assert len(self.missed) <= max(1, len(self.crashes) // 10), self.missed


def verdict(crash: Crash) -> Iterator[str]:
    """What is wrong with the result."""
    report = crash.report
    outputs = [output for _, _, output in report["calls"]]
    right = [
        output == expected or output.startswith(UNKNOWN)
        for output, expected in zip(outputs, OUTPUTS, strict=False)
    ]
    if report["status"] != "completed" or right != [True] * len(OUTPUTS):
        yield f"it ended as {report['status']} with the calls {report['calls']}"
    elif report["text"] != TEXT.format(key=crash.job.key, booked=outputs[1], paid=outputs[2]):
        yield f"it says {report['text']!r}"


def time_line(crash: Crash) -> Iterator[str]:
    """What is wrong with the journal."""
    run, events, left = crash.history.run, crash.history.events, crash.left
    if (run.state, run.status) != ("ended", "completed"):
        yield f"the journal says that it is {run.state}, {run.status}"
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        yield f"the time line has gaps: {[event.seq for event in events]}"
    if any(later.epoch < earlier.epoch for earlier, later in pairwise(events)):
        yield f"somebody wrote late: {[(event.kind, event.epoch) for event in events]}"
    owners = 1 if left is None or left.run.state == "ended" else 2
    if run.epoch != owners:
        yield f"it had {run.epoch} owners, and not {owners}"
    kept = [[call.call_id, call.name, call.output] for call in crash.history.calls]
    if kept != crash.report["calls"]:
        yield f"the journal has the calls {kept}, and the result {crash.report['calls']}"


def effects(crash: Crash) -> Iterator[str]:
    """What is wrong with how often the tools were executed."""
    executed = Counter(words[0] for words in Effects(Path(crash.job.directory) / "effects").lines)
    left = () if crash.left is None else crash.left.calls
    begun = {call.call_id for call in left}
    recorded = {call.call_id for call in left if call.state == "finished"}
    for call_id, name, output in crash.report["calls"]:
        times, unknown = executed[call_id], output.startswith(UNKNOWN)
        if call_id in recorded and (times != 1 or unknown):
            yield f"{name}, whose outcome was recorded, was executed {times} times: {output}"
        if times > (2 if name == "look" else 1) or (times == 0 and not unknown):
            yield f"{name} was executed {times} times: {output}"
        if unknown and (name != "book" or call_id not in begun):
            yield f"{name} had not begun, and its outcome is called unknown"


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
        return Path(shutil.copy(template, directory / "runs.sqlite"))

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
    """The points without those that leave behind just what their neighbours do."""
    kept = []
    for point, following in zip_longest(points, points[1:], fillvalue=""):
        where = point.rpartition(": ")[2]
        same_batch = point.startswith("journal") and following.startswith("journal keeps")
        if where == "after" or point.startswith("record") or (same_batch and following.endswith(where)):
            continue
        kept.append(point)
    return kept


@pytest.mark.timeout(300)
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
