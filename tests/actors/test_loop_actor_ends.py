"""However a LoopActor ends: everybody is answered, its supervisor is told once, the others live on."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pykka
import pytest
from pykka import ActorDeadError, ActorRegistry
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from orchestrator.runtime import LoopActor, LoopFuture, LoopThread, acquire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.runtime import LoopActorRef

pytestmark = pytest.mark.usefixtures("no_actor_is_left")

BASE_EXCEPTIONS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException]


class Witness(LoopActor):
    """Calls what it is sent, and notes what becomes of it; a hook raises what it is told to."""

    def __init__(self, log: queue.Queue[Any], **raising: BaseException) -> None:
        super().__init__()
        self.log = log
        self.raising = raising

    def note(self, hook: str, *details: object) -> None:
        self.log.put((hook, *details))
        if hook in self.raising:
            raise self.raising[hook]

    def on_receive(self, message: Callable[[Witness], Any]) -> Any:
        return message(self)

    def on_start(self) -> None:
        self.note("on_start")

    def on_stop(self) -> None:
        self.note("on_stop")

    def on_failure(self, *_exc_info: object) -> None:
        self.note("on_failure")

    def on_terminated(self, cause: BaseException | None) -> None:
        self.note("on_terminated", cause)


class Echo(LoopActor):
    def on_receive(self, message: Any) -> Any:
        return message


class ThreadedEcho(pykka.ThreadingActor):
    use_daemon_thread = True

    def on_receive(self, message: Any) -> Any:
        return message


def raising(error: BaseException) -> Callable[[Witness], Any]:
    def handler(_actor: Witness) -> Any:
        raise error

    return handler


@pytest.fixture
def log() -> queue.Queue[Any]:
    return queue.Queue()


@pytest.fixture
def lease() -> Iterator[LoopThread]:
    thread = acquire()
    yield thread
    thread.release()


def the_loop_is_idle(lease: LoopThread) -> None:
    """Wait until everything scheduled so far has run."""
    done = threading.Event()
    lease.call_soon(done.set)
    assert done.wait(10)


def noted(log: queue.Queue[Any], lease: LoopThread) -> list[Any]:
    the_loop_is_idle(lease)
    return [log.get_nowait() for _ in range(log.qsize())]


def test_a_stop_has_run_every_hook_when_it_returns(log: queue.Queue[Any]) -> None:
    ref = Witness.start(log)

    assert ref.stop() is True

    assert list(log.queue) == [("on_start",), ("on_stop",), ("on_terminated", None)]
    assert not ref.is_alive()
    assert ref.stop() is False


def test_a_stop_is_answered_after_on_terminated() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Lingering(LoopActor):
        def on_terminated(self, _cause: BaseException | None) -> None:
            entered.set()
            assert go_on.wait(10)

    stopping = Lingering.start().stop(block=False)

    assert entered.wait(10)
    assert not stopping.done()
    go_on.set()
    assert stopping.get(timeout=10) is True


def test_an_exception_under_ask_goes_to_the_caller_and_the_actor_lives_on(log: queue.Queue[Any]) -> None:
    ref = Witness.start(log)

    with pytest.raises(ValueError, match="mine"):
        ref.ask(raising(ValueError("mine")))

    assert ref.ask(lambda _: "alive") == "alive"
    ref.stop()
    assert list(log.queue) == [("on_start",), ("on_stop",), ("on_terminated", None)]


def test_an_exception_under_tell_ends_the_actor_and_is_the_cause(
    log: queue.Queue[Any], lease: LoopThread
) -> None:
    ref, error = Witness.start(log), ValueError("mine")

    ref.tell(raising(error))

    assert ref.actor_stopped.wait(10)
    assert noted(log, lease) == [("on_start",), ("on_failure",), ("on_terminated", error)]


def test_an_exception_in_on_start_is_told_to_nobody_but_on_terminated(
    log: queue.Queue[Any], lease: LoopThread
) -> None:
    error = ValueError("mine")
    ref = Witness.start(log, on_start=error)
    assert ref.actor_stopped.wait(10)

    assert noted(log, lease) == [("on_start",), ("on_terminated", error)]
    with pytest.raises(ActorDeadError):
        ref.ask(lambda _: "alive")


@pytest.mark.parametrize("hook", ["on_stop", "on_terminated"])
def test_an_exception_in_a_hook_of_the_end_changes_nothing(hook: str, log: queue.Queue[Any]) -> None:
    ref = Witness.start(log, **{hook: ValueError("mine")})

    assert ref.stop() is True

    assert list(log.queue) == [("on_start",), ("on_stop",), ("on_terminated", None)]


def test_an_exception_in_on_failure_leaves_the_first_one_as_cause(
    log: queue.Queue[Any], lease: LoopThread
) -> None:
    error = ValueError("first")
    ref = Witness.start(log, on_failure=ValueError("second"))

    ref.tell(raising(error))

    assert ref.actor_stopped.wait(10)
    assert noted(log, lease) == [("on_start",), ("on_failure",), ("on_terminated", error)]


@pytest.mark.parametrize("kind", BASE_EXCEPTIONS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_base_exception_stops_every_actor_and_the_loop_survives(
    kind: type[BaseException], asked: bool, log: queue.Queue[Any], lease: LoopThread
) -> None:
    neighbours: list[pykka.ActorRef[Any]] = [Echo.start(), ThreadedEcho.start()]
    ref, error = Witness.start(log), kind("mine")

    if asked:
        with pytest.raises(kind):
            ref.ask(raising(error), timeout=10)
    else:
        ref.tell(raising(error))

    for other in (ref, *neighbours):
        assert other.actor_stopped.wait(10)
    assert noted(log, lease) == [("on_start",), ("on_stop",), ("on_terminated", error)]
    fresh = Echo.start()
    assert fresh.ask("alive", timeout=10) == "alive"
    fresh.stop()


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure", "on_terminated"])
def test_a_base_exception_in_any_hook_ends_the_actor_once_and_the_loop_survives(
    hook: str, log: queue.Queue[Any], lease: LoopThread
) -> None:
    ref = Witness.start(log, **{hook: SystemExit("mine")})
    if hook == "on_failure":
        ref.tell(raising(ValueError("first")))
    elif hook != "on_start":
        assert ref.stop() is True

    assert ref.actor_stopped.wait(10)
    assert [hook for hook, *_ in noted(log, lease)].count("on_terminated") == 1
    fresh = Echo.start()
    assert fresh.ask("alive", timeout=10) == "alive"
    fresh.stop()


def unanswered(ref: LoopActorRef[Any]) -> tuple[LoopFuture[Any], LoopFuture[Any]]:
    """Put a question and a request to stop past the reference, which may know already."""
    question, stop = LoopFuture[Any](), LoopFuture[Any]()
    ref.actor_inbox.put(Envelope("question", reply_to=question))
    ref.actor_inbox.put(Envelope(_ActorStop(), reply_to=stop))
    ref.actor_inbox.put(Envelope("told"))
    return question, stop


def assert_answered(question: LoopFuture[Any], stop: LoopFuture[Any]) -> None:
    assert stop.get(timeout=10) is None
    with pytest.raises(ActorDeadError, match=r"urn:uuid:.* stopped before handling the message"):
        question.get(timeout=10)


def test_what_waits_behind_a_stop_is_answered(log: queue.Queue[Any]) -> None:
    ref = Witness.start(log)
    entered, go_on = threading.Event(), threading.Event()

    def wait(_actor: Witness) -> None:
        entered.set()
        assert go_on.wait(10)

    ref.tell(wait)
    assert entered.wait(10)

    first, behind = ref.stop(block=False), ref.ask("question", block=False)
    second = ref.stop(block=False)
    go_on.set()

    assert first.get(timeout=10) is True
    assert second.get(timeout=10) is True
    with pytest.raises(ActorDeadError):
        behind.get(timeout=10)


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure"])
def test_what_comes_while_the_actor_ends_is_answered(hook: str) -> None:
    put: queue.Queue[tuple[LoopFuture[Any], LoopFuture[Any]]] = queue.Queue()

    class Ending(LoopActor):
        def on_receive(self, _message: Any) -> None:
            raise ValueError

        def put_late(self, *_exc_info: object) -> None:
            put.put(unanswered(self.actor_ref))
            raise ValueError

    setattr(Ending, hook, Ending.put_late)
    ref = Ending.start()
    if hook == "on_failure":
        ref.tell("fail")
    elif hook == "on_stop":
        ref.stop(block=False)

    assert_answered(*put.get(timeout=10))


def test_what_comes_after_the_end_is_answered_at_once(log: queue.Queue[Any]) -> None:
    ref = Witness.start(log)
    ref.stop()

    question, stop = unanswered(ref)

    assert question.done()
    assert stop.done()
    assert_answered(question, stop)


def test_a_reply_that_somebody_else_resolved_ends_only_this_actor(
    log: queue.Queue[Any], lease: LoopThread
) -> None:
    resolved = LoopFuture[str]()
    resolved.set("already")
    neighbour, ref = Echo.start(), Witness.start(log)

    ref.actor_inbox.put(Envelope(lambda _: "answer", reply_to=resolved))

    assert ref.actor_stopped.wait(10)
    assert [hook for hook, *_ in noted(log, lease)] == ["on_start", "on_stop", "on_terminated"]
    assert neighbour.ask("alive") == "alive"
    neighbour.stop()


def test_every_actor_is_stopped_by_the_registry() -> None:
    for _ in range(20):
        Echo.start()

    assert ActorRegistry.stop_all() == [True] * 20


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Nothing is logged: pytest keeps the records, and with them the tracebacks."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("unlogged")
def test_an_ended_actor_is_collectable_though_its_reference_is_held(
    log: queue.Queue[Any], lease: LoopThread
) -> None:
    stopped, failed, refused = refs = [Witness.start(log) for _ in range(3)]
    actors = [weakref.ref(ref.ask(lambda actor: actor)) for ref in refs]
    with pytest.raises(ValueError, match="mine"):
        refused.ask(raising(ValueError("mine")))
    failed.tell(raising(ValueError("mine")))
    answer = stopped.stop(block=False)
    for ref in refs:
        ref.stop()
    log.queue.clear()

    gc.collect()
    assert [actor() for actor in actors] == [None, None, None]
    assert answer.get() is True
    assert lease.residents == set()


def test_an_actor_that_was_never_started_is_collectable_and_leases_nothing(log: queue.Queue[Any]) -> None:
    actor = Witness(log)
    held = actor.actor_ref
    held.tell("never handled")
    gone = weakref.ref(actor)

    del actor
    gc.collect()

    assert gone() is None
    assert held.is_alive()


def test_an_actor_whose_thread_the_system_refuses_is_dead_and_nobody_waits_for_it() -> None:
    before = threading.stack_size()
    threading.stack_size(1 << 48)  # no stack can be as large as asked
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Witness.start(queue.Queue())
    finally:
        threading.stack_size(before)

    assert ActorRegistry.get_all() == []
    ref = Witness.start(queue.Queue())
    assert ref.ask(lambda _: "the next one lives") == "the next one lives"
    assert ref.stop()


EXIT_SCRIPT = """
import threading
from orchestrator.runtime import LoopActor, acquire

class Left(LoopActor):
    def on_stop(self):
        print("on_stop", flush=True)
    def on_terminated(self, cause):
        print("on_terminated", cause, flush=True)

acquire()
ref = Left.start()
ref.ask("hello")
print("leaving", flush=True)
"""


def test_an_actor_left_alive_is_stopped_at_interpreter_exit() -> None:
    process = subprocess.run(
        [sys.executable, "-c", EXIT_SCRIPT], capture_output=True, text=True, timeout=30, check=True
    )

    assert process.stdout.splitlines() == ["leaving", "on_stop", "on_terminated None"]
    assert "Traceback" not in process.stderr
