"""A thread that somebody else's run holds: it is waited for, reported or ended; nothing is created twice."""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle_story import NONCE, RUN, THREAD, Story, cut, refused, run

from orchestrator.errors import AuthenticationError, DeadlineExceeded, ThreadBusy
from orchestrator.protocol.objects import Run
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase

FOREIGN = "run_7"
BUSY = refused(400, f"Thread {THREAD} already has an active run {FOREIGN}.")
UNNAMED = refused(400, f"Thread {THREAD} already has an active run.")


def foreign(status: str, nonce: str | None = None) -> Run:
    return run(status, id_=FOREIGN, nonce=nonce)


def blocked(**request: Any) -> Story:
    story = Story(thread_id=THREAD, **request)
    story.create()
    story.fail(BUSY)
    return story


def test_the_run_that_holds_the_thread_is_watched_and_then_the_same_create_is_sent() -> None:
    story = blocked()
    first = story.last(fx.CreateRun)
    assert story.notices[-1].event == "run.blocked"
    story.answer(foreign("in_progress"))
    story.fire(Timer.POLL)
    story.answer(foreign("completed"))
    second = story.last(fx.CreateRun)
    assert (second.nonce, second.messages) == (first.nonce, first.messages)
    assert story.sent == ["CreateRun", "RetrieveRun", "RetrieveRun", "CreateRun"]
    story.stream(run("queued"), run("completed"))
    assert story.result.run_id == RUN


def test_waiting_for_a_thread_takes_no_attempts_off_the_create() -> None:
    story = blocked()
    for _ in range(10):
        story.answer(foreign("completed"))
        story.fail(BUSY)
    story.answer(foreign("completed"))
    story.show(run("queued"))
    assert story.phase is Phase.WATCHING


def test_the_look_at_the_holder_follows_the_servers_hint() -> None:
    story = blocked()
    story.answer(foreign("in_progress"), poll_after_s=7.0)
    assert story.timers[Timer.POLL][0] - story.now >= 7.0


def test_a_holder_that_the_server_does_not_name_is_looked_for_in_the_list() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.fail(UNNAMED)
    story.list_runs(run("completed", id_="run_8", nonce=None), foreign("in_progress"))
    story.fire(Timer.POLL)
    assert story.last(fx.RetrieveRun).run_id == FOREIGN


def test_a_holder_that_is_not_in_the_list_may_be_gone_so_the_create_is_tried_again_after_a_pause() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.fail(UNNAMED)
    story.list_runs()
    assert story.sent[-1] == "ListRuns"
    story.fire(Timer.RETRY)
    assert story.sent[-1] == "CreateRun"


def test_a_holder_that_the_server_forgot_holds_nothing() -> None:
    story = blocked()
    story.fail(refused(404))
    assert story.sent[-1] == "CreateRun"


@pytest.mark.parametrize("error", [refused(503), refused(429), cut()])
def test_a_look_at_the_holder_is_repeated_through_an_outage(error: Exception) -> None:
    story = blocked()
    for _ in range(10):
        story.fail(error)  # type: ignore[arg-type]
        story.fire(Timer.POLL)
    story.answer(foreign("completed"))
    assert story.sent[-1] == "CreateRun"


def test_a_look_that_the_server_refuses_ends_the_run_of_which_nothing_exists() -> None:
    story = blocked()
    story.fail(refused(401))
    assert isinstance(story.error, AuthenticationError)


def test_the_deadline_ends_the_wait_and_names_the_run_that_held_the_thread() -> None:
    story = blocked(deadline_s=30.0)
    story.answer(foreign("in_progress"))
    while Timer.POLL in story.timers and story.phase is Phase.CREATING:
        story.fire(Timer.POLL)
        if story.phase is Phase.CREATING:
            story.answer(foreign("in_progress"))
    assert isinstance(story.error, DeadlineExceeded)
    assert FOREIGN in str(story.error)
    assert story.sent.count("CreateRun") == 1


def test_a_cancel_ends_the_wait_at_once_and_leaves_the_foreign_run_alone() -> None:
    story = blocked()
    story.answer(foreign("in_progress"))
    story.tell(told.CancelRequested())
    assert (story.result.status, story.result.run_id) == ("cancelled", None)
    assert "CancelRun" not in story.sent


def test_a_successor_sends_the_create_again_and_is_told_again() -> None:
    story = blocked().successor()
    assert story.sent == ["CreateRun"]
    story.fail(BUSY)
    assert story.sent == ["CreateRun", "RetrieveRun"]


def test_reject_fails_at_once_and_names_the_run() -> None:
    story = blocked(on_busy_thread="reject")
    assert isinstance(story.error, ThreadBusy)
    assert (story.error.thread_id, story.error.run_id) == (THREAD, FOREIGN)
    assert f"adopt('{THREAD}', '{FOREIGN}')" in str(story.error)
    assert story.sent == ["CreateRun"]


def test_reject_without_a_named_run_says_so() -> None:
    story = Story(thread_id=THREAD, on_busy_thread="reject")
    story.create()
    story.fail(UNNAMED)
    assert isinstance(story.error, ThreadBusy)
    assert story.error.run_id is None


def test_interrupt_does_not_end_a_run_of_somebody_else() -> None:
    story = blocked(on_busy_thread="interrupt")
    story.answer(foreign("in_progress"))
    assert isinstance(story.error, ThreadBusy)
    assert "interrupt_foreign=True" in str(story.error)
    assert "CancelRun" not in story.sent


def test_interrupt_waits_for_a_foreign_run_that_somebody_cancels_already() -> None:
    story = blocked(on_busy_thread="interrupt")
    story.answer(foreign("cancelling"))
    story.fire(Timer.POLL)
    story.answer(foreign("cancelled"))
    assert story.sent == ["CreateRun", "RetrieveRun", "RetrieveRun", "CreateRun"]


def test_interrupt_foreign_cancels_the_run_and_creates_when_it_is_over() -> None:
    story = blocked(on_busy_thread="interrupt", interrupt_foreign=True)
    story.answer(foreign("in_progress"))
    assert story.last(fx.CancelRun).run_id == FOREIGN
    story.answer(foreign("cancelling"))
    story.fire(Timer.POLL)
    story.answer(foreign("cancelled"))
    assert story.sent == ["CreateRun", "RetrieveRun", "CancelRun", "RetrieveRun", "CreateRun"]


def test_a_cancel_of_a_foreign_run_that_lost_the_race_is_followed_by_a_look() -> None:
    story = blocked(on_busy_thread="interrupt", interrupt_foreign=True)
    story.answer(foreign("in_progress"))
    story.fail(refused(400, "Cannot cancel run with status 'completed'."))
    story.fire(Timer.POLL)
    story.answer(foreign("completed"))
    assert story.sent[-1] == "CreateRun"


@pytest.mark.parametrize("policy", ["enqueue", "interrupt"])
def test_a_run_that_an_earlier_request_of_ours_made_is_ended_whatever_the_policy(policy: str) -> None:
    story = blocked(on_busy_thread=policy)
    story.answer(foreign("in_progress", nonce=f"{NONCE}.2"))
    assert story.last(fx.CancelRun).run_id == FOREIGN


def test_a_thread_held_after_a_lost_create_is_looked_at_once_and_then_waited_for() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs()
    story.fail(BUSY)
    story.list_runs(foreign("in_progress"))
    assert story.last(fx.RetrieveRun).run_id == FOREIGN
    story.answer(foreign("completed"))
    assert story.sent[-1] == "CreateRun"
