"""A server that was seen to give metadata back is known for the runs to come, so that they can be settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from between import Between, between, once
from stage import PATIENCE_S, Stage, assert_nothing_left

from orchestrator.errors import AmbiguousOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def middleman(stage: Stage) -> Iterator[Between]:
    with between(stage.server.base_url) as middleman:
        yield middleman
    assert_nothing_left(middleman.base_url)


LOST = b""
"""The connection closes without an answer."""


def test_a_lost_create_on_an_empty_thread_is_settled_once_the_server_was_seen_to_echo(
    stage: Stage, middleman: Between
) -> None:
    thread_id = stage.thread()
    with stage.orchestrator(base_url=middleman.base_url) as orchestrator:
        orchestrator.start(stage.assistant, messages="hello").result(PATIENCE_S)
        middleman.meets = once("POST", "/runs", LOST)
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert run.result(PATIENCE_S).text == "hello to you"
    assert middleman.seen.count(f"POST /v1/threads/{thread_id}/runs") == 2
    assert [made.id for made in stage.runs(thread_id)] == [run.run_id]


def test_before_that_nobody_can_tell_and_the_error_says_where_to_look(
    stage: Stage, middleman: Between
) -> None:
    thread_id = stage.thread()
    with stage.orchestrator(base_url=middleman.base_url) as orchestrator:
        middleman.meets = once("POST", "/runs", LOST)
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        with pytest.raises(AmbiguousOutcome) as ambiguous:
            run.result(PATIENCE_S)
    assert ambiguous.value.thread_id == thread_id
    assert middleman.seen.count(f"POST /v1/threads/{thread_id}/runs") == 1


def test_what_one_server_does_says_nothing_of_another(stage: Stage, middleman: Between) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        orchestrator.start(stage.assistant, messages="hello").result(PATIENCE_S)
        middleman.meets = once("POST", "/runs", LOST)
        run = orchestrator.start(
            stage.assistant,
            thread_id=thread_id,
            messages="hello",
            base_url=middleman.base_url,
            api_key=stage.server.api_key,
        )
        with pytest.raises(AmbiguousOutcome):
            run.result(PATIENCE_S)
