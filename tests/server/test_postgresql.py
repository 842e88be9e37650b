"""What only a database on the other end of a connection can do: be slow, go away, come back as another's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from orchestrator.server import objects
from orchestrator.server.database import DatabaseHeldError, DatabaseURLError, shown
from orchestrator.server.store import Store

if TYPE_CHECKING:
    from orchestrator.protocol.objects import JSON
    from server.postgresql import PostgreSQL

PATIENCE_S = 20.0


def thread(**metadata: str) -> JSON:
    return objects.thread(created_at=1, tool_resources=None, metadata=metadata)


def sessions_end(postgresql: PostgreSQL) -> None:
    """Cut off everybody who is connected as a server."""
    postgresql.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'orchestrator-server'"
    )


async def until_stored(store: Store, kind: Any, object_id: str) -> JSON | None:
    """Ask until the database answers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await store.within("").get(kind, object_id)
            except OperationalError:
                continue


def test_what_is_saved_while_the_database_is_down_is_written_when_it_is_back(postgresql: PostgreSQL) -> None:
    database, early, late = postgresql.schema(), thread(), thread()

    async def story() -> None:
        store = Store(database)
        store.open()
        try:
            shelf = store.within("")
            shelf.save("threads", early)
            await store.settle()
            postgresql.stop()
            try:
                shelf.save("threads", early | {"metadata": {"while": "down"}})
                shelf.save("threads", late)
                with pytest.raises(OperationalError):
                    await store.settle()
            finally:
                postgresql.start()
            assert await until_stored(store, "threads", late["id"]) == late
            assert await shelf.get("threads", early["id"]) == early | {"metadata": {"while": "down"}}
        finally:
            store.close()

    asyncio.run(story())


def test_a_session_that_was_cut_off_is_replaced_before_anybody_notices(postgresql: PostgreSQL) -> None:
    database, made = postgresql.schema(), thread()

    async def story() -> None:
        store = Store(database)
        store.open()
        try:
            store.within("").save("threads", made)
            await store.settle()
            sessions_end(postgresql)
            assert await store.within("").get("threads", made["id"]) == made
            with pytest.raises(DatabaseHeldError):
                Store(database).open()
        finally:
            store.close()

    asyncio.run(story())


def test_a_server_that_lost_its_database_to_another_writes_nothing_any_more(postgresql: PostgreSQL) -> None:
    database, ours, theirs = postgresql.schema(), thread(), thread()

    async def story() -> None:
        store, other = Store(database), Store(database)
        store.open()
        try:
            sessions_end(postgresql)
            other.open()
            other.within("").save("threads", theirs)
            await other.settle()
            other.close()
            store.within("").save("threads", ours)
            for _ in range(2):
                with pytest.raises(DatabaseHeldError, match="restart this one"):
                    await store.settle()
        finally:
            store.close()
        other.open()
        try:
            assert await other.within("").all("threads") == [theirs]
        finally:
            other.close()

    asyncio.run(story())


def test_a_database_that_keeps_a_statement_waiting_does_not_keep_the_loop(postgresql: PostgreSQL) -> None:
    database, made = postgresql.schema(), thread()

    async def story() -> None:
        store = Store(database)
        store.open()
        try:
            with psycopg.connect(database.replace("+psycopg", "")) as other:
                other.execute("LOCK TABLE threads IN ACCESS EXCLUSIVE MODE")
                store.within("").save("threads", made)
                waiting = asyncio.create_task(store.settle())
                waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                async with asyncio.timeout(PATIENCE_S):
                    # The loop turns meanwhile, which is what this is about.
                    while not (other.execute(waits).fetchone() or [0])[0]:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                assert not waiting.done()
            await waiting
            assert await store.within("").get("threads", made["id"]) == made
        finally:
            store.close()

    asyncio.run(story())


def test_two_schemas_of_one_database_serve_two_servers(postgresql: PostgreSQL) -> None:
    first, second = Store(postgresql.schema()), Store(postgresql.schema())
    first.open()
    second.open()
    second.close()
    first.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://me:secret@localhost/x", "must begin with postgresql+psycopg://"),
        ("postgresql://me:secret@localhost/x", "must begin with postgresql+psycopg://"),
        ("sqlite:///x", "give the file"),
        ("postgresql+psycopg:/me:secret", "neither a file nor a URL"),
    ],
)
def test_a_url_of_another_kind_is_refused_with_what_to_give_instead(url: str, said: str) -> None:
    with pytest.raises(DatabaseURLError) as refused:
        Store(url).open()
    assert said in str(refused.value)
    assert "secret" not in str(refused.value) + shown(url)
