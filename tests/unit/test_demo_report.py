"""What the demo asks, what it accepts for an answer, and what it claims."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from rich.console import Console

import orchestrator.demo
from orchestrator.demo.display import LiveTable, PlainLines, display_on
from orchestrator.demo.questions import asked
from orchestrator.demo.report import judged, print_report
from orchestrator.demo.tools import TOOLS, stations
from orchestrator.errors import RunLost
from orchestrator.protocol.objects import LastError, Message, RunStep
from orchestrator.runs.result import RunResult, ToolCallResult

if TYPE_CHECKING:
    from orchestrator.demo.questions import Asked
    from orchestrator.demo.report import Outcome

RULES = Path(orchestrator.demo.__path__[0]) / "rules.yaml"
EXPRESSION = "(18 + 4) * 3 - 9 / 3"


def test_each_question_is_played_by_one_rule_and_every_tool_and_city_comes_up() -> None:
    patterns = [rule["match"] for rule in yaml.safe_load(RULES.read_text(encoding="utf-8"))["rules"]]
    series = asked(200, own=True)
    for one in series:
        assert sum(re.search(pattern, one.text) is not None for pattern in patterns) == 1, one.text
    assert {name for one in series for name, _ in one.question.calls} == {tool.name for tool in TOOLS}
    assert {len(one.question.calls) for one in series} == {1, 2, 3}
    assert {city for city in stations() if any(city in one.text for one in series)} == set(stations())


@pytest.mark.parametrize("own", [True, False])
def test_the_middle_one_of_several_runs_is_to_be_cancelled(own: bool) -> None:
    assert [one.to_cancel for one in asked(5, own=own)] == [False, False, True, False, False]
    assert [one.to_cancel for one in asked(1, own=own)] == [False]
    assert ("a long while" in asked(5, own=own)[2].text) is own


def the_sum() -> Asked:
    return next(one for one in asked(5, own=False) if EXPRESSION in one.text)


def the_cancelled() -> Asked:
    return next(one for one in asked(3, own=True) if one.to_cancel)


CALL = ToolCallResult(
    round=1,
    call_id="call_1",
    name="calculate",
    arguments=json.dumps({"expression": EXPRESSION}),
    output=json.dumps({"result": 63.0}),
)


def step(outputs: dict[str, str], status: str = "completed") -> RunStep:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "calculate", "output": output}}
        for call_id, output in outputs.items()
    ]
    details = {"type": "tool_calls", "tool_calls": calls}
    return msgspec.convert(
        {"id": "step_1", "type": "tool_calls", "status": status, "step_details": details}, RunStep
    )


STEP = step({"call_1": CALL.output})


def said(text: str) -> tuple[Message, ...]:
    content = [{"type": "text", "text": {"value": text, "annotations": []}}]
    return (msgspec.convert({"id": "msg_1", "content": content}, Message),)


RIGHT = RunResult(
    status="completed",
    thread_id="thread_1",
    run_id="run_1",
    messages=said(f"{EXPRESSION} = 63.0"),
    steps=(STEP,),
    tool_calls=(CALL,),
)


def outcome(of: Asked, came: RunResult | Exception, *, own: bool = True) -> Outcome:
    future: Future[RunResult] = Future()
    if isinstance(came, Exception):
        future.set_exception(came)
    else:
        future.set_result(came)
    return judged(of, future, own=own)


def test_an_answer_is_right_when_calls_outputs_steps_and_text_are() -> None:
    assert outcome(the_sum(), RIGHT).wrong is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"messages": said(f"{EXPRESSION} = 64.0")}, "said .* = 64.0', expected .* = 63.0'"),
        ({"tool_calls": (), "steps": ()}, r"called \[\], expected"),
        (
            {
                "tool_calls": (replace(CALL, output='{"result": 1}'),),
                "steps": (step({"call_1": '{"result": 1}'}),),
            },
            'calculate was answered {"result": 1}',
        ),
        (
            {
                "tool_calls": (replace(CALL, output="oh", error="it raised"),),
                "steps": (step({"call_1": "oh"}),),
            },
            "calculate failed: it raised",
        ),
        ({"status": "expired"}, "run run_1 on thread thread_1 ended as expired"),
    ],
)
def test_a_wrong_answer_is_noticed_on_the_demo_s_own_server(change: dict[str, Any], complaint: str) -> None:
    wrong = outcome(the_sum(), replace(RIGHT, **change)).wrong
    assert wrong is not None
    assert re.search(complaint, wrong), wrong


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "steps",
    [
        (),
        (STEP, STEP),
        (step({"call_1": "another output"}),),
        (step({"call_1": CALL.output, "call_2": "one more"}),),
        (step({"call_1": CALL.output}, status="in_progress"),),
    ],
    ids=["missing", "twice", "altered", "one too many", "not accepted"],
)
def test_a_batch_that_the_server_did_not_take_once_and_whole_is_noticed(
    steps: tuple[RunStep, ...], own: bool
) -> None:
    wrong = outcome(the_sum(), replace(RIGHT, steps=steps), own=own).wrong
    assert wrong == "the server's steps of run run_1 do not show what was submitted, batch by batch"


def test_another_server_s_words_are_its_own_and_its_failures_are_not() -> None:
    assert outcome(the_sum(), replace(RIGHT, messages=said("63, I think")), own=False).wrong is None
    failed = replace(RIGHT, status="failed", error=LastError(code="server_error", message="no luck"))
    assert outcome(the_sum(), failed, own=False).wrong == (
        "run run_1 on thread thread_1 ended as failed: no luck"
    )


def test_the_run_to_cancel_must_be_cancelled_where_it_lasts_a_minute() -> None:
    cancelled = RunResult(status="cancelled", thread_id="thread_1", run_id="run_1")
    completed = replace(cancelled, status="completed")
    assert outcome(the_cancelled(), cancelled).wrong is None
    assert outcome(the_cancelled(), completed).wrong == "run run_1 on thread thread_1 ended as completed"
    assert outcome(the_cancelled(), completed, own=False).wrong is None
    assert outcome(the_sum(), cancelled).wrong == "run run_1 on thread thread_1 ended as cancelled"


def printed(*outcomes: Outcome, own: bool = True) -> tuple[int, list[str]]:
    console = Console(file=io.StringIO(), width=30)
    code = print_report(console, outcomes, 1.0, own=own)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue().splitlines()


def test_the_totals_say_what_was_compared() -> None:
    right = outcome(the_sum(), RIGHT)
    assert printed(right) == (
        0,
        [
            f"   1  {EXPRESSION} = 63.0",
            "",
            "1 completed in 1.0 s",
            "1 tool call in 1 batch: the server's steps show each batch once and whole",
            "every answer agrees with the tools",
        ],
    )
    assert printed(right, own=False)[1][-1] == "the answers are the server's own: not judged"


def test_the_totals_claim_nothing_when_anything_is_wrong() -> None:
    lost = RunLost("run run_2 is gone", thread_id="thread_2", run_id="run_2", status=None)
    assert printed(outcome(the_sum(), RIGHT), outcome(the_sum(), lost)) == (
        1,
        [
            f"   1  {EXPRESSION} = 63.0",
            "   2  failed here: run run_2 is gone",
            "",
            "1 completed, 1 failed here in 1.0 s",
            "1 of 2 runs not as it should be",
        ],
    )


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    able = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    pipe = Console(file=io.StringIO(), _environ={})
    assert isinstance(display_on(dumb), PlainLines)
    assert isinstance(display_on(able), LiveTable)
    assert isinstance(display_on(pipe), PlainLines)
