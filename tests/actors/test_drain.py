"""Drain under load: hundreds of runs, some that end, some that do not, some that have not even begun."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from stage import PATIENCE_S, Gate, Stage, assert_nothing_left, staged, wait_until

from orchestrator.errors import OrchestratorClosed
from orchestrator.protocol.objects import ACTIVE_STATUSES

if TYPE_CHECKING:
    from orchestrator import Orchestrator, RunHandle

RULES: list[dict[str, Any]] = [
    {"match": "^quick", "steps": [{"say": "done"}]},
    {"match": "^gated", "steps": [{"call": {"tool": "fetch"}}, {"say": "got {fetch}"}]},
    {"match": "^long", "steps": [{"think_s": 600}, {"say": "at last"}]},
]
PLACES = 60
DRAIN_S = 2.0


class Load:
    """The runs of one orchestrator, and what they were to do."""

    def __init__(self, stage: Stage, gate: Gate) -> None:
        self.runs: list[tuple[str, RunHandle]] = []
        self.orchestrator: Orchestrator = stage.orchestrator(
            tools=[gate.fetch], max_concurrent_runs=PLACES, tool_threads=PLACES
        )
        self._assistant = stage.assistant

    def start(self, text: str) -> None:
        self.runs.append((text, self.orchestrator.start(self._assistant, messages=text)))

    def refuses(self) -> bool:
        try:
            self.start("quick")
        except OrchestratorClosed:
            return True
        return False

    def stuck(self) -> int:
        """How many runs have a place and will keep it until something happens."""
        held = (run for text, run in self.runs if text in ("gated", "long") and not run.done())
        return sum(run.status in ("in_progress", "requires_action") for run in held)


def test_drain_under_load_lets_end_what_can_leaves_the_rest_running_and_says_which() -> None:
    gate = Gate()
    with staged(RULES) as stage:
        load = Load(stage, gate)
        texts = ["quick"] * 140 + ["gated"] * 40 + ["long"] * 120
        random.Random(4).shuffle(texts)
        for text in texts:
            load.start(text)
        wait_until(lambda: load.stuck() == PLACES)
        ended_before = {run.key for _, run in load.runs if run.done()}
        held = {run.key for text, run in load.runs if text == "gated" and run.status == "requires_action"}
        assert ended_before
        assert held

        with ThreadPoolExecutor(1) as drainer:
            began = time.monotonic()
            draining = drainer.submit(load.orchestrator.drain, DRAIN_S)
            wait_until(load.refuses)
            gate.open.set()
            left = draining.result(PATIENCE_S)
            assert DRAIN_S <= time.monotonic() - began < DRAIN_S + PATIENCE_S

        left_keys = {run.key for run in left}
        ended = [(text, run) for text, run in load.runs if run.key not in left_keys]
        assert {run.result(0).status for _, run in ended} == {"completed"}
        assert {run.result(0).text for text, run in ended if text == "gated"} == {"got it"}
        assert ended_before | held <= {run.key for _, run in ended}
        assert all(text != "long" for text, _ in ended)

        begun = [run for run in left if run.run_id is not None]
        waiting = [run for run in left if run.run_id is None]
        assert len(begun) == PLACES
        assert waiting
        for run in begun:
            with pytest.raises(OrchestratorClosed) as closed:
                run.result(0)
            assert str(run.run_id) in str(closed.value)
            assert str(run.thread_id) in str(closed.value)
        for run in waiting:
            with pytest.raises(OrchestratorClosed, match="before the run was created"):
                run.result(0)
        with pytest.raises(OrchestratorClosed):
            load.start("quick")

        load.orchestrator.close()
        assert_nothing_left(stage.server.base_url, ours=1)
        assert {stage.run(run.thread_id, run.run_id).status for run in begun} <= ACTIVE_STATUSES
        asked = [path for verb, path in list(stage.server.requests) if verb == "POST"]
        assert [path for path in asked if path.endswith("/cancel")] == []
        assert len([path for path in asked if path.endswith("/runs")]) == len(load.runs) - len(waiting)
