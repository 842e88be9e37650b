"""What the three docstring styles say of a tool and its parameters."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from orchestrator.tools import tool
from orchestrator.tools.docstrings import parse_docstring

GOOGLE = """Current weather.

    For a city.

    Args:
        city: City name,
            as people write it.
        unit (str): Unit.

    Returns:
        A dict.
    """
NUMPY = """Current weather.

    For a city.

    Parameters
    ----------
    city : str
        City name,
        as people write it.
    unit
        Unit.

    Returns
    -------
    dict
        The weather.
    """
SPHINX = """Current weather.

    For a city.

    :param city: City name,
        as people write it.
    :param str unit: Unit.
    :returns: A dict.
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_each_docstring_style_gives_the_description_and_the_parameters(text: str) -> None:
    description, parameters = parse_docstring(text)
    assert description == "Current weather.\n\nFor a city."
    assert parameters == {"city": "City name, as people write it.", "unit": "Unit."}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", {})),
        ("One line.", ("One line.", {})),
        ("  Two\n    lines: of text.  ", ("Two\nlines: of text.", {})),
        ("Summary.\n\n    :param city: The city.", ("Summary.", {"city": "The city."})),
        (
            "Sum.\n\n    Parameters\n    ----------\n    a, b : int\n        Both.\n",
            ("Sum.", {"a": "Both.", "b": "Both."}),
        ),
        (
            "Sum.\n\n    Args:\n        a (int, optional): It: has a colon.",
            ("Sum.", {"a": "It: has a colon."}),
        ),
        ("Sum.\n\n    :param a: One.\n    :type a: int\n    :raises E: Never.", ("Sum.", {"a": "One."})),
    ],
)
def test_short_docstrings_are_read_too(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_docstring(text) == expected


def test_docstrings_reach_the_schema_unless_the_user_said_it_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool
    def weather(city: str, unit: Annotated[str, Field(description="As annotated.")] = "c") -> str:
        return city + unit

    weather.function.__doc__ = GOOGLE
    assert weather.description == "Current weather.\n\nFor a city."
    assert weather.parameters["properties"] == {
        "city": {"type": "string", "description": "City name, as people write it."},
        "unit": {"type": "string", "description": "As annotated.", "default": "c"},
    }
    assert tool(weather.function).description.startswith("Current")
    assert tool(description="Mine.")(weather.function).definition()["function"]["description"] == "Mine."
    assert caplog.records == []
