"""`orchestrator serve` as a process: its first line, its signals, its refusals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from orchestrator.server.schema import SCHEMA_VERSION
from server.postgresql import USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.server.database import Database
    from server.postgresql import PostgreSQL

BETA = {"openai-beta": "assistants=v2"}


def _command(**options: Any) -> list[str]:
    code = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.server.serve import run\n"
        f"sys.exit(run(**{options!r}))".replace("PosixPath(", "Path(")
    )
    return [sys.executable, "-c", code]


@contextmanager
def _serving(**options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = _command(port=0, **options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+/v1)\n", line)
            assert found, (line, process.stderr and process.stderr.read())
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_even_with_a_stream_open(number: int, tmp_path: Path) -> None:
    script = tmp_path / "rules.yaml"
    script.write_text("rules: [{match: x, steps: [{say: hi}, {think_s: 600}]}]")
    with _serving(script=script, db=tmp_path / "kept.sqlite", api_keys=["secret-key"]) as (process, url):
        client = httpx.Client(base_url=url, headers={**BETA, "api-key": "secret-key"}, trust_env=False)
        with client:
            assistant_id = client.post("/assistants", json={"model": "m"}).json()["id"]
            thread = {"messages": [{"role": "user", "content": "x"}]}
            body = {"assistant_id": assistant_id, "thread": thread, "stream": True}
            with client.stream("POST", "/threads/runs", json=body) as response:
                lines = response.iter_lines()
                assert any("thread.message.delta" in line for line in lines)
                process.send_signal(number)
                assert "event: error" in list(lines)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "server.request" in errors
    assert "Traceback" not in errors
    assert "secret-key" not in errors
    assert assistant_id not in errors
    assert not list(tmp_path.glob("kept.sqlite-*")), "the write-ahead log was not folded back"


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_a_stop_does_not_wait_for_a_request_that_never_ends_and_is_no_error(numbers: list[int]) -> None:
    with _serving() as (process, url):
        port = int(url.split(":")[2].partition("/")[0])
        head = "POST /v1/threads HTTP/1.1\r\nhost: 127.0.0.1\r\nopenai-beta: assistants=v2\r\n"
        head += "content-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100 "), "it waits for the body now"
            for number in numbers:
                process.send_signal(number)
            _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_what_it_was_told_is_there_after_a_kill(database: Database) -> None:
    with _serving(db=database) as (process, url):
        thread_id = httpx.post(f"{url}/threads", headers=BETA, json={}, trust_env=False).json()["id"]
        process.kill()
        process.wait()
    with _serving(db=database) as (_, url):
        answer = httpx.get(f"{url}/threads/{thread_id}", headers=BETA, trust_env=False)
        assert answer.json()["id"] == thread_id


def test_a_database_server_that_does_not_let_it_in_is_one_clear_line_without_the_password(
    postgresql: PostgreSQL,
) -> None:
    url = postgresql.url
    said = _refused(db=url.replace(postgresql.password, "not-the-password"))
    assert "password authentication failed" in said
    assert "not-the-password" not in said
    said = _refused(db=url.replace(str(postgresql.port), "1"))
    assert f"{USER}:***@127.0.0.1:1/postgres: " in said
    assert postgresql.password not in said
    said = _refused(db=url.replace("+psycopg", "+other"))
    assert "must begin with postgresql+psycopg://" in said


def test_a_failing_driver_says_which_extra_to_install(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError")
    done = subprocess.run(
        _command(port=0, db="postgresql+psycopg://localhost/x"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'run-orchestrator[server,postgres]'" in done.stderr


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    db = tmp_path / "runs?mode=ro#50%25 é.sqlite"
    with _serving(db=db) as (process, _):
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert list(tmp_path.iterdir()) == [db]
    assert db.stat().st_size > 0
    assert db.stat().st_mode & 0o777 == 0o600


def _refused(**options: Any) -> str:
    done = subprocess.run(
        _command(**{"port": 0, **options}), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("orchestrator serve: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in _refused(port=port)


def test_a_host_that_others_can_reach_needs_a_key() -> None:
    assert "refusing to listen on 0.0.0.0 without an API key" in _refused(host="0.0.0.0")


def test_a_host_that_cannot_be_a_name_is_one_clear_line() -> None:
    assert "label" in _refused(host="a" * 300, api_keys=["k"])


def test_an_unreadable_script_is_one_clear_line(tmp_path: Path) -> None:
    assert "cannot read the script" in _refused(script=tmp_path / "none.yaml")
    script = tmp_path / "odd.yaml"
    script.write_text("rules: [{match: x, steps: [{sing: y}]}]")
    assert "odd.yaml: rule 1: Object contains unknown field `sing`" in _refused(script=script)


def test_a_database_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    assert "cannot use the database" in _refused(db=tmp_path / "none" / "a.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, only some text that is long enough to be looked at" * 20)
    assert "file is not a database" in _refused(db=text)
    newer = tmp_path / "newer.sqlite"
    with _serving(db=newer) as (process, _):
        process.terminate()
        process.wait(timeout=10)
    import sqlite3

    connection = sqlite3.connect(newer)
    connection.execute("UPDATE schema_version SET version_num = '0099'")
    connection.commit()
    connection.close()
    said = _refused(db=newer)
    assert f"its schema has version 0099, this program knows versions up to {SCHEMA_VERSION}" in said
    assert "upgrade the program" in said


def test_a_database_belongs_to_one_server(database: Database) -> None:
    with _serving(db=database):
        assert "another server holds it" in _refused(db=database)
