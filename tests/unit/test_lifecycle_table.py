"""Whatever it is told, in whatever order, the machine stays on its table and keeps its promises."""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any, Literal, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lifecycle_story import REQUESTS, RUN, Story, call, cut, message, message_event, refused, run, step

from orchestrator.client.retry import NONCE_KEY, Verdict, judge
from orchestrator.protocol.events import RunEvent, RunStepEvent
from orchestrator.protocol.objects import LastError, Run, Thread, Usage
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.lifecycle import TABLE, IllegalInput, Lifecycle, Rule
from orchestrator.runs.record import Phase
from orchestrator.runs.request import RerunPolicy

CALLS = (call("call_1"), call("call_2"))
RUNS = (
    *(run(status) for status in ("queued", "in_progress", "requires_action", "cancelling", "pondering", "")),
    *(run(status) for status in ("completed", "failed", "cancelled", "expired", "incomplete")),
    run("requires_action", *CALLS),
    run("requires_action", *CALLS),
    run("requires_action", CALLS[0]),
    run("requires_action", CALLS[0], CALLS[0]),
    run("requires_action", call("call_3", kind="code_interpreter")),
    run("in_progress", id_="run_2"),
    run("in_progress", id_="run_3", nonce=None),
    msgspec.structs.replace(run("failed"), last_error=LastError(code="server_error")),
    msgspec.structs.replace(run("in_progress"), usage=Usage(total_tokens=501)),
)
COSTLY = msgspec.structs.replace(step("step_1"), usage=Usage(total_tokens=501))
NOTICES: tuple[Literal["tool.approval_asked", "tool.approved", "tool.progress"], ...] = (
    "tool.approval_asked",
    "tool.approved",
    "tool.progress",
)
EVENTS = (
    message_event("msg_1", "hello"),
    RunStepEvent(event="thread.run.step.completed", data=COSTLY, run_id=RUN),
)
ERRORS = (
    cut(),
    cut(sent=False),
    refused(400, "Thread thread_1 already has an active run run_7."),
    refused(400, "Thread thread_1 already has an active run."),
    *(refused(status) for status in (400, 401, 404, 408, 409, 429, 500, 503)),
    refused(429, retry_after="3"),
    refused(429, retry_after="1e9"),
    refused(503, x_should_retry="false"),
)

# A step is a number for what is told, and two for which of its kind; a sequence of steps shrinks well.
# Without `min_size` Hypothesis makes lists of about five, which end before a run has got anywhere.
STEPS = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 31), st.integers(0, 31)), min_size=20, max_size=60
)
ASKED = st.fixed_dictionaries(
    {
        "watch": st.sampled_from(("stream", "poll")),
        "on_deadline": st.sampled_from(("cancel", "detach")),
        "thread_id": st.sampled_from((None, "thread_1")),
        "on_stall": st.sampled_from(("report", "cancel")),
        "on_busy_thread": st.sampled_from(("enqueue", "reject", "interrupt")),
        "interrupt_foreign": st.booleans(),
        "on_expired": st.sampled_from(("fail", "restart")),
        "rerun": st.sampled_from((RerunPolicy(attempts=1), RerunPolicy(base_s=0.0), RerunPolicy())),
        "unrepeatable_tools": st.sampled_from((frozenset(), frozenset({"get_weather"}))),
        "max_tool_rounds": st.sampled_from((None, 0, 1)),
        "max_failed_tool_rounds": st.sampled_from((None, 1, 2)),
        "max_total_tokens": st.sampled_from((None, 500)),
    }
)
REACHED = (
    *("admitted", "adopted", "create", "reconcile", "watch", "act"),
    *("doubt", "submit", "cancel", "collect", "stray"),
    *("blocked", "gap", "failed gap", "rerun"),
)


class Teller(Story):
    """Turns steps into inputs, plausible and not, and holds the machine to its promises after each one."""

    def __init__(self, **request: Any) -> None:
        self.answered: set[int] = set()
        self.issued: dict[int, fx.RequestEffect] = {}
        self.recorded: set[tuple[int, str]] = set()
        self.started: set[tuple[int, str]] = set()
        self.unsettled: int | None = None
        self.nonce = ""
        self.looks = 0
        self.finished = False
        self.ways: set[tuple[Phase, type, Phase]] = set()
        self.refused: set[tuple[Phase, type]] = set()
        super().__init__(**request)

    def reach(self, where: str) -> None:
        """Go some of the way at once, as a well-behaved world would."""
        match where:
            case "admitted" | "adopted":
                pass
            case "reconcile":
                self.create()
                self.fail(cut())
            case "doubt":
                self.act()
                self.stream(run("completed"))
            case "stray":
                self.create()
                self.fail(cut())
                self.stream(run("queued"), run("completed"))
                self.list_runs(run("in_progress", id_="run_2"))
            case "blocked":
                self.create()
                self.fail(refused(400, "Thread thread_1 already has an active run run_7."))
            case "gap":
                self.watch()
                self.end_stream()
                self.answer(run("requires_action", *CALLS))
            case "failed gap":
                self.reach("gap")
                for asked in CALLS:
                    self.tell(_tool_finished(1, asked.id, 7))
            case "rerun":
                self.create()
                self.show(msgspec.structs.replace(run("failed"), last_error=LastError(code="server_error")))
            case "cancel":
                self.watch()
                self.tell(told.CancelRequested())
            case "collect":
                self.create()
                self.answer(run("completed"))
            case _:
                getattr(self, where)()

    def step(self, kind: int, which: int, other: int) -> None:
        self.now += other / 4
        input_ = self.input(kind, which, other)
        if input_ is None:
            return
        machine, before, phase = self.machine, _state(self.machine), self.phase
        legal = type(input_) in TABLE[phase] and not isinstance(input_, told.Resumed)
        try:
            self.tell(input_)
        except IllegalInput:
            assert not legal
            assert _state(machine) == before, "an illegal input changed something"
            self.refused.add((phase, type(input_)))
            return
        assert legal
        assert self.phase in TABLE[phase][type(input_)].to

    def tell(self, input_: told.Input) -> list[fx.Effect]:
        phase = self.phase
        effects = super().tell(input_)
        self.ways.add((phase, type(input_), self.phase))
        self.learn(input_)
        assert not (self.finished and effects), "something came after the end"
        for effect in effects:
            self.hold(effect)
        self.finished = self.finished or any(isinstance(effect, fx.Finish) for effect in effects)
        assert self.finished == (self.phase is Phase.FINISHED)
        assert self.finished == (not self.timers), "a wait without a bound, or a timer that outlived the run"
        return effects

    def learn(self, input_: told.Input) -> None:
        """Keep account of what the machine may conclude from an input."""
        number = getattr(input_, "number", None)
        if number not in self.issued or not isinstance(input_, _outcomes(self.issued[number])):
            return
        if number == self.unsettled and number not in self.answered:
            if isinstance(input_, told.RequestFailed):
                busy = "active run" in input_.error.message
                again = judge(input_.error, repeatable=False) is Verdict.AGAIN
                self.unsettled = None if again or busy else self.unsettled
            elif isinstance(input_, told.RunObserved):
                self.unsettled = None
        self.looks += isinstance(input_, told.RunsListed)
        self.answered.add(number)

    def hold(self, effect: fx.Effect) -> None:
        """What must be true of every effect."""
        match effect:
            case fx.Record(record=record):
                self.kept = record
                assert (
                    record.awaiting
                    <= {asked.id for asked in record.calls} - record.results_of(record.round).keys()
                ), "a call that is answered waits for approval"
                self.recorded |= {(result.round, result.call_id) for result in record.results}
            case fx.SetTimer():
                assert 0 <= effect.delay_s < math.inf
            case fx.StartTools():
                calls = {(effect.round, asked.id) for asked in effect.calls}
                assert len(calls) == len(effect.calls)
                assert not calls & (self.recorded | self.started), "a call was started twice"
                self.started |= calls
            case fx.CreateRun():
                assert self.kept.pending == effect.number
                # A run that follows another has a nonce of its own.
                settled = self.unsettled is None or self.looks >= 2 or effect.nonce != self.nonce
                assert settled, "created twice without a look"
                self.unsettled, self.looks, self.nonce = effect.number, 0, effect.nonce
            case fx.SubmitToolOutputs():
                assert self.kept.pending == effect.number
                asked = [asked.id for asked in self.kept.calls]
                assert [output.tool_call_id for output in effect.outputs] == asked
                assert asked
        if isinstance(effect, REQUESTS):
            assert effect.number not in self.issued, "a number was used twice"
            self.issued[effect.number] = effect

    def input(self, kind: int, which: int, other: int) -> told.Input | None:
        """One of everything that can be told; half of the kinds are what a well-behaved world would tell."""
        if kind == 12:
            self.die(which)
            return None
        if kind > 12:
            return self.plausible(which, other)
        if kind > 8:
            return self.wish(kind, which, other)
        return self.report(kind, self.number(which), other)

    def wish(self, kind: int, which: int, other: int) -> told.Input:
        if kind == 9 and which % 2:
            return told.ToolNoticed(
                round=other % 4, call_id=f"call_{which % 3 + 1}", notice=NOTICES[other % len(NOTICES)]
            )
        if kind == 9:
            return _tool_finished(other % 4, f"call_{which % 3 + 1}", other)
        if kind == 10 and which < 16:
            wishes = (told.CancelRequested(), told.DetachRequested(), told.Started(), told.Resumed())
            return wishes[which % 4]
        return self.fired(which)

    def report(self, kind: int, number: int, other: int) -> told.Input:
        """What could come of a request, of whatever kind that was."""
        seen, error = RUNS[other % len(RUNS)], ERRORS[other % len(ERRORS)]
        metadata = {NONCE_KEY: "nonce-1"} if other % 2 else None
        listed = RUNS[-4:] if other % 2 else (seen,)
        hint = (None, 0.0, 1e9)[other % 3]
        reports: tuple[told.Input, ...] = (
            told.ThreadCreated(number=number, thread=Thread(id="thread_1", metadata=metadata)),
            told.RunObserved(number=number, run=seen, poll_after_s=hint, expires_in_s=other - 9.0),
            _event(number, seen),
            told.EventsObserved(number=number, events=(EVENTS[other % len(EVENTS)],)),
            told.RunsListed(number=number, runs=listed),
            told.TranscriptFetched(number=number, messages=(message("msg_1", "x"),), steps=(step("step_1"),)),
            told.StreamEnded(number=number, error=error if other % 2 else None),
            told.RequestFailed(number=number, error=error),
            told.RequestFailed(number=number, error=cut()),
        )
        return reports[kind]

    def number(self, which: int) -> int:
        """Most often the last request's; at times the pending or the watched one, an old one, or nonsense."""
        record, issued = self.machine.record, sorted(self.issued)
        old = [0, -1, 999, *issued[-4:]]
        if which < 16 or not issued:
            return issued[-1] if issued else 0
        return [record.pending or 0, record.watched or 0, *old][which % (2 + len(old))]

    def fired(self, which: int) -> told.TimerFired:
        timers = sorted(self.timers)
        if which % 4 == 0 or not timers:
            return told.TimerFired(timer=list(told.Timer)[which % len(told.Timer)], serial=-1 - which)
        timer = timers[which % len(timers)]
        at, serial = self.timers.pop(timer)
        self.now = max(self.now, at)
        return told.TimerFired(timer=timer, serial=serial)

    def plausible(self, which: int, other: int) -> told.Input | None:
        """The next thing that a well-behaved world would tell."""
        if self.phase is Phase.ADMITTED:
            return told.Started()
        if self.machine.open_calls:
            asked = self.machine.open_calls[which % len(self.machine.open_calls)]
            if which > 28:
                return told.ToolNoticed(
                    round=self.machine.record.round, call_id=asked.id, notice=NOTICES[other % len(NOTICES)]
                )
            return _tool_finished(self.machine.record.round, asked.id, other)
        unanswered = [number for number in self.issued if number not in self.answered]
        if not unanswered:
            return self.fired(which) if which % 3 else _event(self.number(17), RUNS[other % len(RUNS)])
        return self.answer_to(self.issued[unanswered[which % len(unanswered)]], other)

    def answer_to(self, effect: fx.RequestEffect, other: int) -> told.Input:
        number, seen = effect.number, RUNS[other % len(RUNS)]
        match effect:
            case fx.CreateThread():
                return told.ThreadCreated(
                    number=number, thread=Thread(id="thread_1", metadata={NONCE_KEY: "nonce-1"})
                )
            case fx.ListRuns():
                return told.RunsListed(number=number, runs=(seen,) if other % 3 == 0 else ())
            case fx.FetchTranscript():
                return told.TranscriptFetched(number=number, messages=(), steps=())
            case fx.CreateRun(stream=True) | fx.SubmitToolOutputs(stream=True):
                return _event(number, seen)
            case _:
                return told.RunObserved(number=number, run=seen)

    def die(self, which: int) -> None:
        """The actor dies between two inputs; what the runtime says about what is under way is true."""
        if self.finished or not hasattr(self, "kept"):
            return
        old, record = self.machine, self.kept
        open_ = {number for number in self.issued if number not in self.answered and which % 2}
        under_way = {id_ for round_, id_ in self.started if round_ == record.round}
        self.machine = Lifecycle(record, timing=old._timing, jitter=old._jitter, unix_time=old._unix_time)
        self.timers.clear()
        # Numbers that nobody waits for may be used again.
        used = max((record.number, *open_))
        self.issued = {number: sent for number, sent in self.issued.items() if number <= used}
        self.answered = set(self.issued) - open_
        self.tell(told.Resumed(in_flight=frozenset(open_), open_calls=frozenset(under_way)))


def _outcomes(effect: fx.RequestEffect) -> tuple[type[told.Input], ...]:
    """What can be the answer to a request."""
    match effect:
        case fx.CreateThread():
            return (told.ThreadCreated, told.RequestFailed)
        case fx.ListRuns():
            return (told.RunsListed, told.RequestFailed)
        case fx.FetchTranscript():
            return (told.TranscriptFetched, told.RequestFailed)
        case fx.CreateRun() | fx.SubmitToolOutputs():
            return (told.RunObserved, told.RequestFailed, told.StreamEnded)
        case _:
            return (told.RunObserved, told.RequestFailed)


def _tool_finished(round_: int, call_id: str, other: int) -> told.ToolFinished:
    fatal = ValueError("boom") if other % 16 == 3 else None
    error = "raised: ValueError: boom" if other % 4 == 3 else None
    return told.ToolFinished(round=round_, call_id=call_id, output="ok", error=error, fatal=fatal)


def _event(number: int, seen: Run) -> told.RunObserved:
    event = RunEvent(event=f"thread.run.{seen.status}", data=seen, run_id=RUN)
    return told.RunObserved(number=number, run=seen, event=event)


def _state(machine: Lifecycle) -> dict[str, Any]:
    snapshots = machine._snapshots
    state = {"messages": dict(snapshots.messages), "steps": dict(snapshots.steps)}
    for name, value in vars(machine).items():
        state[name] = copy.copy(value) if isinstance(value, dict | list | set) else value
    return state


def drive(request: dict[str, Any], reached: str, steps: list[tuple[int, int, int]]) -> Teller:
    if reached == "adopted":
        request = request | {"thread_id": "thread_1", "run_id": RUN}
    teller = Teller(**request)
    teller.reach(reached)
    for step_ in steps:
        teller.step(*step_)
    return teller


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(ASKED, st.sampled_from(REACHED), STEPS)
def test_no_sequence_of_inputs_leaves_the_table_or_breaks_a_promise(
    request: dict[str, Any], reached: str, steps: list[tuple[int, int, int]]
) -> None:
    drive(request, reached, steps)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ASKED, st.sampled_from(REACHED), STEPS)
def test_no_sequence_of_inputs_leaves_the_table_or_breaks_a_promise_in_a_hundred_thousand_tries(
    request: dict[str, Any], reached: str, steps: list[tuple[int, int, int]]
) -> None:
    drive(request, reached, steps)


def test_every_input_is_told_in_every_phase_and_every_way_of_the_table_is_gone() -> None:
    chance = random.Random(0)
    ways: set[tuple[Phase, type, Phase]] = set()
    refused: set[tuple[Phase, type]] = set()
    for _ in range(8000):
        request = {
            "watch": chance.choice(("stream", "poll")),
            "on_deadline": chance.choice(("cancel", "detach")),
            "thread_id": chance.choice((None, "thread_1")),
            "on_stall": chance.choice(("report", "cancel")),
            "rerun": RerunPolicy(attempts=chance.randint(1, 2)),
            "max_failed_tool_rounds": chance.choice((None, 1)),
            "max_total_tokens": chance.choice((None, None, 500)),
        }
        steps = [(chance.randint(0, 15), chance.randint(0, 31), chance.randint(0, 31)) for _ in range(12)]
        teller = drive(request, chance.choice(REACHED), steps)
        ways |= teller.ways
        refused |= teller.refused
    rules = {(phase, kind): rule for phase, rules in TABLE.items() for kind, rule in rules.items()}
    kinds = get_args(told.Input)
    assert {way[:2] for way in ways} == rules.keys()
    assert refused >= set(itertools.product(Phase, kinds)) - rules.keys()
    listed = {(*key, to) for key, rule in rules.items() for to in rule.to if to is not key[0]}
    gone = {way for way in ways if way[0] is not way[2]}
    assert gone == listed


def test_every_phase_takes_a_cancel_a_detach_and_a_timer() -> None:
    for phase, kind in itertools.product(
        Phase, (told.CancelRequested, told.DetachRequested, told.TimerFired)
    ):
        assert kind in TABLE[phase]


def test_a_way_that_the_table_does_not_list_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE[Phase.ADMITTED], told.Started, Rule("_start", frozenset({Phase.ADMITTED})))
    with pytest.raises(AssertionError, match="Started led from admitted to creating"):
        Story().start()


def test_the_table_names_methods_that_exist_and_never_leaves_the_end() -> None:
    for rules in TABLE.values():
        assert all(hasattr(Lifecycle, rule.handler) for rule in rules.values())
    assert all(rule.to == {Phase.FINISHED} for rule in TABLE[Phase.FINISHED].values())


def test_every_phase_but_the_first_can_be_told_what_a_predecessor_asked_for() -> None:
    late = {told.ThreadCreated, told.RunsListed, told.RunObserved, told.RequestFailed, told.StreamEnded}
    for phase in set(Phase) - {Phase.ADMITTED}:
        assert late <= TABLE[phase].keys(), phase
