"""A short soak: every run comes out right in bad weather, nothing grows, and what does grow is found."""

from __future__ import annotations

import pytest
from soak import Findings, soak, verdict
from stub_server import allow_many_files

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

LEAK_BYTES = 50_000
"""What a call keeps in the second soak: so much that seconds are enough to tell it from noise."""


def short(seed: int, *, leak_bytes: int = 0) -> Findings:
    allow_many_files()
    return soak(14.0, runs=60, warm_s=4.0, every_s=0.8, seed=seed, think_ms=600, leak_bytes=leak_bytes)


def test_every_run_comes_out_right_and_nothing_grows(capsys: pytest.CaptureFixture[str]) -> None:
    findings = short(1)
    with capsys.disabled():
        print("", verdict(findings), sep="\n")

    assert findings.wrong == []
    assert findings.grown == []
    # It was a soak: all kinds of ends, of faults, and of deaths.
    assert {"completed", "cancelled", "DeadlineExceeded"} <= findings.found.keys()
    assert {
        "unsent",
        "unanswered",
        "cut",
        "ended",
        "dripping",
        "failed",
        "unavailable",
    } <= findings.faults.keys()
    assert findings.strikes


def test_a_tool_that_keeps_something_of_every_call_is_found() -> None:
    findings = short(2, leak_bytes=LEAK_BYTES)

    assert findings.wrong == []
    assert findings.grown == ["rss_mb"]
