"""Events in order for any number of readers, on threads and on event loops, early and late."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from event_furniture import folded, is_delta, is_gap, message, notice, text

from orchestrator.runs.result import Notice
from orchestrator.supervision.consumers import Consumers
from orchestrator.supervision.events import EventLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.runs.result import StreamedEvent

PATIENCE_S = 10.0
COUNT = 2000


def filled(*numbers: int) -> EventLog:
    log = EventLog()
    for number in numbers:
        log.add(notice(number))
    log.close()
    return log


def numbers_of(events: Iterable[StreamedEvent]) -> list[int]:
    return [int(event.name or "") for event in events if isinstance(event, Notice)]


def read_blocking(log: EventLog) -> list[int]:
    return numbers_of(log)


async def read(log: EventLog) -> list[int]:
    return numbers_of([event async for event in log])


def test_a_late_reader_sees_everything_and_ends_at_once() -> None:
    log = filled(1, 2, 3)
    assert read_blocking(log) == [1, 2, 3]
    assert asyncio.run(read(log)) == [1, 2, 3]


def test_a_log_that_was_closed_empty_yields_nothing() -> None:
    assert read_blocking(filled()) == []
    assert asyncio.run(read(filled())) == []


def test_every_iteration_begins_anew() -> None:
    log = filled(1, 2)
    assert read_blocking(log) == read_blocking(log) == [1, 2]


def test_a_reader_that_stops_early_costs_the_others_nothing() -> None:
    log = EventLog()
    log.add(notice(1))
    assert next(iter(log)) == notice(1)
    log.add(notice(2))
    log.close()
    assert read_blocking(log) == [1, 2]


def test_readers_on_threads_and_loops_lose_nothing_while_it_is_written() -> None:
    log = EventLog()
    ready = threading.Barrier(9)

    def on_thread() -> list[int]:
        ready.wait(PATIENCE_S)
        return read_blocking(log)

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
            log.add(notice(event))
        log.close()
        assert [reader.result(PATIENCE_S) for reader in readers] == [list(range(COUNT))] * 8


def test_writers_on_many_threads_lose_nothing() -> None:
    log = EventLog()

    def write(number: int) -> None:
        for _ in range(COUNT):
            log.add(notice(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    log.close()
    assert sorted(read_blocking(log)) == [
        *itertools.chain.from_iterable([number] * COUNT for number in range(8))
    ]


def test_a_waiting_reader_is_woken_by_each_event_and_by_the_end() -> None:
    log = EventLog()
    heard: list[int] = []
    turn = threading.Semaphore(0)

    def follow() -> None:
        for event in log:
            heard.extend(numbers_of([event]))
            turn.release()

    reader = threading.Thread(target=follow)
    reader.start()
    for event in range(5):
        log.add(notice(event))
        assert turn.acquire(timeout=PATIENCE_S)
        assert heard == [*range(event + 1)]
    log.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()


def test_a_waker_is_called_once_and_only_for_news() -> None:
    log = EventLog()
    calls: list[str] = []
    assert log.when_changed(0, lambda: calls.append("woken"))
    log.add(notice(1))
    log.add(notice(2))
    assert calls == ["woken"]
    assert not log.when_changed(1, lambda: calls.append("never"))
    assert log.when_changed(2, lambda: calls.append("closed"))
    log.close()
    log.close()
    assert calls == ["woken", "closed"]
    assert not log.when_changed(2, lambda: calls.append("never"))


def test_a_reader_whose_loop_is_gone_does_not_harm_the_writer() -> None:
    log = EventLog()

    loop = asyncio.new_event_loop()
    reader = loop.create_task(read(log))
    loop.run_until_complete(asyncio.sleep(0))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(reader)
    loop.close()
    # The reader's wish to be woken is still there, and leads nowhere.
    log.add(notice(1))
    log.close()
    assert read_blocking(log) == [1]


def merging() -> EventLog:
    return EventLog(max_deltas=10)


def follow_by_blocking(log: EventLog, consume: Callable[[StreamedEvent], None]) -> None:
    for event in log:
        consume(event)


def follow_on_a_loop(log: EventLog, consume: Callable[[StreamedEvent], None]) -> None:
    async def follow() -> None:
        async for event in log:
            consume(event)

    asyncio.run(follow())


def follow_as_a_consumer(log: EventLog, consume: Callable[[StreamedEvent], None]) -> None:
    consumers = Consumers(1)
    consumers.feed(consume, log, key="run")
    consumers.close(PATIENCE_S)


FOLLOWERS = pytest.mark.parametrize("follow", [follow_by_blocking, follow_on_a_loop, follow_as_a_consumer])


@FOLLOWERS
def test_a_reader_that_is_held_up_goes_on_with_a_gap_and_what_the_deltas_built(
    follow: Callable[[EventLog, Callable[[StreamedEvent], None]], None],
) -> None:
    log = merging()
    got: list[StreamedEvent] = []
    reached, goes_on = threading.Event(), threading.Event()

    def consume(event: StreamedEvent) -> None:
        got.append(event)
        if event == text("0"):
            reached.set()
            assert goes_on.wait(PATIENCE_S)

    reader = threading.Thread(target=follow, args=(log, consume))
    reader.start()
    log.add(message())
    log.add(text("0"))
    assert reached.wait(PATIENCE_S)
    # Whoever is held up holds up nobody: what it does not take is merged.
    for number in range(COUNT):
        log.add(text(str(number % 10)))
    log.add(message(status="completed", text="done"))
    log.close()
    goes_on.set()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert got[:2] == [message(), text("0")]
    assert is_gap(got[2])
    assert len(got) <= 4 + 10
    assert got[-1] == message(status="completed", text="done")


@FOLLOWERS
def test_a_reader_that_keeps_up_sees_every_delta_and_no_gap(
    follow: Callable[[EventLog, Callable[[StreamedEvent], None]], None],
) -> None:
    log = merging()
    got: list[StreamedEvent] = []
    turn = threading.Semaphore(0)

    def consume(event: StreamedEvent) -> None:
        got.append(event)
        turn.release()

    reader = threading.Thread(target=follow, args=(log, consume))
    reader.start()
    events: list[StreamedEvent] = [message(), *(text(str(number)) for number in range(100)), notice(1)]
    for event in events:
        log.add(event)
        assert turn.acquire(timeout=PATIENCE_S)
    log.close()
    reader.join(PATIENCE_S)
    assert got == events
    assert sum(map(is_gap, log)) == 1


@FOLLOWERS
def test_readers_lose_nothing_while_deltas_are_merged_under_them(
    follow: Callable[[EventLog, Callable[[StreamedEvent], None]], None],
) -> None:
    log = merging()
    ready = threading.Barrier(4)
    events: list[StreamedEvent] = [message()]
    for number in range(COUNT):
        events.append(text(str(number % 10)))
        if number % 7 == 0:
            events.append(notice(number))

    def read_all() -> list[StreamedEvent]:
        got: list[StreamedEvent] = []
        ready.wait(PATIENCE_S)
        follow(log, got.append)
        return got

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read_all) for _ in range(3)]
        ready.wait(PATIENCE_S)
        for event in events:
            log.add(event)
        log.close()
        for reader in readers:
            got = reader.result(PATIENCE_S)
            kept = [event for event in got if isinstance(event, Notice) and not is_gap(event)]
            assert kept == [event for event in events if not is_delta(event)][1:]
            assert folded(got) == folded(events)


def test_by_default_a_thousand_deltas_and_256_kilobytes_of_them_are_kept() -> None:
    many, large = EventLog(), EventLog()
    for _ in range(2):
        large.add(text("x" * (127 * 1024)))
    for _ in range(1000):
        many.add(text("x"))
    assert not any(map(is_gap, [*many.since(0).events, *large.since(0).events]))
    many.add(text("x"))
    large.add(text("x" * 2 * 1024))
    assert is_gap(many.since(0).events[0])
    assert is_gap(large.since(0).events[0])
