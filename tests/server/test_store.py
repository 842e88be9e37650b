"""The store itself, on both databases: what is kept, in which order, whose it is, and who may open it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.server import objects, queries
from orchestrator.server.database import DatabaseHeldError
from orchestrator.server.queries import UnknownCursorError
from orchestrator.server.store import Shelf, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.database import Database


@asynccontextmanager
async def opened(database: Database, **options: Any) -> AsyncIterator[Store]:
    store = Store(database, **options)
    store.open()
    try:
        yield store
    finally:
        store.close()


def thread(**metadata: str) -> JSON:
    return objects.thread(created_at=1, tool_resources=None, metadata=metadata)


def message(thread_id: str, text: str) -> JSON:
    content = [objects.text_part(text)]
    return objects.message(created_at=1, thread_id=thread_id, role="user", content=content, metadata={})


def perform(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_what_was_saved_is_there_when_it_is_opened_again(database: Database) -> None:
    made = thread(name="one \0 ü \U0001f600")

    async def story() -> None:
        async with opened(database) as store:
            store.within("").save("threads", made)
            await store.settle()
        async with opened(database) as store:
            assert await store.within("").get("threads", made["id"]) == made

    perform(story())


def test_a_list_keeps_the_order_in_which_its_objects_were_first_saved(database: Database) -> None:
    async def story() -> None:
        async with opened(database) as store:
            shelf, where = store.within(""), thread()
            shelf.save("threads", where)
            first, second, third = (message(where["id"], text) for text in ("a", "b", "c"))
            shelf.save("messages", first)
            shelf.save("messages", second)
            # Once more before it was written, and once more after.
            shelf.save("messages", first | {"metadata": {"again": "1"}})
            await store.settle()
            shelf.save("messages", third)
            shelf.save("messages", second | {"metadata": {"again": "2"}})
            page = await shelf.page("messages", limit=9, descending=False, thread_id=where["id"])
            assert [found["id"] for found in page["data"]] == [first["id"], second["id"], third["id"]]
            assert [found["metadata"] for found in page["data"]] == [{"again": "1"}, {"again": "2"}, {}]

    perform(story())


def test_pages_are_cut_at_ids_from_either_side(database: Database) -> None:
    async def story() -> None:
        async with opened(database) as store:
            shelf = store.within("")
            made = [objects.assistant(created_at=1, fields={"model": "m"}) for _ in range(5)]
            ids = [assistant["id"] for assistant in made]
            for assistant in made:
                shelf.save("assistants", assistant)

            async def page(**options: Any) -> tuple[list[str], bool]:
                found = await shelf.page("assistants", **{"limit": 2, "descending": False, **options})
                return [one["id"] for one in found["data"]], found["has_more"]

            assert await page() == (ids[:2], True)
            assert await page(after=ids[2]) == (ids[3:], False)
            assert await page(before=ids[3]) == (ids[1:3], True)
            assert await page(descending=True, after=ids[1]) == ([ids[0]], False)
            assert await page(after=ids[0], before=ids[3], limit=9) == (ids[1:3], False)
            with pytest.raises(UnknownCursorError):
                await page(after="asst_none")

    perform(story())


def test_one_namespace_never_sees_what_is_in_another(database: Database) -> None:
    async def story() -> None:
        async with opened(database) as store:
            ours, theirs = store.within("a"), store.within("b")
            where = thread()
            said = message(where["id"], "secret")
            ours.save("threads", where)
            ours.save("messages", said)
            assert await theirs.get("threads", where["id"]) is None
            assert await theirs.all("messages", thread_id=where["id"]) == []
            with pytest.raises(UnknownCursorError):
                await theirs.page("messages", limit=1, descending=True, after=said["id"])
            assert await theirs.change("threads", where["id"], lambda body: body.update(metadata={})) is None
            assert not await theirs.delete("threads", where["id"])
            assert await ours.get("messages", said["id"]) == said
            assert await ours.delete("threads", where["id"])
            assert await ours.get("messages", said["id"]) is None

    perform(story())


@pytest.mark.parametrize(
    "odd", ["\0", "thread_\0", "\ud800", "x" * 500, "'; --", "", "\U0001f600"], ids=ascii
)
def test_an_id_that_no_database_would_take_is_not_found_and_harms_nobody(
    database: Database, odd: str
) -> None:
    async def story() -> None:
        async with opened(database) as store:
            shelf, made = store.within(""), thread()
            shelf.save("threads", made)
            none, found = await asyncio.gather(shelf.get("threads", odd), shelf.get("threads", made["id"]))
            assert (none, found) == (None, made)
            assert await shelf.all("messages", thread_id=odd) == []
            with pytest.raises(UnknownCursorError):
                await shelf.page("threads", limit=1, descending=True, after=odd)

    perform(story())


def test_a_query_that_fails_in_the_database_fails_alone_and_tells_nothing_of_what_was_in_it(
    database: Database,
) -> None:
    async def story() -> None:
        async with opened(database) as store:
            shelf, made = store.within(""), thread()
            shelf.save("threads", made)
            query = text("SELECT no_such_column WHERE :word = 'a'").bindparams(word="what a user wrote")
            broken = store.perform(lambda connection: connection.execute(query))
            results = await asyncio.gather(
                shelf.get("threads", made["id"]),
                broken,
                shelf.get("threads", made["id"]),
                return_exceptions=True,
            )
            assert results[0] == results[2] == made
            assert isinstance(results[1], SQLAlchemyError)
            assert "what a user wrote" not in str(results[1]), "it would be logged"

    perform(story())


def test_what_a_change_raises_is_raised_and_nothing_is_written(database: Database) -> None:
    async def story() -> None:
        async with opened(database) as store:
            shelf, made = store.within(""), thread()
            shelf.save("threads", made)

            def refuse(body: JSON) -> None:
                body["metadata"] = {"half": "done"}
                raise KeyError("no")

            with pytest.raises(KeyError):
                await shelf.change("threads", made["id"], refuse)
            assert await shelf.get("threads", made["id"]) == made

    perform(story())


def test_a_database_belongs_to_one_server_until_that_one_lets_go(database: Database) -> None:
    async def story() -> None:
        async with opened(database):
            with pytest.raises(DatabaseHeldError, match="another server"):
                Store(database).open()
        async with opened(database):
            pass

    perform(story())


def test_of_two_servers_that_start_at_once_on_an_empty_database_one_gets_it_whole(database: Database) -> None:
    stores = [Store(database) for _ in range(4)]
    barrier = threading.Barrier(len(stores))
    held: list[DatabaseHeldError] = []

    def start(store: Store) -> None:
        barrier.wait()
        try:
            store.open()
        except DatabaseHeldError as error:
            held.append(error)

    starting = [threading.Thread(target=start, args=(store,)) for store in stores]
    for one in starting:
        one.start()
    for one in starting:
        one.join()
    winners = [store for store in stores if store._thread is not None]
    try:
        assert (len(winners), len(held)) == (1, 3)

        async def story(shelf: Shelf) -> None:
            made = thread()
            shelf.save("threads", made)
            assert await shelf.get("threads", made["id"]) == made

        perform(story(winners[0].within("")))
    finally:
        for store in stores:
            store.close()


def test_the_files_are_the_owner_s_alone_even_if_they_were_not(tmp_path: Path) -> None:
    database = tmp_path / "runs.sqlite"

    def modes() -> set[int]:
        return {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}

    async def story() -> None:
        async with opened(database) as store:
            store.within("").save("threads", thread())
            await store.settle()
            assert database.with_name("runs.sqlite-wal").exists()
            assert modes() == {0o600}
        # As a killed server would have left them under an older release.
        for suffix in ("", "-wal", "-shm"):
            file = database.with_name(database.name + suffix)
            file.touch()
            file.chmod(0o644)
        async with opened(database) as store:
            store.within("").save("threads", thread())
            await store.settle()
            assert modes() == {0o600}

    perform(story())


def test_runs_that_are_not_over_are_found_with_their_namespaces(
    database: Database,
) -> None:
    async def story() -> None:
        async with opened(database) as store:
            assistant = objects.assistant(created_at=1, fields={"model": "m"})
            for namespace, status in [("a", "queued"), ("b", "completed"), ("c", "requires_action")]:
                run = objects.run(
                    run_id=f"run_{namespace}",
                    created_at=1,
                    expires_at=9,
                    thread_id="t",
                    assistant=assistant,
                    fields={},
                )
                store.save(namespace, "runs", run | {"status": status})
            assert sorted(await store.namespaces_at_work()) == ["a", "c"]
            (found,) = await store.within("a").perform(queries.active_runs)
            assert found["id"] == "run_a"

    perform(story())
