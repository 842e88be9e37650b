"""Hundreds of streams at once, and in the long profile what the server is to reach."""

from __future__ import annotations

import pytest
from serving import measure_runs, measure_streams
from stub_server import allow_many_files

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("streams", [400, pytest.param(5000, marks=pytest.mark.long)])
def test_streams_are_held_beside_other_requests_and_ended_when_the_server_stops(streams: int) -> None:
    assert allow_many_files() > streams + 100
    kept = measure_streams(streams)
    assert kept.closed_s < 30


@pytest.mark.long
def test_it_serves_three_hundred_runs_of_two_legs_in_a_second_of_its_own_time() -> None:
    assert measure_runs(2000).per_core_second >= 300
