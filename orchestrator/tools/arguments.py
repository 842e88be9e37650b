"""What a model sent as arguments, parsed, validated and matched to a function's parameters.

Runs where the tool runs, never on the actors' loop: validators are the user's code. What is wrong is said so
that a model can correct itself, without sending back what it wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from orchestrator.tools.outcome import message_of, shortened

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.schema import Description

__all__ = ["InvalidArguments", "bind"]

_MESSAGE_LENGTH = 200
_MOST_ERRORS = 8


class InvalidArguments(Exception):
    """The arguments are no JSON, or do not satisfy the schema; the text is for the model."""


def bind(
    description: Description, arguments: str, context: ToolContext
) -> tuple[list[object], dict[str, object]]:
    """Turn an arguments document into positional and keyword arguments of the annotated types.

    Args:
        description: The tool's.
        arguments: JSON from a model; nothing at all stands for an empty object.
        context: What a parameter annotated `ToolContext` receives.

    Raises:
        InvalidArguments: The document is not acceptable.
    """
    try:
        values = description.arguments.validate_json(arguments if arguments.strip() else "{}")
    except ValidationError as error:
        raise InvalidArguments(_explained(error)) from error
    except Exception as error:  # a validator of the user's may raise anything
        raise InvalidArguments(f"{type(error).__name__}: {message_of(error)}") from error
    positional: list[object] = []
    named: dict[str, object] = {}
    for parameter, field in description.fields:
        value = context if field is None else getattr(values, field) if field else values
        if parameter.positional:
            positional.append(value)
        else:
            named[parameter.name] = value
    return positional, named


def _explained(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [_line(detail) for detail in details[:_MOST_ERRORS]]
    if len(details) > _MOST_ERRORS:
        lines.append(f"and {len(details) - _MOST_ERRORS} more")
    return "; ".join(lines)


def _line(detail: ErrorDetails) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    message = shortened(detail["msg"], _MESSAGE_LENGTH)
    return f"{shortened(where.lstrip('.'), _MESSAGE_LENGTH)}: {message}" if where else message
