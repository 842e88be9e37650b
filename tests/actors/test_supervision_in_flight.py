"""What a successor is told of the requests and tool calls that its predecessor left under way."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from stage import PATIENCE_S, our_threads, wait_until

from orchestrator import ServerLimits, ToolContext, ToolRegistry
from orchestrator.client.settings import Account
from orchestrator.errors import APIConnectionError
from orchestrator.protocol.objects import FunctionCall, ToolCall
from orchestrator.runs.effects import ListRuns, RequestEffect, RetrieveRun, StartTools
from orchestrator.runs.inputs import (
    CancelRequested,
    Input,
    RequestFailed,
    Resumed,
    RunsListed,
    Started,
    ToolFinished,
    ToolNoticed,
)
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import ToolCallResult
from orchestrator.runtime import acquire
from orchestrator.supervision.draining import Draining
from orchestrator.supervision.gate import Gates
from orchestrator.supervision.in_flight import InFlight
from orchestrator.tools import Approvals, ToolExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.runs.backend import Report

T = TypeVar("T")

CALL = ToolCall(id="call_1", function=FunctionCall(name="fetch", arguments="{}"))
LISTING = ListRuns(number=1, thread_id="thread_1")


class Answering:
    """A backend that answers listings at once, fails at everything else and breaks its promise there."""

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        if not isinstance(effect, ListRuns):
            raise ZeroDivisionError("a backend must not do this")
        report(RunsListed(number=effect.number, runs=()))


class Home:
    """An `InFlight` on the actors' loop, used from the test's thread; and what its conductor was told."""

    def __init__(self) -> None:
        self.thread = acquire()
        self.executor = ToolExecutor()
        self.told: list[Input] = []
        self.calls = 0
        self.news = threading.Semaphore(0)
        self.in_flight = InFlight(
            key="mine",
            backend=Answering(),
            gate=Gates(ServerLimits(), self.thread).of(Account(server="http://nowhere", digest="")),
            draining=Draining(self.thread),
            executor=self.executor,
            approvals=Approvals(),
            registry=ToolRegistry([self.fetch, self.work]),
            context=None,
            contextvars_context=contextvars.copy_context(),
            loop_thread=self.thread,
            may_act=lambda: True,
        )

    def fetch(self) -> str:
        self.calls += 1
        return "it"

    def work(self, context: ToolContext) -> str:
        context.progress("half of it", 0.5)
        return "done"

    def do(self, what: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call something on the loop, and let what it set off there happen."""

        async def calling() -> T:
            result = what(*args, **options)
            for _ in range(5):
                await asyncio.sleep(0)
            return result

        return asyncio.run_coroutine_threadsafe(calling(), self.thread.loop).result(PATIENCE_S)

    def attach(self, record: RunRecord) -> list[Input]:
        """Have a conductor take over that handles what it is told at once."""
        self.told = []
        self.do(self.in_flight.attach, self.tell, record)
        return self.told

    def tell(self, *inputs: Input) -> None:
        self.told.extend(inputs)
        self.news.release()

    def start_tools(self, round_number: int, call: ToolCall = CALL) -> None:
        effect = StartTools(round=round_number, calls=(call,), bound_s=None)
        self.do(self.in_flight.start_tools, effect, run_id="run_1", thread_id="thread_1")

    def wait_for_outcome(self) -> None:
        while not any(isinstance(input_, ToolFinished) for input_ in self.told):
            assert self.news.acquire(timeout=PATIENCE_S)


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.do(home.in_flight.close)
    home.executor.close()
    home.thread.release()
    assert our_threads() == []


def record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {"thread_id": "thread_1", "run_id": "run_1", "phase": Phase.WATCHING}
    request = RunRequest(assistant_id="asst_1")
    return RunRecord(key="mine", nonce="n", request=request, deadline_at=1e9, **(fields | changes))


def recorded(round_number: int) -> ToolCallResult:
    return ToolCallResult(round=round_number, call_id="call_1", name="fetch", arguments="{}", output="it")


def test_the_first_conductor_is_told_that_nothing_is_under_way(home: Home) -> None:
    assert home.attach(record()) == [Resumed()]


def test_an_answer_that_came_to_nobody_is_told_with_its_number(home: Home) -> None:
    home.do(home.in_flight.send, LISTING)
    assert home.attach(record()) == [Resumed(in_flight=frozenset({1})), RunsListed(number=1, runs=())]


def test_an_answer_is_told_to_every_conductor_until_one_takes_it(home: Home) -> None:
    home.attach(record())
    home.do(home.in_flight.send, LISTING)
    answer = home.told[-1]
    home.do(home.in_flight.detach)
    assert home.attach(record())[-1] is answer
    home.in_flight.take(answer)
    home.do(home.in_flight.detach)
    assert home.attach(record()) == [Resumed()]


def test_a_word_of_the_users_is_told_to_every_conductor_once_each(home: Home) -> None:
    home.attach(record())
    for _ in range(3):
        home.do(home.in_flight.say, CancelRequested())
    home.do(home.in_flight.detach)
    assert home.attach(record()) == [Resumed(unwanted=True), CancelRequested()]


def test_a_wish_for_the_end_is_told_in_place_of_an_admission_that_came_first(home: Home) -> None:
    home.do(home.in_flight.say, Started())
    home.do(home.in_flight.say, CancelRequested())
    told = home.attach(record(phase=Phase.ADMITTED))
    assert told == [Resumed(unwanted=True), CancelRequested()]


def test_an_admission_that_comes_after_a_wish_for_the_end_is_not_told(home: Home) -> None:
    home.do(home.in_flight.say, CancelRequested())
    assert home.attach(record(phase=Phase.ADMITTED)) == [Resumed(unwanted=True), CancelRequested()]
    home.do(home.in_flight.say, Started())
    assert home.told[-1] == CancelRequested()


def test_admission_is_told_again_only_where_the_record_still_waits_for_it(home: Home) -> None:
    home.do(home.in_flight.say, Started())
    assert home.attach(record(phase=Phase.ADMITTED)) == [Resumed(), Started()]
    home.do(home.in_flight.detach)
    assert home.attach(record(phase=Phase.CREATING)) == [Resumed()]


def test_an_outcome_is_told_until_it_is_in_the_record_taken_or_not(home: Home) -> None:
    acting = record(phase=Phase.ACTING, round=1, calls=(CALL,))
    home.attach(acting)
    home.start_tools(1)
    home.wait_for_outcome()
    home.in_flight.take(home.told[-1])
    home.do(home.in_flight.detach)
    resumed, outcome = home.attach(acting)
    assert resumed == Resumed(open_calls=frozenset({"call_1"}))
    assert isinstance(outcome, ToolFinished)
    home.do(home.in_flight.detach)
    assert home.attach(record(phase=Phase.ACTING, round=1, calls=(CALL,), results=(recorded(1),))) == [
        Resumed()
    ]
    assert home.calls == 1


def test_what_a_call_said_while_nobody_conducted_the_run_is_told_before_its_outcome(home: Home) -> None:
    call = ToolCall(id="call_1", function=FunctionCall(name="work", arguments="{}"))
    acting = record(phase=Phase.ACTING, round=1, calls=(call,))

    def attach_again() -> list[type[Input]]:
        home.do(home.in_flight.detach)
        return [type(input_) for input_ in home.attach(acting)]

    home.start_tools(1, call)
    wait_until(lambda: ToolFinished in attach_again())
    assert attach_again() == [Resumed, ToolNoticed, ToolFinished]


def test_a_call_of_the_last_round_does_not_stand_for_one_of_the_same_id_in_this(home: Home) -> None:
    home.attach(record(phase=Phase.ACTING, round=1, calls=(CALL,)))
    home.start_tools(1)
    home.wait_for_outcome()
    home.do(home.in_flight.detach)
    # Recorded, but the actor died before it started the calls.
    second = record(phase=Phase.ACTING, round=2, calls=(CALL,), results=(recorded(1),))
    assert home.attach(second) == [Resumed()]
    home.start_tools(2)
    home.wait_for_outcome()
    assert home.calls == 2


def test_a_backend_that_breaks_its_promise_is_a_failed_request(home: Home) -> None:
    home.attach(record())
    home.do(home.in_flight.send, RetrieveRun(number=7, thread_id="thread_1", run_id="run_1"))
    failed = home.told[-1]
    assert isinstance(failed, RequestFailed)
    assert failed.number == 7
    assert not isinstance(failed.error, APIConnectionError)
    assert "ZeroDivisionError: a backend must not do this" in str(failed.error)


def test_nothing_begins_and_nobody_is_told_once_it_is_closed(home: Home) -> None:
    home.attach(record())
    home.do(home.in_flight.close)
    home.do(home.in_flight.send, LISTING)
    home.start_tools(1)
    assert home.told == [Resumed()]
    assert home.attach(record()) == []
    assert home.calls == 0
