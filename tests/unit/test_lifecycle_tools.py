"""What tool calls say before they are over, and what of theirs ends the run."""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle_story import RUN, THREAD, Story, call, run

from orchestrator.errors import BudgetExceeded, ToolFailed
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import Phase

ONE, TWO = call("call_1", "refund"), call("call_2", "notify")


def notice(story: Story, kind: Any, call_id: str = "call_1", **more: Any) -> None:
    story.tell(told.ToolNoticed(round=more.pop("round", 1), call_id=call_id, notice=kind, **more))


def finish(story: Story, call_id: str = "call_1", **more: Any) -> None:
    round_ = story.machine.record.round
    story.tell(told.ToolFinished(round=round_, call_id=call_id, output="no", **more))


def acting() -> Story:
    story = Story()
    story.act(ONE, TWO)
    return story


def test_a_call_that_waits_for_approval_is_told_of_and_recorded() -> None:
    story = acting()
    notice(story, "tool.approval_asked")
    assert story.notices[-1].event == "tool.approval_asked"
    assert (story.notices[-1].call_id, story.notices[-1].name) == ("call_1", "refund")
    assert story.last(fx.Record).record.awaiting == {"call_1"}
    assert story.machine.waiting == (WaitsFor.TOOL, "notify")
    notice(story, "tool.approval_asked", "call_2")
    assert story.machine.waiting == (
        WaitsFor.APPROVAL,
        "somebody's approval of refund (call_1), notify (call_2)",
    )
    notice(story, "tool.approved")
    assert story.machine.waiting == (WaitsFor.TOOL, "refund")
    finish(story, "call_2", error="denied: the call was denied")
    assert story.last(fx.Record).record.awaiting == frozenset()


def test_a_successor_knows_what_waits_for_approval() -> None:
    story = acting()
    notice(story, "tool.approval_asked")
    notice(story, "tool.approval_asked", "call_2")
    after = story.successor(open_calls=("call_1", "call_2"))
    assert after.machine.waiting[0] is WaitsFor.APPROVAL
    assert after.all(fx.StartTools) == []


def test_progress_is_published_and_counts_as_moving() -> None:
    story = acting()
    story.wait(30)
    notice(story, "tool.progress", detail="half of it", fraction=0.5)
    told_ = story.notices[-1]
    assert (told_.event, told_.detail, told_.fraction) == ("tool.progress", "half of it", 0.5)
    assert told_.run_id == RUN
    assert story.machine.progressed_at == 1030.0


@pytest.mark.parametrize("about", [{"round": 2}, {"call_id": "call_9"}], ids=["another round", "no call"])
def test_what_is_said_of_another_call_is_ignored(about: dict[str, Any]) -> None:
    story = acting()
    before = len(story.effects)
    notice(story, "tool.approval_asked", **about)
    assert len(story.effects) == before
    assert story.machine.record.awaiting == frozenset()


def test_what_is_said_after_the_answer_is_ignored() -> None:
    story = acting()
    finish(story)
    before = len(story.effects)
    notice(story, "tool.progress", detail="late")
    assert len(story.effects) == before


def test_the_next_batch_begins_without_open_questions() -> None:
    story = acting()
    notice(story, "tool.approval_asked")
    finish(story)
    finish(story, "call_2")
    story.stream(run("requires_action", ONE))
    assert story.machine.record.awaiting == frozenset()
    assert story.machine.waiting == (WaitsFor.TOOL, "refund")


def test_a_failure_that_is_to_end_the_run_cancels_it_and_stops_the_other_calls() -> None:
    story = acting()
    cause = ValueError("no stock for order 4711")
    finish(story, error="raised: ValueError: no stock for order 4711", fatal=cause)
    assert story.phase is Phase.CANCELLING
    assert story.all(fx.StopTools)
    assert story.last(fx.CancelRun).run_id == RUN
    assert "SubmitToolOutputs" not in story.sent
    story.answer(run("cancelled"))
    error = story.error
    assert isinstance(error, ToolFailed)
    assert (error.thread_id, error.run_id, error.status) == (THREAD, RUN, "cancelled")
    assert error.__cause__ is cause
    assert "'refund' failed (call call_1" in str(error)
    assert "ValueError" in str(error)
    assert "4711" not in str(error), "what a tool says may quote its arguments, and errors are logged"


def test_a_run_that_completed_before_it_could_be_cancelled_is_completed_all_the_same() -> None:
    story = acting()
    finish(story, error="raised: ValueError", fatal=ValueError())
    story.answer(run("completed"))
    story.transcript()
    assert story.result.status == "completed"
    assert [result.call_id for result in story.result.tool_calls] == ["call_1"]


def fail_a_round(story: Story, *calls: Any, error: str | None = "raised: ValueError: no") -> None:
    """Answer a batch that the run asks for; it then waits for the next."""
    for asked in calls or story.machine.open_calls:
        finish(story, asked.id, error=error)


def test_batches_of_nothing_but_failures_end_the_run_at_their_most() -> None:
    story = Story(max_failed_tool_rounds=3)
    story.act(ONE, TWO)
    for _ in range(2):
        fail_a_round(story)
        assert story.phase is Phase.SUBMITTING
        story.stream(run("requires_action", ONE, TWO))
    fail_a_round(story)
    assert story.phase is Phase.CANCELLING
    assert story.sent.count("SubmitToolOutputs") == 2
    story.answer(run("cancelled"))
    assert isinstance(story.error, BudgetExceeded)
    assert "3 batches in a row in which every tool call failed" in str(story.error)


def test_one_result_in_a_batch_begins_the_count_anew() -> None:
    story = Story(max_failed_tool_rounds=2)
    story.act(ONE, TWO)
    for _ in range(3):
        fail_a_round(story)
        story.stream(run("requires_action", ONE, TWO))
        fail_a_round(story, ONE)
        fail_a_round(story, TWO, error=None)
        assert story.phase is Phase.SUBMITTING
        story.stream(run("requires_action", ONE, TWO))
    assert story.machine.record.failed_rounds == 0


def test_the_budget_of_failed_batches_is_ten_unless_it_is_said_otherwise() -> None:
    story = Story()
    story.act(ONE)
    rounds = 1
    while True:
        fail_a_round(story)
        if story.phase is not Phase.SUBMITTING:
            break
        story.stream(run("requires_action", ONE))
        rounds += 1
    assert (rounds, story.phase) == (10, Phase.CANCELLING)
    endless = Story(max_failed_tool_rounds=None)
    endless.act(ONE)
    for _ in range(30):
        fail_a_round(endless)
        assert endless.phase is Phase.SUBMITTING
        endless.stream(run("requires_action", ONE))


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0, ValueError, "max_failed_tool_rounds must be at least 1, got 0"),
        ("3", TypeError, "max_failed_tool_rounds must be a whole number or None, got '3'"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(value: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Story(max_failed_tool_rounds=value)
