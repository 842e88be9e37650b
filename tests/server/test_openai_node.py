"""The `openai` npm package drives the server unchanged: `openai_node.cjs` holds the programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from server.speaker import Speaker

PACKAGE = "openai@7"
PROGRAMS = Path(__file__).parent / "openai_node.cjs"
SAID = "It is Oslo 5 and Rome 21"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed outside the checkout; npm keeps what it has downloaded."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    where = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return where / "node_modules"


@pytest.fixture
def program(modules: Path, speaker: Speaker) -> Any:
    """Run one of the programs on the server; return its result."""

    def run(name: str) -> Any:
        environment = {
            **os.environ,
            "NODE_PATH": str(modules),
            "BASE_URL": speaker.server.base_url,
            "API_KEY": speaker.server.api_key,
        }
        done = subprocess.run(
            ["node", str(PROGRAMS), name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_its_polling_helpers_carry_a_tool_round_to_the_end(program: Any) -> None:
    assert program("polling") == ["requires_action", "completed", SAID]


def test_its_streams_tell_their_handlers_everything_over_both_legs(program: Any) -> None:
    result = program("streaming")
    assert result["calls"] == ['{"city":"Oslo","unit":"c"}', '{"city":"Rome","unit":"c"}']
    assert (result["status"], result["said"], result["text"]) == ("completed", SAID, SAID)
    assert [name.removeprefix("thread.") for name in result["names"]] == [
        *("run.created", "run.queued", "run.in_progress"),
        *("run.step.created", "run.step.in_progress", "run.requires_action"),
        *("run.step.completed", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
        *("message.created", "message.in_progress", "message.completed"),
        *("run.step.completed", "run.completed"),
    ]


def test_its_lists_page_themselves(program: Any) -> None:
    assert program("paging") == ["43210", "01234"]


def test_it_cancels_a_run_that_it_streams(program: Any) -> None:
    assert program("cancelling") == [
        "thread.run.step.cancelled",
        "thread.run.cancelling",
        "thread.run.cancelled",
    ]


def test_refusals_are_its_own_exceptions_with_their_details(program: Any) -> None:
    missing, unsupported, locked, stranger = program("refusals")
    assert (missing["name"], missing["status"], missing["request"]) == ("NotFoundError", 404, "req_")
    assert "No thread found with id 'thread_X'." in missing["message"]
    assert (unsupported["name"], unsupported["param"]) == ("BadRequestError", "tools[0].type")
    assert (locked["name"], locked["type"]) == ("BadRequestError", "invalid_request_error")
    assert "is active" in locked["message"]
    assert (stranger["name"], stranger["code"]) == ("AuthenticationError", "invalid_api_key")
