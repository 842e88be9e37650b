"""What a type checker sees of the methods that are made from the endpoints."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from mypy import api

from orchestrator.client import AsyncThreadsClient, CallOptions, ThreadsClient, endpoints

SNIPPET = """
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, assert_type
import pykka
from msgspec import UNSET
from orchestrator.client import (
    NO_RETRIES, AsyncEventStream, AsyncThreadsClient, EventStream, RetryPolicy, StreamTo, ThreadsClient,
)
from orchestrator.protocol.events import RunEvent, StreamEvent
from orchestrator.protocol.objects import Assistant, Deleted, Message, Page, Run, RunStep, Thread, ToolOutput


async def asynchronous(client: AsyncThreadsClient, ref: pykka.ActorRef[Any]) -> None:
    assert_type(await client.get_run("t", "r", timeout=5.0, retry=NO_RETRIES), Run)
    assert_type(await client.create_run("t", assistant_id="a", model=None, nonce="n", api_key="k"), Run)
    assert_type(await client.create_run("t", assistant_id="a", model=UNSET, include=["x"]), Run)
    assert_type(await client.list_messages("t", limit=3, order="asc", run_id="r"), Page[Message])
    assert_type(await client.delete_thread("t", headers={"a": "b"}), Deleted)
    assert_type(client.with_options(api_key="k", retry=RetryPolicy(attempts=2)), AsyncThreadsClient)
    async with client.stream_run("t", assistant_id="a", project="p", stream_to=ref) as stream:
        assert_type(stream, AsyncEventStream)
        assert_type(await stream.until_done(), None)
        async for event in stream:
            assert_type(event, StreamEvent)
            if isinstance(event, RunEvent):
                assert_type(event.data, Run)
    assert_type(client.iter_assistants(order="desc"), AsyncIterator[Assistant])
    async for message in client.iter_messages("t", run_id="r", limit=100, base_url="u"):
        assert_type(message, Message)
    assert_type([run async for run in client.iter_runs("t", after="r")], list[Run])
    assert_type([step async for step in client.iter_run_steps("t", "r", include=["x"])], list[RunStep])
    await client.create_run("t")  # missing assistant_id
    await client.create_run("t", assistant_id=7)  # wrong type
    await client.create_run("t", "a")  # positional
    await client.create_run("t", assistant_id="a", stream=True)  # no such keyword
    await client.create_run("t", assistant_id="a", stream_to=print)  # for streams only
    await client.create_run("t", assistant_id="a", tool_choice=None)  # never null
    await client.get_run("t", "r", timeout="5")  # wrong option
    await client.list_runs("t", order="up")  # wrong literal
    await client.list_runs("t", run_id="r")  # a filter of messages
    await client.create_message("t", role="system", content="x")  # wrong literal
    await client.with_options(colour="red").get_run("t", "r")  # no such option
    client.stream_run("t", assistant_id="a", colour="red")  # no such keyword
    client.stream_run("t", assistant_id="a", stream_to=7)  # cannot be told
    client.stream_thread_and_run(assistant_id="a", nonce="n")  # nothing to look it up on
    client.iter_runs("t", limit="5")  # wrong type
    client.iter_runs()  # missing id
    client.iter_run_steps("t", "r", colour="red")  # no such keyword
    for run in client.iter_runs("t"):  # to be iterated with async for
        pass


def blocking(client: ThreadsClient, ref: pykka.ActorRef[Any], tell: Callable[[StreamEvent], None]) -> None:
    assert_type(client.create_thread(metadata=None, base_url="u", api_key="k"), Thread)
    assert_type(client.modify_assistant("a", name=None, tools=[], temperature=0.5), Assistant)
    outputs = [ToolOutput(tool_call_id="c", output="o")]
    assert_type(client.submit_tool_outputs("t", "r", tool_outputs=outputs), Run)
    assert_type(client.get_run_step("t", "r", "s", include=["x"], organization="o"), RunStep)
    assert_type(client.cancel_run("t", "r"), Run)
    told: list[StreamEvent] = []
    listeners: list[StreamTo] = [ref, tell, print, told.append]
    with client.stream_tool_outputs("t", "r", tool_outputs=[], stream_to=listeners[0]) as stream:
        assert_type(stream, EventStream)
        assert_type(stream.until_done(), None)
        assert_type(next(stream), StreamEvent)
    with client.stream_thread_and_run(assistant_id="a", thread={}, stream_to=lambda event: event.run_id):
        pass
    assert_type(client.iter_assistants(), Iterator[Assistant])
    assert_type(list(client.iter_messages("t", order="asc", retry=NO_RETRIES)), list[Message])
    assert_type(next(client.iter_runs("t")).required_calls[0].function.arguments, str)
    assert_type(list(client.iter_run_steps("t", "r", before="s")), list[RunStep])
    client.submit_tool_outputs("t", "r")  # missing tool_outputs
    client.get_thread()  # missing id
    client.get_thread("t", organisation="o")  # misspelt option
    client.delete_message("t")  # missing id
    client.modify_run("t", "r", metadata={"a": 1})  # wrong value
    client.iter_messages("t", order="up")  # wrong literal
    client.iter_messages("t", stream_to=print)  # for streams only
    client.stream_run("t", assistant_id="a", stream_to=lambda: None)  # takes no event
    with client.stream_run("t", assistant_id="a") as run:
        run.id  # a stream is no run
"""


def checked(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a strict type checker says to a program."""
    root = Path(__file__).parent.parent.parent
    source = tmp_path / "snippet.py"
    source.write_text(snippet)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MYPYPATH", str(root))
    out, err, _ = api.run(
        ["--strict", "--no-error-summary", "--python-executable", sys.executable, str(source)]
    )
    assert err == ""
    return out


def lines(out: str) -> set[int]:
    """The lines with an error."""
    return {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}


def test_a_strict_type_checker_sees_parameters_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = checked(SNIPPET, tmp_path, monkeypatch)
    wrong = {number for number, line in enumerate(SNIPPET.split("\n"), 1) if "  # " in line}
    assert lines(out) == wrong, out


METHODS = sorted(
    {*endpoints.__all__} - {"CallOptions"}
    | {f"iter_{one}" for one in ("assistants", "messages", "runs", "run_steps")}
)


@pytest.mark.parametrize("client", [AsyncThreadsClient, ThreadsClient])
def test_a_strict_type_checker_sees_every_parameter_of_every_method(
    client: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ["from typing import Any", f"from orchestrator.client import {client.__name__} as Client"]
    calls = [*head, "def every(client: Client, some: Any) -> None:"]
    for name in METHODS:
        _, *parameters = inspect.signature(getattr(client, name)).parameters.values()
        ids = ["some" for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        own = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
        for keyword in (*own, *CallOptions.__optional_keys__):
            needed = [one.name for one in parameters if one.default is one.empty and one.name in own]
            keywords = [f"{one}=some" for one in dict.fromkeys([*needed, keyword])]
            calls.append(f"    client.{name}({', '.join([*ids, *keywords])})")
            calls.append(f"    client.{name}({', '.join([*ids, *keywords])}, {keyword}_=some)  # wrong")
    out = checked("\n".join(calls), tmp_path, monkeypatch)
    errors = [line for line in out.splitlines() if ": error:" in line and "[unused-coroutine]" not in line]
    wrong = {number for number, line in enumerate(calls, 1) if line.endswith("# wrong")}
    assert lines("\n".join(errors)) == wrong, out
    assert len(wrong) > 300
