"""The documented orders of events (PROTOCOL.md, "Server-sent events")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.testing import running_server
from server.conftest import SCRIPT
from server.speaker import TIME, WEATHER, Speaker, call_ids, names, outputs

if TYPE_CHECKING:
    from server.speaker import JSON, Event

CREATED = ["run.created", "run.queued", "run.in_progress"]
OPENED = [
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
    "message.delta",
]
WRITTEN = [*OPENED, "message.completed", "run.step.completed"]


def _start(speaker: Speaker, text: str, *tools: JSON, **fields: object) -> tuple[str, list[Event]]:
    thread_id = speaker.thread(text)
    body = {"assistant_id": speaker.assistant(*tools), **fields}
    events = speaker.stream(f"/threads/{thread_id}/runs", body)
    return f"/threads/{thread_id}/runs/{events[0][1]['id']}", events


def test_a_text_run_streams_its_message_inside_its_step(speaker: Speaker) -> None:
    path, events = _start(speaker, "hello")
    assert names(events) == [*CREATED, *WRITTEN, "run.completed", "done"]
    said = "".join(
        data["delta"]["content"][0]["text"]["value"]
        for name, data in events
        if name == "thread.message.delta"
    )
    assert said == "Hello, how are you today, dear reader of streams?"
    assert sum(name == "thread.message.delta" for name, _ in events) == 3
    final = events[-2][1]
    assert final == speaker.ok("GET", path)
    assert final["expires_at"] is None
    assert final["usage"] == {"prompt_tokens": 2, "completion_tokens": 13, "total_tokens": 15}
    messages = speaker.ok("GET", path.split("/runs")[0] + "/messages", params={"run_id": final["id"]})["data"]
    assert [message["content"][0]["text"]["value"] for message in messages] == [said]


def test_a_thread_created_with_its_run_is_announced_first(speaker: Speaker) -> None:
    body = {
        "assistant_id": speaker.assistant(),
        "thread": {"messages": [{"role": "user", "content": "hello"}], "metadata": {"a": "b"}},
    }
    events = speaker.stream("/threads/runs", body)
    assert names(events) == ["created", *CREATED, *WRITTEN, "run.completed", "done"]
    assert events[0][1]["metadata"] == {"a": "b"}
    assert events[0][1] == speaker.ok("GET", f"/threads/{events[1][1]['thread_id']}")


def test_a_tool_round_waits_with_its_step_open_and_goes_on_after_the_submission(speaker: Speaker) -> None:
    path, events = _start(speaker, "Weather in Oslo and Rome?", WEATHER)
    assert names(events) == [
        *CREATED,
        *("run.step.created", "run.step.in_progress", "run.step.delta", "run.requires_action", "done"),
    ]
    created = next(data for name, data in events if name == "thread.run.step.created")
    assert created["step_details"] == {"type": "tool_calls", "tool_calls": []}
    deltas = [
        data["delta"]["step_details"]["tool_calls"][0] for name, data in events if name.endswith("step.delta")
    ]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": "", "output": None}
    assert (
        "".join(d["function"]["arguments"] for d in deltas if d["index"] == 1) == '{"city":"Rome","unit":"c"}'
    )
    waiting = events[-2][1]
    assert waiting["usage"]["completion_tokens"] > 0
    assert waiting == speaker.ok("GET", path)
    oslo, rome = call_ids(waiting)

    events = speaker.stream(
        f"{path}/submit_tool_outputs", outputs((rome, '{"celsius": 21}'), (oslo, '{"celsius": -3.5}'))
    )
    assert names(events) == [
        *("run.step.completed", "run.queued", "run.in_progress", *WRITTEN, "run.completed", "done"),
    ]
    assert [call["function"]["output"] for call in events[0][1]["step_details"]["tool_calls"]] == [
        '{"celsius": -3.5}',
        '{"celsius": 21}',
    ]
    assert (
        "".join(
            data["delta"]["content"][0]["text"]["value"]
            for name, data in events
            if name == "thread.message.delta"
        )
        == "It is Oslo -3.5 and Rome 21"
    )
    steps = speaker.ok("GET", f"{path}/steps")["data"]
    total = events[-2][1]["usage"]["total_tokens"]
    assert sum(step["usage"]["total_tokens"] for step in steps) == total


def test_several_rounds_carry_outputs_into_later_arguments(speaker: Speaker) -> None:
    path, events = _start(speaker, "rounds", WEATHER, TIME)
    (first,) = call_ids(events[-2][1])
    events = speaker.stream(f"{path}/submit_tool_outputs", outputs((first, '{"hour": 7}')))
    waiting = events[-2][1]
    call = waiting["required_action"]["submit_tool_outputs"]["tool_calls"][0]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Oslo","hour":7}'}
    assert call["id"] != first
    events = speaker.stream(f"{path}/submit_tool_outputs", outputs((call["id"], "mild")))
    assert events[-4][1]["content"][0]["text"]["value"] == "At 7 it is mild."


def test_without_parallel_calls_a_batch_is_asked_for_one_by_one(speaker: Speaker) -> None:
    path, events = _start(speaker, "Weather in Oslo and Rome?", WEATHER, parallel_tool_calls=False)
    (oslo,) = call_ids(events[-2][1])
    events = speaker.stream(f"{path}/submit_tool_outputs", outputs((oslo, '{"celsius": 1}')))
    (rome,) = call_ids(events[-2][1])
    events = speaker.stream(f"{path}/submit_tool_outputs", outputs((rome, '{"celsius": 2}')))
    assert events[-4][1]["content"][0]["text"]["value"] == "It is Oslo 1 and Rome 2"


def test_a_cancel_cuts_the_message_off_and_ends_the_stream(speaker: Speaker) -> None:
    thread_id = speaker.thread("slow")
    events: list[Event] = []
    with speaker.streaming(f"/threads/{thread_id}/runs", {"assistant_id": speaker.assistant()}) as stream:
        for event in stream:
            events.append(event)
            if event[0] == "thread.message.delta":
                path = f"/threads/{thread_id}/runs/{events[0][1]['id']}"
                assert speaker.ok("POST", f"{path}/cancel")["status"] == "cancelling"
    assert names(events) == [
        *(
            *CREATED,
            *OPENED,
            "message.incomplete",
            "run.step.cancelled",
            "run.cancelling",
            "run.cancelled",
            "done",
        ),
    ]
    message, step, _, run = (data for _, data in events[-5:-1])
    assert message["incomplete_details"] == {"reason": "run_cancelled"}
    assert message["content"][0]["text"]["value"] == "one"
    assert step["cancelled_at"] is not None
    assert run["cancelled_at"] is not None
    assert run["usage"]["completion_tokens"] == 1
    assert run == speaker.ok("GET", path)
    speaker.ok("POST", f"/threads/{thread_id}/messages", {"role": "user", "content": "the lock is gone"})


def test_a_failure_is_told_by_message_step_and_run(speaker: Speaker) -> None:
    path, events = _start(speaker, "fail as asked")
    assert names(events) == [*CREATED, *OPENED, "message.incomplete", "run.step.failed", "run.failed", "done"]
    run = events[-2][1]
    assert run["last_error"]["code"] == "rate_limit_exceeded"
    assert events[-4][1]["incomplete_details"] == {"reason": "run_failed"}
    assert events[-3][1]["last_error"] == run["last_error"]
    assert run == speaker.ok("GET", path)


def test_max_completion_tokens_cut_the_text_at_the_limit(speaker: Speaker) -> None:
    _, events = _start(speaker, "long", max_completion_tokens=256)
    assert names(events) == [
        *CREATED,
        *OPENED,
        "message.incomplete",
        "run.step.failed",
        "run.incomplete",
        "done",
    ]
    run = events[-2][1]
    assert run["incomplete_details"] == {"reason": "max_completion_tokens"}
    assert run["usage"]["completion_tokens"] == 256
    assert len(events[-4][1]["content"][0]["text"]["value"]) == 1024
    assert events[-4][1]["incomplete_details"] == {"reason": "max_tokens"}


def test_max_prompt_tokens_end_a_run_before_its_model_is_asked(speaker: Speaker) -> None:
    _, events = _start(speaker, "hello " * 300, max_prompt_tokens=256)
    assert names(events) == [*CREATED, "run.incomplete", "done"]
    assert events[-2][1]["incomplete_details"] == {"reason": "max_prompt_tokens"}


def test_a_rule_can_overrun_without_a_limit(speaker: Speaker) -> None:
    _, events = _start(speaker, "overrun")
    assert names(events)[-4:] == ["message.incomplete", "run.step.failed", "run.incomplete", "done"]


def test_arguments_may_be_invalid_json_on_purpose(speaker: Speaker) -> None:
    _, events = _start(speaker, "invalid", WEATHER)
    call = events[-2][1]["required_action"]["submit_tool_outputs"]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"city": '


def test_a_tool_that_the_run_does_not_have_fails_it_and_is_named(speaker: Speaker) -> None:
    _, events = _start(speaker, "Weather in Oslo?", TIME)
    error = events[-2][1]["last_error"]
    assert error["code"] == "server_error"
    assert "'get_weather'" in error["message"]
    assert "get_time" in error["message"]


def test_a_reader_that_leaves_does_not_stop_the_run(speaker: Speaker) -> None:
    thread_id = speaker.thread("Weather in Oslo?")
    body = {"assistant_id": speaker.assistant(WEATHER)}
    with speaker.streaming(f"/threads/{thread_id}/runs", body) as stream:
        run_id = next(stream)[1]["id"]
    path = f"/threads/{thread_id}/runs/{run_id}"
    (call_id,) = call_ids(speaker.until(path, "requires_action"))
    with speaker.streaming(f"{path}/submit_tool_outputs", outputs((call_id, '{"celsius": 4}'))) as stream:
        next(stream)
    assert speaker.until(path, "completed")["status"] == "completed"


CALLING = ["run.step.created", "run.step.in_progress", "run.step.delta"]


def _cancelled_at(speaker: Speaker, text: str, until: str) -> list[str]:
    """Stream a run, cancel it when an event is seen, and return the names of all events."""
    events: list[Event] = []
    body = {
        "assistant_id": speaker.assistant(WEATHER),
        "thread": {"messages": [{"role": "user", "content": text}]},
    }
    with speaker.streaming("/threads/runs", body) as stream:
        for event in stream:
            events.append(event)
            if event[0] == until:
                run = events[1][1]
                speaker.ok("POST", f"/threads/{run['thread_id']}/runs/{run['id']}/cancel")
                until = ""
    return names(events)


def test_a_cancel_in_the_middle_of_a_call_cancels_its_step(speaker: Speaker) -> None:
    assert _cancelled_at(speaker, "stall", "thread.run.step.delta") == [
        *("created", *CREATED, *CALLING, "run.step.cancelled", "run.cancelling", "run.cancelled", "done"),
    ]


def test_a_cancel_before_the_model_says_anything_leaves_only_the_run_to_end(speaker: Speaker) -> None:
    assert _cancelled_at(speaker, "think", "thread.run.in_progress") == [
        *("created", *CREATED, "run.cancelling", "run.cancelled", "done"),
    ]


def test_a_run_that_expires_in_the_middle_of_a_call_expires_its_step() -> None:
    with running_server(SCRIPT, run_ttl_s=1) as server:
        speaker = Speaker(server)
        with speaker.http:
            path, events = _start(speaker, "stall", WEATHER)
            assert names(events) == [*CREATED, *CALLING, "run.step.expired", "run.expired", "done"]
            assert events[-2][1] == speaker.ok("GET", path)


def test_a_run_that_expires_before_the_model_says_anything_just_expires() -> None:
    with running_server(SCRIPT, run_ttl_s=1) as server:
        speaker = Speaker(server)
        with speaker.http:
            _, events = _start(speaker, "think")
            assert names(events) == [*CREATED, "run.expired", "done"]
            assert events[-2][1]["completed_at"] is None


def test_a_run_that_fails_before_the_model_says_anything_just_fails(speaker: Speaker) -> None:
    _, events = _start(speaker, "crash")
    assert names(events) == [*CREATED, "run.failed", "done"]
    assert events[-2][1]["last_error"] == {"code": "server_error", "message": "it crashed"}


def test_max_completion_tokens_cut_a_call_and_no_output_is_asked_for(speaker: Speaker) -> None:
    path, events = _start(speaker, "wordy", WEATHER, max_completion_tokens=256)
    assert names(events) == [*CREATED, *CALLING, "run.step.failed", "run.incomplete", "done"]
    assert events[-2][1]["required_action"] is None
    (step,) = speaker.ok("GET", f"{path}/steps")["data"]
    assert step["status"] == "failed"


def test_text_before_a_call_is_a_message_and_a_step_of_its_own(speaker: Speaker) -> None:
    path, events = _start(speaker, "look it up", WEATHER)
    assert names(events) == [*CREATED, *WRITTEN, *CALLING, "run.requires_action", "done"]
    (call_id,) = call_ids(events[-2][1])
    events = speaker.stream(f"{path}/submit_tool_outputs", outputs((call_id, "mild")))
    assert events[-2][1]["expires_at"] is None
    steps = speaker.ok("GET", f"{path}/steps", params={"order": "asc"})["data"]
    assert [step["type"] for step in steps] == ["message_creation", "tool_calls", "message_creation"]
    assert sum(step["usage"]["total_tokens"] for step in steps) == events[-2][1]["usage"]["total_tokens"]


def test_outputs_do_not_give_a_run_more_time(speaker: Speaker) -> None:
    path, (call_id,) = speaker.waiting("rounds", WEATHER, TIME)
    expires_at = speaker.ok("GET", path)["expires_at"]
    again = speaker.ok("POST", f"{path}/submit_tool_outputs", outputs((call_id, '{"hour": 1}')))
    assert (again["status"], again["expires_at"]) == ("queued", expires_at)
    assert speaker.until(path, "requires_action")["expires_at"] == expires_at


MOMENTS = [
    *("run.created", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
    *("message.created", "message.delta", "message.completed", "run.step.completed", "run.completed"),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_cancel_at_any_moment_ends_in_one_verdict_and_frees_the_thread(
    speaker: Speaker, moment: str
) -> None:
    thread_id = speaker.thread("paced")
    answer: int | None = None
    events: list[Event] = []
    body = {"assistant_id": speaker.assistant()}
    with speaker.streaming(f"/threads/{thread_id}/runs", body) as stream:
        for event in stream:
            events.append(event)
            if answer is None and event[0] == f"thread.{moment}":
                path = f"/threads/{thread_id}/runs/{events[0][1]['id']}"
                answer = speaker.send("POST", f"{path}/cancel").status_code
    run = events[-2][1]
    assert run == speaker.ok("GET", path)
    assert run["status"] == ("cancelled" if answer == 200 else "completed")
    verdicts = [name for name, _ in events if name in ("thread.run.cancelled", "thread.run.completed")]
    assert verdicts == [f"thread.run.{run['status']}"]
    steps = speaker.ok("GET", f"{path}/steps")["data"]
    assert {step["status"] for step in steps} <= {run["status"], "completed"}
    messages = speaker.ok("GET", f"/threads/{thread_id}/messages")["data"]
    assert "in_progress" not in {message["status"] for message in messages}
    speaker.ok("POST", f"/threads/{thread_id}/messages", {"role": "user", "content": "the lock is gone"})
