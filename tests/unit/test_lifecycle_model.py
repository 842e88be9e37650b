"""A lifecycle joined to a simulated server in virtual time: what is promised holds in every such world."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lifecycle_simulation import Scenario, World

SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 2**32),
    faults=st.sampled_from((0, 5, 30)),
    breaks=st.sampled_from((0, 5, 30)),
    deaths=st.sampled_from((0, 0, 3, 15)),
    rounds=st.integers(0, 3),
    calls=st.integers(1, 3),
    watch=st.sampled_from(("stream", "poll")),
    on_deadline=st.sampled_from(("cancel", "detach")),
    deadline_s=st.sampled_from((120.0, 120.0, 3.0, 12.0)),
    own_thread=st.booleans(),
    reused_ids=st.booleans(),
    spurious_completed=st.booleans(),
    echoes_metadata=st.booleans(),
    locks_threads=st.booleans(),
    cancels_only_in_progress=st.booleans(),
    cancel_sticks=st.booleans(),
    cancel_at=st.none() | st.floats(0, 20),
    detach_at=st.none() | st.none() | st.floats(0, 20),
    foreign_s=st.sampled_from((None, None, 5.0, 1000.0)),
    names_foreign=st.booleans(),
    on_busy_thread=st.sampled_from(("enqueue", "enqueue", "reject", "interrupt")),
    interrupt_foreign=st.booleans(),
    failures=st.sampled_from((0, 0, 50)),
    reruns=st.integers(1, 3),
    repeatable=st.booleans(),
    lifetime_s=st.sampled_from((600.0, 600.0, 600.0, 12.0)),
    on_expired=st.sampled_from(("fail", "restart")),
    freezes=st.sampled_from((False, False, False, True)),
    on_stall=st.sampled_from(("report", "cancel")),
    max_tool_rounds=st.sampled_from((None, None, 1)),
    max_total_tokens=st.sampled_from((None, None, 250)),
)


def conduct(scenario: Scenario) -> None:
    world = World(scenario)
    world.play()
    world.check()


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(SCENARIOS)
def test_every_run_ends_in_time_with_the_servers_own_verdict(scenario: Scenario) -> None:
    conduct(scenario)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCENARIOS)
def test_every_run_ends_in_time_with_the_servers_own_verdict_in_a_hundred_thousand_worlds(
    scenario: Scenario,
) -> None:
    conduct(scenario)
