"""The same programs against the embedded server, with our clients and with openai-python's.

A program is written once, in our names. It is run on a fresh server by each of four clients, and leaves a
transcript: for every operation the requests that the server got, and the object, the events or the error
that came back. All four transcripts must be equal. Ids become numbers in order of their appearance and
timestamps lose their value, because every server mints its own; a null and an absent field are the same.
Nothing else is left out, so that a field which one client drops or invents is seen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from drivers import both
from peers import JSON, Recorder, Refused, ours, peers, without_nulls

from orchestrator.client import endpoints
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from collections.abc import Callable

# openai-python calls the whole protocol deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:(deprecated|The Assistants API is):DeprecationWarning")

CALL = {"tool": "weather", "for_each": r"(?P<city>[A-Z]\w+)", "arguments": {"city": "{city}"}}
RULES: list[JSON] = [
    {
        "match": "(?i)weather in (?P<cities>.+)",
        "steps": [
            {"call": [CALL]},
            {"say": ["It is ", {"each": "weather", "text": "{city} → {output}", "join": ", "}, ", so früh."]},
        ],
    },
    {"match": "slow", "steps": [{"think_s": 600}, {"say": "late"}]},
    {"match": "fail", "steps": [{"fail": {"code": "rate_limit_exceeded", "message": "too much"}}]},
    {"match": "overrun", "steps": [{"say": "and so"}, {"overrun": True}]},
    {"match": "", "steps": [{"say": "Hello, how are you today, dear reader of streams?"}]},
]

TOOL: JSON = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA: JSON = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {}}},
}
SEARCH_RESULTS = "step_details.tool_calls[*].file_search.results[*].content"


def assistants(on: Recorder) -> None:
    whole = on.call(
        "create_assistant",
        model="rules",
        name="Anna",
        description="knows the weather",
        instructions="Be brief.",
        tools=[TOOL],
        metadata={"team": "north"},
        temperature=0.5,
        top_p=0.25,
        response_format=SCHEMA,
    )["id"]
    on.call("get_assistant", whole)
    others = [on.call("create_assistant", model="rules")["id"] for _ in range(4)]
    everything = on.ids(on.call("list_assistants", order="asc"))
    assert everything == [whole, *others]
    assert on.ids(on.call("list_assistants")) == everything[::-1]
    assert on.ids(on.call("list_assistants", limit=2, order="asc", after=whole)) == others[:2]
    assert on.ids(on.call("list_assistants", limit=2, order="desc", after=others[2])) == others[1::-1]
    assert on.ids(on.call("list_assistants", order="asc", before=others[1])) == everything[:2]
    on.call("modify_assistant", whole, name="Berta", metadata={"team": "south"}, temperature=1.5)
    on.call("modify_assistant", whole, tools=[], response_format="auto", model="others")
    cleared = on.call("modify_assistant", whole, name=None, description=None, instructions=None)
    assert cleared.get("name") is None
    on.call("modify_assistant", whole, metadata=None, tool_resources=None, temperature=None, top_p=None)
    on.call("get_assistant", whole)
    on.call("delete_assistant", whole)
    on.refused("get_assistant", whole)
    on.refused("modify_assistant", whole, name="gone")
    on.refused("delete_assistant", whole)
    on.refused("list_assistants", limit=1000)
    on.refused("create_assistant", model="rules", temperature=3.0)
    on.refused("create_assistant", model="rules", tools=[{"type": "file_search"}])
    on.refused("create_assistant", model="rules", tool_resources={"code_interpreter": {"file_ids": []}})
    on.refused("create_assistant", model="rules", metadata={str(n): "" for n in range(17)})


def threads(on: Recorder) -> None:
    empty = on.call("create_thread")["id"]
    thread = on.call(
        "create_thread",
        messages=[
            {"role": "user", "content": "hello", "metadata": {"n": "1"}},
            {"role": "assistant", "content": [{"type": "text", "text": "well"}]},
        ],
        metadata={"a": "b"},
    )["id"]
    on.call("list_messages", thread)
    on.call("get_thread", thread)
    on.call("modify_thread", thread, metadata={"a": "c", "d": "e"})
    on.refused("modify_thread", thread, tool_resources={"code_interpreter": {"file_ids": []}})
    on.call("modify_thread", thread, metadata=None, tool_resources=None)
    on.call("get_thread", thread)
    on.call("delete_thread", thread)
    for name in ("get_thread", "modify_thread", "delete_thread", "list_messages", "list_runs"):
        on.refused(name, thread)
    on.call("delete_thread", empty)


def messages(on: Recorder) -> None:
    thread = on.call("create_thread")["id"]
    first = on.call("create_message", thread, role="user", content="hello", metadata={"a": "b"})["id"]
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_file", "image_file": {"file_id": "file_1"}},
    ]
    second = on.call("create_message", thread, role="user", content=parts)["id"]
    third = on.call("create_message", thread, role="assistant", content="there")["id"]
    attached = [{"file_id": "file_1", "tools": [{"type": "file_search"}]}]
    on.refused("create_message", thread, role="user", content="this", attachments=attached)
    for message in (first, second, third):
        on.call("get_message", thread, message)
    on.call("modify_message", thread, first, metadata={"c": "d"})
    on.call("modify_message", thread, first, metadata=None)
    assert on.ids(on.call("list_messages", thread)) == [third, second, first]
    assert on.ids(on.call("list_messages", thread, order="asc", limit=2)) == [first, second]
    assert on.ids(on.call("list_messages", thread, order="asc", after=first)) == [second, third]
    assert on.ids(on.call("list_messages", thread, order="asc", before=second)) == [first]
    assert on.ids(on.call("list_messages", thread, run_id="run_0")) == []
    on.call("delete_message", thread, second)
    for name in ("get_message", "modify_message", "delete_message"):
        on.refused(name, thread, second)
    on.refused("create_message", thread, role="system", content="no")
    on.refused("create_message", thread, role="user", content=[{"type": "smell"}])


def runs_with_tools(on: Recorder) -> None:
    assistant = on.call("create_assistant", model="rules", tools=[TOOL])["id"]
    thread = on.call("create_thread")["id"]
    run = on.call(
        "create_run",
        thread,
        assistant_id=assistant,
        additional_messages=[{"role": "user", "content": "Weather in Oslo, Rome"}],
        additional_instructions="In French.",
        instructions="Be brief.",
        model="others",
        metadata={"a": "b"},
        temperature=0.5,
        top_p=0.5,
        max_prompt_tokens=100_000,
        max_completion_tokens=50_000,
        truncation_strategy={"type": "last_messages", "last_messages": 5},
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format="auto",
    )["id"]
    waiting = on.until("requires_action", thread, run)
    calls = waiting["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs = [{"tool_call_id": call["id"], "output": "mild"} for call in calls]
    on.refused("create_message", thread, role="user", content="and?")
    on.refused("create_run", thread, assistant_id=assistant)
    on.refused("stream_run", thread, assistant_id=assistant)
    on.refused("submit_tool_outputs", thread, run, tool_outputs=outputs[:1])
    on.refused(
        "stream_tool_outputs", thread, run, tool_outputs=[*outputs, {"tool_call_id": "x", "output": ""}]
    )
    (step,) = on.ids(on.call("list_run_steps", thread, run))
    on.call("get_run_step", thread, run, step)
    on.call("submit_tool_outputs", thread, run, tool_outputs=outputs)
    on.until("completed", thread, run)
    first, second = on.ids(on.call("list_run_steps", thread, run, order="asc"))
    assert on.ids(on.call("list_run_steps", thread, run, limit=1)) == [second]
    assert on.ids(on.call("list_run_steps", thread, run, order="asc", after=first)) == [second]
    assert on.ids(on.call("list_run_steps", thread, run, order="asc", before=second)) == [first]
    on.call("list_run_steps", thread, run, include=[SEARCH_RESULTS])
    on.call("get_run_step", thread, run, first, include=[SEARCH_RESULTS])
    assert len(on.ids(on.call("list_messages", thread, run_id=run))) == 1
    on.call("modify_run", thread, run, metadata={"c": "d"})
    on.call("modify_run", thread, run, metadata=None)
    on.refused("submit_tool_outputs", thread, run, tool_outputs=outputs)
    on.refused("cancel_run", thread, run)
    again = on.call("create_run", thread, assistant_id=assistant, tool_choice="none", model=None)["id"]
    on.until("completed", thread, again)
    assert on.ids(on.call("list_runs", thread)) == [again, run]
    assert on.ids(on.call("list_runs", thread, limit=1, order="asc")) == [run]
    assert on.ids(on.call("list_runs", thread, after=again)) == [run]
    assert on.ids(on.call("list_runs", thread, before=run)) == [again]


def other_ends(on: Recorder) -> None:
    assistant = on.call("create_assistant", model="rules")["id"]
    for text, end in (("overrun", "incomplete"), ("fail", "failed"), ("hi", "completed")):
        thread = {"messages": [{"role": "user", "content": text}], "metadata": {"a": "b"}}
        run = on.call("create_thread_and_run", assistant_id=assistant, thread=thread, metadata={"c": "d"})
        on.until(end, run["thread_id"], run["id"])
        on.call("list_run_steps", run["thread_id"], run["id"])
        on.call("list_messages", run["thread_id"])
    thread = {"messages": [{"role": "user", "content": "slow"}]}
    run = on.call("create_thread_and_run", assistant_id=assistant, thread=thread)
    on.until("in_progress", run["thread_id"], run["id"])
    on.call("cancel_run", run["thread_id"], run["id"])
    on.until("cancelled", run["thread_id"], run["id"])


def streams(on: Recorder) -> None:
    assistant = on.call("create_assistant", model="rules", tools=[TOOL])["id"]
    thread = on.call("create_thread", messages=[{"role": "user", "content": "Weather in Oslo, Rome"}])["id"]
    name, run = on.stream("stream_run", thread, assistant_id=assistant, metadata={"a": "b"})[-1]
    assert name == "thread.run.requires_action"
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs = [{"tool_call_id": call["id"], "output": "mild"} for call in calls]
    last, _ = on.stream("stream_tool_outputs", thread, run["id"], tool_outputs=outputs)[-1]
    assert last == "thread.run.completed"
    for text, end in (("hi", "completed"), ("fail", "failed"), ("overrun", "incomplete")):
        begun = {"messages": [{"role": "user", "content": text}]}
        events = on.stream("stream_thread_and_run", assistant_id=assistant, thread=begun)
        assert (events[0][0], events[-1][0]) == ("thread.created", f"thread.run.{end}")


def unknown_ids(on: Recorder) -> None:
    thread, assistant = on.call("create_thread")["id"], on.call("create_assistant", model="rules")["id"]
    for owner in (thread, "thread_0"):
        for name in (
            "get_message",
            "delete_message",
            "get_run",
            "modify_run",
            "cancel_run",
            "list_run_steps",
        ):
            on.refused(name, owner, "run_0")
        on.refused("get_run_step", owner, "run_0", "step_0")
        on.refused("submit_tool_outputs", owner, "run_0", tool_outputs=[])
        on.refused("create_run", owner, assistant_id="asst_0")
    on.refused("create_message", "thread_0", role="user", content="hi")
    on.refused("stream_run", "thread_0", assistant_id=assistant)
    on.refused("stream_thread_and_run", assistant_id="asst_0")
    on.refused("create_thread_and_run", assistant_id="asst_0")


PROGRAMS = [assistants, threads, messages, runs_with_tools, other_ends, streams, unknown_ids]


@cache
def recorded(program: Callable[[Recorder], None], library: Any, kind: str) -> Recorder:
    with running_server(RULES) as server, library(kind, server) as client:
        recorder = Recorder(client, server)
        program(recorder)
    return recorder


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_program_gets_the_same_objects(program: Callable[[Recorder], None]) -> None:
    first, *others = [recorded(program, library, kind).transcript
                      for library in (peers, ours) for kind in ("sync", "async")]  # fmt: skip
    for other in others:
        for mine, theirs in zip(other, first, strict=True):
            assert mine == theirs


def test_the_programs_together_use_every_operation() -> None:
    used = set().union(*(recorded(program, ours, "sync").used for program in PROGRAMS))
    assert used == set(endpoints.__all__) - {"CallOptions"}
    assert len(used) == 23 + 3


@both
def test_a_wrong_key_is_refused_alike(kind: str) -> None:
    errors = []
    with running_server() as server:
        for library in (ours, peers):
            with library(kind, replace(server, api_key="wrong")) as client, pytest.raises(Refused) as caught:
                client.call("list_assistants")
            errors.append(caught.value.error)
    assert errors[0] == errors[1]
    assert (errors[0]["status"], errors[0]["code"]) == (401, "invalid_api_key")


@both
def test_one_object_is_read_alike_to_its_timestamps(kind: str) -> None:
    with running_server(RULES) as server, ours(kind, server) as mine, peers(kind, server) as theirs:
        recorder = Recorder(mine, server)
        runs_with_tools(recorder)
        assistant = mine.call("list_assistants")["data"][0]["id"]
        run = next(plain["id"] for name, _, plain in recorder.transcript if name == "create_run")
        actual = {number: found for found, number in recorder._numbers.items()}
        thread, run = actual["thread_#1"], actual[run]
        step = mine.call("list_run_steps", thread, run)["data"][0]["id"]
        message = mine.call("list_messages", thread)["data"][0]["id"]
        for name, *ids in (
            ("get_assistant", assistant),
            ("get_thread", thread),
            ("get_message", thread, message),
            ("get_run", thread, run),
            ("get_run_step", thread, run, step),
            ("list_messages", thread),
            ("list_runs", thread),
            ("list_run_steps", thread, run),
        ):
            assert without_nulls(mine.call(name, *ids)) == without_nulls(theirs.call(name, *ids)), name
