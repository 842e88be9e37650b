"""Stream events, and decoding one of them.

Owns the event types and the mapping from an event's name and payload to them. Knows nothing of sockets (bytes
become `ServerSentEvent`s in `orchestrator.protocol.sse`) nor of what deltas build up
(`orchestrator.protocol.snapshots`), and draws no conclusions: a stream's end is not an event and never a
verdict.

An event without a name (some servers send none) is named after its payload's `object` and `status`; one that
has no `object` but an error, flat or wrapped, is an `error`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.objects import (
    JSON,
    Message,
    Run,
    RunStep,
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
    "StreamEvent",
    "ThreadEvent",
    "UnknownEvent",
    "decode_event",
]


class _Payload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class _MessageDeltaBody(_Payload, frozen=True):
    role: str | None = None
    content: list[JSON] | None = None


class MessageDelta(_Payload, frozen=True):
    """A fragment of a message: content parts by `index`, text to be appended.

    Most fragments are kept and never looked into, so that what they hold stays JSON until it is asked for.
    """

    id: str
    object: str | None = "thread.message.delta"
    raw: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"{}"), name="delta")

    @property
    def delta(self) -> _MessageDeltaBody:
        """What is in it, decoded anew each time."""
        return _message_body.decode(self.raw) or _MessageDeltaBody()

    @property
    def text(self) -> str:
        """The text in this fragment, joined."""
        parts = self.delta.content or ()
        return "".join((part.get("text") or {}).get("value") or "" for part in parts)

    def __repr__(self) -> str:
        return f"MessageDelta(id={self.id!r}, delta={self.delta!r})"


class _RunStepDeltaBody(_Payload, frozen=True):
    step_details: JSON | None = None


class RunStepDelta(_Payload, frozen=True):
    """A fragment of a step: tool calls by `index`, argument strings to be appended. JSON until asked for."""

    id: str
    object: str | None = "thread.run.step.delta"
    raw: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"{}"), name="delta")

    @property
    def delta(self) -> _RunStepDeltaBody:
        """What is in it, decoded anew each time."""
        return _step_body.decode(self.raw) or _RunStepDeltaBody()

    def __repr__(self) -> str:
        return f"RunStepDelta(id={self.id!r}, delta={self.delta!r})"


class ErrorDetail(_Payload, frozen=True):
    """The protocol's error object; in a stream it comes flat or wrapped in `{"error": …}`."""

    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
# Null stands for nothing, as everywhere.
_message_body: Decoder[_MessageDeltaBody | None] = Decoder(_MessageDeltaBody | None)  # type: ignore[arg-type]  # a form of type
_step_body: Decoder[_RunStepDeltaBody | None] = Decoder(_RunStepDeltaBody | None)  # type: ignore[arg-type]  # the same


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
        message_delta = _message_delta.decode(data)
        _message_body.decode(message_delta.raw)  # what cannot be understood is seen now, and not later
        return MessageDeltaEvent(event=name, data=message_delta)
    if name == "thread.run.step.delta":
        step_delta = _step_delta.decode(data)
        _step_body.decode(step_delta.raw)
        return RunStepDeltaEvent(event=name, data=step_delta)
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
