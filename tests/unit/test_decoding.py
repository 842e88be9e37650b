"""Reading leniently: null against the schema, and numbers where text or whole numbers belong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.events import MessageDeltaEvent, RunEvent, decode_event
from orchestrator.protocol.objects import Assistant, Deleted, Message, Page, Run, RunStep, Thread

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
RUN = {
    "id": "run_1",
    "object": "thread.run",
    "created_at": 1,
    "thread_id": "thread_1",
    "status": "requires_action",
    "required_action": {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [CALL]}},
    "last_error": {"code": "server_error", "message": "no"},
    "tools": [{"type": "function"}],
    "metadata": {"a": "b"},
    "usage": USAGE,
    "parallel_tool_calls": True,
}
MESSAGE = {
    "id": "msg_1",
    "object": "thread.message",
    "created_at": 1,
    "thread_id": "thread_1",
    "role": "assistant",
    "content": [{"type": "text", "text": {"value": "Hi", "annotations": [{"type": "file_path"}]}}],
    "metadata": {"a": "b"},
}
STEP = {
    "id": "step_1",
    "object": "thread.run.step",
    "created_at": 1,
    "thread_id": "thread_1",
    "run_id": "run_1",
    "type": "tool_calls",
    "status": "in_progress",
    "step_details": {"type": "tool_calls", "tool_calls": [CALL]},
    "usage": USAGE,
}
ASSISTANT = {"id": "a", "object": "assistant", "created_at": 1, "model": "m", "tools": [{}], "metadata": {}}
THREAD = {"id": "t", "object": "thread", "created_at": 1, "metadata": {"a": "b"}}
PAGE = {"object": "list", "data": [RUN], "first_id": "run_1", "last_id": "run_1", "has_more": False}
DELETED = {"id": "t", "object": "thread.deleted", "deleted": True}
SAMPLES: list[tuple[type, Any]] = [
    (Run, RUN),
    (Message, MESSAGE),
    (RunStep, STEP),
    (Assistant, ASSISTANT),
    (Thread, THREAD),
    (Page[Run], PAGE),
    (Deleted, DELETED),
]
NEEDED = {"id", "data"}
"""What no default can stand in for."""


def decoded(kind: type, document: Any) -> Any:
    return Decoder(kind).decode(json.dumps(document).encode())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, as the path to it."""
    match value:
        case dict():
            children: list[tuple[Any, Any]] = list(value.items())
        case list():
            children = list(enumerate(value))
        case _:
            children = []
    return [place for key, child in children for place in ((*path, key), *places(child, (*path, key)))]


def holding(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value in one place."""
    copy = json.loads(json.dumps(document))
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("kind", "document", "place"),
    [
        pytest.param(kind, document, place, id=f"{kind} {'.'.join(map(str, place))}")
        for kind, document in SAMPLES
        for place in places(document)
        if place[-1] not in NEEDED and not isinstance(place[-1], int)
    ],
)
def test_null_in_any_field_but_an_id_is_read(kind: type, document: Any, place: tuple[Any, ...]) -> None:
    decoded(kind, holding(document, place, None))


@pytest.mark.parametrize(("kind", "document"), [(Run, RUN), (Deleted, DELETED), (Page[Run], PAGE)])
def test_what_an_object_cannot_do_without_is_not_made_up(kind: type, document: Any) -> None:
    for name in NEEDED & document.keys():
        with pytest.raises(msgspec.ValidationError):
            decoded(kind, holding(document, (name,), None))


def test_null_counts_as_missing_and_everything_beside_it_is_kept() -> None:
    run = decoded(Run, {**RUN, "tools": None, "status": None, "metadata": {"a": None, "b": "c"}})
    missing = {name: value for name, value in RUN.items() if name not in ("tools", "status")}
    assert run == decoded(Run, {**missing, "metadata": {"b": "c"}})
    assert run.required_action == decoded(Run, RUN).required_action


def test_null_stays_where_plain_json_may_hold_it() -> None:
    call = {"id": "call_1", "type": "function", "function": {"output": None}}
    details = {"type": "tool_calls", "tool_calls": [call]}
    step = decoded(RunStep, {**STEP, "status": None, "step_details": details})
    assert step.step_details.tool_calls == [call]


def test_numbers_stand_for_thex() -> None:
    run = decoded(Run, {**RUN, "metadata": {"a": 1, "b": True}, "usage": {"total_tokens": 3.0}})
    assert run.metadata == {"a": "1", "b": "true"}
    assert run.usage.total_tokens == 3


@pytest.mark.parametrize(
    "data",
    [b'{"id": 1', b"[]", b'"text"', b'{"id": "r", "tools": "no"}', b'{"id": "r", "tools": [null]}', b"\xff"],
)
def test_what_has_no_plain_meaning_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Decoder(Run).decode(data)


def test_events_are_read_as_leniently() -> None:
    created = decode_event("thread.run.created", json.dumps({**RUN, "tools": None}).encode())
    assert isinstance(created, RunEvent)
    assert created.run_id == "run_1"
    delta = decode_event("thread.message.delta", b'{"id": "msg_1", "object": null, "delta": {}}')
    assert isinstance(delta, MessageDeltaEvent)
