"""The actors' loop thread: one, while anybody needs it, and nothing ends it early."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from orchestrator.errors import OrchestratorClosed
from orchestrator.runtime import (
    LoopActor,
    LoopThread,
    acquire,
    on_loop_thread,
    refuse_blocking,
    refuse_blocking_on_running_loop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_actor_is_left")


@pytest.fixture
def lease() -> Iterator[LoopThread]:
    thread = acquire()
    yield thread
    thread.release()


def on_the_loop(thread: LoopThread, callback: Callable[[], object]) -> None:
    done = threading.Event()
    thread.call_soon(callback)
    thread.call_soon(done.set)
    assert done.wait(10)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(record.msg).split()[0] for record in caplog.records]


def test_leases_share_one_daemon_thread_that_ends_with_the_last() -> None:
    first, second = acquire(), acquire()
    assert first is second
    [thread] = [thread for thread in threading.enumerate() if thread.name == "orchestrator-actors"]
    assert thread.daemon

    first.release()
    assert first.is_alive()
    second.release()

    assert not first.is_alive()
    assert not thread.is_alive()
    assert first.loop.is_closed()


def test_a_lease_after_the_end_starts_another_thread() -> None:
    first = acquire()
    first.release()
    second = acquire()

    assert second is not first
    assert second.is_alive()
    second.release()


def test_an_actor_alone_keeps_the_thread_alive_and_ends_it() -> None:
    class Idle(LoopActor):
        pass

    ref = Idle.start()
    thread = ref.proxy().loop_thread.get()
    assert thread.is_alive()

    ref.stop()

    assert thread.join(10)


def test_the_last_lease_may_be_released_on_the_thread_itself() -> None:
    thread = acquire()

    thread.call_soon(thread.release)

    assert thread.join(10)


def test_a_lease_cannot_be_given_back_twice() -> None:
    thread = acquire()
    thread.release()

    with pytest.raises(RuntimeError, match="without a lease"):
        thread.release()


def test_many_threads_lease_and_release_and_nothing_is_left() -> None:
    errors: list[BaseException] = []

    def churn() -> None:
        try:
            for _ in range(50):
                thread = acquire()
                on_the_loop(thread, lambda: None)
                thread.release()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_a_thread_that_has_ended_says_so() -> None:
    thread = acquire()
    thread.release()

    with pytest.raises(OrchestratorClosed, match="has ended"):
        thread.call_soon(print)


def test_the_thread_knows_itself(lease: LoopThread) -> None:
    seen: list[bool] = []

    on_the_loop(lease, lambda: seen.extend([lease.is_current_thread(), on_loop_thread()]))

    assert seen == [True, True]
    assert not lease.is_current_thread()
    assert not on_loop_thread()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_callback_that_raises_is_logged_and_the_thread_goes_on(
    kind: type[BaseException], lease: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise kind

    on_the_loop(lease, broken)

    assert events(caplog) == ["actor.callback_failed"]
    assert lease.is_alive()


def test_a_slow_callback_is_named(lease: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    def sluggish() -> None: ...

    lease.slow_handler_s = -1.0
    on_the_loop(lease, sluggish)
    on_the_loop(lease, lambda: None)

    assert events(caplog)[0] == "actor.slow_handler"
    assert "sluggish" in str(caplog.records[0].msg)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_task_that_raises_is_logged_by_name_and_the_thread_goes_on(
    kind: type[BaseException], lease: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    async def broken() -> None:
        raise kind

    def start() -> None:
        task = lease.create_task(broken(), name="fetch run_1")
        task.add_done_callback(lambda _: ended.set())

    lease.call_soon(start)

    assert ended.wait(10)
    on_the_loop(lease, lambda: None)
    assert "actor.task_failed" in events(caplog)
    assert "fetch run_1" in caplog.text
    assert lease.is_alive()


def test_tasks_are_kept_until_they_end_and_cancelled_with_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread, seen = acquire(), []

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(name)
            raise

    on_the_loop(thread, lambda: [thread.create_task(wait(name), name=name) for name in "ab"])
    thread.release()

    assert sorted(seen) == ["a", "b"]
    assert thread._tasks == set()
    assert caplog.records == []


def test_the_thread_ends_although_a_task_exits_in_the_same_moment() -> None:
    thread = acquire()

    async def leave() -> None:
        raise SystemExit

    def release_and_leave() -> None:
        thread.release()
        thread.create_task(leave(), name="leave")

    thread.call_soon(release_and_leave)

    assert thread.join(10)


def test_a_task_is_made_on_the_thread_only(lease: LoopThread) -> None:
    async def never() -> None: ...

    with pytest.raises(RuntimeError, match="belongs on the actors' loop thread"):
        lease.create_task(never(), name="never")


def test_a_blocking_call_is_refused_on_the_loop_thread_and_nowhere_else(lease: LoopThread) -> None:
    caught: list[RuntimeError] = []

    def block() -> None:
        try:
            refuse_blocking("result()", "await it")
        except RuntimeError as error:
            caught.append(error)

    on_the_loop(lease, block)
    block()

    assert [str(error) for error in caught] == [
        "result() would block the actors' loop thread and every actor on it: await it"
    ]


def test_a_blocking_call_is_refused_on_the_thread_of_any_running_loop() -> None:
    async def block() -> None:
        refuse_blocking_on_running_loop("result()", "use `await handle`")

    with pytest.raises(RuntimeError, match=r"result\(\) would block the event loop .*: use `await handle`"):
        asyncio.run(block())
    refuse_blocking_on_running_loop("result()", "use `await handle`")


WITHOUT_UVLOOP = """
import sys
sys.modules["uvloop"] = None
import asyncio
from orchestrator.runtime import LoopActor

class Broken(LoopActor):
    def on_receive(self, message):
        raise message

ref = Broken.start()
thread = ref.proxy().loop_thread.get()
assert isinstance(thread.loop, asyncio.SelectorEventLoop), thread.loop

async def leave():
    raise SystemExit

thread.call_soon(lambda: thread.create_task(leave(), name="leave"))
for error in (ValueError("answered"), SystemExit("answered")):
    try:
        ref.ask(error)
    except BaseException as caught:
        print(type(caught).__name__, caught)
print(thread.join(10))
"""


def test_without_uvloop_the_standard_loop_does_the_same() -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_UVLOOP], capture_output=True, text=True, timeout=30, check=True
    )

    assert process.stdout.splitlines() == ["ValueError answered", "SystemExit answered", "True"]
