"""Stories of successors: the actor dies, and a new lifecycle goes on from the last record."""

from __future__ import annotations

from lifecycle_story import RUN, THREAD, Story, call, cut, message, refused, run

from orchestrator.errors import DeadlineExceeded
from orchestrator.protocol.objects import Thread
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase


def test_the_thread_is_created_again_where_only_that_was_under_way() -> None:
    story = Story()
    story.start()
    assert story.successor().sent == ["CreateThread"]


def test_a_late_thread_of_the_predecessor_is_left_alone() -> None:
    story = Story()
    story.start()
    old = story.last_request.number
    after = story.successor(in_flight=(old,))
    assert after.last_request.number > old
    late = after.last_request.number
    after.make_thread()
    after.stream(run("queued"))
    assert after.tell(told.ThreadCreated(number=old, thread=Thread(id="thread_9"))) == []
    assert late > old


def test_a_create_that_is_still_in_flight_is_waited_for() -> None:
    story = Story()
    story.create()
    after = story.successor(in_flight=(story.stream_number,))
    assert after.requests == []
    after.stream(run("queued"), number=story.stream_number)
    assert (after.phase, after.machine.record.run_id) == (Phase.WATCHING, RUN)


def test_a_create_in_flight_that_is_refused_for_now_is_sent_again_by_the_successor() -> None:
    story = Story()
    story.create()
    after = story.successor(in_flight=(story.stream_number,))
    after.fail(refused(429), number=story.stream_number)
    after.fire(Timer.RETRY)
    assert after.sent == ["CreateRun"]


def test_a_create_whose_answer_died_with_the_actor_is_looked_for_before_anything_is_sent() -> None:
    story = Story()
    story.create()
    after = story.successor()
    assert after.sent == ["ListRuns"]
    after.list_runs()
    after.fire(Timer.SETTLE)
    after.list_runs()
    assert after.sent == ["ListRuns", "ListRuns", "CreateRun"]
    after.fail(refused(400, f"Thread {THREAD} already has an active run {RUN}."))
    after.list_runs(run("queued"))
    assert after.machine.record.run_id == RUN


def test_a_run_that_shows_itself_while_it_is_looked_for_is_taken_and_the_search_ends() -> None:
    story = Story()
    story.create()
    after = story.successor()
    after.list_runs()
    after.stream(run("queued"), number=story.stream_number)
    assert (after.phase, after.machine.record.run_id) == (Phase.WATCHING, RUN)
    assert Timer.SETTLE not in after.timers


def test_a_cancel_of_a_create_in_flight_is_remembered() -> None:
    story = Story()
    story.create()
    story.tell(told.CancelRequested())
    after = story.successor(in_flight=(story.stream_number,))
    after.stream(run("queued"), number=story.stream_number)
    assert after.sent == ["CancelRun"]


def test_an_overdue_create_in_flight_is_left_running_by_the_successor_too() -> None:
    story = Story(deadline_s=10, on_deadline="detach")
    story.create()
    story.wait(10)
    after = story.successor(in_flight=(story.stream_number,))
    after.stream(run("queued"), number=story.stream_number)
    assert after.sent == []
    assert isinstance(after.error, DeadlineExceeded)


def test_a_create_that_waits_to_be_sent_again_is_sent_by_the_successor() -> None:
    story = Story()
    story.create()
    story.fail(refused(429))
    assert story.successor().sent == ["CreateRun"]


def test_a_create_that_waits_to_be_sent_again_is_not_sent_once_somebody_has_cancelled() -> None:
    story = Story(thread_id=THREAD)
    story.create()
    story.fail(refused(429))
    after = story.successor(unwanted=True)
    after.tell(told.CancelRequested())
    assert after.sent == []
    assert (after.result.status, after.result.run_id) == ("cancelled", None)


def test_no_tool_is_started_for_a_run_that_somebody_has_cancelled() -> None:
    story = Story()
    story.act()
    after = story.successor(unwanted=True)
    after.tell(told.CancelRequested())
    assert after.all(fx.StartTools) == []
    assert after.sent == ["CancelRun"]


def test_nothing_is_begun_by_a_successor_that_comes_after_the_deadline() -> None:
    story = Story(thread_id=THREAD, deadline_s=10)
    story.create()
    story.fail(refused(429))
    story.now += 11
    after = story.successor()
    after.wait(0)
    assert after.sent == []
    assert isinstance(after.error, DeadlineExceeded)
    story = Story(deadline_s=10)
    story.act()
    story.now += 11
    after = story.successor()
    after.wait(0)
    assert after.all(fx.StartTools) == []
    assert after.sent == ["CancelRun"]


def test_a_stream_that_is_still_open_is_followed_and_the_transcript_fetched_in_the_end() -> None:
    story = Story()
    story.watch()
    number = story.stream_number
    after = story.successor(in_flight=(number,))
    assert after.requests == []
    after.stream(run("completed"), number=number)
    assert after.sent == ["RetrieveRun"]
    after.answer(run("completed"))
    after.transcript(message("msg_1", "hello"))
    assert after.result.text == "hello"


def test_a_stream_that_died_with_the_actor_is_replaced_by_a_look() -> None:
    story = Story()
    story.watch()
    after = story.successor()
    assert after.sent == ["RetrieveRun"]
    after.answer(run("in_progress"))
    assert Timer.POLL in after.timers


def test_a_silent_stream_that_was_taken_over_is_looked_at_after_a_while() -> None:
    story = Story()
    story.watch()
    after = story.successor(in_flight=(story.stream_number,))
    after.wait(61)
    assert after.sent == ["RetrieveRun"]


def test_only_calls_without_an_outcome_that_are_not_under_way_are_started() -> None:
    story = Story()
    story.act(call("call_1"), call("call_2"), call("call_3"))
    story.finish_tool("call_1", "first")
    after = story.successor(open_calls=("call_2",))
    assert [[asked.id for asked in started.calls] for started in after.all(fx.StartTools)] == [["call_3"]]
    after.finish_tool("call_3")
    after.finish_tool("call_2")
    (submit,) = after.all(fx.SubmitToolOutputs)
    assert [out.tool_call_id for out in submit.outputs] == ["call_1", "call_2", "call_3"]
    assert submit.outputs[0].output == "first"


def test_a_whole_batch_that_was_not_submitted_is_submitted_without_calling_anything_again() -> None:
    story = Story()
    story.act()
    story.finish_tool("call_1", "fine")
    whole = next(kept.record for kept in story.all(fx.Record) if kept.record.results)
    assert whole.phase is Phase.ACTING
    after = Story(whole, now=story.now)
    assert after.all(fx.StartTools) == []
    assert [output.output for output in after.last(fx.SubmitToolOutputs).outputs] == ["fine"]


def test_a_submission_in_flight_is_waited_for_and_a_lost_one_is_looked_at() -> None:
    story = Story()
    story.submit()
    number = story.stream_number
    waiting = story.successor(in_flight=(number,))
    assert waiting.requests == []
    waiting.fail(cut(), number=number)
    assert waiting.sent == ["RetrieveRun"]
    after = story.successor()
    assert after.sent == ["RetrieveRun"]
    after.answer(run("requires_action", call("call_1")))
    after.fire(Timer.RETRY)
    after.answer(run("requires_action", call("call_1")))
    assert after.last(fx.SubmitToolOutputs).outputs == story.last(fx.SubmitToolOutputs).outputs
    assert after.all(fx.StartTools) == []


def test_an_observation_asked_for_by_the_predecessor_does_not_start_a_round_again() -> None:
    story = Story()
    story.watch()
    story.fire(Timer.STALL)
    look = story.last_request.number
    story.stream(run("requires_action", call("call_1")))
    story.finish_tool("call_1")
    story.stream(run("queued"))
    after = story.successor(in_flight=(look,))
    late = told.RunObserved(number=look, run=run("requires_action", call("call_1")))
    assert after.tell(late) == []


def test_an_observation_asked_for_before_an_acceptance_that_is_told_late_is_ignored() -> None:
    story = Story()
    story.submit()
    after = story.successor()
    look = after.last_request.number
    after.stream(run("queued"), number=story.stream_number)
    late = told.RunObserved(number=look, run=run("requires_action", call("call_1")))
    assert after.tell(late) == []
    assert (after.phase, after.all(fx.StartTools)) == (Phase.WATCHING, [])


def test_a_submission_whose_taken_over_stream_shows_the_end_is_checked_and_not_sent_again() -> None:
    story = Story()
    story.submit()
    number = story.stream_number
    after = story.successor(in_flight=(number,))
    after.stream(run("failed"), number=number)
    assert (after.phase, after.sent) == (Phase.WATCHING, ["RetrieveRun"])
    after.answer(run("failed"))
    after.transcript()
    assert after.result.status == "failed"


def test_a_cancel_goes_on_stops_what_was_left_and_is_not_given_more_time_than_the_deadline_allows() -> None:
    story = Story(deadline_s=100)
    story.act()
    story.wait(90)
    story.tell(told.CancelRequested())
    story.wait(50)
    after = story.successor(open_calls=("call_1",))
    assert after.all(fx.StopTools)
    assert after.sent == ["CancelRun"]
    assert after.timers[Timer.CANCEL][0] == 1160
    after.answer(run("cancelled"))
    after.transcript()
    assert after.result.status == "cancelled"


def test_a_submission_beside_a_cancel_is_still_understood_by_the_successor() -> None:
    story = Story()
    story.submit()
    submit = story.stream_number
    story.tell(told.CancelRequested())
    after = story.successor(in_flight=(submit,))
    after.stream(run("cancelling"), run("cancelled"), number=submit)
    after.answer(run("cancelled"))
    after.transcript()
    assert after.result.status == "cancelled"


def test_a_verdict_is_read_again_also_past_the_deadline_and_until_it_is_one() -> None:
    story = Story(watch="poll", thread_id=THREAD, deadline_s=100)
    story.create()
    story.answer(run("completed"))
    story.wait(99)
    after = story.successor()
    after.wait(2)
    assert after.sent == ["RetrieveRun"]
    after.answer(run("in_progress"))
    after.fire(Timer.POLL)
    after.answer(run("completed"))
    after.transcript(message("msg_1", "hello"))
    assert after.result.text == "hello"


def test_a_verdict_that_cannot_be_read_again_is_given_up_in_time() -> None:
    story = Story(watch="poll", thread_id=THREAD, deadline_s=100)
    story.create()
    story.answer(run("completed"))
    after = story.successor()
    after.wait(160)
    assert isinstance(after.error, DeadlineExceeded)
    assert after.error.run_id == RUN


def test_a_run_that_waits_for_admission_waits_on() -> None:
    story = Story()
    after = Story(story.machine.record, now=story.now)
    assert after.effects == [after.last(fx.SetTimer)]
    after.create()
    after.stream(run("queued"), run("completed"))
    assert after.sent == ["CreateThread", "CreateRun"]
