"""Every way a tool call may go, for tools of both kinds, whatever is to be done about their failures.

End to end, on a real server. `STORIES` is the table of what is to come of each: what the model is told, what
the handle and its events say, and how the run ends on the server.
"""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import pytest
from stage import PATIENCE_S, QUICK, Stage, assert_nothing_left, staged

from orchestrator import Notice, RunHandle, ToolContext, tool
from orchestrator.errors import ToolFailed
from orchestrator.protocol.events import RunEvent
from orchestrator.tools.declaration import OnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator import Tool
    from orchestrator.runs.request import Watch
    from orchestrator.runs.result import StreamedEvent

Kind: TypeAlias = Literal["sync", "async"]

RULES: Final[list[dict[str, Any]]] = [
    {"match": "^both", "steps": [{"call": [{"tool": "fetch"}, {"tool": "other"}]}, {"say": "I see"}]},
]

LIFE_S = 30.0
"""How long runs live, much longer than anything takes here."""

MARGIN_S = LIFE_S - 0.4
"""Kept back of a run's life where a tool is to exceed it, so that this comes soon: after 0.4 seconds, or 1.4,
since the `Date` by which a run's life is reckoned has whole seconds."""

SHORT_LIFE_S = 1.0
"""So long live runs that expire before they are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One way a call may go, and what is to be seen of it.

    Attributes:
        plot: What the function does; `waits` is until it is stopped, and then it has not returned in time.
        act: What somebody does meanwhile.
        notices: What the run's events say of the call, in order.
        output: What the model is told, a pattern for all of it; `None` where it is told nothing.
        error: What the handle says of it, likewise; `None` without an error.
        attempts: How often the function was executed.
        ends: The run's status in the end, here and on the server.
        cause: What `ToolFailed` is raised from with `on_error="fail"`; `None` where that changes nothing.
        approval: Whether the tool needs it.
        timeout_s: The tool's own.
        margin_s: `Timing.expiry_margin_s`.
        life_s: How long the server lets the run live.
    """

    plot: Literal["returns", "raises", "waits"]
    act: Literal["cancel", "approve", "deny", None] = None
    notices: str
    output: str | None
    error: str | None = None
    attempts: int = 1
    ends: str = "completed"
    cause: type[Exception] | None = None
    approval: bool = False
    timeout_s: float = 60.0
    margin_s: float = QUICK.expiry_margin_s
    life_s: float = LIFE_S


def said(kind: str, message: str) -> str:
    """How a model is told of an error, as a pattern."""
    return rf'\{{"error": \{{"type": "{kind}", "message": "{message}"\}}\}}'


LATE = r"no result within [\d.]+ seconds"
UNDECIDED = r"the call needs approval, and nobody approved it within [\d.]+ seconds"
DENIED = "the call was denied: not today"

STORIES: Final = {
    "returns": Story(plot="returns", notices="started finished", output="sunny"),
    "raises": Story(
        plot="raises",
        notices="started finished",
        output=said("ValueError", "no luck"),
        error="raised: ValueError: no luck",
        cause=ValueError,
    ),
    "hangs": Story(
        plot="waits",
        timeout_s=0.3,
        notices="started finished",
        output=said("timeout", LATE),
        error=f"timeout: {LATE}",
        cause=TimeoutError,
    ),
    "exceeds the expiry": Story(
        plot="waits",
        margin_s=MARGIN_S,
        notices="started finished",
        output=said("timeout", LATE),
        error=f"timeout: {LATE}",
        cause=TimeoutError,
    ),
    "is overtaken by the expiry": Story(
        plot="waits",
        timeout_s=1.1 * SHORT_LIFE_S,
        margin_s=0.0,
        life_s=SHORT_LIFE_S,
        notices="started finished",
        output=None,
        error=f"timeout: {LATE}",
        ends="expired",
        cause=TimeoutError,
    ),
    "is cancelled": Story(plot="waits", act="cancel", notices="started", output=None, ends="cancelled"),
    "is approved": Story(
        plot="returns",
        act="approve",
        approval=True,
        notices="started approval_asked approved finished",
        output="sunny",
    ),
    "is approved and raises": Story(
        plot="raises",
        act="approve",
        approval=True,
        notices="started approval_asked approved finished",
        output=said("ValueError", "no luck"),
        error="raised: ValueError: no luck",
        cause=ValueError,
    ),
    "is denied": Story(
        plot="returns",
        act="deny",
        approval=True,
        notices="started approval_asked finished",
        output=said("denied", DENIED),
        error=f"denied: {DENIED}",
        attempts=0,
    ),
    "is decided by nobody": Story(
        plot="returns",
        approval=True,
        margin_s=MARGIN_S,
        notices="started approval_asked finished",
        output=said("denied", UNDECIDED),
        error=f"denied: {UNDECIDED}",
        attempts=0,
    ),
    "is cancelled undecided": Story(
        plot="returns",
        act="cancel",
        approval=True,
        notices="started approval_asked",
        output=None,
        attempts=0,
        ends="cancelled",
    ),
}


def cells() -> Iterator[Any]:
    """Every story for every kind of tool, streamed; some of what takes long, like polling, is left out."""
    for (name, story), kind, on_error in product(STORIES.items(), get_args(Kind), get_args(OnError)):
        if story.life_s == SHORT_LIFE_S and kind == "sync":
            continue
        polled = (kind, on_error) == ("async", "fail") and story.margin_s == QUICK.expiry_margin_s
        for watch in ("stream", "poll") if polled else ("stream",):
            yield pytest.param(story, kind, on_error, watch, id=f"{kind} {name}, {on_error}, {watch}")


class Performance:
    """A tool that plays a story, and what is seen of it from within."""

    def __init__(self, story: Story) -> None:
        self.begun = self.stopped = 0
        self.error = ValueError("no luck")
        self._reached = threading.Event()
        self._story = story

    def tool(self, kind: Kind, on_error: OnError) -> Tool[..., Any]:
        story = self._story
        made = tool(
            name="fetch",
            on_error=on_error,
            approval=story.approval,
            timeout_s=story.timeout_s,
        )
        functions: dict[Kind, Callable[..., Any]] = {"sync": self._plain, "async": self._coroutine}
        return made(functions[kind])

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE_S)

    def _plain(self, context: ToolContext) -> str:
        self._begin()
        if self._story.plot == "waits":
            assert context.stop.wait(PATIENCE_S)
            assert context.cancelled
            self.stopped += 1
        return "sunny"

    async def _coroutine(self, context: ToolContext) -> str:
        self._begin()
        if self._story.plot == "waits":
            try:
                await asyncio.sleep(PATIENCE_S)
            except asyncio.CancelledError:
                assert context.cancelled
                self.stopped += 1
                raise
        return "sunny"

    def _begin(self) -> None:
        self.begun += 1
        self._reached.set()
        if self._story.plot == "raises":
            raise self.error


def other() -> str:
    """Stand in the same batch."""
    return "beside"


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[float, Stage]]:
    """Servers, by how long their runs live."""
    with ExitStack() as servers:
        yield {
            life_s: servers.enter_context(staged(RULES, run_ttl_s=life_s))
            for life_s in (LIFE_S, SHORT_LIFE_S)
        }


@pytest.mark.parametrize(("story", "kind", "on_error", "watch"), list(cells()))
def test_a_tool_call_goes_as_the_table_says_for_the_model_the_handle_the_events_and_the_server(
    stages: dict[float, Stage], story: Story, kind: Kind, on_error: OnError, watch: Watch
) -> None:
    stage = stages[story.life_s]
    performance = Performance(story)
    cause = story.cause if on_error == "fail" else None
    timing = replace(QUICK, expiry_margin_s=story.margin_s)
    made = performance.tool(kind, on_error)
    with stage.orchestrator(tools=[made, other], timing=timing, watch=watch, tool_threads=2) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="both")
        call_id = acted(run, story, performance)
        if cause is None:
            assert_result(run, story)
        else:
            assert_tool_failed(run, cause, performance)
    # The orchestrator has waited for its tools.
    assert performance.begun == story.attempts
    assert performance.stopped == (story.plot == "waits")
    assert_nothing_left(stage.server.base_url, ours=1)
    assert_told(stage, run, story, answered=cause is None and story.act != "cancel")
    ends = "cancelled" if cause is not None and story.ends == "completed" else story.ends
    assert stage.run(run.thread_id, run.run_id).status == run.status == ends
    assert seen(run, call_id) == [
        "thread.run.requires_action",
        *(f"tool.{notice}" for notice in story.notices.split()),
        f"thread.run.{ends}",
    ]
    finished = [e.detail for e in notices(run) if e.event == "tool.finished" and e.call_id == call_id]
    assert [matches(story.error, detail) for detail in finished] == [True] * ("finished" in story.notices)
    with pytest.raises(ValueError, match="waits for approval"):
        run.approve(call_id)


def acted(run: RunHandle, story: Story, performance: Performance) -> str:
    """Do what somebody does in the story; returns the call's id."""
    awaited = "tool.approval_asked" if story.approval else "tool.started"
    notice = next(
        event
        for event in run.events()
        if isinstance(event, Notice) and (event.event, event.name) == (awaited, "fetch")
    )
    assert notice.call_id is not None
    match story.act:
        case "approve":
            run.approve(notice.call_id)
        case "deny":
            run.deny(notice.call_id, "not today")
        case "cancel":
            if not story.approval:
                performance.wait_until_reached()
            run.cancel()
    return notice.call_id


def assert_result(run: RunHandle, story: Story) -> None:
    """The handle has a result, with every call that has an outcome."""
    result = run.result(PATIENCE_S)
    calls = {call.name: call for call in result.tool_calls}
    assert result.status == story.ends
    assert len(calls) == len(result.tool_calls)
    if "finished" not in story.notices:
        assert calls.keys() <= {"other"}  # which may have been quicker than what ended the run
        return
    assert list(calls) == ["fetch", "other"]
    assert matches(story.error, calls["fetch"].error)
    assert calls["fetch"].attempts == story.attempts
    assert (calls["other"].output, calls["other"].error, calls["other"].attempts) == ("beside", None, 1)


def assert_tool_failed(run: RunHandle, cause: type[Exception], performance: Performance) -> None:
    """The handle raises, says which run that was, and from what."""
    with pytest.raises(ToolFailed, match="tool 'fetch' failed") as failed:
        run.result(PATIENCE_S)
    error = failed.value
    assert (error.thread_id, error.run_id) == (run.thread_id, run.run_id)
    assert error.status == run.status  # what became of it, not what it was when it was given up
    assert type(error.__cause__) is cause
    assert cause is TimeoutError or error.__cause__ is performance.error
    assert "no luck" not in str(error)


def assert_told(stage: Stage, run: RunHandle, story: Story, *, answered: bool) -> None:
    """The batch was submitted once, and the model was told all of it; or the run was cancelled, once."""
    request = "submit_tool_outputs" if answered else "cancel"
    assert stage.requests(run.thread_id, "POST") == ["POST /runs", f"POST /runs/{run.run_id}/{request}"]
    assert run.thread_id is not None
    assert run.run_id is not None
    steps = stage.client.list_run_steps(run.thread_id, run.run_id, order="asc").data
    details = next(step.step_details for step in steps if step.type == "tool_calls")
    assert details is not None
    functions = [call["function"] for call in details.tool_calls or ()]
    outputs = {function["name"]: function["output"] for function in functions}
    assert list(outputs) == ["fetch", "other"]
    if answered and story.output is not None:
        assert matches(story.output, outputs["fetch"])
        assert outputs["other"] == "beside"
    else:
        assert set(outputs.values()) == {None}


def notices(run: RunHandle) -> list[Notice]:
    return [event for event in run.events() if isinstance(event, Notice)]


def seen(run: RunHandle, call_id: str) -> list[str]:
    """What the events tell of one call, between what the server tells of the run."""
    return [event.event for event in run.events() if _tells(event, call_id)]


def _tells(event: StreamedEvent, call_id: str) -> bool:
    if isinstance(event, Notice):
        return event.call_id == call_id
    return isinstance(event, RunEvent) and (event.data.is_terminal or event.data.status == "requires_action")


def matches(pattern: str | None, text: str | None) -> bool:
    return text is None if pattern is None else re.fullmatch(pattern, text or "") is not None
