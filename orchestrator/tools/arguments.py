"""What a model sent as arguments, parsed, validated and matched to a function's parameters.

Runs where the tool runs, never on the actors' loop: validators are the user's code. What is wrong is said so
that a model can correct itself, without sending back what it wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from orchestrator.tools.outcome import message_of, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.schema import Description

__all__ = ["InvalidArguments", "parsed", "placed"]

_MESSAGE_LENGTH = 200
_MOST_ERRORS = 8


class InvalidArguments(Exception):
    """The arguments are no JSON, or do not satisfy the schema; the text is for the model."""


def parsed(description: Description, arguments: str) -> dict[str, object]:
    """Turn an arguments document into values of the annotated types, by the parameters' names.

    Args:
        description: The tool's.
        arguments: JSON from a model; nothing at all stands for an empty object.

    Raises:
        InvalidArguments: The document is not acceptable.
    """
    try:
        values = description.arguments.validate_json(arguments if arguments.strip() else "{}")
    except ValidationError as error:
        raise InvalidArguments(_explained(error)) from error
    except Exception as error:  # a validator of the user's may raise anything
        raise InvalidArguments(f"{type(error).__name__}: {message_of(error)}") from error
    return {
        parameter.name: getattr(values, field) if field else values
        for parameter, field in description.fields
        if field is not None
    }


def placed(
    description: Description, arguments: Mapping[str, object], context: ToolContext
) -> tuple[list[object], dict[str, object]]:
    """Return the positional and the keyword arguments with which to call the function.

    Args:
        description: The tool's.
        arguments: The values, by the parameters' names.
        context: What a parameter annotated `ToolContext` receives.

    Raises:
        TypeError: A value is missing, or there is no such parameter.
    """
    asked = {parameter.name for parameter, field in description.fields if field is not None}
    if arguments.keys() != asked:
        differ = ", ".join(sorted(arguments.keys() ^ asked))
        raise TypeError(f"middleware changed which arguments there are: {differ}")
    positional: list[object] = []
    named: dict[str, object] = {}
    for parameter, field in description.fields:
        value = context if field is None else arguments[parameter.name]
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
