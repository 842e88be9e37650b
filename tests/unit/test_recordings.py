"""What servers sent in 2023 and 2024 still decodes: fields missing, extra, unknown, null and of odd types.

The documents in `tests/recordings` are written by hand after what is known of these years: version 1 with its
`file_ids` and its retrieval tool, streams with null instructions, servers with float times and plain ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.events import (
    DoneEvent,
    RunEvent,
    RunStepDeltaEvent,
    RunStepEvent,
    decode_event,
)
from orchestrator.protocol.objects import Assistant, Deleted, Message, Page, Run, RunStep, Thread
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.protocol.sse import SSEDecoder

RECORDINGS = Path(__file__).parent.parent / "recordings"
READ_AS: dict[str, Any] = {
    "assistant": Assistant,
    "thread": Thread,
    "message": Message,
    "run": Run,
    "step": RunStep,
    "list": Page[Run],
    "deleted": Deleted,
}
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.json"))


def document(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


def recorded(name: str) -> Any:
    kind = READ_AS[name.partition("_")[0]]
    return Decoder(kind).decode((RECORDINGS / f"{name}.json").read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_read_and_what_is_modelled_survives(name: str) -> None:
    value, before = recorded(name), document(name)
    after = json.loads(msgspec.json.encode(value))
    for field, one in before.items():
        if field in after and isinstance(one, str | int | float | bool):
            assert after[field] == one
    assert Decoder(READ_AS[name.partition("_")[0]]).decode(msgspec.json.encode(value)) == value


@pytest.mark.parametrize("name", NAMES)
def test_any_field_but_what_names_the_object_may_be_missing_or_unknown(name: str) -> None:
    whole = document(name)
    decode = Decoder(READ_AS[name.partition("_")[0]]).decode
    for field in whole.keys() - {"id", "data"}:
        decode(json.dumps({one: value for one, value in whole.items() if one != field}).encode())
        decode(json.dumps({**whole, field: None}).encode())
    novel = {"novel": {"deep": [1, None]}, "": 0}
    assert decode(json.dumps({**whole, **novel}).encode()) == recorded(name)


def test_version_1_is_read_without_what_it_did_not_have() -> None:
    run: Run = recorded("run_v1")
    assert (run.status, run.is_terminal, run.usage, run.tool_choice) == ("queued", False, None, None)
    assert run.required_calls == ()
    assert recorded("thread_v1") == Thread(id="thread_v1", created_at=1699900001, metadata={})
    assistant: Assistant = recorded("assistant_v1")
    assert [tool["type"] for tool in assistant.tools] == ["retrieval", "code_interpreter", "function"]
    message: Message = recorded("message_v1")
    assert message.text.startswith("It rains")
    assert message.content[0].text is not None
    assert message.content[0].text.annotations[0]["file_citation"]["quote"] == "rain in April"
    assert (message.status, message.attachments) == (None, None)
    step: RunStep = recorded("step_v1")
    assert step.step_details is not None
    assert [call["type"] for call in step.step_details.tool_calls or ()] == [
        "retrieval", "code_interpreter", "function",
    ]  # fmt: skip


def test_required_calls_of_version_1_keep_arguments_that_are_no_json() -> None:
    calls = recorded("run_requires_action_v1").required_calls
    assert [call.id for call in calls] == ["call_a", "call_b"]
    assert calls[1].function.arguments == '{"city": '


def test_2024_is_read_with_what_nobody_knew_then() -> None:
    run: Run = recorded("run_2024")
    assert run.is_terminal
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_completion_tokens"
    assert run.usage is not None
    assert (run.usage.total_tokens, run.expires_at, run.instructions) == (356, None, None)
    message: Message = recorded("message_2024")
    assert [part.type for part in message.content] == ["text", "image_url", "input_audio"]
    assert message.metadata == {"rank": "3", "draft": "false"}
    step: RunStep = recorded("step_2024")
    assert step.last_error is not None
    assert (step.last_error.code, step.usage, step.metadata) == ("rate_limit_exceeded", None, None)


def test_a_self_hosted_server_s_floats_and_nulls_are_read() -> None:
    run: Run = recorded("run_self_hosted")
    assert (run.created_at, run.started_at) == (1712345678.901234, 1712345679.25)
    assert (run.tools, run.metadata, run.usage, run.max_prompt_tokens) == ([], None, None, 4096)


def test_lists_may_lack_everything_but_their_data() -> None:
    first: Page[Run] = recorded("list_v1")
    assert [(run.id, run.status, run.is_terminal) for run in first.data] == [
        ("run_v1", "completed", True),
        ("run_v0", "vanished", False),
    ]
    assert (first.last_id, first.has_more) == ("run_v0", True)
    assert recorded("list_bare") == Page(data=[])
    assert recorded("deleted_v1") == Deleted(id="thread_v1", object="thread.deleted")


@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_a_stream_of_2024_is_read(size: int) -> None:
    recording = (RECORDINGS / "stream_2024.txt").read_bytes()
    decoder, snapshots = SSEDecoder(), Snapshots()
    events = []
    for at in range(0, len(recording), size):
        for sent in decoder.feed(recording[at : at + size]):
            events.append(decode_event(sent.event, sent.data))
            snapshots.add(events[-1])
    kinds = [RunEvent, RunStepEvent, *[RunStepDeltaEvent] * 3, RunEvent, RunEvent, DoneEvent]
    assert [type(one) for one in events] == kinds
    assert [one.event for one in events][5:] == ["thread.run.requires_action", "thread.run.vibing", "done"]
    details = snapshots.steps["step_1"].step_details
    asked = events[5]
    assert isinstance(asked, RunEvent)
    assert details is not None
    assert (details.tool_calls or [])[0]["function"]["arguments"] == asked.data.required_calls[
        0
    ].function.arguments
