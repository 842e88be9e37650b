"""The comparison runs, with few runs: every figure is taken, and a streamed run is exactly two requests."""

from __future__ import annotations

import pytest
from compare import FLOOR, OURS, environment, goals, table, wave

pytestmark = pytest.mark.alone

BESIDE_FLOOR = 30.0
"""Loose: 60 runs share what a process does once, and a machine that is busy with more than this."""


@pytest.fixture(scope="module")
def waves() -> dict[str, dict[str, object]]:
    names = (FLOOR, OURS, "ours, polled", "AsyncOpenAI, streamed")
    return {name: wave(name, 60) for name in names}


def test_a_streamed_run_is_two_requests(waves: dict[str, dict[str, object]]) -> None:
    # One look at the assistant, and the two looks at the server's own figures, are not the runs'.
    assert 2.0 <= waves[OURS]["requests_per_run"] < 2.1  # type: ignore[operator]  # a number


def test_it_costs_a_small_multiple_of_raw_sockets(waves: dict[str, dict[str, object]]) -> None:
    assert waves[OURS]["cpu_ms"] < BESIDE_FLOOR * waves[FLOOR]["cpu_ms"]  # type: ignore[operator]  # numbers


def test_a_paced_wave_tells_delays_and_memory() -> None:
    measured = wave(OURS, 40, spread_s=1.0)
    assert 0 <= measured["delay_p50_ms"] <= measured["delay_p99_ms"] < 1000
    assert measured["open_kb"] > 0


def test_the_table_says_what_was_to_be_reached(waves: dict[str, dict[str, object]]) -> None:
    paced = [waves[OURS] | {"delay_p99_ms": 1.0, "open_kb": 2.0}] * 2
    figures = {
        "environment": environment(),
        "bursts": list(waves.values()),
        "swept": [waves[OURS]],
        "paced": paced,
        "uncollected": paced[0],
        "most": [],
        "left_out": {"AsyncOpenAI, streamed, aiohttp": "httpx_aiohttp"},
        "cancel_p99_ms": 3.0,
        "cancel_beside": 60,
    }
    shown = table(figures)
    assert "| AsyncOpenAI, streamed |" in shown
    assert "httpx_aiohttp is not installed" in shown
    reached = {name: figure for name, _, figure in goals(figures)}
    assert reached["AsyncOpenAI streaming on aiohttp ÷ ours"] == "not measured"
    assert float(reached["CPU per streamed run ÷ raw sockets"]) > 1
