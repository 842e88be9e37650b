"""Which tools a run may call, what they see, and where they run."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from stage import PATIENCE_S, Stage, wait_until

from orchestrator import Invocation, Notice, ToolContext, tool
from orchestrator.errors import BudgetExceeded, ToolError

pytestmark = pytest.mark.usefixtures("nothing_is_left")

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def fetch(word: str = "") -> str:
    """Fetch from the orchestrator's own tools."""
    return f"ours {word}".strip()


def test_a_runs_own_tools_are_sent_and_shadow_the_others_for_this_run(stage: Stage) -> None:
    @tool(name="fetch")
    def own() -> str:
        """Fetch for this run alone."""
        return "its own"

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        shadowed = orchestrator.start(stage.assistant, messages="fetch", tools=[own])
        plain = orchestrator.start(stage.assistant, messages="fetch")
        assert shadowed.result(PATIENCE_S).text == "got its own"
        assert plain.result(PATIENCE_S).text == "got ours"
    sent = stage.run(shadowed.thread_id, shadowed.run_id).tools
    assert [definition["function"]["description"] for definition in sent] == ["Fetch for this run alone."]


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("fails", [False, True], ids=["returned", "raised"])
def test_a_string_of_a_class_of_its_own_reaches_the_server(stage: Stage, fails: bool) -> None:
    @tool(name="fetch")
    def own() -> str:
        if fails:
            raise ToolError(Text("sunny"))
        return Text("sunny")

    with stage.orchestrator(tools=[own]) as orchestrator:
        assert orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S).text == "got sunny"


def test_a_wire_definition_is_sent_as_it_is_and_answered_by_a_registered_function(stage: Stage) -> None:
    definition = {
        "type": "function",
        "function": {
            "name": "fetch",
            "description": "As the caller wrote it.",
            "parameters": {"type": "object"},
        },
    }
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch", tools=[definition])
        assert run.result(PATIENCE_S).text == "got ours"
    sent = stage.run(run.thread_id, run.run_id).tools
    assert sent[0]["function"]["description"] == "As the caller wrote it."


def test_no_tools_for_a_run_are_sent_as_no_tools(stage: Stage) -> None:
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", tools=[])
        run.result(PATIENCE_S)
    assert list(stage.run(run.thread_id, run.run_id).tools) == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a function", "a coroutine function"])
def test_a_tool_sees_the_callers_variables_and_the_runs_context(stage: Stage, asynchronous: bool) -> None:
    seen: list[tuple[str, Any, str, str]] = []

    def note(context: ToolContext) -> str:
        seen.append((tenant.get(), context.state, context.run_id, context.thread_id))
        return "noted"

    @tool(name="fetch")
    def plain(context: ToolContext) -> str:
        return note(context)

    @tool(name="fetch")
    async def coroutine(context: ToolContext) -> str:
        return note(context)

    with stage.orchestrator(tools=[coroutine if asynchronous else plain]) as orchestrator:
        states = [{"cart": 1}, {"cart": 2}]
        runs = []
        for number, state in enumerate(states):
            tenant.set(f"tenant {number}")
            runs.append(orchestrator.start(stage.assistant, messages="fetch", context=state))
        tenant.set("somebody else")
        for run in runs:
            run.result(PATIENCE_S)
    expected = [
        (f"tenant {number}", states[number], run.run_id, run.thread_id) for number, run in enumerate(runs)
    ]
    assert sorted(seen, key=lambda noted: noted[0]) == expected


def test_async_tools_run_on_the_loop_that_entered_async_with(stage: Stage) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def fetch() -> str:
        loops.append(asyncio.get_running_loop())
        return "it"

    async def main() -> None:
        async with stage.orchestrator(tools=[fetch]) as orchestrator:
            assert (await orchestrator.start(stage.assistant, messages="fetch")).text == "got it"
            assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_a_loop_that_enters_after_the_first_run_gets_the_async_tools_from_then_on(stage: Stage) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def fetch() -> str:
        loops.append(asyncio.get_running_loop())
        return "it"

    orchestrator = stage.orchestrator(tools=[fetch])
    assert orchestrator.start(stage.assistant, messages="hello").result(PATIENCE_S).text == "hello to you"

    async def main() -> None:
        async with orchestrator:
            assert (await orchestrator.start(stage.assistant, messages="fetch")).text == "got it"
            assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_two_user_loops_have_their_own_orchestrators_and_tools(stage: Stage) -> None:
    apart = threading.Barrier(2)
    found: list[bool] = []

    async def main() -> None:
        async def fetch() -> str:
            found.append(asyncio.get_running_loop() is mine)
            return "it"

        mine = asyncio.get_running_loop()
        async with stage.orchestrator(tools=[fetch]) as orchestrator:
            await asyncio.to_thread(apart.wait, PATIENCE_S)
            await orchestrator.start(stage.assistant, messages="fetch")

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == [True, True]


def test_async_tools_under_a_plain_with_share_a_loop_of_their_own(stage: Stage) -> None:
    threads: set[str] = set()

    async def fetch(word: str) -> str:
        threads.add(threading.current_thread().name)
        await asyncio.sleep(0)
        return word

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        assert (
            orchestrator.start(stage.assistant, messages="each a b c").result(PATIENCE_S).status
            == "completed"
        )
    assert threads == {"orchestrator-tool-loop"}


def test_a_tool_that_blocks_the_users_loop_delays_no_mailbox(stage: Stage) -> None:
    blocking, released = threading.Event(), threading.Event()

    async def fetch() -> str:
        blocking.set()
        released.wait(PATIENCE_S)
        return "it"

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        blocked = orchestrator.start(stage.assistant, messages="fetch")
        assert blocking.wait(PATIENCE_S)
        beside = orchestrator.start(stage.assistant, messages="hello")
        assert beside.result(PATIENCE_S).text == "hello to you"
        blocked.cancel()
        assert blocked.result(PATIENCE_S).status == "cancelled"
        released.set()


def test_sync_tools_share_a_bounded_pool(stage: Stage) -> None:
    lock = threading.Lock()
    threads: set[str] = set()
    both = threading.Barrier(2)

    def fetch(word: str) -> str:
        both.wait(PATIENCE_S)  # two at a time, or this breaks
        with lock:
            threads.add(threading.current_thread().name)
        return word

    with stage.orchestrator(tools=[fetch], tool_threads=2) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="each a b c d") for _ in range(3)]
        assert {run.result(PATIENCE_S).status for run in runs} == {"completed"}
    assert threads == {"orchestrator-tool-1", "orchestrator-tool-2"}


def test_a_batch_runs_at_the_same_time(stage: Stage) -> None:
    together = threading.Barrier(4)

    def fetch(word: str) -> str:
        together.wait(PATIENCE_S)
        return word

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="each a b c d").result(PATIENCE_S)
    # The rule calls once for every word, "each" not among them.
    assert [call.output for call in result.tool_calls] == ["a", "b", "c", "d"]
    assert {call.error for call in result.tool_calls} == {None}
    assert {call.round for call in result.tool_calls} == {1}


def test_cancel_stops_the_tools_and_a_waiting_one_never_begins(stage: Stage) -> None:
    begun, stopped = threading.Semaphore(0), threading.Event()
    words: list[str] = []

    def fetch(word: str, context: ToolContext) -> str:
        words.append(word)
        begun.release()
        if context.stop.wait(PATIENCE_S):
            stopped.set()
        return word

    with stage.orchestrator(tools=[fetch], tool_threads=1) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="each a b")
        assert begun.acquire(timeout=PATIENCE_S)
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"
        assert stopped.wait(PATIENCE_S)
    assert words == ["a"]


def test_what_a_tool_says_of_its_progress_is_among_the_runs_events(stage: Stage) -> None:
    @tool(name="fetch")
    def fetch_slowly(context: ToolContext) -> str:
        context.progress("halfway", 0.5)
        return "it"

    with stage.orchestrator(tools=[fetch_slowly], check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        notices = [event for event in run.events() if isinstance(event, Notice)]
    assert [notice.event for notice in notices] == ["tool.started", "tool.progress", "tool.finished"]
    said = notices[1]
    assert (said.name, said.detail, said.fraction) == ("fetch", "halfway", 0.5)
    assert said.call_id == notices[0].call_id
    assert said.run_id == run.run_id


def test_a_run_whose_tools_fail_again_and_again_is_cancelled(stage: Stage) -> None:
    def fail(word: str = "") -> None:
        raise ValueError("no")

    tools = [tool(name=name)(fail) for name in ("fetch", "other")]
    with stage.orchestrator(tools=tools) as orchestrator:
        patient = orchestrator.start(stage.assistant, messages="twice", max_failed_tool_rounds=3)
        run = orchestrator.start(stage.assistant, messages="twice", max_failed_tool_rounds=2)
        with pytest.raises(BudgetExceeded, match="max_failed_tool_rounds") as caught:
            run.result(PATIENCE_S)
        assert patient.result(PATIENCE_S).status == "completed"
    assert (caught.value.run_id, caught.value.status) == (run.run_id, "cancelled")
    assert stage.run(run.thread_id, run.run_id).status == "cancelled"


def test_threads_that_tools_hold_are_counted_where_operators_look(stage: Stage) -> None:
    free = threading.Event()

    @tool(name="fetch", timeout_s=0.02)
    def hang() -> None:
        assert free.wait(PATIENCE_S)

    with stage.orchestrator(tools=[hang]) as orchestrator:
        assert orchestrator.stuck_tool_threads == 0
        result = orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S)
        assert (result.tool_calls[0].error or "").startswith("timeout: no result within 0.02 seconds")
        assert orchestrator.stuck_tool_threads == 1
        free.set()
        wait_until(lambda: orchestrator.stuck_tool_threads == 0)


def test_middleware_stands_around_the_tools_of_all_runs(stage: Stage) -> None:
    around: list[str] = []

    async def note(invocation: Invocation, call_next: Any) -> Any:
        around.append(invocation.context.run_id)
        return f"[{await call_next(invocation)}]"

    with stage.orchestrator(tools=[fetch], middleware=[note]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(3)]
        assert {run.result(PATIENCE_S).text for run in runs} == {"got [ours]"}
    assert sorted(around) == sorted(run.run_id or "" for run in runs)
