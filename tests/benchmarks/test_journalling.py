"""A journal costs little: what CPU time, is promised at 500 runs; and with hundreds all come out right."""

from __future__ import annotations

import pytest
from journalling import measure, table
from stub_server import allow_many_files

pytestmark = pytest.mark.alone

MOST = 1.2
"""The most CPU time with a journal for each second without."""


def test_hundreds_of_runs_with_a_journal_come_out_right(capsys: pytest.CaptureFixture[str]) -> None:
    allow_many_files()
    measured = measure(200, 2)
    with capsys.disabled():
        print("", table(measured), sep="\n")
    assert measured.failed == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_journal_costs_at_most_a_fifth_of_a_runs_cpu_time(capsys: pytest.CaptureFixture[str]) -> None:
    allow_many_files()
    measured = measure(500, 5)
    with capsys.disabled():
        print("", table(measured), sep="\n")
    assert measured.failed == []
    assert measured.ratio <= MOST
