"""Every key has objects of its own: to another key they do not exist, whatever it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.server.security import Gate, namespace_of
from orchestrator.testing import running_server
from server.conftest import SCRIPT
from server.speaker import WEATHER, Speaker, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.database import Database

USER = {"role": "user", "content": "let me in"}
META = {"metadata": {"mine": "now"}}

OPERATIONS: list[tuple[str, str, Any]] = [
    ("GET", "/assistants/{assistant}", None),
    ("POST", "/assistants/{assistant}", META),
    ("DELETE", "/assistants/{assistant}", None),
    ("GET", "/threads/{thread}", None),
    ("POST", "/threads/{thread}", META),
    ("DELETE", "/threads/{thread}", None),
    ("GET", "/threads/{thread}/messages", None),
    ("GET", "/threads/{thread}/messages?run_id={run}", None),
    ("POST", "/threads/{thread}/messages", USER),
    ("GET", "/threads/{thread}/messages/{message}", None),
    ("POST", "/threads/{thread}/messages/{message}", META),
    ("DELETE", "/threads/{thread}/messages/{message}", None),
    ("GET", "/threads/{thread}/runs", None),
    ("POST", "/threads/{thread}/runs", {"assistant_id": "{own}"}),
    ("POST", "/threads/{own_thread}/runs", {"assistant_id": "{assistant}"}),
    ("POST", "/threads/runs", {"assistant_id": "{assistant}"}),
    ("GET", "/threads/{thread}/runs/{run}", None),
    ("POST", "/threads/{thread}/runs/{run}", META),
    ("POST", "/threads/{thread}/runs/{run}/cancel", None),
    ("POST", "/threads/{thread}/runs/{run}/submit_tool_outputs", outputs(("{call}", "mine"))),
    ("GET", "/threads/{thread}/runs/{run}/steps", None),
    ("GET", "/threads/{thread}/runs/{run}/steps/{step}", None),
    ("GET", "/threads/{own_thread}/messages/{message}", None),
    ("GET", "/threads/{own_thread}/runs/{run}", None),
    ("POST", "/threads/{own_thread}/runs/{run}/cancel", None),
]
"""Whatever reaches an object by its id, with the path and body that reach another's."""


def filled(template: Any, ids: dict[str, str]) -> Any:
    if isinstance(template, dict):
        return {name: filled(value, ids) for name, value in template.items()}
    if isinstance(template, list):
        return [filled(value, ids) for value in template]
    if template is None:
        return None
    for name, object_id in ids.items():
        template = template.replace(f"{{{name}}}", object_id)
    return template


class Two:
    """Two keys of one server, and a run of the first that waits for outputs."""

    def __init__(self, first: Speaker, second: Speaker) -> None:
        self.first, self.second = first, second
        path, (call,) = first.waiting("Weather in Oslo?", WEATHER)
        self.path = path
        run = first.ok("GET", path)
        (message,) = first.ok("GET", f"/threads/{run['thread_id']}/messages")["data"]
        (step,) = first.ok("GET", f"{path}/steps")["data"]
        self.theirs = {"own": second.assistant(), "own_thread": second.thread("mine")}
        self.ids = {
            "assistant": run["assistant_id"],
            "thread": run["thread_id"],
            "run": run["id"],
            "message": message["id"],
            "step": step["id"],
            "call": call,
        }

    def everything(self) -> list[JSON]:
        """All of it, as the first key sees it."""
        ids = self.ids
        paths = [f"/assistants/{ids['assistant']}", f"/threads/{ids['thread']}", self.path]
        lists = [f"/threads/{ids['thread']}/messages", f"{self.path}/steps", "/assistants"]
        return [self.first.ok("GET", path) for path in (*paths, *lists)]


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with running_server(SCRIPT, api_key="first", other_keys=["second"]) as server:
        first, second = Speaker(server), Speaker(server, authorization="Bearer second")
        with first.http, second.http:
            yield Two(first, second)


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
def test_what_is_another_s_is_answered_for_as_if_it_did_not_exist(
    two: Two, method: str, path: str, body: Any
) -> None:
    none = {name: f"{object_id.partition('_')[0]}_{'0' * 24}" for name, object_id in two.ids.items()}
    before = two.everything()

    def refusal(ids: dict[str, str]) -> JSON:
        ids = ids | two.theirs
        return two.second.refused(404, method, filled(path, ids), filled(body, ids))

    real, fake = refusal(two.ids), refusal(none)
    for name, object_id in two.ids.items():
        fake["message"] = fake["message"].replace(none[name], object_id)
    assert real == fake
    assert two.everything() == before


def test_lists_and_their_cursors_hold_nothing_of_another_s(two: Two) -> None:
    assert [found["id"] for found in two.second.ok("GET", "/assistants")["data"]] == [two.theirs["own"]]
    for parameter in ("after", "before"):
        two.second.refused(400, "GET", f"/assistants?{parameter}={two.ids['assistant']}")
    where = f"/threads/{two.theirs['own_thread']}/messages"
    two.second.refused(400, "GET", f"{where}?after={two.ids['message']}")
    assert two.second.ok("GET", f"{where}?run_id={two.ids['run']}")["data"] == []


def test_the_same_idempotency_key_makes_a_run_for_each_of_them(two: Two) -> None:
    body = {"thread": {"messages": [{"role": "user", "content": "hello"}]}}
    key = {"idempotency-key": "shared"}
    first, second, again = (
        speaker.ok("POST", "/threads/runs", {**body, "assistant_id": assistant}, headers=key)["id"]
        for speaker, assistant in [
            (two.first, two.ids["assistant"]),
            (two.second, two.theirs["own"]),
            (two.first, two.ids["assistant"]),
        ]
    )
    assert first == again != second


def test_a_key_finds_its_objects_again_when_others_come_and_go(database: Database) -> None:
    with running_server(SCRIPT, api_key="first", other_keys=["second"], db=database) as server:
        speaker = Speaker(server, authorization="Bearer second")
        with speaker.http:
            assistant = speaker.assistant()
    with running_server(SCRIPT, api_key="second", db=database) as server:
        speaker = Speaker(server)
        with speaker.http:
            assert speaker.ok("GET", f"/assistants/{assistant}")["id"] == assistant
    with running_server(SCRIPT, api_key=None, db=database) as server:
        speaker = Speaker(server)
        with speaker.http:
            assert speaker.ok("GET", "/assistants")["data"] == []


def test_no_key_is_in_the_file_and_none_can_be_looked_up_by_a_plain_hash(tmp_path: Path) -> None:
    import hashlib

    key, db = "a-key-that-nobody-shall-read", tmp_path / "runs.sqlite"
    with running_server(SCRIPT, api_key=key, db=db) as server:
        speaker = Speaker(server)
        with speaker.http:
            speaker.run("hello", metadata={"a": "b"})
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert namespace_of(key).encode() in stored
    plain = [digest(key.encode()).hexdigest() for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5)]
    assert not [text for text in (key, *plain) if text.encode() in stored]


def test_a_gate_keeps_no_key() -> None:
    gate = Gate(["a-key-that-nobody-shall-read", "another"])
    assert "nobody-shall-read" not in repr(vars(gate))
    assert len(set(gate.namespaces)) == 2
    assert Gate(["another"]).namespaces == gate.namespaces[1:]
