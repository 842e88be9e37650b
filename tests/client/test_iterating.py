"""Iterating lists on both clients: lazily, with retries for each page, and to a clear end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from drivers import both, driven
from faulty_server import FaultyServer, Step, failure, reply

from orchestrator.client import AsyncThreadsClient
from orchestrator.errors import APIResponseError, NotFoundError
from orchestrator.runs.backend import ThreadsBackend
from orchestrator.runs.effects import FetchTranscript
from orchestrator.runs.inputs import RequestFailed, TranscriptFetched
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from orchestrator.runs.inputs import Input

ITERATED: dict[str, tuple[str, ...]] = {
    "iter_assistants": (),
    "iter_messages": ("thread_1",),
    "iter_runs": ("thread_1",),
    "iter_run_steps": ("thread_1", "run_1"),
}


def page(*ids: str, more: bool = False, **fields: Any) -> Step:
    return reply({"object": "list", "data": [{"id": one} for one in ids], "has_more": more, **fields})


@both
@pytest.mark.parametrize("name", ITERATED)
def test_every_list_is_iterated_page_by_page(kind: str, name: str) -> None:
    with (
        FaultyServer(page("a", "b", more=True, last_id="b"), page("c")) as server,
        driven(kind, server.url) as driver,
    ):
        found = driver.iterate(name, *ITERATED[name], limit=2, order="asc", after="z", before="y")
        assert [one.id for one in found] == ["a", "b", "c"]
        first, second = (one.target.partition("?")[2] for one in server.received)
    assert first == "limit=2&order=asc&after=z&before=y"
    assert second == "limit=2&order=asc&before=y&after=b"


@both
def test_filters_and_options_go_with_every_page(kind: str) -> None:
    with FaultyServer(page("a", more=True), page("b")) as server, driven(kind, server.url) as driver:
        found = driver.iterate("iter_messages", "thread_1", run_id="run_1", headers={"x-own": "1"})
        assert len(list(found)) == 2
        assert [one.headers["x-own"] for one in server.received] == ["1", "1"]
        assert all("run_id=run_1" in one.target for one in server.received)


@both
def test_a_page_is_fetched_when_iteration_reaches_it_and_not_before(kind: str) -> None:
    with FaultyServer(page("a", "b", more=True), page("c")) as server, driven(kind, server.url) as driver:
        found = driver.iterate("iter_runs", "thread_1")
        assert server.received == []
        assert [next(found).id, next(found).id, len(server.received)] == ["a", "b", 1]
        assert [next(found).id, len(server.received)] == ["c", 2]


@both
def test_a_wrong_argument_is_refused_at_the_call(kind: str) -> None:
    with FaultyServer() as server, driven(kind, server.url) as driver:
        with pytest.raises(ValueError, match="cannot be part of a path"):
            driver.iterate("iter_runs", "../x")
        with pytest.raises(TypeError, match="colour"):
            driver.iterate("iter_assistants", colour="red")
        assert server.accepted == 0


@both
def test_each_page_has_retries_of_its_own(kind: str) -> None:
    script = [failure(500), page("a", more=True), failure(503), failure(429), failure(500), page("b")]
    with FaultyServer(*script) as server, driven(kind, server.url) as driver:
        assert [one.id for one in driver.iterate("iter_runs", "thread_1")] == ["a", "b"]
        assert len(server.received) == len(script)


@both
def test_a_failing_page_is_an_error_after_what_came_before_it(kind: str) -> None:
    with FaultyServer(page("a", more=True), failure(404)) as server, driven(kind, server.url) as driver:
        found = driver.iterate("iter_runs", "thread_1")
        assert next(found).id == "a"
        with pytest.raises(NotFoundError):
            next(found)


@both
def test_a_server_that_repeats_one_page_for_ever_is_an_error(kind: str) -> None:
    with FaultyServer(default=page("a", "b", more=True, last_id="b")) as server:
        with driven(kind, server.url) as driver:
            found = driver.iterate("iter_messages", "thread_1")
            assert [next(found).id, next(found).id] == ["a", "b"]
            with pytest.raises(APIResponseError, match="after 2 objects"):
                next(found)
        assert len(server.received) == 2


@both
def test_an_object_without_an_id_is_an_answer_that_cannot_be_understood(kind: str) -> None:
    nameless = reply({"object": "list", "data": [{"object": "thread.run"}], "has_more": False})
    with FaultyServer(page("a", more=True), default=nameless) as server, driven(kind, server.url) as driver:
        found = driver.iterate("iter_runs", "thread_1")
        assert next(found).id == "a"
        with pytest.raises(APIResponseError, match="id"):
            next(found)


@both
def test_the_embedded_server_s_lists_are_iterated_whole(kind: str) -> None:
    with running_server([]) as server, driven(kind, server.base_url, api_key=server.api_key) as driver:
        thread = driver.call("create_thread").id
        made = [driver.call("create_message", thread, role="user", content=str(n)).id for n in range(7)]
        for limit in (1, 2, 7, 100):
            found = driver.iterate("iter_messages", thread, limit=limit, order="asc")
            assert [one.id for one in found] == made
        assert [one.id for one in driver.iterate("iter_messages", thread, limit=3)] == made[::-1]
        assert list(driver.iterate("iter_runs", thread)) == []


def fetched(*script: Step) -> list[Input]:
    """What the orchestrator's backend reports of a transcript."""
    reports: list[Input] = []

    async def main(url: str) -> None:
        async with AsyncThreadsClient(url, api_key="k") as client:
            effect = FetchTranscript(number=1, thread_id="thread_1", run_id="run_1")
            await ThreadsBackend(client, heard=lambda _: None).perform(
                effect, lambda *inputs: reports.extend(inputs)
            )

    with FaultyServer(*script) as server:
        asyncio.run(main(server.url))
    return reports


def test_a_run_s_transcript_is_read_by_the_same_rules() -> None:
    # No last_id anywhere, and one object twice.
    (report,) = fetched(page("m1", "m2", more=True), page("m2", "m3"), page("s1", more=True), page("s2"))
    assert isinstance(report, TranscriptFetched)
    assert [one.id for one in report.messages] == ["m1", "m2", "m3"]
    assert [one.id for one in report.steps] == ["s1", "s2"]


def test_half_a_transcript_does_not_pass_for_the_whole() -> None:
    (report,) = fetched(page("m1", more=True), page("m1", more=True))
    assert isinstance(report, RequestFailed)
    assert isinstance(report.error, APIResponseError)
