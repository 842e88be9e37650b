"""A run that is over is gone with its handle: nothing of it waits for the garbage collector.

What refers to itself stays until a full collection, with all its events, and the larger the fleet the longer
that takes and the later it comes.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from stage import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fetch() -> str:
    return "it"


async def other() -> str:
    return "that"


def third() -> str:
    raise LookupError("nothing there")


@pytest.mark.parametrize("watch", ["stream", "poll"])
@pytest.mark.parametrize("messages", ["hello", "all", "fail"])
@pytest.mark.usefixtures("no_collector")
def test_an_ended_run_is_gone_with_its_handle(stage: Stage, watch: Any, messages: str) -> None:
    with stage.orchestrator(tools=[fetch, other, third], watch=watch) as orchestrator:
        run = orchestrator.start(stage.assistant, messages=messages)
        state = weakref.ref(run._state)
        run.result(PATIENCE_S)
        del run
        wait_until(lambda: state() is None)


@pytest.mark.usefixtures("no_collector")
def test_a_cancelled_run_is_gone_with_its_handle(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        state = weakref.ref(run._state)
        run.cancel()
        run.result(PATIENCE_S)
        del run
        wait_until(lambda: state() is None)
