"""Runs that survive: started twice, left and taken up, followed, cancelled and refused, in either database.

The orchestrators are in one process here; processes that die are in `test_crashes.py` and `test_leases.py`.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from journals import journal_in, journal_url
from sqlalchemy import Connection, create_engine, event, select
from stage import PATIENCE_S, Gate, Stage, staged, wait_until

from orchestrator.errors import (
    DeadlineExceeded,
    JournalError,
    KeyReused,
    ThreadBusy,
    UnknownRun,
)
from orchestrator.journal import SQLJournal
from orchestrator.journal.schema import METADATA
from orchestrator.runs.machine import WaitsFor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.journal import Address
    from orchestrator.server.database import Database

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@contextmanager
def writing_is_held_up(database: Database) -> Iterator[None]:
    """Have everybody else wait who wants to write to the journal in this database."""
    engine = create_engine(journal_url(database), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if isinstance(database, str):
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("LOCK TABLE journal_runs IN EXCLUSIVE MODE")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.exec_driver_sql("ROLLBACK")
    engine.dispose()


def test_a_key_stands_for_one_run_whoever_starts_it(stage: Stage, database: Database) -> None:
    gate = Gate()
    with (
        stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as first,
        stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as second,
    ):
        thread = stage.thread()
        one = first.start(stage.assistant, thread_id=thread, messages="fetch", key="order-42")
        gate.wait_until_reached()
        other = second.start(stage.assistant, thread_id=thread, messages="fetch", key="order-42")
        other.recorded.result(PATIENCE_S)
        assert other.snapshot().waits_for is WaitsFor.PROCESS
        again = first.start(stage.assistant, thread_id=thread, messages="fetch", key="order-42")
        gate.open.set()
        assert {one.result(PATIENCE_S).run_id, other.result(PATIENCE_S).run_id} == {one.run_id}
        assert again.result(PATIENCE_S).text == other.result().text == "got it"
        late = second.start(stage.assistant, thread_id=thread, messages="fetch", key="order-42")
        assert late.result(PATIENCE_S) == one.result()
    assert [run.id for run in stage.runs(thread)] == [one.run_id]
    assert gate.calls == 1


def test_a_key_of_another_request_is_refused(stage: Stage, database: Database) -> None:
    with (
        stage.orchestrator(journal=journal_in(database)) as first,
        stage.orchestrator(journal=journal_in(database)) as second,
    ):
        known = first.start(stage.assistant, messages="hello", key="order-42")
        known.recorded.result(PATIENCE_S)
        refused = second.start(stage.assistant, messages="dawdle", key="order-42")
        with pytest.raises(KeyReused, match="order-42"):
            refused.recorded.result(PATIENCE_S)
        with pytest.raises(KeyReused, match="use another key"):
            refused.result(PATIENCE_S)
        with pytest.raises(KeyReused, match="order-42"):
            second.enqueue(stage.assistant, messages="dawdle", key="order-42")
        assert known.result(PATIENCE_S).text == "hello to you"


def test_nothing_is_sent_before_the_intent_is_recorded(stage: Stage, database: Database) -> None:
    journal = journal_in(database, lease_s=30)
    journal.prepare()
    thread = stage.thread()
    with stage.orchestrator(journal=journal) as durable, stage.orchestrator() as other:
        with writing_is_held_up(database):
            run = durable.start(stage.assistant, thread_id=thread, messages="hello")
            # Time enough for a run to come and go that does not wait for a journal.
            assert other.start(stage.assistant, messages="hello").result(PATIENCE_S).text == "hello to you"
            assert not run.recorded.done()
            assert stage.requests(thread) == []
        run.recorded.result(PATIENCE_S)
        assert run.result(PATIENCE_S).text == "hello to you"
    assert len(stage.requests(thread, "POST")) == 1


def test_a_run_is_cancelled_through_the_journal(stage: Stage, database: Database) -> None:
    with (
        stage.orchestrator(journal=journal_in(database)) as conducting,
        stage.orchestrator(journal=journal_in(database)) as asking,
    ):
        run = conducting.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        followed = asking.attach(run.key)
        followed.cancel()
        assert followed.result(PATIENCE_S).status == "cancelled"
        assert run.result(PATIENCE_S).status == "cancelled"
        assert [seen.status for seen in stage.runs(run.thread_id)] == ["cancelled"]


def test_an_enqueued_run_waits_for_whoever_attaches_to_it(stage: Stage, database: Database) -> None:
    thread = stage.thread()
    with stage.orchestrator(journal=journal_in(database)) as producer:
        key = producer.enqueue(stage.assistant, thread_id=thread, messages="hello", key="order-7")
        assert key == producer.enqueue(stage.assistant, thread_id=thread, messages="hello", key="order-7")
    assert stage.requests(thread) == []
    with stage.orchestrator(journal=journal_in(database)) as worker:
        assert worker.resume() == []
        assert worker.attach(key).result(PATIENCE_S).text == "hello to you"
    assert len(stage.runs(thread)) == 1


def test_what_was_left_is_resumed(stage: Stage, database: Database) -> None:
    first = stage.orchestrator(journal=journal_in(database))
    run = first.start(stage.assistant, messages="long")
    wait_until(lambda: run.status == "in_progress")
    assert first.close() == [run]
    with stage.orchestrator(journal=journal_in(database)) as second:
        (resumed,) = second.resume()
        assert (resumed.key, resumed.run_id) == (run.key, run.run_id)
        wait_until(lambda: resumed.snapshot().waits_for is WaitsFor.SERVER)
        resumed.cancel()
        assert resumed.result(PATIENCE_S).status == "cancelled"
    assert [seen.id for seen in stage.runs(run.thread_id)] == [run.run_id]


def test_who_attaches_to_a_run_that_is_over_has_its_outcome(stage: Stage, database: Database) -> None:
    gate = Gate(opened=True)
    with stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as first:
        result = first.start(stage.assistant, messages="fetch", key="over").result(PATIENCE_S)
    with stage.orchestrator(journal=journal_in(database)) as second:
        assert second.attach("over").result(PATIENCE_S) == result
        assert second.resume() == []
        with pytest.raises(UnknownRun, match="'never'"):
            second.attach("never")


def test_runs_of_two_orchestrators_take_turns_on_a_thread(stage: Stage, database: Database) -> None:
    thread = stage.thread()
    with (
        stage.orchestrator(journal=journal_in(database)) as first,
        stage.orchestrator(journal=journal_in(database)) as second,
    ):
        holder = first.start(stage.assistant, thread_id=thread, messages="dawdle")
        wait_until(lambda: holder.status == "in_progress")
        waiting = second.start(stage.assistant, thread_id=thread, messages="hello")
        wait_until(lambda: waiting.snapshot().waits_for is WaitsFor.THREAD)
        assert holder.key in waiting.snapshot().waits_detail
        rejected = second.start(stage.assistant, thread_id=thread, messages="hello", on_busy_thread="reject")
        with pytest.raises(ThreadBusy, match="another process"):
            rejected.result(PATIENCE_S)
        holder.cancel()
        assert waiting.result(PATIENCE_S).text == "hello to you"
        assert holder.result(PATIENCE_S).status == "cancelled"
    assert len(stage.runs(thread)) == 2
    assert sum(request == "POST /runs" for request in stage.requests(thread)) == 2


def test_a_run_that_interrupts_ends_one_of_another_orchestrator(stage: Stage, database: Database) -> None:
    thread = stage.thread()
    with (
        stage.orchestrator(journal=journal_in(database)) as first,
        stage.orchestrator(journal=journal_in(database)) as second,
    ):
        holder = first.start(stage.assistant, thread_id=thread, messages="dawdle")
        wait_until(lambda: holder.status == "in_progress")
        urgent = second.start(stage.assistant, thread_id=thread, messages="hello", on_busy_thread="interrupt")
        assert urgent.result(PATIENCE_S).text == "hello to you"
        assert holder.result(PATIENCE_S).status == "cancelled"


def test_a_deadline_goes_on_while_nobody_conducts_the_run(stage: Stage, database: Database) -> None:
    first = stage.orchestrator(journal=journal_in(database))
    run = first.start(stage.assistant, messages="dawdle", deadline_s=1.5)
    wait_until(lambda: run.status == "in_progress")
    first.close()
    with stage.orchestrator(journal=journal_in(database)) as second:
        (resumed,) = second.resume()
        with pytest.raises(DeadlineExceeded, match=str(run.run_id)):
            resumed.result(PATIENCE_S)
        assert resumed.snapshot().age_s < 5
    assert [seen.status for seen in stage.runs(run.thread_id)] == ["cancelled"]


def kept(database: Database) -> bytes:
    """Everything that is in the journal in this database, as it lies there."""
    if isinstance(database, str):
        engine = create_engine(database)
        with engine.connect() as connection:
            rows = [connection.execute(select(table)).all() for table in METADATA.sorted_tables]
        engine.dispose()
        return repr(rows).encode()
    return b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))


def test_no_key_is_kept_and_whoever_resumes_is_asked_for_it(database: Database) -> None:
    asked: list[Address] = []

    def credentials(address: Address) -> str:
        asked.append(address)
        return "its-own-secret"

    with staged(other_keys=["its-own-secret"]) as stage:
        options: dict[str, Any] = {"base_url": stage.server.base_url, "api_key": "its-own-secret"}
        own = stage.client.with_options(api_key="its-own-secret")
        assistant = own.create_assistant(model="rules").id
        thread = own.create_thread().id
        first = stage.orchestrator(journal=journal_in(database))
        run = first.start(assistant, thread_id=thread, messages="dawdle", organization="acme", **options)
        wait_until(lambda: run.status == "in_progress")
        first.close()
        everything = kept(database)
        assert b"acme" in everything
        for key in ("its-own-secret", stage.server.api_key):
            assert key.encode() not in everything
        elsewhere = {"base_url": "http://127.0.0.1:9/v1", "api_key": "another"}
        with stage.orchestrator(journal=journal_in(database), **elsewhere) as without:
            assert without.resume() == []
            with pytest.raises(JournalError, match="no key: pass credentials="):
                without.attach(run.key)
        given = elsewhere | {"credentials": credentials}
        with stage.orchestrator(journal=journal_in(database), **given) as second:
            (resumed,) = second.resume()
            resumed.cancel()
            assert resumed.result(PATIENCE_S).status == "cancelled"
    assert {(one.base_url, one.organization) for one in asked} == {(stage.server.base_url, "acme")}


def test_a_full_disk_keeps_runs_from_beginning_and_does_not_end_those_under_way(
    stage: Stage, tmp_path: Path
) -> None:
    full = threading.Event()

    def limit(connection: Connection) -> None:
        # SQLite makes of one page as many as there are: nothing can be added.
        pages = 1 if full.is_set() else 1_000_000
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    file = tmp_path / "runs.sqlite"
    gate = Gate()

    def fetch() -> str:
        """Fetch more than there is space for."""
        return gate.fetch("much " * 20_000)

    journal = journal_in(file, lease_s=30, patience_s=0.2)
    event.listen(journal._database._engine, "begin", limit)
    thread, other = stage.thread(), stage.thread()
    with stage.orchestrator(journal=journal, tools=[fetch]) as orchestrator:
        under_way = orchestrator.start(stage.assistant, thread_id=thread, messages="fetch")
        gate.wait_until_reached()
        full.set()
        gate.open.set()
        refused = orchestrator.start(stage.assistant, thread_id=other, messages="hello " * 20_000)
        with pytest.raises(JournalError, match="disk is full; free some space") as named:
            refused.result(PATIENCE_S)
        assert str(file) in str(named.value)
        with pytest.raises(JournalError, match="disk is full"):
            refused.recorded.result(PATIENCE_S)
        with pytest.raises(JournalError, match="disk is full"):
            orchestrator.enqueue(stage.assistant, messages="hello " * 20_000)
        assert stage.requests(other) == []
        assert not any("submit_tool_outputs" in request for request in stage.requests(thread))
        full.clear()
        assert under_way.result(PATIENCE_S).text == f"got {'much ' * 20_000}"
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@contextmanager
def powerless() -> Iterator[None]:
    """Be somebody who may write only what everybody may, where this is a user who may write anything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_file_is_named_and_nothing_is_sent(stage: Stage) -> None:
    thread = stage.thread()
    # Not below a directory that is its owner's alone.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "runs.sqlite"
        journal_in(file).prepare()
        file.chmod(0o444)
        directory.chmod(0o555)
        with powerless():
            orchestrator = stage.orchestrator(journal=journal_in(file))
            run = orchestrator.start(stage.assistant, thread_id=thread, messages="hello")
            with pytest.raises(JournalError, match=r"runs\.sqlite.*writable"):
                run.result(PATIENCE_S)
            orchestrator.close()
        directory.chmod(0o755)
    assert stage.requests(thread) == []


def test_the_journal_of_a_run_is_asked_for_by_name(stage: Stage, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.sqlite'}"
    with stage.orchestrator(journal=url) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        assert run.result(PATIENCE_S).text == "hello to you"
        assert isinstance(orchestrator.journal, SQLJournal)
        assert orchestrator.journal.url == url
        assert [(one.key, one.status) for one in orchestrator.journal.runs(ended=True)] == [
            (run.key, "completed")
        ]
    with stage.orchestrator() as forgetful:
        for ask in (forgetful.resume, partial(forgetful.attach, run.key)):
            with pytest.raises(JournalError, match="needs a journal that survives"):
                ask()


def test_a_run_that_nobody_has_begun_is_cancelled_before_it_is_sent(stage: Stage, database: Database) -> None:
    thread = stage.thread()
    with stage.orchestrator(journal=journal_in(database)) as orchestrator:
        key = orchestrator.enqueue(stage.assistant, thread_id=thread, messages="hello")
        journal_in(database).cancel(key)
        result = orchestrator.attach(key).result(PATIENCE_S)
        assert (result.status, result.run_id) == ("cancelled", None)
    assert stage.requests(thread) == []


def test_two_that_attach_at_once_share_the_run(stage: Stage, database: Database) -> None:
    thread = stage.thread()
    gate = Gate(opened=True)
    with (
        stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as first,
        stage.orchestrator(journal=journal_in(database), tools=[gate.fetch]) as second,
    ):
        keys = [
            first.enqueue(stage.assistant, thread_id=thread, messages="fetch", key=f"job-{number}")
            for number in range(5)
        ]
        handles = [(first.attach(key), second.attach(key)) for key in keys]
        results = [(one.result(PATIENCE_S), other.result(PATIENCE_S)) for one, other in handles]
    assert all(one == other for one, other in results)
    assert [one.text for one, _ in results] == ["got it"] * 5
    assert len(stage.runs(thread)) == gate.calls == 5
