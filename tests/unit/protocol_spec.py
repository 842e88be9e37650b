"""The protocol's published description, as tests ask it: operations, schemas, and instances of these.

The generator knows the keywords that this description uses, and refuses others. It is our own because
what generates from JSON Schema for Hypothesis stops at draft 7, and this is 2020-12.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

Schema = dict[str, Any]

SPEC: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "spec" / "threads-openapi.json").read_text(encoding="utf-8")
)
SCHEMAS: dict[str, Schema] = SPEC["components"]["schemas"]

_KNOWN = {
    "$ref", "additionalProperties", "allOf", "anyOf", "default", "deprecated", "description", "enum",
    "format", "items", "maxItems", "maxLength", "maximum", "minItems", "minimum", "oneOf", "properties",
    "required", "title", "type",
}  # fmt: skip


def operation(operation_id: str) -> tuple[str, str, dict[str, Any]]:
    for path, methods in SPEC["paths"].items():
        for method, described in methods.items():
            if described.get("operationId") == operation_id:
                return method.upper(), path, described
    raise LookupError(operation_id)


def body_schema(described: dict[str, Any]) -> Schema:
    schema: Schema = described["requestBody"]["content"]["application/json"]["schema"]
    return schema


def answer_schema(described: dict[str, Any]) -> Schema:
    schema: Schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    return schema


def query_schemas(described: dict[str, Any]) -> dict[str, Schema]:
    return {one["name"]: one["schema"] for one in described.get("parameters", []) if one["in"] == "query"}


def name_of(schema: Schema) -> str:
    """The schema that this one refers to, if it does."""
    name: str = schema.get("$ref", "").rpartition("/")[2]
    return name


def resolved(schema: Schema) -> Schema:
    name = name_of(schema)
    return SCHEMAS[name] if name else schema


def validate(schema: Schema, value: Any) -> None:
    _validator(json.dumps(schema, sort_keys=True)).validate(value)


def is_valid(schema: Schema, value: Any) -> bool:
    return bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(value))


@cache
def _validator(schema: str) -> Any:
    return Draft202012Validator({**json.loads(schema), "components": SPEC["components"]})


def referred(value: Any) -> set[str]:
    """The schemas that something refers to, by whatever way."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        match waiting.pop():
            case {"$ref": str() as ref}:
                _, _, kind, name = ref.split("/")
                if kind != "schemas":
                    waiting.append(SPEC["components"][kind][name])
                elif name not in found:
                    found.add(name)
                    waiting.append(SCHEMAS[name])
            case dict() as members:
                waiting.extend(members.values())
            case list() as items:
                waiting.extend(items)
    return found


# Surrogates have no place in UTF-8.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_PLAIN: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-9, 9) | _TEXT
JSON_OBJECTS = st.dictionaries(_TEXT, _PLAIN | st.lists(_PLAIN, max_size=2), max_size=2)


def instances(schema: Schema) -> st.SearchStrategy[Any]:
    """What a schema allows, small."""
    return _instances(json.dumps(schema, sort_keys=True))


@cache
def _instances(text: str) -> st.SearchStrategy[Any]:
    schema = json.loads(text)
    if unknown := schema.keys() - _KNOWN:
        raise NotImplementedError(f"the generator does not know {sorted(unknown)}")
    if name := name_of(schema):
        return instances(SCHEMAS[name])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "allOf" in schema:
        return _all_of(schema["allOf"])
    for choice in ("oneOf", "anyOf"):
        if choice in schema and "properties" in schema:
            # Beside properties, a choice says which of them go together.
            return _object(schema).filter(lambda one: is_valid(schema, one))
        if choice in schema:
            among = st.one_of(*map(instances, schema[choice]))
            return among.filter(lambda one: is_valid(schema, one)) if choice == "oneOf" else among
    return _typed(schema)


def _all_of(parts: list[Schema]) -> st.SearchStrategy[Any]:
    return instances(parts[0]).filter(lambda one: all(is_valid(part, one) for part in parts[1:]))


def _typed(schema: Schema) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case list() as kinds:
            return st.one_of([instances({**schema, "type": kind}) for kind in kinds])
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(0 if low is None else low, 2**53 if high is None else high)
        case "number":
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case "string":
            return _TEXT
        case "array":
            most = min(schema.get("maxItems", 2), 2)
            return st.lists(instances(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case "object" | None if "properties" in schema or "type" in schema:
            return _object(schema)
    raise NotImplementedError(f"the generator does not know {schema}")


def _object(schema: Schema) -> st.SearchStrategy[Any]:
    properties = {name: instances(one) for name, one in schema.get("properties", {}).items()}
    if not properties:
        more = schema.get("additionalProperties")
        return st.dictionaries(_TEXT, instances(more), max_size=2) if isinstance(more, dict) else JSON_OBJECTS
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: one for name, one in properties.items() if name in required},
        optional={name: one for name, one in properties.items() if name not in required},
    )
