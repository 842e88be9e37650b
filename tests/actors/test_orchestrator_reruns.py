"""Runs that fail, expire, stall or cost too much, against the real server."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import Any

import pytest
from stage import PATIENCE_S, QUICK, Stage, active_runs, staged

from orchestrator import Notice, Orchestrator, RerunPolicy, tool
from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import BudgetExceeded, RunStalled

RULES: list[dict[str, Any]] = [
    {"match": "^try", "steps": [{"call": {"tool": "fetch"}}, {"say": "got {fetch}"}]},
    {"match_output": "^bad", "steps": [{"fail": {"code": "server_error", "message": "the model broke"}}]},
    {"match": "^break", "steps": [{"fail": {"code": "rate_limit_exceeded", "message": "too fast"}}]},
    {"match": "^ponder", "steps": [{"call": {"tool": "fetch"}}, {"think_s": 60}, {"say": "at last"}]},
    {
        "match": "^loop",
        "steps": [{"call": {"tool": "fetch"}}, {"call": {"tool": "fetch"}}, {"call": {"tool": "fetch"}}],
    },
]
AT_ONCE = RerunPolicy(attempts=3, base_s=0.01)


class Source:
    """A tool whose first answers make the model fail."""

    def __init__(self, *outputs: str) -> None:
        self._outputs = list(outputs)
        self.calls: Counter[str] = Counter()

    def fetch(self) -> str:
        self.calls["fetch"] += 1
        return self._outputs.pop(0) if self._outputs else "good"


def test_a_run_that_failed_is_followed_by_one_that_completes(stage: Stage) -> None:
    source = Source("bad")
    with stage.orchestrator(tools=[tool(idempotent=True)(source.fetch)], rerun=AT_ONCE) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="try", metadata={"mine": "1"})
        events = list(run.events())
        result = run.result(PATIENCE_S)
    assert (result.status, result.text, source.calls["fetch"]) == ("completed", "got good", 2)
    first, second = sorted(stage.runs(run.thread_id), key=lambda made: run.run_ids.index(made.id))
    assert run.run_ids == (first.id, second.id)
    assert (first.status, second.status, result.run_id) == ("failed", "completed", second.id)
    nonces = [(made.metadata or {})[NONCE_KEY] for made in (first, second)]
    assert nonces[1] == f"{nonces[0]}.2"
    assert [(made.metadata or {})["mine"] for made in (first, second)] == ["1", "1"]
    # The question went to the thread once.
    asked = [
        message for message in stage.client.list_messages(run.thread_id or "").data if message.role == "user"
    ]
    assert [message.text for message in asked] == ["try"]
    names = [event.event for event in events]
    assert names.index("thread.run.failed") < names.index("run.rerun") < names.index("thread.run.completed")
    ids = [event.run_id for event in events if event.run_id is not None]
    assert ids == sorted(ids, key=run.run_ids.index)


def test_a_run_is_not_followed_where_a_tool_must_not_be_called_again(stage: Stage) -> None:
    source = Source("bad")
    with stage.orchestrator(tools=[source.fetch], rerun=AT_ONCE) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="try")
        assert run.result(PATIENCE_S).status == "failed"
    assert (len(run.run_ids), source.calls["fetch"]) == (1, 1)


def test_a_run_that_fails_again_and_again_is_the_result_in_the_end(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="break", rerun=AT_ONCE)
        result = run.result(PATIENCE_S)
    assert (result.status, result.run_id) == ("failed", run.run_ids[-1])
    assert result.error is not None
    assert result.error.code == "rate_limit_exceeded"
    assert sorted(made.id for made in stage.runs(run.thread_id)) == sorted(run.run_ids)
    assert len(run.run_ids) == 3


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_an_expired_run_is_followed_by_one_that_knows_the_results(watch: str) -> None:
    timing = dataclasses.replace(QUICK, expiry_margin_s=0.0)
    with (
        staged(RULES, run_ttl_s=2.0) as stage,
        stage.orchestrator(tools=[Source("rain").fetch], timing=timing) as ours,
    ):
        run = ours.start(
            stage.assistant,
            messages="ponder",
            additional_instructions="Be brief.",
            on_expired="restart",
            rerun=RerunPolicy(attempts=2, base_s=0.01, codes=frozenset()),
            watch=watch,  # type: ignore[arg-type]
        )
        result = run.result(PATIENCE_S)
        assert (result.status, len(run.run_ids)) == ("expired", 2)
        told = stage.client.get_run(run.thread_id or "", run.run_ids[1]).instructions or ""
        assert "Be brief." in told
        assert "fetch({}): rain" in told
        assert [made.output for made in result.tool_calls] == ["rain", "good"]


def test_a_slow_tool_is_answered_for_before_the_run_expires() -> None:
    over = threading.Event()

    def fetch() -> str:
        """Take longer than the run may."""
        over.wait(PATIENCE_S)
        return "too late"

    # The server tells its time in whole seconds, so that less than two of them cannot be reckoned with.
    timing = dataclasses.replace(QUICK, expiry_margin_s=2.0)
    with staged(RULES, run_ttl_s=4.0) as stage, stage.orchestrator(tools=[fetch], timing=timing) as ours:
        run = ours.start(stage.assistant, messages="try")
        result = run.result(PATIENCE_S)
        over.set()
    (made,) = result.tool_calls
    assert result.status == "completed"
    assert (made.error or "").startswith("timeout")
    assert "too late" not in result.text


def test_a_stalled_run_is_cancelled_where_that_was_asked_for(stage: Stage) -> None:
    timing = dataclasses.replace(QUICK, stall_s=0.2)
    with stage.orchestrator(tools=[Source().fetch], timing=timing) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="ponder", on_stall="cancel")
        with pytest.raises(RunStalled, match=r"no progress for 0 s in status in_progress"):
            run.result(PATIENCE_S)
        assert "run.stalled" in [event.event for event in run.events() if isinstance(event, Notice)]
    assert active_runs(stage, run.thread_id) == []


def test_a_run_that_asks_for_too_many_batches_is_cancelled(stage: Stage) -> None:
    source = Source()
    with stage.orchestrator(tools=[source.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="loop", max_tool_rounds=2)
        with pytest.raises(BudgetExceeded, match="max_tool_rounds=2"):
            run.result(PATIENCE_S)
    assert source.calls["fetch"] == 2
    assert stage.run(run.thread_id, run.run_id).status == "cancelled"


def test_a_run_that_takes_too_many_tokens_is_cancelled(stage: Stage) -> None:
    with stage.orchestrator(tools=[Source().fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="loop", max_total_tokens=1)
        with pytest.raises(BudgetExceeded, match=r"tokens, more than max_total_tokens=1"):
            run.result(PATIENCE_S)
    assert stage.run(run.thread_id, run.run_id).status == "cancelled"


def test_what_makes_no_sense_is_refused_where_it_is_asked_for(stage: Stage) -> None:
    orchestrator: Orchestrator
    with stage.orchestrator() as orchestrator:
        for wrong in ({"on_stall": "x"}, {"on_expired": "x"}, {"max_tool_rounds": -1}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                orchestrator.start(stage.assistant, **wrong)
