"""What a lost stream would have shown is fetched, and shown in its place: before what the next one shows."""

from __future__ import annotations

import msgspec
from lifecycle_story import THREAD, TIMING, Story, call, cut, message, message_event, refused, run, step

from orchestrator.protocol.events import MessageEvent, RunStepEvent
from orchestrator.protocol.objects import RunStep, StepDetails
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase


def writing(id_: str, message_id: str) -> RunStep:
    details = StepDetails(type="message_creation", message_creation={"message_id": message_id})
    return msgspec.structs.replace(step(id_), step_details=details)


def lost(*, finish: bool = True) -> Story:
    """A stream was lost, and the run asks for a call."""
    story = Story()
    story.watch()
    story.stream(message_event("msg_1", "seen"))
    story.end_stream(cut())
    story.answer(run("requires_action", call("call_1")))
    if finish:
        story.finish_tool("call_1")
    return story


def test_the_tools_start_at_once_and_the_submission_waits_for_what_was_missed() -> None:
    story = lost()
    assert story.all(fx.StartTools)
    assert story.sent[-1] == "FetchTranscript"
    story.transcript(message("msg_1", "seen"), message("msg_2", "missed"))
    assert story.sent[-1] == "SubmitToolOutputs"


def test_only_what_was_not_shown_is_shown_and_the_end_needs_no_other_look() -> None:
    story = lost()
    story.transcript(
        message("msg_1", "seen"), message("msg_2", "missed"), steps=(writing("step_2", "msg_2"),)
    )
    story.stream(run("queued"), message_event("msg_3", "after"), run("completed"))
    objects = [name for name in story.shown if name.startswith(("thread.message", "thread.run.step"))]
    assert objects == ["thread.message.completed"] * 2 + ["thread.run.step.completed"] + [
        "thread.message.completed"
    ]
    assert [written.id for written in story.result.messages] == ["msg_1", "msg_2", "msg_3"]
    assert story.sent.count("FetchTranscript") == 1


def test_what_was_missed_is_shown_step_by_step_each_message_with_the_step_that_wrote_it() -> None:
    story = Story(watch="poll")
    story.create()
    story.answer(run("completed"))
    steps = (writing("step_1", "msg_1"), step("step_2"), writing("step_3", "msg_2"))
    story.transcript(message("msg_1", "a"), message("msg_2", "b"), message("msg_3", "c"), steps=steps)
    shown = (event for published in story.all(fx.Publish) for event in published.events)
    ids = [event.data.id for event in shown if isinstance(event, MessageEvent | RunStepEvent)]
    assert ids == ["msg_1", "step_1", "step_2", "msg_2", "step_3", "msg_3"]


def test_outcomes_that_come_first_wait_and_a_fetch_that_comes_first_waits() -> None:
    story = lost(finish=False)
    story.transcript()
    assert story.phase is Phase.ACTING
    story.finish_tool("call_1")
    assert story.sent[-1] == "SubmitToolOutputs"


def test_a_fetch_that_fails_is_repeated() -> None:
    story = lost()
    story.fail(refused(503))
    assert story.phase is Phase.ACTING
    story.fire(Timer.RETRY)
    story.transcript(message("msg_2", "missed"))
    assert story.sent[-1] == "SubmitToolOutputs"


def test_a_batch_that_is_whole_does_not_wait_for_ever() -> None:
    story = lost()
    story.wait(TIMING.fill_s)
    assert story.sent[-1] == "SubmitToolOutputs"
    assert story.notices[-1].event == "run.gap"
    story.stream(run("queued"), run("completed"))
    story.answer(run("completed"))
    story.transcript(message("msg_1", "seen"), message("msg_2", "missed"))
    assert [written.id for written in story.result.messages] == ["msg_1", "msg_2"]


def test_a_fetch_that_the_server_refuses_is_given_up_at_once() -> None:
    story = lost()
    story.fail(refused(403))
    assert story.sent[-1] == "SubmitToolOutputs"


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    story = lost()
    number = story.last(fx.FetchTranscript).number
    story.wait(TIMING.fill_s)
    late = told.TranscriptFetched(number=number, messages=(message("msg_9", "late"),), steps=())
    assert story.tell(late) == []


def test_a_cancel_does_not_wait_for_the_fetch() -> None:
    story = lost(finish=False)
    story.tell(told.CancelRequested())
    assert story.sent[-1] == "CancelRun"
    assert Timer.FILL not in story.timers


def test_a_stream_that_lost_nothing_needs_no_fetch() -> None:
    story = Story()
    story.submit()
    assert "FetchTranscript" not in story.sent


def test_a_polled_run_is_fetched_once_in_the_end() -> None:
    story = Story(watch="poll", thread_id=THREAD)
    story.submit()
    story.answer(run("completed"))
    assert story.sent.count("FetchTranscript") == 1
