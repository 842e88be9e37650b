"""Whose a run is, and what is kept of it: what a journal promises those who conduct runs."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from desk import ACTING, ADDRESS, CALL, PATIENCE_S, Desk, desk, outcome, record
from msgspec import structs
from sqlalchemy import create_engine, text

from orchestrator.errors import BadRequestError, JournalError, KeyReused, RunLost, UnknownRun
from orchestrator.journal import Conducted, Ended, Held, Refused, SQLJournal, StoredRun
from orchestrator.protocol.objects import Message, Usage
from orchestrator.runs.effects import Finish
from orchestrator.runs.record import Ending, Phase
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import RunResult

if TYPE_CHECKING:
    from orchestrator.runs.record import RunRecord

DONE = Finish(result=RunResult(status="completed", thread_id="thread_1", run_id="run_1"))


def execute(url: str, statement: str, **values: Any) -> list[Any]:
    """What another program does with the same database."""
    engine = create_engine(url)
    with engine.begin() as connection:
        done = connection.execute(text(statement), values)
        rows = list(done) if done.returns_rows else []
    engine.dispose()
    return rows


def assert_same(known: RunRecord, given: RunRecord) -> None:
    assert abs(known.deadline_at - given.deadline_at) < 0.1
    assert structs.replace(known, deadline_at=0.0, failure=None) == structs.replace(
        given, deadline_at=0.0, failure=None
    )


# One process


def test_a_new_run_is_ours_and_is_known_from_then_on(url: str, first: Desk) -> None:
    run = record()
    assert first.open(run) == Conducted(record=run, first=True)
    assert first.journal.may_act("one")
    assert not first.journal.may_act("another")
    stored = SQLJournal(url).load("one")
    assert isinstance(stored, StoredRun)
    assert stored.address == ADDRESS
    assert_same(stored.record, run)


def test_a_record_that_was_kept_comes_back_whole(url: str, first: Desk) -> None:
    run = first.conduct(record())
    failure = BadRequestError("no", method="GET", path="/x", status=400, headers={"a": "b"}, code="bad")
    failure.add_note("look there")
    later = structs.replace(
        run,
        **ACTING | {"round": 2},
        status="requires_action",
        attempt=2,
        earlier=("run_0",),
        expires_at=time.monotonic() + 5,
        awaiting=frozenset({"call_1"}),
        results=(outcome(), outcome("call_2", error="raised: x", attempts=3, duration_s=0.5, run_id="run_0")),
        spent=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
        ending=Ending.FAILED,
        failure=failure,
        number=7,
        pending=7,
    )
    first.record(later)
    stored = SQLJournal(url).load("one").record
    assert stored.expires_at is not None
    assert later.expires_at is not None
    assert abs(stored.expires_at - later.expires_at) < 0.1
    assert_same(structs.replace(stored, expires_at=None), structs.replace(later, expires_at=None))
    assert isinstance(stored.failure, BadRequestError)
    assert str(stored.failure) == str(failure)
    assert (stored.failure.status, stored.failure.code, stored.failure.headers) == (400, "bad", {})
    assert stored.failure.__notes__ == ["look there"]


def test_an_outcome_that_was_kept_comes_back_whole(url: str, first: Desk) -> None:
    run = structs.replace(first.conduct(record()), **ACTING, results=(outcome(),))
    message = Message(id="msg_1", role="assistant")
    result = RunResult(
        status="completed", thread_id="t", run_id="r", messages=(message,), tool_calls=run.results
    )
    first.finish(structs.replace(run, phase=Phase.FINISHED), Finish(result=result))
    assert SQLJournal(url).outcome("one") == Finish(result=result)
    ended = first.claim("one")
    assert isinstance(ended, Ended)
    assert ended.finish.result == result
    lost = RunLost("gone", thread_id="t", run_id="r", status=None)
    first.finish(first.conduct(record("two")), Finish(error=lost))
    failed = SQLJournal(url).outcome("two")
    assert failed is not None
    assert isinstance(failed.error, RunLost)
    assert (str(failed.error), failed.error.run_id) == ("gone", "r")


@pytest.mark.parametrize("words", ["\0", "\ud800", "é\U0001f600", ""])
def test_whatever_a_tool_says_is_kept(url: str, first: Desk, words: str) -> None:
    run = structs.replace(first.conduct(record()), **ACTING, results=(outcome(output=words, error=words),))
    first.record(run)
    (result,) = SQLJournal(url).load("one").record.results
    assert (result.output, result.error) == (words, words)


def test_records_that_come_fast_are_kept_in_their_order_and_told_without_gaps(url: str, first: Desk) -> None:
    run = first.conduct(record())
    for number in range(1, 51):
        run = structs.replace(run, number=number, phase=Phase.WATCHING if number % 2 else Phase.ACTING)
        if number < 50:
            first.do(first.journal.record, run)
        else:
            first.record(run)
    history = SQLJournal(url).show("one")
    assert [event.seq for event in history.events] == list(range(1, len(history.events) + 1))
    assert [event.kind for event in history.events][1:] == ["watching", "acting"] * 25
    assert SQLJournal(url).load("one").record.number == 50


def test_the_history_tells_of_calls_and_submissions_and_no_tool_data(url: str, first: Desk) -> None:
    run = first.conduct(record())
    acting = structs.replace(run, **ACTING)
    acted = structs.replace(acting, results=(outcome(),))
    submitting = structs.replace(acted, phase=Phase.SUBMITTING)
    for later in (acting, acted, submitting, structs.replace(acted, phase=Phase.WATCHING, calls=())):
        first.record(later)
    first.finish(structs.replace(acted, phase=Phase.FINISHED), DONE)
    history = SQLJournal(url).show("one")
    assert [(event.kind, event.detail) for event in history.events][1:] == [
        ("thread", "thread_1"),
        ("run", "run_1"),
        ("tool calls", "fetch"),
        ("acting", None),
        ("tool call ended", "fetch (call_1): done"),
        ("submitting", None),
        ("watching", None),
        ("finished", None),
        ("ended", "completed"),
    ]
    (call,) = history.calls
    assert (call.state, call.arguments, call.output) == ("finished", CALL.function.arguments, "sunny")
    assert "sunny" not in repr(history)
    assert (history.run.state, history.run.held) == ("ended", False)
    assert execute(url, "SELECT round, state FROM journal_submissions") == [(1, "accepted")]


# Several processes


def test_a_run_that_another_process_has_is_followed_to_its_end(url: str, first: Desk, second: Desk) -> None:
    run = first.conduct(record())
    held = second.open(structs.replace(run, nonce="other"))
    assert isinstance(held, Held)
    assert held.owner.split(":")[1] == str(os.getpid())
    assert not second.journal.may_act("one")
    after = len(second.told)
    first.finish(run, DONE)
    ended = second.wait("opened", "one", after=after)[2]
    assert isinstance(ended, Ended)
    assert ended.finish == DONE


def test_a_run_that_is_let_go_of_goes_to_who_follows_it(first: Desk, second: Desk) -> None:
    run = first.conduct(record())
    first.record(structs.replace(run, **ACTING))
    assert isinstance(second.claim("one"), Held)
    after = len(second.told)
    first.do(first.journal.let_go, "one")
    taken = second.wait("opened", "one", after=after)[2]
    assert isinstance(taken, Conducted)
    assert (taken.first, taken.record.run_id) == (False, "run_1")
    assert not first.journal.may_act("one")


def test_closing_gives_every_lease_up(url: str, second: Desk) -> None:
    with desk(url) as other:
        other.conduct(record())
        other.conduct(record("two"))
        assert isinstance(second.claim("one"), Held)
    assert isinstance(second.wait("opened", "one", after=1)[2], Conducted)
    assert [run.record.key for run in SQLJournal(url).unfinished()] == ["two"]


def test_what_is_not_heard_of_is_lost_and_writes_nothing_more(url: str, first: Desk, second: Desk) -> None:
    run = first.conduct(record())
    first.record(structs.replace(run, number=1))
    execute(url, "UPDATE journal_runs SET lease_until = 0")
    taken = second.claim("one")
    assert isinstance(taken, Conducted)
    second.record(structs.replace(taken.record, number=20))
    first.do(first.journal.record, structs.replace(run, number=2))
    error = first.wait("lost", "one")[2]
    assert "taken over" in str(error)
    assert not first.journal.may_act("one")
    assert SQLJournal(url).load("one").record.number == 20
    epochs = [event.epoch for event in SQLJournal(url).show("one").events]
    assert epochs == sorted(epochs)


def test_a_lease_is_renewed_for_as_long_as_its_process_lives(url: str, second: Desk) -> None:
    with desk(url, lease_s=2.0) as other:
        other.conduct(record())
        until = execute(url, "SELECT lease_until FROM journal_runs")[0][0]
        end = time.monotonic() + PATIENCE_S
        while (
            execute(url, "SELECT lease_until FROM journal_runs")[0][0] < until + 0.5
        ):  # three quarters of a renewal
            assert other.journal.may_act("one")
            assert time.monotonic() < end
        assert isinstance(second.claim("one"), Held)


def test_a_process_that_cannot_renew_stops_acting_before_the_lease_ends(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    with desk(f"sqlite:///{file}", lease_s=0.5) as other:
        other.conduct(record())
        blocking = sqlite3.connect(file, isolation_level=None)
        blocking.execute("BEGIN IMMEDIATE")
        end = time.monotonic() + PATIENCE_S
        while other.journal.may_act("one"):
            assert time.monotonic() < end
        assert [news[0] for news in other.told] == ["opened"]
        error = other.wait("lost", "one")[2]
        assert "locked" in str(error)
        assert "lease" in str(error)
        blocking.execute("ROLLBACK")
        blocking.close()
        assert isinstance(other.claim("one"), Conducted)


def test_one_key_stands_for_one_request(first: Desk, second: Desk) -> None:
    run = first.conduct(record())
    others = (
        record(request=RunRequest(assistant_id="asst_2")),
        structs.replace(run, nonce="other", thread_id="thread_9"),
    )
    for other in others:
        refused = second.open(other)
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, KeyReused)
        assert refused.error.key == "one"
    elsewhere = second.open(
        structs.replace(run, nonce="other"), replace(ADDRESS, base_url="http://elsewhere")
    )
    assert isinstance(elsewhere, Refused)
    # Which tools can be called again is known where they are, and may differ.
    request = replace(run.request, unrepeatable_tools=frozenset({"fetch"}))
    assert isinstance(second.open(structs.replace(run, nonce="other", request=request)), Held)


def test_a_run_that_nobody_knows_cannot_be_claimed(first: Desk) -> None:
    refused = first.claim("nothing")
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, UnknownRun)
    assert "nothing" in str(refused.error)


def test_a_cancel_from_anywhere_is_told_to_the_owner_once(url: str, first: Desk, second: Desk) -> None:
    first.conduct(record())
    first.conduct(record("two"))
    SQLJournal(url).cancel("one")
    first.wait("cancel_wanted", "one")
    second.do(second.journal.request_cancel, "two")
    first.wait("cancel_wanted", "two")
    SQLJournal(url).cancel("one")
    first.do(first.journal.let_go, "one")
    assert second.take("one").cancel_requested
    assert [news for news in first.told if news[0] == "cancel_wanted"] == [
        ("cancel_wanted", "one"),
        ("cancel_wanted", "two"),
    ]


def test_runs_of_dead_processes_are_found_once_each(url: str, first: Desk, second: Desk) -> None:
    first.conduct(record())
    SQLJournal(url).add(record("never begun"), ADDRESS)
    second.do(second.journal.sweep)
    second.conduct(record("own"))
    execute(url, "UPDATE journal_runs SET owner = 'a process that died' WHERE key = 'one'")
    execute(url, "UPDATE journal_runs SET lease_until = 0 WHERE key = 'one'")
    stored = second.wait("found", "one")[2]
    assert stored.address == ADDRESS
    second.take("one")
    after = len(second.told)
    second.do(second.journal.let_go, "one")
    second.wait("found", "one", after=after)
    assert {news[1] for news in second.told if news[0] == "found"} == {"one"}


def test_a_thread_goes_from_one_process_to_the_next(first: Desk, second: Desk) -> None:
    run = first.conduct(record(thread_id="thread_1"))
    free = second.open(record("free", thread_id="thread_2"))
    assert isinstance(free, Conducted)
    assert free.behind is None
    waiting = second.open(record("two", thread_id="thread_1"))
    assert isinstance(waiting, Conducted)
    assert waiting.behind == "one"
    assert waiting.first
    after = len(second.told)
    first.finish(run, DONE)
    forward = second.wait("opened", "two", after=after)[2]
    assert isinstance(forward, Conducted)
    assert forward.behind is None


def test_a_run_that_is_under_way_on_a_thread_goes_before_one_that_was_asked_for_earlier(
    url: str, first: Desk, second: Desk
) -> None:
    assert SQLJournal(url).add(record("early", thread_id="thread_1"), ADDRESS)
    late = first.conduct(record("late", thread_id="thread_1"))
    first.record(structs.replace(late, phase=Phase.CREATING))
    early = second.claim("early")
    assert isinstance(early, Conducted)
    assert (early.first, early.behind) == (True, "late")


def test_servers_that_give_metadata_back_are_remembered(url: str, first: Desk) -> None:
    run = first.conduct(record())
    assert not run.metadata_echoed
    first.record(structs.replace(run, metadata_echoed=True))
    with desk(url) as other:
        assert other.conduct(record("two")).metadata_echoed
        elsewhere = other.open(record("three"), replace(ADDRESS, base_url="http://elsewhere"))
        assert isinstance(elsewhere, Conducted)
        assert not elsewhere.record.metadata_echoed


def test_who_takes_a_run_up_knows_what_others_have_seen_of_its_server(first: Desk, second: Desk) -> None:
    run, other = first.conduct(record()), second.conduct(record("two"))
    second.record(structs.replace(other, metadata_echoed=True))
    assert not run.metadata_echoed
    first.do(first.journal.let_go, "one")
    assert second.take("one").record.metadata_echoed


# What a journal refuses


def test_one_object_serves_one_orchestrator_at_a_time(url: str, first: Desk) -> None:
    with pytest.raises(JournalError, match="of its own"):
        first.do(first.journal.serve, first, first.loop)
    assert first.journal == SQLJournal(url)
    assert first.journal != SQLJournal("sqlite:///elsewhere.db")


@pytest.mark.parametrize(
    "wrong", ["runs.db", "sqlite://", "sqlite:///:memory:", "mysql://x/y", "postgresql://u:secret@h/d"]
)
def test_a_url_of_something_else_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///runs\.db") as caught:
        SQLJournal(wrong)
    assert "secret" not in str(caught.value)


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    with desk(f"sqlite:///{tmp_path}/runs.db") as at_work:
        at_work.conduct(record())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["runs.db"] == 0o600
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3
