"""Actors that watch a run: each is told how it ended, once, whenever it asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pykka
import pytest
from stage import PATIENCE_S, Gate, Stage, assert_nothing_left, our_threads, wait_until

from orchestrator import Completed, Failed, Stopped
from orchestrator.errors import NotFoundError, OrchestratorClosed
from orchestrator.runtime import LoopActor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_is_left(stage: Stage) -> Iterator[None]:
    yield
    # The last loop actor's thread ends a moment after it.
    wait_until(lambda: our_threads() == [])
    assert_nothing_left(stage.server.base_url, ours=1)


class Heard:
    """What a watcher was told, and word of it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.news = threading.Semaphore(0)

    def wait(self) -> Any:
        assert self.news.acquire(timeout=PATIENCE_S)
        return self.messages[-1]


class LoopWatcher(LoopActor):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def on_receive(self, message: Any) -> None:
        self._heard.messages.append(message)
        self._heard.news.release()


class ThreadingWatcher(pykka.ThreadingActor):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def on_receive(self, message: Any) -> None:
        self._heard.messages.append(message)
        self._heard.news.release()


KINDS = [LoopWatcher, ThreadingWatcher]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def watcher(request: pytest.FixtureRequest) -> Iterator[tuple[pykka.ActorRef[Any], Heard]]:
    heard = Heard()
    ref = request.param.start(heard)
    yield ref, heard
    ref.stop(timeout=PATIENCE_S)


Watcher = tuple[pykka.ActorRef[Any], Heard]


@pytest.mark.parametrize(("text", "status"), [("hello", "completed"), ("fail", "failed")])
def test_a_run_that_ends_on_the_server_is_completed_in_whatever_status(
    stage: Stage, watcher: Watcher, text: str, status: str
) -> None:
    ref, heard = watcher
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages=text, key="mine")
        run.watch(ref)
        told = heard.wait()
    assert told == Completed("mine", run.result())
    assert told.result.status == status


def test_a_run_that_cannot_be_conducted_is_failed_with_its_cause(stage: Stage, watcher: Watcher) -> None:
    ref, heard = watcher
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start("asst_nobody", messages="hello", key="mine")
        run.watch(ref)
        told = heard.wait()
    assert isinstance(told, Failed)
    assert isinstance(told.cause, NotFoundError)
    assert (told.key, told.cause) == ("mine", run.future.exception(PATIENCE_S))


@pytest.mark.parametrize("by", ["detach", "close"])
def test_a_run_that_is_let_go_of_is_stopped_with_its_ids(stage: Stage, watcher: Watcher, by: str) -> None:
    ref, heard = watcher
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle", key="mine")
        run.watch(ref)
        wait_until(lambda: run.status == "in_progress")
        if by == "detach":
            run.detach()
        else:
            orchestrator.close(on_active="detach")
        told = heard.wait()
    assert isinstance(told, Stopped)
    assert isinstance(told.error, OrchestratorClosed)
    assert (told.key, str(run.run_id) in str(told.error)) == ("mine", True)
    stage.client.cancel_run(str(run.thread_id), str(run.run_id))


def test_a_watcher_that_asks_twice_or_late_is_told_once(stage: Stage, watcher: Watcher) -> None:
    ref, heard = watcher
    late = Heard()
    other = LoopWatcher.start(late)
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        run.watch(ref)
        run.watch(ref)
        told = heard.wait()
        run.watch(ref)
    run.watch(ref)
    run.watch(other)
    assert late.wait() == told == Completed(run.key, run.result())
    for asked in (ref, other):
        asked.ask("the last message", timeout=PATIENCE_S)
    assert heard.messages == late.messages == [told, "the last message"]
    other.stop(timeout=PATIENCE_S)


@pytest.mark.parametrize("kind", KINDS)
def test_a_watcher_that_died_is_forgotten_and_the_others_are_told(
    stage: Stage, watcher: Watcher, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ref, heard = watcher
    gate = Gate()
    dead = kind.start(Heard())
    with stage.orchestrator(tools=[gate.fetch], check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        run.watch(dead)
        run.watch(ref)
        dead.stop(timeout=PATIENCE_S)
        gate.open.set()
        assert heard.wait().result.text == "got it"
    late = kind.start(Heard())
    late.stop(timeout=PATIENCE_S)
    run.watch(late)
    assert caplog.text == ""


def test_one_watcher_is_told_of_every_run_it_watches(stage: Stage, watcher: Watcher) -> None:
    ref, heard = watcher
    with stage.orchestrator() as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="hello") for _ in range(20)]
        for run in runs:
            run.watch(ref)
        for _ in runs:
            heard.wait()
    assert sorted(told.key for told in heard.messages) == sorted(run.key for run in runs)


def test_what_is_no_actor_cannot_watch(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        with pytest.raises(TypeError, match=r"takes a pykka\.ActorRef, .*: for callables there is `future`"):
            run.watch(print)  # type: ignore[arg-type]  # the point
