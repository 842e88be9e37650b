"""What a tool may ask for: to be run again, not too often at once, elsewhere, or to end its run."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import remote_tools
from calls import PATIENCE_S, Calls, called, wait_until

from orchestrator import Retry, ToolContext, ToolError, ToolRegistry, tool
from orchestrator.tools.approval import Decision
from orchestrator.tools.limits import ConcurrencyLimits
from orchestrator.tools.progress import INTERVAL_S
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.tools import Tool, ToolOutcome


@pytest.fixture
def calls() -> Iterator[Calls]:
    with called() as made:
        yield made


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def of_kind(asynchronous: bool, function: Callable[[ToolContext], Any], **options: Any) -> Tool[..., Any]:
    """The same tool as a plain function or an `async def`."""

    async def work_async(context: ToolContext) -> Any:
        return function(context)

    def work(context: ToolContext) -> Any:
        return function(context)

    return tool(name="work", **options)(work_async if asynchronous else work)


def kind_of(outcome: ToolOutcome) -> str | None:
    return None if outcome.error is None else outcome.error.kind


# Running again


class Failing:
    """Raises as often as it is told to, then returns."""

    def __init__(self, times: int, error: Callable[[], BaseException]) -> None:
        self.times = times
        self.error = error
        self.attempts: list[int] = []

    def __call__(self, context: ToolContext) -> str:
        self.attempts.append(context.attempt)
        if len(self.attempts) <= self.times:
            raise self.error()
        return "done"


@both
def test_a_function_that_raises_is_run_again_as_often_as_its_retries_say(
    calls: Calls, asynchronous: bool
) -> None:
    failing = Failing(2, lambda: ValueError("not yet"))
    outcome = calls.run(of_kind(asynchronous, failing, retries=2))
    assert (outcome.output, outcome.error, outcome.attempts) == ("done", None, 3)
    assert failing.attempts == [1, 2, 3]


@both
def test_when_no_retry_is_left_the_last_exception_is_reported(calls: Calls, asynchronous: bool) -> None:
    failing = Failing(9, lambda: ValueError(f"time {len(failing.attempts)}"))
    outcome = calls.run(of_kind(asynchronous, failing, retries=1))
    assert json.loads(outcome.output) == {"error": {"type": "ValueError", "message": "time 2"}}
    assert (kind_of(outcome), outcome.attempts) == ("raised", 2)


@both
def test_by_default_only_retry_runs_a_function_again_and_three_times_at_most(
    calls: Calls, asynchronous: bool
) -> None:
    once = Failing(9, lambda: ValueError("no"))
    assert (kind_of(calls.run(of_kind(asynchronous, once))), once.attempts) == ("raised", [1])
    asking = Failing(9, lambda: Retry("the stock is being counted", after_s=0))
    outcome = calls.run(of_kind(asynchronous, asking))
    assert asking.attempts == [1, 2, 3, 4]
    assert json.loads(outcome.output)["error"] == {"type": "Retry", "message": "the stock is being counted"}
    never = Failing(9, lambda: Retry("please"))
    assert calls.run(of_kind(asynchronous, never, retries=0)).attempts == 1


@pytest.mark.parametrize(
    "error",
    [ToolError("for the model"), SystemExit(1), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
@both
def test_what_speaks_to_the_model_or_wants_the_thread_to_end_is_not_run_again(
    calls: Calls, error: BaseException, asynchronous: bool
) -> None:
    failing = Failing(9, lambda: error)
    assert calls.run(of_kind(asynchronous, failing, retries=5)).attempts == 1


def test_neither_wrong_arguments_nor_a_result_without_json_form_run_a_function_again(calls: Calls) -> None:
    ran = []

    @tool(retries=5)
    def give(number: int) -> bytes:
        ran.append(number)
        return b"\x00"

    assert kind_of(calls.run(give, {"number": "many"})) == "invalid_arguments"
    assert kind_of(calls.run(give, {"number": 1})) == "raised"
    assert ran == [1]


def test_the_pause_before_another_execution_holds_no_thread_and_is_the_tools_to_say() -> None:
    with called(threads=1) as calls:
        failing = Failing(1, lambda: Retry("later", after_s=0.3))
        begun = time.monotonic()
        calls.start(of_kind(False, failing))
        wait_until(lambda: failing.attempts == [1])
        assert calls.run(lambda_tool("other")).output == "other"
        assert calls.next().attempts == 2
        assert time.monotonic() - begun >= 0.3


def lambda_tool(name: str, **options: Any) -> Tool[..., Any]:
    def give() -> str:
        return name

    return tool(name=name, **options)(give)


def test_a_pause_that_would_outlast_the_deadline_is_not_begun(calls: Calls) -> None:
    failing = Failing(9, lambda: Retry("much later", after_s=60))
    begun = time.monotonic()
    outcome = calls.run(of_kind(False, failing, timeout_s=20))
    assert (kind_of(outcome), failing.attempts) == ("raised", [1])
    assert time.monotonic() - begun < PATIENCE_S


def test_one_timeout_covers_all_executions(calls: Calls) -> None:
    failing = Failing(10_000, lambda: Retry("again", after_s=0.01))
    outcome = calls.run(of_kind(False, failing, timeout_s=0.2, retries=10_000))
    assert kind_of(outcome) in ("timeout", "raised")
    assert 1 < outcome.attempts < 100
    assert outcome.duration_s < 5


@both
def test_a_call_that_is_cancelled_between_two_executions_is_not_run_again(
    calls: Calls, asynchronous: bool
) -> None:
    failing = Failing(9, lambda: Retry("later", after_s=0.2))
    execution = calls.start(of_kind(asynchronous, failing))
    wait_until(lambda: failing.attempts == [1] and not execution.running)
    execution.cancel()
    assert kind_of(calls.next()) == "cancelled"
    assert calls.executor.close(PATIENCE_S) == []  # whatever was to come has come
    assert failing.attempts == [1]


def test_a_call_that_was_cancelled_in_its_pause_does_not_queue_for_its_tool(calls: Calls) -> None:
    free, entered, attempts = threading.Event(), threading.Event(), []

    @tool(max_concurrency=1)
    def work(first: bool) -> None:
        if first:
            attempts.append(1)
            raise Retry("later", after_s=30)
        entered.set()
        assert free.wait(PATIENCE_S)

    paused = calls.start(work, {"first": True})
    wait_until(lambda: attempts == [1] and not paused.running)
    calls.start(work, {"first": False})
    assert entered.wait(PATIENCE_S)
    paused.cancel()
    assert kind_of(calls.next()) == "cancelled"
    paused._proceed(here=False)  # as when the pause is over
    assert [len(places.waiting) for places in places_of(calls)] == [0]
    free.set()
    assert calls.next().error is None


# How many at once


class Busy:
    """Counts who is inside, and lets them out one by one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = 0
        self.order: list[str] = []
        self.out = threading.Semaphore(0)

    def enter(self, name: str) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(name)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1


@both
def test_no_more_calls_of_a_tool_run_at_once_than_it_allows_and_the_others_hold_nothing(
    calls: Calls, asynchronous: bool
) -> None:
    busy = Busy()

    def work(name: str) -> str:
        busy.enter(name)
        assert busy.out.acquire(timeout=PATIENCE_S)
        busy.leave()
        return name

    async def work_async(name: str) -> str:
        busy.enter(name)
        assert await asyncio.to_thread(busy.out.acquire, timeout=PATIENCE_S)
        busy.leave()
        return name

    limited = tool(name="work", max_concurrency=2)(work_async if asynchronous else work)
    names = [f"n{number}" for number in range(8)]
    for name in names:
        calls.start(limited, {"name": name})
    wait_until(lambda: busy.inside == 2)
    assert calls.run(lambda_tool("other")).output == "other"
    for _ in names:
        busy.out.release()
    assert {calls.next().output for _ in names} == set(names)
    assert busy.most == 2
    assert sorted(busy.order) == names


def test_the_places_of_two_objects_methods_are_their_own_and_are_shared_by_runs(calls: Calls) -> None:
    busy = Busy()

    class Desk:
        @tool(max_concurrency=1)
        def book(self) -> str:
            busy.enter("x")
            assert busy.out.acquire(timeout=PATIENCE_S)
            busy.leave()
            return "booked"

    one, other = Desk(), Desk()
    for desk in (one, one, other, other):
        calls.start(desk.book)  # a tool made anew for each call
    wait_until(lambda: busy.inside == 2)
    for _ in range(4):
        busy.out.release()
    assert [calls.next().output for _ in range(4)] == ["booked"] * 4
    assert busy.most == 2


def places_of(calls: Calls) -> list[Any]:
    return list(calls.executor._workplace.limits._places.values())


def test_places_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    limits, order = ConcurrencyLimits(), list[int]()
    limited = lambda_tool("work", max_concurrency=1)
    assert limits.enter(limited, partial(order.append, 0))
    for number in range(1, 6):
        assert not limits.enter(limited, partial(order.append, number))
    for _ in range(6):
        limits.leave(limited)
    assert order == [1, 2, 3, 4, 5]
    assert limits._places == {}


def test_a_call_that_is_cancelled_between_its_place_and_its_thread_gives_the_place_back() -> None:
    with called(threads=1) as calls:
        free = threading.Event()

        def hold() -> None:
            assert free.wait(PATIENCE_S)

        limited = lambda_tool("work", max_concurrency=1, approval=True)
        waiting = calls.start(limited)
        assert calls.notice().kind == "approval_asked"
        calls.start(hold)  # has the only thread
        calls.approvals.decide("call_1", Decision(approved=True))
        assert [places.taken for places in places_of(calls)] == [1]
        waiting.cancel()
        assert kind_of(calls.next()) == "cancelled"
        assert places_of(calls) == []
        free.set()
        assert calls.next().name == "hold"
        assert calls.notice().kind == "approved"


@both
def test_a_call_that_waits_for_its_place_is_answered_in_time_and_says_what_it_waited_for(
    calls: Calls, asynchronous: bool
) -> None:
    free = threading.Event()

    def hold(context: ToolContext) -> None:
        assert free.wait(PATIENCE_S)

    limited = of_kind(False, hold, max_concurrency=1)
    if asynchronous:

        async def hold_async() -> None:
            assert await asyncio.to_thread(free.wait, PATIENCE_S)

        limited = tool(name="work", max_concurrency=1)(hold_async)
    calls.start(limited)
    outcome = calls.run(limited, timeout_s=0.05)
    assert outcome.error is not None
    assert outcome.error.message == (
        "not begun within 0.05 seconds: no more than 1 calls of this tool run at once"
    )
    cancelled = calls.start(limited)
    wait_until(lambda: sum(len(places.waiting) for places in places_of(calls)) == 1)
    cancelled.cancel()
    assert kind_of(calls.next()) == "cancelled"
    assert [len(places.waiting) for places in places_of(calls)] == [0]
    free.set()
    assert calls.next().error is None


def test_a_place_is_free_again_only_when_the_function_has_returned(calls: Calls) -> None:
    free, entered = threading.Event(), threading.Semaphore(0)

    @tool(max_concurrency=1, timeout_s=0.05)
    def hold() -> None:
        entered.release()
        assert free.wait(PATIENCE_S)

    calls.start(hold)
    assert entered.acquire(timeout=PATIENCE_S)
    calls.start(hold)
    assert kind_of(calls.next()) == "timeout"
    assert not entered.acquire(blocking=False)
    free.set()
    assert calls.next().error is None


# Threads that are stuck


def test_a_stuck_thread_is_replaced_and_counted_until_it_returns() -> None:
    with called(threads=2) as calls:
        free = threading.Event()

        @tool(timeout_s=0.02)
        def hang() -> None:
            assert free.wait(PATIENCE_S)

        for _ in range(2):
            calls.start(hang)
        assert [kind_of(calls.next()) for _ in range(2)] == ["timeout", "timeout"]
        assert calls.executor.stuck_threads == 2
        assert [calls.run(lambda_tool("other")).output for _ in range(3)] == ["other"] * 3
        # Those that replace them may get stuck as well; no further ones are added.
        for _ in range(2):
            calls.start(hang)
        assert [kind_of(calls.next()) for _ in range(2)] == ["timeout", "timeout"]
        assert calls.executor.stuck_threads == 4
        outcome = calls.run(lambda_tool("other"), timeout_s=0.05)
        assert outcome.error is not None
        assert outcome.error.message == "not begun within 0.05 seconds: every thread was busy"
        free.set()
        wait_until(lambda: calls.executor.stuck_threads == 0)
        assert [calls.run(lambda_tool("other")).output for _ in range(3)] == ["other"] * 3
        wait_until(lambda: len(calls.executor._pool._threads) == 2)


def test_a_pool_does_every_job_once_whatever_is_abandoned_meanwhile() -> None:
    pool = ThreadPool(3, "orchestrator-tool")
    done: list[int] = []
    abandoned = []
    for number in range(600):
        job = pool.submit(partial(done.append, number))
        if number % 3 == 0:
            threading.Thread(target=job.abandon).start()
            abandoned.append(number)
    pool.close(PATIENCE_S)
    assert len(done) == len(set(done))
    assert set(range(600)) - set(done) <= set(abandoned)
    assert (pool.stuck, len(pool._threads)) == (0, 0)


# Elsewhere


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[None]:
    yield
    remote_tools.processes().shutdown()


@pytest.mark.usefixtures("elsewhere")
def test_a_tool_with_an_executor_runs_in_another_process(calls: Calls) -> None:
    outcomes = [calls.run(remote_tools.process_of, {"number": number}) for number in (1, 2)]
    answers = [json.loads(outcome.output) for outcome in outcomes]
    assert [answer["number"] for answer in answers] == [1, 2]
    assert os.getpid() not in {answer["pid"] for answer in answers}
    raised = json.loads(calls.run(remote_tools.Square(3).raised, {"number": 2}).output)
    assert (raised["result"], raised["pid"] == os.getpid()) == (8, False)


@pytest.mark.usefixtures("elsewhere")
def test_what_is_raised_there_is_told_as_if_it_were_raised_here(calls: Calls) -> None:
    outcome = calls.run(remote_tools.divide, {"number": 0})
    assert json.loads(outcome.output)["error"] == {"type": "ZeroDivisionError", "message": "division by zero"}
    invalid = calls.run(remote_tools.divide, {"number": "none"})
    assert kind_of(invalid) == "invalid_arguments"


@pytest.mark.usefixtures("elsewhere")
def test_a_timeout_frees_the_thread_that_waits_for_another_process() -> None:
    with called(threads=1) as calls:
        calls.run(remote_tools.process_of, {"number": 1})  # the process is up
        outcome = calls.run(remote_tools.sleep, {"seconds": 1.0})
        assert kind_of(outcome) == "timeout"
        assert calls.run(lambda_tool("other")).output == "other"


def test_a_call_that_is_cancelled_before_its_executor_takes_it_up_is_never_made(calls: Calls) -> None:
    free, made = threading.Event(), []

    with ThreadPoolExecutor(1) as executor:

        @tool(executor=executor)
        def work() -> None:
            made.append(1)

        executor.submit(free.wait, PATIENCE_S)
        execution = calls.start(work)
        wait_until(lambda: executor._work_queue.qsize() == 1)
        execution.cancel()
        assert kind_of(calls.next()) == "cancelled"
        free.set()
    assert made == []


def test_a_process_that_dies_is_an_outcome(calls: Calls) -> None:
    remote_tools.processes.cache_clear()
    try:
        outcome = calls.run(remote_tools.die)
        assert json.loads(outcome.output)["error"]["type"] == "BrokenProcessPool"
    finally:
        remote_tools.processes().shutdown()
        remote_tools.processes.cache_clear()


def test_an_executor_is_for_plain_functions_without_a_context() -> None:
    async def fetch() -> None: ...

    def look(context: ToolContext) -> None: ...

    with pytest.raises(TypeError, match="'fetch' is an async def: executor= takes plain functions"):
        tool(executor=remote_tools.processes)(fetch)
    with pytest.raises(TypeError, match="'look': parameter 'context' is a ToolContext, which cannot be sent"):
        ToolRegistry([tool(executor=remote_tools.processes)(look)])


# Ending the run, and telling how far it is


@both
@pytest.mark.parametrize("on_error", ["report", "fail"])
def test_only_failures_of_the_tools_own_are_fatal_and_only_where_it_says_so(
    calls: Calls, asynchronous: bool, on_error: str
) -> None:
    fails = on_error == "fail"
    boom = ValueError("boom")
    table: list[tuple[Callable[[], BaseException], type[BaseException] | None]] = [
        (lambda: boom, ValueError),
        (lambda: Retry("again", after_s=0), Retry),
        (lambda: ToolError("for the model"), None),
    ]
    for error, fatal in table:
        outcome = calls.run(of_kind(asynchronous, Failing(9, error), on_error=on_error))
        assert type(outcome.fatal) is (fatal if fails and fatal else type(None))
    invalid = calls.run(of_kind(asynchronous, Failing(0, Exception), on_error=on_error), {"what": 1})
    assert (kind_of(invalid), invalid.fatal) == ("invalid_arguments", None)


@both
def test_a_timeout_is_fatal_where_the_tool_says_that_failures_are(calls: Calls, asynchronous: bool) -> None:
    async def hang_async(context: ToolContext) -> None:
        await asyncio.Event().wait()

    def hang(context: ToolContext) -> None:
        context.stop.wait(PATIENCE_S)

    outcome = calls.run(tool(timeout_s=0.02, on_error="fail")(hang_async if asynchronous else hang))
    assert kind_of(outcome) == "timeout"
    assert isinstance(outcome.fatal, TimeoutError)


@both
def test_progress_is_passed_on_seldom_and_with_the_newest_word(calls: Calls, asynchronous: bool) -> None:
    free = threading.Event()

    def work(context: ToolContext) -> str:
        for number in range(1000):
            context.progress(f"at {number}", number / 1000)
        assert free.wait(PATIENCE_S)
        return "done"

    calls.start(of_kind(asynchronous, work))
    begun = time.monotonic()
    notices = [calls.notice()]
    while notices[-1].detail != "at 999":
        notices.append(calls.notice())
    took = time.monotonic() - begun
    free.set()
    assert calls.next().output == "done"
    assert (notices[0].kind, notices[0].detail, notices[0].fraction) == ("progress", "at 0", 0.0)
    assert notices[-1].fraction == 0.999
    assert len(notices) <= 2 + took / INTERVAL_S
    assert calls.notices.empty()


def test_progress_is_a_sentence_and_a_share(calls: Calls) -> None:
    def work(context: ToolContext) -> None:
        with pytest.raises(TypeError, match="takes a sentence, got dict"):
            context.progress({})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"within 0\.0 and 1\.0, got 50"):
            context.progress("half", 50)
        context.progress("x" * 5000)

    assert calls.run(work).error is None
    assert len(calls.notice().detail or "") == 2000
    ToolContext(run_id="r", thread_id="t", call_id="c", tool="by hand").progress("nobody hears this")


# What makes no sense


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"timeout_s": 0}, ValueError, "'work': timeout_s must be positive, got 0"),
        ({"retries": -1}, ValueError, "'work': retries must be at least 0, got -1"),
        ({"retries": True}, TypeError, "'work': retries must be an int or None, got True"),
        ({"max_concurrency": 0}, ValueError, "'work': max_concurrency must be at least 1, got 0"),
        ({"max_concurrency": 1.5}, TypeError, "'work': max_concurrency must be an int or None, got 1.5"),
        ({"on_error": "raise"}, ValueError, "'work': on_error must be 'report' or 'fail', got 'raise'"),
        ({"approval": "yes"}, TypeError, "'work': approval must be a bool or a plain function, got 'yes'"),
        ({"timeout_s": "5"}, TypeError, "'work': timeout_s must be a number of seconds, got '5'"),
        ({"timeout_s": None}, TypeError, "'work': timeout_s must be a number of seconds, got None"),
        ({"idempotent": "no"}, TypeError, "'work': idempotent must be a bool, got 'no'"),
        ({"strict": 1}, TypeError, "'work': strict must be a bool, got 1"),
        ({"description": 5}, TypeError, "'work': description must be a str or None, got 5"),
        ({"executor": ThreadPoolExecutor}, TypeError, "'work': executor must be an executor or return one"),
        ({"executor": 3}, TypeError, "'work': executor must be an executor or return one, got 3"),
        ({"retires": 3}, TypeError, "retires"),
    ],
)
def test_settings_that_make_no_sense_are_refused_where_the_tool_is_made(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    def work() -> None: ...

    with pytest.raises(error, match=said):
        tool(**options)(work)


def test_a_pause_that_is_no_number_is_refused_where_it_is_raised(calls: Calls) -> None:
    @tool
    def work() -> None:
        raise Retry("later", after_s="soon")  # type: ignore[arg-type]

    outcome = calls.run(work)
    assert json.loads(outcome.output)["error"] == {
        "type": "TypeError",
        "message": "after_s must be a number of seconds, got 'soon'",
    }


def test_an_async_predicate_is_refused() -> None:
    async def ask(arguments: object) -> bool:
        return True

    def work() -> None: ...

    with pytest.raises(TypeError, match="approval must be a bool or a plain function"):
        tool(approval=ask)(work)  # type: ignore[arg-type]


def test_a_call_that_is_cancelled_before_its_hook_is_asked_is_over() -> None:
    asked, holds, free = threading.Event(), threading.Event(), threading.Event()

    def ask(arguments: object) -> bool:
        assert asked.wait(PATIENCE_S)
        return True

    def hold() -> None:
        holds.set()
        assert free.wait(PATIENCE_S)

    with called(threads=1, approve=lambda _: True) as calls:
        execution = calls.start(lambda_tool("work", approval=ask))
        calls.start(hold)
        asked.set()
        assert holds.wait(PATIENCE_S)  # it has the only thread, and the first call's hook waits for that
        execution.cancel()
        assert kind_of(calls.next()) == "cancelled"
        wait_until(lambda: execution not in calls.executor._live)
        free.set()
        assert calls.next().name == "hold"


def test_a_task_that_is_cancelled_before_its_first_step_is_an_outcome() -> None:
    """As the tasks of a loop are that ends: the coroutine is never entered."""
    loop = asyncio.new_event_loop()

    def cancelled_at_once(_: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        task.cancel()
        return task

    loop.set_task_factory(cancelled_at_once)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with called(loop=loop) as calls:

            async def work() -> str:
                return "done"

            outcome = calls.run(tool(max_concurrency=1)(work))
            assert outcome.error is not None
            assert outcome.error.message == "CancelledError"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


def test_what_an_async_hook_lets_through_is_called_in_the_callers_context() -> None:
    async def decide(_: object) -> bool:
        return True

    with called(approve=decide) as calls:
        for _ in range(500):
            calls.start(lambda_tool("work", approval=True))
        assert {calls.next().output for _ in range(500)} == {"work"}
