"""The rules of strict mode for the schema of a function's arguments, as the servers' documentation has them.

Written apart from `orchestrator.tools.strict`, and for the narrowest server: whatever one of them refuses is
a violation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "anyOf",
    "$ref",
    "$defs",
}
WORDS = {"description"}
TYPES = {"string", "number", "boolean", "integer", "object", "array", "null"}


def violations(schema: dict[str, Any]) -> list[str]:
    """Say what strict mode would refuse in a schema of arguments."""
    root = [] if schema.get("type") == "object" and "anyOf" not in schema else ["the root is no object"]
    return root + list(_violations(schema, "$", schema))


def _violations(schema: dict[str, Any], at: str, root: dict[str, Any]) -> Iterator[str]:
    if unknown := schema.keys() - KEYWORDS - WORDS:
        yield f"{at}: unknown keywords {sorted(unknown)}"
    if "$defs" in schema and schema is not root:
        yield f"{at}: definitions belong to the root"
    if not schema.keys() & {"type", "anyOf", "$ref"}:
        yield f"{at}: neither a type, nor anyOf, nor a reference"
    types = schema.get("type", [])
    if unknown := set([types] if isinstance(types, str) else types) - TYPES:
        yield f"{at}: unknown types {sorted(unknown)}"
    if "$ref" in schema:
        if len(schema) > 1:
            yield f"{at}: a reference does not stand alone"
        if schema["$ref"].removeprefix("#/$defs/") not in root.get("$defs", {}):
            yield f"{at}: {schema['$ref']} leads nowhere"
    if types == "object":
        if schema.get("additionalProperties") is not False:
            yield f"{at}: more properties are allowed"
        if sorted(schema.get("required", [])) != sorted(schema.get("properties", {})):
            yield f"{at}: not every property is required"
    if types == "array" and "items" not in schema:
        yield f"{at}: an array without items"
    for name, part in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield from _violations(part, f"{at}.{name}", root)
    for number, part in enumerate(schema.get("anyOf", [])):
        yield from _violations(part, f"{at}|{number}", root)
    if "items" in schema:
        yield from _violations(schema["items"], f"{at}[]", root)
