"""The README's chapter on the client: its programs run, and its tables tell what the code does."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING

import pytest
from processes import ROOT, finished

from orchestrator.client import AsyncThreadsClient, CallOptions, ThreadsClient, endpoints
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.client import Call

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTER = README.partition("\n## The client\n")[2].partition("\n## ")[0]
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in CHAPTER.splitlines()
    if line[:3] == "| `"
]
OPERATIONS = [row for row in ROWS if len(row) == 3 and re.match("`(GET|POST|DELETE) ", row[1])]
EX_OPENAI = [row for row in ROWS if len(row) == 3 and row not in OPERATIONS and "." not in row[0]]
EX_OPENAI_OPTIONS = [row for row in ROWS if len(row) == 2]
SEED = [
    "cancel_run", "create_message", "create_run", "create_thread", "create_thread_and_run", "delete_message",
    "delete_thread", "get_message", "get_run", "get_run_step", "get_thread", "list_messages",
    "list_run_steps", "list_runs", "modify_message", "modify_run", "modify_thread", "submit_tool_outputs",
]  # fmt: skip

RULES = [
    {
        "match": "(?i)weather in (?P<cities>.+)",
        "steps": [
            {
                "call": {
                    "tool": "get_weather",
                    "for_each": r"(?P<city>[A-Z]\w+)",
                    "arguments": {"city": "{city}"},
                }
            },
            {"say": [{"each": "get_weather", "text": "{city} is {output}", "join": ", "}]},
        ],
    }
]

ARGUMENTS = {
    "model": "m",
    "messages": [],
    "role": "user",
    "content": "x",
    "assistant_id": "asst_1",
    "tool_outputs": [],
}


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def call(name: str) -> Call[object]:
    build = getattr(endpoints, name)
    parameters = inspect.signature(build).parameters.values()
    ids = ["x" for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    built: Call[object] = build(*ids, **{one: ARGUMENTS[one] for one in needed})
    return built


def test_the_chapter_s_programs_run_one_after_the_other(tmp_path: Path) -> None:
    with running_server(RULES) as server:
        env = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": server.api_key, "PYTHONUTF8": "1"}
        command = [sys.executable, "-W", "error", "-c", "\n".join(PROGRAMS)]
        program = finished(tmp_path, command=command, env=env)
    assert (program.code, program.err) == (0, ""), program
    lines = program.out.splitlines()
    assert len(PROGRAMS) == CHAPTER.count("```python") == 6
    assert "user Weather in Oslo and Rome?" in lines  # Lists
    assert "requires_action" in lines  # Streams
    assert "thread.message.completed" in lines  # the actor
    assert any(line.endswith(" completed") for line in lines)  # the asynchronous client
    assert lines[-1].startswith("400 ")  # what the server refused


def test_the_table_of_operations_is_the_endpoints_own() -> None:
    told = {name for row in OPERATIONS for name in names(row[0])}
    iterated = {name for name in told if name.startswith("iter_")}
    assert told - iterated == set(endpoints.__all__) - {"CallOptions"}
    assert iterated == {f"iter_{one}" for one in ("assistants", "messages", "runs", "run_steps")}
    assert len(OPERATIONS) == 23
    for row in OPERATIONS:
        (request,) = names(row[1])
        for name in set(names(row[0])) - iterated:
            built = call(name)
            assert f"{built.method} {built.path}" == re.sub(r"{\w+}", "x", request)
            assert row[2].startswith("sent again") is built.repeatable, name
            assert ("404" in row[2]) is (built.if_gone is not None)
            assert ("nonce" in row[2]) is ("nonce" in inspect.signature(getattr(endpoints, name)).parameters)


@pytest.mark.parametrize("client", [AsyncThreadsClient, ThreadsClient])
def test_the_map_of_exopenai_names_what_there_is(client: type) -> None:
    assert [names(row[0])[0] for row in EX_OPENAI] == SEED
    for row in EX_OPENAI:
        for name in names(row[1]):
            parameters = inspect.signature(getattr(client, name)).parameters
            assert set(names(row[2])) <= parameters.keys()
            own = {one.name for one in parameters.values() if one.kind is one.KEYWORD_ONLY}
            needed = {one for one in own if parameters[one].default is inspect.Parameter.empty}
            assert own - needed - {"nonce", "stream_to"} == set(names(row[2])), name
    mapped = {name for row in EX_OPENAI_OPTIONS for name in re.findall(r"`(\w+)=`", row[1])}
    assert mapped == {"api_key", "organization", "project", "base_url", "timeout", "stream_to"}
    assert mapped - {"stream_to"} <= CallOptions.__optional_keys__
