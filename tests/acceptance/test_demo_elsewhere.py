"""`orchestrator demo --base-url`: the same against another server, which tells what it was sent."""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from processes import RULES, finished, next_line, on_terminal, serving, started

from orchestrator.client import ThreadsClient
from orchestrator.demo.tools import TOOLS
from orchestrator.testing import running_server
from orchestrator.tools import ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.protocol.objects import Run
    from orchestrator.testing import RunningServer

PONDER = {"rules": [{"match": ".", "steps": [{"think_s": 600}, {"say": "at last"}]}]}
"""Whatever is asked takes ten minutes."""


@contextmanager
def client_of(server: RunningServer) -> Iterator[ThreadsClient]:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        yield client


def new_assistant(client: ThreadsClient) -> str:
    return client.create_assistant(model="rules", tools=ToolRegistry(TOOLS).definitions()).id


def options(server: RunningServer) -> list[str]:
    return ["--base-url", server.base_url, "--api-key", server.api_key]


def runs_on(server: RunningServer, client: ThreadsClient) -> list[Run]:
    """All runs of all threads that the server was ever asked about."""
    paths = {path for method, path in server.requests if method == "POST"}
    found = {match[1] for path in paths if (match := re.search(r"/threads/(thread_\w+)/", path))}
    return [run for thread_id in sorted(found) for run in client.list_runs(thread_id).data]


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_every_batch_is_sent_in_one_request(watch: str, tmp_path: Path) -> None:
    with running_server(RULES) as server, client_of(server) as client:
        assistant_id = new_assistant(client)
        demo = finished(tmp_path, "demo", *options(server), "--assistant-id", assistant_id, "--watch", watch)
        runs = runs_on(server, client)
        sent = Counter(path for method, path in server.requests if path.endswith("/submit_tool_outputs"))
        batches = [
            sum(step.type == "tool_calls" for step in client.list_run_steps(run.thread_id, run.id).data)
            for run in runs
        ]
        assert client.get_assistant(assistant_id).id == assistant_id
    assert (demo.code, demo.err) == (0, ""), demo
    assert len(runs) == 25
    assert {run.assistant_id for run in runs} == {assistant_id}
    cancelled = [run.status for run in runs].count("cancelled")
    assert Counter(run.status for run in runs) == Counter(completed=25 - cancelled, cancelled=cancelled)
    assert cancelled <= 1
    by_run = {path.split("/")[-2]: number for path, number in sent.items()}
    for run, number in zip(runs, batches, strict=True):
        if run.status == "completed":
            assert by_run[run.id] == number
    assert demo.lines[-1] == "the answers are the server's own: not judged"


def test_the_assistant_that_it_creates_is_deleted_again(tmp_path: Path) -> None:
    with running_server(RULES) as server, client_of(server) as client:
        demo = finished(tmp_path, "demo", "--runs", "3", *options(server))
        assert ("POST", "/v1/assistants") in server.requests
        assert client.list_assistants().data == []
    assert demo.code == 0


def test_runs_that_do_not_complete_are_not_a_success(tmp_path: Path) -> None:
    script = {"rules": [{"match": ".", "steps": [{"fail": {"code": "server_error", "message": "no luck"}}]}]}
    with running_server(script) as server:
        demo = finished(tmp_path, "demo", "--runs", "3", *options(server))
    assert demo.code == 1
    assert len(re.findall(r"run run_\w+ on thread thread_\w+ ended as failed: no luck", demo.out)) == 3
    assert demo.lines[-1] == "3 of 3 runs not as it should be"


def test_ctrl_c_cancels_every_run_on_the_server(tmp_path: Path) -> None:
    with running_server(PONDER) as server, client_of(server) as client:
        with on_terminal(tmp_path, "demo", "--runs", "12", *options(server)) as terminal:
            terminal.expect("11 watching, 1 finished")
            terminal.press(b"\x03")
            code, shown = terminal.finish()
            terminal.traces.assert_none()
        statuses = [run.status for run in runs_on(server, client)]
        assert client.list_assistants().data == []
    assert code == 130
    assert statuses == ["cancelled"] * 12
    assert shown.endswith("cancelling 11 of 12 runs\x1b[0m\n12 cancelled\n")


def test_sigterm_cancels_every_run_on_the_server(tmp_path: Path) -> None:
    with running_server(PONDER) as server, client_of(server) as client:
        with started(tmp_path, "demo", "--runs", "10", *options(server)) as (process, traces):
            assert next_line(process) == "1 of 10 runs are over\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 143
            traces.assert_none()
        assert {run.status for run in runs_on(server, client)} == {"cancelled"}


def test_a_reader_that_goes_away_leaves_no_run(tmp_path: Path) -> None:
    with running_server(PONDER) as server, client_of(server) as client:
        with started(tmp_path, "demo", "--runs", "10", *options(server)) as (process, traces):
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait() == 1
            traces.assert_none()
        assert {run.status for run in runs_on(server, client)} == {"cancelled"}


def test_a_second_ctrl_c_does_not_wait_for_a_server_that_says_nothing(tmp_path: Path) -> None:
    script = tmp_path / "ponder.yaml"
    script.write_text("rules: [{match: ., steps: [{think_s: 600}, {say: at last}]}]")
    with serving(tmp_path, "--script", str(script)) as (server, url):
        with ThreadsClient(base_url=url) as client:
            assistant_id = new_assistant(client)
        with on_terminal(
            tmp_path, "demo", "--runs", "3", "--base-url", url, "--assistant-id", assistant_id
        ) as terminal:
            terminal.expect("2 watching, 1 finished")
            server.send_signal(signal.SIGSTOP)
            terminal.press(b"\x03")
            terminal.expect("interrupted: cancelling 2 of 3 runs")
            terminal.press(b"\x03")
            code, shown = terminal.finish()
            terminal.traces.assert_none()
    assert code == 130
    assert len(re.findall(r"not seen to end: run run_\w+ on thread thread_\w+", shown)) == 2


def test_a_wrong_key_an_unknown_path_and_an_unsuitable_assistant_say_what_to_do(tmp_path: Path) -> None:
    with running_server(RULES) as server, client_of(server) as client:
        url = server.base_url
        bare = client.create_assistant(model="rules").id
        right = ["--api-key", server.api_key]
        for arguments, expected in [
            (["--base-url", url, "--api-key", "wrong"], f"HTTP 401: .*: give the key of {url} as --api-key"),
            (["--base-url", url[:-3], *right], "HTTP 404: .*: correct --base-url .* ends in /v1"),
            (
                ["--base-url", url, *right, "--assistant-id", "asst_none"],
                "HTTP 404: .*leave --assistant-id asst_none out to have one created",
            ),
            (
                ["--base-url", url, *right, "--assistant-id", bare],
                f"assistant {bare} does not know the demo's tools get_time, utc_offset, climate, calculate",
            ),
            (
                ["--base-url", url, *right, "--assistant-id", "../threads"],
                r"assistant_id cannot be part of a path: '\.\./threads': correct --assistant-id",
            ),
        ]:
            assert_refused(tmp_path, arguments, expected)


def test_a_server_that_is_not_there_and_one_that_cannot_be_say_what_to_do(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/v1"
    assert_refused(tmp_path, ["--base-url", nobody], f"{nobody} does not answer: .*`orchestrator serve`")
    assert_refused(tmp_path, ["--base-url", "https://server.example/v1"], "no key for .*see .*--api-key")


def test_a_server_that_fails_at_the_first_request_is_named(tmp_path: Path) -> None:
    with failing_server() as url:
        assert_refused(
            tmp_path, ["--base-url", url, "--api-key", "k"], f"{url}: create_assistant may or may not"
        )


@contextmanager
def failing_server() -> Iterator[str]:
    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            """Say nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def assert_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    demo = finished(tmp_path, "demo", *arguments)
    assert (demo.code, demo.out) == (1, "")
    assert re.fullmatch(f"orchestrator: {expected}.*\n", demo.err), demo.err
    assert demo.elapsed_s < 15


def test_options_of_another_server_need_its_address(tmp_path: Path) -> None:
    demo = finished(tmp_path, "demo", "--assistant-id", "asst_1", "--api-key-file", str(tmp_path / "none"))
    assert (demo.code, demo.out) == (2, "")
    assert demo.err.endswith("give its --base-url, too\n")
