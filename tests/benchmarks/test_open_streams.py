"""A GET costs the same CPU time beside one open stream or a thousand."""

from __future__ import annotations

import pytest
from open_streams import measured
from stub_server import stub_server

pytestmark = pytest.mark.alone

ALLOWED = 1.5
"""Measured: 1.0. httpx as shipped has 5."""


def test_a_get_costs_the_same_beside_a_thousand_open_streams(capsys: pytest.CaptureFixture[str]) -> None:
    with stub_server() as base_url:
        # The best repetition is the one that other programs disturbed least.
        one, thousand = (min(measured("ours", base_url, streams) or [0.0]) for streams in (1, 1_000))
    with capsys.disabled():
        print(f"\n{one:.0f} µs beside 1 open stream, {thousand:.0f} µs beside 1,000")
    assert 0 < thousand < ALLOWED * one
