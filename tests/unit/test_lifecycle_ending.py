"""Stories of ends: cancel, deadline and detach in every phase."""

from __future__ import annotations

import pytest
from lifecycle_story import RUN, THREAD, Story, call, cut, message, refused, run

from orchestrator.errors import (
    AmbiguousOutcome,
    AuthenticationError,
    CancelUnconfirmed,
    DeadlineExceeded,
    OrchestratorClosed,
    RunLost,
)
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase

CANCEL = told.CancelRequested()
CANNOT = "Cannot cancel run with status 'completed'."


def cancelled_in(story: Story) -> None:
    """What every cancel of a run that exists has in common."""
    assert (story.phase, story.sent[-1]) == (Phase.CANCELLING, "CancelRun")
    story.answer(run("cancelling"))
    story.fire(Timer.POLL)
    story.answer(run("cancelled"))
    story.transcript()
    assert (story.result.status, story.result.run_id) == ("cancelled", RUN)
    assert story.timers == {}


def test_a_run_cancelled_before_its_admission_sends_nothing_and_has_no_id() -> None:
    story = Story()
    story.tell(CANCEL)
    assert story.requests == []
    assert (story.result.status, story.result.run_id, story.result.thread_id) == ("cancelled", None, None)


def test_a_run_cancelled_while_its_thread_is_created_is_not_created() -> None:
    story = Story()
    story.start()
    story.tell(CANCEL)
    assert story.sent == ["CreateThread"]
    assert (story.result.status, story.result.run_id) == ("cancelled", None)


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_a_cancel_waits_for_the_first_sight_of_a_run_whose_create_is_in_flight(watch: str) -> None:
    story = Story(watch=watch)
    story.create()
    story.tell(CANCEL)
    assert story.sent[-1] == "CreateRun"
    story.show(run("queued"))
    cancelled_in(story)


def test_a_cancel_waits_for_the_reconciliation_of_a_lost_create() -> None:
    story = Story()
    story.create()
    story.tell(CANCEL)
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs(run("in_progress"))
    assert story.last(fx.CancelRun).run_id == RUN


def test_a_cancelled_create_that_turns_out_not_to_exist_is_not_sent_again() -> None:
    story = Story()
    story.create()
    story.tell(CANCEL)
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs()
    assert story.sent.count("CreateRun") == 1
    assert (story.result.status, story.result.run_id) == ("cancelled", None)


@pytest.mark.parametrize("when", ["before the refusal", "after the refusal"])
def test_a_cancelled_create_that_was_refused_for_now_is_not_sent_again(when: str) -> None:
    story = Story()
    story.create()
    if when == "before the refusal":
        story.tell(CANCEL)
    story.fail(refused(429))
    if when == "after the refusal":
        story.tell(CANCEL)
    assert story.sent.count("CreateRun") == 1
    assert (story.result.status, story.result.run_id) == ("cancelled", None)


def test_a_create_that_completed_before_its_cancel_is_a_completed_run() -> None:
    story = Story(watch="poll")
    story.create()
    story.tell(CANCEL)
    story.answer(run("completed"))
    story.transcript(message("msg_1", "hello"))
    assert (story.result.status, story.result.text) == ("completed", "hello")


def test_a_watched_run_is_cancelled_and_its_own_stream_may_show_the_end() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.stream(run("cancelling"), run("cancelled"))
    assert story.sent == ["CreateThread", "CreateRun", "CancelRun"]
    assert story.result.status == "cancelled"


def test_a_run_cancelled_while_its_tools_run_stops_them_and_ignores_their_outcomes() -> None:
    story = Story()
    story.act(call("call_1"), call("call_2"))
    story.finish_tool("call_1")
    story.tell(CANCEL)
    kinds = [type(effect).__name__ for effect in story.effects]
    assert kinds.index("StopTools") < kinds.index("CancelRun")
    story.finish_tool("call_2")
    assert "SubmitToolOutputs" not in story.sent
    cancelled_in(story)
    assert [made.call_id for made in story.result.tool_calls] == ["call_1"]


def test_the_phase_is_recorded_before_the_tools_are_stopped() -> None:
    story = Story()
    story.act()
    effects = story.tell(CANCEL)
    recorded = [effect.record.phase for effect in effects if isinstance(effect, fx.Record)]
    assert recorded == [Phase.CANCELLING]


@pytest.mark.parametrize("watch", ["stream", "poll"])
@pytest.mark.parametrize("accepted", ["before the cancel's answer", "after it", "never"])
def test_a_submission_in_flight_is_not_aborted_and_the_cancel_goes_beside_it(
    watch: str, accepted: str
) -> None:
    story = Story(watch=watch)
    story.submit()
    submit = story.last_request.number
    story.tell(CANCEL)
    cancel = story.last_request.number
    assert story.sent[-1] == "CancelRun"
    assert not any(closed.number == submit for closed in story.all(fx.CloseStream))
    answers: list[told.Input] = [told.RunObserved(number=cancel, run=run("cancelling"))]
    if watch == "poll":
        shown: told.Input = told.RunObserved(number=submit, run=run("cancelling"))
    else:
        shown = told.StreamEnded(number=submit)
    if accepted == "before the cancel's answer":
        answers.insert(0, shown)
    elif accepted == "after it":
        answers.append(shown)
    for answer in answers:
        story.tell(answer)
    story.fire(Timer.POLL)
    story.answer(run("cancelled"))
    story.transcript()
    assert story.result.status == "cancelled"
    assert story.sent.count("SubmitToolOutputs") == 1


def test_a_submission_whose_stream_shows_the_end_of_a_cancelled_run_concludes_it() -> None:
    story = Story()
    story.submit()
    story.tell(CANCEL)
    story.stream(run("queued"), run("cancelling"), run("cancelled"))
    assert story.result.status == "cancelled"
    assert story.sent[-1] == "CancelRun"


def test_a_run_that_completed_before_it_could_be_cancelled_is_returned_as_completed() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.fail(refused(400, CANNOT))
    story.wait(0)
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("completed"))
    story.transcript(message("msg_1", "hello"))
    assert (story.result.status, story.result.text) == ("completed", "hello")


def test_a_server_that_cancels_only_what_is_in_progress_is_asked_again_once_it_is() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    for status in ("queued", "queued", "in_progress"):
        story.fail(refused(400, "Cannot cancel run with status 'queued'."))
        story.fire(Timer.POLL)
        story.answer(run(status))
    cancelled_in(story)
    assert story.sent.count("CancelRun") == 4


def test_a_cancel_that_fails_is_repeated_and_one_that_got_lost_is_posted_again() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.fail(cut())
    story.fire(Timer.RETRY)
    assert story.sent.count("CancelRun") == 2
    story.fire(Timer.POLL)
    story.tell(told.RequestFailed(number=story.last(fx.CancelRun).number, error=refused(503)))
    story.answer(run("in_progress"))
    assert story.sent.count("CancelRun") == 3
    cancelled_in(story)


def test_a_cancel_that_is_never_confirmed_is_reported_with_the_ids() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.answer(run("cancelling"))
    began = story.now
    while story.phase is Phase.CANCELLING:
        story.wait(1)
        if story.sent[-1] == "RetrieveRun":
            story.answer(run("cancelling"))
    assert story.now - began == pytest.approx(60, abs=1)
    assert isinstance(story.error, CancelUnconfirmed)
    assert (story.error.run_id, story.error.thread_id, story.error.status) == (RUN, THREAD, "cancelling")


def test_a_server_that_asks_for_patience_does_not_keep_a_cancel_from_being_confirmed() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("queued"), poll_after_s=50.0)
    story.tell(CANCEL)
    assert story.timers[Timer.POLL][0] - story.now < 6


def test_a_hint_on_a_refused_cancel_does_not_keep_us_from_looking_again() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    for _ in range(3):
        story.fail(refused(400, "Cannot cancel run with status 'queued'.", retry_after="1e9"))
        story.wait(6)
        assert story.sent[-1] == "RetrieveRun"
        story.answer(run("queued"))
        assert story.sent[-1] == "CancelRun"


def test_a_second_cancel_changes_nothing() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    assert story.tell(CANCEL) == []


def test_an_adopted_run_cancelled_before_its_admission_is_cancelled_on_the_server() -> None:
    story = Story(thread_id=THREAD, run_id=RUN)
    story.tell(CANCEL)
    cancelled_in(story)


def test_a_cancelled_run_that_the_server_lost_or_hides_ends_at_once() -> None:
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.fail(refused(404))
    assert isinstance(story.error, RunLost)
    story = Story()
    story.watch()
    story.tell(CANCEL)
    story.fail(refused(401))
    assert isinstance(story.error, AuthenticationError)


# The deadline.


@pytest.mark.parametrize("on_deadline", ["cancel", "detach"])
def test_a_deadline_that_passes_before_admission_sends_nothing(on_deadline: str) -> None:
    story = Story(deadline_s=10, on_deadline=on_deadline)
    story.wait(10)
    assert story.requests == []
    assert isinstance(story.error, DeadlineExceeded)
    assert "nothing was sent" in str(story.error)


def test_an_admission_that_comes_with_the_deadline_sends_nothing() -> None:
    story = Story(deadline_s=10)
    story.now += 10
    story.start()
    story.wait(0)
    assert story.sent == []
    assert isinstance(story.error, DeadlineExceeded)


@pytest.mark.parametrize("on_deadline", ["cancel", "detach"])
def test_a_deadline_that_passes_while_the_thread_is_created_creates_no_run(on_deadline: str) -> None:
    story = Story(deadline_s=10, on_deadline=on_deadline)
    story.start()
    story.wait(10)
    assert story.sent == ["CreateThread"]
    assert isinstance(story.error, DeadlineExceeded)


@pytest.mark.parametrize("reach", ["create", "watch", "act", "submit"])
def test_a_run_past_its_deadline_is_cancelled_and_reported_with_its_end(reach: str) -> None:
    story = Story(deadline_s=10)
    getattr(story, reach)()
    story.wait(10)
    if reach == "create":
        story.stream(run("queued"))
    assert bool(story.all(fx.StopTools)) == (reach == "act")
    assert story.sent[-1] == "CancelRun"
    story.answer(run("cancelled"))
    assert isinstance(story.error, DeadlineExceeded)
    assert (story.error.run_id, story.error.status) == (RUN, "cancelled")


@pytest.mark.parametrize("reach", ["create", "watch", "act", "submit"])
def test_a_run_past_its_deadline_is_left_running_where_that_was_asked_for(reach: str) -> None:
    story = Story(deadline_s=10, on_deadline="detach")
    getattr(story, reach)()
    story.wait(10)
    if reach == "create":
        assert story.phase is Phase.CREATING
        story.stream(run("queued"))
    assert "CancelRun" not in story.sent
    assert isinstance(story.error, DeadlineExceeded)
    assert (story.error.run_id, story.error.thread_id) == (RUN, THREAD)
    assert "left running" in str(story.error)


def test_a_run_that_completed_while_its_deadline_passed_is_returned() -> None:
    story = Story(deadline_s=10)
    story.watch()
    story.wait(10)
    story.stream(run("completed"))
    assert story.result.status == "completed"


@pytest.mark.parametrize("status", [403, 404])
def test_a_deadline_whose_cancel_is_refused_for_good_is_still_a_deadline(status: int) -> None:
    story = Story(deadline_s=10)
    story.watch()
    story.wait(10)
    story.fail(refused(status, "not for you"))
    assert isinstance(story.error, DeadlineExceeded)
    assert (story.error.run_id, story.error.thread_id) == (RUN, THREAD)
    assert "its end could not be seen: " in str(story.error)
    assert "not for you" in str(story.error)


def test_a_deadline_whose_cancel_is_not_confirmed_names_the_ids_in_time() -> None:
    story = Story(deadline_s=10)
    story.watch()
    story.wait(70)
    assert isinstance(story.error, DeadlineExceeded)
    assert story.error.run_id == RUN
    assert "not confirmed" in str(story.error)


@pytest.mark.parametrize("on_deadline", ["cancel", "detach"])
def test_a_create_that_never_answers_does_not_outlive_the_deadline_for_long(on_deadline: str) -> None:
    story = Story(deadline_s=10, on_deadline=on_deadline)
    story.create()
    story.wait(69)
    assert story.phase is Phase.CREATING
    story.wait(1)
    assert isinstance(story.error, AmbiguousOutcome)
    assert story.error.thread_id == THREAD


def test_a_deadline_does_not_overrule_a_cancel_that_came_first() -> None:
    story = Story(deadline_s=10, on_deadline="detach")
    story.create()
    story.tell(CANCEL)
    story.wait(11)
    story.stream(run("queued"))
    assert story.sent[-1] == "CancelRun"
    story.stream(run("cancelled"))
    assert story.result.status == "cancelled"


def test_a_deadline_gives_a_cancel_that_came_first_no_more_time() -> None:
    story = Story(deadline_s=10)
    story.watch()
    story.wait(5)
    story.tell(CANCEL)
    ends_at = story.timers[Timer.CANCEL][0]
    story.answer(run("cancelling"))
    story.wait(6)
    assert story.timers[Timer.CANCEL][0] == ends_at


def test_what_a_cancelled_run_leaves_to_fetch_is_bounded_too() -> None:
    story = Story(watch="poll", deadline_s=10)
    story.watch()
    story.wait(10)
    story.answer(run("completed"))
    assert story.phase is Phase.COLLECTING
    story.wait(60)
    assert story.result.status == "completed"
    assert "run.gap" in story.shown


# Detach.


@pytest.mark.parametrize("reach", ["watch", "act", "submit"])
def test_a_detached_run_is_left_to_the_server_and_its_ids_are_reported(reach: str) -> None:
    story = Story()
    getattr(story, reach)()
    before = len(story.requests)
    story.tell(told.DetachRequested())
    assert len(story.requests) == before
    assert isinstance(story.error, OrchestratorClosed)
    assert RUN in str(story.error)
    assert THREAD in str(story.error)


def test_a_detach_waits_for_the_id_of_a_create_in_flight() -> None:
    story = Story()
    story.create()
    story.tell(told.DetachRequested())
    assert story.phase is Phase.CREATING
    story.stream(run("queued"))
    assert RUN in str(story.error)


@pytest.mark.parametrize("reach", ["admitted", "thread", "refused create"])
def test_a_run_detached_before_it_exists_says_so(reach: str) -> None:
    story = Story()
    match reach:
        case "thread":
            story.start()
        case "refused create":
            story.create()
    story.tell(told.DetachRequested())
    if reach == "refused create":
        story.fail(cut(sent=False))
    assert isinstance(story.error, OrchestratorClosed)
    assert "before the run was created" in str(story.error)


def test_a_detached_run_whose_verdict_is_known_has_its_result() -> None:
    story = Story(watch="poll")
    story.create()
    story.answer(run("completed"))
    story.tell(told.DetachRequested())
    assert story.result.status == "completed"
    assert "run.gap" in story.shown


def test_a_run_that_is_being_cancelled_can_be_detached_with_its_cause() -> None:
    story = Story(deadline_s=10)
    story.watch()
    story.wait(10)
    story.tell(told.DetachRequested())
    assert isinstance(story.error, DeadlineExceeded)
    story = Story()
    story.watch()
    story.end_stream()
    refusal = refused(401)
    story.fail(refusal)
    story.tell(told.DetachRequested())
    assert story.error is refusal
