"""What a tool returned, as the text that goes to the model: strings as they are, the rest as JSON.

Never Python's repr: a model would read it, and learn to write it. It does not know who asked.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import fields, is_dataclass
from enum import Enum
from os import PathLike, fspath
from typing import Any

__all__ = ["bounded", "encode"]


def encode(value: object) -> str:
    """Return a tool's result as text.

    A string goes out as it is and `None` as `null`. The rest becomes JSON: models, dataclasses, mappings,
    sequences, sets, enums, dates, `Decimal` and `UUID` (as strings), NumPy's scalars and arrays. A number
    that is not finite becomes `null`, as in JavaScript.

    Raises:
        TypeError: Something in it has no JSON form, such as bytes; the message says where it stands.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return str.__str__(value)  # the wire's codec takes no subclass, such as NumPy's or Markup
    return json.dumps(_plain(value, "the result"), ensure_ascii=False, allow_nan=False)


def bounded(text: str, max_bytes: int) -> str:
    """Return text that fits into `max_bytes` of UTF-8, saying so at the end where something was cut off."""
    if len(text) <= max_bytes and text.isascii():
        return text
    data = text.encode(errors="replace")  # a lone surrogate could not be sent
    if len(data) <= max_bytes:
        return data.decode()
    note = f"\n[truncated: the output has {len(data)} bytes, of which at most {max_bytes} are sent]"
    return data[: max(0, max_bytes - len(note))].decode(errors="ignore") + note


def _plain(value: Any, where: str) -> Any:
    """Return the value as what `json.dumps` takes. Kinds overlap, so the order of the rules matters."""
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{where} is {type(value).__name__}, which JSON cannot carry; decode or encode it")
    if isinstance(value, complex):
        raise TypeError(f"{where} is a complex number, which JSON cannot carry; return its parts")
    if isinstance(value, type):
        return _leaf(value, where)  # no instance: it has the attributes that mark one
    if (parts := _parts(value)) is not None:
        return {_key(key, where): _plain(part, f"{where}.{key}") for key, part in parts.items()}
    if isinstance(value, Sequence | Set | ValuesView | Iterator | deque):
        return [_plain(part, f"{where}[{number}]") for number, part in enumerate(value)]
    if (converted := _converted(value)) is not value:
        return _plain(converted, where)
    return _leaf(value, where)


def _converted(value: Any) -> Any:
    """Return what an object says of itself: a pydantic model, a path, NumPy's arrays and scalars.

    Asked of objects without parts only: those may well have a method `item` that means something else.
    """
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, PathLike):
        return fspath(value)
    for converter in ("tolist", "item"):
        if callable(convert := getattr(value, converter, None)):
            return convert()
    return value


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return the named parts of a mapping, dataclass or Struct."""
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if names := getattr(value, "__struct_fields__", None):
        return {name: getattr(value, name) for name in names}
    return None


def _key(key: object, where: str) -> str:
    plain = _plain(key, f"a key of {where}")
    if isinstance(plain, list | dict):
        raise TypeError(f"a key of {where} is {type(key).__name__}, which JSON cannot carry")
    return plain if isinstance(plain, str) else json.dumps(plain)


def _leaf(value: object, where: str) -> object:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"{where} is {type(value).__name__}, which has no JSON form") from error
