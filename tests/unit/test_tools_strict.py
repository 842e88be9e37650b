"""Schemas for strict mode keep to its rules, and what it cannot express is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any

import jsonschema
import pytest
from binding import bind
from pydantic import BaseModel, Field
from strict_rules import violations
from tool_signatures import CONTEXT, NOTHING, ROWS, Node, Period, Row, taking

from orchestrator.tools import ToolRegistry, tool


def strict(row: Row) -> Any:
    return tool(strict=True)(taking(row.annotation, row.default))


@pytest.mark.parametrize("row", [row for row in ROWS if row.strict], ids=lambda row: str(row.annotation)[:60])
def test_a_strict_schema_keeps_the_rules_and_allows_what_arrives(row: Row) -> None:
    made = strict(row)
    assert violations(made.parameters) == []
    jsonschema.Draft202012Validator.check_schema(made.parameters)
    if row.sent is NOTHING:
        return
    sent = {"value": row.sent, "beside": True}
    positional, named = bind(made.described, json.dumps(sent), CONTEXT)
    assert made(*positional, **named) == row.arrives


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.strict], ids=lambda row: str(row.annotation)[:60]
)
def test_what_strict_mode_cannot_express_is_refused_with_the_parameters_name(row: Row) -> None:
    with pytest.raises(TypeError, match=r"tool 'function': .*value"):
        ToolRegistry([strict(row)])


def test_a_model_as_the_only_argument_is_a_strict_schema_too() -> None:
    def plan(period: Period) -> None:
        """Plan."""

    def grow(node: Node) -> None:
        """Grow."""

    for function in (plan, grow):
        assert violations(tool(strict=True)(function).parameters) == []


class Limited(BaseModel):
    size: Annotated[int, Field(ge=1, le=9, description="How large.")]
    code: Annotated[str, Field(pattern="^[a-z]$")]


def test_limits_become_words_that_the_model_reads() -> None:
    def take(limited: Limited) -> None:
        """Take."""

    assert tool(strict=True)(take).parameters["properties"] == {
        "size": {"type": "integer", "description": "How large. (minimum: 1, maximum: 9)"},
        "code": {"type": "string", "description": '(pattern: "^[a-z]$")'},
    }


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "items": {"type": "string"}}, "the root is no object"),
        ({"type": "object"}, "more properties"),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, "not every property"),
        ({"type": "object", "properties": {"a": {}}}, "neither a type"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "unknown types"),
        ({"type": "object", "properties": {"a": {"type": "string", "default": ""}}}, "unknown keywords"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}, "leads nowhere"),
        ({"type": "object", "properties": {"a": {"$ref": "#", "description": "A"}}}, "stand alone"),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, "without items"),
    ],
)
def test_the_rules_find_what_breaks_them(schema: dict[str, Any], said: str) -> None:
    assert said in "; ".join(violations(schema))
