"""Whether what an assistant says about its functions agrees with the functions here.

Compares what the schemas allow, not how they are written: descriptions are the assistant's own, and what only
one side states (a default, whether more properties may come) is no contradiction. It knows no functions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.protocol.objects import JSON

__all__ = ["SchemaDifference", "ToolCheck", "compared"]

_WORDS = ("title", "description", "examples", "discriminator", "$defs", "$schema", "deprecated")
_IF_BOTH_SAY = ("default", "additionalProperties")
_LENGTH = 80
_MOST_PARTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDifference:
    """A function whose arguments the assistant describes otherwise than its handler does.

    Attributes:
        name: The function.
        how: A sentence for each difference, such as `"city: the assistant says …, the function …"`.
    """

    name: str
    how: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCheck:
    """What a registry lacks, or has otherwise, of what an assistant may ask for. True when all agrees.

    Attributes:
        without_handler: Functions of the assistant that nobody registered.
        different: Functions whose schemas differ.
    """

    without_handler: tuple[str, ...] = ()
    different: tuple[SchemaDifference, ...] = ()

    def __bool__(self) -> bool:
        return not self.without_handler and not self.different

    def __str__(self) -> str:
        lines = [f"{name}: no function is registered under this name" for name in self.without_handler]
        lines += [f"{found.name}: {'; '.join(found.how)}" for found in self.different]
        return "\n".join(lines) or "every function of the assistant has its handler"


def compared(tools: Sequence[JSON], schemas: Mapping[str, JSON]) -> ToolCheck:
    """Compare an assistant's tools with schemas of arguments, by name.

    Args:
        tools: The `tools` of an assistant; those that are no functions are the server's own.
        schemas: What handlers take.
    """
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), dict)]
    names = [str(function.get("name")) for function in functions]
    different = []
    for name, function in zip(names, functions, strict=True):
        if name in schemas:
            theirs, ours = function.get("parameters") or {"type": "object"}, schemas[name]
            if theirs == ours:
                continue  # as it mostly is, and a hundred times faster than to find that out below
            if how := _how(theirs, ours):
                different.append(SchemaDifference(name=name, how=how))
    return ToolCheck(
        without_handler=tuple(name for name in names if name not in schemas), different=tuple(different)
    )


class _TooIntricateError(Exception):
    """Written out, the schema would have more parts than are worth comparing."""


@dataclass(slots=True)
class _Root:
    """A whole schema, and how many more of its parts may be written out.

    Models that refer to each other are written out once for each way to them, and those multiply.
    """

    schema: JSON
    parts_left: int = _MOST_PARTS


def _how(theirs: JSON, ours: JSON) -> tuple[str, ...]:
    try:
        return tuple(_differences(_plain(theirs, _Root(theirs)), _plain(ours, _Root(ours)), ""))
    except _TooIntricateError:
        return (
            "its models refer to each other in too many ways to compare them, and are not spelt the same",
        )


def _plain(schema: Any, root: _Root, inside: tuple[str, ...] = ()) -> Any:
    """Return one spelling for schemas that allow the same: references written out, unions sorted.

    Raises:
        _TooIntricateError: There would be too much of it.
    """
    if not isinstance(schema, dict):
        return schema
    root.parts_left -= 1
    if root.parts_left < 0:
        raise _TooIntricateError
    if isinstance(reference := schema.get("$ref"), str):
        if reference in inside:
            return {"recursive": len(inside) - inside.index(reference)}  # names may differ, depth may not
        target = _resolved(reference, root.schema)
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain({**target, **siblings}, root, (*inside, reference))
    plain = _unified({key: value for key, value in schema.items() if key not in _WORDS})
    if "anyOf" in plain:
        members = _merged([_plain(member, root, inside) for member in plain.pop("anyOf")])
        plain |= members[0] if len(members) == 1 else {"anyOf": members}
    if plain.get("type") == "object":
        parts = plain.get("properties") or {}
        plain["properties"] = {name: _plain(part, root, inside) for name, part in parts.items()}
        plain["required"] = sorted(plain.get("required") or [])
    for key in {"items", "additionalProperties"} & plain.keys():
        plain[key] = _plain(plain[key], root, inside)
    return plain


def _unified(plain: JSON) -> JSON:
    """Spell a constant as an enum, and each of the ways to say "one of these" as `anyOf`."""
    if "const" in plain:
        plain["enum"] = [plain.pop("const")]
    if "enum" in plain:
        plain.pop("type", None)  # the values say it
        plain["enum"] = sorted(plain["enum"], key=_text)
    if "oneOf" in plain:
        plain["anyOf"] = plain.pop("oneOf")
    if isinstance(types := plain.pop("type", None), list):
        default = {"default": plain.pop("default")} if "default" in plain else {}
        return default | {"anyOf": [{"type": name} | (plain if name != "null" else {}) for name in types]}
    return plain if types is None else plain | {"type": types}


def _merged(members: list[JSON]) -> list[JSON]:
    """Make one enum of those among the members of a union, and of the null beside them."""
    values = [value for member in members if member.keys() == {"enum"} for value in member["enum"]]
    if values and {"type": "null"} in members:
        values.append(None)
    others = [
        member
        for member in members
        if member.keys() != {"enum"} and not (values and member == {"type": "null"})
    ]
    return sorted(others + [{"enum": sorted(values, key=_text)}] * bool(values), key=_text)


def _resolved(reference: str, root: JSON) -> JSON:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {"unknown": reference}


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        if theirs != ours:
            yield _said(path, theirs, ours)
        return
    for key in sorted(theirs.keys() | ours.keys()):
        if key in _IF_BOTH_SAY and (key not in theirs or key not in ours):
            continue
        there, here = theirs.get(key), ours.get(key)
        if key == "properties" and isinstance(there, dict) and isinstance(here, dict):
            yield from _in_properties(there, here, path)
        elif key == "required" and isinstance(there, list) and isinstance(here, list):
            yield from _in_required(theirs, ours, path)
        elif key == "items":
            yield from _differences(there, here, f"{path}[]")
        elif there != here:
            yield _said(f"{path} {key}".strip(), there, here)


def _in_properties(theirs: JSON, ours: JSON, path: str) -> Iterator[str]:
    for name in {**theirs, **ours}:
        at = f"{path}.{name}".lstrip(".")
        if name not in ours:
            yield f"{at}: only the assistant knows it"
        elif name not in theirs:
            yield f"{at}: only the function knows it"
        else:
            yield from _differences(theirs[name], ours[name], at)


def _in_required(theirs: JSON, ours: JSON, path: str) -> Iterator[str]:
    for name in sorted(theirs["properties"].keys() & ours["properties"].keys()):
        there, here = (name in side["required"] for side in (theirs, ours))
        if there != here:
            at = f"{path}.{name}".lstrip(".")
            yield _said(at, *("required" if one else "optional" for one in (there, here)))


def _said(path: str, theirs: Any, ours: Any) -> str:
    there, here = (_shown(side) for side in (theirs, ours))
    return f"{path or 'arguments'}: the assistant says {there}, the function {here}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else _text(value)
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
