"""What came of a tool call: the text for the model, and for us what went wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["FailureKind", "ToolFailure", "ToolOutcome", "error_output", "message_of", "shortened"]

FailureKind: TypeAlias = Literal[
    "unknown_tool", "invalid_arguments", "raised", "timeout", "cancelled", "reported"
]
"""Why a call has no result. `reported`: the tool raised `ToolError` to speak to the model itself."""

_MESSAGE_LENGTH = 2000


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
        duration_s: Seconds since the tool began; 0.0 when it never did.
    """

    call_id: str
    name: str
    output: str
    error: ToolFailure | None = None
    duration_s: float = 0.0


def error_output(type_name: str, message: str) -> str:
    """Return the JSON by which a model learns of an error."""
    return json.dumps({"error": {"type": type_name, "message": message}}, ensure_ascii=False)


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
