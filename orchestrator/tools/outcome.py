"""What came of a tool call: the text for the model, and for us what went wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FailureKind",
    "ToolFailure",
    "ToolNotice",
    "ToolOutcome",
    "error_output",
    "message_of",
    "shortened",
    "unknown_tool",
]

FailureKind: TypeAlias = Literal[
    "unknown_tool", "invalid_arguments", "raised", "timeout", "cancelled", "denied", "reported"
]
"""Why a call has no result. `reported`: the tool raised `ToolError` to speak to the model itself."""

_MESSAGE_LENGTH = 2000
_NAME_LENGTH = 200
_WRAPPERS = ("multi_tool_use.parallel", "multi_tool_use", "parallel")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFailure:
    """Why a call has no result.

    Attributes:
        kind: What went wrong.
        message: The type and message of the exception, or a sentence; never a traceback.
        origin: The exception's class and where it was raised, such as `"KeyError at shop.weather:12"`. It
            has no text of the exception's, so it is fit for logs. `None` when none was raised.
    """

    kind: FailureKind
    message: str
    origin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What came of one call. There is exactly one for each call that was started.

    Attributes:
        call_id: The call.
        name: The tool's name, as the model wrote it.
        output: What goes to the model: the result, or an error as JSON.
        error: `None` when the tool returned a result that could be sent.
        fatal: What the tool raised, or a `TimeoutError`, where that is to end the run; else `None`.
        attempts: How often the function was executed.
        duration_s: Seconds since the tool began; 0.0 when it never did.
    """

    call_id: str
    name: str
    output: str
    error: ToolFailure | None = None
    fatal: BaseException | None = None
    attempts: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNotice:
    """What a call has to say before it is over.

    Attributes:
        call_id: The call.
        kind: It waits for approval, or was approved, or tells how far it is.
        detail: A sentence of the tool's for people, or `None`.
        fraction: How much is done, from 0.0 to 1.0, or `None`.
    """

    call_id: str
    kind: Literal["approval_asked", "approved", "progress"]
    detail: str | None = None
    fraction: float | None = None


def error_output(type_name: str, message: str) -> str:
    """Return the JSON by which a model learns of an error."""
    text = json.dumps({"error": {"type": type_name, "message": message}}, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # a lone surrogate could not be sent


def unknown_tool(name: str, known: Iterable[str]) -> str:
    """Return the sentence by which a model learns that it called what does not exist, and what does.

    A wrapper around several calls, which some models make up, is not taken apart: the calls within would have
    no ids. But a call's id is what its outcome is recorded under, what a person approves or denies, and what
    keeps it from being made twice; and one output would have to stand for all of them. To call the tools
    themselves costs the model one more turn.
    """
    tools = ", ".join(known) or "none"
    if name in _WRAPPERS:
        return f"{name!r} is no tool; call each tool by itself, several at once if you like: {tools}"
    return f"there is no tool named {shortened(name, _NAME_LENGTH)!r}; the known tools: {tools}"


def message_of(error: BaseException, *, length: int | None = _MESSAGE_LENGTH) -> str:
    """Return the text of an exception, also when its `__str__` raises.

    Args:
        error: The exception.
        length: The most characters; `None` for all of them.
    """
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - the exception's class belongs to the user
        text = f"(its message cannot be shown: {type(broken).__name__})"
    return text if length is None else shortened(text, length)


def shortened(text: str, length: int) -> str:
    """Return at most `length` characters, the last one an ellipsis where something was left out."""
    return text if len(text) <= length else text[: length - 1] + "…"
