"""Stories of the create and the submit: two requests that must take effect exactly once."""

from __future__ import annotations

import pytest
from lifecycle_story import NONCE, RUN, THREAD, TIMING, Story, call, cut, message, message_event, refused, run

from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    APITimeout,
    AuthenticationError,
    BadRequestError,
    RateLimitError,
    ThreadBusy,
)
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase

BUSY = f"Thread {THREAD} already has an active run run_7."


def test_the_nonce_and_the_number_are_recorded_before_a_create_is_sent() -> None:
    story = Story()
    story.create()
    at = story.effects.index(story.last(fx.CreateRun))
    recorded = story.effects[at - 1]
    assert isinstance(recorded, fx.Record)
    assert (recorded.record.nonce, recorded.record.pending) == (NONCE, story.last(fx.CreateRun).number)


@pytest.mark.parametrize("lost", ["end of stream", "cut", "timeout", "502"])
def test_a_create_whose_outcome_is_open_is_found_by_its_nonce(lost: str) -> None:
    story = Story()
    story.create()
    match lost:
        case "end of stream":
            story.end_stream()
        case "cut":
            story.fail(cut())
        case "timeout":
            story.fail(APITimeout("late", method="POST", path="/x", sent=True))
        case _:
            story.fail(refused(502, retry_after="1"))
    assert story.sent[-1] == "ListRuns"
    story.list_runs(run("queued", id_="run_0", nonce="another"), run("in_progress"))
    assert (story.phase, story.machine.record.run_id) == (Phase.WATCHING, RUN)
    assert story.sent.count("CreateRun") == 1
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    story.list_runs(run("completed"))
    story.transcript()
    assert story.result.run_id == RUN


def test_a_create_that_two_settled_looks_do_not_find_is_sent_again_with_the_same_nonce() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs()
    assert story.timers[Timer.SETTLE][0] - story.now == 2.0
    assert story.sent[-1] == "ListRuns"
    story.fire(Timer.SETTLE)
    assert story.sent[-2:] == ["ListRuns", "ListRuns"]
    story.list_runs()
    first, second = story.all(fx.CreateRun)
    assert first.nonce == second.nonce
    assert first.number != second.number
    assert story.machine.record.pending == second.number


def test_metadata_on_other_runs_of_the_thread_shows_that_a_nonce_can_be_missed() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.fail(cut())
    story.list_runs(run("completed", id_="run_0", nonce="another"))
    story.fire(Timer.SETTLE)
    story.list_runs()
    assert story.sent[-1] == "CreateRun"


def test_where_metadata_does_not_come_back_the_outcome_is_ambiguous_and_names_what_to_look_for() -> None:
    story = Story()
    story.start()
    story.make_thread(echo=False)
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs(run("completed", id_="run_0", nonce=None))
    assert isinstance(story.error, AmbiguousOutcome)
    assert (story.error.thread_id, story.error.nonce) == (THREAD, NONCE)
    assert NONCE in str(story.error)
    assert THREAD in str(story.error)


def test_a_create_that_is_lost_again_and_again_is_ambiguous_in_the_end() -> None:
    story = Story()
    story.create()
    while story.phase is Phase.CREATING:
        story.fail(cut())
        story.list_runs()
        story.fire(Timer.SETTLE)
        story.list_runs()
    assert story.sent.count("CreateRun") == 4
    assert isinstance(story.error, AmbiguousOutcome)


def test_a_list_that_the_server_refuses_leaves_the_create_ambiguous() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.fail(refused(403))
    assert isinstance(story.error, AmbiguousOutcome)


def test_the_list_is_asked_for_through_a_long_outage_because_only_it_can_tell() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    for _ in range(30):
        story.fail(refused(503))
        story.fire(Timer.RETRY)
    story.list_runs(run("in_progress"))
    assert (story.phase, story.machine.record.run_id) == (Phase.WATCHING, RUN)


def test_an_outage_that_lasts_past_the_deadline_leaves_the_create_ambiguous() -> None:
    story = Story(deadline_s=30.0)
    story.create()
    story.fail(cut())
    until = 1000 + 30 + TIMING.cancel_timeout_s
    while story.now < until:
        assert story.phase is Phase.CREATING
        story.fail(refused(503))
        story.wait(min(8.0, until - story.now))
    assert isinstance(story.error, AmbiguousOutcome)


@pytest.mark.parametrize("error", [refused(429), cut(sent=False)], ids=["429", "never sent"])
def test_a_create_that_did_nothing_is_sent_again_after_a_backoff_without_looking(
    error: APIConnectionError,
) -> None:
    story = Story()
    story.create()
    story.fail(error)
    assert story.sent[-1] == "CreateRun"
    story.fire(Timer.RETRY)
    assert story.sent[-2:] == ["CreateRun", "CreateRun"]


def test_a_hint_of_the_server_is_the_least_that_a_create_waits() -> None:
    story = Story()
    story.create()
    story.fail(refused(429, retry_after="7"))
    assert 7 <= story.timers[Timer.RETRY][0] - story.now < 8


def test_a_hint_beyond_all_patience_and_too_many_refusals_end_the_run() -> None:
    story = Story()
    story.create()
    story.fail(refused(429, retry_after="3600"))
    assert isinstance(story.error, RateLimitError)
    story = Story()
    story.create()
    for _ in range(3):
        story.fail(refused(429))
        story.fire(Timer.RETRY)
    story.fail(refused(429))
    assert isinstance(story.error, RateLimitError)


@pytest.mark.parametrize("first", ["thread", "run"])
def test_a_refusal_for_good_is_raised_at_once(first: str) -> None:
    story = Story()
    story.start()
    if first == "run":
        story.make_thread()
    story.fail(refused(401))
    assert isinstance(story.error, AuthenticationError)
    assert story.timers == {}


def test_a_thread_whose_creation_failed_is_created_again() -> None:
    story = Story()
    story.start()
    story.fail(cut())
    story.fire(Timer.RETRY)
    story.make_thread()
    assert story.sent == ["CreateThread", "CreateThread", "CreateRun"]


@pytest.mark.parametrize("text", [BUSY, f"Can't add messages to {THREAD} while a run run_7 is active."])
def test_a_thread_that_another_run_holds_is_named_with_that_run(text: str) -> None:
    story = Story(thread_id=THREAD, on_busy_thread="reject")
    story.create()
    refusal = refused(400, text)
    story.fail(refusal)
    assert isinstance(story.error, ThreadBusy)
    assert (story.error.thread_id, story.error.run_id) == (THREAD, "run_7")
    assert story.error.__cause__ is refusal


def test_a_thread_held_after_an_ambiguous_create_is_perhaps_held_by_our_own_run() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs()
    story.fail(refused(400, BUSY))
    assert story.sent[-1] == "ListRuns"
    story.list_runs(run("queued"))
    assert story.machine.record.run_id == RUN


def test_an_outcome_that_is_told_twice_settles_a_create_once() -> None:
    story = Story()
    story.create()
    number = story.stream_number
    story.fail(cut())
    for again in (
        told.StreamEnded(number=number),
        told.RequestFailed(number=number, error=refused(429)),
        told.RequestFailed(number=number, error=refused(401)),
    ):
        assert story.tell(again) == []
    assert story.sent.count("ListRuns") == 1


def test_the_last_look_at_the_thread_cancels_and_reports_a_second_run_of_the_same_create() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs()
    story.fire(Timer.SETTLE)
    story.list_runs()
    story.stream(run("queued"), message_event("msg_1", "hello"), run("completed"))
    assert story.sent[-1] == "ListRuns"
    story.list_runs(run("in_progress", id_="run_2"), run("completed"), run("queued", id_="x", nonce="other"))
    cancelled = story.last_request
    assert isinstance(cancelled, fx.CancelRun)
    assert cancelled.run_id == "run_2"
    assert story.all(fx.Finish) == []
    story.answer(run("cancelling", id_="run_2"))
    assert (story.result.run_id, story.result.text) == (RUN, "hello")
    assert ["run_2" in (notice.detail or "") for notice in story.notices] == [True]
    assert story.sent.count("CancelRun") == 1


def test_the_last_look_leaves_the_run_itself_alone_though_the_listing_lags() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.stream(run("queued"), run("completed"))
    story.list_runs(run("in_progress"))
    assert story.sent.count("CancelRun") == 0
    assert story.result.status == "completed"


def test_a_second_run_that_could_not_be_cancelled_is_reported_by_its_id() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs(run("completed"))
    story.list_runs(run("in_progress", id_="run_2"), run("completed"))
    story.fail(refused(500))
    story.transcript()
    assert story.result.status == "completed"
    assert "run_2 may go on" in (story.notices[-1].detail or "")


def test_a_last_look_that_fails_does_not_keep_the_verdict_back() -> None:
    story = Story()
    story.create()
    story.fail(cut())
    story.list_runs(run("completed"))
    story.fail(refused(401))
    story.transcript(message("msg_1", "hello"))
    assert story.result.text == "hello"


# The submission.


def test_a_submission_is_recorded_with_its_outcomes_before_it_is_sent() -> None:
    story = Story()
    story.submit()
    at = story.effects.index(story.last(fx.SubmitToolOutputs))
    recorded = story.effects[at - 1]
    assert isinstance(recorded, fx.Record)
    assert recorded.record.pending == story.last(fx.SubmitToolOutputs).number
    assert [made.call_id for made in recorded.record.results] == ["call_1"]


@pytest.mark.parametrize("lost", ["end of stream", "cut", "500"])
def test_a_submission_whose_outcome_is_open_and_that_is_still_asked_for_is_sent_again_whole(
    lost: str,
) -> None:
    story = Story()
    story.submit(call("call_1"), call("call_2"))
    match lost:
        case "end of stream":
            story.end_stream()
        case "cut":
            story.fail(cut())
        case _:
            story.fail(refused(500))
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("requires_action", call("call_2"), call("call_1")))
    story.fire(Timer.RETRY)
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("requires_action", call("call_2"), call("call_1")))
    first, second = story.all(fx.SubmitToolOutputs)
    assert first.outputs == second.outputs
    assert len(story.all(fx.StartTools)) == 1


def test_a_submission_that_the_run_went_on_after_was_accepted() -> None:
    story = Story()
    story.submit()
    story.fail(cut())
    story.answer(run("in_progress"))
    assert (story.phase, story.machine.record.calls) == (Phase.WATCHING, ())
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    story.transcript()
    assert len(story.all(fx.SubmitToolOutputs)) == 1
    assert story.result.status == "completed"


def test_a_submission_that_comes_to_the_server_late_is_not_sent_again() -> None:
    story = Story()
    story.submit()
    story.fail(cut())
    story.answer(run("requires_action", call("call_1")))
    began_at = story.now
    story.fire(Timer.RETRY)
    assert story.now - began_at == pytest.approx(TIMING.retry.settle_s)
    story.answer(run("in_progress"))
    assert story.phase is Phase.WATCHING
    assert len(story.all(fx.SubmitToolOutputs)) == 1


def test_a_next_round_that_uses_the_same_ids_for_other_calls_is_no_reason_to_submit_again() -> None:
    story = Story()
    story.submit(call("call_1", arguments='{"city": "Oslo"}'))
    story.fail(cut())
    story.answer(run("requires_action", call("call_1", arguments='{"city": "Rome"}')))
    assert len(story.all(fx.SubmitToolOutputs)) == 1
    assert [started.round for started in story.all(fx.StartTools)] == [1, 2]


def test_a_submission_that_is_lost_again_and_again_cancels_the_run_and_is_ambiguous() -> None:
    story = Story()
    story.submit()
    while story.phase is Phase.SUBMITTING:
        story.fail(cut())
        story.answer(run("requires_action", call("call_1")))
        story.fire(Timer.RETRY)
        story.answer(run("requires_action", call("call_1")))
    assert len(story.all(fx.SubmitToolOutputs)) == 4
    story.answer(run("cancelled"))
    assert isinstance(story.error, AmbiguousOutcome)
    assert RUN in str(story.error)


def test_a_refused_submission_is_looked_at_and_the_runs_own_verdict_stands() -> None:
    story = Story()
    story.submit()
    story.fail(refused(400, 'Runs in status "expired" do not accept tool outputs.'))
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("expired"))
    story.transcript()
    assert story.result.status == "expired"


def test_a_refused_submission_that_is_still_asked_for_cancels_the_run_and_fails_with_the_refusal() -> None:
    story = Story()
    story.submit()
    refusal = refused(400, "Expected tool outputs for call_ids ['call_1'], got []")
    story.fail(refusal)
    story.answer(run("requires_action", call("call_1")))
    assert story.sent[-1] == "CancelRun"
    story.answer(run("cancelled"))
    assert story.error is refusal
    assert isinstance(refusal, BadRequestError)


def test_a_submission_that_did_nothing_is_sent_again_after_a_backoff_without_looking() -> None:
    story = Story()
    story.submit()
    story.fail(refused(429, retry_after="3"))
    story.wait(2.9)
    assert len(story.all(fx.SubmitToolOutputs)) == 1
    story.wait(1)
    assert len(story.all(fx.SubmitToolOutputs)) == 2
    for _ in range(3):
        story.fail(refused(429))
        story.wait(10)
    assert story.phase is Phase.CANCELLING


def test_an_outcome_that_is_told_twice_settles_a_submission_once() -> None:
    story = Story()
    story.submit()
    number = story.stream_number
    story.fail(cut())
    for again in (told.StreamEnded(number=number), told.RequestFailed(number=number, error=refused(429))):
        assert story.tell(again) == []
    assert story.sent.count("RetrieveRun") == 1


def test_a_look_that_fails_while_a_submission_is_open_is_repeated() -> None:
    story = Story()
    story.submit()
    story.fail(cut())
    story.fail(refused(500))
    story.fire(Timer.POLL)
    story.answer(run("queued"))
    assert story.phase is Phase.WATCHING
