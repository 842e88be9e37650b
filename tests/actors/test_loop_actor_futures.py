"""A LoopFuture can be waited for by a thread, by a coroutine of any loop, or by nobody."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any

import pykka
import pytest

from orchestrator.runtime import LoopActor, LoopFuture

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.usefixtures("no_actor_is_left")


class Echo(LoopActor):
    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(10):
            return await main

    return asyncio.run(bounded())


async def awaited_while_resolving(future: pykka.Future[Any], resolve: Callable[[], object]) -> Any:
    """Await a future that only another coroutine of the same loop resolves: blocking would never end."""

    async def later() -> None:
        resolve()

    async def wait() -> Any:
        return await future

    waiting = asyncio.create_task(wait())
    await asyncio.create_task(later())
    return await waiting


def test_a_value_is_returned_to_every_getter() -> None:
    future = LoopFuture[str]()
    got: queue.Queue[str] = queue.Queue()
    threads = [threading.Thread(target=lambda: got.put(future.get(timeout=10))) for _ in range(3)]
    for thread in threads:
        thread.start()

    future.set("value")

    for thread in threads:
        thread.join()
    assert [got.get() for _ in threads] == ["value"] * 3
    assert future.get() == "value"


def test_nothing_in_time_is_a_timeout_and_leaves_nothing_behind() -> None:
    future = LoopFuture[str]()

    for timeout in (0, 0.01, -1):
        with pytest.raises(pykka.Timeout, match=f"{timeout} seconds"):
            future.get(timeout=timeout)

    assert not future._callbacks


def test_a_future_is_resolved_once() -> None:
    value, failure = LoopFuture[str](), LoopFuture[str]()
    value.set("value")
    failure.set_exception((ValueError, ValueError("mine"), None))

    for future in (value, failure, value.map(str)):
        with pytest.raises(queue.Full):
            future.set("again")
        with pytest.raises(queue.Full):
            future.set_exception()
        with pytest.raises(queue.Full):
            future.set_get_hook(lambda _timeout: "again")


def test_an_exception_is_raised_with_the_traceback_of_its_actor_however_often() -> None:
    ref = Echo.start()
    answer = ref.ask(ValueError("mine"), block=False)

    lengths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="mine") as caught:
            answer.get()
        lengths.append(len(caught.traceback))
        assert caught.traceback[-1].name == "on_receive"

    assert len(set(lengths)) == 1
    ref.stop()


def test_an_exception_class_without_instance_is_raised_too() -> None:
    future = LoopFuture[str]()
    future.set_exception((ValueError, None, None))

    with pytest.raises(ValueError, match=r"^$"):
        future.get()


def test_a_get_hook_gives_the_value_once_to_threads_and_coroutines() -> None:
    calls: list[float | None] = []
    future = LoopFuture[str]()
    future.set_get_hook(lambda timeout: calls.append(timeout) or "hooked")  # type: ignore[func-returns-value]

    async def wait() -> str:
        return await future

    assert run(wait()) == "hooked"
    assert future.get(timeout=3) == "hooked"
    assert calls == [None]


def test_awaiting_an_answer_suspends_the_coroutine_and_not_its_loop() -> None:
    future = LoopFuture[str]()

    assert run(awaited_while_resolving(future, lambda: future.set("value"))) == "value"


def test_coroutines_of_several_loops_await_one_answer() -> None:
    future = LoopFuture[str]()
    got: queue.Queue[str] = queue.Queue()
    waiting = threading.Barrier(3)

    async def wait() -> None:
        waiting.wait(10)
        got.put(await future)

    threads = [threading.Thread(target=run, args=(wait(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait(10)
    future.set("value")
    for thread in threads:
        thread.join()

    assert [got.get(timeout=10) for _ in threads] == ["value"] * 2


def test_an_awaited_exception_is_raised_in_the_coroutine() -> None:
    ref = Echo.start()

    async def wait() -> None:
        await ref.ask(ValueError("mine"), block=False)

    with pytest.raises(ValueError, match="mine"):
        run(wait())
    ref.stop()


def test_a_cancelled_coroutine_stops_waiting_and_the_answer_may_still_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future = LoopFuture[str]()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await future

    run(give_up())
    assert not future._callbacks
    future.set("value")
    assert future.get() == "value"
    assert caplog.records == []


def test_callbacks_are_called_once_in_order_and_one_that_raises_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future, called = LoopFuture[str](), []

    def broken(_future: LoopFuture[str]) -> None:
        raise ValueError("mine")

    future.add_done_callback(lambda done: called.append(("first", done)))
    future.add_done_callback(broken)
    future.add_done_callback(lambda done: called.append(("last", done)))
    future.set("value")
    future.add_done_callback(lambda done: called.append(("late", done)))

    assert called == [("first", future), ("last", future), ("late", future)]
    assert [str(record.msg).split()[0] for record in caplog.records] == ["future.callback_failed"]


@pytest.mark.parametrize(
    ("derive", "value", "expected"),
    [
        (lambda future: future.map(lambda value: value * 2), 21, 42),
        (lambda future: future.map(str).map(len), 1234, 4),
        (lambda future: future.filter(lambda item: item > 1), [1, 2, 3], [2, 3]),
        (lambda future: future.reduce(lambda so_far, item: so_far + item), [1, 2, 3], 6),
        (lambda future: future.reduce(lambda so_far, item: so_far + item, 10), [], 10),
        (lambda future: future.join(future.map(str)), 1, [1, "1"]),
    ],
)
def test_a_derived_future_is_awaited_without_blocking(
    derive: Callable[[Any], LoopFuture[Any]], value: Any, expected: Any
) -> None:
    source = LoopFuture[Any]()
    derived = derive(source)
    assert not derived.done()
    with pytest.raises(pykka.Timeout):
        derived.get(timeout=0)

    assert run(awaited_while_resolving(derived, lambda: source.set(value))) == expected

    assert derived.done()
    assert derived.get() == expected


def test_a_derived_future_is_waited_for_by_a_thread() -> None:
    source = LoopFuture[int]()
    derived = source.map(lambda value: value + 1)
    resolving = threading.Thread(target=source.set, args=(1,))
    resolving.start()

    assert derived.get(timeout=10) == 2
    resolving.join()


def test_the_function_runs_once_in_the_thread_that_asks_first() -> None:
    source = LoopFuture[int]()
    derived = source.map(lambda _: threading.current_thread())
    resolving = threading.Thread(target=source.set, args=(1,))
    resolving.start()
    resolving.join()

    assert derived.get() is threading.current_thread()
    assert derived.get() is derived.get()


def test_what_the_function_raises_is_the_outcome() -> None:
    calls = []
    source = LoopFuture[int]()
    source.set(0)
    derived = source.map(lambda value: calls.append(value) or 1 // value)  # type: ignore[func-returns-value]

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            derived.get()
    assert calls == [0]


def test_a_derived_future_takes_callbacks_when_its_sources_do() -> None:
    first, second = LoopFuture[int](), LoopFuture[int]()
    called: list[LoopFuture[Any]] = []
    joined = first.join(second)
    joined.add_done_callback(called.append)

    second.set(2)
    assert called == []
    first.set(1)

    assert called == [joined]
    with pytest.raises(TypeError, match="ThreadingFuture takes no callbacks"):
        first.join(pykka.ThreadingFuture()).add_done_callback(called.append)


@pytest.mark.parametrize("failing", [False, True])
def test_a_future_of_another_kind_joins_in_and_its_exception_is_raised(failing: bool) -> None:
    ours, theirs = LoopFuture[int](), pykka.ThreadingFuture[int]()
    joined = ours.join(theirs)

    def resolve() -> None:
        ours.set(1)
        if failing:
            theirs.set_exception((ValueError, ValueError("theirs"), None))
        else:
            theirs.set(2)

    if failing:
        with pytest.raises(ValueError, match="theirs"):
            run(awaited_while_resolving(joined, resolve))
    else:
        assert run(awaited_while_resolving(joined, resolve)) == [1, 2]
        assert joined.get() == [1, 2]


def test_a_stop_is_awaited_without_blocking() -> None:
    ref = Echo.start()

    async def stop_twice() -> tuple[bool, bool]:
        return await ref.stop(block=False), await ref.stop(block=False)

    assert run(stop_twice()) == (True, False)


def test_a_stop_takes_a_callback() -> None:
    ref, stopped = Echo.start(), threading.Event()

    ref.stop(block=False).add_done_callback(lambda _: stopped.set())

    assert stopped.wait(10)
