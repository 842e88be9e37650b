"""What chunks of a completion mean, with every oddity that endpoints are known for."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.server.chat.answer import Answer, UnreadableAnswerError
from orchestrator.server.chat.incoming import Incoming
from orchestrator.server.models import CallPiece, Finish, ModelFailedError, ModelOutput, TextPiece

if TYPE_CHECKING:
    from collections.abc import Iterable


def _fragment(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in function.items() if value is not None}}


def _chunk(*fragments: dict[str, Any], finish: str | None = None, **delta: Any) -> bytes:
    delta |= {"tool_calls": list(fragments)} if fragments else {}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()


def _read(chunks: Iterable[bytes], *, parallel: bool = True) -> list[ModelOutput]:
    answer = Answer(parallel=parallel, max_chars=10_000)
    outputs = [output for chunk in chunks for output in answer.feed(chunk)]
    return [*outputs, *answer.end()]


def _calls(outputs: list[ModelOutput]) -> list[tuple[str, str]]:
    """The calls as a client of the server adds them up; they must begin in order."""
    calls: list[tuple[str, str]] = []
    for piece in outputs:
        if not isinstance(piece, CallPiece):
            continue
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        name, arguments = calls[piece.index]
        calls[piece.index] = (name, arguments + piece.arguments)
    return calls


A, B = ("a", '{"x":1}'), ("b", '{"y":2}')


@pytest.mark.parametrize(
    "chunks",
    [
        [_chunk(_fragment("a", '{"x":1}', index=0, id="1"), _fragment("b", '{"y":2}', index=1, id="2"))],
        # Indexes that are always 0, as Gemini's and older Ollama's endpoints send them.
        [
            _chunk(_fragment("a", '{"x":1}', index=0, id="1")),
            _chunk(_fragment("b", '{"y":2}', index=0, id="2")),
        ],
        [
            _chunk(_fragment("a", '{"x":1}', index=0, id="")),
            _chunk(_fragment("b", '{"y":2}', index=0, id="")),
        ],
        # Ids that repeat under indexes of their own.
        [
            _chunk(_fragment("a", "", index=0, id="1")),
            _chunk(_fragment("b", "", index=1, id="1")),
            _chunk(_fragment(arguments='{"x":1}', index=0), _fragment(arguments='{"y":2}', index=1)),
        ],
        # No index at all: the id says which, or the order does.
        [_chunk(_fragment("a", '{"x":1}', id="1"), _fragment("b", '{"y":2}', id="2"))],
        [_chunk(_fragment("a", '{"x":1}'), _fragment("b", '{"y":2}'))],
        [
            _chunk(_fragment("a", '{"x"', id="1")),
            _chunk(_fragment(arguments=":1}")),
            _chunk(_fragment("b", '{"y":2}', id="2")),
        ],
        [
            _chunk(_fragment("a", '{"x"', id="1"), _fragment("b", '{"y"', id="2")),
            _chunk(_fragment(arguments=":1}", id="1"), _fragment(arguments=":2}", id="2")),
        ],
        # Name and id with every fragment.
        [
            _chunk(_fragment("a", '{"x"', index=0, id="1")),
            _chunk(_fragment("a", ":1}", index=0, id="1")),
            _chunk(_fragment("b", '{"y":2}', index=1, id="2")),
            _chunk(_fragment("b", "", index=1, id="2")),
        ],
        [
            _chunk(_fragment("a", "", index=0, id="1")),
            _chunk(_fragment("a", '{"x"', index=0)),
            _chunk(_fragment("a", ":1}", index=0)),
            _chunk(_fragment("b", '{"y":2}', index=0)),
        ],
        # A name that comes late; indexes that begin at 1.
        [
            _chunk(_fragment(arguments='{"x"', index=1, id="1")),
            _chunk(_fragment("a", ":1}", index=1)),
            _chunk(_fragment("b", '{"y":2}', index=2)),
        ],
    ],
)
def test_two_calls_are_two_calls_however_they_are_numbered(chunks: list[bytes]) -> None:
    outputs = _read([*chunks, _chunk(finish="tool_calls")])
    assert _calls(outputs) == [A, B]
    assert outputs[-1] == Finish(reason="tool_calls")


def test_arguments_may_be_an_object_or_missing() -> None:
    outputs = _read([_chunk(_fragment("a", {"x": 1}, index=0), _fragment("b", index=1))])
    assert [(name, json.loads(arguments)) for name, arguments in _calls(outputs)] == [
        ("a", {"x": 1}),
        ("b", {}),
    ]


def test_calls_without_arguments_under_one_index_are_told_apart_by_their_ids() -> None:
    outputs = _read(
        [_chunk(_fragment("a", "", index=0, id="1")), _chunk(_fragment("b", "", index=0, id="2"))]
    )
    assert _calls(outputs) == [("a", "{}"), ("b", "{}")]


def test_a_name_with_every_fragment_begins_no_call_while_the_arguments_are_unfinished() -> None:
    chunks = [_chunk(_fragment("a", '{"x":', index=0)), _chunk(_fragment("a", '{"y":2}}', index=0))]
    assert _calls(_read(chunks)) == [("a", '{"x":{"y":2}}')]


def test_without_parallel_calls_what_follows_the_first_is_dropped_with_all_its_pieces() -> None:
    chunks = [
        _chunk(_fragment("a", '{"x":1}')),
        _chunk(_fragment("b", '{"y"')),
        _chunk(_fragment(arguments=":2}")),
    ]
    assert _calls(_read(chunks, parallel=False)) == [A]


def test_a_text_behind_a_call_has_no_place_and_is_dropped() -> None:
    outputs = _read(
        [_chunk(content="one"), _chunk(_fragment("a", '{"x":1}', index=0)), _chunk(content="two")]
    )
    assert [output for output in outputs if isinstance(output, TextPiece)] == [TextPiece("one")]
    assert _calls(outputs) == [A]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "said"},
        {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "said"}]},
        {"refusal": "said", "content": None},
        {"content": "said", "reasoning_content": "thought", "tool_calls": None},
    ],
)
def test_a_text_is_found_where_endpoints_put_it(delta: dict[str, Any]) -> None:
    assert _read([_chunk(**delta)]) == [TextPiece("said"), Finish(reason="stop")]


def test_a_character_that_was_cut_in_two_is_joined_and_a_half_alone_is_replaced() -> None:
    halves = [
        b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}',
        b'{"choices":[{"delta":{"content":"\\ude00b"}}]}',
    ]
    alone = b'{"choices":[{"delta":{"content":"\\ude00!"}}]}'
    said = [output.text for output in _read([*halves, alone]) if isinstance(output, TextPiece)]
    assert said == ["a", "\N{GRINNING FACE}b", "\N{REPLACEMENT CHARACTER}!"]


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": "3"}, 5, [1]])
def test_a_usage_that_says_nothing_is_left_to_be_estimated(usage: Any) -> None:
    chunk = json.dumps({"choices": [], "usage": usage}).encode()
    assert _read([chunk]) == [Finish(reason="stop", prompt_tokens=None, completion_tokens=None)]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_a_reason_to_end_is_understood(finish: str, reason: Any) -> None:
    assert _read([_chunk(content="x", finish=finish)])[-1] == Finish(reason=reason)


def test_calls_that_are_cut_off_or_filtered_are_not_made() -> None:
    chunks = [_chunk(_fragment("a", '{"x"', index=0)), _chunk(finish="length")]
    assert _read(chunks)[-1] == Finish(reason="length")


def test_answers_beside_the_first_are_ignored() -> None:
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "other"}}]}).encode()
    assert _read([_chunk(content="mine"), other]) == [TextPiece("mine"), Finish(reason="stop")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"choices": 5}',
        b'{"choices": [{"delta": {"tool_calls": [5]}}]}',
        b"\xff",
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_what_is_no_chunk_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableAnswerError):
        list(Answer(parallel=True, max_chars=100).feed(data))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "m", "code": 429}, "rate_limit_exceeded"),
        ({"type": "rate_limit_error"}, "rate_limit_exceeded"),
        ({"message": "m"}, "server_error"),
        ("broken", "server_error"),
    ],
)
def test_an_error_inside_a_stream_has_its_code(error: Any, code: str) -> None:
    with pytest.raises(ModelFailedError) as caught:
        _read([json.dumps({"error": error}).encode()])
    assert caught.value.code == code


def test_an_error_as_the_reason_for_the_end_fails() -> None:
    with pytest.raises(ModelFailedError):
        _read([_chunk(content="x", finish="error")])


@given(cuts=st.lists(st.integers(0, 120), max_size=12))
def test_where_a_body_is_cut_does_not_matter(cuts: list[int]) -> None:
    stream = b'data: {"a": 1}\n\n: ping\n\ndata: {"b": 2}\r\n\r\ndata: [DONE]\n\ndata: {"c": 3}\n\n'
    for kind, body, expected in (
        ("text/event-stream", stream, [b'{"a": 1}', b'{"b": 2}']),
        ("application/json", b' {"choices": []}', [b' {"choices": []}']),
    ):
        edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
        incoming = Incoming(kind, max_bytes=1000)
        read: list[bytes] = []
        for start, end in pairwise(edges):
            if not incoming.done:
                read += incoming.feed(body[start:end])
        assert [*read, *incoming.end()] == expected
        assert incoming.done


@given(cut=st.integers(0, 60))
def test_what_came_before_the_bound_was_passed_is_told_however_much_came_at_once(cut: int) -> None:
    body = b'data: {"a": 1}\n\n' + b": ping\n\n" * 200
    incoming = Incoming("text/event-stream", max_bytes=1000)
    read = list(incoming.feed(body[:cut]))
    with pytest.raises(UnreadableAnswerError, match="larger"):
        read.extend(incoming.feed(body[cut:]))
    assert read == [b'{"a": 1}']
