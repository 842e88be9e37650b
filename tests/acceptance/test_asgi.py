"""The example application under real servers: every worker answers for every run, and leaves its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from processes import ROOT

from orchestrator.client import ThreadsClient
from orchestrator.journal import SQLJournal
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULES: list[dict[str, Any]] = [
    {"match": "^quick", "steps": [{"say": "done"}]},
    {"match": "^slow", "steps": [{"think_s": 2}, {"say": "late"}]},
    {"match": "^long", "steps": [{"think_s": 60}, {"say": "never"}]},
]
PATIENCE_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, str]]:
    with running_server(RULES) as server:
        with ThreadsClient(server.base_url, api_key=server.api_key) as client:
            assistant = client.create_assistant(model="rules").id
        yield {
            "JOURNAL": f"sqlite:///{tmp_path}/runs.db",
            "ASSISTANT": assistant,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": server.api_key,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
        }


COMMANDS = {
    "uvicorn": ["uvicorn", "web_app:app", "--log-level", "warning", "--timeout-graceful-shutdown", "2"],
    "gunicorn": [
        *("gunicorn", "web_app:app", "-k", "uvicorn.workers.UvicornWorker", "-w", "2"),
        *("--graceful-timeout", "30", "--log-level", "warning"),
    ],
}


@contextmanager
def application(kind: str, settings: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Serve the application; yields its process and a client, and sees to it that it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        where = ["--fd", str(free.fileno())] if kind == "uvicorn" else ["--bind", f"fd://{free.fileno()}"]
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[kind], *where],
            env=os.environ | settings,
            pass_fds=[free.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as client:
            yield process, client
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(client: httpx.Client, key: str, question: str) -> None:
    answer = client.post("/runs", json={"key": key, "question": question})
    assert (answer.status_code, answer.json()) == (202, {"key": key})


def outcome(client: httpx.Client, key: str) -> str:
    return client.get(f"/runs/{key}/events").text.splitlines()[-2]


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in {0, -signal.SIGTERM}, err
    assert "Traceback" not in err, err


@pytest.mark.parametrize("kind", COMMANDS)
def test_any_worker_answers_for_any_run_and_a_stop_leaves_open_runs_to_the_next(
    kind: str, settings: dict[str, str]
) -> None:
    with application(kind, settings) as (process, client):
        start(client, "one", "quick")
        start(client, "one", "quick")
        # Whichever worker is asked: it conducts the run, or follows it in the journal.
        for _ in range(4):
            assert outcome(client, "one") == 'data: {"status":"completed","text":"done"}'
        again = client.post("/runs", json={"key": "one", "question": "something else"})
        assert again.status_code == 409
        assert "'one'" in again.json()["error"]
        assert client.get("/runs/nothing/events").status_code == 404
        start(client, "slow", "slow")
        start(client, "long", "long")
        stop(process)
    journal = SQLJournal(settings["JOURNAL"])
    left = {run.key: run for run in journal.runs()}
    assert set(left) == {"long"}  # what could end while it drained has ended
    assert not left["long"].held
    journal.cancel("long")
    with application(kind, settings) as (process, client):
        end = time.monotonic() + PATIENCE_S
        while journal.outcome("long") is None:  # taken up again at the start
            assert time.monotonic() < end
        assert outcome(client, "long") == 'data: {"status":"cancelled","text":""}'
        stop(process)
