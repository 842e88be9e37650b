"""What a restart of the server does to runs, on both databases: each of them goes on, or comes to an end."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.server.security import namespace_of
from orchestrator.server.store import Store
from orchestrator.testing import running_server
from server.conftest import SCRIPT
from server.speaker import TIME, WEATHER, Speaker, call_ids, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.server.database import Database

QUICK: list[dict[str, Any]] = [{"match": "think", "steps": [{"say": "thought"}]}]
"""Other rules than before the restart: what is said by them was said after it."""

THINKING_AGAIN = r"""
rules:
  - match: rounds
    steps:
      - call: {tool: get_time, arguments: {zone: utc}}
      - think_s: 600
"""


@contextmanager
def speaking(database: Database, script: Any = SCRIPT, **options: Any) -> Iterator[Speaker]:
    with running_server(script, db=database, **options) as server:
        speaker = Speaker(server)
        with speaker.http:
            yield speaker


def alter(database: Database, run_id: str, **fields: Any) -> None:
    """Change a stored run while no server runs."""

    async def story() -> None:
        store = Store(database)
        store.open()
        try:
            shelf = store.within(namespace_of("test-key"))
            run = await shelf.get("runs", run_id)
            assert run is not None
            shelf.save("runs", run | fields)
            await shelf.settle()
        finally:
            store.close()

    asyncio.run(story())


def run_id_of(path: str) -> str:
    return path.rpartition("/")[2]


def test_a_waiting_run_goes_on(database: Database) -> None:
    with speaking(database) as speaker:
        path, (time_call,) = speaker.waiting("rounds", WEATHER, TIME)
        run = speaker.ok("GET", path)
    with speaking(database) as speaker:
        assert speaker.ok("GET", path) == run
        thread = path.split("/runs", maxsplit=1)[0]
        speaker.refused(400, "POST", f"{thread}/messages", {"role": "user", "content": "locked still"})
        events = speaker.stream(f"{path}/submit_tool_outputs", outputs((time_call, '{"hour": 9}')))
        (weather_call,) = call_ids(events[-2][1])
    with speaking(database) as speaker:
        events = speaker.stream(f"{path}/submit_tool_outputs", outputs((weather_call, "sunny")))
        assert events[-4][1]["content"][0]["text"]["value"] == "At 9 it is sunny."
        steps = speaker.ok("GET", f"{path}/steps")["data"]
        assert sum(step["usage"]["total_tokens"] for step in steps) == events[-2][1]["usage"]["total_tokens"]


def test_the_time_of_a_waiting_run_counts_from_its_creation(database: Database) -> None:
    with speaking(database, run_ttl_s=2) as speaker:
        path, _ = speaker.waiting("Weather in Oslo?", WEATHER)
    with speaking(database, run_ttl_s=600) as speaker:
        speaker.until(path, "expired")


@pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action"])
def test_a_run_whose_time_passed_meanwhile_expires(database: Database, status: str) -> None:
    with speaking(database) as speaker:
        path, _ = speaker.waiting("Weather in Oslo?", WEATHER)
    alter(database, run_id_of(path), status=status, expires_at=1)
    with speaking(database) as speaker:
        assert speaker.ok("GET", path)["status"] == "expired"


def test_a_run_cut_off_before_its_model_said_anything_is_asked_again(database: Database) -> None:
    with speaking(database) as speaker:
        path = speaker.run("think")
        before = speaker.until(path, "in_progress")
    with speaking(database, QUICK) as speaker:
        run = speaker.until(path, "completed")
        assert run["started_at"] == before["started_at"]
        (message, _) = speaker.ok("GET", f"{path.split('/runs', maxsplit=1)[0]}/messages")["data"]
        assert message["content"][0]["text"]["value"] == "thought"


def test_outputs_that_were_accepted_are_used_and_not_asked_for_again(database: Database) -> None:
    with speaking(database, THINKING_AGAIN) as speaker:
        path, (call,) = speaker.waiting("rounds", TIME)
        speaker.ok("POST", f"{path}/submit_tool_outputs", outputs((call, '{"hour": 9}')))
        speaker.until(path, "in_progress")
    with speaking(
        database, THINKING_AGAIN.replace("think_s: 600", "say: 'it is {get_time.hour}'")
    ) as speaker:
        speaker.until(path, "completed")
        said = speaker.ok("GET", f"{path.split('/runs', maxsplit=1)[0]}/messages")["data"][0]
        assert said["content"][0]["text"]["value"] == "it is 9"
        steps = speaker.ok("GET", f"{path}/steps", None)["data"]
        assert [step["type"] for step in steps] == ["message_creation", "tool_calls"]
        assert steps[1]["step_details"]["tool_calls"][0]["id"] == call


def test_a_run_cut_off_in_the_middle_of_a_message_fails_and_frees_its_thread(database: Database) -> None:
    with speaking(database) as speaker:
        thread_id = speaker.thread("slow")
        body = {"assistant_id": speaker.assistant()}
        with speaker.streaming(f"/threads/{thread_id}/runs", body) as stream:
            run_id = next(data["run_id"] for name, data in stream if name == "thread.message.created")
    path = f"/threads/{thread_id}/runs/{run_id}"
    with speaking(database) as speaker:
        run = speaker.ok("GET", path)
        assert (run["status"], run["last_error"]["code"]) == ("failed", "server_error")
        newest = speaker.ok("GET", f"/threads/{thread_id}/messages")["data"][0]
        assert (newest["status"], newest["incomplete_details"]) == ("incomplete", {"reason": "run_failed"})
        assert speaker.ok("GET", f"{path}/steps")["data"][0]["status"] == "failed"
        speaker.ok("POST", f"/threads/{thread_id}/messages", {"role": "user", "content": "free"})


def test_a_run_that_was_being_cancelled_is_cancelled(database: Database) -> None:
    with speaking(database) as speaker:
        path, _ = speaker.waiting("Weather in Oslo?", WEATHER)
    alter(database, run_id_of(path), status="cancelling", required_action=None, expires_at=1)
    with speaking(database) as speaker:
        run = speaker.ok("GET", path)
        assert (run["status"], run["required_action"]) == ("cancelled", None)
        assert run["cancelled_at"] is not None
        assert speaker.ok("GET", f"{path}/steps")["data"][0]["status"] == "cancelled"


def test_an_idempotency_key_is_remembered(database: Database) -> None:
    with speaking(database) as speaker:
        where, body = f"/threads/{speaker.thread('hello')}/runs", {"assistant_id": speaker.assistant()}
        first = speaker.ok("POST", where, body, headers={"idempotency-key": "k"})
    with speaking(database) as speaker:
        again = speaker.ok("POST", where, body, headers={"idempotency-key": "k"})
        assert again["id"] == first["id"]


def test_a_run_whose_key_is_accepted_no_more_comes_to_an_end_all_the_same(database: Database) -> None:
    with speaking(database, api_key="old") as speaker:
        path = speaker.run("think")
        speaker.until(path, "in_progress")
    with speaking(database, QUICK, api_key="new") as speaker:
        speaker.refused(404, "GET", path)
        # What is asked after it was taken up is over after it.
        speaker.until(speaker.run("think"), "completed")
    with speaking(database, api_key="old") as speaker:
        assert speaker.ok("GET", path)["status"] == "completed"
