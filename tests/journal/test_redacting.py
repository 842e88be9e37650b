"""What a journal does not keep where its user says so, and what becomes of a run whose texts it has not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from desk import ACTING, CALL, Desk, outcome, record
from test_conducting import execute

from orchestrator.journal import Conducted, SQLJournal
from orchestrator.protocol.objects import (
    FunctionCall,
    RequiredAction,
    Run,
    RunStep,
    StepDetails,
    SubmitToolOutputs,
    ToolCall,
)
from orchestrator.runs.effects import Finish
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.result import RunResult
from orchestrator.supervision.recovery import unknown_settled
from orchestrator.tools import ToolRegistry, tool

if TYPE_CHECKING:
    import pytest
from msgspec import structs


def redact(what: str, name: str, text: str) -> str:
    if name == "broken":
        raise ValueError(text)
    return f"<{what} of {len(text)}>" if "Rome" in text or "sunny" in text else text


def asking(*calls: ToolCall) -> Run:
    asked = RequiredAction(submit_tool_outputs=SubmitToolOutputs(tool_calls=calls))
    return Run(id="run_1", status="requires_action", required_action=asked)


def at_work(url: str) -> Desk:
    return Desk(SQLJournal(url, poll_s=0.02, backoff_s=0.01, redact=redact))


def recorded(url: str, *records: RunRecord) -> RunRecord:
    """Have records kept by a journal that redacts; return what another process is given."""
    desk = at_work(url)
    try:
        run = desk.conduct(records[0])
        for later in records[1:]:
            desk.record(structs.replace(later, nonce=run.nonce))
        assert desk.journal.last("one") == structs.replace(records[-1], nonce=run.nonce)
    finally:
        desk.close()
    other = Desk(SQLJournal(url))
    try:
        taken = other.claim("one")
    finally:
        other.close()
    assert isinstance(taken, Conducted)
    return taken.record


def test_no_text_of_a_call_is_in_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    first = record()
    acting = structs.replace(first, **ACTING, results=(outcome(error="raised: sunny"),))
    shown = {"id": "call_1", "function": {"name": "fetch", "arguments": "Rome", "output": "sunny"}}
    step = RunStep(id="step_1", step_details=StepDetails(type="tool_calls", tool_calls=[shown, {"id": "x"}]))
    result = RunResult(
        status="completed", thread_id="t", run_id="r", steps=(step,), tool_calls=acting.results
    )
    desk = at_work(url)
    try:
        run = desk.conduct(first)
        desk.record(structs.replace(acting, nonce=run.nonce))
        desk.finish(structs.replace(acting, nonce=run.nonce), Finish(result=result))
    finally:
        desk.close()
    for file in tmp_path.iterdir():
        assert b"Rome" not in file.read_bytes()
        assert b"sunny" not in file.read_bytes()
    (call,) = SQLJournal(url).show("one").calls
    assert (call.arguments, call.output) == (
        f"<arguments of {len(CALL.function.arguments)}>",
        "<output of 5>",
    )
    kept = SQLJournal(url).outcome("one")
    assert kept is not None
    assert kept.result is not None
    assert kept.result.steps[0].step_details is not None
    assert kept.result.steps[0].step_details.tool_calls == [
        {
            "id": "call_1",
            "function": {"name": "fetch", "arguments": "<arguments of 4>", "output": "<output of 5>"},
        },
        {"id": "x"},
    ]


def test_a_batch_is_known_again_without_its_texts(url: str) -> None:
    first = record()
    run = recorded(url, first, structs.replace(first, **ACTING))
    assert run.redacted
    assert run.calls[0].function.arguments.startswith("<arguments")
    assert run.is_asked_by(asking(CALL))
    assert not run.is_asked_by(asking(CALL, replace_id(CALL, "call_2")))
    assert not run.is_asked_by(asking(replace_id(CALL, "call_2")))


def replace_id(call: ToolCall, call_id: str) -> ToolCall:
    return ToolCall(id=call_id, function=call.function)


def test_what_is_not_touched_can_be_gone_on_with(url: str) -> None:
    first = record()
    call = ToolCall(id="call_1", function=FunctionCall(name="fetch", arguments="{}"))
    acting = structs.replace(
        first, **ACTING | {"calls": (call,)}, results=(outcome(arguments="{}", output="rain"),)
    )
    run = recorded(url, first, acting)
    assert not run.redacted
    assert unknown_settled(run, ToolRegistry()).results == run.results


def test_the_model_is_told_that_results_are_unknown_whose_texts_were_not_kept(url: str) -> None:
    @tool(idempotent=True)
    def fetch(city: str) -> str:
        return city

    first = record()
    acting = structs.replace(first, **ACTING, results=(outcome(),))
    for phase in (Phase.ACTING, Phase.SUBMITTING):
        execute(url, "DELETE FROM journal_runs") if phase is Phase.SUBMITTING else None
        settled = unknown_settled(
            recorded(url, first, structs.replace(acting, phase=phase)), ToolRegistry([fetch])
        )
        (result,) = settled.results
        assert result.error is not None
        assert result.error.startswith("unknown")
        assert "sunny" not in result.output


def test_a_function_that_fails_keeps_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    first = record()
    call = ToolCall(id="call_1", function=FunctionCall(name="broken", arguments="secret"))
    run = recorded(url, first, structs.replace(first, **ACTING | {"calls": (call,)}))
    assert run.calls[0].function.arguments == "(not kept: redact= failed)"
    assert "secret" not in caplog.text
