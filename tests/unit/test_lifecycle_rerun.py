"""A run that failed or expired, and the one that follows it under the same handle."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from lifecycle_story import NONCE, THREAD, Story, call, cut, message, message_event, refused, run

from orchestrator.errors import DeadlineExceeded
from orchestrator.protocol.objects import LastError, Run, Usage
from orchestrator.runs import effects as fx
from orchestrator.runs import inputs as told
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import Phase
from orchestrator.runs.request import RerunPolicy
from orchestrator.runs.rerun import MAX_CARRIED_CHARACTERS

POLICY = RerunPolicy(attempts=3, base_s=4.0)
SECOND = "run_2"


def failed(code: str = "server_error", id_: str = "run_1", tokens: int = 10) -> Run:
    error = LastError(code=code, message="it broke")
    usage = Usage(prompt_tokens=tokens, completion_tokens=tokens, total_tokens=2 * tokens)
    return msgspec.structs.replace(run("failed", id_=id_), last_error=error, usage=usage)


def story_of(**request: Any) -> Story:
    asked: dict[str, Any] = {"rerun": POLICY, "thread_id": THREAD}
    return Story(**(asked | request))


def test_by_default_a_failed_run_is_the_result() -> None:
    story = Story(thread_id=THREAD)
    story.watch()
    story.stream(failed())
    assert (story.result.status, story.sent) == ("failed", ["CreateRun"])


@pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded"])
def test_a_failed_run_is_followed_by_another_with_its_own_nonce_and_without_the_messages(code: str) -> None:
    story = story_of(
        messages=({"role": "user", "content": "hello"},),
        options={"additional_messages": [{"role": "user", "content": "more"}], "model": "m"},
        metadata={"mine": "1"},
    )
    story.watch()
    story.stream(failed(code))
    assert story.phase is Phase.COLLECTING
    assert story.shown[-2:] == ["thread.run.failed", "run.rerun"]
    story.fire(Timer.RERUN)
    first, second = story.all(fx.CreateRun)
    assert (first.nonce, second.nonce) == (NONCE, f"{NONCE}.2")
    assert first.messages
    assert second.messages == ()
    assert (second.options, second.metadata) == ({"model": "m"}, {"mine": "1"})
    story.stream(run("queued", id_=SECOND), run("completed", id_=SECOND))
    assert (story.result.run_id, story.result.status) == (SECOND, "completed")
    assert story.machine.record.run_ids == ("run_1", SECOND)


def test_the_pause_doubles_with_full_jitter() -> None:
    story = story_of()
    pauses = []
    for number in (1, 2):
        story.create() if number == 1 else story.fire(Timer.RERUN)
        story.show(failed(id_=f"run_{number}"))
        pauses.append(story.timers[Timer.RERUN][0] - story.now)
    assert pauses == [2.0, 4.0]


def test_there_are_never_more_runs_than_the_policy_allows() -> None:
    story = story_of()
    story.create()
    for number in (1, 2):
        story.show(failed(id_=f"run_{number}"))
        story.fire(Timer.RERUN)
    story.show(failed(id_="run_3"))
    assert (story.result.run_id, story.result.status) == ("run_3", "failed")
    assert story.sent == ["CreateRun"] * 3


@pytest.mark.parametrize("seen", [failed("invalid_prompt"), run("failed"), run("incomplete"), run("expired")])
def test_what_the_policy_does_not_list_is_the_result(seen: Run) -> None:
    story = story_of()
    story.watch()
    story.stream(seen)
    assert story.result.status == seen.status


def test_a_run_is_not_followed_once_a_tool_was_called_that_may_not_be_called_again() -> None:
    story = story_of(unrepeatable_tools=frozenset({"get_weather"}))
    story.submit()
    story.stream(run("queued"), failed())
    assert story.result.status == "failed"


def test_a_call_under_way_counts_as_called() -> None:
    story = story_of(unrepeatable_tools=frozenset({"get_weather"}))
    story.act()
    story.stream(failed())
    story.answer(failed())
    story.transcript()
    assert story.result.status == "failed"


def test_tools_that_may_be_called_again_do_not_stand_in_the_way() -> None:
    story = story_of(unrepeatable_tools=frozenset({"book"}))
    story.submit(call("call_1"))
    story.stream(run("queued"), failed())
    story.fire(Timer.RERUN)
    story.stream(run("queued", id_=SECOND), run("requires_action", call("call_1"), id_=SECOND))
    assert story.last(fx.StartTools).round == 2
    story.finish_tool("call_1", "again")
    story.stream(run("completed", id_=SECOND))
    outputs = [(made.round, made.run_id, made.output) for made in story.result.tool_calls]
    assert outputs == [(1, "run_1", "ok"), (2, SECOND, "again")]


def test_usage_is_that_of_all_the_runs() -> None:
    story = story_of()
    story.create()
    story.show(failed(tokens=10))
    story.fire(Timer.RERUN)
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    story.show(msgspec.structs.replace(run("completed", id_=SECOND), usage=usage))
    assert story.result.usage == Usage(prompt_tokens=11, completion_tokens=12, total_tokens=23)


def test_what_the_first_run_wrote_is_not_the_result_of_the_second() -> None:
    story = story_of()
    story.watch()
    story.stream(message_event("msg_1", "half"), failed())
    story.fire(Timer.RERUN)
    story.stream(run("queued", id_=SECOND), message_event("msg_2", "whole"), run("completed", id_=SECOND))
    assert [written.id for written in story.result.messages] == ["msg_2"]


def test_late_news_of_the_first_run_is_ignored() -> None:
    story = story_of()
    story.watch()
    old = story.stream_number
    story.stream(failed())
    story.fire(Timer.RERUN)
    story.stream(run("completed"), number=old)
    story.tell(told.StreamEnded(number=old))
    story.tell(told.ToolFinished(round=1, call_id="call_1", output="late"))
    assert (story.phase, story.machine.record.run_id) == (Phase.CREATING, None)


@pytest.mark.parametrize("wish", [told.CancelRequested(), told.DetachRequested()])
def test_who_ends_the_run_during_the_pause_gets_the_verdict_there_is(wish: told.Input) -> None:
    story = story_of()
    story.watch()
    story.stream(failed())
    story.tell(wish)
    assert (story.result.status, story.sent) == ("failed", ["CreateRun"])


def test_a_run_that_was_cancelled_and_failed_is_not_followed() -> None:
    story = story_of()
    story.watch()
    story.tell(told.CancelRequested())
    story.stream(failed())
    assert story.result.status == "failed"


def test_a_run_is_not_followed_when_the_deadline_leaves_no_time() -> None:
    story = story_of(deadline_s=10.0)
    story.watch()
    story.wait(9.0)
    story.stream(failed())
    assert story.result.status == "failed"


def test_the_deadline_is_that_of_the_first_run() -> None:
    story = story_of(deadline_s=10.0)
    story.watch()
    story.stream(failed())
    story.fire(Timer.RERUN)
    story.stream(run("in_progress", id_=SECOND))
    story.fire(Timer.DEADLINE)
    story.stream(run("cancelled", id_=SECOND))
    assert isinstance(story.error, DeadlineExceeded)
    assert story.now == 1010.0
    assert "after run_1" in str(story.error)


def test_a_successor_of_the_actor_decides_the_same_way() -> None:
    story = story_of()
    story.watch()
    story.stream(failed())
    story = story.successor()
    story.answer(failed())
    story.transcript()
    story.fire(Timer.RERUN)
    assert story.last(fx.CreateRun).nonce == f"{NONCE}.2"
    again = story.successor(in_flight=(story.last(fx.CreateRun).number,))
    again.tell(
        told.RunObserved(number=story.last(fx.CreateRun).number, run=run("completed", id_=SECOND, nonce=None))
    )
    assert again.machine.record.run_ids == ("run_1", SECOND)


def test_a_lost_create_of_the_second_run_is_looked_for_by_its_own_nonce() -> None:
    story = story_of()
    story.watch()
    story.stream(failed())
    story.fire(Timer.RERUN)
    story.fail(cut())
    story.list_runs(run("in_progress", id_=SECOND, nonce=f"{NONCE}.2"), failed())
    assert story.machine.record.run_ids == ("run_1", SECOND)


def test_what_was_lost_of_the_first_run_is_shown_before_the_second_begins() -> None:
    story = story_of()
    story.watch()
    story.end_stream()
    story.answer(failed())
    story.transcript(message("msg_1", "half"))
    assert story.shown[-3:] == ["thread.message.completed", "thread.run.failed", "run.rerun"]


def test_an_adopted_run_is_not_followed_because_nobody_said_how() -> None:
    story = story_of(run_id="run_1")
    request = dataclasses.replace(story.machine.record.request, assistant_id="")
    story = Story(msgspec.structs.replace(story.machine.record, request=request))
    story.start()
    story.answer(failed())
    story.transcript()
    assert story.result.status == "failed"


def test_an_expired_run_is_followed_by_one_that_is_told_the_results() -> None:
    story = Story(
        thread_id=THREAD,
        on_expired="restart",
        options={"additional_instructions": "Be brief."},
        unrepeatable_tools=frozenset({"get_weather"}),
    )
    story.act(call("call_1", arguments='{"city": "Oslo"}'), call("call_2", arguments='{"city": "Rome"}'))
    story.finish_tool("call_1", "rain")
    story.stream(run("expired"))
    story.answer(run("expired"))
    assert story.all(fx.StopTools)
    story.transcript()
    story.fire(Timer.RERUN)
    told_ = story.last(fx.CreateRun).options["additional_instructions"]
    assert told_.startswith("Be brief.\n\n")
    assert 'get_weather({"city": "Oslo"}): rain' in told_
    assert 'get_weather({"city": "Rome"}): no result' in told_
    story.stream(run("queued", id_=SECOND), run("completed", id_=SECOND))
    assert [made.error for made in story.result.tool_calls] == [
        None,
        "abandoned: the run ended before the call did",
    ]


def test_what_is_carried_over_is_bounded() -> None:
    story = Story(thread_id=THREAD, on_expired="restart")
    story.act()
    story.finish_tool("call_1", "x" * 300_000)
    story.stream(run("expired"))
    story.fire(Timer.RERUN)
    told_ = story.last(fx.CreateRun).options["additional_instructions"]
    assert len(told_) < MAX_CARRIED_CHARACTERS + 100
    assert told_.endswith("(cut: there was more)")


def test_an_expired_run_without_tool_calls_is_followed_by_the_same_request() -> None:
    story = Story(thread_id=THREAD, on_expired="restart")
    story.watch()
    story.stream(run("expired"))
    story.fire(Timer.RERUN)
    assert story.last(fx.CreateRun).options == {}


def test_a_server_that_expires_everything_at_once_does_not_keep_the_run_for_ever() -> None:
    story = Story(thread_id=THREAD, on_expired="restart")
    story.create()
    for number in (1, 2):
        story.show(run("expired", id_=f"run_{number}"))
        story.fire(Timer.RERUN)
    story.show(run("expired", id_="run_3"))
    assert story.result.status == "expired"


def test_a_thread_held_by_somebody_else_is_waited_for_before_the_second_run_too() -> None:
    story = story_of()
    story.watch()
    story.stream(failed())
    story.fire(Timer.RERUN)
    story.fail(refused(400, f"Thread {THREAD} already has an active run run_7."))
    story.answer(run("completed", id_="run_7", nonce=None))
    assert story.last(fx.CreateRun).nonce == f"{NONCE}.2"


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"base_s": -1.0}, {"cap_s": -1.0}], ids=lambda wrong: next(iter(wrong))
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RerunPolicy(**wrong)  # type: ignore[arg-type]
