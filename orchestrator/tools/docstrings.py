"""What a docstring says about a function and its parameters, in Google, NumPy or Sphinx style.

The styles are griffe's to know. Types written in a docstring are ignored: the signature has the say.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from griffe import DocstringSection

__all__ = ["parse_docstring"]


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into the description of the function and those of its parameters.

    Args:
        text: The docstring as it stands in the source.

    Returns:
        The text before the first section, and one line for each described parameter, by its name.
    """
    text = inspect.cleandoc(text)
    if "\n" not in text:
        return text, {}
    sections = _sections(text)
    description = sections[0].value.strip() if sections and sections[0].kind.value == "text" else ""
    return description, dict(_parameters(sections))


def _sections(text: str) -> list[DocstringSection]:
    from griffe import Docstring, parse_auto

    # The heuristics miss a lone `:param` in the last line, and the Sphinx parser leaves plain text alone.
    return parse_auto(
        Docstring(text),
        default="sphinx",
        per_style_options={
            "google": {"warnings": False},
            "numpy": {"warnings": False},
            "sphinx": {"warnings": False},
        },
    )


def _parameters(sections: list[DocstringSection]) -> Iterator[tuple[str, str]]:
    for section in sections:
        if section.kind.value in ("parameters", "other parameters"):
            for parameter in section.value:
                yield parameter.name, " ".join(parameter.description.split())
