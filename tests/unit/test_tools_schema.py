"""What a signature becomes: the schema that the model sees, and the values that arrive."""

from __future__ import annotations

import functools
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import jsonschema
import pytest
from binding import bind
from pydantic import BaseModel, Field
from tool_signatures import (
    ADDRESS,
    CONTEXT,
    NOTHING,
    POINT,
    ROWS,
    Colour,
    Person,
    Point,
    Row,
    call,
    taking,
)

from orchestrator.tools import ToolContext, ToolRegistry, tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from pandas import DataFrame  # type: ignore[import-untyped, import-not-found, unused-ignore] # never there

SPEC = json.loads((Path(__file__).parents[1] / "spec" / "threads-openapi.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.annotation)[:60])
def test_an_annotation_becomes_its_schema_and_what_is_sent_arrives_as_its_type(row: Row) -> None:
    function = taking(row.annotation, row.default)
    definition = ToolRegistry([function]).definitions()[0]
    parameters = definition["function"]["parameters"]
    sent = {} if row.sent is NOTHING else {"value": row.sent}

    assert parameters["properties"]["value"] == row.schema
    assert parameters.get("required", []) == (["value"] if row.default is NOTHING else [])
    jsonschema.Draft202012Validator.check_schema(parameters)
    jsonschema.validate(sent, parameters)
    arrived = call(function, sent)
    assert arrived == row.arrives
    assert type(arrived) is type(row.arrives)


def definitions_of(annotation: Any) -> Any:
    return tool(taking(annotation)).parameters["$defs"]


def test_models_and_dataclasses_are_described_without_titles_of_their_names() -> None:
    assert definitions_of(Person)["Address"] == ADDRESS
    assert definitions_of(Point)["Point"] == POINT
    assert definitions_of(Colour)["Colour"] == {
        "type": "string",
        "description": "A colour.",
        "enum": ["red", "blue"],
    }


def test_a_decimal_arrives_as_a_decimal() -> None:
    assert call(taking(Decimal), {"value": "1.10"}) == Decimal("1.10")


def test_every_definition_is_valid_against_the_protocols_schema() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": "#/components/schemas/AssistantToolsFunction",
        "components": SPEC["components"],
    }
    validator = jsonschema.Draft202012Validator(schema)
    for number, row in enumerate(ROWS):
        made = tool(name=f"tool_{number}", description="Does it.")(taking(row.annotation, row.default))
        validator.validate(made.definition())

    @tool(strict=True)
    def exact(city: str) -> str:
        return city

    validator.validate(exact.definition())
    assert exact.definition()["function"]["strict"] is True


def positional_only(a: int, b: int = 2, /, c: int = 3) -> tuple[int, int, int]:
    return a, b, c


def keyword_only(*, a: int, b: str = "x") -> tuple[int, str]:
    return a, b


def no_parameters() -> str:
    return "done"


def awkward_names(schema: int, copy: int, model_config: int, _private: int, title: int, json: int) -> int:
    return schema + copy + model_config + _private + title + json


def for_type_checkers_only(rows: int) -> DataFrame:
    return rows


@pytest.mark.parametrize(
    ("function", "sent", "result"),
    [
        (positional_only, {"a": 1}, (1, 2, 3)),
        (positional_only, {"a": 1, "b": 5, "c": 6}, (1, 5, 6)),
        (keyword_only, {"a": 1}, (1, "x")),
        (keyword_only, {"b": "y", "a": 7}, (7, "y")),
        (no_parameters, {}, "done"),
        (
            awkward_names,
            {"schema": 1, "copy": 2, "model_config": 3, "_private": 4, "title": 5, "json": 6},
            21,
        ),
        (for_type_checkers_only, {"rows": 3}, 3),
        (functools.partial(keyword_only, b="fixed"), {"a": 1}, (1, "fixed")),
        (functools.partial(positional_only, 9), {"c": 1}, (9, 2, 1)),
    ],
)
def test_every_kind_of_parameter_receives_its_value(
    function: Callable[..., Any], sent: dict[str, Any], result: Any
) -> None:
    made = ToolRegistry([function]).get(getattr(function, "__name__", None) or function.func.__name__)  # type: ignore[attr-defined]
    assert made is not None
    jsonschema.validate(sent, made.parameters)
    assert call(function, sent) == result


def test_a_partials_fixed_keyword_is_hidden_from_the_model() -> None:
    assert list(tool(functools.partial(keyword_only, b="fixed")).parameters["properties"]) == ["a"]


def test_no_arguments_at_all_stand_for_an_empty_object() -> None:
    made = tool(no_parameters)
    assert made.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert bind(made.described, " ", CONTEXT) == ([], {})


def test_the_context_is_not_part_of_the_schema_and_arrives() -> None:
    def with_context(context: ToolContext, city: str) -> tuple[str, str]:
        return context.call_id, city

    def with_optional_context(city: str, context: ToolContext | None = None) -> tuple[Any, str]:
        return context, city

    assert list(tool(with_context).parameters["properties"]) == ["city"]
    assert call(with_context, {"city": "Oslo"}) == ("call_1", "Oslo")
    assert list(tool(with_optional_context).parameters["properties"]) == ["city"]
    assert call(with_optional_context, {"city": "Oslo"}) == (CONTEXT, "Oslo")


def test_types_of_an_enclosing_function_are_found_with_postponed_annotations() -> None:
    class Local(BaseModel):
        number: int

    @tool
    def take(item: Local, more: list[Local]) -> int:
        return item.number + len(more)

    assert take.parameters["properties"]["item"] == {"$ref": "#/$defs/Local"}
    assert call(take, {"item": {"number": 1}, "more": [{"number": 1}]}) == 2


def test_local_types_are_found_after_the_enclosing_function_has_returned() -> None:
    def make() -> Any:
        class Local(BaseModel):
            number: int

        @tool
        def take(item: Local) -> int:
            return item.number

        return take

    assert call(make(), {"number": 4}) == 4


class Desk:
    def __init__(self, name: str) -> None:
        self.name = name

    @tool
    def book(self, city: str) -> str:
        """Book a room."""
        return f"{self.name}: {city}"

    def plain(self, city: str) -> str:
        return f"{self.name}, plainly: {city}"

    @tool
    @staticmethod
    def shout(city: str) -> str:
        return city.upper()

    @tool
    @classmethod
    def owner(cls, city: str) -> str:
        return cls.__name__ + city


def test_methods_are_tools_of_their_object() -> None:
    desk = Desk("North")
    registry = ToolRegistry([desk.book, desk.plain, Desk.shout, Desk.owner])
    assert registry.names == ("book", "plain", "shout", "owner")
    results = []
    for made in registry:
        assert list(made.parameters["properties"]) == ["city"]
        args, kwargs = bind(made.described, '{"city": "Oslo"}', CONTEXT)
        results.append(made(*args, **kwargs))
    assert results == ["North: Oslo", "North, plainly: Oslo", "OSLO", "DeskOslo"]
    assert desk.book("Rome") == "North: Rome"
    assert desk.book.description == "Book a room."


class Opaque:
    pass


def unannotated(city) -> None:  # type: ignore[no-untyped-def]  # that is the case
    pass


def starred(*cities: str) -> None:
    pass


def double_starred(**options: str) -> None:
    pass


def opaque(good: int, thing: Opaque) -> None:
    pass


def calls_back(callback: Callable[[], int]) -> None:
    pass


def unknown_name(frame: DataFrame) -> None:
    pass


def bad_pattern(text: Annotated[str, Field(pattern="(")]) -> None:
    pass


def itself(value: Self) -> None:  # type: ignore[misc]  # wrong for type checkers too
    pass


def test_a_callable_without_a_signature_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="tool 'min': no signature found"):
        ToolRegistry([min])


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (unannotated, "city"),
        (starred, "cities"),
        (double_starred, "options"),
        (opaque, "thing"),
        (calls_back, "callback"),
        (unknown_name, "frame"),
        (bad_pattern, "text"),
        (taking(Final[int], 3), "value"),
        (itself, "value"),
        (Desk.book, "self"),
        (Desk.plain, "self"),
    ],
)
def test_what_cannot_be_described_is_refused_at_registration_by_tool_and_parameter(
    function: Callable[..., Any], parameter: str
) -> None:
    tool(function)  # decorating costs nothing and refuses nothing
    with pytest.raises(
        TypeError, match=rf"tool '{getattr(function, '__name__', None)}': parameter '{parameter}'"
    ):
        ToolRegistry([function])
    with pytest.raises(TypeError, match=parameter):
        ToolRegistry().register(function)
