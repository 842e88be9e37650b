"""The endpoints: every operation of the spec, its request as the spec allows it, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from protocol_spec import SPEC, body_schema, operation, query_schemas, resolved, validate

from orchestrator.client import Call, endpoints
from orchestrator.client.auth import Credentials
from orchestrator.client.retry import NONCE_KEY
from orchestrator.client.settings import Settings
from orchestrator.protocol.objects import Deleted, Page, Run, ToolOutput

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = {"role": "user", "content": "hi", "attachments": None, "metadata": {"a": "b"}}
PARTS = [{"type": "text", "text": "hi"}, {"type": "image_file", "image_file": {"file_id": "file_1"}}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PAGE = {"limit": 5, "order": "asc", "after": "a", "before": "b"}
INCLUDE = ["step_details.tool_calls[*].file_search.results[*].content"]
RESOURCES = {"code_interpreter": {"file_ids": ["file_1"]}}
ASSISTANT = {
    "model": "gpt-4o",
    "name": "n",
    "description": "d",
    "instructions": "i",
    "tools": [FUNCTION],
    "tool_resources": RESOURCES,
    "metadata": {"a": "b"},
    "temperature": 1,
    "top_p": 0.5,
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
}
RUN_AND_THREAD_AND_RUN = {
    "assistant_id": "asst_1",
    "model": "gpt-4o",
    "instructions": "i",
    "tools": [FUNCTION],
    "metadata": {"a": "b"},
    "temperature": 0,
    "top_p": 1,
    "max_prompt_tokens": 256,
    "max_completion_tokens": 256,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": "auto",
}
RUN = RUN_AND_THREAD_AND_RUN | {
    "reasoning_effort": "low",
    "additional_instructions": "more",
    "additional_messages": [MESSAGE],
}
THREAD = {"messages": [MESSAGE], "tool_resources": RESOURCES, "metadata": {"a": "b"}}
THREAD_AND_RUN = RUN_AND_THREAD_AND_RUN | {"thread": THREAD, "tool_resources": RESOURCES}
OUTPUTS = {"tool_outputs": [{"tool_call_id": "call_1", "output": "1"}]}

T, M, R, S, A = "thread_1", "msg_1", "run_1", "step_1", "asst_1"

CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    # function: operationId, ids, body fields, query parameters; all that there are
    "create_assistant": ("createAssistant", (), ASSISTANT, {}),
    "get_assistant": ("getAssistant", (A,), {}, {}),
    "modify_assistant": ("modifyAssistant", (A,), ASSISTANT, {}),
    "delete_assistant": ("deleteAssistant", (A,), {}, {}),
    "list_assistants": ("listAssistants", (), {}, PAGE),
    "create_thread": ("createThread", (), THREAD, {}),
    "get_thread": ("getThread", (T,), {}, {}),
    "modify_thread": ("modifyThread", (T,), {"tool_resources": RESOURCES, "metadata": {}}, {}),
    "delete_thread": ("deleteThread", (T,), {}, {}),
    "create_message": ("createMessage", (T,), MESSAGE | {"content": PARTS}, {}),
    "get_message": ("getMessage", (T, M), {}, {}),
    "modify_message": ("modifyMessage", (T, M), {"metadata": {"a": "b"}}, {}),
    "delete_message": ("deleteMessage", (T, M), {}, {}),
    "list_messages": ("listMessages", (T,), {}, PAGE | {"run_id": R}),
    "create_run": ("createRun", (T,), RUN, {"include": INCLUDE}),
    "create_thread_and_run": ("createThreadAndRun", (), THREAD_AND_RUN, {}),
    "get_run": ("getRun", (T, R), {}, {}),
    "modify_run": ("modifyRun", (T, R), {"metadata": {"a": "b"}}, {}),
    "cancel_run": ("cancelRun", (T, R), {}, {}),
    "list_runs": ("listRuns", (T,), {}, PAGE),
    "submit_tool_outputs": ("submitToolOuputsToRun", (T, R), OUTPUTS, {}),
    "get_run_step": ("getRunStep", (T, R, S), {}, {"include": INCLUDE}),
    "list_run_steps": ("listRunSteps", (T, R), {}, PAGE | {"include": INCLUDE}),
}
STREAMS = {
    "stream_run": "create_run",
    "stream_thread_and_run": "create_thread_and_run",
    "stream_tool_outputs": "submit_tool_outputs",
}
REPEATABLE = {name for name in CASES if re.match("get_|list_|modify_|delete_|cancel_", name)}


def build(name: str, /, *ids: str, **parameters: Any) -> Call[Any]:
    function: Callable[..., Call[Any]] = getattr(endpoints, name)
    return function(*ids, **parameters)


def test_every_operation_of_the_spec_is_here() -> None:
    described = {one["operationId"] for methods in SPEC["paths"].values() for one in methods.values()}
    assert {case[0] for case in CASES.values()} == described
    assert set(endpoints.__all__) == {*CASES, *STREAMS, "CallOptions"}


@pytest.mark.parametrize("name", CASES)
def test_the_request_with_every_parameter_is_what_the_spec_describes(name: str) -> None:
    operation_id, ids, fields, query = CASES[name]
    method, template, described = operation(operation_id)
    call = build(name, *ids, **fields, **query)
    assert (call.operation, call.method) == (name, method)
    names = re.findall(r"{(\w+)}", template)
    assert call.path == template.format(**dict(zip(names, ids, strict=True)))
    parameters = query_schemas(described)
    sent: dict[str, Any] = {}
    for key, value in call.query:
        if key.endswith("[]"):
            sent.setdefault(key, []).append(value)
        else:
            sent[key] = int(value) if parameters[key]["type"] == "integer" else value
    assert sent.keys() == parameters.keys()
    for key, value in sent.items():
        validate(parameters[key], value)
    if "requestBody" in described:
        assert call.body is not None
        validate(body_schema(described), json.loads(call.body))
        assert json.loads(call.body) == fields
        properties = resolved(body_schema(described))["properties"]
        assert fields.keys() == properties.keys() - {"stream"}
    else:
        assert call.body is None


@pytest.mark.parametrize("name", CASES)
def test_the_request_with_only_what_is_required_is_valid_too(name: str) -> None:
    operation_id, ids, fields, _ = CASES[name]
    _, _, described = operation(operation_id)
    required = resolved(body_schema(described)).get("required", []) if "requestBody" in described else []
    call = build(name, *ids, **{key: fields[key] for key in required})
    assert call.query == ()
    if "requestBody" in described:
        assert json.loads(call.body or b"") == {key: fields[key] for key in required}
        validate(body_schema(described), json.loads(call.body or b""))


@pytest.mark.parametrize("name", CASES)
def test_none_is_sent_as_null_where_the_spec_has_null(name: str) -> None:
    operation_id, ids, fields, _ = CASES[name]
    described = operation(operation_id)[2]
    for field, parameter in inspect.signature(getattr(endpoints, name)).parameters.items():
        if field not in fields or not ("None" in parameter.annotation or parameter.annotation == "Metadata"):
            continue
        required = {key: fields[key] for key in resolved(body_schema(described)).get("required", [])}
        call = build(name, *ids, **required, **{field: None})
        assert json.loads(call.body or b"")[field] is None
        validate(body_schema(described), json.loads(call.body or b""))


@pytest.mark.parametrize(("name", "flat"), STREAMS.items())
def test_a_stream_asks_for_the_same_and_for_a_stream(name: str, flat: str) -> None:
    operation_id, ids, fields, query = CASES[flat]
    call, same = build(name, *ids, **fields, **query), build(flat, *ids, **fields, **query)
    assert json.loads(call.body or b"") == {**fields, "stream": True}
    validate(body_schema(operation(operation_id)[2]), json.loads(call.body or b""))
    assert (call.operation, call.streams, call.lane) == (name, True, "stream")
    assert (call.path, call.query, call.repeatable) == (same.path, same.query, same.repeatable)
    takes = dict(inspect.signature(getattr(endpoints, name)).parameters)
    assert takes.pop("stream_to").default is None
    assert takes == dict(inspect.signature(getattr(endpoints, flat)).parameters)


@pytest.mark.parametrize("name", CASES)
def test_only_what_does_no_harm_twice_is_repeatable(name: str) -> None:
    _, ids, fields, _ = CASES[name]
    assert build(name, *ids, **fields).repeatable is (name in REPEATABLE)


@pytest.mark.parametrize("messages", [UNSET, []])
def test_a_thread_without_messages_may_be_created_again(messages: Any) -> None:
    assert endpoints.create_thread(messages=messages, metadata={"a": "b"}).repeatable
    assert not endpoints.create_thread(messages=[MESSAGE]).repeatable


def test_a_cancel_has_a_lane_of_its_own() -> None:
    assert endpoints.cancel_run(T, R).lane == "cancel"
    assert endpoints.get_run(T, R).lane == "control"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1]])
@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "a/b", "a\\b", "../x", "a..b", "a?b", "a#b", "%2e%2e", "a%2fb", "a\nb", "a\0", "\x85"],
)
def test_an_id_that_could_change_the_path_is_refused_in_every_place(name: str, bad: str) -> None:
    _, ids, fields, _ = CASES[name]
    for at in range(len(ids)):
        with pytest.raises(ValueError, match="cannot be part of a path"):
            build(name, *ids[:at], bad, *ids[at + 1 :], **fields)


def test_an_id_must_be_text() -> None:
    with pytest.raises(TypeError, match="run_id must be a str, got int"):
        build("get_run", T, 7)  # type: ignore[arg-type]  # which is the mistake


@given(st.text(min_size=1))
def test_an_accepted_id_is_one_plain_ascii_segment(text: str) -> None:
    try:
        call = endpoints.get_thread(text)
    except ValueError:
        return
    assert re.fullmatch(r"/threads/[A-Za-z0-9._~%-]+", call.path)
    assert call.path.count("/") == 2


@pytest.mark.parametrize(("stream", "flat"), STREAMS.items())
def test_stream_on_a_flat_call_names_the_method_that_streams(stream: str, flat: str) -> None:
    _, ids, fields, _ = CASES[flat]
    with pytest.raises(TypeError, match=rf"{flat}\(\) does not stream: call {stream}\(\)"):
        build(flat, *ids, **fields, stream=True)


@pytest.mark.parametrize("name", CASES)
def test_a_keyword_nobody_knows_is_a_type_error(name: str) -> None:
    _, ids, fields, _ = CASES[name]
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'colour'"):
        build(name, *ids, **fields, colour="red")


@pytest.mark.parametrize("bad", ["", "é", "a b", "a\nb", "x" * 513])
def test_a_nonce_that_cannot_be_sent_is_refused_before_anything_is(bad: str) -> None:
    with pytest.raises(ValueError, match="nonce must be"):
        endpoints.create_run("thread_1", assistant_id="asst_1", nonce=bad)


@pytest.mark.parametrize("name", ["create_run", "stream_run", "create_message"])
def test_a_nonce_takes_one_pair_of_the_metadata(name: str) -> None:
    _, ids, fields, _ = CASES[STREAMS.get(name, name)]
    pairs = {f"k{number}": "v" for number in range(15)}
    call = build(name, *ids, **fields | {"metadata": pairs}, nonce="n1")
    assert json.loads(call.body or b"")["metadata"] == {**pairs, NONCE_KEY: "n1"}
    assert call.nonce == "n1"
    empty: list[dict[str, str] | None] = [None, {}]
    for metadata in empty:
        sent = json.loads(build(name, *ids, **fields | {"metadata": metadata}, nonce="n1").body or b"")
        assert sent["metadata"] == {NONCE_KEY: "n1"}
    with pytest.raises(ValueError, match="16 pairs"):
        build(name, *ids, **fields | {"metadata": {**pairs, "k15": "v"}}, nonce="n1")
    with pytest.raises(ValueError, match="taken by the nonce"):
        build(name, *ids, **fields | {"metadata": {NONCE_KEY: "mine"}}, nonce="n1")


def test_outputs_may_be_objects_or_plain() -> None:
    plain = endpoints.submit_tool_outputs(T, R, tool_outputs=[{"tool_call_id": "call_1", "output": "1"}])
    typed = endpoints.submit_tool_outputs(T, R, tool_outputs=(ToolOutput(tool_call_id="call_1", output="1"),))
    assert plain.body == typed.body


def test_what_has_no_json_form_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        endpoints.create_run(T, assistant_id=A, tool_choice={"x": object()})


def test_answers_are_decoded_to_their_types() -> None:
    run = endpoints.get_run(T, R).decode(b'{"id": "run_1", "status": "vibing", "novel": 1}')
    assert (type(run), run.status) == (Run, "vibing")
    page = endpoints.list_runs(T).decode(b'{"data": [{"id": "run_1"}], "has_more": true}')
    assert page == Page(data=[Run(id="run_1")], has_more=True)
    gone = endpoints.delete_message(T, M)
    assert gone.if_gone == Deleted(id=M, object="thread.message.deleted", deleted=True)
    with pytest.raises(msgspec.ValidationError):
        endpoints.get_run(T, R).decode(b"[]")


def test_a_call_shows_no_key() -> None:
    assert "sk-secret" not in repr(endpoints.get_run(T, R, api_key="sk-secret"))


def test_query_values_survive_encoding() -> None:
    settings = Settings(base_url="http://127.0.0.1/v1", credentials=Credentials())
    url = settings.request(endpoints.get_run_step(T, R, S, include=[*INCLUDE, "a&b=c"])).url
    path, _, query = url.partition("?")
    assert path == "http://127.0.0.1/v1/threads/thread_1/runs/run_1/steps/step_1"
    assert parse_qsl(query) == [("include[]", INCLUDE[0]), ("include[]", "a&b=c")]
