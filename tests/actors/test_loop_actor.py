"""A LoopActor handles messages: in order, on one thread, in turns, and without waiting."""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any

import pykka
import pytest
from pykka import ActorRegistry

from orchestrator.runtime import LoopActor, LoopFuture, LoopThread, acquire, on_loop_thread
from orchestrator.runtime.mailbox import MESSAGES_PER_TURN
from orchestrator.telemetry import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_actor_is_left")

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="nobody")


class Recorder(LoopActor):
    """Notes every message under its name and answers it."""

    def __init__(self, name: str = "", seen: list[Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.seen = [] if seen is None else seen

    def on_receive(self, message: Any) -> Any:
        self.seen.append((self.name, message) if self.name else message)
        return message

    def count(self) -> int:
        return len(self.seen)


class Caller(LoopActor):
    """Calls what it is sent, on the loop thread."""

    def on_receive(self, message: Callable[[], Any]) -> Any:
        return message()


@pytest.fixture
def lease() -> Iterator[LoopThread]:
    thread = acquire()
    yield thread
    thread.release()


@pytest.fixture
def held_up(lease: LoopThread) -> Iterator[threading.Event]:
    """The loop thread waits until the event is set."""
    entered, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert go_on.wait(10)

    lease.slow_handler_s = 60
    lease.call_soon(wait)
    assert entered.wait(10)
    yield go_on
    go_on.set()


def test_an_asked_message_is_answered_and_told_ones_are_handled_before_it() -> None:
    ref = Recorder.start()
    for number in range(200):
        ref.tell(number)

    assert ref.ask("last") == "last"
    assert ref.proxy().seen.get() == [*range(200), "last"]
    ref.stop()


def test_a_proxy_reads_sets_calls_and_defers() -> None:
    ref = Recorder.start("ann")
    proxy = ref.proxy()

    proxy.name = "bob"
    proxy.on_receive.defer("hello")

    assert proxy.name.get() == "bob"
    assert proxy.count().get() == 1
    ref.stop()


def test_a_thousand_actors_share_one_thread() -> None:
    before = threading.active_count()
    refs = [Caller.start() for _ in range(1000)]

    idents = {ref.ask(threading.get_ident) for ref in refs}

    assert len(idents) == 1
    assert idents != {threading.get_ident()}
    assert threading.active_count() == before + 1
    for stopped in [ref.stop(block=False) for ref in refs]:
        assert stopped.get(timeout=10)


def test_messages_sent_in_the_constructor_wait_for_on_start() -> None:
    class Early(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.actor_ref.tell("from __init__")

        def on_start(self) -> None:
            self.seen.append("on_start")

    ref = Early.start()

    assert ref.ask("asked") == "asked"
    assert ref.proxy().seen.get() == ["on_start", "from __init__", "asked"]
    ref.stop()


def test_a_flooded_mailbox_lets_the_others_have_their_turn(held_up: threading.Event) -> None:
    seen: list[Any] = []
    flooded, other = Recorder.start("flooded", seen), Recorder.start("other", seen)
    for number in range(5 * MESSAGES_PER_TURN):
        flooded.tell(number)
    other.tell("one")
    held_up.set()

    flooded.stop()
    other.stop()
    assert seen.index(("other", "one")) == MESSAGES_PER_TURN


def test_a_mailbox_has_one_turn_scheduled_however_many_messages_come(
    held_up: threading.Event, lease: LoopThread
) -> None:
    seen: list[Any] = []
    ref = Recorder.start("actor", seen)
    for number in range(MESSAGES_PER_TURN):
        ref.tell(number)
    lease.call_soon(seen.append, "between")
    for number in range(10):
        ref.tell(number)
    held_up.set()

    ref.stop()
    assert seen.index("between") == MESSAGES_PER_TURN


def test_no_message_is_lost_or_swapped_when_many_threads_send() -> None:
    ref = Recorder.start()

    def send(sender: int) -> None:
        for number in range(2000):
            ref.tell((sender, number))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    seen = ref.proxy().seen.get()
    assert len(seen) == 8000
    for sender in range(4):
        assert [number for who, number in seen if who == sender] == list(range(2000))
    ref.stop()


def test_a_handler_sees_none_of_its_senders_context_variables() -> None:
    token = TENANT.set("acme")

    ref = Caller.start()

    assert ref.ask(TENANT.get) == "nobody"
    ref.stop()
    TENANT.reset(token)


@pytest.mark.parametrize("attribute", ["on_receive", "on_start", "on_stop", "on_failure", "on_terminated"])
def test_a_coroutine_function_as_hook_is_refused_when_the_class_is_made(attribute: str) -> None:
    async def hook(*_args: object) -> None: ...

    with pytest.raises(TypeError, match=f"Mistaken.{attribute} is a coroutine function"):
        type("Mistaken", (LoopActor,), {attribute: hook})


def test_a_handler_that_returns_a_coroutine_is_a_type_error_for_the_caller() -> None:
    class Mistaken(Recorder):
        async def fetch(self) -> None: ...

    ref = Mistaken.start()

    with pytest.raises(TypeError, match=r"fetch is a coroutine function.*create_task"):
        ref.proxy().fetch().get()
    assert ref.is_alive()
    ref.stop()


@pytest.mark.parametrize(
    "blocking",
    [
        lambda ref: ref.ask("x"),
        lambda ref: ref.ask("x", timeout=5),
        lambda ref: ref.stop(),
        lambda ref: ref.ask("x", block=False).get(),
        lambda ref: ref.stop(block=False).get(timeout=1),
        lambda ref: LoopFuture[int]().get(),
        lambda ref: LoopFuture[int]().map(str).get(),
        lambda ref: LoopFuture[int]().join(pykka.ThreadingFuture()).get(),
        lambda ref: pykka.get_all([ref.ask("x", block=False)]),
        lambda ref: setattr(ref.proxy(), "name", "x"),
        lambda _ref: ActorRegistry.stop_all(),
    ],
)
def test_what_would_block_the_loop_thread_raises_there_at_once(blocking: Callable[[Any], object]) -> None:
    caller, other = Caller.start(), Recorder.start()

    with pytest.raises(RuntimeError, match="would block the actors' loop thread"):
        caller.ask(lambda: blocking(other), timeout=5)

    for ref in (caller, other):
        ref.stop()


class Foreigner(pykka.ThreadingActor):
    """Lives on a thread of its own, and asks the actor it is sent."""

    def on_receive(self, message: pykka.ActorRef[Any]) -> Any:
        return message.ask("from elsewhere")


@pytest.mark.parametrize(
    "blocking",
    [
        lambda foreigner, other: foreigner.ask(other),
        lambda foreigner, other: foreigner.ask(other, timeout=5),
        lambda foreigner, other: foreigner.ask(other, block=False).get(),
        lambda foreigner, other: foreigner.ask(other, block=False).map(str).get(),
        lambda foreigner, other: pykka.get_all([foreigner.ask(other, block=False)]),
        lambda foreigner, _other: setattr(foreigner.proxy(), "name", "x"),
        lambda foreigner, _other: foreigner.stop(),
    ],
)
def test_waiting_for_an_actor_on_another_thread_raises_too_before_they_wait_for_each_other(
    blocking: Callable[[Any, Any], object],
) -> None:
    caller, foreigner, other = Caller.start(), Foreigner.start(), Recorder.start()

    with pytest.raises(RuntimeError, match="would block the actors' loop thread"):
        caller.ask(lambda: blocking(foreigner, other), timeout=5)

    for ref in (caller, foreigner, other):
        ref.stop()


def test_futures_of_an_actor_on_another_thread_are_pykkas_own_where_nobody_waits_on_the_loop() -> None:
    caller, foreigner, other = Caller.start(), Foreigner.start(), Recorder.start()
    answered = foreigner.ask(other, block=False)
    assert answered.get(timeout=5) == "from elsewhere"

    def look() -> Any:
        with pytest.raises(pykka.Timeout):
            pykka.ThreadingFuture[int]().get(timeout=0)
        return answered.get()

    assert caller.ask(look) == "from elsewhere"
    with pytest.raises(pykka.Timeout):
        pykka.ThreadingFuture[int]().get(timeout=0.01)
    for ref in (caller, foreigner, other):
        ref.stop()


def test_a_refused_call_has_sent_nothing() -> None:
    caller, other = Caller.start(), Recorder.start()

    with pytest.raises(RuntimeError):
        caller.ask(lambda: other.ask("x"))
    with pytest.raises(RuntimeError):
        caller.ask(other.stop)

    assert other.proxy().seen.get() == []
    for ref in (caller, other):
        ref.stop()


def test_resolved_futures_and_a_timeout_of_zero_are_fine_on_the_loop_thread() -> None:
    caller, other = Caller.start(), Recorder.start()
    answered = other.ask("answered", block=False)
    assert answered.get() == "answered"

    def look() -> tuple[Any, Any]:
        assert on_loop_thread()
        with pytest.raises(pykka.Timeout):
            LoopFuture[int]().get(timeout=0)
        with pytest.raises(pykka.Timeout):
            other.ask("unanswered", timeout=0)
        return answered.get(), answered.map(str.upper).get()

    assert caller.ask(look) == ("answered", "ANSWERED")
    for ref in (caller, other):
        ref.stop()


def test_a_slow_handler_is_named_once(lease: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    lease.slow_handler_s = -1.0
    ref = Recorder.start()
    ref.proxy().count().get()
    handled = threading.Event()
    lease.call_soon(handled.set)
    assert handled.wait(10)
    lease.slow_handler_s = 60.0
    ref.stop()

    slow = [record.msg for record in caplog.records if isinstance(record.msg, Event)]
    assert {event["event"] for event in slow} == {"actor.slow_handler"}
    assert [(event["actor"], event["handling"]) for event in slow if "actor" in event] == [
        ("Recorder", "on_start"),
        ("Recorder", "count"),
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
