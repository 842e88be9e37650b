"""An `Idempotency-Key` on any create: one object, however often and however spelt it is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from server.speaker import WEATHER, Speaker

if TYPE_CHECKING:
    from server.speaker import JSON


def _creates(speaker: Speaker) -> dict[str, tuple[str, JSON, JSON]]:
    """Every create: where, with what, and with something else."""
    message = {"role": "user", "content": "hello"}
    notes = {"metadata": {"a": "1", "b": "2"}}
    asked = {"thread": {"messages": [message]}, "assistant_id": speaker.assistant()}
    thread = f"/threads/{speaker.thread()}"
    run = {
        "assistant_id": speaker.assistant(),
        "additional_messages": [message],
        "metadata": {"a": "1", "b": "2"},
    }
    return {
        "assistant": ("/assistants", {"model": "m", "tools": [WEATHER]}, {"model": "n"}),
        "thread": (
            "/threads",
            {"messages": [message], **notes},
            {"metadata": {"a": "2"}},
        ),
        "message": (
            f"{thread}/messages",
            {**message, **notes},
            {**message, "content": "bye"},
        ),
        "run": (f"{thread}/runs", run, {**run, "metadata": {"a": "2"}}),
        "thread and run": ("/threads/runs", asked, {**asked, "instructions": "be brief"}),
    }


KINDS = ["assistant", "thread", "message", "run", "thread and run"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_makes_one_object_and_stands_for_no_other_request(speaker: Speaker, kind: str) -> None:
    where, body, other = _creates(speaker)[kind]
    key = {"idempotency-key": f"once for a {kind}"}
    first = speaker.ok("POST", where, body, headers=key)
    again = speaker.ok("POST", where, body, headers=key)
    assert again["id"] == first["id"]
    error = speaker.refused(400, "POST", where, other, headers=key)
    assert error["message"] == "This Idempotency-Key was used before with another request."
    if kind == "message":
        assert len(speaker.ok("GET", where)["data"]) == 1


def _reversed(value: Any) -> Any:
    """Return the same JSON with the members of every object in the opposite order."""
    if isinstance(value, dict):
        return {name: _reversed(member) for name, member in reversed(value.items())}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_meaning_in_other_bytes_is_the_same_request(speaker: Speaker, kind: str) -> None:
    where, body, _ = _creates(speaker)[kind]
    headers = {"idempotency-key": f"twice for a {kind}", "content-type": "application/json"}
    first = speaker.ok("POST", where, content=json.dumps(body), headers=headers)
    respelt = {"metadata": None, **_reversed(body)}
    again = speaker.ok("POST", where, content=json.dumps(respelt, indent=4), headers=headers)
    assert again["id"] == first["id"]


def test_a_repeated_run_may_be_followed_another_way(speaker: Speaker) -> None:
    where, body, _ = _creates(speaker)["thread and run"]
    key = {"idempotency-key": "streamed, then polled"}
    events = speaker.stream(where, body, **key)
    run = speaker.ok("POST", where, {**body, "stream": False}, headers=key)
    assert run == events[-2][1]


def test_a_key_does_not_bring_back_what_was_deleted(speaker: Speaker) -> None:
    key = {"idempotency-key": "gone"}
    made = speaker.ok("POST", "/assistants", {"model": "m"}, headers=key)
    speaker.ok("DELETE", f"/assistants/{made['id']}")
    speaker.refused(404, "POST", "/assistants", {"model": "m"}, headers=key)


def test_a_key_on_another_path_is_another_request(speaker: Speaker) -> None:
    key: Any = {"idempotency-key": "two threads"}
    message = {"role": "user", "content": "hello"}
    speaker.ok("POST", f"/threads/{speaker.thread()}/messages", message, headers=key)
    speaker.refused(400, "POST", f"/threads/{speaker.thread()}/messages", message, headers=key)


def test_a_request_that_was_refused_leaves_its_key_free(speaker: Speaker) -> None:
    where, body, _ = _creates(speaker)["run"]
    key = {"idempotency-key": "refused first"}
    speaker.refused(404, "POST", where, {**body, "assistant_id": "asst_X"}, headers=key)
    speaker.ok("POST", where, body, headers=key)
