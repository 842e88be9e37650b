"""`orchestrator serve` in front of a model, and with faults, through the command line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import psutil
import pytest
from faulty_server import FaultyServer, chunks, failure
from processes import finished, serving

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.tools import tool

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-of-the-upstream"
PASSWORD = "pass-of-the-upstream"


def stream(*deltas: dict[str, object]) -> bytes:
    bodies = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    return b"".join(b"data: %s\n\n" % json.dumps(body).encode() for body in bodies) + b"data: [DONE]\n\n"


@tool
def get_time(zone: str) -> str:
    """Time of day in a time zone."""
    return f"noon in {zone}"


def test_an_orchestrator_runs_its_tools_for_a_model_behind_the_server(tmp_path: Path) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "get_time", "arguments": '{"zone": "utc"}'}}
    script = [
        chunks([stream({"tool_calls": [call]})]),
        chunks([stream({"content": "It is "}, {"content": "noon."})]),
    ]
    with FaultyServer(*script) as endpoint:
        options = ["--model-url", endpoint.url, "--model-name", "llama"]
        with serving(
            tmp_path, *options, "--log-level", "debug", env={"ORCHESTRATOR_MODEL_KEY": f"{KEY}\n"}
        ) as (
            process,
            url,
        ):
            assert KEY not in " ".join(psutil.Process(process.pid).cmdline())
            with ThreadsClient(base_url=url, api_key="any") as client:
                assistant = client.create_assistant(model="gpt-4o", tools=[get_time.definition()])
            with Orchestrator(base_url=url, api_key="any", tools=[get_time]) as orchestrator:
                result = orchestrator.start(assistant.id, messages="What time is it?").result(timeout=30)
            process.terminate()
            out, err = process.communicate(timeout=10)
        first, second = endpoint.received
    assert result.text == "It is noon."
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert (first.json["model"], second.json["messages"][-1]["content"]) == ("llama", "noon in utc")
    assert KEY not in out + err
    assert "Traceback" not in err


def test_a_failing_model_is_told_to_the_run_and_its_key_to_nobody(tmp_path: Path) -> None:
    broken = failure(401, message=f"wrong key {KEY} for {PASSWORD}")
    with FaultyServer(default=broken) as endpoint:
        target = endpoint.url.replace("http://", f"http://user:{PASSWORD}@")
        with serving(tmp_path, "--model-url", target, "--model-key", KEY, "--log-level", "debug") as (
            process,
            url,
        ):
            with ThreadsClient(base_url=url, api_key="any") as client:
                assistant = client.create_assistant(model="m")
            with Orchestrator(base_url=url, api_key="any") as orchestrator:
                result = orchestrator.start(assistant.id, messages="Hello").result(timeout=30)
            process.terminate()
            out, err = process.communicate(timeout=10)
    assert result.error is not None
    assert result.error.message == "The model's server answered HTTP 401 (Unauthorized)."
    assert "server.model_failed" in err
    for secret in (KEY, PASSWORD):
        assert secret not in out + err + repr(result)


def test_a_script_of_faults_plays_in_front_of_a_model(tmp_path: Path) -> None:
    script = tmp_path / "faults.yaml"
    script.write_text("faults: [{operation: create_run, nth: 1, answer: {status: 429, retry_after_s: 0.01}}]")
    with FaultyServer(chunks([stream({"content": "Hi."})])) as endpoint:
        with serving(tmp_path, "--model-url", endpoint.url, "--script", str(script)) as (_, url):
            with ThreadsClient(base_url=url, api_key="any") as client:
                assistant = client.create_assistant(model="m")
            with Orchestrator(base_url=url, api_key="any") as orchestrator:
                assert orchestrator.start(assistant.id, messages="Hello").result(timeout=30).text == "Hi."
        assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model-url", "127.0.0.1:11434"], "must be such as http"),
        (["--model-url", f"ftp://u:{PASSWORD}@host"], "must be such as http"),
        (["--model-url", "http://host", "--model-key", f"{KEY}\n{KEY}"], "no header can carry"),
        (["--model-key", KEY], "give its URL, too"),
        (["--model-name", "m"], "give its URL, too"),
        (["--model-url", "http://host", "--script", "RULES"], "only one can answer"),
        (["--script", "FAULTS"], r"faults\.yaml: fault 1: no operation is called `sing`; there are: .*"),
    ],
)
def test_what_cannot_work_is_one_line_that_repeats_no_secret(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    files = {"RULES": tmp_path / "rules.yaml", "FAULTS": tmp_path / "faults.yaml"}
    files["RULES"].write_text("rules: [{match: x, steps: [{say: y}]}]")
    files["FAULTS"].write_text("faults: [{operation: sing, drop: {}}]")
    given = [str(files.get(argument, argument)) for argument in arguments]
    refused = finished(tmp_path, "serve", "--port", "0", *given)
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(f"orchestrator serve: .*{expected}.*\n", refused.err), refused.err
    assert KEY not in refused.err
    assert PASSWORD not in refused.err
