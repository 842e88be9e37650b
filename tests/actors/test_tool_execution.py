"""Tool calls on real threads and loops: how they run, end, and are stopped."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from calls import PATIENCE_S, Calls, called, tool_threads, wait_until

from orchestrator.errors import OrchestratorClosed, ToolError
from orchestrator.protocol.objects import FunctionCall, ToolCall
from orchestrator.tools import ToolContext, ToolExecutor, ToolOutcome, ToolRegistry, tool
from orchestrator.tools.deadlines import Deadlines
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def calls() -> Iterator[Calls]:
    with called() as made:
        yield made


def double(number: int) -> dict[str, int]:
    return {"doubled": number * 2}


async def double_slowly(number: int) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"doubled": number * 2}


@pytest.mark.parametrize("function", [double, double_slowly])
def test_a_tool_gets_its_arguments_and_its_result_comes_back_as_json(
    calls: Calls, function: Callable[..., Any]
) -> None:
    outcome = calls.run(function, {"number": 21})
    assert outcome.output == '{"doubled": 42}'
    assert (outcome.call_id, outcome.name, outcome.error) == ("call_1", function.__name__, None)
    assert 0 < outcome.duration_s < PATIENCE_S


def test_nothing_starts_before_the_first_call_and_nothing_is_left_after_close() -> None:
    executor = ToolExecutor()
    assert tool_threads() == set()
    made = Calls(executor)
    made.run(double, {"number": 1})
    assert tool_threads() == {"orchestrator-tool-1", "orchestrator-tool-deadlines"}
    made.run(double_slowly, {"number": 1})
    assert "orchestrator-tool-loop" in tool_threads()
    assert executor.close() == []
    assert tool_threads() == set()
    assert executor.close() == []
    with pytest.raises(OrchestratorClosed):
        made.start(double, {"number": 1})


def test_synchronous_tools_run_side_by_side_and_never_more_than_there_are_threads(calls: Calls) -> None:
    lock, free = threading.Lock(), threading.Event()
    running, most, names = 0, 0, set()
    together = threading.Barrier(4)

    def work(wait: bool) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            names.add(threading.current_thread().name)
        if wait:
            together.wait(PATIENCE_S)  # four must be inside at once
        free.wait(PATIENCE_S)
        with lock:
            running -= 1

    for number in range(12):
        calls.start(work, {"wait": number < 4})
    wait_until(lambda: together.n_waiting == 0 and running == 4)
    assert calls.executor.stuck_threads == 0
    free.set()
    assert [calls.next().error for _ in range(12)] == [None] * 12
    assert most == 4
    assert names == {f"orchestrator-tool-{n}" for n in (1, 2, 3, 4)}


def test_an_idle_thread_is_used_again_before_another_is_made(calls: Calls) -> None:
    for _ in range(5):
        calls.run(double, {"number": 1})
        wait_until(lambda: calls.executor._pool._idle == 1)  # the outcome is told just before
    assert [t for t in tool_threads() if t.endswith(tuple("123456789"))] == ["orchestrator-tool-1"]


def test_asynchronous_tools_share_one_loop_thread_of_their_own(calls: Calls) -> None:
    async def where() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    for _ in range(3):
        calls.start(where)
    assert {calls.next().output for _ in range(3)} == {"orchestrator-tool-loop"}


def test_asynchronous_tools_run_on_the_loop_that_was_given() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        made = Calls(ToolExecutor(loop=loop))

        @tool
        async def where() -> bool:
            return asyncio.get_running_loop() is loop

        made.start(where)
        outcome = await asyncio.to_thread(made.next)
        assert "orchestrator-tool-loop" not in tool_threads()
        with pytest.raises(RuntimeError, match="to_thread"):
            made.executor.close()
        return [outcome.output, await asyncio.to_thread(made.executor.close)]

    assert asyncio.run(main()) == ["true", []]
    assert tool_threads() == set()


def test_a_closed_loop_is_an_outcome_and_not_an_exception() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    made = Calls(ToolExecutor(loop=loop))
    outcome = made.run(double_slowly, {"number": 1})
    assert outcome.error is not None
    assert (outcome.error.kind, "loop is closed" in outcome.error.message) == ("raised", True)
    assert made.executor.close() == []


def test_a_loop_that_does_not_run_is_a_timeout() -> None:
    loop = asyncio.new_event_loop()
    made = Calls(ToolExecutor(loop=loop))
    outcome = made.run(tool(timeout_s=0.02)(double_slowly), {"number": 1})
    assert outcome.error is not None
    assert outcome.error.message == "not begun within 0.02 seconds: the event loop was busy"
    assert made.executor.close() == []
    loop.close()


def test_ctrl_c_in_a_tool_on_the_programs_own_loop_reaches_the_program() -> None:
    loop = asyncio.new_event_loop()
    made = Calls(ToolExecutor(loop=loop))

    async def interrupted() -> None:
        raise KeyboardInterrupt  # as Python's signal handler does, on the main thread

    made.start(interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    outcome = made.next()
    assert outcome.error is not None
    assert outcome.error.message == "KeyboardInterrupt"
    assert made.executor.close() == []
    loop.close()


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], None]]:
    """A function after which the system refuses every new thread: no stack can be as large as asked."""
    before = threading.stack_size()
    yield lambda: (threading.stack_size(1 << 48), None)[1]
    threading.stack_size(before)


@pytest.mark.parametrize("function", [double, double_slowly])
def test_a_thread_that_the_system_refuses_is_an_outcome(
    calls: Calls, function: Callable[..., Any], no_more_threads: Callable[[], None]
) -> None:
    calls.run(None)  # the deadlines' thread is up
    no_more_threads()
    outcome = calls.run(function, {"number": 1})
    assert outcome.error is not None
    assert outcome.error.message == "RuntimeError: can't start new thread"


def test_a_pool_makes_do_with_the_threads_it_could_get(
    calls: Calls, no_more_threads: Callable[[], None]
) -> None:
    free = threading.Event()

    def hold() -> None:
        free.wait(PATIENCE_S)

    calls.start(hold)
    no_more_threads()
    calls.start(double, {"number": 1})
    free.set()
    assert [calls.next().name, calls.next().name] == ["hold", "double"]


def test_without_a_thread_for_deadlines_start_raises_and_leaves_nothing(
    no_more_threads: Callable[[], None],
) -> None:
    made = Calls(ToolExecutor())
    no_more_threads()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        made.start(double, {"number": 1})
    assert made.executor.close() == []


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


RAISED: list[tuple[BaseException, str, str]] = [
    (ValueError("boom"), "ValueError", "boom"),
    (SystemExit(3), "SystemExit", "3"),
    (KeyboardInterrupt(), "KeyboardInterrupt", ""),
    (asyncio.CancelledError("mine"), "CancelledError", "mine"),
    (GeneratorExit(), "GeneratorExit", ""),
    (TimeoutError("of the tool's own"), "TimeoutError", "of the tool's own"),
    (Odd(), "Odd", "(its message cannot be shown: RuntimeError)"),
    (ValueError("x" * 5000), "ValueError", "x" * 1999 + "…"),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("error", "type_name", "message"), RAISED, ids=[row[1] for row in RAISED])
def test_whatever_a_tool_raises_is_told_by_type_and_message_and_harms_no_thread(
    calls: Calls, error: BaseException, type_name: str, message: str, asynchronous: bool
) -> None:
    def raising() -> None:
        raise error

    async def raising_async() -> None:
        raise error

    outcome = calls.run(raising_async if asynchronous else raising)
    assert json.loads(outcome.output) == {"error": {"type": type_name, "message": message}}
    assert outcome.error is not None
    assert outcome.error.kind == "raised"
    assert outcome.error.message == (f"{type_name}: {message}" if message else type_name)
    assert (outcome.error.origin or "").startswith(f"{type_name} at test_tool_execution:")
    follower = double_slowly if asynchronous else double
    assert calls.run(follower, {"number": 1}).error is None


def test_a_tool_may_speak_to_the_model_in_its_own_words(calls: Calls) -> None:
    def refuse() -> None:
        raise ToolError("Ask for a city in Europe. " + "x" * 3000)

    outcome = calls.run(refuse)
    assert outcome.output == "Ask for a city in Europe. " + "x" * 3000
    assert outcome.error is not None
    assert outcome.error.kind == "reported"


def test_an_unknown_tool_is_answered_with_the_known_ones(calls: Calls) -> None:
    registry = ToolRegistry([double, double_slowly])
    call = ToolCall(id="call_9", function=FunctionCall(name="triple", arguments="{}"))
    calls.executor.start(call, registry, run_id="r", thread_id="t", on_done=calls.outcomes.put)
    outcome = calls.next()
    assert json.loads(outcome.output)["error"] == {
        "type": "unknown_tool",
        "message": "there is no tool named 'triple'; the known tools: double, double_slowly",
    }
    assert outcome.error is not None
    assert (outcome.name, outcome.error.kind, outcome.duration_s) == ("triple", "unknown_tool", 0.0)


@pytest.mark.parametrize("function", [double, double_slowly])
@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"number": ', "Invalid JSON: EOF while parsing a value at line 1 column 11"),
        ('{"number": "many"}', "number: Input should be a valid integer"),
        ("", "number: Field required"),
    ],
)
def test_arguments_that_do_not_fit_are_answered_and_the_tool_is_not_called(
    calls: Calls, function: Callable[..., Any], document: str, said: str
) -> None:
    outcome = calls.run(function, document)
    assert json.loads(outcome.output)["error"]["type"] == "invalid_arguments"
    assert said in json.loads(outcome.output)["error"]["message"]
    assert outcome.error is not None
    assert outcome.error.kind == "invalid_arguments"


@pytest.mark.parametrize("value", [b"raw", object()])
def test_a_result_without_json_form_is_an_error_for_the_model(calls: Calls, value: object) -> None:
    def give() -> object:
        return value

    outcome = calls.run(give)
    assert outcome.error is not None
    assert outcome.error.kind == "raised"
    assert json.loads(outcome.output)["error"]["type"] == "TypeError"
    assert repr(value) not in outcome.output


def test_a_plain_function_that_returns_a_coroutine_is_told_to_be_async(calls: Calls) -> None:
    def hidden() -> object:
        return double_slowly(1)

    assert "must be an async def" in calls.run(hidden).output


def test_a_long_output_is_cut() -> None:
    made = Calls(ToolExecutor(max_output_bytes=200))

    def talk() -> str:
        return "x" * 1000

    assert len(made.run(talk).output) == 200
    made.executor.close()


# Timeouts


def test_a_synchronous_tool_that_takes_too_long_is_a_timeout_at_once_and_counted_until_it_returns(
    calls: Calls,
) -> None:
    free, contexts = threading.Event(), []

    @tool(timeout_s=0.05)
    def hang(context: ToolContext) -> str:
        contexts.append(context)
        free.wait(PATIENCE_S)
        return "late"

    calls.run(double, {"number": 1})  # so that the thread is up
    outcome = calls.run(hang)
    assert outcome.error is not None
    assert (outcome.error.kind, outcome.error.message) == ("timeout", "no result within 0.05 seconds")
    assert json.loads(outcome.output)["error"]["type"] == "timeout"
    assert outcome.duration_s >= 0.05
    assert contexts[0].cancelled
    assert calls.executor.stuck_threads == 1
    free.set()
    wait_until(lambda: calls.executor.stuck_threads == 0)
    assert calls.outcomes.empty()  # what came late is discarded


def test_an_asynchronous_tool_that_takes_too_long_is_cancelled(calls: Calls) -> None:
    cancelled = threading.Event()

    @tool(timeout_s=0.05)
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    calls.run(double_slowly, {"number": 1})  # so that the loop is up
    outcome = calls.run(hang)
    assert outcome.error is not None
    # The time runs from the start, and a busy machine's loop may come to the call late.
    assert re.fullmatch(r"no result within 0\.0\d seconds", outcome.error.message)
    assert cancelled.wait(PATIENCE_S)
    assert calls.executor.stuck_threads == 0


def test_an_asynchronous_tool_that_blocks_its_loop_delays_no_timeout(calls: Calls) -> None:
    free = threading.Event()

    @tool(timeout_s=0.03)
    async def block() -> None:
        free.wait(PATIENCE_S)

    @tool(timeout_s=0.03)
    def hang() -> None:
        free.wait(PATIENCE_S)

    calls.start(block)
    calls.start(hang)
    assert [o.error and o.error.kind for o in (calls.next(), calls.next())] == ["timeout", "timeout"]
    free.set()


def test_a_tools_own_timeout_does_not_count_the_wait_for_a_thread(calls: Calls) -> None:
    free = threading.Event()

    def hold() -> None:
        free.wait(PATIENCE_S)

    deadlines = []

    @tool(timeout_s=5)
    def queued(context: ToolContext) -> None:
        deadlines.append(context.deadline)

    for _ in range(4):
        calls.start(hold)
    calls.start(queued, timeout_s=60)
    freed = time.monotonic()
    free.set()
    assert [calls.next().error for _ in range(5)] == [None] * 5
    assert deadlines[0] >= freed + 5


def test_a_call_for_which_no_time_is_left_blames_no_thread(calls: Calls) -> None:
    def late() -> None:
        raise AssertionError

    for _ in range(200):  # whoever is quicker, a thread that takes it up or the deadline
        outcome = calls.run(late, timeout_s=0.0)
        assert outcome.error is not None
        assert outcome.error.message == "not begun: no time was left for it"


def test_the_callers_bound_counts_from_start_so_that_a_queued_call_never_begins(calls: Calls) -> None:
    free, begun = threading.Event(), threading.Event()

    def hold() -> None:
        free.wait(PATIENCE_S)

    def late() -> None:
        begun.set()

    for _ in range(4):
        calls.start(hold)
    outcome = calls.run(late, timeout_s=0.03)
    assert outcome.error is not None
    assert outcome.error.message == "not begun within 0.03 seconds: every thread was busy"
    assert outcome.duration_s == 0.0
    free.set()
    assert [calls.next().name for _ in range(4)] == ["hold"] * 4
    assert calls.executor.close(timeout_s=PATIENCE_S) == []  # the queue was worked off
    assert not begun.is_set()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_context_tells_the_call_and_the_nearer_deadline(calls: Calls, asynchronous: bool) -> None:
    seen: list[ToolContext] = []

    def look(context: ToolContext) -> None:
        seen.append(context)

    async def look_async(context: ToolContext) -> None:
        seen.append(context)

    function = look_async if asynchronous else look
    state = object()
    for own_s, bound_s in ((50.0, 20.0), (20.0, 50.0), (20.0, None)):
        calls.run(tool(timeout_s=own_s)(function), timeout_s=bound_s, state=state)
    assert calls.run(tool(timeout_s=math.inf)(function)).error is None
    for context in seen[:3]:
        assert 15 < context.remaining_s <= 20
        assert (context.run_id, context.thread_id, context.attempt) == ("run_1", "thread_1", 1)
        assert context.tool == function.__name__
        assert context.state is state
        assert not context.cancelled
    assert [context.call_id for context in seen] == ["call_1", "call_2", "call_3", "call_4"]
    assert seen[3].remaining_s == math.inf


# Cancelling


def test_cancelling_a_running_synchronous_tool_shows_in_its_context(calls: Calls) -> None:
    inside, saw = threading.Event(), threading.Event()

    def poll(context: ToolContext) -> None:
        inside.set()
        while not context.cancelled:
            context.stop.wait(PATIENCE_S)
        saw.set()

    execution = calls.start(poll)
    assert inside.wait(PATIENCE_S)
    execution.cancel()
    execution.cancel()
    outcome = calls.next()
    assert outcome.error is not None
    assert outcome.error.kind == "cancelled"
    assert saw.wait(PATIENCE_S)


def test_cancelling_a_running_asynchronous_tool_cancels_its_task(calls: Calls) -> None:
    inside, cleaned = threading.Event(), threading.Event()

    async def hang() -> None:
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    execution = calls.start(hang)
    assert inside.wait(PATIENCE_S)
    execution.cancel()
    outcome = calls.next()
    assert outcome.error is not None
    assert outcome.error.kind == "cancelled"
    assert cleaned.wait(PATIENCE_S)


def test_a_cancelled_outcome_is_told_from_another_thread_than_the_one_that_cancels(calls: Calls) -> None:
    inside, told_by = threading.Event(), SimpleQueue[int]()

    def poll(context: ToolContext) -> None:
        inside.set()
        context.stop.wait(PATIENCE_S)

    execution = calls.executor.start(
        ToolCall(id="call_1", function=FunctionCall(name="poll", arguments="{}")),
        ToolRegistry([poll]),
        run_id="r",
        thread_id="t",
        on_done=lambda _: told_by.put(threading.get_ident()),
    )
    assert inside.wait(PATIENCE_S)
    execution.cancel()
    assert told_by.get(timeout=PATIENCE_S) != threading.get_ident()


def test_an_asynchronous_tool_that_ignores_cancellation_delays_nobody(calls: Calls) -> None:
    inside, free = threading.Event(), asyncio.Event()
    loops = []

    async def stubborn() -> str:
        loops.append(asyncio.get_running_loop())
        inside.set()
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    execution = calls.start(stubborn)
    assert inside.wait(PATIENCE_S)
    execution.cancel()
    outcome = calls.next()
    assert outcome.error is not None
    assert outcome.error.kind == "cancelled"
    loops[0].call_soon_threadsafe(free.set)


def test_a_queued_call_that_is_cancelled_never_begins(calls: Calls) -> None:
    free, begun = threading.Event(), threading.Event()

    def hold() -> None:
        free.wait(PATIENCE_S)

    def begin() -> None:
        begun.set()

    for _ in range(4):
        calls.start(hold)
    calls.start(begin).cancel()
    outcome = calls.next()
    assert outcome.error is not None
    assert (outcome.name, outcome.error.kind) == ("begin", "cancelled")
    free.set()
    assert [calls.next().name for _ in range(4)] == ["hold"] * 4
    assert calls.executor.close(timeout_s=PATIENCE_S) == []
    assert not begun.is_set()


@pytest.mark.parametrize("function", [double, double_slowly])
def test_a_call_is_told_exactly_once_however_end_cancel_and_deadline_race(
    calls: Calls, function: Callable[..., Any]
) -> None:
    registry = ToolRegistry([tool(timeout_s=0.002)(function)])
    told: dict[str, list[ToolOutcome]] = {}
    lock = threading.Lock()
    all_told = threading.Semaphore(0)

    def on_done(outcome: ToolOutcome) -> None:
        with lock:
            told.setdefault(outcome.call_id, []).append(outcome)
        all_told.release()

    count = 400
    for number in range(count):
        call = ToolCall(
            id=str(number), function=FunctionCall(name=registry.names[0], arguments='{"number": 1}')
        )
        execution = calls.executor.start(
            call, registry, run_id="r", thread_id="t", timeout_s=0.002, on_done=on_done
        )
        cancellers = [threading.Thread(target=execution.cancel) for _ in range(number % 3)]
        for thread in cancellers:
            thread.start()
        for thread in cancellers:
            thread.join()
    for _ in range(count):
        assert all_told.acquire(timeout=PATIENCE_S)
    assert calls.executor.close(timeout_s=PATIENCE_S) == []
    assert len(told) == count
    assert {len(outcomes) for outcomes in told.values()} == {1}
    assert {o[0].error is None or o[0].error.kind for o in told.values()} <= {True, "cancelled", "timeout"}


def test_an_observer_that_raises_takes_no_thread_down(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    registry = ToolRegistry([double, double_slowly])

    def on_done(_outcome: ToolOutcome) -> None:
        raise RuntimeError("nobody listens")

    for name in ("double", "double_slowly", "unknown"):
        call = ToolCall(id=name, function=FunctionCall(name=name, arguments='{"number": 1}'))
        calls.executor.start(call, registry, run_id="r", thread_id="t", on_done=on_done)
    wait_until(lambda: sum("tool.outcome_lost" in r.getMessage() for r in caplog.records) == 3)
    assert calls.run(double, {"number": 1}).error is None
    assert calls.run(double_slowly, {"number": 1}).error is None
    assert calls.run(None).error is not None


# Closing


def test_close_waits_no_longer_than_it_was_told_and_names_what_still_runs() -> None:
    free = threading.Event()
    made = Calls(ToolExecutor(threads=2))

    def stuck() -> None:
        free.wait(PATIENCE_S)

    async def blocked() -> None:
        free.wait(PATIENCE_S)

    inside = [threading.Event(), threading.Event()]

    def stuck_thread() -> None:
        inside[0].set()
        stuck()

    async def blocked_loop() -> None:
        inside[1].set()
        await blocked()

    made.start(stuck_thread)
    made.start(blocked_loop)
    assert all(event.wait(PATIENCE_S) for event in inside)
    begun = time.monotonic()
    assert made.executor.close(timeout_s=0.05) == ["blocked_loop", "stuck_thread"]
    assert time.monotonic() - begun < 5
    assert {o.error and o.error.kind for o in (made.next(), made.next())} == {"cancelled"}
    free.set()
    wait_until(lambda: tool_threads() == set())  # they end as soon as the tools let them
    assert made.executor.close() == []


def test_a_tool_that_never_returns_does_not_keep_the_process_alive() -> None:
    script = """
import threading
from orchestrator.protocol.objects import FunctionCall, ToolCall
from orchestrator.tools import ToolExecutor, ToolRegistry

inside = threading.Event()
def hang() -> None:
    inside.set()
    threading.Event().wait()

executor = ToolExecutor()
call = ToolCall(id="c", function=FunctionCall(name="hang"))
executor.start(call, ToolRegistry([hang]), run_id="r", thread_id="t", on_done=print)
inside.wait()
print("leaving")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "leaving\n"


def test_a_background_task_that_brings_the_tools_loop_down_costs_only_its_own_loop(calls: Calls) -> None:
    async def reckless() -> None:
        async def leave() -> None:
            sys.exit(1)

        task = asyncio.get_running_loop().create_task(leave())
        await asyncio.gather(task, return_exceptions=True)

    assert calls.run(reckless).error is not None
    loop_thread = calls.executor._loop_thread._thread
    assert loop_thread is not None
    loop_thread.join(PATIENCE_S)
    assert calls.run(double_slowly, {"number": 2}).output == '{"doubled": 4}'


# What surrounds a call


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_tool_sees_the_callers_context_variables_and_changes_only_its_own_copy(
    calls: Calls, asynchronous: bool
) -> None:
    def look() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    async def look_async() -> str:
        return look()

    function = look_async if asynchronous else look
    token = variable.set("callers")
    try:
        given = contextvars.Context()
        given.run(variable.set, "given")
        outputs = [
            calls.run(function).output,
            calls.run(function).output,
            calls.run(function, contextvars_context=given).output,
            calls.run(function, contextvars_context=given).output,
            calls.run(function, contextvars_context=contextvars.Context()).output,
        ]
        assert outputs == ["callers", "callers", "given", "given", "unset"]
        assert variable.get() == "callers"
    finally:
        variable.reset(token)


def test_logs_tell_the_call_and_its_time_but_neither_arguments_nor_results(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="orchestrator")

    def confide(secret: str, fail: bool, context: ToolContext) -> str:
        context.log.info("asked", detail="mine")
        if fail:
            raise ValueError(f"cannot use {secret}")
        return secret

    calls.run(confide, {"secret": "s3cret", "fail": False})
    calls.run(confide, {"secret": "s3cret", "fail": True})
    calls.run(confide, {"secret": "s3cret", "fail": "s3cret"})
    records = [dict(record.msg) for record in caplog.records if isinstance(record.msg, dict)]
    by_event = [record["event"] for record in records]
    assert by_event == [
        "tool.started",
        "asked",
        "tool.finished",
        "tool.started",
        "asked",
        "tool.failed",
        "tool.failed",
    ]
    for record in records:
        assert (record["tool"], record["run_id"], record["thread_id"]) == ("confide", "run_1", "thread_1")
    assert records[2]["duration_s"] > 0
    assert (records[5]["kind"], records[5]["exception"].partition(" at ")[0]) == ("raised", "ValueError")
    assert "s3cret" not in caplog.text


# The parts


def test_deadlines_call_back_in_order_and_forget_what_was_cancelled() -> None:
    deadlines, called = Deadlines("orchestrator-tool-test"), SimpleQueue[str]()
    now = time.monotonic()
    later = deadlines.at(now + 0.04, lambda: called.put("third"))
    deadlines.at(now + 0.02, lambda: called.put("second"))
    deadlines.cancel(deadlines.at(now + 0.01, lambda: called.put("never")))
    deadlines.soon(lambda: called.put("first"))
    deadlines.at(math.inf, lambda: called.put("never"))
    assert [called.get(timeout=PATIENCE_S) for _ in range(3)] == ["first", "second", "third"]
    deadlines.cancel(later)
    deadlines.close(PATIENCE_S)
    assert called.empty()
    assert tool_threads() == set()


def test_deadlines_hold_on_to_few_cancelled_ones() -> None:
    deadlines = Deadlines("orchestrator-tool-test")
    for _ in range(5000):
        deadlines.cancel(deadlines.at(time.monotonic() + 60, lambda: None))
    assert len(deadlines._heap) < 200
    deadlines.close(PATIENCE_S)


def test_a_pool_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPool(0, "pool")
