"""What a tool returns, as the model reads it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections import OrderedDict, deque, namedtuple
from decimal import Decimal
from ipaddress import ip_address
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, RootModel

from orchestrator.tools.outcome import error_output
from orchestrator.tools.outputs import bounded, encode


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Model(BaseModel):
    when: dt.date
    ratio: float = 0.5


class Numbers(RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Data:
    colour: Colour
    model: Model


class Struct(msgspec.Struct):
    amount: Decimal


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Order:
    """Has methods that only happen to be called as NumPy's are."""

    number: int

    def item(self, position: int) -> int:
        return position

    def tolist(self) -> list[str]:
        return ["nothing of this"]


class Text(str):
    __slots__ = ()


class Scalar:
    """What NumPy's scalars offer, without NumPy."""

    def item(self) -> int:
        return 7


class Array:
    def tolist(self) -> list[Any]:
        return [1.5, Scalar()]


DAY = dt.date(2026, 1, 31)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (5, 5),
        (0.25, 0.25),
        (float("nan"), None),
        (float("inf"), None),
        ({"a": [1, None, "ü"]}, {"a": [1, None, "ü"]}),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        (frozenset({"a"}), ["a"]),
        (deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [["a", 1]]),
        ((n for n in (1, 2)), [1, 2]),
        (map(str, (1, 2)), ["1", "2"]),
        (zip("a", "b", strict=True), [["a", "b"]]),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ({1: "a", None: "b", 0.5: "c"}, {"1": "a", "null": "b", "0.5": "c"}),
        ({Colour.RED: 1, UUID(int=1): 2, DAY: 3}, {"red": 1, str(UUID(int=1)): 2, "2026-01-31": 3}),
        (Colour.RED, "red"),
        (Word.YES, "yes"),
        (Number.ONE, 1),
        (DAY, "2026-01-31"),
        (dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC), "2026-01-31T10:00:00Z"),
        (dt.time(10, 30), "10:30:00"),
        (dt.timedelta(seconds=90), "PT1M30S"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), str(UUID(int=1))),
        (PurePosixPath("a/b"), "a/b"),
        (ip_address("127.0.0.1"), "127.0.0.1"),
        (Model(when=DAY), {"when": "2026-01-31", "ratio": 0.5}),
        (Model(when=DAY, ratio=float("nan")), {"when": "2026-01-31", "ratio": None}),
        (Numbers([1, 2]), [1, 2]),
        (
            Data(Colour.RED, Model(when=DAY)),
            {"colour": "red", "model": {"when": "2026-01-31", "ratio": 0.5}},
        ),
        (Struct(amount=Decimal("2.50")), {"amount": "2.50"}),
        (Pair(1, DAY), [1, "2026-01-31"]),
        (Scalar(), 7),
        (Array(), [1.5, 7]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_becomes_json(value: object, expected: object) -> None:
    text = encode(value)
    assert json.loads(text, parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("text", ["", "plain", '{"a": 1}', "null", "naïve\n"])
def test_a_string_goes_out_as_it_is(text: str) -> None:
    assert encode(text) == text


@pytest.mark.parametrize("text", [Text("sunny"), Text("sønny"), Text("")])
def test_a_string_of_a_class_of_its_own_goes_out_as_a_plain_one_which_the_wire_can_carry(text: str) -> None:
    output = bounded(encode(text), 1000)
    assert (type(output), output) == (str, text)
    assert msgspec.json.decode(msgspec.json.encode(output)) == text


def test_an_object_with_parts_is_its_parts_whatever_its_methods_are_called() -> None:
    assert encode(Order(number=7)) == '{"number": 7}'


def test_letters_beyond_ascii_are_not_escaped() -> None:
    assert encode(["ü"]) == '["ü"]'


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (b"raw", "the result is bytes"),
        (iter([b"raw"]), r"the result\[0\] is bytes"),
        (1 + 2j, "the result is a complex number"),
        ({"file": [b"raw"]}, r"the result\.file\[0\] is bytes"),
        ({b"key": 1}, "a key of the result is bytes"),
        ({"a": bytearray()}, r"the result\.a is bytearray"),
        ({"a": object()}, r"the result\.a is object, which has no JSON form"),
        ({(1, 2): 3}, "a key of the result is tuple"),
        (Model, "the result is .*, which has no JSON form"),
        (lambda: 1, "the result is function"),
        (ValueError("x"), "the result is ValueError"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_its_place(value: object, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        encode(value)


def test_a_result_that_contains_itself_is_an_error_and_not_a_crash() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(RecursionError):
        encode(circle)


@pytest.mark.parametrize("text", ["x" * 2000, "é" * 2000, "𝄞" * 2000])
def test_a_long_output_is_cut_between_characters_and_says_so(text: str) -> None:
    cut = bounded(text, 1000)
    kept, _, note = cut.partition("\n")
    assert len(cut.encode()) <= 1000
    assert text.startswith(kept)
    assert len(kept.encode()) > 900
    assert note == f"[truncated: the output has {len(text.encode())} bytes, of which at most 1000 are sent]"


def test_an_output_at_the_limit_is_left_alone_and_lone_surrogates_become_sendable() -> None:
    assert bounded("x" * 1000, 1000) == "x" * 1000
    assert bounded("é" * 500, 1000) == "é" * 500
    assert bounded("a\ud800", 1000) == "a?"


def test_an_error_with_a_lone_surrogate_becomes_sendable() -> None:
    output = error_output("ValueError", "\ud800 café")
    assert output == '{"error": {"type": "ValueError", "message": "? café"}}'
