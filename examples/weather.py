"""The tool that the examples share: a plain function over the station file in `data/`."""

import csv
from pathlib import Path
from typing import Any, Literal

from orchestrator import tool
from orchestrator.errors import ToolError


@tool
def get_weather(city: str, month: Literal["January", "July"] = "July") -> dict[str, Any]:
    """Mean temperature of a city in a month, in degrees Celsius.

    Args:
        city: City name, as people write it.
        month: The month.
    """
    number = {"January": "1", "July": "7"}[month]
    with Path(__file__).with_name("data").joinpath("stations.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["city"] == city and row["month"] == number:
                return {"city": city, "month": month, "mean_c": float(row["mean_c"])}
    raise ToolError(f"there is no station in {city}")
