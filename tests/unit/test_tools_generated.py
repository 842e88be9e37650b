"""What holds for any arguments: those that the schema allows arrive, and the rest is answered."""

from __future__ import annotations

import datetime as dt
import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from binding import bind
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tool_signatures import CONTEXT, ROWS, Period, taking

from orchestrator.tools import Tool, tool
from orchestrator.tools.arguments import InvalidArguments

FORMATS: dict[str, st.SearchStrategy[Any]] = {
    "date": st.dates().map(dt.date.isoformat),
    "date-time": st.datetimes(timezones=st.just(dt.UTC)).map(dt.datetime.isoformat),
    "time": st.times().map(dt.time.isoformat),
    "duration": st.integers(-(10**6), 10**6).map(lambda s: f"{'-' if s < 0 else ''}PT{abs(s)}S"),
    "uuid": st.uuids().map(str),
    "ipv4": st.ip_addresses(v=4).map(str),
    "zoneinfo": st.sampled_from(["Europe/Oslo", "Asia/Tokyo"]),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# An alias means nothing outside a model, so that pydantic would warn of it where the row's type is checked.
EVERY = [number for number, row in enumerate(ROWS) if "alias=" not in str(row.annotation)]
# Two rows say more than their schemas can: keys that are numbers, and a validator of the model's own.
SAMPLES = [number for number in EVERY if ROWS[number].annotation not in (dict[int, str], Period)]


def values_of(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Generate what a schema allows, from the few keywords that pydantic writes."""
    if "$ref" in schema:
        return values_of(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, depth + 1)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if members := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values_of(member, root, depth) for member in members])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer" | "number":
            return numbers(schema)
        case "string":
            return strings(schema)
        case "array":
            return arrays(schema, root, depth)
        case "object":
            return objects(schema, root, depth)
        case _:
            return JSON_VALUES


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -(10**6)))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 10**6))
    found: st.SearchStrategy[Any] = st.integers(low, high)
    if schema["type"] == "number":
        found |= st.floats(low, high)
    return found.map(lambda number: number * schema.get("multipleOf", 1)).filter(valid(schema))


def strings(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], alphabet=st.characters(codec="ascii"))
    return st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 20))


def arrays(schema: dict[str, Any], root: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if "prefixItems" in schema:
        return st.tuples(*(values_of(part, root, depth) for part in schema["prefixItems"])).map(list)
    low, high = schema.get("minItems", 0), schema.get("maxItems", 0 if depth > 3 else 3)
    unique = json.dumps if schema.get("uniqueItems") else None
    inner = st.nothing() if high == 0 else values_of(schema["items"], root, depth)
    return st.lists(inner, min_size=low, max_size=high, unique_by=unique)


def objects(schema: dict[str, Any], root: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    parts = {name: values_of(part, root, depth) for name, part in schema.get("properties", {}).items()}
    needed = {name: parts.pop(name) for name in schema.get("required", [])}
    if parts or needed or not schema.get("additionalProperties"):
        return st.fixed_dictionaries(needed, optional=parts)
    keys = values_of({"type": "string", **schema.get("propertyNames", {})}, root, depth)
    more = schema["additionalProperties"]
    return st.dictionaries(keys, values_of(more if isinstance(more, dict) else {}, root, depth), max_size=3)


def valid(schema: dict[str, Any]) -> Any:
    return jsonschema.Draft202012Validator(schema).is_valid


@cache
def described(number: int) -> tuple[Tool[..., Any], TypeAdapter[Any], st.SearchStrategy[Any]]:
    row = ROWS[number]
    made = tool(taking(row.annotation, row.default))
    annotation = eval(row.annotation) if isinstance(row.annotation, str) else row.annotation
    return made, TypeAdapter(annotation), values_of(made.parameters, made.parameters)


def arrived(made: Tool[..., Any], document: str) -> Any:
    positional, named = bind(made.described, document, CONTEXT)
    return made(*positional, **named)


def taken_or_answered(made: Tool[..., Any], document: str) -> tuple[Any, str | None]:
    try:
        return arrived(made, document), None
    except InvalidArguments as answer:
        return None, str(answer)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), number=st.sampled_from(SAMPLES))
def test_arguments_that_satisfy_the_schema_arrive_as_the_annotated_types(
    data: st.DataObject, number: int
) -> None:
    made, annotated, strategy = described(number)
    sent = data.draw(strategy)
    assert valid(made.parameters)(sent)
    value = arrived(made, json.dumps(sent))
    if "value" in sent:  # a default arrives as the function has it
        annotated.validate_python(value, strict=True)  # converts nothing: it is of its type already


@settings(max_examples=300, deadline=None)
@given(number=st.sampled_from(EVERY), value=JSON_VALUES)
def test_a_value_that_the_schema_forbids_is_answered_or_read_as_the_annotated_type(
    number: int, value: Any
) -> None:
    made, annotated, _ = described(number)
    sent = {"value": value}
    assume(not valid(made.parameters)(sent))
    taken, answer = taken_or_answered(made, json.dumps(sent))
    if answer is None:  # "5" for a number, as some models write it
        annotated.validate_python(taken, strict=True)
    else:
        assert answer.startswith("value")
        assert len(answer) < 4000


@settings(max_examples=300, deadline=None)
@given(data=st.data(), number=st.sampled_from(SAMPLES))
def test_a_missing_or_an_unknown_argument_is_answered_with_its_name(data: st.DataObject, number: int) -> None:
    made, _, strategy = described(number)
    sent = data.draw(strategy)
    with pytest.raises(InvalidArguments, match="town: Extra inputs are not permitted"):
        arrived(made, json.dumps({**sent, "town": 1}))
    if "value" in made.parameters.get("required", []):
        with pytest.raises(InvalidArguments, match="value: Field required"):
            arrived(made, json.dumps({name: part for name, part in sent.items() if name != "value"}))


@settings(max_examples=300, deadline=None)
@given(number=st.sampled_from(EVERY), document=st.text() | JSON_VALUES.map(json.dumps))
def test_any_document_at_all_is_taken_or_answered(number: int, document: str) -> None:
    made, _, _ = described(number)
    _, answer = taken_or_answered(made, document)
    assert answer != ""
