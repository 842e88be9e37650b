"""Stories: a run's life as a test tells it, from `Started` to `Finish`."""

from __future__ import annotations

import pytest
from lifecycle_story import (
    NONCE,
    RUN,
    THREAD,
    TIMING,
    Story,
    call,
    cut,
    message,
    message_event,
    refused,
    run,
    step,
    step_event,
)

from orchestrator.errors import OrchestratorError, RunLost
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.lifecycle import IllegalInput
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import Phase


def test_a_streamed_text_run_takes_two_requests_and_shows_its_verdict_last() -> None:
    story = Story(messages=({"role": "user", "content": "hi"},))
    story.create()
    story.stream(run("queued"), run("in_progress"), message_event("msg_1", "hello"), step_event("step_1"))
    story.stream(run("completed"))
    assert story.sent == ["CreateThread", "CreateRun"]
    assert story.shown == [
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
    ]
    assert (story.result.status, story.result.text, story.result.run_id) == ("completed", "hello", RUN)
    assert [found.id for found in story.result.steps] == ["step_1"]
    assert story.timers == {}


def test_the_create_carries_the_nonce_and_everything_that_was_asked_for() -> None:
    story = Story(
        messages=({"role": "user", "content": "hi"},), options={"temperature": 0.5}, metadata={"a": "b"}
    )
    story.create()
    (create,) = story.all(fx.CreateRun)
    assert (create.nonce, create.thread_id, create.assistant_id) == (NONCE, THREAD, "asst_1")
    assert create.messages == ({"role": "user", "content": "hi"},)
    assert (create.options, create.metadata, create.stream) == ({"temperature": 0.5}, {"a": "b"}, True)


def test_a_streamed_tool_round_takes_two_requests_after_the_thread_and_no_transcript() -> None:
    story = Story()
    story.act(call("call_1"), call("call_2"))
    assert [started.round for started in story.all(fx.StartTools)] == [1]
    story.finish_tool("call_2", "second")
    assert "SubmitToolOutputs" not in story.sent
    story.finish_tool("call_1", "first")
    (submit,) = story.all(fx.SubmitToolOutputs)
    assert [(out.tool_call_id, out.output) for out in submit.outputs] == [
        ("call_1", "first"),
        ("call_2", "second"),
    ]
    story.stream(step_event("step_1"), run("queued"), message_event("msg_1", "done"), run("completed"))
    assert story.sent == ["CreateThread", "CreateRun", "SubmitToolOutputs"]
    assert story.result.text == "done"
    assert [made.call_id for made in story.result.tool_calls] == ["call_1", "call_2"]


def test_the_stream_is_closed_before_the_batch_is_submitted_while_it_is_open() -> None:
    story = Story()
    story.submit()
    kinds = [type(effect).__name__ for effect in story.effects]
    assert kinds.index("CloseStream") < kinds.index("SubmitToolOutputs")


def test_a_stream_that_ends_after_it_asked_for_tools_is_no_gap() -> None:
    story = Story()
    story.act()
    story.end_stream()
    story.finish_tool("call_1")
    story.stream(run("queued"), run("completed"))
    assert story.notices[-1].event == "tool.finished"
    assert story.sent == ["CreateThread", "CreateRun", "SubmitToolOutputs"]
    assert story.all(fx.CloseStream) == []


def test_a_polled_run_is_looked_at_as_the_server_hints_and_its_transcript_fetched() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("queued"), poll_after_s=2.0)
    assert story.timers[Timer.POLL][0] - story.now == pytest.approx(2.0 * 1.05)
    story.fire(Timer.POLL)
    story.answer(run("in_progress"))
    assert 0.5 <= story.timers[Timer.POLL][0] - story.now < 1.0
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    story.transcript(message("msg_1", "hello"), steps=(step("step_1"),))
    assert story.sent == ["CreateRun", "RetrieveRun", "RetrieveRun", "FetchTranscript"]
    assert story.shown[-3:] == [
        "thread.run.step.completed",
        "thread.message.completed",
        "thread.run.completed",
    ]
    assert story.result.text == "hello"


@pytest.mark.parametrize(("hint", "least", "most"), [(0.0, 0.05, 0.06), (1e9, 60, 66)])
def test_an_absurd_hint_neither_spins_nor_stops_the_polling(hint: float, least: float, most: float) -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("queued"), poll_after_s=hint)
    assert least <= story.timers[Timer.POLL][0] - story.now <= most


def test_a_polled_tool_round_is_submitted_without_a_stream_and_polled_on() -> None:
    story = Story(watch="poll")
    story.submit()
    assert not story.last(fx.SubmitToolOutputs).stream
    story.answer(run("queued"))
    assert (story.phase, story.machine.record.round) == (Phase.WATCHING, 1)
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    story.transcript()
    assert story.result.status == "completed"


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_ids_used_again_in_a_later_round_are_new_calls(watch: str) -> None:
    story = Story(watch=watch)
    story.submit()
    for _ in range(2):
        story.show(run("queued"))
        if watch == "poll":
            story.fire(Timer.POLL)
        story.show(run("requires_action", call("call_1")))
        story.finish_tool("call_1")
    assert [started.round for started in story.all(fx.StartTools)] == [1, 2, 3]
    assert len(story.all(fx.SubmitToolOutputs)) == 3
    assert [(made.round, made.call_id) for made in story.machine.record.results] == [
        (1, "call_1"),
        (2, "call_1"),
        (3, "call_1"),
    ]


def test_a_call_that_is_asked_for_twice_in_one_batch_is_made_and_answered_once() -> None:
    story = Story()
    story.submit(call("call_1"), call("call_1"))
    assert len(story.last(fx.StartTools).calls) == 1
    assert [out.tool_call_id for out in story.last(fx.SubmitToolOutputs).outputs] == ["call_1"]


def test_a_late_or_unknown_outcome_of_a_tool_is_ignored() -> None:
    story = Story()
    story.act(call("call_1"), call("call_2"))
    story.finish_tool("call_1", "first")
    before = story.machine.record
    for late in ("call_1", "call_9"):
        story.finish_tool(late, "again")
    story.finish_tool("call_2", round_number=7)
    assert story.machine.record == before
    story.finish_tool("call_2")
    assert story.last(fx.SubmitToolOutputs).outputs[0].output == "first"
    assert story.tell(told.ToolFinished(round=1, call_id="call_1", output="late")) == []


def test_tools_are_given_the_time_that_the_run_has_left_less_a_margin() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("requires_action", call("call_1")), expires_in_s=30.0)
    assert story.last(fx.StartTools).bound_s == 25.0


def test_calls_that_are_not_functions_cancel_the_run_and_fail_it_with_its_ids() -> None:
    story = Story()
    story.act(call("call_1", kind="code_interpreter"))
    assert story.all(fx.StartTools) == []
    assert story.sent[-1] == "CancelRun"
    story.answer(run("cancelled"))
    assert isinstance(story.error, OrchestratorError)
    assert all(part in str(story.error) for part in (RUN, THREAD, "call_1"))


def test_a_lost_stream_is_polled_and_what_it_did_not_show_is_published_before_the_verdict() -> None:
    story = Story()
    story.watch()
    story.stream(message_event("msg_2", "later"))
    story.end_stream(cut())
    assert story.notices[-1].event == "run.gap"
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("in_progress"))
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    story.transcript(message("msg_1", "early"), message("msg_2", "later"), steps=(step("step_1"),))
    assert story.shown[-3:] == [
        "thread.run.step.completed",
        "thread.message.completed",
        "thread.run.completed",
    ]
    assert [found.id for found in story.result.messages] == ["msg_1", "msg_2"]


def test_a_run_that_lost_a_stream_is_streamed_again_from_the_next_submission() -> None:
    story = Story()
    story.watch()
    story.end_stream()
    story.answer(run("requires_action", call("call_1")))
    story.transcript()
    story.finish_tool("call_1")
    assert story.last(fx.SubmitToolOutputs).stream
    story.stream(run("queued"), run("completed"))
    assert story.result.status == "completed"


def test_a_batch_learned_from_a_look_closes_the_stream_early_so_the_transcript_is_fetched() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    story.answer(run("requires_action", call("call_1")))
    assert story.sent[-1] == "FetchTranscript"


def test_a_spurious_completed_event_after_requires_action_is_checked_and_not_believed() -> None:
    story = Story()
    story.act()
    story.stream(run("completed"))
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("requires_action", call("call_1")))
    assert story.phase is Phase.ACTING
    story.finish_tool("call_1")
    assert len(story.all(fx.StartTools)) == 1
    story.stream(run("queued"), run("completed"))
    assert story.result.status == "completed"
    assert story.shown.count("thread.run.completed") == 1


def test_a_run_that_expired_while_its_tools_ran_is_believed_from_a_look_and_the_tools_stop() -> None:
    story = Story()
    story.act()
    story.stream(run("expired"))
    story.answer(run("expired"))
    assert story.all(fx.StopTools)
    story.transcript()
    assert story.result.status == "expired"


def test_a_spurious_verdict_is_checked_while_the_run_is_being_cancelled_too() -> None:
    story = Story()
    story.act()
    story.tell(told.CancelRequested())
    story.stream(run("completed"))
    assert (story.phase, story.sent[-1]) == (Phase.CANCELLING, "RetrieveRun")
    story.answer(run("cancelled"))
    story.transcript()
    assert story.result.status == "cancelled"


def test_a_spurious_verdict_is_checked_when_the_round_before_it_came_after_the_cancel() -> None:
    story = Story()
    story.watch()
    story.tell(told.CancelRequested())
    story.stream(run("requires_action", call("call_1")))
    story.answer(run("cancelling"))
    story.stream(run("completed"))
    assert (story.phase, story.sent[-1]) == (Phase.CANCELLING, "RetrieveRun")


def test_the_look_after_a_cancel_is_urgent_and_waits_for_no_routine_look_under_way() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    assert not story.last(fx.RetrieveRun).urgent
    story.tell(told.CancelRequested())
    story.fire(Timer.POLL)
    assert len(story.all(fx.RetrieveRun)) == 2
    assert story.last(fx.RetrieveRun).urgent


def test_an_observation_asked_for_before_the_submission_was_accepted_is_ignored() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    look = story.last_request.number
    story.stream(run("requires_action", call("call_1")))
    story.finish_tool("call_1")
    story.stream(run("queued"))
    overtaken = told.RunObserved(number=look, run=run("requires_action", call("call_1")))
    assert story.tell(overtaken) == []
    assert len(story.all(fx.StartTools)) == 1


def test_a_look_sent_before_the_submission_does_not_settle_it() -> None:
    story = Story()
    story.act()
    story.stream(run("completed"))
    look = story.last_request.number
    story.finish_tool("call_1")
    story.tell(told.RunObserved(number=look, run=run("requires_action", call("call_1"))))
    assert len(story.all(fx.SubmitToolOutputs)) == 1
    story.fail(cut())
    assert story.sent[-1] == "RetrieveRun"


def test_a_look_that_failed_before_the_submission_is_not_repeated_beside_it() -> None:
    story = Story()
    story.act()
    story.stream(run("completed"))
    story.fail(refused(500))
    story.finish_tool("call_1")
    story.wait(30)
    assert story.sent[-1] == "SubmitToolOutputs"


def test_a_silent_run_is_reported_as_stalled_and_looked_at_until_it_moves() -> None:
    story = Story()
    story.watch()
    story.wait(59)
    story.stream(step_event("step_1"))
    story.wait(59)
    assert "run.stalled" not in story.shown
    story.wait(2)
    assert story.shown[-1] == "run.stalled"
    assert story.sent[-1] == "RetrieveRun"
    story.answer(run("queued"))
    story.wait(61)
    assert story.shown.count("run.stalled") == 2


def test_an_unknown_status_is_watched_for_a_while_and_then_given_up_and_cancelled() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("pondering"))
    while story.phase is Phase.WATCHING:
        story.wait(6)
        if story.sent[-1] == "RetrieveRun":
            story.answer(run("pondering"))
    assert 1118 < story.now < 1135
    assert story.sent[-1] == "CancelRun"
    story.answer(run("cancelled"))
    assert isinstance(story.error, RunLost)
    assert "pondering" in str(story.error)
    assert RUN in str(story.error)


def test_an_unknown_status_after_a_round_of_tools_is_bounded_again() -> None:
    story = Story()
    story.create()
    story.stream(run("pondering"), run("requires_action", call("call_1")))
    assert Timer.UNKNOWN not in story.timers
    story.finish_tool("call_1")
    story.stream(run("queued"), run("pondering"))
    assert Timer.UNKNOWN in story.timers
    story.stream(run("in_progress"))
    assert Timer.UNKNOWN not in story.timers


def test_a_run_that_the_server_does_not_know_any_more_is_lost() -> None:
    story = Story()
    story.watch()
    story.end_stream()
    story.fail(refused(404))
    assert isinstance(story.error, RunLost)
    assert (story.error.run_id, story.error.thread_id) == (RUN, THREAD)


def test_a_look_that_fails_is_repeated_for_as_long_as_the_deadline_allows() -> None:
    story = Story(deadline_s=600)
    story.watch()
    story.end_stream()
    for _ in range(20):
        story.fail(refused(503))
        story.fire(Timer.POLL)
    assert story.phase is Phase.WATCHING
    story.answer(run("completed"))
    story.transcript()
    assert story.result.status == "completed"


def test_a_look_that_is_refused_for_good_cancels_the_run_and_fails_with_that_error() -> None:
    story = Story()
    story.watch()
    story.end_stream()
    refusal = refused(401)
    story.fail(refusal)
    assert story.sent[-1] == "CancelRun"
    story.fail(refused(401))
    assert story.error is refusal


def test_a_transcript_is_tried_again_while_the_server_fails_and_a_verdict_without_it_says_so() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("completed"))
    began = story.now
    while story.phase is Phase.COLLECTING:
        story.fail(refused(503))
        story.wait(10)
    assert 60 <= story.now - began <= 70
    assert story.sent.count("FetchTranscript") > 4
    assert story.shown[-2:] == ["run.gap", "thread.run.completed"]
    assert story.result.status == "completed"


def test_an_outage_at_the_end_of_a_run_does_not_cost_its_text() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("completed"))
    while story.sent.count("FetchTranscript") < 8:
        story.fail(cut())
        story.fire(Timer.RETRY)
    story.transcript(message("msg_1", "hello"))
    assert story.result.text == "hello"


def test_a_transcript_that_is_refused_for_good_is_not_waited_for() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.create()
    story.answer(run("completed"))
    story.fail(refused(403))
    assert story.shown[-2:] == ["run.gap", "thread.run.completed"]


def test_an_overdue_transcript_is_waited_for_no_longer_than_a_cancel() -> None:
    story = Story(watch="poll", thread_id=THREAD, deadline_s=100)
    story.create()
    story.wait(99)
    story.answer(run("completed"))
    story.wait(2)
    assert story.phase is Phase.COLLECTING
    story.wait(60)
    assert story.result.status == "completed"
    assert "run.gap" in story.shown


def test_one_look_at_a_time_is_enough() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    story.end_stream()
    assert story.sent.count("RetrieveRun") == 1


def test_a_look_that_the_submission_overtook_does_not_stand_in_for_the_one_it_needs() -> None:
    story = Story()
    story.act()
    story.stream(run("completed"))
    story.finish_tool("call_1")
    story.fail(cut())
    assert story.sent[-2:] == ["SubmitToolOutputs", "RetrieveRun"]


def test_what_answers_a_request_that_no_longer_matters_changes_nothing_after_the_verdict() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.watch()
    story.tell(told.CancelRequested())
    cancel = story.last_request.number
    story.fire(Timer.POLL)
    story.answer(run("completed"))
    before = len(story.effects)
    story.fail(refused(400, "Cannot cancel run with status 'completed'."), number=cancel)
    assert len(story.effects) == before
    story.transcript()
    assert (story.result.status, story.shown[-1]) == ("completed", "thread.run.completed")


def test_an_adopted_run_is_looked_at_first_and_its_calls_are_answered() -> None:
    story = Story(thread_id=THREAD, run_id=RUN)
    story.start()
    story.answer(run("requires_action", call("call_1"), nonce=None))
    story.transcript(message("msg_1", "said before"))
    story.finish_tool("call_1")
    story.stream(run("queued"), run("completed"))
    assert story.sent == ["RetrieveRun", "FetchTranscript", "SubmitToolOutputs"]
    assert [written.id for written in story.result.messages] == ["msg_1"]


def test_a_look_that_shows_nothing_new_is_not_recorded() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.watch()
    records = len(story.all(fx.Record))
    story.fire(Timer.POLL)
    story.answer(run("queued"))
    assert len(story.all(fx.Record)) == records


def test_an_input_that_the_phase_does_not_take_is_reported_and_changes_nothing() -> None:
    story = Story()
    before = story.machine.record
    with pytest.raises(IllegalInput, match="ToolFinished is not an input of phase admitted"):
        story.tell(told.ToolFinished(round=1, call_id="call_1", output=""))
    with pytest.raises(IllegalInput, match="Resumed"):
        story.tell(told.Resumed())
    assert story.machine.record is before


def test_nothing_is_taken_before_the_record_was_resumed() -> None:
    story = Story()
    fresh = type(story.machine)(
        story.machine.record, timing=TIMING, jitter=lambda: 0.0, unix_time=lambda: 0.0
    )
    with pytest.raises(IllegalInput, match="Started"):
        fresh.receive(told.Started(), 0.0)


def test_a_run_says_in_a_word_and_a_few_more_what_it_waits_for_and_how_often_it_was_asked_for() -> None:
    story = Story()

    def waits() -> tuple[str, str, int]:
        word, detail = story.machine.waiting
        return word, detail, story.machine.attempts

    assert waits() == (WaitsFor.ADMISSION, "a place among the runs at work", 0)
    story.create()
    assert waits() == (WaitsFor.SERVER, "the created run", 1)
    story.fail(refused(429))
    assert waits() == (WaitsFor.BACKOFF, "the next attempt, after 1 that failed", 1)
    story.fire(Timer.RETRY)
    assert waits() == (WaitsFor.SERVER, "the created run", 2)
    story.end_stream()
    story.list_runs()
    assert waits() == (WaitsFor.BACKOFF, "a second look for the created run", 0)
    story.fire(Timer.SETTLE)
    story.list_runs(run("requires_action", call("call_1", name="get_time")))
    assert waits() == (WaitsFor.TOOL, "get_time", 0)
    story.tell(told.DetachRequested())
    assert waits() == (WaitsFor.NOTHING, "it is over", 0)


def test_a_run_whose_looks_fail_waits_for_a_pause_and_after_one_that_answers_for_the_server() -> None:
    story = Story(watch="poll")
    story.create()
    story.answer(run("in_progress"))
    assert story.machine.waiting == (WaitsFor.SERVER, "the run's next step")
    story.fire(Timer.POLL)
    story.fail(refused(503))
    assert story.machine.waiting == (WaitsFor.BACKOFF, "the next attempt, after 1 that failed")
    story.fire(Timer.POLL)
    assert story.machine.waiting == (WaitsFor.SERVER, "the run's next step")
    assert story.machine.attempts == 2
    story.answer(run("in_progress"))
    assert story.machine.waiting == (WaitsFor.SERVER, "the run's next step")
    assert story.machine.attempts == 0
