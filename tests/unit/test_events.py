"""Stream events: names and payloads become typed events, deltas become the objects they describe."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.events import (
    DoneEvent,
    ErrorEvent,
    MessageDeltaEvent,
    MessageEvent,
    RunEvent,
    RunStepDeltaEvent,
    RunStepEvent,
    StreamEvent,
    ThreadEvent,
    UnknownEvent,
    decode_event,
)
from orchestrator.protocol.snapshots import Snapshots


def event(name: str, **payload: Any) -> StreamEvent:
    return decode_event(name, json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("name", "payload", "kind", "run_id"),
    [
        ("thread.created", {"id": "thread_1", "object": "thread"}, ThreadEvent, None),
        ("thread.run.queued", {"id": "run_1", "object": "thread.run", "status": "queued"}, RunEvent, "run_1"),
        (
            "thread.run.step.created",
            {"id": "step_1", "object": "thread.run.step", "run_id": "run_1", "status": "created"},
            RunStepEvent,
            "run_1",
        ),
        (
            "thread.run.step.delta",
            {"id": "step_1", "object": "thread.run.step.delta", "delta": {}},
            RunStepDeltaEvent,
            None,
        ),
        (
            "thread.message.completed",
            {"id": "msg_1", "object": "thread.message", "run_id": "run_1", "status": "completed"},
            MessageEvent,
            "run_1",
        ),
        (
            "thread.message.delta",
            {"id": "msg_1", "object": "thread.message.delta", "delta": {}},
            MessageDeltaEvent,
            None,
        ),
    ],
)
def test_an_event_is_typed_by_its_name_or_without_one_by_its_payload(
    name: str, payload: dict[str, Any], kind: type, run_id: str | None
) -> None:
    named, unnamed = event(name, **payload), event("", **payload)
    assert isinstance(named, kind)
    assert named.event == name
    assert named.run_id == run_id
    assert unnamed == named == event("message", **payload)


def test_done_is_known_by_its_name_or_by_its_data() -> None:
    assert decode_event("done", b"[DONE]") == DoneEvent(event="done") == decode_event("", b"[DONE]")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"message": "down", "code": "server_error"}', "down"),
        (b'{"error": {"message": "down", "code": "server_error"}}', "down"),
        (b'{"message": 7}', "{'message': 7}"),
    ],
)
def test_an_error_event_is_read_flat_and_wrapped_and_odd(data: bytes, message: str) -> None:
    decoded = decode_event("error", data)
    assert isinstance(decoded, ErrorEvent)
    assert decoded.data.message == message
    assert decode_event("", data) == decoded


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[1, 2]", b"null", b'{"id": 5}', b'"\xff', b'{"id": "\xff"}', b"[" * 100_000],
)
@pytest.mark.parametrize("name", ["", "thread.run.queued", "thread.message.delta", "error", "thread.new"])
def test_what_cannot_be_understood_is_an_event_too(name: str, data: bytes) -> None:
    assert isinstance(decode_event(name, data), (UnknownEvent, ErrorEvent))


def test_an_unknown_event_keeps_its_name_and_its_json() -> None:
    assert event("thread.vibe", a=1) == UnknownEvent(event="thread.vibe", data={"a": 1})


@given(st.text(max_size=12), st.binary(max_size=40))
def test_no_name_and_no_data_make_decoding_fail(name: str, data: bytes) -> None:
    decoded = decode_event(name, data)
    assert decoded.event


@pytest.mark.parametrize("name", ["", "message", "done", "thread.run.completed", "error"])
def test_done_needs_no_name_of_its_own(name: str) -> None:
    assert decode_event(name, b"[DONE]") == DoneEvent(event="done")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"object": "thread.run", "id": "run_1"}', RunEvent),
        (b'{"object": "thread.run", "status": "queued"}', UnknownEvent),
        (b'{"object": "list", "data": []}', UnknownEvent),
        (b'{"object": "thread.message.delta", "id": "msg_1"}', MessageDeltaEvent),
        (b'{"error": "plain text"}', ErrorEvent),
        (b'{"error": null, "message": null}', UnknownEvent),
        (b"{}", UnknownEvent),
    ],
)
def test_without_an_event_line_the_payload_alone_decides(data: bytes, kind: type) -> None:
    assert isinstance(decode_event("", data), kind)


def message(**fields: Any) -> StreamEvent:
    return event("thread.message.created", id="msg_1", object="thread.message", **fields)


def text_delta(value: str, index: int = 0, **text: Any) -> StreamEvent:
    part = {"index": index, "type": "text", "text": {"value": value, **text}}
    return event("thread.message.delta", id="msg_1", delta={"content": [part]})


def folded(*events: StreamEvent) -> Snapshots:
    snapshots = Snapshots()
    for one in events:
        snapshots.add(one)
    return snapshots


def test_text_fragments_are_appended_part_by_part() -> None:
    snapshots = folded(message(content=[]), text_delta("Hel"), text_delta("lo"), text_delta("!", index=1))
    assert [part.text.value for part in snapshots.messages["msg_1"].content if part.text] == ["Hello", "!"]
    assert snapshots.messages["msg_1"].text == "Hello!"


def test_annotations_are_merged_by_their_index_and_lose_it() -> None:
    first = {"index": 0, "type": "file_citation", "start_index": 1}
    second = {"index": 1, "type": "file_path"}
    snapshots = folded(message(), text_delta("a", annotations=[first]), text_delta("b", annotations=[second]))
    text = snapshots.messages["msg_1"].content[0].text
    assert text is not None
    assert text.annotations == [{"type": "file_citation", "start_index": 1}, {"type": "file_path"}]


def test_a_whole_object_replaces_what_its_deltas_built() -> None:
    whole = message(content=[{"type": "text", "text": {"value": "final", "annotations": []}}])
    assert folded(message(), text_delta("draft"), whole).messages["msg_1"].text == "final"


def step_delta(**call: Any) -> StreamEvent:
    details = {"type": "tool_calls", "tool_calls": [call]}
    return event("thread.run.step.delta", id="step_1", delta={"step_details": details})


def test_tool_call_arguments_arrive_in_fragments_and_other_strings_whole() -> None:
    snapshots = folded(
        event("thread.run.step.created", id="step_1", object="thread.run.step", type="tool_calls"),
        step_delta(
            index=0, id="call_1", type="function", function={"name": "f", "arguments": "", "output": None}
        ),
        step_delta(index=0, function={"arguments": '{"a"'}),
        step_delta(index=1, id="call_2", type="function", function={"name": "g", "arguments": "{}"}),
        step_delta(index=0, type="function", function={"arguments": ": 1}"}),
    )
    details = snapshots.steps["step_1"].step_details
    assert details is not None
    assert details.tool_calls == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "f", "arguments": '{"a": 1}', "output": None},
        },
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


_odd: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.just("x") | st.just([]) | st.just({}) | st.just([{}])
)


def _odd_object(*keys: str, **nested: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = dict.fromkeys(keys, _odd) | {key: _odd | value for key, value in nested.items()}
    return st.fixed_dictionaries({}, optional=fields)


_part = _odd_object(
    "index",
    "type",
    "refusal",
    "image_file",
    text=_odd_object("value", annotations=st.lists(_odd_object("index"))),
)
_call = _odd_object("index", "id", function=_odd_object("name", "arguments", "output"))
_details = _odd_object("type", "message_creation", tool_calls=st.lists(_call, max_size=3))


@given(st.lists(_part, max_size=4), st.lists(_details, max_size=4))
def test_no_delta_makes_snapshots_fail(parts: list[Any], details: list[Any]) -> None:
    snapshots = folded(
        message(content=[{"type": "text", "text": {"value": "a", "annotations": []}}]),
        event("thread.run.step.created", id="step_1", object="thread.run.step", type="tool_calls"),
    )
    for part in parts:
        snapshots.add(event("thread.message.delta", id="msg_1", delta={"content": [part]}))
    for detail in details:
        snapshots.add(event("thread.run.step.delta", id="step_1", delta={"step_details": detail}))
    assert snapshots.messages["msg_1"].id == "msg_1"
    assert snapshots.steps["step_1"].id == "step_1"


def test_a_list_that_holds_no_objects_is_kept_as_it_is() -> None:
    snapshots = folded(
        event("thread.run.step.created", id="step_1", object="thread.run.step", type="tool_calls"),
        step_delta(index=0, outputs=["odd"]),
        step_delta(index=0, outputs=[{"index": 0, "logs": "more"}]),
    )
    details = snapshots.steps["step_1"].step_details
    assert details is not None
    assert details.tool_calls == [{"outputs": ["odd"]}]


def test_a_delta_nested_deeper_than_the_stack_is_ignored() -> None:
    # Decoding takes one frame for each level, and merging more than one.
    depth = sys.getrecursionlimit() * 4 // 5
    deep = '{"deeper":' * depth + "{}" + "}" * depth
    calls = f'[{{"index": 0, "function": {deep}}}]'
    details = f'{{"step_details": {{"type": "tool_calls", "tool_calls": {calls}}}}}'
    created = event("thread.run.step.created", id="step_1", object="thread.run.step", type="tool_calls")
    data = f'{{"id": "step_1", "delta": {details}}}'.encode()
    delta = decode_event("thread.run.step.delta", data)
    assert isinstance(delta, RunStepDeltaEvent)
    snapshots = folded(created, delta, delta)
    step = snapshots.steps["step_1"]
    assert step.step_details is not None
    assert step.step_details.tool_calls is not None
    assert [*step.step_details.tool_calls[0]] == ["function"]


def test_deltas_of_objects_never_seen_are_ignored() -> None:
    snapshots = folded(text_delta("lost"), step_delta(index=0, id="call_1"))
    assert (snapshots.messages, snapshots.steps) == ({}, {})
