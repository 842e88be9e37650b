"""A tool's arguments as a pydantic model, and the JSON schema that tells a model how to call it.

Imports pydantic, so it is itself imported with the first described tool only. It neither calls tools nor
reads what a model sent: that is `orchestrator.tools.arguments`.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, create_model
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
        arguments: Validates the arguments object.
        fields: Each parameter with the attribute of what was validated that holds its value. An empty name
            stands for all of it, `None` for the call's context.
    """

    text: str
    schema: JSON
    arguments: TypeAdapter[Any]
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
    adapter, schema = _modelled(asked, notes, tool_name)
    if strict:
        schema = _closed(schema, tool_name)
    fields = {parameter.name: f"field_{number}" for number, parameter in enumerate(asked)}
    if _is_whole(asked):
        fields = {asked[0].name: ""}
    return Description(
        text=text,
        schema=schema,
        arguments=adapter,
        fields=tuple((parameter, fields.get(parameter.name)) for parameter in parameters),
    )


def _closed(schema: JSON, tool_name: str) -> JSON:
    """Close the schema; a refusal names the parameter, also where the type that it mentions is at fault."""
    where, definitions = f"tool {tool_name!r}: arguments", schema.get("$defs", {})
    for name, part in schema["properties"].items():
        for mentioned in _mentioned(part, definitions):
            closed(definitions[mentioned], f"{where}.{name}: {mentioned}")
    return closed(schema, where)


def _mentioned(part: object, definitions: JSON, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of the definitions that a part of a schema refers to, by any number of steps."""
    if isinstance(part, list):
        return seen.union(*(_mentioned(each, definitions, seen) for each in part))
    if not isinstance(part, dict):
        return seen
    for key, value in part.items():
        name = value.removeprefix("#/$defs/") if key == "$ref" and isinstance(value, str) else None
        if name in definitions and name not in seen:
            seen = _mentioned(definitions[name], definitions, seen | {name})
        seen = _mentioned(value, definitions, seen)
    return seen


def _is_context(annotation: Any) -> bool:
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_bare(member) is ToolContext for member in get_args(annotation))
    return annotation is ToolContext


def _is_whole(parameters: Sequence[Parameter]) -> bool:
    """Whether the arguments object is itself the value of the only parameter: a pydantic model.

    With a default it is not: an empty object could then mean the default or a model without fields.
    """
    if len(parameters) != 1 or parameters[0].default is not inspect.Parameter.empty:
        return False
    annotation = _bare(parameters[0].annotation)
    return (
        isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
        and not issubclass(annotation, RootModel)  # that one may stand for a list or a number
    )


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


class _Generator(GenerateJsonSchema):
    """Leaves out what a schema cannot say, such as a default that is no JSON, instead of warning."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing: the parameter is described all the same."""

    def literal_schema(self, schema: Any) -> JSON:
        """Describe a `Literal`, but none of an enum's members: pydantic takes no JSON value for those."""
        if any(isinstance(member, Enum) for member in schema["expected"]):
            raise TypeError("a Literal of an Enum's members; give the values, or the Enum itself")
        return super().literal_schema(schema)


def _modelled(
    parameters: Sequence[Parameter], notes: Mapping[str, str], tool_name: str
) -> tuple[TypeAdapter[Any], JSON]:
    try:
        return _adapter_and_schema(parameters, notes, tool_name)
    except Exception:
        # Annotations are types of the user's: building their schemas may raise anything. Ask again, one by
        # one, to find out whose fault it is.
        for parameter in parameters:
            _refuse_if_faulty(parameter, tool_name)
        raise


def _refuse_if_faulty(parameter: Parameter, tool_name: str) -> None:
    try:
        _adapter_and_schema([parameter], {}, tool_name)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TypeError(
            f"tool {tool_name!r}: parameter {parameter.name!r} has a type without JSON schema: {reason}"
        ) from error


def _adapter_and_schema(
    parameters: Sequence[Parameter], notes: Mapping[str, str], tool_name: str
) -> tuple[TypeAdapter[Any], JSON]:
    if _is_whole(parameters):
        adapter: TypeAdapter[Any] = TypeAdapter(parameters[0].annotation)
        return adapter, _rooted(_untitled(adapter.json_schema(schema_generator=_Generator)))
    model = _arguments_model(parameters, notes, tool_name)
    schema = model.model_json_schema(schema_generator=_Generator)
    if "$ref" in schema:
        raise TypeError("Self is the class of a method, which its arguments cannot be")
    return TypeAdapter(model), _untitled(schema)


def _rooted(schema: JSON) -> JSON:
    """Write out a root that is a reference, as a model that contains itself has: servers want an object."""
    root = schema.get("$ref") or ""
    definition = schema.get("$defs", {}).get(root.removeprefix("#/$defs/"), {})
    return {**definition, **{key: value for key, value in schema.items() if key != "$ref"}}


def _arguments_model(
    parameters: Sequence[Parameter], notes: Mapping[str, str], tool_name: str
) -> type[BaseModel]:
    # Fields have neutral names and an alias: a parameter may be called `schema`, `copy` or `_id`, and none
    # of these can be a field of a model.
    fields: dict[str, Any] = {
        f"field_{number}": _field(parameter, notes.get(parameter.name))
        for number, parameter in enumerate(parameters)
    }
    model: type[BaseModel] = create_model(f"{tool_name}_arguments", __config__=_CONFIG, **fields)
    if len(model.model_fields) != len(parameters):
        raise TypeError("ClassVar and Final say nothing about a parameter")
    return model


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
