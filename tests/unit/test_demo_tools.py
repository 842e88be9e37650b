"""The demo's tools over their real data."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.demo.tools import calculate, climate, get_time, utc_offset
from orchestrator.errors import ToolError

CSV = Path(__file__).parents[2] / "examples" / "data" / "stations.csv"

numbers = st.integers(0, 999) | st.floats(0, 999, allow_subnormal=False).map(lambda value: round(value, 3))
operators = st.sampled_from(["+", "-", "*", "/", "//", "%"])
expressions = st.recursive(
    numbers.map(str),
    lambda inner: (
        st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda operand: f"-({operand})")
    ),
    max_leaves=8,
)


@given(expressions)
def test_arithmetic_is_python_s_own_within_bounds(expression: str) -> None:
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ToolError):
            calculate(expression)
        return
    try:
        told = calculate(expression)
    except ToolError as error:
        refused = str(error)
        assert "leaves the range of" in refused or "longer than 200" in refused
    else:
        assert told == {"result": round(expected, 6)}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "open('x')",
        "(1).real",
        "[1][0]",
        "x",
        "'a' * 9",
        "True + 1",
        "1j",
        "2 ** 9",
        "1 << 9",
        "1 if 1 else 2",
        "(lambda: 1)()",
        "1 < 2",
        "9" * 150,
        "999999999 * 999999999",
        "1e999",
        "-" * 201,
        "(" * 150,
        "1\0",
        "1 +",
        "",
        "1 / 0",
    ],
)
def test_nothing_but_bounded_arithmetic_is_evaluated(expression: str) -> None:
    with pytest.raises(ToolError):
        calculate(expression)


def test_spaces_around_an_expression_do_not_matter() -> None:
    assert calculate("  (17 + 4) * 3\n") == {"result": 63}


@pytest.mark.parametrize("measure", ["mean_c", "rain_mm"])
def test_a_city_s_climate_is_what_the_file_says(measure: Any) -> None:
    rows = list(csv.DictReader(CSV.read_text(encoding="utf-8").splitlines()))
    for city in {row["city"] for row in rows}:
        values = [float(row[measure]) for row in rows if row["city"] == city]
        year = asyncio.run(climate(city, measure))
        assert (year["min"], year["max"]) == (min(values), max(values))
        assert year["mean"] == pytest.approx(statistics.mean(values), abs=0.05001)
        march = asyncio.run(climate(city, measure, 3))
        assert march["mean"] == march["min"] == march["max"] == values[2]


def test_what_is_not_in_the_file_is_told_to_the_model() -> None:
    with pytest.raises(ToolError, match=r"no station in 'Atlantis'; there are Cairo, Chicago, .*Tokyo"):
        get_time("Atlantis")
    with pytest.raises(ToolError, match="no month 13: give 1 to 12"):
        asyncio.run(climate("Oslo", "mean_c", 13))


@pytest.mark.parametrize(
    ("city", "day", "hours"),
    [("Oslo", "2026-01-15", 1.0), ("Oslo", "2026-07-15", 2.0), ("Chicago", "2026-01-15", -6.0)],
)
def test_an_offset_knows_summer_time(city: str, day: str, hours: float) -> None:
    expected = {"city": city, "day": day, "hours": hours}
    assert utc_offset(city, dt.date.fromisoformat(day)) == expected


def test_the_time_in_a_city_is_utc_and_its_offset() -> None:
    before = dt.datetime.now(dt.UTC)
    told = get_time("Tokyo")
    after = dt.datetime.now(dt.UTC)
    assert told["offset"] == "+09:00"
    assert told["time"] in {f"{moment + dt.timedelta(hours=9):%H:%M}" for moment in (before, after)}
