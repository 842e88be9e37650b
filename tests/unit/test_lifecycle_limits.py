"""What ends a run before the server does: no progress, its budgets, and the time that it has left."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lifecycle_story import RUN, THREAD, TIMING, Story, call, cut, message_event, refused, run, step

from orchestrator.errors import BudgetExceeded, RunStalled
from orchestrator.protocol.events import RunStepEvent
from orchestrator.protocol.objects import Run, Usage
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase


def using(seen: Run, tokens: int) -> Run:
    return msgspec.structs.replace(seen, usage=Usage(total_tokens=tokens))


def lasting(seen: Run, *, created_at: float = 5000, started_at: float | None = None, s: float = 600) -> Run:
    """A run on a server whose clock has nothing to do with ours."""
    return msgspec.structs.replace(
        seen, created_at=created_at, started_at=started_at, expires_at=created_at + s
    )


# No progress.


def test_a_stalled_run_is_reported_and_looked_at_and_goes_on() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    assert [notice.event for notice in story.notices] == ["run.stalled"]
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("queued"))
    story.fire(Timer.STALL)
    assert [notice.event for notice in story.notices] == ["run.stalled"] * 2
    assert "120 s" in (story.notices[-1].detail or "")
    assert story.phase is Phase.WATCHING


def test_a_stalled_run_does_not_look_as_if_it_had_moved() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    story.answer(run("queued"))
    assert story.machine.progressed_at == 1000.0


def test_a_run_that_the_look_shows_unchanged_is_cancelled_where_that_was_asked_for() -> None:
    story = Story(on_stall="cancel")
    story.watch()
    story.fire(Timer.STALL)
    story.answer(run("queued"))
    assert (story.phase, story.sent[-1]) == (Phase.CANCELLING, "CancelRun")
    story.stream(run("cancelled"))
    assert isinstance(story.error, RunStalled)
    assert (story.error.run_id, story.error.thread_id) == (RUN, THREAD)
    assert "no progress for 60 s in status queued" in str(story.error)


def test_a_run_that_the_look_shows_moved_goes_on() -> None:
    story = Story(on_stall="cancel")
    story.watch()
    story.fire(Timer.STALL)
    story.answer(run("in_progress"))
    assert story.phase is Phase.WATCHING


def test_a_look_that_fails_is_no_reason_to_cancel() -> None:
    story = Story(on_stall="cancel")
    story.watch()
    story.fire(Timer.STALL)
    story.fail(refused(503))
    assert story.phase is Phase.WATCHING
    story.fire(Timer.POLL)
    story.answer(run("queued"))
    assert story.sent[-1] == "CancelRun"


def test_every_event_of_a_stream_is_progress() -> None:
    story = Story(on_stall="cancel")
    story.watch()
    for number in range(5):
        story.wait(TIMING.stall_s - 1)
        story.stream(run("queued") if number % 2 else message_event("msg_1", "x"))
    assert (story.notices, story.phase) == ([], Phase.WATCHING)


def test_a_polled_run_that_stays_in_its_status_stalls_too() -> None:
    story = Story(watch="poll", on_stall="cancel")
    story.watch()
    while story.phase is Phase.WATCHING:
        story.fire(Timer.POLL)
        story.answer(run("queued"))
    assert story.now - 1000.0 == pytest.approx(TIMING.stall_s, abs=TIMING.poll_max_s * 1.2)


def test_a_stalled_run_that_completes_before_the_cancel_is_completed() -> None:
    story = Story(on_stall="cancel")
    story.watch()
    story.fire(Timer.STALL)
    story.answer(run("queued"))
    story.stream(run("completed"))
    assert story.result.status == "completed"


# Budgets.


def test_one_batch_more_than_allowed_is_not_begun_and_cancels_the_run() -> None:
    story = Story(max_tool_rounds=1)
    story.submit(call("call_1"))
    story.stream(run("queued"), run("requires_action", call("call_1")))
    assert len(story.all(fx.StartTools)) == 1
    assert story.sent[-1] == "CancelRun"
    story.stream(run("cancelled"))
    story.answer(run("cancelled"))
    assert isinstance(story.error, BudgetExceeded)
    assert "max_tool_rounds=1" in str(story.error)


def test_no_batch_at_all_can_be_allowed() -> None:
    story = Story(max_tool_rounds=0)
    story.act()
    assert (story.all(fx.StartTools), story.sent[-1]) == ([], "CancelRun")


def test_as_many_batches_as_allowed_are_fine() -> None:
    story = Story(max_tool_rounds=1)
    story.submit(call("call_1"))
    story.stream(run("queued"), run("completed"))
    assert story.result.status == "completed"


def test_a_spurious_end_after_the_batch_that_was_not_begun_is_not_believed() -> None:
    story = Story(max_tool_rounds=0)
    story.act()
    story.stream(run("completed"))
    assert story.phase is Phase.CANCELLING


def test_tokens_that_a_run_tells_count() -> None:
    story = Story(max_total_tokens=100)
    story.watch()
    story.stream(using(run("requires_action", call("call_1")), 101))
    assert (story.all(fx.StartTools), story.sent[-1]) == ([], "CancelRun")
    story.stream(run("cancelled"))
    story.answer(run("cancelled"))
    assert isinstance(story.error, BudgetExceeded)
    assert "101 tokens, more than max_total_tokens=100" in str(story.error)


def test_tokens_that_the_steps_tell_count_too() -> None:
    story = Story(max_total_tokens=100)
    story.watch()
    for number in (1, 2):
        spent = msgspec.structs.replace(step(f"step_{number}"), usage=Usage(total_tokens=60))
        event = RunStepEvent(event="thread.run.step.completed", data=spent, run_id=RUN)
        story.stream(event)
    assert story.phase is Phase.CANCELLING


def test_exactly_the_budget_is_fine_and_so_is_a_run_that_completed_past_it() -> None:
    story = Story(max_total_tokens=100)
    story.watch()
    story.stream(using(run("in_progress"), 100), using(run("completed"), 1000))
    assert story.result.status == "completed"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"max_tool_rounds": -1}, ValueError),
        ({"max_tool_rounds": 1.5}, TypeError),
        ({"max_total_tokens": 0}, ValueError),
        ({"max_total_tokens": True}, TypeError),
        ({"on_stall": "panic"}, ValueError),
        ({"on_expired": "panic"}, ValueError),
        ({"on_busy_thread": "panic"}, ValueError),
    ],
    ids=str,
)
def test_a_limit_that_makes_no_sense_is_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        Story(**wrong)


# The time that is left.


def bound(story: Story) -> float | None:
    return story.last(fx.StartTools).bound_s


def test_tools_get_what_the_run_has_left_by_the_servers_own_clock_less_the_margin() -> None:
    story = Story(watch="poll")
    story.create()
    story.answer(lasting(run("in_progress")), expires_in_s=100.0)
    story.wait(0.1)
    story.fire(Timer.POLL)
    story.answer(lasting(run("requires_action", call("call_1"))), expires_in_s=50.0)
    assert bound(story) == pytest.approx(50.0 - TIMING.expiry_margin_s)


def test_without_the_servers_clock_its_life_counts_from_when_it_was_first_seen() -> None:
    story = Story()
    story.create()
    story.stream(lasting(run("in_progress"), s=600))
    story.wait(50)
    story.stream(lasting(run("requires_action", call("call_1")), s=600))
    assert bound(story) == pytest.approx(550 - TIMING.expiry_margin_s)


def test_the_newest_moment_that_the_run_names_is_what_its_life_counts_from() -> None:
    story = Story(thread_id=THREAD, run_id=RUN)
    story.start()
    story.answer(lasting(run("requires_action", call("call_1")), started_at=5500, s=600))
    assert bound(story) == pytest.approx(100 - TIMING.expiry_margin_s)


@pytest.mark.parametrize("seen", [run("requires_action", call("call_1")), lasting(run("x"), created_at=0)])
def test_a_run_that_does_not_say_when_it_expires_bounds_nothing(seen: Run) -> None:
    story = Story(thread_id=THREAD, run_id=RUN)
    story.start()
    story.answer(msgspec.structs.replace(run("requires_action", call("call_1")), expires_at=seen.expires_at))
    assert bound(story) is None


def test_a_run_that_is_about_to_expire_gives_tools_no_time_and_is_answered_at_once() -> None:
    story = Story(watch="poll")
    story.create()
    story.answer(run("requires_action", call("call_1")), expires_in_s=1.0)
    assert bound(story) == 0.0


def test_a_successor_gives_the_calls_it_starts_the_time_that_is_left() -> None:
    story = Story()
    story.create()
    story.stream(lasting(run("requires_action", call("call_1"), call("call_2")), s=600))
    story.finish_tool("call_1")
    story.wait(100)
    again = story.successor()
    assert [asked.id for asked in again.last(fx.StartTools).calls] == ["call_2"]
    assert bound(again) == pytest.approx(500 - TIMING.expiry_margin_s)


# Taking back what has not left.


def test_a_cancel_takes_a_create_back_that_has_not_left() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    effects = story.tell(told.CancelRequested())
    assert fx.Withdraw(number=story.last(fx.CreateRun).number) in effects
    story.fail(cut(sent=False))
    assert (story.result.status, story.result.run_id) == ("cancelled", None)
    assert story.sent == ["CreateRun"]


def test_a_detach_and_a_deadline_take_it_back_too() -> None:
    for end in ("detach", "deadline"):
        story = Story(thread_id=THREAD)
        story.create()
        if end == "detach":
            story.tell(told.DetachRequested())
        else:
            story.fire(Timer.DEADLINE)
        assert len(story.all(fx.Withdraw)) == 1
        story.fail(cut(sent=False))
        assert story.phase is Phase.FINISHED


def test_a_cancel_takes_a_submission_back_that_has_not_left_and_cancels_at_once() -> None:
    story = Story()
    story.submit()
    number = story.last(fx.SubmitToolOutputs).number
    story.tell(told.CancelRequested())
    assert (story.last(fx.Withdraw).number, story.sent[-1]) == (number, "CancelRun")
    story.fail(cut(sent=False), number)
    assert story.phase is Phase.CANCELLING


def test_a_create_that_nobody_hears_of_is_waited_for_no_longer_than_a_cancel_is() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.tell(told.CancelRequested())
    story.wait(TIMING.cancel_timeout_s)
    assert "orchestrator_nonce" in str(story.error)
