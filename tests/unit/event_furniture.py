"""Events of messages and steps as a stream brings them, and what they fold into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.protocol.events import (
    MessageDelta,
    MessageDeltaEvent,
    MessageEvent,
    RunStepDelta,
    RunStepDeltaEvent,
    RunStepEvent,
)
from orchestrator.protocol.objects import Message, MessageContent, RunStep, TextContent
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.runs.result import Notice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.runs.result import StreamedEvent

RUN = "run_1"


def notice(number: int) -> Notice:
    """An event that is about no object."""
    return Notice(event="tool.started", run_id=RUN, name=str(number))


def message(id_: str = "m", status: str = "created", text: str | None = None) -> MessageEvent:
    content = [] if text is None else [MessageContent(type="text", text=TextContent(value=text))]
    return MessageEvent(
        event=f"thread.message.{status}", run_id=RUN, data=Message(id=id_, run_id=RUN, content=content)
    )


def message_delta(*parts: Any, id_: str = "m") -> MessageDeltaEvent:
    raw = msgspec.Raw(msgspec.json.encode({"content": list(parts)}))
    data = MessageDelta(id=id_, raw=raw)
    return MessageDeltaEvent(event="thread.message.delta", run_id=RUN, data=data)


def text(value: str, id_: str = "m") -> MessageDeltaEvent:
    return message_delta({"index": 0, "type": "text", "text": {"value": value}}, id_=id_)


def step(id_: str = "s", status: str = "created") -> RunStepEvent:
    data = RunStep(id=id_, run_id=RUN, type="tool_calls", status=status)
    return RunStepEvent(event=f"thread.run.step.{status}", run_id=RUN, data=data)


def step_delta(*calls: Any, id_: str = "s", **details: Any) -> RunStepDeltaEvent:
    body = {"step_details": {"type": "tool_calls", "tool_calls": list(calls), **details}}
    data = RunStepDelta(id=id_, raw=msgspec.Raw(msgspec.json.encode(body)))
    return RunStepDeltaEvent(event="thread.run.step.delta", run_id=RUN, data=data)


def arguments(value: str, id_: str = "s") -> RunStepDeltaEvent:
    return step_delta({"index": 0, "type": "function", "function": {"arguments": value}}, id_=id_)


def is_delta(event: StreamedEvent) -> bool:
    return isinstance(event, MessageDeltaEvent | RunStepDeltaEvent)


def is_gap(event: StreamedEvent) -> bool:
    return isinstance(event, Notice) and event.event == "run.gap"


def folded(events: Iterable[StreamedEvent]) -> tuple[dict[str, Message], dict[str, RunStep]]:
    """What the events build, in whatever order the objects first appear."""
    snapshots = Snapshots()
    for event in events:
        if not isinstance(event, Notice):
            snapshots.add(event)
    return snapshots.messages, snapshots.steps
