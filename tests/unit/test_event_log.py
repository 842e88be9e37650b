"""Events in order for any number of readers, on threads and on event loops, early and late."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.supervision.events import EventLog

PATIENCE_S = 10.0
COUNT = 2000


def filled(*events: int) -> EventLog[int]:
    log: EventLog[int] = EventLog()
    for event in events:
        log.append(event)
    log.close()
    return log


async def read(log: EventLog[int]) -> list[int]:
    return [event async for event in log]


def test_a_late_reader_sees_everything_and_ends_at_once() -> None:
    log = filled(1, 2, 3)
    assert list(log) == [1, 2, 3]
    assert asyncio.run(read(log)) == [1, 2, 3]


def test_a_log_that_was_closed_empty_yields_nothing() -> None:
    assert list(filled()) == []
    assert asyncio.run(read(filled())) == []


def test_every_iteration_begins_anew() -> None:
    log = filled(1, 2)
    assert list(log) == list(log) == [1, 2]


def test_a_reader_that_stops_early_costs_the_others_nothing() -> None:
    log: EventLog[int] = EventLog()
    log.append(1)
    assert next(iter(log)) == 1
    log.append(2)
    log.close()
    assert list(log) == [1, 2]


def test_readers_on_threads_and_loops_lose_nothing_while_it_is_written() -> None:
    log: EventLog[int] = EventLog()
    ready = threading.Barrier(9)

    def on_thread() -> list[int]:
        ready.wait(PATIENCE_S)
        return list(log)

    def on_loop() -> list[int]:
        async def both() -> list[list[int]]:
            ready.wait(PATIENCE_S)
            return list(await asyncio.gather(read(log), read(log)))

        one, other = asyncio.run(both())
        assert one == other
        return one

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(job) for job in [on_thread] * 4 + [on_loop] * 4]
        ready.wait(PATIENCE_S)
        for event in range(COUNT):
            log.append(event)
        log.close()
        assert [reader.result(PATIENCE_S) for reader in readers] == [list(range(COUNT))] * 8


def test_writers_on_many_threads_lose_nothing() -> None:
    log: EventLog[int] = EventLog()

    def write(number: int) -> None:
        for _ in range(COUNT):
            log.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    log.close()
    assert sorted(log) == [*itertools.chain.from_iterable([number] * COUNT for number in range(8))]


def test_a_waiting_reader_is_woken_by_each_event_and_by_the_end() -> None:
    log: EventLog[int] = EventLog()
    heard: list[int] = []
    turn = threading.Semaphore(0)

    def follow() -> None:
        for event in log:
            heard.append(event)
            turn.release()

    reader = threading.Thread(target=follow)
    reader.start()
    for event in range(5):
        log.append(event)
        assert turn.acquire(timeout=PATIENCE_S)
        assert heard == [*range(event + 1)]
    log.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()


def test_a_waker_is_called_once_and_only_for_news() -> None:
    log: EventLog[int] = EventLog()
    calls: list[str] = []
    assert log.when_changed(0, lambda: calls.append("woken"))
    log.append(1)
    log.append(2)
    assert calls == ["woken"]
    assert not log.when_changed(1, lambda: calls.append("never"))
    assert log.when_changed(2, lambda: calls.append("closed"))
    log.close()
    log.close()
    assert calls == ["woken", "closed"]
    assert not log.when_changed(2, lambda: calls.append("never"))


def test_a_reader_whose_loop_is_gone_does_not_harm_the_writer() -> None:
    log: EventLog[int] = EventLog()

    loop = asyncio.new_event_loop()
    reader = loop.create_task(read(log))
    loop.run_until_complete(asyncio.sleep(0))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(reader)
    loop.close()
    # The reader's wish to be woken is still there, and leads nowhere.
    log.append(1)
    log.close()
    assert list(log) == [1]
