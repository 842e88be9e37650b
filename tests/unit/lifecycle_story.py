"""One lifecycle under a test's hand: the test plays the server, the tools and the clock."""

from __future__ import annotations

from typing import Any, TypeVar

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import APIConnectionError, APIError, OrchestratorError, status_error
from orchestrator.protocol.events import MessageEvent, RunEvent, RunStepEvent
from orchestrator.protocol.objects import (
    FunctionCall,
    Message,
    MessageContent,
    RequiredAction,
    Run,
    RunStep,
    SubmitToolOutputs,
    TextContent,
    Thread,
    ToolCall,
)
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.lifecycle import Lifecycle, Timing
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import Notice, RunResult

E = TypeVar("E", bound=fx.Effect)

NONCE = "nonce-1"
THREAD = "thread_1"
RUN = "run_1"
TIMING = Timing()

REQUESTS = (
    fx.CreateThread,
    fx.CreateRun,
    fx.RetrieveRun,
    fx.ListRuns,
    fx.FetchTranscript,
    fx.SubmitToolOutputs,
    fx.CancelRun,
)


def call(id_: str, name: str = "get_weather", arguments: str = "{}", kind: str = "function") -> ToolCall:
    return ToolCall(id=id_, type=kind, function=FunctionCall(name=name, arguments=arguments))


def run(status: str, *calls: ToolCall, id_: str = RUN, nonce: str | None = NONCE) -> Run:
    action = RequiredAction(submit_tool_outputs=SubmitToolOutputs(tool_calls=calls)) if calls else None
    metadata = {} if nonce is None else {NONCE_KEY: nonce}
    return Run(id=id_, thread_id=THREAD, status=status, required_action=action, metadata=metadata)


def message(id_: str, text: str) -> Message:
    content = [MessageContent(type="text", text=TextContent(value=text))]
    return Message(id=id_, thread_id=THREAD, run_id=RUN, status="completed", content=content)


def message_event(id_: str, text: str) -> MessageEvent:
    return MessageEvent(event="thread.message.completed", data=message(id_, text), run_id=RUN)


def step(id_: str, status: str = "completed") -> RunStep:
    return RunStep(id=id_, thread_id=THREAD, run_id=RUN, status=status, type="message_creation")


def step_event(id_: str, status: str = "completed") -> RunStepEvent:
    return RunStepEvent(event=f"thread.run.step.{status}", data=step(id_, status), run_id=RUN)


def refused(status: int, text: str = "no", **headers: str) -> APIError:
    """An answer with an HTTP status; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(status)(text, method="POST", path="/x", status=status, headers=named)


def cut(*, sent: bool = True) -> APIError:
    """A connection that broke before an answer."""
    return APIConnectionError("cut off", method="POST", path="/x", sent=sent)


class Story:
    """A lifecycle, its clock, and everything it wanted done so far.

    Args:
        record: Where to begin; made of the other arguments when not given.
        resumed: What is still under way for the record.
    """

    def __init__(
        self,
        record: RunRecord | None = None,
        *,
        resumed: told.Resumed | None = None,
        now: float = 1000.0,
        timing: Timing = TIMING,
        thread_id: str | None = None,
        run_id: str | None = None,
        **request: Any,
    ) -> None:
        if record is None:
            asked = RunRequest(assistant_id="asst_1", **request)
            record = RunRecord(
                key="key-1",
                nonce=NONCE,
                request=asked,
                deadline_at=now + asked.deadline_s,
                thread_id=thread_id,
                run_id=run_id,
            )
        self.now = now
        self.effects: list[fx.Effect] = []
        self.timers: dict[told.Timer, tuple[float, int]] = {}
        self.machine = Lifecycle(record, timing=timing, jitter=lambda: 0.5, unix_time=lambda: 0.0)
        self.tell(resumed or told.Resumed())

    def tell(self, input_: told.Input) -> list[fx.Effect]:
        """Feed one input; keep its effects and set its timers."""
        effects = self.machine.receive(input_, self.now)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, fx.SetTimer):
                self.timers[effect.timer] = (self.now + effect.delay_s, effect.serial)
            elif isinstance(effect, fx.ClearTimer):
                del self.timers[effect.timer]
        return effects

    def wait(self, seconds: float) -> None:
        """Let time pass; timers fire in their order."""
        until = self.now + seconds
        while True:
            due = min(((at, serial, timer) for timer, (at, serial) in self.timers.items()), default=None)
            if due is None or due[0] > until:
                break
            self.now, serial, timer = due
            del self.timers[timer]
            self.tell(told.TimerFired(timer=timer, serial=serial))
        self.now = until

    def fire(self, timer: told.Timer) -> None:
        """Let time pass until this timer has fired."""
        self.wait(self.timers[timer][0] - self.now)

    # The server's side.

    def start(self) -> None:
        self.tell(told.Started())

    def answer(self, seen: Run, **hints: Any) -> None:
        """Answer the last request that was sent, with a run."""
        self.tell(told.RunObserved(number=self.last_request.number, run=seen, **hints))

    def stream(self, *items: Run | MessageEvent | RunStepEvent, number: int | None = None) -> None:
        """Show events in the stream that the last create or submit opened."""
        number = number or self.stream_number
        for item in items:
            if isinstance(item, Run):
                event = RunEvent(event=f"thread.run.{item.status}", data=item, run_id=item.id)
                self.tell(told.RunObserved(number=number, run=item, event=event))
            else:
                self.tell(told.EventsObserved(number=number, events=(item,)))

    def end_stream(self, error: APIError | None = None) -> None:
        self.tell(told.StreamEnded(number=self.stream_number, error=error))

    def fail(self, error: APIError, number: int | None = None) -> None:
        """Let the last request fail."""
        self.tell(told.RequestFailed(number=number or self.last_request.number, error=error))

    def make_thread(self, *, echo: bool = True) -> None:
        metadata = {NONCE_KEY: NONCE} if echo else {}
        number = self.last_request.number
        self.tell(told.ThreadCreated(number=number, thread=Thread(id=THREAD, metadata=metadata)))

    def list_runs(self, *runs: Run) -> None:
        self.tell(told.RunsListed(number=self.last_request.number, runs=runs))

    def transcript(self, *messages: Message, steps: tuple[RunStep, ...] = ()) -> None:
        number = self.last_request.number
        self.tell(told.TranscriptFetched(number=number, messages=messages, steps=steps))

    def finish_tool(self, call_id: str, output: str = "ok", *, round_number: int | None = None) -> None:
        number = round_number or self.machine.record.round
        self.tell(told.ToolFinished(round=number, call_id=call_id, output=output))

    # The way to a phase.

    def create(self) -> None:
        """Start, and let the thread be made: the create is under way."""
        self.start()
        if isinstance(self.last_request, fx.CreateThread):
            self.make_thread()

    def show(self, seen: Run) -> None:
        """Answer or stream the pending create or submit."""
        if self.machine.record.request.watch == "stream":
            self.stream(seen)
        else:
            self.answer(seen)

    def watch(self) -> None:
        self.create()
        self.show(run("queued"))

    def act(self, *calls: ToolCall) -> None:
        """Come to the first round."""
        self.watch()
        if self.machine.record.request.watch == "poll":
            self.fire(told.Timer.POLL)
            self.answer(run("requires_action", *(calls or (call("call_1"),))))
        else:
            self.stream(run("requires_action", *(calls or (call("call_1"),))))

    def submit(self, *calls: ToolCall) -> None:
        """Come to the first submission."""
        self.act(*calls)
        for asked in self.machine.open_calls:
            self.finish_tool(asked.id)

    def successor(
        self, *, open_calls: tuple[str, ...] = (), in_flight: tuple[int, ...] = (), unwanted: bool = False
    ) -> Story:
        """The actor dies; a new one goes on from the last record."""
        resumed = told.Resumed(
            in_flight=frozenset(in_flight), open_calls=frozenset(open_calls), unwanted=unwanted
        )
        return Story(self.all(fx.Record)[-1].record, resumed=resumed, now=self.now)

    # What it wanted.

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def last(self, kind: type[E]) -> E:
        return self.all(kind)[-1]

    @property
    def requests(self) -> list[fx.RequestEffect]:
        return [effect for effect in self.effects if isinstance(effect, REQUESTS)]

    @property
    def sent(self) -> list[str]:
        """The names of the requests that were sent."""
        return [type(effect).__name__ for effect in self.requests]

    @property
    def last_request(self) -> fx.RequestEffect:
        return self.requests[-1]

    @property
    def stream_number(self) -> int:
        sent = (fx.CreateRun, fx.SubmitToolOutputs)
        return [effect for effect in self.requests if isinstance(effect, sent)][-1].number

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    @property
    def shown(self) -> list[str]:
        """The names of the published events."""
        return [event.event for published in self.all(fx.Publish) for event in published.events]

    @property
    def notices(self) -> list[Notice]:
        shown = (event for published in self.all(fx.Publish) for event in published.events)
        return [event for event in shown if isinstance(event, Notice)]

    @property
    def result(self) -> RunResult:
        (finish,) = self.all(fx.Finish)
        assert finish.result is not None, finish.error
        return finish.result

    @property
    def error(self) -> OrchestratorError:
        (finish,) = self.all(fx.Finish)
        assert finish.error is not None, finish.result
        return finish.error
