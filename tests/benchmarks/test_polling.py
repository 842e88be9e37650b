"""Polled runs share one budget of requests: it is kept and used, and no run is starved."""

from __future__ import annotations

import statistics

import pytest
from polling import failures, measure, table
from stub_server import allow_many_files

from orchestrator import Timing

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("runs", "budget", "seconds"),
    [(300, 50.0, 15.0), pytest.param(5_000, 200.0, 75.0, marks=pytest.mark.long)],
    ids=["300", "5,000"],
)
def test_the_budget_is_kept_and_used_and_every_run_gets_its_share(
    runs: int, budget: float, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    allow_many_files()
    measured = measure(runs, budget, seconds)
    with capsys.disabled():
        print("", table(measured), sep="\n")

    assert failures(measured) == []
    # More is wanted than there is, so that all of it goes.
    assert statistics.fmean(measured.per_second) >= 0.9 * budget


def test_few_runs_are_looked_at_as_often_as_they_ask_for() -> None:
    measured = measure(20, 200.0, 8.0)

    assert failures(measured) == []
    # The pause between two looks grows with a run's age, from the one to the other.
    assert (
        20 / (1.1 * Timing().poll_max_s) <= statistics.fmean(measured.per_second) <= 20 / Timing().poll_min_s
    )
