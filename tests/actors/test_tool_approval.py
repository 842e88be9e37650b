"""Calls that wait for somebody: asked, approved, denied, decided by a hook, or answered for in time."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from crew import poison
from stage import PATIENCE_S, QUICK, Stage, staged, wait_until

from orchestrator import ApprovalRequest, Notice, Orchestrator, RunHandle, Timing, ToolContext, tool
from orchestrator.errors import ToolFailed
from orchestrator.runs.machine import WaitsFor
from orchestrator.supervision.messages import Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


pytestmark = pytest.mark.usefixtures("nothing_is_left")

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Made:
    """A tool that counts its calls."""

    def __init__(self, *, asynchronous: bool = False, **options: Any) -> None:
        self.words: list[str] = []

        def fetch(word: str = "") -> str:
            self.words.append(word)
            return f"{word} fetched".strip()

        async def fetch_async(word: str = "") -> str:
            return fetch(word)

        self.tool = tool(name="fetch", **({"approval": True} | options))(
            fetch_async if asynchronous else fetch
        )


def asked(run: RunHandle, count: int = 1) -> list[str]:
    """Wait until so many calls wait for approval; their ids, in order."""
    wait_until(lambda: len(run.snapshot().approvals) == count)
    return [request.call_id for request in run.snapshot().approvals]


def notices(run: RunHandle) -> list[str]:
    """What was said of its calls."""
    said = [event.event for event in run.events() if isinstance(event, Notice)]
    return [name for name in said if name.startswith("tool.")]


@both
def test_a_call_is_made_once_somebody_has_approved_it(stage: Stage, asynchronous: bool) -> None:
    made = Made(asynchronous=asynchronous)
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="each one", context="mine")
        question = next(e for e in run.events() if isinstance(e, Notice) and e.event == "tool.approval_asked")
        (request,) = run.snapshot().approvals
        assert request == ApprovalRequest(
            run_id=run.run_id or "",
            thread_id=run.thread_id or "",
            call_id=question.call_id or "",
            tool="fetch",
            arguments={"word": "one"},
            state="mine",
        )
        assert "one" not in repr(request)
        (snapshot,) = orchestrator.runs()
        assert snapshot.approvals == (request,)
        assert snapshot.waits_for is WaitsFor.APPROVAL
        assert snapshot.waits_detail == f"somebody's approval of fetch ({request.call_id})"
        assert made.words == []
        run.approve(request.call_id)
        assert run.result(PATIENCE_S).text == "got one fetched"
    assert made.words == ["one"]
    assert notices(run) == ["tool.started", "tool.approval_asked", "tool.approved", "tool.finished"]
    assert run.snapshot().approvals == ()


@both
@pytest.mark.parametrize("reason", ["", "not on a Sunday"])
def test_a_call_that_is_denied_is_answered_with_that_and_not_made(
    stage: Stage, asynchronous: bool, reason: str
) -> None:
    made = Made(asynchronous=asynchronous, on_error="fail")
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        run.deny(asked(run)[0], *([reason] if reason else []))
        result = run.result(PATIENCE_S)
    message = "the call was denied" + (f": {reason}" if reason else "")
    assert json.loads(result.tool_calls[0].output) == {"error": {"type": "denied", "message": message}}
    assert (result.status, result.tool_calls[0].error) == ("completed", f"denied: {message}")
    assert result.tool_calls[0].attempts == 0
    assert made.words == []


def test_a_batch_goes_out_whole_when_the_last_of_it_is_decided(stage: Stage) -> None:
    made = Made(approval=lambda arguments: arguments["word"] in ("b", "c"))
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="each a b c d")
        asked(run, 2)
        ids = {request.arguments["word"]: request.call_id for request in run.snapshot().approvals}
        wait_until(lambda: sorted(made.words) == ["a", "d"])
        wait_until(lambda: run.snapshot().waits_for is WaitsFor.APPROVAL)  # once both are settled, too
        run.approve(ids["c"])
        wait_until(lambda: sorted(made.words) == ["a", "c", "d"])
        assert not any("submit" in request for request in stage.requests(run.thread_id, "POST"))
        run.deny(ids["b"])
        result = run.result(PATIENCE_S)
    assert [call.error is None for call in result.tool_calls] == [True, False, True, True]
    submits = [one for one in stage.requests(run.thread_id, "POST") if one.endswith("submit_tool_outputs")]
    assert len(submits) == 1


def test_of_many_who_decide_one_is_heard_and_the_others_are_told(stage: Stage) -> None:
    made = Made()
    with stage.orchestrator(tools=[made.tool]) as orchestrator, ThreadPoolExecutor(16) as people:
        for _ in range(5):
            run = orchestrator.start(stage.assistant, messages="fetch")
            (call_id,) = asked(run)
            together = threading.Barrier(16)

            def decide(
                number: int, run: RunHandle = run, call_id: str = call_id, together: Any = together
            ) -> str:
                together.wait(PATIENCE_S)
                try:
                    run.approve(call_id) if number % 2 else run.deny(call_id)
                except ValueError as error:
                    return str(error)
                return "heard"

            said = list(people.map(decide, range(16)))
            assert said.count("heard") == 1
            assert {one.partition(":")[0] for one in said} == {
                "heard",
                f"no call {call_id!r} of this run waits for approval",
            }
            run.result(PATIENCE_S)


def test_a_decision_of_what_does_not_wait_names_what_does(stage: Stage) -> None:
    made = Made()
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        (call_id,) = asked(run)
        with pytest.raises(ValueError, match=rf"no call 'call_x' .* waiting: {call_id} \(fetch\)"):
            run.approve("call_x")
        with pytest.raises(TypeError, match="reason must be a str, got int"):
            run.deny(call_id, 3)  # type: ignore[arg-type]
        run.approve(call_id)
        with pytest.raises(ValueError, match=r"waiting: none"):
            run.deny(call_id)
        assert run.result(PATIENCE_S).status == "completed"


@both
def test_when_the_run_is_about_to_expire_what_nobody_decided_is_answered_for(asynchronous: bool) -> None:
    made = Made(asynchronous=asynchronous, on_error="fail")
    timing = Timing(retry=QUICK.retry, poll_min_s=0.02, poll_max_s=0.1, expiry_margin_s=1.5)
    with staged(run_ttl_s=2.0) as stage, stage.orchestrator(tools=[made.tool], timing=timing) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        (call_id,) = asked(run)
        result = run.result(PATIENCE_S)
        with pytest.raises(ValueError, match="waiting: none"):
            run.approve(call_id)
    assert result.status == "completed"
    error = json.loads(result.tool_calls[0].output)["error"]
    assert error["type"] == "denied"
    assert error["message"].startswith("the call needs approval, and nobody approved it within ")
    assert made.words == []


def test_a_run_that_is_cancelled_or_closed_asks_nobody_any_more(stage: Stage) -> None:
    made = Made()
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(2)]
        ids = [asked(run)[0] for run in runs]
        runs[0].cancel()
        assert runs[0].result(PATIENCE_S).status == "cancelled"
        orchestrator.close()
    for run, call_id in zip(runs, ids, strict=True):
        assert run.snapshot().approvals == ()
        with pytest.raises(ValueError, match="waiting: none"):
            run.approve(call_id)
    assert made.words == []


def test_a_question_outlives_the_runs_actor(stage: Stage) -> None:
    made = Made()
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        (call_id,) = asked(run)
        run._supervisor.tell(Forward(state=run._state, input=poison()))
        wait_until(lambda: run.snapshot().restarts == 1 and run.snapshot().waits_for is WaitsFor.APPROVAL)
        assert asked(run) == [call_id]
        run.approve(call_id)
        assert run.result(PATIENCE_S).text == "got fetched"
    assert made.words == [""]
    told = notices(run)
    assert [told.count(name) for name in ("tool.started", "tool.approval_asked", "tool.approved")] == [
        1,
        1,
        1,
    ]


# A hook


def hook_of(asynchronous: bool, decide: Callable[[ApprovalRequest], Any]) -> Any:
    async def decide_async(request: ApprovalRequest) -> Any:
        await asyncio.sleep(0)
        return decide(request)

    return decide_async if asynchronous else decide


@both
@pytest.mark.parametrize("tool_asynchronous", [False, True], ids=["sync tool", "async tool"])
def test_a_hook_decides_instead_of_a_person(
    stage: Stage, asynchronous: bool, tool_asynchronous: bool
) -> None:
    seen: list[tuple[str, Any, str]] = []
    decisions: dict[str, bool | str | None] = {"yes": True, "no": False, "why": "too dear", "person": None}

    def decide(request: ApprovalRequest) -> bool | str | None:
        seen.append((request.arguments["word"], request.state, variable.get()))
        return decisions[request.arguments["word"]]

    made = Made(asynchronous=tool_asynchronous)
    variable.set("mine")
    with stage.orchestrator(tools=[made.tool], approve=hook_of(asynchronous, decide)) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="each yes no why person", context=7)
        (call_id,) = asked(run)
        run.approve(call_id)
        result = run.result(PATIENCE_S)
    assert sorted(made.words) == ["person", "yes"]
    assert sorted(seen) == [(word, 7, "mine") for word in ("no", "person", "why", "yes")]
    assert [call.error for call in result.tool_calls] == [
        None,
        "denied: the call was denied",
        "denied: the call was denied: too dear",
        None,
    ]
    told = notices(run)
    assert (told.count("tool.approval_asked"), told.count("tool.approved")) == (1, 1)


@both
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ZeroDivisionError("a hook's own"), "ZeroDivisionError: a hook's own"),
        (3, "TypeError: an approval hook returns a bool, a reason or None, not int"),
    ],
    ids=["raises", "answers with a number"],
)
def test_what_a_broken_hook_does_not_allow_is_not_made(
    stage: Stage, asynchronous: bool, answer: Any, said: str
) -> None:
    def decide(request: ApprovalRequest) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    made, strict = Made(), Made(on_error="fail")
    with stage.orchestrator(tools=[made.tool], approve=hook_of(asynchronous, decide)) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S)
        fails = orchestrator.start(stage.assistant, messages="fetch", tools=[strict.tool])
        with pytest.raises(ToolFailed):
            fails.result(PATIENCE_S)
    assert result.tool_calls[0].error == f"raised: {said}"
    assert made.words == strict.words == []


def test_a_predicate_that_raises_lets_nothing_through(stage: Stage) -> None:
    def ask(arguments: Mapping[str, Any]) -> bool:
        return bool(arguments["amount"] > 3)

    made = Made(approval=ask)
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S)
    assert result.tool_calls[0].error == "raised: KeyError: 'amount'"
    assert made.words == []


def test_a_call_that_waits_holds_neither_a_thread_nor_a_place_of_its_tool(stage: Stage) -> None:
    made = Made(approval=lambda arguments: arguments["word"] != "free", max_concurrency=1)
    with stage.orchestrator(tools=[made.tool], tool_threads=1) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="each held") for _ in range(5)]
        ids = [asked(run)[0] for run in runs]
        free = orchestrator.start(stage.assistant, messages="each free")
        assert free.result(PATIENCE_S).text == "got free fetched"
        for run, call_id in zip(runs, ids, strict=True):
            run.approve(call_id)
        assert {run.result(PATIENCE_S).text for run in runs} == {"got held fetched"}


def test_the_time_that_a_person_takes_is_not_the_tools(stage: Stage) -> None:
    waited: list[float] = []

    @tool(name="fetch", approval=True, timeout_s=30.0)
    def fetch(context: ToolContext) -> str:
        waited.append(context.remaining_s)
        return "it"

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        (call_id,) = asked(run)
        threading.Event().wait(0.3)  # the person's own pace, which is what the test is about
        run.approve(call_id)
        run.result(PATIENCE_S)
    assert waited[0] > 29.9


def test_runs_ask_at_the_same_time_and_each_is_answered_for_itself(stage: Stage) -> None:
    made = Made()
    with stage.orchestrator(tools=[made.tool]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages=f"each w{number}") for number in range(40)]
        for number, run in enumerate(runs):
            (call_id,) = asked(run)
            run.approve(call_id) if number % 2 else run.deny(call_id, "even")
        results = [run.result(PATIENCE_S) for run in runs]
    assert sorted(made.words) == sorted(f"w{number}" for number in range(1, 40, 2))
    assert [call.error is None for result in results for call in result.tool_calls] == [False, True] * 20


def test_an_orchestrator_takes_a_hook_of_either_kind_only() -> None:
    with pytest.raises(TypeError, match="middleware and approve are functions"):
        Orchestrator(base_url="http://127.0.0.1:1/v1", api_key="k", approve="yes")  # type: ignore[arg-type]
