"""A world in virtual time: one lifecycle, the runtime under it, a bad network, and the server behind that.

The runtime keeps the promises that the real one makes: one outcome per request, kept for a successor while
the actor is dead; tools that go on when the actor dies; timers that die with it. The network breaks whatever
it likes. What must hold is asserted where it happens, or by `World.check` in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from lifecycle_server import THREAD, Scenario, Server, ServerRun, VirtualTime, in_stream, refusal

from orchestrator.errors import AmbiguousOutcome, APIConnectionError, APIError, RunError
from orchestrator.protocol.events import MessageEvent, StreamEvent
from orchestrator.protocol.objects import TERMINAL_STATUSES, ToolCall
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.lifecycle import Lifecycle, Timing
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.request import RerunPolicy, RunRequest
from orchestrator.runs.result import Notice, RunResult, StreamedEvent

__all__ = ["Scenario", "World"]

TIMING = Timing()
TOOL_S = 5.0
BOUNDS = (told.Timer.DEADLINE, told.Timer.STALL, told.Timer.CANCEL)


class World:
    """One run from `Started` to the end of everything that it caused."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.time = VirtualTime(scenario.seed)
        self.server = Server(scenario, self.time)
        thread_id = THREAD if scenario.own_thread else None
        request = RunRequest(
            assistant_id="asst_1",
            watch=scenario.watch,
            on_deadline=scenario.on_deadline,
            deadline_s=scenario.deadline_s,
            on_busy_thread=scenario.on_busy_thread,
            interrupt_foreign=scenario.interrupt_foreign,
            on_expired=scenario.on_expired,
            on_stall=scenario.on_stall,
            rerun=RerunPolicy(attempts=scenario.reruns),
            unrepeatable_tools=frozenset() if scenario.repeatable else frozenset({"tool"}),
            max_tool_rounds=scenario.max_tool_rounds,
            max_total_tokens=scenario.max_total_tokens,
        )
        self.ends_by = self.time.now + scenario.deadline_s + TIMING.cancel_timeout_s
        self.record = RunRecord(
            key="key-1",
            nonce="nonce-1",
            request=request,
            deadline_at=self.time.now + scenario.deadline_s,
            thread_id=thread_id,
        )
        self.lifecycle: Lifecycle | None = None
        self.incarnation = 0
        self.deaths = 0
        self.incarnated_at = 0.0
        self.timers: dict[told.Timer, int] = {}
        self.held: list[told.Input] = []
        self.wishes: list[told.Input] = []
        self.under_way: set[int] = set()
        self.leaving: dict[int, fx.RequestEffect] = {}
        self.streams: dict[int, Stream] = {}
        self.tools: set[tuple[int, str]] = set()
        self.outcomes: dict[tuple[int, str], told.ToolFinished] = {}
        self.finish: fx.Finish | None = None
        self.finished_at = 0.0
        self.notices: list[Notice] = []
        self.shown: list[StreamEvent] = []
        self.tool_calls: Counter[tuple[str | None, int, str]] = Counter()
        self.sent: Counter[str] = Counter()

    def play(self) -> None:
        self.incarnate()
        self.wish_at(self.scenario.cancel_at, told.CancelRequested())
        self.wish_at(self.scenario.detach_at, told.DetachRequested())
        self.time.pass_by()

    # The actor: it lives, it dies, and somebody else goes on from its last record.

    def incarnate(self) -> None:
        self.incarnation += 1
        self.incarnated_at = self.time.now
        self.lifecycle = Lifecycle(
            self.record, timing=TIMING, jitter=self.time.random.random, unix_time=lambda: self.time.now
        )
        round_ = self.record.round
        untold = {number for number in (getattr(held, "number", None) for held in self.held) if number}
        resumed = told.Resumed(
            in_flight=frozenset(self.under_way | untold),
            open_calls=frozenset(id_ for number, id_ in (*self.tools, *self.outcomes) if number == round_),
            unwanted=bool(self.wishes),
        )
        missed, self.held = self.held, []
        retold = [outcome for (number, _), outcome in self.outcomes.items() if number == round_]
        admission = [told.Started()] if self.record.phase is Phase.ADMITTED else []
        for input_ in (resumed, *self.wishes, *admission, *retold):
            self.tell_living(input_)
        for input_ in missed:
            self.tell(input_)

    def tell(self, input_: told.Input) -> None:
        if self.lifecycle is None:
            self.held.append(input_)
        else:
            self.tell_living(input_)

    def tell_living(self, input_: told.Input) -> None:
        """Tell what the next actor is told in any case, should this one be dead."""
        if self.finish is not None or self.lifecycle is None:
            return
        effects = self.lifecycle.receive(input_, self.time.now)
        dies = self.time.chance(self.scenario.deaths) and not isinstance(input_, told.Resumed)
        survives = self.time.random.randint(0, len(effects)) if dies else len(effects)
        for effect in effects[:survives]:
            self.perform(effect)
        if dies:
            self.die()

    def die(self) -> None:
        self.deaths += 1
        self.lifecycle = None
        self.timers.clear()
        self.time.later(self.time.pause(), self.incarnate, is_live=lambda: self.finish is None)

    def wish_at(self, at: float | None, wish: told.Input) -> None:
        if at is not None:
            self.time.later(at, lambda: self.wish(wish), moves=False)

    def wish(self, wish: told.Input) -> None:
        """What a user or the supervisor asks for is told again to every successor."""
        self.wishes.append(wish)
        self.tell_living(wish)

    def perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Record():
                self.record = effect.record
            case fx.Publish():
                for event in effect.events:
                    self.show(event)
            case fx.SetTimer():
                self.set_timer(effect)
            case fx.ClearTimer():
                del self.timers[effect.timer]
            case fx.Finish():
                self.end(effect)
            case fx.StartTools() | fx.StopTools():
                self.perform_tools(effect)
            case fx.CloseStream():
                self.close_stream(effect.number)
            case fx.Withdraw():
                self.withdraw(effect.number)
            case _:
                self.send(effect)

    def show(self, event: StreamedEvent) -> None:
        if isinstance(event, Notice):
            self.notices.append(event)
        else:
            assert event.run_id is not None, f"{event.event} does not say of which run"
            self.shown.append(event)

    def set_timer(self, effect: fx.SetTimer) -> None:
        assert 0 <= effect.delay_s < 1e6
        timer, serial, incarnation = effect.timer, effect.serial, self.incarnation
        self.timers[timer] = serial

        def fire() -> None:
            if timer is told.Timer.DEADLINE:
                self.assert_not_stuck()
            del self.timers[timer]
            self.tell(told.TimerFired(timer=timer, serial=serial))

        def is_live() -> bool:
            return self.incarnation == incarnation and self.timers.get(timer) == serial

        self.time.later(effect.delay_s, fire, is_live=is_live, moves=timer not in BOUNDS)

    def assert_not_stuck(self) -> None:
        """A deadline may end a slow run; it must not be what ends one that nobody looks after."""
        assert self.lifecycle is not None
        waits = self.lifecycle.phase is Phase.ADMITTED or self.incarnated_at >= self.record.deadline_at
        waits = waits or self.scenario.freezes
        assert waits or self.time.is_moving, f"stuck in {self.lifecycle.phase}"

    def assert_wanted(self, effect: fx.Effect) -> None:
        """Nothing is begun for a run whose end somebody asked for, and none is created past its deadline."""
        assert not self.wishes, f"begun in vain: {effect}"
        if isinstance(effect, fx.CreateThread | fx.CreateRun):
            assert self.time.now <= self.record.deadline_at, f"begun too late: {effect}"

    def perform_tools(self, effect: fx.StartTools | fx.StopTools) -> None:
        if isinstance(effect, fx.StopTools):
            self.tools.clear()
            return
        self.assert_wanted(effect)
        for call in effect.calls:
            self.start_tool(effect.round, call, TOOL_S if effect.bound_s is None else effect.bound_s)

    def start_tool(self, round_: int, call: ToolCall, bound_s: float) -> None:
        key = (round_, call.id)
        self.tool_calls[(self.record.run_id, *key)] += 1
        self.tools.add(key)

        def finish() -> None:
            self.tools.remove(key)
            # The output names the call that it answers, so that the server can tell a stale one.
            finished = told.ToolFinished(round=round_, call_id=call.id, output=call.function.arguments)
            self.outcomes[key] = finished
            if self.lifecycle is not None:
                self.tell(finished)

        # One that takes longer than it may is answered for by the runtime.
        took_s = min(self.time.pause(TOOL_S), bound_s)
        self.time.later(took_s, finish, is_live=lambda: key in self.tools)

    def end(self, finish: fx.Finish) -> None:
        assert self.finish is None
        assert not self.timers
        self.finish = finish
        self.finished_at = self.time.now
        for number in tuple(self.streams):
            self.close_stream(number)
        self.under_way.clear()
        self.tools.clear()

    # The network: what becomes of a request.

    def send(self, effect: fx.RequestEffect) -> None:
        self.sent[type(effect).__name__] += 1
        if isinstance(effect, fx.CreateRun | fx.SubmitToolOutputs):
            assert self.record.pending == effect.number, "sent before it was recorded"
        if isinstance(effect, fx.CreateThread | fx.CreateRun | fx.SubmitToolOutputs):
            self.assert_wanted(effect)
        assert effect.number not in self.under_way
        self.under_way.add(effect.number)
        self.leaving[effect.number] = effect
        self.time.later(self.time.pause(), lambda: self.arrive(effect))

    def withdraw(self, number: int) -> None:
        """Take a request back if it has not left, which nobody but the runtime can tell."""
        if number in self.under_way and number in self.leaving and self.time.chance(50):
            unsent = APIConnectionError("withdrawn", method="POST", path="/x", sent=False)
            self.fail(self.leaving.pop(number), unsent)

    def arrive(self, effect: fx.RequestEffect) -> None:
        """The request reaches the server, or something worse."""
        left = self.leaving.pop(effect.number, None) is not None
        if not left or effect.number not in self.under_way:
            return
        if self.time.chance(self.scenario.faults):
            self.go_wrong(effect)
            return
        answer = self.server.handle(effect)
        if isinstance(answer, APIError):
            self.fail(effect, answer)
        elif isinstance(effect, fx.CreateRun | fx.SubmitToolOutputs) and effect.stream:
            self.open_stream(effect)
        else:
            self.time.later(self.time.pause(), lambda: self.outcome(effect.number, answer))

    def go_wrong(self, effect: fx.RequestEffect) -> None:
        """Fail a request before it took effect, after it, or, if it is a create, just before it does."""
        path = "/".join(("/threads", getattr(effect, "thread_id", ""), "runs", getattr(effect, "run_id", "")))
        cut = APIConnectionError("cut off", method="POST", path=path, sent=True)
        broken = self.time.random.choice((cut, refusal(500, path=path)))
        match self.time.random.choice(("never sent", "refused", "before", "after", "after", "late")):
            case "never sent":
                self.fail(effect, APIConnectionError("refused", method="POST", path=path, sent=False))
            case "refused":
                hint = {"retry-after": str(self.time.random.randint(0, 3))}
                self.fail(effect, refusal(429, path=path, headers=hint))
            case "late" if isinstance(effect, fx.CreateRun):
                late = self.time.pause(TIMING.retry.settle_s * 0.99)
                self.time.later(late, lambda: self.take_effect(effect))
                self.outcome(effect.number, told.RequestFailed(number=effect.number, error=cut))
            case "after":
                self.take_effect(effect)
                self.fail(effect, broken)
            case _:
                self.fail(effect, broken)

    def take_effect(self, effect: fx.RequestEffect) -> None:
        """The server does it, and nobody hears of it."""
        self.server.handle(effect)

    def fail(self, effect: fx.RequestEffect, error: APIError) -> None:
        failed = told.RequestFailed(number=effect.number, error=error)
        self.time.later(self.time.pause(), lambda: self.outcome(effect.number, failed))

    def outcome(self, number: int, input_: told.Input) -> None:
        if number in self.under_way:
            self.under_way.discard(number)
            self.tell(input_)

    def open_stream(self, effect: fx.CreateRun | fx.SubmitToolOutputs) -> None:
        number, run = effect.number, self.server.runs[-1]
        stream = self.streams[number] = Stream(self, run, number)
        run.watchers.append(stream)
        stream.show(in_stream(self.server.shown(run)))

    def close_stream(self, number: int) -> None:
        stream = self.streams.pop(number, None)
        if stream is not None:
            stream.is_open = False
        self.under_way.discard(number)

    # What must hold in the end, seen from outside.

    def check(self) -> None:
        assert self.finish is not None, "the run never ended"
        in_time = max(self.ends_by, self.incarnated_at) + 1e-6
        assert self.finished_at <= in_time, "the run outlived its deadline and its cancel"
        assert set(self.tool_calls.values()) <= {1}, f"a tool was called twice: {self.tool_calls}"
        self.check_runs()
        if self.finish.result is not None:
            self.check_result(self.finish.result)
        else:
            self.check_error()

    def check_runs(self) -> None:
        """One run, and another only after one that may be followed, and is over."""
        runs, scenario = self.server.runs, self.scenario
        assert len(runs) <= max(1, scenario.reruns), "more runs than there may be"
        for run in runs[:-1]:
            assert run.status in ("failed", "expired"), f"{run.id} is followed, and {run.status}"
            assert run.status != "expired" or scenario.on_expired == "restart"
            called = any(run_id == run.id for run_id, _, _ in self.tool_calls)
            assert run.status == "expired" or scenario.repeatable or not called, "a call was risked twice"
        foreign = self.server.foreign
        may_end = scenario.interrupt_foreign and scenario.on_busy_thread == "interrupt"
        if foreign is not None and not may_end:
            assert foreign.status not in ("cancelling", "cancelled"), "a foreign run was cancelled"

    def check_error(self) -> None:
        assert self.finish is not None
        error = self.finish.error
        assert not self.scenario.is_kind, f"failed without a reason: {error!r}"
        for run in self.server.runs:
            was_left = run.status not in {*TERMINAL_STATUSES, "cancelling"}
            was_left = was_left or (run.status == "expired" and run.id not in self.record.earlier)
            named = isinstance(error, AmbiguousOutcome) and error.nonce == run.nonce
            named = named or (isinstance(error, RunError) and error.run_id == run.id) or run.id in str(error)
            assert named or not was_left, f"{run.id} is left and not named: {error}"

    def check_result(self, result: RunResult) -> None:
        if result.run_id is None:
            assert result.status == "cancelled"
            left = [run for run in self.server.runs if run.status not in TERMINAL_STATUSES]
            assert left == [], "cancelled as never created, and created"
            assert len(self.server.runs) == self.record.attempt - 1
            return
        run = self.server.runs[-1]
        assert (result.run_id, result.status) == (run.id, run.status)
        if not any("could not be fetched" in (notice.detail or "") for notice in self.notices):
            assert [message.id for message in result.messages] == [message.id for message in run.messages]
        answered = [(made.round, made.call_id) for made in result.tool_calls]
        assert len(set(answered)) == len(answered)
        self.check_shown(run)
        given = {made.output for made in result.tool_calls if made.run_id == run.id}
        accepted = {run.batches[round_ - 1][id_] for round_, id_ in run.accepted}
        assert given >= accepted, "the model was told what the result does not know"
        is_plain = len(self.server.runs) == 1 and self.server.foreign is None and run.status != "expired"
        is_plain = is_plain and self.scenario.watch == "stream" and self.scenario.cancel_at is None
        if is_plain and self.scenario.is_kind:
            self.check_requests()

    def check_shown(self, run: ServerRun) -> None:
        """A reader has seen every message in order, and the verdict last, whatever was lost on the way."""
        last = self.shown[-1]
        assert (last.run_id, last.event) == (run.id, f"thread.run.{run.status}")
        if not self.deaths and not any("could not be" in (notice.detail or "") for notice in self.notices):
            messages = [event.data for event in self.shown if isinstance(event, MessageEvent)]
            ids = [message.id for message in messages if message.run_id == run.id]
            assert ids == [message.id for message in run.messages], "shown twice, out of order or not at all"

    def check_requests(self) -> None:
        """A streamed run that nothing happens to costs one request, and one per round."""
        wanted = Counter(CreateRun=1, SubmitToolOutputs=self.scenario.rounds)
        wanted["CreateThread"] = not self.scenario.own_thread
        if self.scenario.spurious_completed:
            del self.sent["RetrieveRun"]
        assert self.sent == wanted


class Stream:
    """An open event stream: events arrive in order, until it ends or breaks."""

    def __init__(self, world: World, run: ServerRun, number: int) -> None:
        self.world = world
        self.run = run
        self.number = number
        self.arrives_at = 0.0
        self.is_open = True

    def show(self, build: Callable[[int], told.Input]) -> None:
        if self not in self.run.watchers:
            return
        if self.world.time.chance(self.world.scenario.breaks):
            cut = APIConnectionError("cut off", method="POST", path="/x", sent=True)
            self.close(cut if self.world.time.chance(50) else None)
        else:
            self.arrive(lambda: self.world.tell(build(self.number)))

    def close(self, error: APIError | None = None) -> None:
        if self in self.run.watchers:
            self.run.watchers.remove(self)
            self.arrive(lambda: self.end(error))

    def end(self, error: APIError | None) -> None:
        self.world.close_stream(self.number)
        self.world.tell(told.StreamEnded(number=self.number, error=error))

    def arrive(self, happen: Callable[[], None]) -> None:
        time = self.world.time
        self.arrives_at = max(self.arrives_at, time.now + time.pause(0.3))
        time.later(self.arrives_at - time.now, happen, is_live=lambda: self.is_open)
