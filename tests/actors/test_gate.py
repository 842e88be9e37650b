"""Who goes first at a server, who wakes whom, and that nobody stays behind; and streams that are read on."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from stage import PATIENCE_S, our_threads, wait_until

from orchestrator import BreakerPolicy, ServerLimits, ToolRegistry
from orchestrator.client import AsyncThreadsClient
from orchestrator.errors import APIConnectionError, BadRequestError, InternalServerError
from orchestrator.protocol.objects import Run
from orchestrator.runs.effects import (
    CancelRun,
    CreateRun,
    CreateThread,
    FetchTranscript,
    ListRuns,
    RequestEffect,
    RetrieveRun,
    SubmitToolOutputs,
)
from orchestrator.runs.inputs import Input, RequestFailed, RunObserved
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import Notice
from orchestrator.runtime import acquire
from orchestrator.supervision.draining import Draining
from orchestrator.supervision.gate import Gate, Gates
from orchestrator.supervision.in_flight import InFlight
from orchestrator.tools import Approvals, ToolExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from orchestrator.client.settings import Account
    from orchestrator.errors import APIError
    from orchestrator.runs.backend import Report
    from orchestrator.runtime import LoopThread
    from orchestrator.supervision.gate import Ticket

IDS = {"thread_id": "thread_1", "run_id": "run_1"}
LOOK = RetrieveRun(number=1, thread_id="thread_1", run_id="run_1")
CANCEL = CancelRun(number=2, **IDS)
LISTING = ListRuns(number=3, thread_id="thread_1")
THREAD = CreateThread(number=4, nonce="n")
TRANSCRIPT = FetchTranscript(number=5, **IDS)
OUTPUTS = SubmitToolOutputs(number=6, outputs=(), stream=True, **IDS)
CREATE = CreateRun(
    number=7,
    thread_id="thread_1",
    assistant_id="asst_1",
    nonce="n",
    messages=(),
    options={},
    metadata={},
    stream=True,
)
QUICK = ServerLimits(breaker=BreakerPolicy(failures=2, open_s=0.02, cap_s=0.04))
LOST = APIConnectionError("gone", method="GET", path="/", sent=True)
BROKEN = InternalServerError("oops", method="GET", path="/", status=500, headers={})
REFUSED = BadRequestError("no", method="GET", path="/", status=400, headers={})


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = acquire()
    yield thread
    thread.release()
    assert our_threads() == []


def account(key: str = "k", **options: Any) -> Account:
    return AsyncThreadsClient("http://127.0.0.1:1/v1", api_key=key, **options).account


def played(
    loop_thread: LoopThread, story: Callable[[Gate], Coroutine[Any, Any, None]], limits: ServerLimits
) -> None:
    """Play a story at a gate, on the actors' loop; nobody may be left at it."""
    gate = Gates(limits, loop_thread).of(account())

    async def playing() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await story(gate)

    asyncio.run_coroutine_threadsafe(playing(), loop_thread.loop).result(PATIENCE_S)
    assert not any(gate._waiting.values())
    assert gate._timer is None


def fail(gate: Gate, *errors: APIError) -> None:
    for error in errors:
        ticket = gate.ask(CANCEL)
        ticket.fail(error)
        ticket.leave()


async def passing(name: str, ticket: Ticket, passed: list[str]) -> None:
    await ticket.passed()
    passed.append(name)


def test_what_is_more_urgent_goes_first_and_what_is_equally_urgent_in_turn(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        passed: list[str] = []
        gate.hear(429, {"retry-after-ms": "30"})
        effects: list[RequestEffect] = [LOOK, CREATE, TRANSCRIPT, THREAD, OUTPUTS, LISTING, LOOK, CANCEL]
        tickets = [gate.ask(effect) for effect in effects]
        assert [ticket.held_by for ticket in tickets] == ["limiter"] * 7 + [None]
        names = [f"{type(effect).__name__}{turn}" for turn, effect in enumerate(effects)]
        waiting = [passing(name, ticket, passed) for name, ticket in zip(names, tickets, strict=True)]
        async with asyncio.TaskGroup() as group:
            for one in waiting:
                group.create_task(one)
        # A refusal slows creates, too, so that those come last here.
        most_urgent = ["CancelRun7", "FetchTranscript2", "SubmitToolOutputs4", "ListRuns5"]
        assert passed[:4] == most_urgent
        assert [name for name in passed if "Create" in name] == ["CreateRun1", "CreateThread3"]
        assert [name for name in passed if "Retrieve" in name] == ["RetrieveRun0", "RetrieveRun6"]

    played(loop_thread, story, ServerLimits())


def test_a_look_that_a_runs_end_hangs_on_goes_before_the_polls_that_wait_already(
    loop_thread: LoopThread,
) -> None:
    async def story(gate: Gate) -> None:
        passed: list[str] = []
        polls = [gate.ask(LOOK) for _ in range(4)]
        urgent = gate.ask(replace(LOOK, number=9, urgent=True))
        async with asyncio.TaskGroup() as group:
            for number, poll in enumerate(polls):
                group.create_task(passing(f"poll{number}", poll, passed))
            group.create_task(passing("urgent", urgent, passed))
        assert passed == ["poll0", "urgent", "poll1", "poll2", "poll3"]

    played(loop_thread, story, ServerLimits(polls_per_s=10))


def test_one_probe_goes_and_the_others_go_with_its_success(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        fail(gate, LOST, BROKEN)
        tickets = [gate.ask(LISTING) for _ in range(3)]
        assert [ticket.held_by for ticket in tickets] == ["server"] * 3
        await tickets[0].passed()
        assert [ticket.held_by for ticket in tickets] == [None, "server", "server"]
        gate.hear(404, {})
        for ticket in tickets[1:]:
            await ticket.passed()

    played(loop_thread, story, QUICK)


def test_those_who_waited_fail_with_the_probe_each_with_an_error_of_its_own(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        fail(gate, LOST, LOST)
        tickets = [gate.ask(LISTING), gate.ask(OUTPUTS), gate.ask(LOOK)]
        await tickets[0].passed()
        tickets[0].fail(BROKEN)
        errors = []
        for ticket in tickets[1:]:
            with pytest.raises(APIConnectionError, match="is open after 3 failures in a row") as failed:
                await ticket.passed()
            errors.append(failed.value)
        assert errors[0] is not errors[1]
        assert "the last of them InternalServerError" in str(errors[0])
        assert "SubmitToolOutputs" in str(errors[0])
        assert not errors[0].sent

    played(loop_thread, story, QUICK)


def test_a_refusal_is_an_answer_and_no_failure(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        fail(gate, LOST, REFUSED, LOST, REFUSED, BROKEN)
        assert gate.ask(LISTING).held_by is None

    played(loop_thread, story, QUICK)


def test_a_probe_that_is_given_up_is_handed_on_to_the_next_in_turn(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        fail(gate, LOST, LOST)
        first, second, third = (gate.ask(LISTING) for _ in range(3))
        await first.passed()
        first.leave()
        await second.passed()
        second.withdraw()  # it has left
        assert third.held_by == "server"
        second.leave()
        await third.passed()

    played(loop_thread, story, QUICK)


def test_a_waiting_request_that_is_cancelled_or_withdrawn_leaves_nothing_at_the_gate(
    loop_thread: LoopThread,
) -> None:
    async def story(gate: Gate) -> None:
        fail(gate, LOST, LOST)
        cancelled, withdrawn, third = (gate.ask(LISTING) for _ in range(3))
        task = asyncio.create_task(cancelled.passed())
        task.add_done_callback(lambda _: cancelled.leave())
        await asyncio.sleep(0)
        task.cancel()
        withdrawn.withdraw()
        with pytest.raises(APIConnectionError, match="withdrawn before it was sent") as failed:
            await withdrawn.passed()
        assert not failed.value.sent
        await third.passed()
        assert gate._breaker.is_open

    played(loop_thread, story, QUICK)


def test_a_request_can_be_withdrawn_as_long_as_its_task_has_not_begun(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        ticket = gate.ask(CREATE)
        assert ticket.held_by is None
        ticket.withdraw()
        with pytest.raises(APIConnectionError, match="withdrawn"):
            await ticket.passed()

    played(loop_thread, story, QUICK)


def test_a_gate_is_shared_by_server_and_key_and_shows_no_key(loop_thread: LoopThread) -> None:
    def provider() -> str:
        return "token"

    gates = Gates(ServerLimits(), loop_thread)
    mine = gates.of(account("sk-secret"))
    assert gates.of(account("sk-secret")) is mine
    others = [
        account("sk-other"),
        account("sk-secret", organization="org"),
        account("sk-secret", project="proj"),
        account("sk-secret", headers={"authorization": "Bearer sk-third"}),
        AsyncThreadsClient("http://127.0.0.1:2/v1", api_key="sk-secret").account,
        account(provider),  # type: ignore[arg-type]
    ]
    assert len({mine, *map(gates.of, others)}) == 7
    assert gates.of(account(provider)) is gates.of(others[-1])  # type: ignore[arg-type]
    for shown in (repr(mine), repr(others), repr(list(gates._last))):
        assert "sk-" not in shown


def test_a_gate_that_a_run_uses_is_kept_and_of_the_others_only_the_last(loop_thread: LoopThread) -> None:
    gates = Gates(ServerLimits(), loop_thread)
    used = gates.of(account("used"))
    for turn in range(200):
        gates.of(account(f"key-{turn}"))
    gc.collect()
    assert gates.of(account("used")) is used
    assert len(gates._used) <= 65


class Resting:
    """A backend whose stream shows the run in a status, and then says no more until it is let go."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.shown = threading.Event()
        self.closed = threading.Event()
        self.goes_on: asyncio.Event | None = None
        self.ended = False

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        self.goes_on = asyncio.Event()
        run = Run(id="run_1", thread_id="thread_1", status=self.status)
        event = Notice(event="run.gap", run_id="run_1", detail="any")
        report(RunObserved(number=effect.number, run=run, event=event))  # type: ignore[arg-type]
        self.shown.set()
        try:
            await self.goes_on.wait()
            self.ended = True
            report(RequestFailed(number=effect.number, error=LOST))
        finally:
            self.closed.set()


class Streaming:
    """A run with one stream open, and what its conductor was told."""

    def __init__(self, loop_thread: LoopThread, status: str) -> None:
        self.backend = Resting(status)
        self.told: list[Input] = []
        self.draining = Draining(loop_thread)
        self.executor = ToolExecutor()
        self._loop_thread = loop_thread
        self.in_flight = InFlight(
            key="mine",
            backend=self.backend,
            gate=Gates(ServerLimits(), loop_thread).of(account()),
            draining=self.draining,
            executor=self.executor,
            approvals=Approvals(),
            registry=ToolRegistry([]),
            context=None,
            contextvars_context=contextvars.copy_context(),
            loop_thread=loop_thread,
            may_act=lambda: True,
        )
        request = RunRequest(assistant_id="asst_1")
        record = RunRecord(key="mine", nonce="n", request=request, deadline_at=1e9, phase=Phase.WATCHING)
        self.do(self.in_flight.attach, self.told.append, record)
        self.do(self.in_flight.send, OUTPUTS)
        assert self.backend.shown.wait(PATIENCE_S)
        self.told.clear()

    def do(self, what: Callable[..., object], *args: Any) -> None:
        async def doing() -> None:
            result = what(*args)
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(doing(), self._loop_thread.loop).result(PATIENCE_S)

    def go_on(self) -> None:
        assert self.backend.goes_on is not None
        self.do(self.backend.goes_on.set)


@pytest.mark.parametrize("status", ["completed", "cancelled"])
@pytest.mark.parametrize("closing", ["run", "stream"])
def test_a_stream_that_showed_the_end_is_read_on_and_nothing_more_is_told_of_it(
    loop_thread: LoopThread, status: str, closing: str
) -> None:
    streaming = Streaming(loop_thread, status)
    if closing == "run":
        streaming.do(streaming.in_flight.close)
    else:
        streaming.do(streaming.in_flight.close_stream, OUTPUTS.number)
    streaming.go_on()
    assert streaming.backend.closed.wait(PATIENCE_S)
    assert streaming.backend.ended
    assert streaming.told == []
    wait_until(lambda: not streaming.draining._tasks)


def test_a_stream_in_the_middle_is_closed_at_once(loop_thread: LoopThread) -> None:
    streaming = Streaming(loop_thread, "in_progress")
    streaming.do(streaming.in_flight.close_stream, OUTPUTS.number)
    assert streaming.backend.closed.wait(0.5)
    assert not streaming.backend.ended


def test_a_run_that_ends_leaves_the_gate_with_the_requests_that_had_not_begun(
    loop_thread: LoopThread,
) -> None:
    streaming = Streaming(loop_thread, "in_progress")
    gate = streaming.in_flight._gate

    def story() -> None:
        gate.hear(429, {"retry-after": "100"})
        streaming.in_flight.send(CREATE)
        assert streaming.in_flight.held_by == "limiter"
        streaming.in_flight.close()  # before the request's task has taken its first step

    streaming.do(story)
    wait_until(lambda: not any(gate._waiting.values()))
    assert gate._timer is None
    assert streaming.told == []


def test_a_stream_that_never_ends_is_closed_after_a_second(loop_thread: LoopThread) -> None:
    streaming = Streaming(loop_thread, "completed")
    streaming.do(streaming.in_flight.close)
    assert not streaming.backend.closed.wait(0.5)
    assert streaming.backend.closed.wait(PATIENCE_S)
    assert not streaming.backend.ended


def test_closing_the_orchestrator_waits_for_no_stream(loop_thread: LoopThread) -> None:
    streaming = Streaming(loop_thread, "completed")
    streaming.do(streaming.in_flight.close)
    streaming.do(streaming.draining.aclose)
    assert streaming.backend.closed.is_set()
    assert not streaming.backend.ended


def test_what_no_run_waits_for_goes_last_and_tries_no_server_that_fails(loop_thread: LoopThread) -> None:
    async def story(gate: Gate) -> None:
        passed: list[str] = []
        fail(gate, LOST, LOST)
        aside = gate.ask_aside("GetAssistant")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(passing("aside", aside, passed))
            # Longer than the breaker is open.
            await asyncio.wait({waiting}, timeout=0.1)
            assert (passed, aside.held_by) == ([], "server")
            look = gate.ask(LOOK)
            await passing("look", look, passed)
            gate.hear(200, {})
        assert passed == ["look", "aside"]
        for ticket in (aside, look):
            ticket.leave()

    played(loop_thread, story, QUICK)


def test_what_no_run_waits_for_comes_after_the_polls_and_takes_of_their_budget(
    loop_thread: LoopThread,
) -> None:
    async def story(gate: Gate) -> None:
        passed: list[str] = []
        tickets = [gate.ask(LOOK), gate.ask_aside("GetAssistant"), gate.ask(LOOK)]
        assert [ticket.held_by for ticket in tickets] == [None, "limiter", "limiter"]
        async with asyncio.TaskGroup() as group:
            for name, ticket in zip(("first", "aside", "second"), tickets, strict=True):
                group.create_task(passing(name, ticket, passed))
        assert passed == ["first", "second", "aside"]

    played(loop_thread, story, ServerLimits(polls_per_s=10))
