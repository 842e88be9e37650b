"""Templates of the rule engine: text and JSON with names in braces, and nothing but names.

Owns finding and filling `{name}` and `{name.path.0}`. A template can reach what it is given and no more:
there are no attributes, calls, format specifications or expressions. Knows nothing of rules or models.

- `{city}` is replaced by the value of a name; `{get_time.zone.offset}` follows keys and list indexes into it.
- A text is put in as it is, anything else as JSON. `{{` and `}}` stand for braces.
- A string that is one name and nothing else becomes the value itself, with its JSON type.
- A name or path that leads nowhere leaves `[name is missing]`, so that it is seen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fill", "names_in", "text_of", "walk"]

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{(?P<path>[^\W\d][\w-]*(?:\.[\w-]+)*)\}")


def fill(template: Any, lookup: Callable[[str, list[str]], Any]) -> Any:
    """Fill a template; lists and objects are filled item by item, keys are left alone.

    Args:
        template: Any JSON value; its strings are templates.
        lookup: Returns the value of a name and the path behind it; raises `KeyError` when there is none.
    """
    if isinstance(template, dict):
        return {key: fill(value, lookup) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, lookup) for value in template]
    if not isinstance(template, str):
        return template
    whole = _TOKEN.fullmatch(template)
    if whole is not None and whole["path"]:
        return _value(whole["path"], lookup)
    return _TOKEN.sub(lambda found: _replacement(found, lookup), template)


def names_in(template: Any) -> Iterator[str]:
    """Yield the first part of every name in a template."""
    if isinstance(template, dict):
        for value in template.values():
            yield from names_in(value)
    elif isinstance(template, list):
        for value in template:
            yield from names_in(value)
    elif isinstance(template, str):
        for found in _TOKEN.finditer(template):
            if found["path"]:
                yield found["path"].split(".")[0]


def walk(value: Any, path: list[str]) -> Any:
    """Follow keys and list indexes into a JSON value.

    Raises:
        KeyError: The path leads nowhere.
    """
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value


def text_of(value: Any) -> str:
    """Render a value for a text: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _replacement(found: re.Match[str], lookup: Callable[[str, list[str]], Any]) -> str:
    return text_of(_value(found["path"], lookup)) if found["path"] else found[0][0]


def _value(path: str, lookup: Callable[[str, list[str]], Any]) -> Any:
    name, *rest = path.split(".")
    try:
        return lookup(name, rest)
    except KeyError:
        return f"[{path} is missing]"
