"""Every object of the spec is read and written without loss, and every request is one it describes."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_spec import (
    SCHEMAS,
    SPEC,
    answer_schema,
    body_schema,
    instances,
    is_valid,
    operation,
    query_schemas,
    referred,
    resolved,
    validate,
)
from test_endpoints import CASES, STREAMS, build

from orchestrator.client import endpoints
from orchestrator.client.answers import answer
from orchestrator.errors import APIStatusError
from orchestrator.protocol.events import (
    DoneEvent,
    ErrorEvent,
    MessageDeltaEvent,
    MessageEvent,
    RunEvent,
    RunStepDeltaEvent,
    RunStepEvent,
    ThreadEvent,
    decode_event,
)
from orchestrator.protocol.objects import Assistant, Deleted, Message, Page, Run, RunStep, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

READ_AS: dict[str, Any] = {
    "AssistantObject": Assistant,
    "ThreadObject": Thread,
    "MessageObject": Message,
    "RunObject": Run,
    "RunStepObject": RunStep,
    "ListAssistantsResponse": Page,
    "ListMessagesResponse": Page,
    "ListRunsResponse": Page,
    "ListRunStepsResponse": Page,
    "DeleteAssistantResponse": Deleted,
    "DeleteThreadResponse": Deleted,
    "DeleteMessageResponse": Deleted,
}
EVENTS: dict[str, dict[str, Any]] = {}
for _group in SCHEMAS["AssistantStreamEvent"]["oneOf"]:
    for _one in resolved(_group).get("oneOf", [resolved(_group)]):
        EVENTS[_one["properties"]["event"]["enum"][0]] = _one
TOLD_AS: dict[str, Any] = {
    "ThreadObject": ThreadEvent,
    "RunObject": RunEvent,
    "RunStepObject": RunStepEvent,
    "RunStepDeltaObject": RunStepDeltaEvent,
    "MessageObject": MessageEvent,
    "MessageDeltaObject": MessageDeltaEvent,
    "Error": ErrorEvent,
    "": DoneEvent,
}


def lost(before: Any, after: Any, at: str = "") -> list[str]:
    """What was lost or made up between two JSON documents, as paths; null for what was absent is neither."""
    match before, after:
        case dict(), dict():
            made_up = [f"{at}.{name}" for name in after.keys() - before.keys() if after[name] is not None]
            return made_up + [
                path for name, one in before.items() for path in lost(one, after.get(name), f"{at}.{name}")
            ]
        case list(), list() if len(before) == len(after):
            return [
                path
                for number, pair in enumerate(zip(before, after, strict=True))
                for path in lost(*pair, f"{at}[{number}]")
            ]
    return [] if before == after and isinstance(before, bool) == isinstance(after, bool) else [at]


def written(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def test_every_object_of_the_spec_is_in_an_answer_an_event_or_a_request() -> None:
    events = SCHEMAS["AssistantStreamEvent"]
    assert referred(SPEC["paths"]) | {"AssistantStreamEvent"} | referred(events) == set(SCHEMAS)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30)
@given(st.data())
def test_every_answer_of_the_spec_is_read_and_written_without_loss(name: str, data: st.DataObject) -> None:
    operation_id, ids, fields, _ = CASES[name]
    schema = answer_schema(operation(operation_id)[2])
    document = data.draw(instances(schema))
    validate(schema, document)
    decode: Callable[[bytes], Any] = build(name, *ids, **fields).decode
    value = decode(json.dumps(document).encode())
    assert type(value) is READ_AS[schema["$ref"].rpartition("/")[2]]
    assert lost(document, written(value)) == []
    assert decode(msgspec.json.encode(value)) == value


@pytest.mark.parametrize("name", EVENTS)
@settings(max_examples=30)
@given(st.data())
def test_every_event_of_the_spec_is_read_and_written_without_loss(name: str, data: st.DataObject) -> None:
    schema = EVENTS[name]
    document = data.draw(instances(schema))
    validate(schema, document)
    payload = document["data"]
    event: Any = decode_event(name, payload.encode() if name == "done" else json.dumps(payload).encode())
    assert type(event) is TOLD_AS[schema["properties"]["data"].get("$ref", "").rpartition("/")[2]]
    assert event.event == name
    if name != "done":
        assert lost(payload, written(event.data)) == []


@given(instances(SCHEMAS["ErrorResponse"]))
def test_every_error_of_the_spec_is_told_with_all_its_fields(document: Any) -> None:
    with pytest.raises(APIStatusError) as caught:
        answer(endpoints.get_thread("thread_1"), 400, {}, json.dumps(document).encode())
    told, error = caught.value, document["error"]
    # A text that is empty says nothing: the status' own phrase stands in, and the other fields are absent.
    assert told.message == (error["message"] or "Bad Request")
    assert [told.type, told.code, told.param] == [error[name] or None for name in ("type", "code", "param")]


@pytest.mark.parametrize("name", [*CASES, *STREAMS])
@settings(max_examples=30)
@given(st.data())
def test_whatever_the_spec_allows_is_sent_as_it_is(name: str, data: st.DataObject) -> None:
    operation_id, ids, _, _ = CASES[STREAMS.get(name, name)]
    described = operation(operation_id)[2]
    fields: dict[str, Any] = {}
    if "requestBody" in described:
        fields = data.draw(instances(body_schema(described)))
        fields.pop("stream", None)
    query = data.draw(
        st.fixed_dictionaries(
            {}, optional={one: instances(schema) for one, schema in query_schemas(described).items()}
        )
    )
    call = build(name, *ids, **fields, **{one.removesuffix("[]"): value for one, value in query.items()})
    if "requestBody" in described:
        sent = json.loads(call.body or b"")
        assert sent == fields | ({"stream": True} if name in STREAMS else {})
        validate(body_schema(described), sent)
    pairs = [
        (one, str(item))
        for one, value in query.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    assert sorted(call.query) == sorted(pairs)


@pytest.mark.parametrize("name", [*CASES, *STREAMS])
def test_a_parameter_takes_none_exactly_where_the_spec_has_null(name: str) -> None:
    described = operation(CASES[STREAMS.get(name, name)][0])[2]
    properties = resolved(body_schema(described))["properties"] if "requestBody" in described else {}
    parameters = inspect.signature(getattr(endpoints, name)).parameters
    takes = {
        field
        for field in properties.keys() & parameters.keys()
        if "None" in parameters[field].annotation or parameters[field].annotation == "Metadata"
    }
    nullable = {field for field in properties if field != "stream" and is_valid(properties[field], None)}
    assert takes == nullable
    assert all(
        "None" not in parameters[one.removesuffix("[]")].annotation for one in query_schemas(described)
    )
