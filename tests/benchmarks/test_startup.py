"""A fresh process imports the package quickly, and sends its first request without what it does not need."""

from __future__ import annotations

import pytest
from startup import STEPS, import_ratio, measure, medians, table

pytestmark = pytest.mark.alone

PROCESSES = 5

LONGEST_S = 1.5
"""From the start of a process to its first request. The goal is 0.5 s on a quiet machine; see the README."""

MOST = 5.0
"""How many times as long as its dependencies' the import may take; measured: 3."""


def test_the_first_request_of_a_process_is_soon_on_the_wire(capsys: pytest.CaptureFixture[str]) -> None:
    without, with_tool = measure(PROCESSES, tool=False), measure(PROCESSES, tool=True)
    with capsys.disabled():
        print("", table(without, with_tool), sep="\n")
    for starts in (without, with_tool):
        passed = medians(starts)
        assert passed == sorted(passed)
        assert len(passed) == len(STEPS)
        assert passed[-1] <= LONGEST_S


def test_a_first_request_without_tools_loads_nothing_that_describes_tools_or_keeps_journals() -> None:
    (start,) = measure(1, tool=False)

    heavy = {"alembic", "griffe", "pydantic", "sqlalchemy", "starlette", "structlog", "tenacity", "typer"}
    assert start.modules & heavy == set()


def test_importing_the_package_takes_a_few_times_what_its_dependencies_take() -> None:
    assert import_ratio(PROCESSES) <= MOST
