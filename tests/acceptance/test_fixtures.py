"""The server as a fixture, in the tests of somebody else's program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from processes import finished

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
rules:
  - match: '^hello'
    steps: [{say: 'hello to you'}]
"""

TESTS = """
from pathlib import Path

import pytest

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.errors import APIConnectionError

seen = []


def said(server, message):
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules")
    with Orchestrator(base_url=server.base_url, api_key=server.api_key) as orchestrator:
        return orchestrator.start(assistant.id, messages=message).result(timeout=30).text


@pytest.mark.threads_server(Path("rules.yaml"), api_key="sk-mine")
def test_a_script_beside_the_test(threads_server):
    seen.append(threads_server.base_url)
    assert threads_server.api_key == "sk-mine"
    assert said(threads_server, "hello") == "hello to you"


@pytest.mark.threads_server([{"match": "^hi", "steps": [{"say": "hi to you"}]}])
def test_rules_in_the_test(threads_server):
    assert said(threads_server, "hi") == "hi to you"


def test_every_test_has_its_own_and_the_last_one_has_stopped(threads_server):
    assert threads_server.base_url not in seen
    with ThreadsClient(base_url=seen[0], api_key="k") as client, pytest.raises(APIConnectionError):
        client.get_thread("thread_1", retry=None, timeout=2.0)
"""


def test_a_program_s_tests_get_a_server_each(tmp_path: Path) -> None:
    inner = tmp_path / "suite"
    inner.mkdir()
    (inner / "conftest.py").write_text('pytest_plugins = ["orchestrator.fixtures"]\n')
    (inner / "rules.yaml").write_text(RULES)
    (inner / "test_mine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(inner)]
    suite = finished(tmp_path, command=command)
    assert suite.code == 0, suite
    assert "3 passed" in suite.out
