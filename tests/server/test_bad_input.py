"""Bad input by the thousand: each is refused with a 4xx in the envelope, and leaves no trace in the store.

Bodies are bad by the specification's own schemas; ids and cursors are random; headers are wrong one by one.
The store's file is compared row by row. That every answer has the envelope is `conftest`'s business.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from orchestrator.server.schema import TABLES
from orchestrator.testing import running_server
from server.conformance import body_schema, fits
from server.conftest import SCRIPT
from server.speaker import WEATHER, Speaker, call_ids, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = 3000 if os.environ.get("ORCHESTRATOR_LONG") else 60
thoroughly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS | st.sampled_from([[], {}, -1, 0, 256, 10**30, "", "function", "auto", "file_search", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
JSON_BODY = {"content-type": "application/json"}
FUNCTION: Any = {"type": "function", "function": {"name": "f"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the store holds: a run that waits on a thread, and one that is over on another."""

    assistant: str
    waiting: str
    call: str
    over: str

    @property
    def bodies(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Every operation that takes a body: its path, its template, and a body that it takes."""
        locked, free = (path.split("/runs")[0] for path in (self.waiting, self.over))
        message = {"role": "user", "content": [{"type": "text", "text": "x"}], "metadata": {}}
        run = {
            "assistant_id": self.assistant,
            "additional_messages": [message],
            "tools": [FUNCTION],
            "truncation_strategy": {"type": "last_messages", "last_messages": 1},
            "tool_choice": FUNCTION,
            "response_format": {"type": "json_object"},
        }
        one = "/threads/{thread_id}"
        return [
            ("/assistants", "/assistants", {"model": "m", "tools": [FUNCTION]}),
            (f"/assistants/{self.assistant}", "/assistants/{assistant_id}", {"name": "n"}),
            ("/threads", "/threads", {"messages": [message], "metadata": {"a": "b"}}),
            (free, one, {"metadata": {"a": "b"}}),
            (f"{free}/messages", f"{one}/messages", message),
            (f"{free}/runs", f"{one}/runs", run),
            ("/threads/runs", "/threads/runs", {"assistant_id": self.assistant, "thread": {"messages": []}}),
            (self.over, f"{one}/runs/{{run_id}}", {"metadata": {"a": "b"}}),
            (
                f"{self.waiting}/submit_tool_outputs",
                f"{one}/runs/{{run_id}}/submit_tool_outputs",
                {"tool_outputs": [{"tool_call_id": self.call, "output": ""}], "stream": False},
            ),
            (f"{locked}/messages", f"{one}/messages", message),
        ]

    @property
    def lists(self) -> list[str]:
        thread = self.over.split("/runs")[0]
        return ["/assistants", f"{thread}/messages", f"{thread}/runs", f"{self.over}/steps"]


@contextmanager
def _speaking(db: Path) -> Iterator[Speaker]:
    with running_server(SCRIPT, db=db) as server:
        speaker = Speaker(server)
        with speaker.http:
            yield speaker


def _rows(db: Path) -> list[Any]:
    """Everything that clients have put there."""
    connection = sqlite3.connect(db)
    try:
        return [sorted(connection.execute(f"SELECT * FROM {table}")) for table in (*TABLES, "idempotency")]
    finally:
        connection.close()


@pytest.fixture
def besieged(tmp_path: Path) -> Iterator[tuple[Speaker, World]]:
    """A server whose store must be as it was in the end, with a run that can still be carried on."""
    db = tmp_path / "besieged.sqlite"
    with _speaking(db) as speaker:
        waiting, (call,) = speaker.waiting("Weather in Oslo?", WEATHER)
        over = speaker.run("hello")
        speaker.until(over, "completed")
        assistant = speaker.assistant()
    world = World(assistant=assistant, waiting=waiting, call=call, over=over)
    before = _rows(db)
    with _speaking(db) as speaker:
        yield speaker, world
    assert _rows(db) == before
    with _speaking(db) as speaker:
        run = speaker.ok("GET", world.waiting)
        assert call_ids(run) == [world.call]
        speaker.ok("POST", f"{waiting}/submit_tool_outputs", outputs((call, '{"celsius": 5}')))
        assert speaker.until(waiting, "completed")
        assert (
            speaker.send("POST", over.split("/runs")[0] + "/runs", {"assistant_id": assistant}).status_code
            == 200
        )


def test_a_body_that_the_specification_does_not_allow_is_refused(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    operations = st.sampled_from(world.bodies)

    @thoroughly
    @given(operations, st.data())
    def prove(operation: tuple[str, str, dict[str, Any]], data: st.DataObject) -> None:
        path, template, valid = operation
        schema = body_schema(template)
        names = st.sampled_from(sorted(schema["properties"])) | TEXT
        body = data.draw(
            st.one_of(
                VALUES.filter(lambda value: not isinstance(value, dict)),
                st.dictionaries(names, VALUES, max_size=4),
                st.builds(lambda name, value: {**valid, name: value}, names, VALUES),
            )
        )
        assume(not fits(body, schema))
        response = speaker.send("POST", path, content=json.dumps(body), headers=JSON_BODY)
        assert 400 <= response.status_code < 500, (response.status_code, response.text)

    prove()


def test_bytes_that_are_no_json_object_are_refused(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    paths = [path for path, _, _ in world.bodies]

    @thoroughly
    @given(st.sampled_from(paths), st.binary(min_size=1, max_size=40))
    def prove(path: str, body: bytes) -> None:
        assume(not body.lstrip().startswith(b"{"))
        response = speaker.send("POST", path, content=body, headers=JSON_BODY)
        assert response.status_code == 400, response.text

    prove()


def test_an_id_of_nothing_is_not_found(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    thread = world.over.split("/runs")[0]
    places = [
        ("GET", "/assistants/{}"),
        ("DELETE", "/assistants/{}"),
        ("POST", "/assistants/{}"),
        ("GET", "/threads/{}"),
        ("DELETE", "/threads/{}"),
        ("POST", "/threads/{}"),
        ("GET", "/threads/{}/messages"),
        ("GET", "/threads/{}/runs"),
        ("GET", thread + "/messages/{}"),
        ("DELETE", thread + "/messages/{}"),
        ("POST", thread + "/messages/{}"),
        ("GET", thread + "/runs/{}"),
        ("POST", thread + "/runs/{}"),
        ("POST", thread + "/runs/{}/cancel"),
        ("GET", thread + "/runs/{}/steps"),
        ("GET", world.over + "/steps/{}"),
    ]
    ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)

    @thoroughly
    @given(st.sampled_from(places), ids)
    def prove(place: tuple[str, str], object_id: str) -> None:
        assume(object_id not in (".", "..") and "/" not in object_id)
        method, path = place
        response = speaker.http.request(method, path.format(quote(object_id, safe="")))
        assert response.status_code == (400 if "\0" in object_id else 404), response.text

    prove()


def test_a_query_that_no_list_can_answer_is_refused(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    strangers = TEXT | st.sampled_from([world.assistant[:-1], world.waiting])
    wrong = st.one_of(
        st.tuples(st.just("limit"), TEXT | st.integers().map(str)),
        st.tuples(st.just("order"), TEXT),
        st.tuples(st.sampled_from(["after", "before"]), strangers),
        st.tuples(st.just("include[]"), TEXT),
    )

    @thoroughly
    @given(st.sampled_from(world.lists), wrong)
    def prove(path: str, query: tuple[str, str]) -> None:
        name, value = query
        assume(not (name == "limit" and value.isascii() and value.isdecimal() and 1 <= int(value) <= 100))
        assume(value not in ("asc", "desc"))
        assume(name != "include[]" or path.endswith("steps"))
        response = speaker.send("GET", path, params={name: value})
        assert response.status_code == 400, response.text
        assert "\0" in value or response.json()["error"]["param"] == name

    prove()


def test_a_header_that_is_wrong_is_refused(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    token = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)

    @thoroughly
    @given(st.sampled_from(["content-type", "openai-beta", "authorization", "api-key"]), token)
    def prove(name: str, value: str) -> None:
        assume(value.partition(";")[0].lower() != "application/json")
        assume("assistants=v2" not in value.split(","))
        headers = {name: value}
        if name == "api-key":
            headers["authorization"] = ""
        elif name == "authorization":
            headers = {name: f"Bearer {value}"}
        assume(value != speaker.server.api_key)
        for path, _, body in world.bodies:
            content = json.dumps(body)
            response = speaker.send("POST", path, content=content, headers={**JSON_BODY, **headers})
            expected = {"content-type": 415, "openai-beta": 400}.get(name, 401)
            assert response.status_code == expected, response.text

    prove()


def test_outputs_for_other_calls_are_refused(besieged: tuple[Speaker, World]) -> None:
    speaker, world = besieged
    ids = st.sampled_from([world.call, world.call.upper(), "call_x", ""]) | TEXT

    @thoroughly
    @given(st.lists(ids, max_size=3))
    def prove(call_ids: list[str]) -> None:
        assume(call_ids != [world.call])
        response = speaker.send(
            "POST", f"{world.waiting}/submit_tool_outputs", outputs(*((one, "x") for one in call_ids))
        )
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("Expected tool outputs for call_ids")

    prove()
