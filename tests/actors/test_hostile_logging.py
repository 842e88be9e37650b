"""An application's log handler that raises costs log lines, and neither runs nor their outcomes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from crew import Killing, crewed
from stage import PATIENCE_S, Gate, Stage

from orchestrator import tool
from orchestrator.runs.effects import CreateRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Hostile(logging.Handler):
    """Notes the events it was to log, and raises."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, dict)
        self.events.append(record.msg)
        raise OSError("no space left")


@pytest.fixture(params=[logging.WARNING, logging.DEBUG], ids=["warnings", "everything"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Hostile]:
    handler, ours = Hostile(), logging.getLogger("orchestrator")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(request.param)
    yield handler
    ours.removeHandler(handler)
    ours.setLevel(level)


def unasked() -> str:
    raise AssertionError("nobody asks for this tool")


@tool(name="fetch")
def raising() -> str:
    raise ValueError("broken")


@tool(name="fetch")
async def raising_later() -> str:
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("function", "kind"),
    [(unasked, "unknown_tool"), (raising, "raised"), (raising_later, "raised")],
    ids=["unknown", "raises", "raises on the loop"],
)
def test_a_run_whose_tool_fails_completes_and_close_returns(
    stage: Stage, hostile: Hostile, function: Callable[[], object], kind: str
) -> None:
    with stage.orchestrator(tools=[function]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S)
    assert result.status == "completed"
    (call,) = result.tool_calls
    assert call.error is not None
    assert [event["kind"] for event in hostile.events if event["event"] == "tool.failed"] == [kind]


def test_a_run_whose_actor_dies_goes_on_and_the_supervisor_lives(stage: Stage, hostile: Hostile) -> None:
    with crewed(stage, Gate(opened=True).fetch) as crew:
        struck = crew.start("fetch", lambda backend: Killing(backend, kind=CreateRun, before=False))
        assert struck.result(PATIENCE_S).text == "got it"
        assert crew.start("fetch").result(PATIENCE_S).text == "got it"
    assert hostile.events
