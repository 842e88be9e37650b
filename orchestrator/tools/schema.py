"""A tool's arguments as a pydantic model, and the JSON schema that tells a model how to call it.

Imports pydantic, so it is itself imported with the first described tool only. It neither calls tools nor
reads what a model sent: that is `orchestrator.tools.arguments`.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from orchestrator.tools.context import ToolContext
from orchestrator.tools.docstrings import parse_docstring
from orchestrator.tools.signature import Parameter, parameters_of, plain_function
from orchestrator.tools.strict import closed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.protocol.objects import JSON

__all__ = ["Description", "describe"]

_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a model is told about a tool, and how its arguments become the function's.

    Attributes:
        text: What the tool does; may be empty.
        schema: The JSON schema of the arguments object.
        model: Validates the arguments object.
        fields: Each parameter with the model's field that holds its value; `None` stands for the context.
    """

    text: str
    schema: JSON
    model: type[BaseModel]
    fields: tuple[tuple[Parameter, str | None], ...]


def describe(
    function: Callable[..., object], *, tool_name: str, names: Mapping[str, Any], strict: bool
) -> Description:
    """Describe a function by its signature and docstring.

    Args:
        function: The function, bound if it is a method.
        tool_name: Said in errors.
        names: More names that annotations may use.
        strict: Close the schema as strict mode asks: every property required, none besides.

    Raises:
        TypeError: It cannot be described; the message names the tool and the parameter.
    """
    parameters = parameters_of(function, tool_name=tool_name, names=names)
    # Not inspect.getdoc: for a callable object it answers "Call self as a function."
    text, notes = parse_docstring(getattr(plain_function(function), "__doc__", None) or "")
    asked = [parameter for parameter in parameters if not _is_context(parameter.annotation)]
    model, schema = _modelled(asked, notes, tool_name)
    if strict:
        schema = closed(schema, f"tool {tool_name!r}: arguments")
    fields = {parameter.name: f"field_{number}" for number, parameter in enumerate(asked)}
    return Description(
        text=text,
        schema=schema,
        model=model,
        fields=tuple((parameter, fields.get(parameter.name)) for parameter in parameters),
    )


def _is_context(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return ToolContext in get_args(annotation)
    return annotation is ToolContext


class _Generator(GenerateJsonSchema):
    """Leaves out what a schema cannot say, such as a default that is no JSON, instead of warning."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing: the parameter is described all the same."""


def _modelled(
    parameters: Sequence[Parameter], notes: Mapping[str, str], tool_name: str
) -> tuple[type[BaseModel], JSON]:
    try:
        return _model_and_schema(parameters, notes, tool_name)
    except Exception:
        # Annotations are types of the user's: building their schemas may raise anything. Ask again, one by
        # one, to find out whose fault it is.
        for parameter in parameters:
            _refuse_if_faulty(parameter, tool_name)
        raise


def _refuse_if_faulty(parameter: Parameter, tool_name: str) -> None:
    try:
        _model_and_schema([parameter], {}, tool_name)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TypeError(
            f"tool {tool_name!r}: parameter {parameter.name!r} has a type without JSON schema: {reason}"
        ) from error


def _model_and_schema(
    parameters: Sequence[Parameter], notes: Mapping[str, str], tool_name: str
) -> tuple[type[BaseModel], JSON]:
    # Fields have neutral names and an alias: a parameter may be called `schema`, `copy` or `_id`, and none
    # of these can be a field of a model.
    fields: dict[str, Any] = {
        f"field_{number}": _field(parameter, notes.get(parameter.name))
        for number, parameter in enumerate(parameters)
    }
    model = create_model(f"{tool_name}_arguments", __config__=_CONFIG, **fields)
    if len(model.model_fields) != len(parameters):
        raise TypeError("ClassVar and Final say nothing about a parameter")
    schema = model.model_json_schema(schema_generator=_Generator)
    if "$ref" in schema:
        raise TypeError("Self is the class of a method, which its arguments cannot be")
    return model, _untitled(schema)


def _field(parameter: Parameter, note: str | None) -> tuple[Any, Any]:
    stated = FieldInfo.from_annotation(parameter.annotation).description
    if stated is None and isinstance(parameter.default, FieldInfo):
        stated = parameter.default.description
    own = Field(
        alias=parameter.name,
        validation_alias=parameter.name,
        serialization_alias=parameter.name,
        description=stated or note,
    )
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    return Annotated[parameter.annotation, own], default


def _untitled(schema: JSON) -> JSON:
    """Drop the titles that pydantic derives from names; a property called `title` stays."""
    kept: JSON = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: _untitled(part) for name, part in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _untitled(value)
        elif isinstance(value, list):
            kept[key] = [_untitled(part) if isinstance(part, dict) else part for part in value]
        elif key != "title":
            kept[key] = value
    return kept
