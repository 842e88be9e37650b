"""The demo's tools: real functions over real data.

The data are approximate monthly climate means of eight cities, rounded, in `stations.csv`; the clock and the
offsets are `zoneinfo`'s; arithmetic is evaluated by walking the expression's syntax tree, never by `eval`.
"""

from __future__ import annotations

import ast
import asyncio
import csv
import datetime as dt
import operator
import statistics
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from orchestrator.errors import ToolError
from orchestrator.tools import tool

__all__ = ["TOOLS", "calculate", "climate", "get_time", "stations", "utc_offset"]

_MAX_EXPRESSION_CHARS = 200
_MAX_MAGNITUDE = 1e15

_BINARY: Final[dict[type[ast.operator], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@tool
def get_time(city: str) -> dict[str, str]:
    """The time of day in a city, now.

    Args:
        city: One of the cities of the station file, such as Oslo.
    """
    now = dt.datetime.now(_zone(city))
    return {"city": city, "time": now.strftime("%H:%M"), "offset": now.isoformat(timespec="minutes")[-6:]}


@tool
def utc_offset(city: str, day: dt.date) -> dict[str, Any]:
    """By how many hours a city's clocks differ from UTC at noon of a day.

    Args:
        city: One of the cities of the station file.
        day: The day.
    """
    noon = dt.datetime.combine(day, dt.time(12), tzinfo=_zone(city))
    offset = noon.utcoffset() or dt.timedelta()
    return {"city": city, "day": day.isoformat(), "hours": offset.total_seconds() / 3600}


@tool
async def climate(
    city: str, measure: Literal["mean_c", "rain_mm"], month: int | None = None
) -> dict[str, Any]:
    """Climate of a city: mean, minimum and maximum over its months, or one month's value.

    Args:
        city: One of the cities of the station file.
        measure: Mean temperature in degrees Celsius, or rain in millimetres.
        month: 1 to 12, or absent for the whole year.
    """
    rows = await asyncio.to_thread(_rows, city)
    values = [float(row[measure]) for row in rows if month in (None, int(row["month"]))]
    if not values:
        raise ToolError(f"there is no month {month}: give 1 to 12, or none for the year")
    return {
        "city": city,
        "measure": measure,
        "mean": round(statistics.fmean(values), 1),
        "min": min(values),
        "max": max(values),
    }


@tool
def calculate(expression: str) -> dict[str, float]:
    """Evaluate arithmetic: numbers, parentheses, + - * / // and %.

    Args:
        expression: Such as "(17 + 4) * 3".
    """
    if len(expression) > _MAX_EXPRESSION_CHARS:
        raise ToolError(f"the expression is longer than {_MAX_EXPRESSION_CHARS} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        raise ToolError(f"cannot evaluate {expression!r}: {error}") from None
    return {"result": round(value, 6)}


TOOLS: Final = (get_time, utc_offset, climate, calculate)


@cache
def stations() -> dict[str, list[dict[str, str]]]:
    """The rows of the station file by city, read once; blocks."""
    table: dict[str, list[dict[str, str]]] = {}
    with _station_file().open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["city"], []).append(row)
    return table


def _station_file() -> Path:
    # A wheel carries the file beside this module; a checkout has it with the examples.
    here = Path(__file__).parent / "stations.csv"
    return here if here.exists() else Path(__file__).parents[2] / "examples" / "data" / "stations.csv"


def _rows(city: str) -> list[dict[str, str]]:
    table = stations()
    if city not in table:
        raise ToolError(f"there is no station in {city!r}; there are {', '.join(sorted(table))}")
    return table[city]


def _zone(city: str) -> ZoneInfo:
    return ZoneInfo(_rows(city)[0]["zone"])


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value: float = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            value = _BINARY[type(op)](_value(left), _value(right))
        case _:
            raise ToolError(
                f"only numbers, parentheses and + - * / // % are allowed, not {ast.unparse(node)}"
            )
    if abs(value) > _MAX_MAGNITUDE:
        raise ToolError(f"the value leaves the range of ±{_MAX_MAGNITUDE:g}")
    return value
