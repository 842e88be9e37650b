"""What a type checker sees of the methods that are made from the endpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mypy import api

if TYPE_CHECKING:
    import pytest

SNIPPET = """
from typing import assert_type
from orchestrator.client import NO_RETRIES, AsyncEventStream, AsyncThreadsClient, EventStream, ThreadsClient
from orchestrator.protocol.objects import Deleted, Message, Page, Run, Thread


async def asynchronous(client: AsyncThreadsClient) -> None:
    assert_type(await client.get_run("t", "r", timeout=5.0, retry=NO_RETRIES), Run)
    assert_type(await client.create_run("t", assistant_id="a", model=None, nonce="n", api_key="k"), Run)
    assert_type(await client.list_messages("t", limit=3, order="asc"), Page[Message])
    assert_type(await client.delete_thread("t", headers={"a": "b"}), Deleted)
    async with client.stream_run("t", assistant_id="a", project="p") as stream:
        assert_type(stream, AsyncEventStream)
    await client.create_run("t")  # missing assistant_id
    await client.create_run("t", assistant_id=7)  # wrong type
    await client.create_run("t", "a")  # positional
    await client.create_run("t", assistant_id="a", stream=True)  # no such keyword
    await client.get_run("t", "r", timeout="5")  # wrong option
    await client.list_runs("t", order="up")  # wrong literal
    client.stream_run("t", assistant_id="a", colour="red")  # no such keyword


def blocking(client: ThreadsClient) -> None:
    assert_type(client.create_thread(metadata=None, base_url="u", api_key="k"), Thread)
    with client.stream_tool_outputs("t", "r", tool_outputs=[]) as stream:
        assert_type(stream, EventStream)
    client.submit_tool_outputs("t", "r")  # missing tool_outputs
    client.get_thread()  # missing id
    client.get_thread("t", organisation="o")  # misspelt option
"""


def test_a_strict_type_checker_sees_every_parameter_and_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent.parent
    source = tmp_path / "snippet.py"
    source.write_text(SNIPPET)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MYPYPATH", str(root))
    out, err, _ = api.run(
        ["--strict", "--no-error-summary", "--python-executable", sys.executable, str(source)]
    )
    assert err == ""
    wrong = {number for number, line in enumerate(SNIPPET.split("\n"), 1) if "  # " in line}
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    assert found == wrong, out
