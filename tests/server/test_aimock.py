"""A second model server, written by others, behind ours: text, tool rounds, and its faults."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.server.chat import ChatModel, Endpoint
from orchestrator.testing import running_server
from server.aimock import aimock
from server.chat_endpoint import QUICK
from server.speaker import TIME, WEATHER, Speaker, call_ids, names, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator


def _fixture(
    message: str, response: Any, *, turn: int | None = None, where: Any = None, **more: Any
) -> dict[str, Any]:
    match = {"userMessage": message} | ({} if turn is None else {"turnIndex": turn})
    return {"match": match | (where or {}), "response": response, **more}


def _calls(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    # The same id every time, as many servers send it.
    return {"toolCalls": [{"id": "call_1", "name": name, "arguments": text} for name, text in pairs], **more}


def _error(status: int, **more: Any) -> dict[str, Any]:
    return {"error": {"message": "no", "type": "error"}, "status": status, **more}


FIXTURES = [
    _fixture("hello", {"content": "Hey \N{GRINNING FACE} to you."}),
    _fixture("one round", _calls(("get_time", '{"zone": "utc"}')), turn=0),
    _fixture("one round", {"content": "It is noon."}, turn=1),
    _fixture(
        "parallel",
        {"content": "Let me look."}
        | _calls(("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "Rome"}')),
        turn=0,
    ),
    _fixture("parallel", {"content": "Cold and warm."}, turn=1),
    _fixture("several", _calls(("get_time", "{}")), turn=0),
    _fixture("several", _calls(("get_weather", '{"hour": 12}')), turn=1),
    _fixture("several", _calls(("get_weather", '{"hour": 13}')), turn=2),
    _fixture("several", {"content": "At last."}, turn=3),
    _fixture("limited", _error(429, retryAfter=0.01)),
    _fixture("busy once", _error(429, retryAfter=0.01), where={"sequenceIndex": 0}),
    _fixture("busy once", {"content": "Now."}, where={"sequenceIndex": 1}),
    _fixture("failing", _error(500)),
    _fixture("bad", _error(400)),
    _fixture("malformed", {"content": "x"}, chaos={"malformedRate": 1}),
    _fixture("disconnect", {"content": "x"}, chaos={"disconnectRate": 1}),
    _fixture("in the middle", {"content": "one two three four five"}, truncateAfterChunks=4, latency=50),
    _fixture("too long", {"content": "cut", "finishReason": "length"}),
    _fixture("filtered", {"content": "cut", "finishReason": "content_filter"}),
    _fixture("counted", {"content": "x", "usage": {"prompt_tokens": 11, "completion_tokens": 22}}),
]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    """A client of our server in front of theirs."""
    with aimock(FIXTURES, tmp_path_factory.mktemp("aimock")) as url:
        chat = ChatModel(Endpoint.of(url, "any"), policy=QUICK)
        with running_server(model=chat) as server:
            client = Speaker(server)
            with client.http:
                yield client


def _said(speaker: Speaker, path: str) -> list[str]:
    messages = speaker.ok("GET", f"{path.partition('/runs')[0]}/messages?order=asc")["data"]
    return [part["text"]["value"] for message in messages[1:] for part in message["content"]]


def test_a_text_arrives_piece_by_piece_and_whole(speaker: Speaker) -> None:
    body = {"assistant_id": speaker.assistant()}
    thread = speaker.thread("hello")
    events = speaker.stream(f"/threads/{thread}/runs", body)
    pieces = [
        payload["delta"]["content"][0]["text"]["value"]
        for name, payload in events
        if name == "thread.message.delta"
    ]
    assert len(pieces) > 2
    assert "".join(pieces) == "Hey \N{GRINNING FACE} to you.", "aimock cuts between the halves of a character"
    assert names(events)[-1:] == ["done"]
    assert events[-2][1]["status"] == "completed"
    assert events[-2][1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("message", "rounds", "said"),
    [
        ("one round", [1], ["It is noon."]),
        ("parallel", [2], ["Let me look.", "Cold and warm."]),
        ("several", [1, 1, 1], ["At last."]),
    ],
)
def test_tool_rounds_are_played_to_their_end(
    message: str, rounds: list[int], said: list[str], speaker: Speaker
) -> None:
    path, seen = speaker.run(message, TIME, WEATHER), []
    for count in rounds:
        ids = call_ids(speaker.until(path, "requires_action"))
        assert len(ids) == count
        seen += ids
        speaker.ok("POST", f"{path}/submit_tool_outputs", outputs(*((one, "done") for one in ids)))
    speaker.until(path, "completed")
    assert _said(speaker, path) == said
    assert len(set(seen)) == len(seen), "theirs repeat, ours must not"


def test_arguments_arrive_as_the_model_wrote_them(speaker: Speaker) -> None:
    path, _ = speaker.waiting("parallel", WEATHER)
    calls = speaker.ok("GET", path)["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ("limited", "rate_limit_exceeded", "HTTP 429"),
        ("failing", "server_error", "HTTP 500 .* each of 4 attempts"),
        ("bad", "invalid_prompt", "HTTP 400"),
        ("malformed", "server_error", "cannot be understood"),
        ("disconnect", "server_error", "broke"),
        ("in the middle", "server_error", "broke in the middle of its answer"),
    ],
)
def test_its_faults_fail_the_run_with_the_right_code(
    message: str, code: str, text: str, speaker: Speaker
) -> None:
    error = speaker.until(speaker.run(message), "failed")["last_error"]
    assert error["code"] == code
    assert re.search(text, error["message"]), error


@pytest.mark.parametrize(("message", "reason"), [("too long", "max_tokens"), ("filtered", "content_filter")])
def test_its_reasons_to_end_are_understood(message: str, reason: str, speaker: Speaker) -> None:
    path = speaker.run(message)
    speaker.until(path, "incomplete")
    newest, _ = speaker.ok("GET", f"{path.partition('/runs')[0]}/messages")["data"]
    assert newest["incomplete_details"] == {"reason": reason}


def test_a_server_that_is_busy_once_is_asked_again(speaker: Speaker) -> None:
    path = speaker.run("busy once")
    speaker.until(path, "completed")
    assert _said(speaker, path) == ["Now."]


def test_its_usage_is_the_run_s(speaker: Speaker) -> None:
    run = speaker.until(speaker.run("counted"), "completed")
    assert run["usage"] == {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
