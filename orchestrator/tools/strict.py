"""The closed form of a JSON schema that the protocol's strict mode asks for.

In strict mode a server lets the model write nothing but what the schema allows. The price: every property is
required, objects allow no others, and few keywords are known. So a parameter's default is never used, a
free-form mapping is refused, and limits (`minimum`, `pattern`, …) become words in the description: which of
them a server knows differs, one that does not know a keyword refuses the whole tool, and arguments are
validated here in any case.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.protocol.objects import JSON

__all__ = ["closed"]

_STRUCTURE = ("prefixItems", "patternProperties", "allOf", "not", "if", "dependentRequired", "contains")
_LIMITS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems"),
)


def closed(schema: JSON, where: str) -> JSON:
    """Return the schema with every object closed, every property required and known keywords only.

    Args:
        schema: A JSON schema as pydantic writes it.
        where: Whose schema it is, for errors; names of properties are added.

    Raises:
        TypeError: Strict mode cannot express it.
    """
    if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "enum", "const"}:
        raise TypeError(f"{where} may be anything, which strict mode cannot express; give it a type")
    if unknown := [key for key in _STRUCTURE if key in schema]:
        raise TypeError(f"{where} needs {', '.join(unknown)}, which strict mode does not know")
    if schema.get("type") == "object" and schema.get("additionalProperties", "properties" not in schema):
        raise TypeError(f"{where} is an object with any keys, which strict mode cannot express")
    return _closed(schema, where)


def _closed(schema: JSON, where: str) -> JSON:
    kept: JSON = {key: schema[key] for key in ("type", "$ref", "description") if key in schema}
    if limits := _limits(schema):
        kept["description"] = f"{schema.get('description', '')} ({limits})".lstrip()
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        kept |= {"type": schema.get("type") or _types(values), "enum": values}
    for key in ("properties", "$defs"):
        if key in schema:
            kept[key] = {name: closed(part, f"{where}.{name}") for name, part in schema[key].items()}
    if schema.get("type") == "array":
        kept["items"] = closed(schema.get("items", {}), f"{where}[]")
    if members := schema.get("anyOf") or schema.get("oneOf"):  # a tagged union is known as a plain one only
        kept["anyOf"] = [closed(member, where) for member in members]
    if kept.get("type") == "object":
        kept.setdefault("properties", {})
        kept |= {"required": list(kept["properties"]), "additionalProperties": False}
    if "$ref" in kept and len(kept) > 1:
        kept["anyOf"] = [{"$ref": kept.pop("$ref")}]  # a reference stands alone
    return kept


def _limits(schema: JSON) -> str:
    said = {key: schema[key] for key in _LIMITS if key in schema}
    return ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in said.items())


def _types(values: list[Any]) -> str | list[str]:
    names = {bool: "boolean", int: "integer", str: "string", float: "number", type(None): "null"}
    found = list(dict.fromkeys(names[type(value)] for value in values))
    return found[0] if len(found) == 1 else found
