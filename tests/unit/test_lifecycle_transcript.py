"""Stories of transcripts that differ from what a stream had shown."""

from __future__ import annotations

from lifecycle_story import Story, cut, message, message_event, run, step, step_event


def test_what_a_stream_showed_and_the_server_does_not_have_is_no_part_of_the_result() -> None:
    """A server streams a moment before it stores: one that is killed then carries the run out anew."""
    story = Story()
    story.watch()
    story.stream(run("in_progress"), step_event("step_lost", "in_progress"), message_event("msg_lost", "hel"))
    story.end_stream(cut())
    story.answer(run("completed"))
    story.transcript(message("msg_1", "hello"), steps=(step("step_1"),))
    assert story.result.text == "hello"
    assert [shown.id for shown in story.result.messages] == ["msg_1"]
    assert [shown.id for shown in story.result.steps] == ["step_1"]
