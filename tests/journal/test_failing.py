"""A database that is full, locked, read-only, gone for a while, or of another version."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from desk import ACTING, ADDRESS, Desk, desk, outcome, record
from msgspec import structs
from sqlalchemy import create_engine, event, inspect, text

from orchestrator.errors import JournalError
from orchestrator.journal import Conducted, Refused, SQLJournal, schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.postgresql import PostgreSQL

FULL_PAGES = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program that holds the file's write lock, which it gives up with a commit."""
    SQLJournal(f"sqlite:///{file}").prepare()
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def assert_sound(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def refused(at_work: Desk, key: str = "one") -> JournalError:
    answer = at_work.open(record(key))
    assert isinstance(answer, Refused), answer
    assert isinstance(answer.error, JournalError)
    return answer.error


def test_what_waits_for_a_lock_is_kept_when_it_is_free(file: Path, locked: sqlite3.Connection) -> None:
    with desk(f"sqlite:///{file}") as at_work:
        at_work.do(at_work.journal.open, record(), ADDRESS)
        assert at_work.told == []
        locked.execute("COMMIT")
        assert isinstance(at_work.wait("opened", "one")[2], Conducted)


def test_a_full_disk_is_named_and_what_was_not_written_is_written_when_there_is_space(file: Path) -> None:
    pages = FULL_PAGES

    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    journal = SQLJournal(f"sqlite:///{file}", poll_s=0.02, backoff_s=0.01, patience_s=0.2)
    event.listen(journal._database._engine, "connect", limit)
    at_work = Desk(journal)
    try:
        run = structs.replace(at_work.conduct(record()), **ACTING)
        at_work.record(run)
        ticket = at_work.do(
            journal.record, structs.replace(run, results=(outcome(output="x" * 4096 * FULL_PAGES),))
        )
        error = refused(at_work, "two")
        assert "disk is full" in str(error)
        assert "free some space" in str(error)
        assert str(file) in str(error)
        assert not any(news == ("kept", "one", ticket) for news in at_work.told)
        assert SQLJournal(f"sqlite:///{file}").load("one").record.results == ()
        pages = 100 * FULL_PAGES
        at_work.wait("kept", "one", ticket)
        (result,) = SQLJournal(f"sqlite:///{file}").load("one").record.results
        assert len(result.output) == 4096 * FULL_PAGES
        assert isinstance(at_work.open(record("three")), Conducted)
    finally:
        at_work.close()
    assert_sound(file)


def test_a_read_only_database_is_named_at_once(file: Path) -> None:
    SQLJournal(f"sqlite:///{file}").add(record("known"), ADDRESS)
    journal = SQLJournal(f"sqlite:///{file}", poll_s=0.02, backoff_s=0.01)
    event.listen(
        journal._database._engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=1").close()
    )
    at_work = Desk(journal)
    try:
        error = refused(at_work)
        assert "readonly" in str(error)
        assert "writable" in str(error)
    finally:
        at_work.close()
    with pytest.raises(JournalError, match="writable"):
        journal.add(record("new"), ADDRESS)
    assert journal.load("known").record.key == "known"
    assert_sound(file)


@pytest.mark.parametrize("make", ["text", "directory", "nowhere"])
def test_what_is_no_database_is_named_at_once(file: Path, make: str) -> None:
    if make == "text":
        file.write_text("what is this? " * 1000)
    elif make == "directory":
        file.mkdir()
    else:
        file = file / "deeper" / "runs.db"
    with desk(f"sqlite:///{file}") as at_work:
        assert str(file) in str(refused(at_work))
    with pytest.raises(JournalError, match=r"choose another file|see that"):
        SQLJournal(f"sqlite:///{file}").runs()
    if make == "text":
        assert file.read_text().startswith("what is this?")


def test_a_run_that_no_database_can_take_harms_no_other(url: str, first: Desk) -> None:
    good, bad = first.conduct(record("good")), first.conduct(record("bad"))
    first.do(first.journal.record, structs.replace(bad, status="\ud800"))
    for number in range(1, 4):
        first.do(first.journal.record, structs.replace(good, number=number))
    assert "cannot write" in str(first.wait("lost", "bad")[2])
    first.record(structs.replace(good, number=9))
    assert SQLJournal(url).load("good").record.number == 9
    assert SQLJournal(url).load("bad").record.status is None
    assert isinstance(first.claim("bad"), Conducted)


def test_a_postgresql_server_that_restarts_loses_nothing(postgresql: PostgreSQL) -> None:
    url = postgresql.schema()
    with desk(url) as at_work:
        run = at_work.conduct(record())
        postgresql.stop()
        try:
            ticket = at_work.do(at_work.journal.record, structs.replace(run, number=1))
        finally:
            postgresql.start()
        at_work.wait("kept", "one", ticket)
        at_work.record(structs.replace(run, number=2))
        assert at_work.journal.may_act("one")
    assert SQLJournal(url).load("one").record.number == 2
    assert postgresql.password not in str(SQLJournal(url).url)


def test_a_server_that_is_not_there_is_named_without_its_password(postgresql: PostgreSQL) -> None:
    url = postgresql.url.replace(str(postgresql.port), "1")
    with desk(url) as at_work:
        error = refused(at_work)
    assert "reachable" in str(error)
    assert postgresql.password not in str(error)


# Versions


def version_1(url: str) -> None:
    """Make what version 1 made, with a run that was under way."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        migrate_to(connection, "0001")
        columns = (
            "key, nonce, server, assistant_id, thread_id, asked, state, phase, attempts, cancel_requested, "
            "epoch, seq, created_at, updated_at"
        )
        values = (
            ":key, 'n', 'http://server/v1', 'asst_1', 't', :asked, :state, 'admitted', 1, :no, 1, 1, 1, 1"
        )
        connection.execute(
            text(f"INSERT INTO journal_runs ({columns}) VALUES ({values})"),
            {"key": "old", "asked": OLD_ASKED, "state": OLD_STATE, "no": False},
        )
    engine.dispose()


def migrate_to(connection: Any, version: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    command.upgrade(config, version)


OLD_ASKED = bytes.fromhex(
    "86ac6f7267616e697a6174696f6ec0a770726f6a656374c0a8626173655f75726cb0687474703a2f2f7365727665722f7631"
    "a772657175657374 81ac617373697374616e745f6964a6617373745f31 a672756e5f6964c0 a97468726561645f6964a174"
)
OLD_STATE = bytes.fromhex(
    "83 a56e6f6e6365a16e ab646561646c696e655f6174cb41dfffffffc00000 a97468726561645f6964a174"
)
"""What version 1 wrote, byte for byte: it must be read for ever."""


def test_a_journal_of_an_older_version_is_brought_up_to_date_with_its_runs(url: str) -> None:
    version_1(url)
    journal = SQLJournal(url)
    (stored,) = journal.unfinished()
    assert stored.record.key == "old"
    assert (stored.record.nonce, stored.record.thread_id) == ("n", "t")
    assert stored.record.request.assistant_id == "asst_1"
    assert stored.address.base_url == "http://server/v1"
    engine = create_engine(url)
    with engine.connect() as connection:
        assert schema.version(connection) == schema.SCHEMA_VERSION
        indexes = {index["name"] for index in inspect(connection).get_indexes("journal_runs")}
    engine.dispose()
    assert "ix_journal_runs_thread" in indexes
    with desk(url) as at_work:
        assert isinstance(at_work.claim("old"), Conducted)


def test_the_tables_are_those_that_the_program_expects(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    SQLJournal(url).prepare()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        differences = compare_metadata(context, schema.METADATA)
    engine.dispose()
    assert differences == []


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    journal = SQLJournal(url)
    journal.add(record(), ADDRESS)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0999'"))
    with pytest.raises(JournalError, match=r"version 0999.*upgrade the program"):
        SQLJournal(url).load("one")
    with desk(url) as at_work:
        assert "version 0999" in str(refused(at_work, "two"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM journal_runs")).scalar() == 1
    engine.dispose()
