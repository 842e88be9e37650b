"""What stands around tool calls: of both kinds, around tools of both kinds."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from calls import PATIENCE_S, called, wait_until

from orchestrator import Invocation, Orchestrator, Retry, ToolContext, ToolError, tool
from orchestrator.tools.middleware import Bridge
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from calls import Calls

    from orchestrator.tools.middleware import Middleware

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

KINDS = ["sync", "async"]
kinds = pytest.mark.parametrize("kind", KINDS)
tools_of_both_kinds = pytest.mark.parametrize("tool_kind", KINDS)


def around(kind: str, before: Callable[[Invocation], Invocation], after: Callable[[Any], Any]) -> Middleware:
    """The same middleware as a plain function or an `async def`."""

    def plain(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
        return after(call_next(before(invocation)))

    async def asynchronous(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
        return after(await call_next(before(invocation)))

    return asynchronous if kind == "async" else plain


def double(kind: str) -> Callable[..., Any]:
    def plain(number: int) -> int:
        return number * 2

    async def asynchronous(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    return tool(name="double")(asynchronous if kind == "async" else plain)


def same(thing: Any) -> Any:
    return thing


@kinds
@tools_of_both_kinds
def test_middleware_changes_what_goes_in_and_what_comes_out(kind: str, tool_kind: str) -> None:
    def more(invocation: Invocation) -> Invocation:
        assert (invocation.tool.name, invocation.context.call_id) == ("double", "call_1")
        return dataclasses.replace(invocation, arguments={"number": invocation.arguments["number"] + 1})

    with called(middleware=[around(kind, more, lambda result: {"doubled": result})]) as calls:
        assert calls.run(double(tool_kind), {"number": 20}).output == '{"doubled": 42}'


@tools_of_both_kinds
def test_the_first_is_the_outermost_whatever_their_kinds(tool_kind: str) -> None:
    order: list[str] = []

    def named(name: str, kind: str) -> Middleware:
        def before(invocation: Invocation) -> Invocation:
            order.append(f"{name} in")
            return invocation

        def after(result: Any) -> Any:
            order.append(f"{name} out")
            return result

        return around(kind, before, after)

    chain = [named("a", "sync"), named("b", "async"), named("c", "async"), named("d", "sync")]
    with called(middleware=chain) as calls:
        assert calls.run(double(tool_kind), {"number": 21}).output == "42"
    assert order == [f"{name} in" for name in "abcd"] + [f"{name} out" for name in "dcba"]


@kinds
@tools_of_both_kinds
def test_each_runs_where_its_kind_does(kind: str, tool_kind: str) -> None:
    threads: list[str] = []

    def note(invocation: Invocation) -> Invocation:
        threads.append(threading.current_thread().name)
        return invocation

    with called(middleware=[around(kind, note, same)]) as calls:
        assert calls.run(double(tool_kind), {"number": 21}).output == "42"
    assert (threads == ["orchestrator-tool-loop"]) is (kind == "async")


@kinds
@tools_of_both_kinds
def test_it_may_answer_itself_and_the_tool_is_not_called(kind: str, tool_kind: str) -> None:
    kept: dict[int, int] = {21: 1234}

    def plain(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
        known = kept.get(invocation.arguments["number"])
        return known if known is not None else call_next(invocation)

    async def asynchronous(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
        known = kept.get(invocation.arguments["number"])
        return known if known is not None else await call_next(invocation)

    with called(middleware=[asynchronous if kind == "async" else plain]) as calls:
        assert calls.run(double(tool_kind), {"number": 21}).output == "1234"
        assert calls.run(double(tool_kind), {"number": 4}).output == "8"


@kinds
@tools_of_both_kinds
def test_what_it_raises_is_as_if_the_tool_had(kind: str, tool_kind: str) -> None:
    attempts: list[int] = []

    def guard(invocation: Invocation) -> Invocation:
        attempts.append(invocation.context.attempt)
        if invocation.arguments["number"] > 100:
            raise ToolError("too large")
        if len(attempts) == 1:
            raise Retry("once more", after_s=0)
        return invocation

    with called(middleware=[around(kind, guard, same)]) as calls:
        outcome = calls.run(double(tool_kind), {"number": 4})
        assert (outcome.output, outcome.attempts) == ("8", 2)
        assert calls.run(double(tool_kind), {"number": 101}).output == "too large"


@kinds
def test_arguments_that_are_left_out_or_made_up_are_a_defect_of_its_own(kind: str) -> None:
    def lose(invocation: Invocation) -> Invocation:
        return dataclasses.replace(invocation, arguments={"count": 1})

    with called(middleware=[around(kind, lose, same)]) as calls:
        outcome = calls.run(double("sync"), {"number": 4})
    assert json.loads(outcome.output)["error"] == {
        "type": "TypeError",
        "message": "middleware changed which arguments there are: count, number",
    }


@kinds
@tools_of_both_kinds
def test_a_call_that_is_cancelled_within_frees_every_thread_and_task(kind: str, tool_kind: str) -> None:
    inside, left = threading.Semaphore(0), threading.Semaphore(0)

    def hang(context: ToolContext) -> None:
        inside.release()
        assert context.stop.wait(PATIENCE_S)
        left.release()

    async def hang_async() -> None:
        inside.release()
        try:
            await asyncio.Event().wait()
        finally:
            left.release()

    chain = [around(kind, same, same), around("sync", same, same), around("async", same, same)]
    with called(middleware=chain, threads=4) as calls:
        for end in ("cancel", "timeout"):
            hanging = tool(timeout_s=0.05 if end == "timeout" else 60)(
                hang_async if tool_kind == "async" else hang
            )
            execution = calls.start(hanging)
            assert inside.acquire(timeout=PATIENCE_S)
            if end == "cancel":
                execution.cancel()
            outcome = calls.next()
            assert outcome.error is not None
            assert outcome.error.kind == ("cancelled" if end == "cancel" else "timeout")
            assert left.acquire(timeout=PATIENCE_S)
            wait_until(lambda: calls.executor._live == set() and calls.executor.stuck_threads == 0)


@tools_of_both_kinds
def test_however_often_a_call_goes_to_the_loop_and_back_it_takes_one_thread(tool_kind: str) -> None:
    chain = [around(kind, same, same) for kind in ("sync", "async") * 3]
    with called(middleware=chain, threads=1) as calls:
        for number in range(6):
            calls.start(double(tool_kind), {"number": number})
        assert [calls.next().output for _ in range(6)] == [str(number * 2) for number in range(6)]


@tools_of_both_kinds
def test_all_layers_see_the_callers_variables(tool_kind: str) -> None:
    seen: list[str] = []

    def note(invocation: Invocation) -> Invocation:
        seen.append(variable.get())
        return invocation

    def plain() -> None:
        seen.append(variable.get())

    async def asynchronous() -> None:
        seen.append(variable.get())

    chain = [around("sync", note, same), around("async", note, same), around("sync", note, same)]
    with called(middleware=chain) as calls:
        variable.set("mine")
        calls.run(tool(name="t")(asynchronous if tool_kind == "async" else plain))
    assert seen == ["mine"] * 4


def test_a_loop_that_is_closed_under_a_plain_middleware_is_an_outcome() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with called(middleware=[around("sync", same, same)], loop=loop) as calls:
        outcome = calls.run(double("async"), {"number": 1})
    assert outcome.error is not None
    assert "loop is closed" in outcome.error.message


@kinds
def test_calls_behind_middleware_are_told_once_however_end_and_cancel_race(kind: str) -> None:
    def race(calls: Calls, tool_kind: str) -> None:
        quick = tool(name="double", timeout_s=0.003)(double(tool_kind))
        for _ in range(100):
            execution = calls.start(quick, {"number": 1}, timeout_s=0.003)
            threading.Thread(target=execution.cancel).start()
        assert all(calls.next() for _ in range(100))

    with called(middleware=[around(kind, same, same), around("sync", same, same)]) as calls:
        for tool_kind in KINDS:
            race(calls, tool_kind)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="middleware and approve are functions, got 'log'"):
        Orchestrator(base_url="http://127.0.0.1:1/v1", api_key="k", middleware=["log"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="middleware and approve are functions, got True"):
        Orchestrator(base_url="http://127.0.0.1:1/v1", api_key="k", approve=True)  # type: ignore[arg-type]


def test_work_that_comes_as_the_thread_that_lent_itself_leaves_is_done_by_another() -> None:
    pool, done = ThreadPool(1, "orchestrator-tool"), threading.Event()
    bridge, work = Bridge(pool, asyncio.new_event_loop), SimpleQueue[Any]()
    with bridge._lending(work):
        work.put(done.set)
        work.put(None)
    assert done.wait(PATIENCE_S)
    pool.close(PATIENCE_S)
