"""Changes that meet in the store: none is lost, none undoes an end, none brings back what was deleted.

The application runs on the test's own loop, so that a test decides which reads the store does in one batch:
everything asked for while its thread is held is read before any of it is answered.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from orchestrator.server import app as application
from orchestrator.server.queries import active_runs
from orchestrator.server.rules import RuleModel
from orchestrator.server.script import build, parse
from orchestrator.server.security import OPEN
from server.conftest import SCRIPT
from server.speaker import TIME, outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from orchestrator.server.database import Database
    from orchestrator.server.http import Backend

PATIENCE_S = 20.0


class Caller:
    """A client of an application on this loop, with a look at its parts."""

    def __init__(self, backend: Backend, http: httpx.AsyncClient) -> None:
        self.backend = backend
        self._http = http

    async def ok(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        response = await self.send(method, path, body)
        assert response.status_code == 200, response.text
        payload: dict[str, Any] = response.json()
        return payload

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self._http.request(method, path, json=body)

    async def waiting_run(self) -> str:
        """Run until a tool's output is wanted; return the run's path."""
        assistant = await self.ok("POST", "/assistants", {"model": "rules", "tools": [TIME]})
        thread = await self.ok("POST", "/threads", {"messages": [{"role": "user", "content": "rounds"}]})
        runs = f"/threads/{thread['id']}/runs"
        run = await self.ok("POST", runs, {"assistant_id": assistant["id"]})
        path = f"{runs}/{run['id']}"
        while (await self.ok("GET", path))["status"] != "requires_action":
            pass
        return path

    async def in_one_batch(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Let the store take up the first job of every piece of work at once, in their order."""
        store, go = self.backend.store, threading.Event()
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold(_connection: object, _namespace: str) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert go.wait(PATIENCE_S)

        held = asyncio.create_task(store.perform(hold))
        try:
            await reached.wait()
            tasks = []
            for count, piece in enumerate(work, start=1):
                tasks.append(asyncio.create_task(piece))
                while len(store._store._jobs) < count:  # noqa: ASYNC110 - a store tells nobody what it was asked
                    await asyncio.sleep(0)
        finally:
            go.set()
        await held
        return await asyncio.gather(*tasks)


@asynccontextmanager
async def calling(database: Database) -> AsyncIterator[Caller]:
    app = application.create_app(db=database, model=RuleModel(build(parse(SCRIPT, "script"))))
    transport = httpx.ASGITransport(app)
    headers = {"openai-beta": "assistants=v2"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1", headers=headers) as http,
    ):
        yield Caller(app.state.backends[OPEN], http)


def test_a_run_that_ends_while_it_is_modified_stays_ended_and_keeps_the_change(database: Database) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            path = await caller.waiting_run()
            execution = caller.backend.execution
            active = execution.get(path.rpartition("/")[2])
            assert active is not None
            loop = asyncio.get_running_loop()

            # Behind what the modification reads, and ahead of its answer: the run ends on the loop.
            end = caller.backend.store.perform(
                lambda _connection, _namespace: loop.call_soon_threadsafe(execution.end, active, "expired")
            )
            modified, _ = await caller.in_one_batch(
                caller.ok("POST", path, {"metadata": {"seen": "yes"}}), end
            )

            assert modified["metadata"] == {"seen": "yes"}
            run = await caller.ok("GET", path)
            assert (run["status"], run["metadata"]) == ("expired", {"seen": "yes"})
            assert await caller.backend.store.perform(active_runs) == []

    asyncio.run(main())


def test_a_run_that_is_over_is_modified_and_stays_over(database: Database) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            path = await caller.waiting_run()
            await caller.ok("POST", f"{path}/cancel")
            while (over := await caller.ok("GET", path))["status"] != "cancelled":
                pass
            modified = await caller.ok("POST", path, {"metadata": {"a": "1"}})
            assert modified == await caller.ok("GET", path) == {**over, "metadata": {"a": "1"}}

    asyncio.run(main())


@pytest.mark.parametrize("over", [False, True], ids=["active", "over"])
def test_a_run_is_not_modified_through_another_thread(database: Database, over: bool) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            path = await caller.waiting_run()
            run_id = path.rpartition("/")[2]
            if over:
                active = caller.backend.execution.get(run_id)
                assert active is not None
                caller.backend.execution.end(active, "expired")
            before = await caller.ok("GET", path)
            elsewhere = f"/threads/thread_none/runs/{run_id}"
            assert (await caller.send("POST", elsewhere, {"metadata": {"a": "1"}})).status_code == 404
            assert await caller.ok("GET", path) == before

    asyncio.run(main())


@pytest.mark.parametrize(
    ("where", "made_of", "changes"),
    [
        ("/assistants", {"model": "rules"}, [{"name": "a"}, {"instructions": "b"}]),
        ("/threads", {}, [{"metadata": {"a": "1"}}, {"tool_resources": {"file_search": {}}}]),
    ],
    ids=["assistant", "thread"],
)
def test_two_changes_at_the_same_time_are_both_kept(
    database: Database, where: str, made_of: dict[str, Any], changes: list[dict[str, Any]]
) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            path = f"{where}/{(await caller.ok('POST', where, made_of))['id']}"
            before = await caller.ok("GET", path)
            await caller.in_one_batch(*(caller.ok("POST", path, change) for change in changes))
            assert await caller.ok("GET", path) == before | changes[0] | changes[1]

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["assistants", "threads", "messages"])
def test_what_is_deleted_while_it_is_modified_stays_deleted(database: Database, kind: Any) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            thread = f"/threads/{(await caller.ok('POST', '/threads', {}))['id']}"
            where, body = {
                "assistants": ("/assistants", {"model": "rules"}),
                "threads": ("/threads", {}),
                "messages": (f"{thread}/messages", {"role": "user", "content": "hello"}),
            }[kind]
            made = await caller.ok("POST", where, body)
            path = f"{where}/{made['id']}"
            await caller.in_one_batch(
                caller.send("POST", path, {"metadata": {"a": "1"}}),
                caller.backend.store.delete(kind, made["id"]),
            )
            assert (await caller.send("GET", path)).status_code == 404

    asyncio.run(main())


def test_a_message_to_a_thread_that_is_deleted_meanwhile_is_refused_and_not_kept(database: Database) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            thread_id = (await caller.ok("POST", "/threads", {}))["id"]
            store = caller.backend.store
            # It is found, and gone before the message is written.
            answer, deleted = await caller.in_one_batch(
                caller.send("POST", f"/threads/{thread_id}/messages", {"role": "user", "content": "late"}),
                store.delete("threads", thread_id),
            )
            assert (answer.status_code, deleted) == (404, True)
            assert await store.all("messages", thread_id=thread_id) == []

    asyncio.run(main())


@pytest.mark.parametrize("what", ["assistant", "thread", "message", "run", "outputs"])
def test_what_is_created_or_accepted_is_answered_for_only_when_it_is_stored(
    database: Database, what: str
) -> None:
    async def main() -> None:
        async with calling(database) as caller:
            path = await caller.waiting_run()
            run = await caller.ok("GET", path)
            (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
            thread = f"/threads/{(await caller.ok('POST', '/threads', {}))['id']}"
            where, body = {
                "assistant": ("/assistants", {"model": "rules"}),
                "thread": ("/threads", {}),
                "message": (f"{thread}/messages", {"role": "user", "content": "hello"}),
                "run": (f"{thread}/runs", {"assistant_id": run["assistant_id"]}),
                "outputs": (f"{path}/submit_tool_outputs", outputs((call["id"], "1"))),
            }[what]
            loop, store = asyncio.get_running_loop(), caller.backend.store._store
            writing, go, batch = asyncio.Event(), threading.Event(), store._batch

            def held(connection: Any, saves: Any, jobs: Any) -> Exception | None:
                if saves:
                    loop.call_soon_threadsafe(writing.set)
                    assert go.wait(PATIENCE_S)
                return batch(connection, saves, jobs)

            await store.perform(lambda _: None)
            store._batch = held  # type: ignore[method-assign]  # a disk that takes its time
            asked = asyncio.create_task(caller.ok("POST", where, body))
            try:
                await writing.wait()
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not asked.done()
            finally:
                go.set()
            await asked

    asyncio.run(main())
