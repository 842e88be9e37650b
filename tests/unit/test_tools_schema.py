"""What a signature becomes: the schema that the model sees, and the values that arrive."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, NewType, Optional, Self, Union
from uuid import UUID

import annotated_types
import jsonschema
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from orchestrator.tools import ToolContext, ToolRegistry, tool
from orchestrator.tools.arguments import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pandas import DataFrame  # type: ignore[import-untyped, import-not-found, unused-ignore] # never there

SPEC = json.loads((Path(__file__).parents[1] / "spec" / "threads-openapi.json").read_text(encoding="utf-8"))
NOTHING: Any = object()
CONTEXT = ToolContext(run_id="run_1", thread_id="thread_1", call_id="call_1", tool="t")


class Colour(enum.Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Size(enum.StrEnum):
    SMALL = "s"


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    title: str = Field(default="Home", description="What it is called.")


class Person(BaseModel):
    name: str
    address: Address | None = None


class Node(BaseModel):
    children: list[Node] = []


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Movie(TypedDict, total=False):
    name: str
    year: int


class Pair(NamedTuple):
    left: int
    right: str


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


UserId = NewType("UserId", int)

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
    "required": ["x"],
    "additionalProperties": False,
}
ADDRESS = {
    "type": "object",
    "description": "Where somebody lives.",
    "properties": {
        "street": {"type": "string"},
        "title": {"type": "string", "default": "Home", "description": "What it is called."},
    },
    "required": ["street"],
}


@dataclasses.dataclass
class Row:
    """One parameter called `value`: its annotation, its schema, and what arrives for what is sent."""

    annotation: Any
    schema: dict[str, Any]
    sent: Any
    arrives: Any
    default: Any = NOTHING


OPTIONAL_INT = {"anyOf": [{"type": "integer"}, {"type": "null"}]}

ROWS = [
    Row(str, {"type": "string"}, "Oslo", "Oslo"),
    Row(str, {"type": "string", "default": "x"}, NOTHING, "x", default="x"),
    Row(int, {"type": "integer"}, 3, 3),
    Row(float, {"type": "number"}, 2, 2.0),
    Row(bool, {"type": "boolean"}, True, True),
    Row(None, {"type": "null"}, None, None),
    Row(Any, {}, {"a": [1]}, {"a": [1]}),
    Row(object, {}, "x", "x"),
    Row(Optional[int], OPTIONAL_INT, None, None),  # noqa: UP045 - the older spelling is a row too
    Row(int | None, {**OPTIONAL_INT, "default": None}, NOTHING, None, default=None),
    Row(Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "a", "a"),  # noqa: UP007 - the same
    Row(Literal["c", "f"], {"type": "string", "enum": ["c", "f"]}, "f", "f"),
    Row(Literal["one"], {"type": "string", "const": "one"}, "one", "one"),
    Row(Literal[1, "a"], {"enum": [1, "a"]}, 1, 1),
    Row(Colour, {"$ref": "#/$defs/Colour"}, "red", Colour.RED),
    Row(Colour, {"$ref": "#/$defs/Colour", "default": "blue"}, NOTHING, Colour.BLUE, default=Colour.BLUE),
    Row(Level, {"$ref": "#/$defs/Level"}, 2, Level.HIGH),
    Row(Size, {"$ref": "#/$defs/Size"}, "s", Size.SMALL),
    Row(Annotated[int, Field(ge=1, le=5)], {"type": "integer", "minimum": 1, "maximum": 5}, 5, 5),
    Row(Annotated[int, annotated_types.Gt(0)], {"type": "integer", "exclusiveMinimum": 0}, 1, 1),
    Row(Annotated[str, Field(max_length=3)], {"type": "string", "maxLength": 3}, "abc", "abc"),
    Row(Annotated[str, Field(pattern="^a")], {"type": "string", "pattern": "^a"}, "ab", "ab"),
    Row(Annotated[str, Field(description="A city.")], {"type": "string", "description": "A city."}, "a", "a"),
    Row(Annotated[str, "a remark"], {"type": "string"}, "a", "a"),
    Row(Annotated[int, Field(alias="other")], {"type": "integer"}, 1, 1),
    Row(int, {"type": "integer", "default": 3, "minimum": 0}, NOTHING, 3, default=Field(default=3, ge=0)),
    Row(list[int], {"type": "array", "items": {"type": "integer"}}, [1, 2], [1, 2]),
    Row(list, {"type": "array", "items": {}}, [1, "a"], [1, "a"]),
    Row(list[str], {"type": "array", "items": {"type": "string"}, "default": []}, NOTHING, [], default=[]),
    Row(Sequence[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    Row(set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["a"], {"a"}),
    Row(tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1, 2], (1, 2)),
    Row(
        tuple[int, str],
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
        [1, "a"],
        (1, "a"),
    ),
    Row(dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    Row(dict, {"type": "object", "additionalProperties": True}, {"a": 1}, {"a": 1}),
    Row(
        Mapping[str, float],
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"a": 1},
        {"a": 1.0},
    ),
    Row(dt.date, {"type": "string", "format": "date"}, "2026-01-31", dt.date(2026, 1, 31)),
    Row(
        dt.datetime,
        {"type": "string", "format": "date-time"},
        "2026-01-31T10:00:00Z",
        dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC),
    ),
    Row(dt.time, {"type": "string", "format": "time"}, "10:30:00", dt.time(10, 30)),
    Row(dt.timedelta, {"type": "string", "format": "duration"}, "PT90S", dt.timedelta(seconds=90)),
    Row(UUID, {"type": "string", "format": "uuid"}, str(UUID(int=7)), UUID(int=7)),
    Row(Path, {"type": "string", "format": "path"}, "a/b", Path("a/b")),
    Row(bytes, {"type": "string", "format": "binary"}, "ab", b"ab"),
    Row(UserId, {"type": "integer"}, 4, 4),
    Row(Address, {"$ref": "#/$defs/Address"}, {"street": "S"}, Address(street="S")),
    Row(
        Person,
        {"$ref": "#/$defs/Person"},
        {"name": "P", "address": {"street": "S"}},
        Person(name="P", address=Address(street="S")),
    ),
    Row(Node, {"$ref": "#/$defs/Node"}, {"children": [{}]}, Node(children=[Node()])),
    Row(
        list[Address],
        {"type": "array", "items": {"$ref": "#/$defs/Address"}},
        [{"street": "S"}],
        [Address(street="S")],
    ),
    Row(Point, {"$ref": "#/$defs/Point"}, {"x": 1}, Point(1.0, 0.0)),
    Row(Movie, {"$ref": "#/$defs/Movie"}, {"year": 1999}, {"year": 1999}),
    Row(Pair, {"$ref": "#/$defs/Pair"}, [1, "a"], Pair(1, "a")),
    Row(
        Annotated[Cat | Dog, Field(discriminator="kind")],
        {
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {
                "propertyName": "kind",
                "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
            },
        },
        {"kind": "cat", "lives": 9},
        Cat(kind="cat", lives=9),
    ),
]


def taking(annotation: Any, default: Any = NOTHING) -> Callable[..., Any]:
    def function(value):  # type: ignore[no-untyped-def]  # annotated below, as the row says
        return value

    function.__annotations__ = {"value": annotation}
    if default is not NOTHING:
        function.__defaults__ = (default,)
    return function


def call(function: Callable[..., Any], arguments: object) -> Any:
    """Call a tool the way the executor does, with a document from a model."""
    made = tool(function)
    args, kwargs = bind(made.described, json.dumps(arguments), CONTEXT)
    return made(*args, **kwargs)


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

    assert call(make(), {"item": {"number": 4}}) == 4


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
