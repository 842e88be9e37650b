"""Signatures of tools, the schemas they become, and what arrives for what is sent."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections import OrderedDict, deque
from collections.abc import Mapping, MutableSequence, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import (  # pydantic asks for it below Python 3.12
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import annotated_types
from binding import bind
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from pydantic.dataclasses import dataclass as validated_dataclass
from typing_extensions import TypedDict

from orchestrator.tools import ToolContext, tool

if TYPE_CHECKING:
    from collections.abc import Callable

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
T = TypeVar("T")


class Stack(BaseModel, Generic[T]):
    top: T


class Period(BaseModel):
    """From one day to another."""

    model_config = ConfigDict(extra="forbid")

    start: dt.date = Field(alias="from")
    end: dt.date | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.end is not None and self.end < self.start:
            raise ValueError("it ends before it starts")
        return self


class Numbers(RootModel[list[int]]):
    pass


class Ticket(TypedDict):
    title: Required[str]
    note: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class Line:
    start: Point
    end: Point


@validated_dataclass
class Box:
    width: Annotated[int, Field(gt=0)]


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


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
    """One parameter called `value`: its annotation, its schema, and what arrives for what is sent.

    `strict` says whether strict mode can express it.
    """

    annotation: Any
    schema: dict[str, Any]
    sent: Any
    arrives: Any
    default: Any = NOTHING
    strict: bool = True


OPTIONAL_INT = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
INTEGERS = {"type": "array", "items": {"type": "integer"}}
NUMBERED = {"type": "object", "additionalProperties": {"type": "integer"}}
COLOURS = {"$ref": "#/$defs/Colour"}
BETWEEN_0_AND_1 = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
DAY = dt.date(2026, 1, 31)

ROWS = [
    Row(str, {"type": "string"}, "Oslo", "Oslo"),
    Row(str, {"type": "string", "default": "x"}, NOTHING, "x", default="x"),
    Row(int, {"type": "integer"}, 3, 3),
    Row(float, {"type": "number"}, 2, 2.0),
    Row(bool, {"type": "boolean"}, True, True),
    Row(None, {"type": "null"}, None, None),
    Row(Any, {}, {"a": [1]}, {"a": [1]}, strict=False),
    Row(object, {}, "x", "x", strict=False),
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
    Row(list, {"type": "array", "items": {}}, [1, "a"], [1, "a"], strict=False),
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
        strict=False,
    ),
    Row(dict[str, int], NUMBERED, {"a": 1}, {"a": 1}, strict=False),
    Row(dict, {"type": "object", "additionalProperties": True}, {"a": 1}, {"a": 1}, strict=False),
    Row(
        Mapping[str, float],
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"a": 1},
        {"a": 1.0},
        strict=False,
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
    Row(Pair, {"$ref": "#/$defs/Pair"}, [1, "a"], Pair(1, "a"), strict=False),
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
    Row(str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "a", "a"),
    Row(int | str | None, {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}, None, None),
    Row(bool, {"type": "boolean", "default": True}, NOTHING, True, default=True),
    Row(float, {"type": "number", "default": 0.5}, NOTHING, 0.5, default=0.5),
    Row(Literal[1, 2], {"type": "integer", "enum": [1, 2]}, 2, 2),
    Row(Literal["a", None], {"enum": ["a", None]}, None, None),
    Row(Literal["a"] | int, {"anyOf": [{"type": "string", "const": "a"}, {"type": "integer"}]}, 4, 4),
    Row(Mixed, {"$ref": "#/$defs/Mixed"}, "two", Mixed.TWO),
    Row(list[Colour], {"type": "array", "items": {"$ref": "#/$defs/Colour"}}, ["red"], [Colour.RED]),
    Row(Annotated[float, Field(gt=0, lt=1)], {"type": "number", **BETWEEN_0_AND_1}, 0.5, 0.5),
    Row(Annotated[int, Field(multiple_of=5)], {"type": "integer", "multipleOf": 5}, 10, 10),
    Row(Annotated[str, Field(min_length=1)], {"type": "string", "minLength": 1}, "a", "a"),
    Row(
        Annotated[list[int], Field(min_length=1, max_length=2)],
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        [1],
        [1],
    ),
    Row(
        list[Annotated[int, Field(ge=0)]],
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        [0],
        [0],
    ),
    Row(Annotated[int, Field(examples=[7])], {"type": "integer", "examples": [7]}, 7, 7),
    Row(Annotated[int | None, Field(description="N.")], {**OPTIONAL_INT, "description": "N."}, 1, 1),
    Row(
        list[list[int]],
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        [[1], []],
        [[1], []],
    ),
    Row(list[int | None], {"type": "array", "items": OPTIONAL_INT}, [1, None], [1, None]),
    Row(frozenset[int], {**INTEGERS, "uniqueItems": True}, [1], frozenset({1})),
    Row(deque[int], INTEGERS, [1], deque([1])),
    Row(MutableSequence[int], INTEGERS, [1], [1]),
    Row(tuple[()], {"type": "array", "maxItems": 0, "minItems": 0}, [], (), strict=False),
    Row(
        dict[str, list[int]],
        {"type": "object", "additionalProperties": INTEGERS},
        {"a": [1]},
        {"a": [1]},
        strict=False,
    ),
    Row(
        dict[Colour, int],
        {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": COLOURS},
        {"red": 1},
        {Colour.RED: 1},
        strict=False,
    ),
    Row(
        dict[int, str],
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"1": "a"},
        {1: "a"},
        strict=False,
    ),
    Row(OrderedDict[str, int], NUMBERED, {"a": 1}, OrderedDict(a=1), strict=False),
    Row(dt.date, {"type": "string", "format": "date", "default": "2026-01-31"}, NOTHING, DAY, default=DAY),
    Row(
        dt.date | None,
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "2026-01-31",
        DAY,
    ),
    Row(
        list[dt.date],
        {"type": "array", "items": {"type": "string", "format": "date"}},
        ["2026-01-31"],
        [DAY],
    ),
    Row(IPv4Address, {"type": "string", "format": "ipv4"}, "127.0.0.1", IPv4Address("127.0.0.1")),
    Row(list[UUID], {"type": "array", "items": {"type": "string", "format": "uuid"}}, [], []),
    Row(ZoneInfo, {"type": "string", "format": "zoneinfo"}, "Europe/Oslo", ZoneInfo("Europe/Oslo")),
    Row(Address | None, {"anyOf": [{"$ref": "#/$defs/Address"}, {"type": "null"}]}, None, None),
    Row(
        Address | Point,
        {"anyOf": [{"$ref": "#/$defs/Address"}, {"$ref": "#/$defs/Point"}]},
        {"x": 1},
        Point(1),
    ),
    Row(
        dict[str, Address],
        {"type": "object", "additionalProperties": {"$ref": "#/$defs/Address"}},
        {"a": {"street": "S"}},
        {"a": Address(street="S")},
        strict=False,
    ),
    Row(Period, {"$ref": "#/$defs/Period"}, {"from": "2026-01-31"}, Period(**{"from": DAY})),
    Row(Stack[int], {"$ref": "#/$defs/Stack_int_"}, {"top": 3}, Stack[int](top=3)),
    Row(Numbers, {"$ref": "#/$defs/Numbers"}, [1, 2], Numbers([1, 2])),
    Row(Ticket, {"$ref": "#/$defs/Ticket"}, {"title": "T"}, {"title": "T"}),
    Row(Line, {"$ref": "#/$defs/Line"}, {"start": {"x": 1}, "end": {"x": 2}}, Line(Point(1.0), Point(2.0))),
    Row(Box, {"$ref": "#/$defs/Box"}, {"width": 3}, Box(3)),
    Row(list[Point], {"type": "array", "items": {"$ref": "#/$defs/Point"}}, [{"x": 1}], [Point(1.0)]),
    Row(
        Point,
        {"$ref": "#/$defs/Point", "default": {"x": 1.0, "y": 2.0}},
        NOTHING,
        Point(1, 2),
        default=Point(1, 2),
    ),
    Row("int", {"type": "integer"}, 3, 3),
    Row(
        "list[str] | None",
        {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        [],
        [],
    ),
]


def taking(annotation: Any, default: Any = NOTHING) -> Callable[..., Any]:
    # Two parameters, because a model that is the only one is the arguments object itself.
    def function(value, *, beside=False):  # type: ignore[no-untyped-def]  # annotated below, as the row says
        return value

    function.__annotations__ = {"value": annotation, "beside": bool}
    if default is not NOTHING:
        function.__defaults__ = (default,)
    return function


def call(function: Callable[..., Any], arguments: object) -> Any:
    """Call a tool the way the executor does, with a document from a model."""
    made = tool(function)
    args, kwargs = bind(made.described, json.dumps(arguments), CONTEXT)
    return made(*args, **kwargs)
