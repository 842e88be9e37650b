"""Corners of a run's life where two of its rules meet."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lifecycle_story import NONCE, THREAD, Story, cut, message, refused, run

from orchestrator.errors import DeadlineExceeded, OrchestratorClosed, RunFailed
from orchestrator.protocol.objects import LastError, Run, Usage
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase
from orchestrator.runs.request import RerunPolicy

FOREIGN = "run_7"
BUSY = refused(400, f"Thread {THREAD} already has an active run {FOREIGN}.")
UNNAMED = refused(400, f"Thread {THREAD} already has an active run.")


def blocked(**request: Any) -> Story:
    story = Story(thread_id=THREAD, **request)
    story.create()
    story.fail(BUSY)
    return story


def failed(tokens: int = 10) -> Run:
    error = LastError(code="server_error", message="it broke")
    return msgspec.structs.replace(run("failed"), last_error=error, usage=Usage(total_tokens=tokens))


def test_a_holder_that_the_server_will_not_cancel_yet_is_not_asked_without_a_pause() -> None:
    story = blocked(on_busy_thread="interrupt", interrupt_foreign=True)
    began = story.now
    for _ in range(3):
        story.answer(run("queued", id_=FOREIGN, nonce=None))
        assert story.sent[-1] == "CancelRun"
        story.fail(refused(400, "Cannot cancel run with status 'queued'."))
        story.fire(Timer.POLL)
    assert story.now > began


def test_a_deadline_that_leaves_runs_running_says_of_one_never_created_that_it_was_not() -> None:
    story = blocked(on_deadline="detach", deadline_s=30.0)
    story.answer(run("in_progress", id_=FOREIGN, nonce=None), poll_after_s=50.0)
    story.fire(Timer.DEADLINE)
    assert isinstance(story.error, DeadlineExceeded)
    assert "had not been created" in str(story.error)
    assert FOREIGN in str(story.error)


def test_a_refused_submission_beside_a_verdict_does_not_hide_it_from_a_successor() -> None:
    story = Story()
    story.submit()
    submit = story.stream_number
    story.tell(told.CancelRequested())
    story.answer(run("cancelled"))
    assert story.phase is Phase.COLLECTING
    after = story.successor(in_flight=(submit,))
    after.fail(refused(400, "the run is over"), number=submit)
    after.answer(run("cancelled"))
    after.transcript()
    assert after.result.status == "cancelled"


def test_a_submission_beside_a_verdict_is_not_sent_again_by_a_successor() -> None:
    story = Story()
    story.submit()
    submit = story.stream_number
    story.tell(told.CancelRequested())
    story.answer(run("cancelled"))
    after = story.successor(in_flight=(submit,))
    after.fail(cut(), number=submit)
    after.wait(10)
    assert "SubmitToolOutputs" not in after.sent


def test_a_verdict_is_read_again_through_an_outage() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("completed"))
    after = story.successor()
    for _ in range(10):
        after.fail(refused(503))
        after.fire(Timer.RETRY)
    after.answer(run("completed"))
    after.transcript(message("msg_1", "hello"))
    assert after.result.text == "hello"


def test_no_run_follows_one_that_took_all_the_tokens_there_are() -> None:
    story = Story(thread_id=THREAD, rerun=RerunPolicy(attempts=3), max_total_tokens=100)
    story.watch()
    story.stream(failed(tokens=100))
    assert (story.result.status, story.sent) == ("failed", ["CreateRun"])


def test_our_own_run_that_holds_the_thread_is_followed_and_not_ended() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.fail(cut())
    story.list_runs(run("in_progress", id_=FOREIGN, nonce="other"))
    story.fire(Timer.SETTLE)
    story.list_runs(run("in_progress", id_=FOREIGN, nonce="other"))
    story.fail(UNNAMED)
    story.list_runs(run("in_progress", id_=FOREIGN, nonce="other"))
    assert story.machine.record.blocked_by == ""
    story.list_runs(run("in_progress"), run("completed", id_=FOREIGN, nonce="other"))
    assert (story.phase, story.machine.record.run_id) == (Phase.WATCHING, "run_1")
    assert "CancelRun" not in story.sent
    assert story.last(fx.CreateRun).nonce == NONCE


def test_a_run_that_was_closed_before_it_was_created_is_named() -> None:
    story = blocked()
    story.tell(told.DetachRequested())
    assert isinstance(story.error, OrchestratorClosed)
    assert "key-1" in str(story.error)
    assert THREAD in str(story.error)


def test_a_cancel_before_the_second_run_does_not_say_that_there_was_never_one() -> None:
    story = Story(thread_id=THREAD, rerun=RerunPolicy(attempts=3))
    story.watch()
    story.stream(failed())
    story.fire(Timer.RERUN)
    story.fail(BUSY)
    story.tell(told.CancelRequested())
    with pytest.raises(RunFailed) as raised:
        story.result.raise_for_status()
    assert "nothing had been created" not in str(raised.value)
