"""How a run's record and outcome become bytes, and again what they were.

Owns the formats. What was asked for is written once, the rest of the record with each change; the tool calls
have rows of their own and are in neither. Times become those of the database's clock and come back as those
of this process's monotonic one. Knows no tables and no database.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator import errors
from orchestrator.errors import JournalError, OrchestratorError
from orchestrator.protocol.objects import LastError, Message, RunStep, Usage
from orchestrator.runs.effects import Finish
from orchestrator.runs.record import RunRecord
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import RunResult, ToolCallResult

if TYPE_CHECKING:
    from orchestrator.journal.interface import Address

__all__ = [
    "asked",
    "asked_by",
    "decoded_finish",
    "decoded_record",
    "decoded_text",
    "encoded_finish",
    "encoded_record",
    "encoded_text",
]


class Failure(msgspec.Struct, omit_defaults=True):
    """An error of ours: its class in `orchestrator.errors`, its arguments, and what it says about itself."""

    kind: str
    args: list[str]
    about: dict[str, str | int | float | bool | list[str] | None] = {}


class Asked(msgspec.Struct, omit_defaults=True):
    """What was asked for, and what makes it another run although the key is the same."""

    request: RunRequest
    thread_id: str | None
    run_id: str | None
    base_url: str
    organization: str | None
    project: str | None


class Outcome(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A `Finish`, without the tool calls of its result."""

    failure: Failure | None = None
    status: str = ""
    thread_id: str | None = None
    run_id: str | None = None
    messages: list[Message] = []
    steps: list[RunStep] = []
    usage: Usage | None = None
    error: LastError | None = None


_APART: Final = {"key", "request", "results", "failure"}
"""Fields of a record that are not in its state as they are."""

_PLAIN: Final = [field for field in msgspec.structs.fields(RunRecord) if field.name not in _APART]


def _state_struct() -> type[Any]:
    fields: list[Any] = [("failure", Failure | None, None)]
    for field in _PLAIN:
        default = () if field.default is msgspec.NODEFAULT else (field.default,)
        fields.append((field.name, field.type, *default))
    return msgspec.defstruct("State", fields, omit_defaults=True, kw_only=True)


_State: Final = _state_struct()
_NAMES: Final = [field.name for field in _PLAIN if field.name not in ("deadline_at", "expires_at")]
_kept_of: Final = attrgetter(*_NAMES)

_encoder: Final = msgspec.msgpack.Encoder()
_sorted_encoder: Final = msgspec.msgpack.Encoder(order="sorted")
_state_decoder: Final = msgspec.msgpack.Decoder(_State)
_asked_decoder: Final = msgspec.msgpack.Decoder(Asked)
_outcome_decoder: Final = msgspec.msgpack.Decoder(Outcome)


def asked(record: RunRecord, address: Address) -> bytes:
    """What was asked for, as bytes that are the same whenever it is."""
    return _sorted_encoder.encode(
        Asked(
            request=record.request,
            thread_id=record.thread_id,
            run_id=record.run_id,
            base_url=address.base_url,
            organization=address.organization,
            project=address.project,
        )
    )


def asked_by(data: bytes) -> bytes:
    """What of it two processes must agree on: not which of its tools can be called again."""
    known = _asked_decoder.decode(data)
    known.request = dataclasses.replace(known.request, unrepeatable_tools=frozenset())
    return _sorted_encoder.encode(known)


def encoded_record(record: RunRecord, offset_s: float) -> bytes:
    """A record's state.

    Args:
        record: The record.
        offset_s: The database's clock minus this process's monotonic one.
    """
    fields = dict(zip(_NAMES, _kept_of(record), strict=True))
    expires_at = None if record.expires_at is None else record.expires_at + offset_s
    failure = None if record.failure is None else _failure(record.failure)
    state = _State(
        **fields, deadline_at=record.deadline_at + offset_s, expires_at=expires_at, failure=failure
    )
    return _encoder.encode(state)


def decoded_record(
    key: str, asked: bytes, state: bytes, results: tuple[ToolCallResult, ...], offset_s: float
) -> RunRecord:
    """A record again.

    Raises:
        JournalError: The bytes are none of ours.
    """
    try:
        request = _asked_decoder.decode(asked).request
        known = _state_decoder.decode(state)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise JournalError(f"the journal's record of run {key!r} cannot be read: {error}") from error
    fields = {name: getattr(known, name) for name in _NAMES}
    return RunRecord(
        key=key,
        request=request,
        results=results,
        failure=None if known.failure is None else _error(known.failure),
        deadline_at=known.deadline_at - offset_s,
        expires_at=None if known.expires_at is None else known.expires_at - offset_s,
        **fields,
    )


def encoded_finish(finish: Finish) -> bytes:
    """An outcome; the tool calls of its result are written apart."""
    if finish.error is not None:
        return _encoder.encode(Outcome(failure=_failure(finish.error)))
    result = finish.result
    assert result is not None
    return _encoder.encode(
        Outcome(
            status=result.status,
            thread_id=result.thread_id,
            run_id=result.run_id,
            messages=list(result.messages),
            steps=list(result.steps),
            usage=result.usage,
            error=result.error,
        )
    )


def decoded_finish(data: bytes, results: tuple[ToolCallResult, ...]) -> Finish:
    """An outcome again.

    Raises:
        JournalError: The bytes are none of ours.
    """
    try:
        known = _outcome_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise JournalError(f"the journal's record of an outcome cannot be read: {error}") from error
    if known.failure is not None:
        return Finish(error=_error(known.failure))
    return Finish(
        result=RunResult(
            status=known.status,
            thread_id=known.thread_id,
            run_id=known.run_id,
            messages=tuple(known.messages),
            steps=tuple(known.steps),
            tool_calls=results,
            usage=known.usage,
            error=known.error,
        )
    )


def encoded_text(text: str) -> bytes:
    """A text that anybody may have made up, half a surrogate pair and NUL included."""
    return text.encode("utf-8", "surrogatepass")


def decoded_text(data: bytes) -> str:
    """The same text."""
    return bytes(data).decode("utf-8", "surrogatepass")


def _failure(error: OrchestratorError) -> Failure:
    """What of an error is words: neither its cause nor the answer's headers."""
    about = {name: value for name, value in vars(error).items() if _is_plain(value)}
    kind = type(error).__name__ if getattr(errors, type(error).__name__, None) is type(error) else ""
    return Failure(kind=kind, args=[str(arg) for arg in error.args], about=about)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def _error(failure: Failure) -> OrchestratorError:
    kind = getattr(errors, failure.kind, OrchestratorError)
    error: OrchestratorError = kind.__new__(kind, *failure.args)
    if issubclass(kind, errors.APIStatusError):
        error.__dict__["headers"] = {}
    error.__dict__.update(failure.about)
    return error
