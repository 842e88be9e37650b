"""What a run's deltas build up: the messages and steps as they are so far.

Owns how deltas are folded into the objects they belong to. Most of them never are: an event that shows the
object as a whole comes before anybody asks, so that deltas wait until then. Knows no stream and no reader.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from orchestrator.protocol.events import (
    MessageDelta,
    MessageDeltaEvent,
    MessageEvent,
    RunStepDelta,
    RunStepDeltaEvent,
    RunStepEvent,
    StreamEvent,
)
from orchestrator.protocol.fragments import DeltaEvent, joined
from orchestrator.protocol.objects import JSON, Message, MessageContent, RunStep, StepDetails, TextContent

__all__ = ["Snapshots"]

_MOST_WAITING: Final = 1000
"""So many deltas wait to be folded; with one more, all are."""


class Snapshots:
    """Folds events into the messages and steps they describe.

    After a stream that was complete, `messages` and `steps` equal what a GET then returns; a full object
    replaces whatever its deltas built up. Insertion order is the order of first appearance. Not
    thread-safe; never raises on a delta that does not fit, it is ignored.
    """

    __slots__ = ("_count", "_message_deltas", "_messages", "_step_deltas", "_steps")

    def __init__(self) -> None:
        self._messages: dict[str, Message] = {}
        self._steps: dict[str, RunStep] = {}
        self._message_deltas: dict[str, list[DeltaEvent]] = {}
        self._step_deltas: dict[str, list[DeltaEvent]] = {}
        self._count = 0

    @property
    def messages(self) -> dict[str, Message]:
        """Messages by id."""
        self._fold()
        return self._messages

    @property
    def steps(self) -> dict[str, RunStep]:
        """Run steps by id."""
        self._fold()
        return self._steps

    def begin_with(self, messages: dict[str, Message], steps: dict[str, RunStep]) -> None:
        """Take these for all that is known so far."""
        self._message_deltas.clear()
        self._step_deltas.clear()
        self._count = 0
        self._messages, self._steps = messages, steps

    def add(self, event: StreamEvent) -> None:
        """Fold in one event; events of other kinds change nothing."""
        if isinstance(event, MessageDeltaEvent):
            if event.data.id in self._messages:
                self._let_wait(self._message_deltas, event)
        elif isinstance(event, RunStepDeltaEvent):
            if event.data.id in self._steps:
                self._let_wait(self._step_deltas, event)
        elif isinstance(event, MessageEvent):
            self._message_deltas.pop(event.data.id, None)
            self._messages[event.data.id] = event.data
        elif isinstance(event, RunStepEvent):
            self._step_deltas.pop(event.data.id, None)
            self._steps[event.data.id] = event.data

    def _let_wait(self, waiting: dict[str, list[DeltaEvent]], delta: DeltaEvent) -> None:
        waiting.setdefault(delta.data.id, []).append(delta)
        self._count += 1
        if self._count > _MOST_WAITING:
            self._fold()

    def _fold(self) -> None:
        if not self._count:
            return
        self._count = 0
        for waiting in (self._message_deltas, self._step_deltas):
            for deltas in waiting.values():
                for delta in joined(deltas):
                    # Plain JSON of any shape and depth: each is folded in as a whole or not at all.
                    with suppress(AttributeError, TypeError, ValueError, RecursionError):
                        self._add_delta(delta)
            waiting.clear()

    def _add_delta(self, delta: DeltaEvent) -> None:
        if isinstance(delta, MessageDeltaEvent):
            self._add_message_delta(delta.data)
        else:
            self._add_step_delta(delta.data)

    def _add_message_delta(self, delta: MessageDelta) -> None:
        message = self._messages.get(delta.id)
        if message is None:
            return
        content = list(message.content)
        for fragment in delta.delta.content or ():
            index = fragment.get("index", 0)
            if not isinstance(index, int) or not 0 <= index <= len(content):
                continue
            if index == len(content):
                content.append(_content_part(fragment))
            else:
                content[index] = _extended(content[index], fragment)
        self._messages[delta.id] = msgspec.structs.replace(message, content=content)

    def _add_step_delta(self, delta: RunStepDelta) -> None:
        step = self._steps.get(delta.id)
        details = delta.delta.step_details
        if step is None or not details:
            return
        known = step.step_details or StepDetails(type=details.get("type", step.type))
        if known.type == "message_creation":
            known = msgspec.structs.replace(known, message_creation=details.get("message_creation"))
        else:
            calls = merge_by_index(known.tool_calls or [], details.get("tool_calls") or [])
            known = msgspec.structs.replace(known, tool_calls=calls)
        self._steps[delta.id] = msgspec.structs.replace(step, step_details=known)


def _content_part(fragment: JSON) -> MessageContent:
    text = fragment.get("text")
    return MessageContent(
        type=fragment.get("type", "text"),
        text=None if text is None else _text(text),
        refusal=fragment.get("refusal"),
        image_file=fragment.get("image_file"),
        image_url=fragment.get("image_url"),
    )


def _text(text: JSON) -> TextContent:
    annotations = merge_by_index([], text.get("annotations") or [])
    return TextContent(value=text.get("value") or "", annotations=annotations)


def _extended(part: MessageContent, fragment: JSON) -> MessageContent:
    text = fragment.get("text")
    if text is not None:
        known = part.text or TextContent()
        annotations = merge_by_index(known.annotations, text.get("annotations") or [])
        value = known.value + (text.get("value") or "")
        return msgspec.structs.replace(part, text=TextContent(value=value, annotations=annotations))
    if fragment.get("refusal"):
        return msgspec.structs.replace(part, refusal=(part.refusal or "") + fragment["refusal"])
    return part


_APPENDED = frozenset({"arguments", "input", "logs"})
"""The string fields that arrive in fragments; every other string is whole and replaces its predecessor."""


def merge_by_index(known: list[JSON], fragments: list[JSON]) -> list[JSON]:
    """Merge list fragments that carry an `index` into a copy of `known`; the index itself is dropped."""
    merged = list(known)
    for fragment in fragments:
        body = {key: value for key, value in fragment.items() if key != "index"}
        index = fragment.get("index", len(merged))
        if not isinstance(index, int) or not 0 <= index <= len(merged):
            continue
        if index == len(merged):
            merged.append(body)
        else:
            merged[index] = _merged(merged[index], body)
    return merged


def _merged(known: JSON, fragment: JSON) -> JSON:
    result = dict(known)
    for key, value in fragment.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value)
        elif isinstance(before, str) and isinstance(value, str) and key in _APPENDED:
            result[key] = before + value
        elif isinstance(before, list) and isinstance(value, list):
            result[key] = merge_by_index(before, value)
        elif value is not None:
            result[key] = value
    return result
