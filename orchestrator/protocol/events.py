"""Stream events: decoding one event, and folding deltas into the objects they build up.

Owns the event types, the mapping from an event's name and payload to them, and `Snapshots`, which
accumulates message and step deltas. Knows nothing of sockets (bytes become `ServerSentEvent`s in
`orchestrator.protocol.sse`) and draws no conclusions: a stream's end is not an event and never a verdict.

An event without a name (some servers send none) is named after its payload's `object` and `status`; one that
has no `object` but an error, flat or wrapped, is an `error`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.objects import (
    JSON,
    Message,
    MessageContent,
    Run,
    RunStep,
    StepDetails,
    TextContent,
    Thread,
)

__all__ = [
    "DoneEvent",
    "ErrorDetail",
    "ErrorEvent",
    "MessageDelta",
    "MessageDeltaEvent",
    "MessageEvent",
    "RunEvent",
    "RunStepDelta",
    "RunStepDeltaEvent",
    "RunStepEvent",
    "Snapshots",
    "StreamEvent",
    "ThreadEvent",
    "UnknownEvent",
    "decode_event",
]


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _MessageDeltaBody(_Payload, frozen=True):
    role: str | None = None
    content: list[JSON] | None = None


class MessageDelta(_Payload, frozen=True):
    """A fragment of a message: parts by `index`, text to be appended."""

    id: str
    object: str = "thread.message.delta"
    delta: _MessageDeltaBody = _MessageDeltaBody()

    @property
    def text(self) -> str:
        """The text in this fragment, joined."""
        parts = self.delta.content or ()
        return "".join((part.get("text") or {}).get("value") or "" for part in parts)


class _RunStepDeltaBody(_Payload, frozen=True):
    step_details: JSON | None = None


class RunStepDelta(_Payload, frozen=True):
    """A fragment of a step: tool calls by `index`, argument strings to be appended."""

    id: str
    object: str = "thread.run.step.delta"
    delta: _RunStepDeltaBody = _RunStepDeltaBody()


class ErrorDetail(_Payload, frozen=True):
    """The protocol's error object; in a stream it comes flat or wrapped in `{"error": …}`."""

    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event: str
    run_id: str | None = None


class ThreadEvent(_Event, frozen=True):
    """`thread.created`, from a stream of `POST /threads/runs`."""

    data: Thread


class RunEvent(_Event, frozen=True):
    """`thread.run.<status>`: the whole run."""

    data: Run


class RunStepEvent(_Event, frozen=True):
    """`thread.run.step.<status>`: the whole step."""

    data: RunStep


class RunStepDeltaEvent(_Event, frozen=True):
    """`thread.run.step.delta`."""

    data: RunStepDelta


class MessageEvent(_Event, frozen=True):
    """`thread.message.<status>`: the whole message."""

    data: Message


class MessageDeltaEvent(_Event, frozen=True):
    """`thread.message.delta`; `.data.text` is the text to show."""

    data: MessageDelta


class ErrorEvent(_Event, frozen=True):
    """`error`: the stream is over, the run is not: its status decides."""

    data: ErrorDetail


class DoneEvent(_Event, frozen=True):
    """`done`, data `[DONE]`: the stream is over."""

    data: None = None


class UnknownEvent(_Event, frozen=True):
    """An event of a name or shape that this version does not know; `data` is its JSON, or its text."""

    data: Any = None


StreamEvent: TypeAlias = (
    ThreadEvent
    | RunEvent
    | RunStepEvent
    | RunStepDeltaEvent
    | MessageEvent
    | MessageDeltaEvent
    | ErrorEvent
    | DoneEvent
    | UnknownEvent
)


class _Head(_Payload, frozen=True):
    object: str = ""
    status: str = ""
    error: Any = None
    message: Any = None


_head = Decoder(_Head)
_run = Decoder(Run)
_step = Decoder(RunStep)
_step_delta = Decoder(RunStepDelta)
_message = Decoder(Message)
_message_delta = Decoder(MessageDelta)
_thread = Decoder(Thread)


def decode_event(name: str, data: bytes) -> StreamEvent:
    """Turn one server-sent event into a typed one.

    Never raises: what cannot be understood becomes an `UnknownEvent`, because a stream with one odd
    event in it is still worth reading (PROTOCOL: read leniently).

    Args:
        name: The event's name; `""` or `"message"` when the server sent none.
        data: The event's data, UTF-8.
    """
    if name == "done" or data == b"[DONE]":
        return DoneEvent(event="done")
    try:
        return _decode(name if name not in ("", "message") else _name_of(data), data)
    except (ValueError, RecursionError):
        # ValueError covers msgspec's DecodeError and the UnicodeDecodeError that it lets through.
        return _unknown(name, data)


def _decode(name: str, data: bytes) -> StreamEvent:
    if name == "thread.message.delta":
        return MessageDeltaEvent(event=name, data=_message_delta.decode(data))
    if name == "thread.run.step.delta":
        return RunStepDeltaEvent(event=name, data=_step_delta.decode(data))
    if name.startswith("thread.run.step."):
        step = _step.decode(data)
        return RunStepEvent(event=name, data=step, run_id=step.run_id or None)
    if name.startswith("thread.run."):
        run = _run.decode(data)
        return RunEvent(event=name, data=run, run_id=run.id)
    if name.startswith("thread.message."):
        message = _message.decode(data)
        return MessageEvent(event=name, data=message, run_id=message.run_id)
    if name == "thread.created":
        return ThreadEvent(event=name, data=_thread.decode(data))
    if name == "error":
        return ErrorEvent(event=name, data=_error_detail(data))
    return _unknown(name, data)


def _name_of(data: bytes) -> str:
    head = _head.decode(data)
    if head.object == "thread":
        return "thread.created"
    if head.object in ("thread.run", "thread.run.step", "thread.message"):
        return f"{head.object}.{head.status}"
    if not head.object and (head.error or head.message):
        return "error"
    return head.object or "message"


def _error_detail(data: bytes) -> ErrorDetail:
    body = msgspec.json.decode(data)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    try:
        return msgspec.convert(body, ErrorDetail)
    except msgspec.ValidationError:
        return ErrorDetail(message=str(body))


def _unknown(name: str, data: bytes) -> UnknownEvent:
    try:
        return UnknownEvent(event=name or "message", data=msgspec.json.decode(data))
    except (ValueError, RecursionError):
        return UnknownEvent(event=name or "message", data=data.decode("utf-8", "replace"))


class Snapshots:
    """Folds events into the messages and steps they describe.

    After a stream that was complete, `messages` and `steps` equal what a GET then returns; a full object
    replaces whatever its deltas built up. Insertion order is the order of first appearance. Not
    thread-safe; never raises on a delta that does not fit, it is ignored.

    Attributes:
        messages: Messages by id.
        steps: Run steps by id.
    """

    __slots__ = ("messages", "steps")

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.steps: dict[str, RunStep] = {}

    def add(self, event: StreamEvent) -> None:
        """Fold in one event; events of other kinds change nothing."""
        if isinstance(event, MessageEvent):
            self.messages[event.data.id] = event.data
        elif isinstance(event, RunStepEvent):
            self.steps[event.data.id] = event.data
        else:
            # Deltas are plain JSON of any shape and depth; each is folded in as a whole or not at all.
            with suppress(AttributeError, TypeError, ValueError, RecursionError):
                self._add_delta(event)

    def _add_delta(self, event: StreamEvent) -> None:
        if isinstance(event, MessageDeltaEvent):
            self._add_message_delta(event.data)
        elif isinstance(event, RunStepDeltaEvent):
            self._add_step_delta(event.data)

    def _add_message_delta(self, delta: MessageDelta) -> None:
        message = self.messages.get(delta.id)
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
        self.messages[delta.id] = msgspec.structs.replace(message, content=content)

    def _add_step_delta(self, delta: RunStepDelta) -> None:
        step = self.steps.get(delta.id)
        details = delta.delta.step_details
        if step is None or not details:
            return
        known = step.step_details or StepDetails(type=details.get("type", step.type))
        if known.type == "message_creation":
            known = msgspec.structs.replace(known, message_creation=details.get("message_creation"))
        else:
            calls = merge_by_index(known.tool_calls or [], details.get("tool_calls") or [])
            known = msgspec.structs.replace(known, tool_calls=calls)
        self.steps[delta.id] = msgspec.structs.replace(step, step_details=known)


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
