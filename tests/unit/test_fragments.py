"""Deltas joined: fewer of them, and what they build is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from event_furniture import arguments, folded, message, message_delta, step, step_delta, text
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.fragments import joined

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.protocol.fragments import DeltaEvent

_words = st.sampled_from(["", "a", "bc"])
_odd: st.SearchStrategy[Any] = st.sampled_from([None, True, 1.0, "x", [], {}, [{}], {"value": "y"}])
_index = st.just(0) | st.integers(-1, 2) | st.sampled_from([None, True, 1.0])
_body = (
    st.fixed_dictionaries({}, optional=dict.fromkeys(["value", "arguments", "input"], _words | _odd)) | _odd
)


def _either(plain: list[Callable[[int, str], Any]], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what can be joined: else neighbours would rarely be alike."""
    alike = st.builds(lambda make, index, word: make(index, word), st.sampled_from(plain), _index, _words)
    return alike | odd


_item = st.fixed_dictionaries(
    {},
    optional={
        "index": _index,
        "type": st.sampled_from(["text", "function", "code_interpreter", "refusal", None]),
        "id": _words,
        "refusal": _words,
        "image_file": _body,
        "annotations": _odd,
        "text": _body | st.fixed_dictionaries({"value": _words, "annotations": _odd}),
        "function": _body,
        "code_interpreter": _body,
    },
)
_part = _either(
    [
        lambda index, word: {"index": index, "type": "text", "text": {"value": word}},
        lambda index, word: {"index": index, "type": "text", "text": {"value": word, "annotations": []}},
        lambda index, word: {"index": index, "type": "text", "text": {"value": word}, "refusal": word},
    ],
    _item,
)
_call = _either(
    [
        lambda index, word: {"index": index, "type": "function", "function": {"arguments": word}},
        lambda index, word: {
            "index": index,
            "type": "code_interpreter",
            "code_interpreter": {"input": word},
        },
        lambda index, word: {"index": index, "type": "text", "text": {"value": word}},
        lambda index, word: {"index": index, "type": "function", "function": {"arguments": word, "x": word}},
        lambda index, word: {"index": index, "type": "function", "function": {"arguments": word}, "id": word},
    ],
    _item,
)


@given(st.lists(st.lists(_part, max_size=2), max_size=8))
def test_joined_deltas_of_a_message_build_the_same_message(deltas: list[list[Any]]) -> None:
    events = [message_delta(*parts) for parts in deltas]
    assert folded([message(), *joined(events)]) == folded([message(), *events])


@given(st.lists(st.tuples(st.lists(_call, max_size=2), st.sampled_from([{}, {"type": "odd"}])), max_size=8))
def test_joined_deltas_of_a_step_build_the_same_step(deltas: list[tuple[list[Any], dict[str, Any]]]) -> None:
    events = [step_delta(*calls, **details) for calls, details in deltas]
    assert folded([step(), *joined(events)]) == folded([step(), *events])


def test_text_and_arguments_that_go_on_become_one_delta_of_each_string() -> None:
    def second(word: str) -> DeltaEvent:
        return message_delta({"index": 1, "type": "text", "text": {"value": word, "annotations": []}})

    words = ["The ", "quick ", "fox"]
    assert list(joined(text(word) for word in words)) == [text("The quick fox")]
    assert list(joined(arguments(word) for word in words)) == [arguments("The quick fox")]
    parts = list(joined([*(text(word) for word in words), *(second(word) for word in words)]))
    assert [part.data.text for part in parts if hasattr(part.data, "text")] == ["The quick fox"] * 2


def test_no_deltas_are_joined_to_none() -> None:
    assert list(joined([])) == []


@pytest.mark.parametrize(
    "more",
    [
        {"text": {"value": "a", "annotations": [{"index": 0}]}},
        {"text": {"value": "a"}, "refusal": "no"},
        {"text": {"value": "a"}, "index": 1.0},
        {"text": {"value": "a"}, "type": "image_file"},
        {"text": {"value": None}},
    ],
)
def test_a_part_with_more_to_say_than_its_text_is_not_joined(more: dict[str, Any]) -> None:
    deltas = [message_delta({"index": 0, "type": "text"} | more)] * 2
    assert list(joined(deltas)) == deltas


@pytest.mark.parametrize(
    "more",
    [
        {"function": {"arguments": "a"}, "id": "call_1"},
        {"function": {"arguments": "a", "output": "b"}},
        {"function": {"value": "a"}},
        {"function": {"arguments": "a"}, "index": None},
    ],
)
def test_a_call_with_more_to_say_than_its_arguments_is_not_joined(more: dict[str, Any]) -> None:
    deltas = [step_delta({"index": 0, "type": "function"} | more)] * 2
    assert list(joined(deltas)) == deltas
