"""Runs that were left in the middle of a tool call: what is called again, and what the model is told.

An orchestrator lets go of its runs here; processes that die are in `test_crashes.py`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from journals import journal_in
from stage import PATIENCE_S, Gate, Stage, wait_until

from orchestrator import tool
from orchestrator.errors import OrchestratorClosed

if TYPE_CHECKING:
    from orchestrator import Orchestrator, RunHandle
    from orchestrator.server.database import Database

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def left_while(gate: Gate, orchestrator: Orchestrator, assistant: str, message: str) -> str:
    """Start a run and leave it while its tool is at work; returns the run's key."""
    handle = orchestrator.start(assistant, messages=message)
    gate.wait_until_reached()
    closing = threading.Thread(target=orchestrator.close)
    closing.start()
    with pytest.raises(OrchestratorClosed):
        handle.result(PATIENCE_S)
    gate.open.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    return handle.key


def test_the_model_is_told_of_a_call_whose_outcome_nobody_knows(stage: Stage, database: Database) -> None:
    gate = Gate()
    first = stage.orchestrator(journal=journal_in(database), tools=[gate.fetch])
    key = left_while(gate, first, stage.assistant, "fetch")
    with stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as second:
        (resumed,) = second.resume()
        result = resumed.result(PATIENCE_S)
    assert (resumed.key, result.status, gate.calls) == (key, "completed", 1)
    (call,) = result.tool_calls
    assert "whether the call took effect is not known" in call.output
    assert call.error is not None
    assert call.error.startswith("unknown:")


def test_an_idempotent_call_is_made_again(stage: Stage, database: Database) -> None:
    gate = Gate()
    fetch = tool(idempotent=True)(gate.fetch)
    first = stage.orchestrator(journal=journal_in(database), tools=[fetch])
    left_while(gate, first, stage.assistant, "fetch")
    with stage.orchestrator(journal=journal_in(database), tools=[fetch]) as second:
        (resumed,) = second.resume()
        assert resumed.result(PATIENCE_S).text == "got it"
    assert gate.calls == 2


@pytest.mark.parametrize("approved", [True, False])
def test_somebody_is_asked_whether_a_call_is_made_again(
    stage: Stage, database: Database, approved: bool
) -> None:
    gate = Gate()
    fetch = tool(on_unknown="ask")(gate.fetch)
    first = stage.orchestrator(journal=journal_in(database), tools=[fetch])
    left_while(gate, first, stage.assistant, "fetch")
    with stage.orchestrator(journal=journal_in(database), tools=[fetch]) as second:
        (resumed,) = second.resume()
        wait_until(lambda: bool(resumed.snapshot().approvals))
        (asked,) = resumed.snapshot().approvals
        assert gate.calls == 1
        if approved:
            resumed.approve(asked.call_id)
        else:
            resumed.deny(asked.call_id, "it was done")
        result = resumed.result(PATIENCE_S)
    assert gate.calls == (2 if approved else 1)
    assert ("it was done" in result.tool_calls[0].output) is not approved


def test_an_outcome_that_was_recorded_is_used_again(stage: Stage, database: Database) -> None:
    gate, quick = Gate(), Gate(opened=True)

    def other() -> str:
        """Be done at once."""
        return quick.fetch("the other")

    def third() -> str:
        """Fail at once."""
        raise ValueError(quick.fetch("the third"))

    first = stage.orchestrator(journal=journal_in(database), tools=[gate.fetch, other, third])
    journal = journal_in(database)

    def states() -> dict[str, str]:
        return {call.name: call.state for call in journal.show("order-9").calls}

    first.start(stage.assistant, messages="all", key="order-9").recorded.result(PATIENCE_S)
    wait_until(lambda: states() == {"fetch": "started", "other": "finished", "third": "finished"})
    closing = threading.Thread(target=first.close)
    closing.start()
    wait_until(lambda: not journal.runs()[0].held)
    gate.open.set()
    closing.join(PATIENCE_S)
    with stage.orchestrator(journal=journal_in(database), tools=[gate.fetch, other, third]) as second:
        (resumed,) = second.resume()
        result = resumed.result(PATIENCE_S)
    assert (gate.calls, quick.calls) == (1, 2)
    fetched, done, failed = result.tool_calls
    assert fetched.error is not None
    assert fetched.error.startswith("unknown:")
    assert (done.output, done.error) == ("the other", None)
    assert failed.error is not None
    assert "the third" in failed.error
    assert result.text == "all done"


def test_a_call_that_waits_for_approval_goes_on_waiting_for_it(stage: Stage, database: Database) -> None:
    gate = Gate(opened=True)
    fetch = tool(approval=True)(gate.fetch)
    first = stage.orchestrator(journal=journal_in(database), tools=[fetch])
    run = first.start(stage.assistant, messages="fetch")
    wait_until(lambda: bool(run.snapshot().approvals))
    first.close()
    with stage.orchestrator(journal=journal_in(database), tools=[fetch]) as second:
        (resumed,) = second.resume()
        wait_until(lambda: bool(resumed.snapshot().approvals))
        (asked,) = resumed.snapshot().approvals
        resumed.approve(asked.call_id)
        assert resumed.result(PATIENCE_S).text == "got it"
    assert gate.calls == 1


def test_a_tool_that_is_not_there_any_more_is_not_made_up_for(stage: Stage, database: Database) -> None:
    gate = Gate()
    first = stage.orchestrator(journal=journal_in(database), tools=[tool(idempotent=True)(gate.fetch)])
    left_while(gate, first, stage.assistant, "fetch")
    with stage.orchestrator(journal=journal_in(database)) as second:
        (resumed,) = second.resume()
        (call,) = resumed.result(PATIENCE_S).tool_calls
    assert call.error is not None
    assert call.error.startswith("unknown:")


def test_who_sweeps_takes_up_what_others_leave(stage: Stage, database: Database) -> None:
    with stage.orchestrator(journal=journal_in(database)) as sweeping:
        assert sweeping.resume() == []
        first = stage.orchestrator(journal=journal_in(database))
        run = first.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        assert sweeping.runs() == []
        assert first.drain(0) == [run]
        first.close()
        wait_until(lambda: [snapshot.key for snapshot in sweeping.runs()] == [run.key])
        sweeping.cancel_all()
    assert [seen.status for seen in stage.runs(run.thread_id)] == ["cancelled"]


def test_a_block_that_is_left_by_an_exception_leaves_its_runs_to_others(
    stage: Stage, database: Database
) -> None:
    left: list[RunHandle] = []

    def fail() -> None:
        with stage.orchestrator(journal=journal_in(database)) as first:
            left.append(first.start(stage.assistant, messages="dawdle"))
            wait_until(lambda: left[0].status == "in_progress")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (run,) = left
    with pytest.raises(OrchestratorClosed, match=str(run.run_id)):
        run.result(PATIENCE_S)
    with stage.orchestrator(journal=journal_in(database)) as second:
        again = second.start(stage.assistant, messages="dawdle", key=run.key)
        again.recorded.result(PATIENCE_S)
        assert again.run_id == run.run_id
        again.cancel()
        assert again.result(PATIENCE_S).status == "cancelled"


def test_a_run_that_was_closed_with_cancel_is_over_for_everybody(stage: Stage, database: Database) -> None:
    first = stage.orchestrator(journal=journal_in(database))
    run = first.start(stage.assistant, messages="dawdle")
    wait_until(lambda: run.status == "in_progress")
    assert first.close(on_active="cancel") == []
    with stage.orchestrator(journal=journal_in(database)) as second:
        assert second.resume() == []
        assert second.attach(run.key).result(PATIENCE_S).status == "cancelled"
