"""The model behind a Chat Completions endpoint, end to end: our server, real sockets, a scripted endpoint."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from faulty_server import chunks, failure, hang_up, head, raw, refused_url, reply, reset_after, stall

from orchestrator.server.chat import BadEndpointError, Bounds, ChatModel, Endpoint
from orchestrator.testing import running_server
from server.chat_endpoint import DONE, KEY, QUICK, asking, call, completion, data, delta, text, usage
from server.speaker import TIME, WEATHER, Speaker, call_ids, names, outputs

if TYPE_CHECKING:
    from pathlib import Path

    from faulty_server import Step

HELLO = completion(*text("Hello", ", you."), usage(7, 3))
STREAM_HEAD = head(200, {"content-type": "text/event-stream"})


def _text(speaker: Speaker, path: str) -> list[str]:
    thread = path.partition("/runs")[0]
    messages = speaker.ok("GET", f"{thread}/messages?order=asc")["data"]
    return [part["text"]["value"] for message in messages for part in message["content"]]


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
        assert _text(speaker, path) == ["Weather?", "Let me see.", "Hello, you."]
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
        assert _text(speaker, path)[1] == words


def test_what_a_content_filter_stops_is_incomplete_and_says_so() -> None:
    with asking(completion(*text("I would"), finish="content_filter")) as (speaker, _):
        path = speaker.run("x")
        run = speaker.until(path, "incomplete")
        (message, _) = speaker.ok("GET", f"{path.partition('/runs')[0]}/messages")["data"]
    assert message["incomplete_details"] == {"reason": "content_filter"}
    assert run["incomplete_details"] is None, "the specification knows no such reason for runs"
    assert "content filter" in run["last_error"]["message"]


WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Whole."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 2},
}


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
        assert _text(speaker, path) == ["x", said]


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


@pytest.mark.parametrize(
    "fault",
    [
        failure(429, {"retry-after-ms": "5"}),
        failure(503),
        failure(408),
        hang_up,
        reset_after(),
        raw(STREAM_HEAD),
        chunks([], end=b""),
        reset_after(STREAM_HEAD + delta(role="assistant", content="")),
    ],
)
def test_what_fails_before_the_first_word_is_asked_again(fault: Step) -> None:
    with asking(fault, fault, HELLO) as (speaker, endpoint):
        path = speaker.run("x")
        run = speaker.until(path, "completed")
        assert _text(speaker, path) == ["x", "Hello, you."]
    assert run["last_error"] is None
    assert len(endpoint.received) == 3


@pytest.mark.parametrize(
    ("fault", "attempts", "code", "message"),
    [
        (
            failure(429, {"retry-after-ms": "5"}),
            4,
            "rate_limit_exceeded",
            "The model's server answered HTTP 429 (Too Many Requests) to each of 4 attempts.",
        ),
        (
            failure(429, {"retry-after": "3600"}),
            1,
            "rate_limit_exceeded",
            "The model's server answered HTTP 429 (Too Many Requests).",
        ),
        (
            failure(500, message=f"Traceback: {KEY}"),
            4,
            "server_error",
            "The model's server answered HTTP 500 (Internal Server Error) to each of 4 attempts.",
        ),
        (
            failure(400, message=f"Too long for {KEY}\nTraceback (most recent call last):"),
            1,
            "invalid_prompt",
            "The model's server refused the request with HTTP 400 (Bad Request): Too long for [secret]",
        ),
        (
            reply(b"<html>nginx</html>", 413),
            1,
            "invalid_prompt",
            f"The model's server refused the request with HTTP 413 ({HTTPStatus(413).phrase}).",
        ),
        (
            failure(401, message=f"Incorrect API key: {KEY}"),
            1,
            "server_error",
            "The model's server answered HTTP 401 (Unauthorized).",
        ),
        (
            reply(b"", 307, {"location": "http://elsewhere.example/"}),
            1,
            "server_error",
            "The model's server answered HTTP 307 (Temporary Redirect).",
        ),
        (failure(529), 4, "server_error", "The model's server answered HTTP 529 to each of 4 attempts."),
        (
            reply(b"x" * 200_000, 403),
            1,
            "server_error",
            "The model's server answered HTTP 403 (Forbidden).",
        ),
        (
            raw(head(403, {"content-length": "100"}) + b"half"),
            1,
            "server_error",
            "The model's server answered HTTP 403 (Forbidden).",
        ),
        (hang_up, 4, "server_error", "The connection to the model's server broke (4 attempts)."),
        (
            reply(b"<html>", 200, {"content-type": "text/html"}),
            1,
            "server_error",
            "The answer of the model's server cannot be understood.",
        ),
        (reply([1]), 1, "server_error", "The answer of the model's server cannot be understood."),
    ],
)
def test_a_run_says_how_its_model_failed_and_nothing_secret(
    fault: Step, attempts: int, code: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with asking(*[fault] * 4) as (speaker, endpoint):
        run = speaker.until(speaker.run("x"), "failed")
    assert run["last_error"] == {"code": code, "message": message}
    assert len(endpoint.received) == attempts
    assert KEY not in json.dumps(run)
    assert KEY not in caplog.text
    assert "server.model_raised" not in caplog.text


def test_a_server_that_is_not_there_is_said_to_be_out_of_reach() -> None:
    chat = ChatModel(Endpoint.of(refused_url()), policy=QUICK)
    with running_server(model=chat) as server:
        speaker = Speaker(server)
        with speaker.http:
            run = speaker.until(speaker.run("x"), "failed")
    assert run["last_error"]["code"] == "server_error"
    assert run["last_error"]["message"] == "The model's server could not be reached (4 attempts)."


BOUNDS = Bounds(first_s=0.3, idle_s=0.3, answer_bytes=20_000, answer_chars=1_000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            reset_after(STREAM_HEAD + b"".join(text("Half"))),
            "The connection to the model's server broke in the middle of its answer.",
        ),
        (
            chunks(text("Half"), end=b""),
            "The connection to the model's server broke in the middle of its answer.",
        ),
        (chunks(text("Half")), "The connection to the model's server broke in the middle of its answer."),
        (
            chunks([*text("Half"), b'data: {"choices": [\n\n']),
            "The answer of the model's server cannot be understood.",
        ),
        (
            chunks([*text("Half"), data({"choices": [{"delta": {"content": 5}}]})]),
            "The answer of the model's server cannot be understood.",
        ),
        (
            chunks([*text("Half"), data({"error": {"message": f"broken {KEY}", "code": 500}})]),
            "The model's server reported an error in its answer.",
        ),
        (
            stall(STREAM_HEAD + b"".join(text("Half"))),
            "The model's server was silent for too long in the middle of its answer.",
        ),
        (
            chunks([*text("Half"), *text("x" * 600, "y" * 600)]),
            "The answer of the model's server is larger than this server takes.",
        ),
        (
            chunks([*text("Half"), b"data: " + b"z" * 30_000]),
            "The answer of the model's server is larger than this server takes.",
        ),
        (
            chunks([*text("Half"), b": keep-alive\n\n" * 2_000]),
            "The answer of the model's server is larger than this server takes.",
        ),
        (
            chunks([*text("Half"), call(0, None, "{}", id="call_1"), delta("tool_calls"), DONE]),
            "The answer of the model's server called a tool without naming it.",
        ),
    ],
)
def test_an_answer_that_breaks_in_the_middle_fails_the_run_and_keeps_what_was_said(
    fault: Step, message: str
) -> None:
    with asking(fault, bounds=BOUNDS) as (speaker, endpoint):
        thread = speaker.thread("x")
        events = speaker.stream(f"/threads/{thread}/runs", {"assistant_id": speaker.assistant(TIME)})
        (partial, _) = speaker.ok("GET", f"/threads/{thread}/messages")["data"]
    run = events[-2][1]
    assert run["status"] == "failed"
    assert run["last_error"] == {"code": "server_error", "message": message}
    ends = [name for name in names(events) if name.endswith(("incomplete", "failed"))]
    assert ends == ["message.incomplete", "run.step.failed", "run.failed"]
    assert partial["incomplete_details"] == {"reason": "run_failed"}
    assert partial["content"][0]["text"]["value"].startswith("Half")
    assert len(endpoint.received) == 1, "what was begun is not asked for again"


def test_silence_before_the_first_word_fails_the_run_after_one_attempt() -> None:
    with asking(stall(), bounds=BOUNDS) as (speaker, endpoint):
        run = speaker.until(speaker.run("x"), "failed")
    assert run["last_error"]["message"] == "The model's server was silent for too long."
    assert len(endpoint.received) == 1


def test_all_attempts_together_are_bounded_in_time() -> None:
    bounds = Bounds(total_s=0.3)
    with asking(failure(503, {"retry-after": "1"}), bounds=bounds) as (speaker, endpoint):
        run = speaker.until(speaker.run("x"), "failed")
    assert run["last_error"]["message"] == "The model's server answered HTTP 503 (Service Unavailable)."
    assert len(endpoint.received) == 1


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD, STREAM_HEAD + b"".join(text("One"))])
def test_a_cancel_closes_the_connection_to_the_endpoint_at_once(begun: bytes) -> None:
    with asking(stall(begun)) as (speaker, endpoint):
        path = speaker.run("x")
        endpoint.wait_until(lambda server: len(server.received) == 1)
        speaker.ok("POST", f"{path}/cancel")
        endpoint.wait_until(lambda server: server.open_connections == 0)
        assert speaker.until(path, "cancelled")["last_error"] is None


def test_completions_one_after_another_share_a_connection() -> None:
    with asking(HELLO, reply(WHOLE), failure(503), HELLO) as (speaker, endpoint):
        for _ in range(3):
            speaker.until(speaker.run("x"), "completed")
        assert [one.connection for one in endpoint.received] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"".join([*text("Said."), delta("stop"), DONE]), "completed"),
        (b"".join(text("Half")) + b"data: {\n\n", "failed"),
        (b"".join(text("x" * 600, "y" * 600)), "failed"),
    ],
)
def test_a_connection_is_given_up_when_nothing_more_is_wanted_of_it(said: bytes, status: str) -> None:
    with asking(stall(STREAM_HEAD + said), bounds=Bounds(answer_chars=1_000)) as (speaker, endpoint):
        speaker.until(speaker.run("x"), status)
        endpoint.wait_until(lambda server: server.open_connections == 0)


def test_a_run_that_expires_and_a_server_that_stops_close_it_too() -> None:
    with asking(stall(), stall(), run_ttl_s=0.5) as (speaker, endpoint):
        speaker.until(speaker.run("x"), "expired")
        endpoint.wait_until(lambda server: server.open_connections == 0)
        speaker.run("y")
        endpoint.wait_until(lambda server: len(server.received) == 2)
    # The server has stopped within its patience, and left nothing open: `FaultyServer` sees to its threads.
    assert endpoint.open_connections == 0


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


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host", "http://host/chat/completions"),
        ("http://host:11434/v1/", "http://host:11434/v1/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/x?api-version=1#y", "https://host/x/chat/completions?api-version=1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/chat/completions"),
    ],
)
def test_an_endpoint_s_url_is_completed(url: str, target: str) -> None:
    assert Endpoint.of(url).url == target


def test_the_url_s_own_credentials_are_sent_and_never_shown() -> None:
    endpoint = Endpoint.of("http://me:p%40ss@host/v1")
    assert endpoint.url == "http://host/v1/chat/completions"
    assert endpoint.headers["authorization"] == "Basic bWU6cEBzcw=="
    assert "p@ss" not in repr(endpoint)
    assert "bWU6" not in repr(endpoint)
    assert endpoint.redacted("p@ss is wrong") == "[secret] is wrong"
    assert "key" not in repr(Endpoint.of("http://host", "the-key"))


@pytest.mark.parametrize(
    "url", ["", "host/v1", "ftp://host", "http://", "http://h:99999", "http://a b/", "http://:secret@/"]
)
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadEndpointError, match="must be such as") as caught:
        Endpoint.of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "ключ", " padded"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(BadEndpointError, match="no header can carry") as caught:
        Endpoint.of("http://host", key)
    assert key not in str(caught.value)


def test_a_model_lives_only_inside_its_server() -> None:
    chat: Any = ChatModel(Endpoint.of("http://host"))
    assert chat._http is None, "nothing is opened before the server starts"
