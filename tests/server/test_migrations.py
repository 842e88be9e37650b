"""Databases of other versions: older ones are brought up to date, all others are left alone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import LargeBinary, bindparam, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator import server
from orchestrator.server.database import Tenancy
from orchestrator.server.schema import METADATA, SCHEMA_VERSION, VERSION_TABLE, SchemaMismatchError
from orchestrator.server.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from orchestrator.server.database import Database

STEPS = str(Path(server.__path__[0]) / "migrations")

VERSION_1 = """
CREATE TABLE assistants (
    id VARCHAR(64) NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (id), UNIQUE (seq)
);
CREATE TABLE threads (
    id VARCHAR(64) NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (id), UNIQUE (seq)
);
CREATE TABLE messages (
    id VARCHAR(64) NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, thread_id VARCHAR(64),
    run_id VARCHAR(64), PRIMARY KEY (id), UNIQUE (seq)
);
CREATE INDEX ix_messages_run_id ON messages (run_id);
CREATE INDEX ix_messages_thread_id ON messages (thread_id);
CREATE TABLE runs (
    id VARCHAR(64) NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, thread_id VARCHAR(64),
    status VARCHAR(64), PRIMARY KEY (id), UNIQUE (seq)
);
CREATE INDEX ix_runs_status ON runs (status);
CREATE INDEX ix_runs_thread_id ON runs (thread_id);
CREATE TABLE steps (
    id VARCHAR(64) NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, thread_id VARCHAR(64),
    run_id VARCHAR(64), PRIMARY KEY (id), UNIQUE (seq)
);
CREATE INDEX ix_steps_run_id ON steps (run_id);
CREATE INDEX ix_steps_thread_id ON steps (thread_id);
CREATE TABLE idempotency (
    "key" VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL, run_id VARCHAR(64) NOT NULL,
    thread_id VARCHAR(64) NOT NULL, PRIMARY KEY ("key")
);
CREATE INDEX ix_idempotency_thread_id ON idempotency (thread_id);
CREATE TABLE meta (schema_version INTEGER NOT NULL, PRIMARY KEY (schema_version));
INSERT INTO meta VALUES (1);
"""
"""What the first release wrote, before there were migrations."""

OLD = [{"id": f"asst_{name}", "model": "m"} for name in ("c", "a", "b")]


def within(database: Database, act: Callable[[Connection], Any]) -> Any:
    """Do something to a database behind the server's back."""
    with Tenancy(database).connect() as connection, connection.begin():
        return act(connection)


def fill(connection: Connection) -> None:
    insert = text("INSERT INTO assistants (id, seq, body) VALUES (:id, :seq, :body)")
    insert = insert.bindparams(bindparam("body", type_=LargeBinary))
    for seq, body in enumerate(OLD, start=7):
        connection.execute(insert, {"id": body["id"], "seq": seq, "body": msgspec.json.encode(body)})


def make_first_version(connection: Connection) -> None:
    config = Config(attributes={"connection": connection, "heir": "nobody"})
    config.set_main_option("script_location", STEPS)
    command.upgrade(config, "0001")
    fill(connection)


def make_first_release(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.executescript(VERSION_1)
    connection.close()
    within(database, fill)


def differences(database: Database) -> Any:
    """What the tables of a database have or lack beside those that the server works with."""

    def compare(connection: Connection) -> Any:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    return within(database, compare)


def assert_inherited(database: Database) -> None:
    async def story() -> None:
        store = Store(database, heir="first")
        store.open()
        try:
            assert await store.within("first").all("assistants") == OLD
            assert await store.within("").all("assistants") == []
            new = {"id": "asst_0", "model": "m"}
            store.save("first", "assistants", new)
            assert await store.within("first").all("assistants") == [*OLD, new]
        finally:
            store.close()

    asyncio.run(story())


def test_the_steps_lead_to_the_tables_that_the_server_works_with(database: Database) -> None:
    store = Store(database)
    store.open()
    store.close()
    assert differences(database) == []


def test_the_newest_step_is_the_version_that_databases_are_stamped_with() -> None:
    steps = ScriptDirectory(STEPS)
    assert steps.get_heads() == [SCHEMA_VERSION]


def test_what_an_older_version_kept_goes_to_the_heir_in_its_order(database: Database) -> None:
    within(database, make_first_version)
    assert_inherited(database)
    assert differences(database) == []


def test_a_file_of_the_first_release_is_migrated_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "first.sqlite"
    make_first_release(database)
    assert_inherited(database)
    assert differences(database) == []


def test_a_migration_that_fails_leaves_everything_as_it_was(database: Database) -> None:
    def hinder(connection: Connection) -> None:
        make_first_version(connection)
        connection.exec_driver_sql("CREATE TABLE tenure (in_the_way INTEGER)")

    def tables(connection: Connection) -> dict[str, list[str]]:
        found = inspect(connection)
        return {
            name: [column["name"] for column in found.get_columns(name)] for name in found.get_table_names()
        }

    within(database, hinder)
    before = within(database, tables)
    with pytest.raises(SQLAlchemyError, match="tenure"):
        Store(database).open()
    assert within(database, tables) == before
    within(database, lambda connection: connection.exec_driver_sql("DROP TABLE tenure"))
    assert_inherited(database)


@pytest.mark.parametrize("version", ["0003", "0099", "fff1"])
def test_a_newer_version_is_refused_by_both_names_and_with_what_to_do(
    database: Database, version: str
) -> None:
    def stamp(connection: Connection) -> None:
        connection.exec_driver_sql(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32))")
        connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('{version}')")

    within(database, stamp)
    for _ in range(2):
        with pytest.raises(SchemaMismatchError) as refused:
            Store(database).open()
        assert f"has version {version}" in str(refused.value)
        assert f"versions up to {SCHEMA_VERSION}" in str(refused.value)
        assert "upgrade the program" in str(refused.value)
    assert within(database, lambda connection: inspect(connection).get_table_names()) == [VERSION_TABLE]


@pytest.mark.parametrize("table", ["sheep", "meta", "alembic_version"])
def test_the_tables_of_another_program_are_left_alone(database: Database, table: str) -> None:
    within(database, lambda connection: connection.exec_driver_sql(f"CREATE TABLE {table} (wool INTEGER)"))
    with pytest.raises(SchemaMismatchError, match="another program"):
        Store(database).open()
    assert within(database, lambda connection: inspect(connection).get_table_names()) == [table]
