"""Virtual time, and a server in it that keeps the protocol's promises and no others.

Knows nothing of connections: a request is a call of `handle`, a stream is a `Watcher`. What the server may
not be asked (a second run for a nonce, a partial batch) is asserted where it arrives.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import APIError, status_error
from orchestrator.protocol.events import MessageEvent, RunEvent
from orchestrator.protocol.objects import (
    TERMINAL_STATUSES,
    FunctionCall,
    LastError,
    Message,
    RequiredAction,
    Run,
    SubmitToolOutputs,
    Thread,
    ToolCall,
    Usage,
)
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.request import OnBusyThread, OnDeadline, OnExpired, OnStall, Watch

THREAD = "thread_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What kind of world it is; the seed decides the rest.

    Attributes:
        seed: Draws every delay and every fault.
        faults: Of a hundred requests, how many go wrong.
        breaks: Of a hundred events, how many are a stream's last.
        deaths: Of a hundred inputs, how many kill the actor.
        rounds: Batches of tool calls that the run asks for.
        calls: Calls in each batch.
        foreign_s: How long a run of somebody else holds the thread, or `None` when there is none.
        failures: Of a hundred runs, how many fail with an error that the rerun policy lists.
        lifetime_s: How long a run may take.
        freezes: Whether runs stay in progress for ever.
    """

    seed: int
    faults: int = 0
    breaks: int = 0
    deaths: int = 0
    rounds: int = 1
    calls: int = 1
    watch: Watch = "stream"
    on_deadline: OnDeadline = "cancel"
    deadline_s: float = 120.0
    own_thread: bool = False
    reused_ids: bool = True
    spurious_completed: bool = False
    echoes_metadata: bool = True
    locks_threads: bool = True
    cancels_only_in_progress: bool = False
    cancel_sticks: bool = False
    cancel_at: float | None = None
    detach_at: float | None = None
    foreign_s: float | None = None
    names_foreign: bool = True
    on_busy_thread: OnBusyThread = "enqueue"
    interrupt_foreign: bool = False
    failures: int = 0
    reruns: int = 1
    repeatable: bool = True
    lifetime_s: float = 600.0
    on_expired: OnExpired = "fail"
    freezes: bool = False
    on_stall: OnStall = "report"
    max_tool_rounds: int | None = None
    max_total_tokens: int | None = None

    @property
    def is_kind(self) -> bool:
        """Whether nothing goes wrong, so that nothing but a verdict will do."""
        patient = self.deadline_s > 100 and self.detach_at is None
        cancels = not self.cancel_sticks and not self.cancels_only_in_progress
        unlimited = self.max_tool_rounds is None and self.max_total_tokens is None
        free = self.foreign_s is None or (self.foreign_s < 30 and self.on_busy_thread == "enqueue")
        kind = patient and cancels and unlimited and free and not (self.freezes or self.failures)
        return kind and not (self.faults or self.breaks or self.deaths)


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Something that will happen; `moves` says that it is more than the passing of a bound."""

    at: float
    serial: int
    happen: Callable[[], None] = field(compare=False)
    is_live: Callable[[], bool] = field(compare=False)
    moves: bool = field(compare=False)


class VirtualTime:
    """A clock that jumps to whatever happens next, and the chances that it happens with."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self._heap: list[Entry] = []
        self._serial = 0

    def later(
        self,
        delay: float,
        happen: Callable[[], None],
        *,
        is_live: Callable[[], bool] = lambda: True,
        moves: bool = True,
    ) -> None:
        self._serial += 1
        heapq.heappush(self._heap, Entry(self.now + delay, self._serial, happen, is_live, moves))

    def pass_by(self) -> None:
        """Let everything happen that will."""
        for _ in range(100_000):
            if not self._heap:
                return
            entry = heapq.heappop(self._heap)
            self.now = max(self.now, entry.at)
            if entry.is_live():
                entry.happen()
        raise AssertionError("the world does not come to rest")

    @property
    def is_moving(self) -> bool:
        """Whether anything but bounds is still to come."""
        return any(entry.moves and entry.is_live() for entry in self._heap)

    def chance(self, percent: float) -> bool:
        return self.random.random() * 100 < percent

    def pause(self, most: float = 1.0) -> float:
        return self.random.random() * most


class Watcher(Protocol):
    """A connection on which a run's events are shown."""

    def show(self, build: Callable[[int], told.Input]) -> None:
        """Show an event, made of the request's number."""

    def close(self) -> None:
        """No more events will come."""


@dataclass(slots=True)
class ServerRun:
    """A run, as the server knows it."""

    id: str
    nonce: str
    rounds_left: int
    verdict: str
    created_at: float
    status: str = "queued"
    error: LastError | None = None
    round: int = 0
    calls: tuple[ToolCall, ...] = ()
    batches: list[dict[str, str]] = field(default_factory=list)
    """The output that each call of each round wants."""
    accepted: set[tuple[int, str]] = field(default_factory=set)
    messages: list[Message] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    epoch: int = 0
    """Every change of status starts a new one; what was planned in an earlier one does not happen."""


class Server:
    """One thread and its runs."""

    def __init__(self, scenario: Scenario, time: VirtualTime) -> None:
        self.scenario = scenario
        self.time = time
        self.runs: list[ServerRun] = []
        self.foreign: ServerRun | None = None
        if scenario.foreign_s is not None and scenario.own_thread:
            self.foreign = ServerRun(
                id="run_foreign", nonce="other", rounds_left=0, verdict="completed", created_at=time.now
            )
            self.foreign.status = "in_progress"
            foreign = self.foreign
            time.later(scenario.foreign_s, lambda: self.move(foreign, "completed"), moves=False)

    @property
    def all_runs(self) -> list[ServerRun]:
        """Every run of the thread, oldest first."""
        return self.runs if self.foreign is None else [self.foreign, *self.runs]

    def handle(self, effect: fx.RequestEffect) -> APIError | told.Input:
        """Do what is asked, and say what the answer would be."""
        match effect:
            case fx.CreateThread():
                metadata = {NONCE_KEY: effect.nonce} if self.scenario.echoes_metadata else {}
                return told.ThreadCreated(number=effect.number, thread=Thread(id=THREAD, metadata=metadata))
            case fx.CreateRun():
                return self.create(effect)
            case fx.ListRuns():
                runs = tuple(self.shown(run) for run in reversed(self.all_runs))
                return told.RunsListed(number=effect.number, runs=runs)
            case _:
                run = next(run for run in self.all_runs if run.id == effect.run_id)
                return self.handle_run(run, effect)

    def handle_run(
        self,
        run: ServerRun,
        effect: fx.RetrieveRun | fx.FetchTranscript | fx.SubmitToolOutputs | fx.CancelRun,
    ) -> APIError | told.Input:
        refusal: APIError | None = None
        match effect:
            case fx.FetchTranscript():
                return told.TranscriptFetched(number=effect.number, messages=tuple(run.messages), steps=())
            case fx.SubmitToolOutputs():
                refusal = self.submit(run, effect)
            case fx.CancelRun():
                refusal = self.cancel(run)
        return refusal or told.RunObserved(number=effect.number, run=self.shown(run))

    def create(self, effect: fx.CreateRun) -> APIError | told.Input:
        active = next((run for run in self.all_runs if run.status not in TERMINAL_STATUSES), None)
        if active is not None and self.scenario.locks_threads:
            name = f" {active.id}" if self.scenario.names_foreign else ""
            return refusal(400, f"Thread {THREAD} already has an active run{name}.")
        assert all(run.nonce != effect.nonce for run in self.runs), "two runs for one nonce"
        run = ServerRun(
            id=f"run_{len(self.runs) + 1}",
            nonce=effect.nonce,
            rounds_left=self.scenario.rounds,
            verdict=self.time.random.choice(("completed", "completed", "failed", "incomplete")),
            created_at=self.time.now,
        )
        if self.time.chance(self.scenario.failures):
            run.verdict, run.error = "failed", LastError(code="server_error", message="it broke")
        self.runs.append(run)
        self.time.later(self.scenario.lifetime_s, lambda: self.move(run, "expired"), moves=False)
        self.plan(run, "in_progress")
        return told.RunObserved(number=effect.number, run=self.shown(run))

    def submit(self, run: ServerRun, effect: fx.SubmitToolOutputs) -> APIError | None:
        given = {output.tool_call_id: output.output for output in effect.outputs}
        assert len(effect.outputs) == len(given), "an output was given twice"
        assert given in run.batches, f"partial or foreign outputs: {given}"
        if run.status != "requires_action":
            return refusal(400, f'Runs in status "{run.status}" do not accept tool outputs.')
        assert given == run.batches[-1], f"stale outputs: {given} for {run.batches[-1]}"
        answers = {(run.round, id_) for id_ in given}
        assert not run.accepted & answers, "a round was answered twice"
        run.accepted |= answers
        self.move(run, "queued")
        return None

    def cancel(self, run: ServerRun) -> APIError | None:
        allowed = {"queued", "in_progress", "requires_action"}
        if self.scenario.cancels_only_in_progress:
            allowed = {"in_progress"}
        if run.status not in allowed:
            return refusal(400, f"Cannot cancel run with status '{run.status}'.")
        self.move(run, "cancelling")
        return None

    def plan(self, run: ServerRun, status: str) -> None:
        epoch = run.epoch
        self.time.later(
            self.time.pause(4), lambda: self.move(run, status), is_live=lambda: run.epoch == epoch
        )

    def move(self, run: ServerRun, status: str) -> None:
        if run.status in TERMINAL_STATUSES:
            return
        run.epoch += 1
        run.status = status
        match status:
            case "queued":
                self.plan(run, "in_progress")
            case "in_progress":
                self.write(run)
                if not self.scenario.freezes:
                    self.plan(run, "requires_action" if run.rounds_left else run.verdict)
            case "requires_action":
                self.ask(run)
            case "cancelling" if not self.scenario.cancel_sticks:
                self.plan(run, run.verdict if self.time.chance(10) else "cancelled")
        self.tell_watchers(run)

    def tell_watchers(self, run: ServerRun) -> None:
        waits = run.status == "requires_action"
        for watcher in tuple(run.watchers):
            watcher.show(in_stream(self.shown(run)))
            if waits and self.scenario.spurious_completed:
                watcher.show(in_stream(self.shown(run, status="completed")))
            if waits or run.status in TERMINAL_STATUSES:
                watcher.close()

    def write(self, run: ServerRun) -> None:
        message = Message(id=f"msg_{len(run.messages) + 1}", run_id=run.id, status="completed")
        run.messages.append(message)
        event = MessageEvent(event="thread.message.completed", data=message, run_id=run.id)
        for watcher in tuple(run.watchers):
            watcher.show(lambda number: told.EventsObserved(number=number, events=(event,)))

    def ask(self, run: ServerRun) -> None:
        run.rounds_left -= 1
        run.round += 1
        prefix = "call" if self.scenario.reused_ids else f"call_{run.round}"
        run.calls = tuple(
            ToolCall(
                id=f"{prefix}_{index}",
                function=FunctionCall(name="tool", arguments=f"{run.round}/{index}"),
            )
            for index in range(self.scenario.calls)
        )
        run.batches.append({call.id: call.function.arguments for call in run.calls})

    def shown(self, run: ServerRun, status: str | None = None) -> Run:
        action = None
        if run.status == "requires_action" and status is None:
            action = RequiredAction(submit_tool_outputs=SubmitToolOutputs(tool_calls=run.calls))
        return Run(
            id=run.id,
            thread_id=THREAD,
            status=status or run.status,
            required_action=action,
            metadata={NONCE_KEY: run.nonce} if self.scenario.echoes_metadata else None,
            created_at=run.created_at,
            expires_at=run.created_at + self.scenario.lifetime_s,
            last_error=run.error if run.status == "failed" else None,
            usage=Usage(total_tokens=100 * (1 + run.round)),
        )


def in_stream(run: Run) -> Callable[[int], told.Input]:
    """What a stream tells of a run, for the number of its request."""
    event = RunEvent(event=f"thread.run.{run.status}", data=run, run_id=run.id)
    return lambda number: told.RunObserved(number=number, run=run, event=event)


def refusal(
    status: int, text: str = "no", *, path: str = "/x", headers: dict[str, str] | None = None
) -> APIError:
    return status_error(status)(text, method="POST", path=path, status=status, headers=headers or {})
