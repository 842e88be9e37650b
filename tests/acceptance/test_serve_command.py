"""`orchestrator serve` through the command line; `tests/server/` knows the server itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from processes import RULES, finished, serving

if TYPE_CHECKING:
    from pathlib import Path

    from server.postgresql import PostgreSQL

KEY = "a-key-of-this-test"
BETA = {"openai-beta": "assistants=v2"}


def status(url: str, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{url}/assistants", headers={**BETA, **named}, trust_env=False).status_code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_it_says_where_it_listens_and_a_signal_ends_it(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name, signal.SIGTERM)
    with serving(tmp_path, "--script", str(RULES), env={"TMPDIR": str(tmp_path)}) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*/v1", url)
        assert status(url) == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
    assert not list(tmp_path.glob("orchestrator-*"))


def test_a_key_from_a_file_or_the_environment_is_wanted_and_stays_out_of_ps(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    for options, env in [(["--api-key-file", str(file)], {}), ([], {"ORCHESTRATOR_API_KEY": f"{KEY}\n"})]:
        with serving(tmp_path, *options, env=env) as (process, url):
            assert status(url) == status(url, authorization="Bearer another") == 401
            assert status(url, authorization=f"Bearer {KEY}") == 200
            assert KEY not in " ".join(psutil.Process(process.pid).cmdline())


def test_keys_of_options_stand_together_and_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("third\nfourth\n")
    options = ["--api-key", "first", "--api-key", "second", "--api-key-file", str(file)]
    with serving(tmp_path, *options, env={"ORCHESTRATOR_API_KEY": KEY}) as (_, url):
        assert {status(url, api_key=key) for key in ("first", "second", "third", "fourth")} == {200}
        assert status(url, api_key=KEY) == 401


def test_the_database_is_a_file_or_a_url_and_may_come_from_the_environment(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    file = tmp_path / "kept.sqlite"
    with serving(tmp_path, "--db", str(file)) as (_, url):
        assert status(url) == 200
        assert file.exists()
    with serving(tmp_path, env={"ORCHESTRATOR_DB": postgresql.schema()}) as (process, url):
        assert status(url) == 200
        assert postgresql.password not in " ".join(psutil.Process(process.pid).cmdline())


def test_without_a_key_only_local_programs_are_served(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url):
        assert status(url, host="localhost") == status(url, origin="http://localhost:3000") == 200
        assert status(url, host="rebound.example") == status(url, origin="https://page.example") == 403


def test_what_it_cannot_do_is_one_line_and_code_2(tmp_path: Path) -> None:
    script, empty = tmp_path / "odd.yaml", tmp_path / "empty"
    script.write_text("rules: [{match: '(', steps: []}]")
    empty.write_text("\n")
    for arguments, expected in [
        (["--script", str(script)], r"odd\.yaml"),
        (["--host", "0.0.0.0"], "without an API key"),
        (["--api-key-file", str(tmp_path / "none")], "cannot read .*: No such file"),
        (["--api-key-file", str(empty)], "holds no API key"),
    ]:
        refused = finished(tmp_path, "serve", "--port", "0", *arguments)
        assert (refused.code, refused.out) == (2, "")
        assert re.fullmatch(f"orchestrator.*: .*{expected}.*\n", refused.err), refused.err


def test_it_serves_on_when_nobody_reads_where_it_listens(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "serve", "--port", str(port)],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            assert status(f"http://127.0.0.1:{port}/v1") == 200
            break
        except httpx.ConnectError:  # not yet
            assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Error" not in err
