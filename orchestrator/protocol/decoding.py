"""Reading leniently: a server's JSON becomes an object even where it says null against the schema.

Owns the difference between what the schema allows and what servers send (PROTOCOL.md, "Traps in the published
spec"): null for a field that is not nullable counts as missing, a number among metadata stands for its text,
and 3.0 for 3. What an object cannot do without, its id above all, is never made up.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

__all__ = ["Decoder"]

T = TypeVar("T")


class Decoder(Generic[T]):
    """Decodes JSON into one type; may be shared by threads.

    What keeps to the schema costs no more than with msgspec's own decoder.

    Args:
        kind: A Struct type.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._strict = msgspec.json.Decoder(kind)

    def decode(self, data: bytes | msgspec.Raw) -> T:
        """Decode one document.

        Raises:
            ValueError: It is not JSON, or not of this type, however leniently it is read.
            RecursionError: It is nested too deeply.
        """
        try:
            return self._strict.decode(data)
        except msgspec.ValidationError:
            return msgspec.convert(_mended(msgspec.json.decode(data), self._type), self._kind)

    @cached_property
    def _type(self) -> inspect.Type:
        # Takes a millisecond, and is needed for odd servers only.
        return inspect.type_info(self._kind)


def _mended(value: Any, kind: inspect.Type) -> Any:
    """Return a JSON value with everything replaced that its type cannot hold and that has a plain meaning."""
    match kind:
        case inspect.UnionType(types=types):
            # At most one member of a union is an object, an array or a number that needs a look inside.
            for member in types:
                value = _mended(value, member)
        case inspect.StructType(fields=fields) if isinstance(value, dict):
            types_by_name = {field.encode_name: field.type for field in fields}
            return {
                name: _mended(one, types_by_name[name])
                for name, one in value.items()
                if name in types_by_name and (one is not None or _is_nullable(types_by_name[name]))
            }
        case inspect.DictType(value_type=item) if isinstance(value, dict):
            return {
                name: _text(one) if isinstance(item, inspect.StrType) else _mended(one, item)
                for name, one in value.items()
                if one is not None or _is_nullable(item)
            }
        case (inspect.ListType() | inspect.VarTupleType()) as many if isinstance(value, list):
            # Null among them is no missing field: which call of a batch it was, nobody can say.
            return [_mended(one, many.item_type) for one in value]
        case inspect.IntType() if isinstance(value, float) and value.is_integer():
            return int(value)
    return value


def _text(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, int | float) else value


def _is_nullable(kind: inspect.Type) -> bool:
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(member, inspect.NoneType | inspect.AnyType) for member in members)
