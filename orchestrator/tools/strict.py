"""The closed form of a JSON schema that the protocol's strict mode asks for.

In strict mode a server lets the model write nothing but what the schema allows. The price: every property is
required, objects allow no others, and some keywords are unknown. So a parameter's default is never used, and
a free-form mapping is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.protocol.objects import JSON

__all__ = ["closed"]

_UNKNOWN = frozenset({"prefixItems", "patternProperties", "allOf", "not"})


def closed(schema: JSON, where: str) -> JSON:
    """Return the schema with every object closed and every property required.

    Args:
        schema: A JSON schema as pydantic writes it.
        where: Whose schema it is, for errors; names of properties are added.

    Raises:
        TypeError: Strict mode cannot express it.
    """
    if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "enum", "const"}:
        raise TypeError(f"{where} may be anything, which strict mode cannot express; give it a type")
    if unknown := schema.keys() & _UNKNOWN:
        raise TypeError(f"{where} needs {', '.join(sorted(unknown))}, which strict mode does not know")
    if schema.get("type") == "object" and schema.get("additionalProperties", "properties" not in schema):
        raise TypeError(f"{where} is an object with any keys, which strict mode cannot express")
    return _closed(schema, where)


def _closed(schema: JSON, where: str) -> JSON:
    # A discriminator and a default have no place there; oneOf is known as anyOf only.
    kept = {key: value for key, value in schema.items() if key not in ("default", "discriminator", "oneOf")}
    if "oneOf" in schema:
        kept["anyOf"] = schema["oneOf"]
    if "$ref" in kept and len(kept) > 1:
        kept["anyOf"] = [{"$ref": kept.pop("$ref")}]  # a reference stands alone
    for key in ("properties", "$defs"):
        if key in kept:
            kept[key] = {name: closed(part, f"{where}.{name}") for name, part in kept[key].items()}
    if "items" in kept:
        kept["items"] = closed(kept["items"], where)
    if "anyOf" in kept:
        kept["anyOf"] = [closed(part, where) for part in kept["anyOf"]]
    if kept.get("type") == "object":
        kept |= {"required": list(kept.get("properties", {})), "additionalProperties": False}
    return kept
