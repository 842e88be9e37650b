"""A process that conducts one run and is killed at a point of it that was chosen, and one that takes it up.

Owns the points: this process alone is instrumented, by wrapping what the product calls on its way through a
run; nothing in the product knows of it. A point is named by what is about to happen or has just happened, and
kills the first time it is passed. `test_crashes.py` says what is right.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage import PATIENCE_S, QUICK, wait_until

from orchestrator import Orchestrator, tool
from orchestrator.client.stream import AsyncEventStream
from orchestrator.errors import UnknownRun
from orchestrator.journal.batch import Batch
from orchestrator.journal.orders import LetGo, Open, Write
from orchestrator.journal.sql import SQLJournal
from orchestrator.journal.writer import Writer
from orchestrator.runs.backend import ThreadsBackend
from orchestrator.runs.effects import Finish, Record, StartTools
from orchestrator.runs.inputs import EventsObserved, Input, RunObserved
from orchestrator.supervision.actor import RunActor
from orchestrator.supervision.in_flight import InFlight
from orchestrator.supervision.state import RunState
from orchestrator.tools import ToolContext, ToolExecutor, ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator import RunHandle, RunResult
    from orchestrator.journal.orders import Order
    from orchestrator.runs.effects import Effect, RequestEffect
    from orchestrator.runs.record import RunRecord

LEASE_S = 0.6

SCRIPT = r"""
piece_chars: 16
rules:
  - match: '^order (?P<tag>\w+)'
    steps:
      - call:
          - {tool: look, arguments: {part: seats}}
          - {tool: book, as: booked, arguments: {part: seat}}
      - call: {tool: book, as: paid, arguments: {part: meal}}
      - say: 'order {tag}: {look}, {booked}, {paid}'
"""

TOOLS = ("look", "book")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to do.

    Attributes:
        what: `conduct`, or how the run is taken up: by `resume`, `start` or `attach`.
        journal: The journal's URL.
        base_url: The server.
        api_key: Its key.
        assistant: The assistant.
        key: The run's key.
        directory: Where the process leaves its reports.
        watch: How the run is watched.
        thread: The run's thread; by default it makes one.
        fatal: The point at which the process is killed.
    """

    what: str
    journal: str
    base_url: str
    api_key: str
    assistant: str
    key: str
    directory: str
    watch: str = "stream"
    thread: str | None = None
    fatal: str | None = None


@dataclass
class Points:
    """Where a process has been, and where it ends.

    Args:
        fatal: The point that is its last.

    Attributes:
        passed: The points it has passed, in order.
    """

    fatal: str | None
    passed: dict[str, None] = field(default_factory=dict)
    _ordinals: dict[tuple[type, int], int] = field(default_factory=dict)

    def reach(self, name: str) -> None:
        """Be somewhere; does not return where that is fatal."""
        if name not in self.passed:
            self.passed[name] = None
            if name == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def request(self, effect: RequestEffect) -> str:
        """A request's name: its kind, and the how many-th of its kind it is."""
        kind = type(effect)
        known = sum(1 for other, _ in self._ordinals if other is kind)
        ordinal = self._ordinals.setdefault((kind, effect.number), known + 1)
        return f"{kind.__name__} {ordinal}"

    def around(self, owner: type, method: str, name: Callable[..., str | None]) -> None:
        """Reach a point before and after a method, named by what it is called with."""
        original = getattr(owner, method)

        @wraps(original)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            named = name(*arguments, **options)
            if named is None:
                return original(*arguments, **options)
            self.reach(f"{named}: before")
            result = original(*arguments, **options)
            self.reach(f"{named}: after")
            return result

        setattr(owner, method, wrapped)

    def install(self) -> None:
        """Wrap what a run goes through."""
        self.around(Orchestrator, "start", lambda *_, **__: "start()")
        self.around(RunActor, "_perform", self._effect)
        self.around(InFlight, "_send", lambda _, effect: f"{self.request(effect)} passes the barrier")
        self._wrap_answers()
        self.around(ThreadsBackend, "_hear", self._opened)
        self.around(ToolExecutor, "start", lambda _, call, *__, **___: f"{_call(call)} is started")
        self.around(InFlight, "_finish_tool", lambda _, round_, __: f"outcome of round {round_} is known")
        self.around(RunState, "hand_over", lambda _: "the result is handed over")
        self.around(Writer, "close", lambda *_: "the journal is closed")
        self._wrap_writer()

    def _effect(self, _: RunActor, effect: Effect) -> str | None:
        match effect:
            case Record(record=record):
                return f"record {_state(record)}"
            case StartTools(round=round_):
                return f"the tools of round {round_} are wanted"
            case Finish():
                return "the run is finished"
            case _:
                return None

    def _wrap_answers(self) -> None:
        """Before and after what came in together is told, once for each of it."""
        hear = InFlight._hear

        def heard(in_flight: InFlight, request: Any, *inputs: Input) -> None:
            name = self.request(request.effect)
            names = [f"{name} {what}" for input_ in inputs for what in _answer(input_)]
            for what in names:
                self.reach(f"{what}: before")
            hear(in_flight, request, *inputs)
            for what in names:
                self.reach(f"{what}: after")

        InFlight._hear = heard  # type: ignore[method-assign,assignment]  # wrapped as all the others are

    def _opened(self, _: ThreadsBackend, answer: object) -> str | None:
        return f"stream {self._streams()} opens" if isinstance(answer, AsyncEventStream) else None

    def _streams(self) -> int:
        return 1 + sum(name.startswith("stream") and name.endswith("after") for name in self.passed)

    def _wrap_writer(self) -> None:
        """Before a batch, within its transaction, and after it is committed: once for each of its orders."""
        perform, decide = Writer._perform, Batch.perform

        def performed(writer: Writer, orders: Sequence[Order]) -> None:
            self._reach_all(orders, "before")
            perform(writer, orders)
            self._reach_all(orders, "committed")

        def decided(batch: Batch, connection: Any, orders: Sequence[Order], *times: float) -> None:
            decide(batch, connection, orders, *times)
            self._reach_all(orders, "not committed")

        for owner, method, wrapper in ((Writer, "_perform", performed), (Batch, "perform", decided)):
            setattr(owner, method, wrapper)

    def _reach_all(self, orders: Sequence[Order], where: str) -> None:
        for order in orders:
            match order:
                case Open():
                    self.reach(f"journal opens: {where}")
                case Write(record=record, finish=None):
                    self.reach(f"journal keeps {_state(record)}: {where}")
                case Write():
                    self.reach(f"journal ends: {where}")
                case LetGo():
                    self.reach(f"journal lets go: {where}")
                case _:
                    pass


def _answer(input_: Input) -> list[str]:
    match input_:
        case RunObserved(event=None, run=run):
            return [f"is answered: {run.status}"]
        case RunObserved(event=event) if event is not None:
            return [f"shows {event.event}"]
        case EventsObserved(events=events):
            return [f"shows {event.event}" for event in events]
        case _:
            return [f"is answered: {type(input_).__name__}"]


def _state(record: RunRecord) -> str:
    known = len(record.results)
    has = "run" if record.run_id else "thread" if record.thread_id else "nothing"
    return f"{record.phase} round {record.round}, {known} outcomes, {has}, status {record.status}"


def _call(call: Any) -> str:
    return f"{call.function.name} {json.loads(call.function.arguments)['part']}"


class Effects:
    """What the tools did in the world, in a file that survives whoever wrote it: a line each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, *words: str) -> None:
        """Add a line, at once."""
        with self._path.open("a") as file:
            file.write(" ".join(words) + "\n")

    @property
    def lines(self) -> list[list[str]]:
        """The lines, in words."""
        return [line.split() for line in self._path.read_text().splitlines()] if self._path.exists() else []


def tools(effects: Effects, points: Points) -> list[Any]:
    """The two tools: one may be called again, the other had better not."""

    def work(context: ToolContext, name: str, part: str) -> str:
        points.reach(f"{name} {part}: entered")
        effects.add(context.call_id, name, part)
        points.reach(f"{name} {part}: took effect")
        return f"{name}-{part}"

    @tool(idempotent=True)
    def look(part: str, context: ToolContext) -> str:
        """Look."""
        return work(context, "look", part)

    @tool
    async def book(part: str, context: ToolContext) -> str:
        """Book."""
        return work(context, "book", part)

    return [look, book]


def warm_up() -> None:
    """Do once what every process would, and what starts no thread: much is imported on first use."""
    for name in ("orchestrator.client.transport", "anyio._backends._asyncio", "sqlite3", "psycopg", "uvloop"):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    ToolRegistry(tools(Effects(Path(os.devnull)), Points(None)))


def perform(given: dict[str, Any]) -> None:
    """Conduct a run, or take it up, and leave a report."""
    job = Job(**given)
    points = Points(job.fatal)
    if job.what == "conduct":
        points.install()
    directory = Path(job.directory)
    orchestrator = Orchestrator(
        base_url=job.base_url,
        api_key=job.api_key,
        journal=SQLJournal(job.journal, lease_s=LEASE_S, poll_s=0.05),
        tools=tools(Effects(directory / "effects"), points),
        timing=QUICK,
        check_tools="off",
    )
    with orchestrator:
        result = _conducted(orchestrator, job)
    report = {
        "status": result.status,
        "text": result.text,
        "run_id": result.run_id,
        "thread_id": result.thread_id,
        "calls": [(call.call_id, call.name, call.output) for call in result.tool_calls],
        "points": list(points.passed),
    }
    (directory / f"{job.what}.json").write_text(json.dumps(report))


def _conducted(orchestrator: Orchestrator, job: Job) -> RunResult:
    journal = orchestrator.journal
    assert isinstance(journal, SQLJournal)
    try:
        if job.what == "attach":
            return orchestrator.attach(job.key).result(PATIENCE_S)
        if job.what == "resume":
            orchestrator.resume()
            wait_until(lambda: journal.outcome(job.key) is not None)
            return orchestrator.attach(job.key).result(PATIENCE_S)
    except UnknownRun:
        pass  # it died before there was anything to take up: whoever wanted the run starts it again
    return _started(orchestrator, job).result(PATIENCE_S)


def _started(orchestrator: Orchestrator, job: Job) -> RunHandle:
    return orchestrator.start(
        job.assistant,
        thread_id=job.thread,
        messages=f"order {job.key}",
        metadata={"order": job.key},
        watch="poll" if job.watch == "poll" else "stream",
        key=job.key,
    )
