"""The commands on a journal, as processes: what they show, what they change, and what they refuse."""

from __future__ import annotations

import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from processes import ROOT, finished, next_line, started

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.errors import OrchestratorClosed
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator import RunHandle

CALL = {"tool": "fetch", "arguments": {"word": "secret"}}
RULES = [
    {
        "match": "^fetch",
        "steps": [{"call": {"tool": "fetch", "arguments": {"word": "secret"}}}, {"say": "done"}],
    },
    {"match": "^wait", "steps": [{"think_s": 60}, {"say": "late"}]},
]

APP = """
import os
from orchestrator import Orchestrator

def make():
    return Orchestrator(journal=os.environ["JOURNAL"])

orchestrator = make()
nothing = 3
"""


class Place:
    """A journal with runs on a server, and a directory with an application to resume them."""

    def __init__(self, directory: Path, base_url: str, api_key: str) -> None:
        self.directory = directory
        self.url = f"sqlite:///{directory}/runs.db"
        self.options: dict[str, Any] = {"base_url": base_url, "api_key": api_key, "tools": [fetch]}
        self.env = {
            "ORCHESTRATOR_JOURNAL": self.url,
            "JOURNAL": self.url,
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": api_key,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)]),
            "COLUMNS": "100",
        }
        (directory / "app.py").write_text(APP)
        with ThreadsClient(base_url, api_key=api_key) as client:
            self.assistant = client.create_assistant(model="rules", tools=[definition()]).id

    def orchestrator(self) -> Orchestrator:
        return Orchestrator(journal=self.url, **self.options)

    def left_open(self, key: str) -> None:
        """Begin a run that takes a minute, and let go of it once it is under way."""
        with self.orchestrator() as orchestrator:
            run = orchestrator.start(self.assistant, messages="wait", key=key)
            begun(run)
            orchestrator.close()
            with pytest.raises(OrchestratorClosed):
                run.result()


def fetch(word: str) -> str:
    return f"{word} word"


def definition() -> dict[str, Any]:
    return {"type": "function", "function": {"name": "fetch", "parameters": {}}}


def begun(run: RunHandle) -> None:
    for event in run.events():
        if event.event == "thread.run.in_progress":
            return


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with running_server(RULES) as server:
        yield Place(tmp_path, server.base_url, server.api_key)


def test_runs_are_listed_and_shown_without_what_tools_were_given(place: Place, tmp_path: Path) -> None:
    with place.orchestrator() as orchestrator:
        result = orchestrator.start(place.assistant, messages="fetch", key="trip 1").result(30)
    place.left_open("trip 2")
    listed = finished(tmp_path, "runs", env=place.env)
    assert (listed.code, listed.err) == (0, "")
    (line,) = listed.out.splitlines()
    assert line.split("\t")[0] == "trip 2"
    everything = finished(tmp_path, "runs", "--all", env=place.env).out
    assert [line.split("\t")[0] for line in everything.splitlines()] == ["trip 2", "trip 1"]
    assert str(result.run_id) in everything
    shown = finished(tmp_path, "show", "trip 1", env=place.env)
    assert (shown.code, shown.err) == (0, "")
    for word in ("trip 1: completed", str(result.thread_id), "tool calls", "submitting", "fetch"):
        assert word in shown.out
    assert "secret" not in shown.out
    data = finished(tmp_path, "show", "trip 1", "--data", env=place.env).out
    assert '{"word": "secret"}' in data.replace('":"', '": "')
    assert "secret word" in data


def test_a_run_is_cancelled_from_outside_and_resumed_to_its_end(place: Place, tmp_path: Path) -> None:
    place.left_open("long")
    cancelled = finished(tmp_path, "cancel", "long", env=place.env)
    assert (cancelled.code, cancelled.err) == (0, "")
    assert "cancelled as soon as somebody resumes it" in cancelled.out
    resumed = finished(tmp_path, "resume", "--app", "app:make", env=place.env)
    assert resumed.code == 0, resumed
    assert "long" in resumed.out
    assert "cancelled" in resumed.out
    assert finished(tmp_path, "runs", env=place.env).out == ""


def test_resume_goes_on_until_a_signal_and_leaves_what_is_not_over(place: Place, tmp_path: Path) -> None:
    place.left_open("long")
    command = ["resume", "--app", "app:orchestrator", "--forever", "--drain-s", "0"]
    with started(tmp_path, *command, env=place.env) as (process, traces):
        assert next_line(process) == "1 run is taken up\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        traces.assert_none()
    assert process.returncode == 0, (out, err)

    (line,) = finished(tmp_path, "runs", env=place.env).out.splitlines()
    assert line.startswith("long\t")


def test_what_is_over_is_pruned(place: Place, tmp_path: Path) -> None:
    with place.orchestrator() as orchestrator:
        orchestrator.start(place.assistant, messages="fetch", key="old").result(30)
    assert finished(tmp_path, "prune", "--older-than", "1h", env=place.env).out == "0 runs are deleted\n"
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute("UPDATE journal_runs SET ended_at = ended_at - 7200")
    connection.close()
    assert finished(tmp_path, "prune", "--older-than", "1h", env=place.env).out == "1 run is deleted\n"


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        (["show", "nothing"], 1, "has no run 'nothing'"),
        (["cancel", "nothing"], 1, "has no run 'nothing'"),
        (["prune", "--older-than", "soon"], 2, "must be an age"),
        (["runs", "--journal", "runs.db"], 2, "sqlite:///runs.db"),
        (["runs", "--journal", "sqlite:////nowhere/at/all/runs.db"], 1, "cannot be opened"),
        (["resume", "--app", "app"], 2, "module:name"),
        (["resume", "--app", "missing:make"], 2, "missing"),
        (["resume", "--app", "app:nothing"], 2, "nothing"),
        (["resume", "--app", "app:make", "--journal", "sqlite:///other.db"], 2, "another journal"),
    ],
)
def test_what_they_cannot_do_is_one_line(
    place: Place, tmp_path: Path, command: list[str], code: int, expected: str
) -> None:
    refused = finished(tmp_path, *command, env=place.env, cwd=tmp_path)
    assert (refused.code, refused.out) == (code, "")
    assert expected in refused.err
    assert refused.err.startswith("orchestrator: ")
    assert refused.err.count("\n") == 1
