"""What a model's endpoint may do wrong, and what becomes of the run: attempts, codes, bounds, secrets."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from faulty_server import chunks, failure, hang_up, head, raw, refused_url, reply, reset_after, stall

from orchestrator.server.chat import Bounds, ChatModel, Endpoint
from orchestrator.testing import running_server
from server.chat_endpoint import DONE, HELLO, KEY, QUICK, WHOLE, asking, call, data, delta, said_in, text
from server.speaker import TIME, Speaker, names

if TYPE_CHECKING:
    from faulty_server import Step

STREAM_HEAD = head(200, {"content-type": "text/event-stream"})


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
        assert said_in(speaker, path) == ["x", "Hello, you."]
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
