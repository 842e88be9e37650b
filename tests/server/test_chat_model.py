"""The model behind a Chat Completions endpoint, end to end: our server, real sockets, a scripted endpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from faulty_server import chunks, failure, reply

from server.chat_endpoint import (
    DONE,
    HELLO,
    KEY,
    WHOLE,
    asking,
    call,
    completion,
    delta,
    said_in,
    text,
    usage,
)
from server.speaker import TIME, WEATHER, Speaker, call_ids, names, outputs

if TYPE_CHECKING:
    from pathlib import Path

    from faulty_server import Step


def _submit(speaker: Speaker, path: str, *texts: str) -> None:
    ids = call_ids(speaker.until(path, "requires_action"))
    speaker.ok("POST", f"{path}/submit_tool_outputs", outputs(*zip(ids, texts, strict=True)))


def test_a_text_is_streamed_as_it_comes_and_the_usage_is_the_endpoint_s_own() -> None:
    with asking(HELLO) as (speaker, endpoint):
        body = {
            "assistant_id": speaker.assistant(instructions="Be kind."),
            "additional_instructions": "Be brief.",
        }
        events = speaker.stream(f"/threads/{speaker.thread('Hi', 'there')}/runs", body)
    assert [e["delta"]["content"][0]["text"]["value"] for n, e in events if n == "thread.message.delta"] == [
        "Hello",
        ", you.",
    ]
    assert events[-2][0] == "thread.run.completed"
    assert events[-2][1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    (asked,) = endpoint.received
    assert (asked.method, asked.target) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.json == {
        "model": "rules",
        "messages": [
            {"role": "system", "content": "Be kind.\nBe brief."},
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": "there"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_every_option_of_a_run_reaches_the_endpoint() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    with asking(HELLO, model="llama") as (speaker, endpoint):
        thread = speaker.thread("old", "newer")
        image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
        content = [{"type": "text", "text": "What is this?"}, image]
        speaker.ok("POST", f"/threads/{thread}/messages", {"role": "user", "content": content})
        body = {
            "assistant_id": speaker.assistant(WEATHER, TIME),
            "tool_choice": {"type": "function", "function": {"name": "get_time"}},
            "parallel_tool_calls": False,
            "response_format": schema,
            "temperature": 0.2,
            "top_p": 0.9,
            "reasoning_effort": "low",
            "max_completion_tokens": 300,
            "truncation_strategy": {"type": "last_messages", "last_messages": 2},
        }
        speaker.stream(f"/threads/{thread}/runs", body)
    asked = endpoint.received[0].json
    del asked["stream"], asked["stream_options"]
    (newer, seen) = asked.pop("messages")
    assert newer == {"role": "user", "content": "newer"}
    assert seen["content"][0] == {"type": "text", "text": "What is this?"}
    assert seen["content"][1] == image
    assert asked == {
        "model": "llama",
        "tools": [WEATHER, TIME],
        "tool_choice": {"type": "function", "function": {"name": "get_time"}},
        "parallel_tool_calls": False,
        "response_format": schema,
        "temperature": 0.2,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "max_completion_tokens": 300,
    }


def test_calls_come_in_fragments_under_ids_that_repeat_and_leave_under_ids_of_our_own() -> None:
    first = completion(
        *text("Let me", " see."),
        call(0, "get_weather", id="call_1"),
        call(0, None, '{"city": '),
        call(1, "get_weather", '{"city"', id="call_1"),
        call(0, None, '"Oslo"}'),
        call(1, None, ': "Rome"}'),
        finish="tool_calls",
    )
    second = completion(call(0, "get_time", "{}", id="call_1"), usage(20, 4), finish="tool_calls")
    with asking(first, second, HELLO) as (speaker, endpoint):
        thread = speaker.thread("Weather?")
        body = {"assistant_id": speaker.assistant(WEATHER, TIME), "tool_choice": "required"}
        events = speaker.stream(f"/threads/{thread}/runs", body)
        path = f"/threads/{thread}/runs/{events[-2][1]['id']}"
        calls = events[-2][1]["required_action"]["submit_tool_outputs"]["tool_calls"]
        _submit(speaker, path, "cold", "warm")
        _submit(speaker, path, "noon")
        run = speaker.until(path, "completed")
        assert said_in(speaker, path) == ["Weather?", "Let me see.", "Hello, you."]
    assert names(events)[-7:] == [
        "message.completed",
        "run.step.completed",
        "run.step.created",
        "run.step.in_progress",
        "run.step.delta",
        "run.requires_action",
        "done",
    ]
    assert [one["function"]["arguments"] for one in calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert len({one["id"] for one in calls}) == 2
    assert run["usage"]["prompt_tokens"] > 27
    *_, asked = endpoint.received
    _, said, cold, warm, again, noon = asked.json["messages"]
    assert said["content"] == "Let me see."
    assert again["content"] is None
    assert [one["id"] for one in said["tool_calls"]] == [cold["tool_call_id"], warm["tool_call_id"]]
    assert (cold["content"], warm["content"], noon["content"]) == ("cold", "warm", "noon")
    ids = {one["tool_call_id"] for one in (cold, warm, noon)}
    assert len(ids) == 3
    assert all(len(one) == 9 and one.isalnum() for one in ids), "Mistral takes no others"
    assert endpoint.received[0].json["tool_choice"] == "required"
    assert "tool_choice" not in asked.json, "a call that is forced again and again leaves no answer"


def test_after_a_restart_the_endpoint_is_told_what_was_said_before_it(tmp_path: Path) -> None:
    looking = completion(*text("Let me see."), call(0, "get_time", '{"a":1}'), finish="tool_calls")
    db = tmp_path / "kept.sqlite"
    with asking(looking, db=db) as (speaker, _):
        path, ids = speaker.waiting("x", TIME, instructions="Be kind.")
    with asking(HELLO, db=db) as (speaker, endpoint):
        speaker.ok("POST", f"{path}/submit_tool_outputs", outputs((ids[0], "noon")))
        speaker.until(path, "completed")
    told = endpoint.received[0].json["messages"]
    assert [one["role"] for one in told] == ["system", "user", "assistant", "tool"]
    assert told[2]["content"] == "Let me see."
    assert told[2]["tool_calls"][0]["function"] == {"name": "get_time", "arguments": '{"a":1}'}
    assert told[3]["content"] == "noon"


def test_without_parallel_calls_only_the_first_is_made() -> None:
    both = completion(call(0, "get_time", '{"a":'), call(1, "get_time", "{}"), call(0, None, "1}"))
    with asking(both) as (speaker, _):
        path, ids = speaker.waiting("x", TIME, parallel_tool_calls=False)
        (made,) = speaker.ok("GET", path)["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert ids == [made["id"]]
    assert made["function"]["arguments"] == '{"a":1}'


def test_a_limit_counts_over_the_run_and_the_endpoint_is_told_what_is_left() -> None:
    first = completion(call(0, "get_time", "{}"), usage(5, 100))
    second = completion(*text("and so"), usage(9, 200), finish="length")
    with asking(first, second) as (speaker, endpoint):
        path = speaker.run("x", TIME, max_completion_tokens=300)
        _submit(speaker, path, "noon")
        run = speaker.until(path, "incomplete")
        (message, _) = speaker.ok("GET", f"{path.partition('/runs')[0]}/messages")["data"]
    assert [one.json["max_completion_tokens"] for one in endpoint.received] == [300, 200]
    assert run["incomplete_details"] == {"reason": "max_completion_tokens"}
    assert run["usage"]["completion_tokens"] == 300
    assert message["incomplete_details"] == {"reason": "max_tokens"}


def test_a_run_that_has_used_its_limit_up_asks_for_nothing_more() -> None:
    with asking(completion(call(0, "get_time", "{}"), usage(5, 300))) as (speaker, endpoint):
        path = speaker.run("x", TIME, max_completion_tokens=300)
        _submit(speaker, path, "noon")
        run = speaker.until(path, "incomplete")
    assert run["incomplete_details"] == {"reason": "max_completion_tokens"}
    assert len(endpoint.received) == 1


def test_an_endpoint_that_counts_is_not_cut_off_by_our_estimate() -> None:
    words = "a" * 4 * 400
    with asking(completion(*text(words), usage(5, 290))) as (speaker, _):
        path = speaker.run("x", max_completion_tokens=300)
        speaker.until(path, "completed")
        assert said_in(speaker, path)[1] == words


def test_what_a_content_filter_stops_is_incomplete_and_says_so() -> None:
    with asking(completion(*text("I would"), finish="content_filter")) as (speaker, _):
        path = speaker.run("x")
        run = speaker.until(path, "incomplete")
        (message, _) = speaker.ok("GET", f"{path.partition('/runs')[0]}/messages")["data"]
    assert message["incomplete_details"] == {"reason": "content_filter"}
    assert run["incomplete_details"] is None, "the specification knows no such reason for runs"
    assert "content filter" in run["last_error"]["message"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([reply(WHOLE)], "Whole."),
        ([chunks([*text("Mis", "labelled."), DONE], content_type="text/plain")], "Mislabelled."),
        ([chunks([b": keep-alive\n\n", *text("No reason."), DONE])], "No reason."),
        ([chunks([*text("No [DONE]."), delta("stop")])], "No [DONE]."),
        ([chunks([*text("More behind it."), DONE, *text("Not this.")])], "More behind it."),
        ([chunks([*text("Cut behind the end."), delta("stop")], end=b"")], "Cut behind the end."),
    ],
)
def test_answers_that_are_whole_in_some_way_are_taken(script: list[Step], said: str) -> None:
    with asking(*script) as (speaker, _):
        path = speaker.run("x")
        speaker.until(path, "completed")
        assert said_in(speaker, path) == ["x", said]


def test_an_endpoint_that_sends_calls_in_one_json_answer_is_as_good() -> None:
    calls = [{"id": "", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "utc"}}}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    with asking(reply({"choices": [{"message": message, "finish_reason": "stop"}]})) as (speaker, _):
        path, _ = speaker.waiting("x", TIME)
        (made,) = speaker.ok("GET", path)["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"zone": "utc"}
    assert made["id"].startswith("call_")


@pytest.mark.parametrize(
    ("refusal", "gone", "there"),
    [
        ("Unknown parameter: stream_options", "stream_options", "stream"),
        ("This model does not support streaming", "stream", "messages"),
        ("max_completion_tokens is not known", "max_completion_tokens", "max_tokens"),
        ("parallel_tool_calls: extra fields not permitted", "parallel_tool_calls", "tools"),
        ("Unrecognized request argument: reasoning_effort", "reasoning_effort", "tools"),
    ],
)
def test_a_parameter_that_an_endpoint_does_not_know_is_left_out_from_then_on(
    refusal: str, gone: str, there: str
) -> None:
    with asking(failure(400, message=refusal), reply(WHOLE), reply(WHOLE)) as (speaker, endpoint):
        for _ in range(2):
            options = {"parallel_tool_calls": False, "reasoning_effort": "low"}
            path = speaker.run("x", TIME, max_completion_tokens=300, **options)
            speaker.until(path, "completed")
    bodies = [one.json for one in endpoint.received]
    assert [gone in body for body in bodies] == [True, False, False]
    assert all(there in body for body in bodies[1:])


def test_an_image_file_is_refused_because_only_its_owner_could_send_it() -> None:
    with asking() as (speaker, endpoint):
        thread = speaker.thread()
        content = [{"type": "image_file", "image_file": {"file_id": "file-1"}}]
        sent = speaker.send("POST", f"/threads/{thread}/messages", {"role": "user", "content": content})
        if sent.status_code == 400:
            return  # the server refuses it where it is sent
        run = speaker.ok("POST", f"/threads/{thread}/runs", {"assistant_id": speaker.assistant()})
        run = speaker.until(f"/threads/{thread}/runs/{run['id']}", "failed")
    assert run["last_error"]["code"] == "invalid_prompt"
    assert "image_url" in run["last_error"]["message"]
    assert endpoint.received == []
