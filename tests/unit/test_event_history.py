"""What is kept of a run's events, and what readers at any position get of it."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from event_furniture import (
    RUN,
    arguments,
    folded,
    is_delta,
    is_gap,
    message,
    message_delta,
    notice,
    step,
    text,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.protocol.events import MessageEvent, RunStepEvent
from orchestrator.runs.result import Notice
from orchestrator.supervision.history import History, in_order

if TYPE_CHECKING:
    from orchestrator.runs.result import StreamedEvent


def history(*events: Any, max_deltas: int = 4, max_delta_bytes: int = 1 << 30) -> History:
    kept = History(max_deltas=max_deltas, max_delta_bytes=max_delta_bytes)
    for event in events:
        kept.add(event)
    return kept


def seen(kept: History, position: int = 0) -> list[StreamedEvent]:
    return in_order(kept.after(position))


def shown(kept: History, position: int = 0) -> list[str]:
    """What a reader gets, in short: snapshots and messages with their text."""
    return [_short(event) for event in seen(kept, position)]


def _short(event: StreamedEvent) -> str:
    if is_gap(event):
        return "gap"
    if isinstance(event, MessageEvent):
        return f"{event.event.removeprefix('thread.message.')} {event.data.id}={event.data.text}"
    if isinstance(event, RunStepEvent):
        return event.event.removeprefix("thread.run.")
    return f"{event.event.removeprefix('thread.')}"


def entries(kept: History) -> int:
    return len(kept._past) + len(kept._recent) + len(kept._snapshots)


def test_as_many_deltas_as_the_limit_are_kept_as_they_are() -> None:
    events = [message(), text("a"), text("b"), text("c"), text("d")]
    assert seen(history(*events)) == events


def test_one_delta_more_and_the_older_half_is_merged_into_a_gap_and_a_snapshot() -> None:
    kept = history(message(), *map(text, "abcde"))
    assert shown(kept) == ["created m=", "gap", "in_progress m=abc", *["message.delta"] * 2]
    gap, snapshot = seen(kept)[1:3]
    assert gap.run_id == snapshot.run_id == RUN
    assert snapshot.event == "thread.message.in_progress"


def test_a_step_is_shown_with_the_arguments_so_far() -> None:
    kept = history(step(), *map(arguments, ['{"a"', ": ", "1}", "", ""]))
    snapshot = seen(kept)[2]
    assert isinstance(snapshot, RunStepEvent)
    assert (snapshot.event, snapshot.run_id) == ("thread.run.step.in_progress", RUN)
    assert snapshot.data.step_details is not None
    assert snapshot.data.step_details.tool_calls == [
        {"type": "function", "function": {"arguments": '{"a": 1}'}}
    ]


def test_deltas_are_merged_by_their_size_too_and_the_newest_is_kept_however_large() -> None:
    deltas = [text(letter * 200) for letter in "abc"] + [text("d" * 2000)]
    kept = history(message(), *deltas, max_deltas=1000, max_delta_bytes=1000)
    assert shown(kept) == [
        "created m=",
        "gap",
        "in_progress m=" + "a" * 200 + "b" * 200 + "c" * 200,
        "message.delta",
    ]


def test_a_snapshot_stands_where_the_last_merged_delta_of_its_object_stood() -> None:
    deltas = [text("a", "m"), notice(1), text("b", "n"), text("c", "n"), text("d"), text("e")]
    kept = history(message("m"), message("n"), *deltas)
    assert shown(kept) == [
        "created m=",
        "created n=",
        "gap",
        "in_progress m=a",
        "tool.started",
        "gap",
        "in_progress n=bc",
        *["message.delta"] * 2,
    ]


def test_a_later_snapshot_replaces_the_earlier_one_and_the_gap_goes_on() -> None:
    kept = history(message(), *map(text, "abcdefgh"))
    assert shown(kept) == ["created m=", "gap", "in_progress m=abcdef", *["message.delta"] * 2]


def test_a_later_snapshot_leaves_a_gap_alone_where_the_earlier_one_stood() -> None:
    kept = history(message(), *map(text, "abc"), notice(1), *map(text, "de"))
    assert shown(kept)[1:4] == ["gap", "in_progress m=abc", "tool.started"]
    for letter in "fgh":
        kept.add(text(letter))
    assert shown(kept)[1:5] == ["gap", "tool.started", "gap", "in_progress m=abcdef"]


def test_no_snapshot_is_kept_of_an_object_that_is_shown_whole_later() -> None:
    whole = message(status="completed", text="abc!")
    after = history(message(), *map(text, "abcde"), whole)
    soon_after = history(message(), *map(text, "abcd"), whole, text("?", "unknown"))
    between = history(message(), *map(text, "ab"), whole, *(text("?", "unknown") for _ in range(3)))
    for kept in (after, soon_after, between):
        assert [event for event in shown(kept) if event != "message.delta"][:3] == [
            "created m=",
            "gap",
            "completed m=abc!",
        ]
        assert kept._snapshots == {}


def test_deltas_of_an_object_never_seen_leave_only_a_gap() -> None:
    assert shown(history(*(text("a") for _ in range(30))))[:2] == ["gap", "message.delta"]


def test_a_reader_that_has_read_all_merged_deltas_sees_neither_gap_nor_snapshot() -> None:
    kept = history(message(), *map(text, "abcde"))
    assert shown(kept, 4) == ["message.delta"] * 2
    assert shown(kept, 6) == []


def test_a_reader_that_has_read_some_merged_deltas_sees_the_gap_and_the_whole_snapshot() -> None:
    kept = history(message(), *map(text, "abcde"))
    assert shown(kept, 2) == shown(kept, 3) == ["gap", "in_progress m=abc", *["message.delta"] * 2]


def test_a_reader_sees_no_snapshot_of_an_object_of_which_it_missed_nothing() -> None:
    deltas = [text("a", "m"), *(text(letter, "n") for letter in "bcde")]
    kept = history(message("m"), message("n"), *deltas)
    assert shown(kept, 3)[:2] == ["gap", "in_progress n=bc"]


_event: st.SearchStrategy[Any] = st.one_of(
    st.builds(text, st.sampled_from("ab"), st.sampled_from("mno")),
    st.builds(arguments, st.sampled_from("ab"), st.sampled_from("st")),
    st.builds(text, st.sampled_from("ab"), st.just("m")),
    st.builds(
        message,
        st.sampled_from("mno"),
        st.sampled_from(["created", "in_progress", "completed"]),
        st.none() | st.just("whole"),
    ),
    st.builds(step, st.sampled_from("st"), st.sampled_from(["created", "in_progress", "completed"])),
    st.builds(
        lambda: message_delta({"index": 0, "type": "text", "text": {"annotations": [{"index": 0, "x": 1}]}})
    ),
    st.builds(notice, st.just(0)),
)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(_event, st.sets(st.integers(0, 3))), max_size=40),
    st.integers(0, 6),
    st.sampled_from([0, 150, 500, 1 << 20]),
)
def test_every_reader_gets_all_that_are_no_deltas_in_order_and_what_the_deltas_built(
    story: list[tuple[Any, set[int]]], max_deltas: int, max_delta_bytes: int
) -> None:
    kept = history(max_deltas=max_deltas, max_delta_bytes=max_delta_bytes)
    events: list[StreamedEvent] = [event for event, _ in story]
    originals = {id(event) for event in events}
    positions = [0] * 5
    got: list[list[StreamedEvent]] = [[] for _ in positions]

    def read(reader: int) -> None:
        read_before, position = positions[reader], kept.count
        news = seen(kept, read_before)
        got[reader] += news
        positions[reader] = position
        if any(is_delta(event) for event in events[read_before : position - len(kept._recent)]):
            assert any(is_gap(event) for event in news)
        else:
            assert news == events[read_before:position]

    for event, readers in story:
        kept.add(event)
        for reader in readers:
            read(reader)
    for reader in range(5):
        read(reader)

    others = [event for event in events if not is_delta(event)]
    for received in got:
        whole = [event for event in received if not is_delta(event) and id(event) in originals]
        assert [id(event) for event in whole] == [id(event) for event in others]
        assert folded(received) == folded(events)
        gap = False
        for event in received:
            gap = gap or is_gap(event)
            assert gap or id(event) in originals
    objects = len({event.data.id for event in others if isinstance(event, MessageEvent | RunStepEvent)})
    deltas = sum(is_delta(event) for event in seen(kept))
    assert deltas <= max(1, max_deltas)
    assert entries(kept) <= 2 * len(others) + 1 + objects + deltas


COUNT = 1_000_000


def test_a_run_of_one_endless_message_keeps_its_text_and_little_else() -> None:
    kept = history(message(), max_deltas=1000, max_delta_bytes=256 * 1024)
    delta = text("word ")
    most = 0
    marks = [time.thread_time()]
    for number in range(1, COUNT + 1):
        kept.add(delta)
        if number % 997 == 0:
            most = max(most, entries(kept))
        if number % (COUNT // 10) == 0:
            marks.append(time.thread_time())
    assert most <= 1000 + 3
    assert [_short(event)[:20] for event in seen(kept)[:3]] == ["created m=", "gap", "in_progress m=word w"]
    assert folded(seen(kept))[0]["m"].text == "word " * COUNT
    # If every delta copied the text, the last tenth would take nineteen times as long as the first.
    tenths = [end - begin for begin, end in itertools.pairwise(marks)]
    assert tenths[-1] < 8 * tenths[0]


LONGEST_MERGING_S = 0.010 if os.environ.get("ORCHESTRATOR_LONG") else 0.050


@pytest.mark.alone
def test_merging_holds_the_writer_up_for_milliseconds() -> None:
    durations: list[float] = []
    kept = history(message(), step(), max_deltas=1000, max_delta_bytes=256 * 1024)
    deltas: list[StreamedEvent] = [text("word "), arguments("word ")]
    for number in range(20_000):
        before = len(kept._recent)
        begin = time.thread_time()
        kept.add(deltas[number % 2])
        if len(kept._recent) < before:
            durations.append(time.thread_time() - begin)
    assert len(durations) == (20_000 - 500) // 501
    # The median, since a collection of the test's own garbage may fall into any one.
    assert sorted(durations)[len(durations) // 2] < LONGEST_MERGING_S


def progress(number: int) -> Notice:
    return Notice(event="tool.progress", run_id=RUN, call_id="call_1", detail=f"at {number}")


def test_old_words_of_progress_are_dropped_and_a_gap_says_so() -> None:
    kept = history(notice(0), *(progress(number) for number in range(100)), notice(1))
    told = [event.detail if isinstance(event, Notice) else "" for event in seen(kept) if not is_gap(event)]
    assert told[-2] == "at 99"
    assert len(told) <= 6
    assert shown(kept).count("gap") == 1
    assert entries(kept) <= 7


def test_a_reader_that_keeps_up_sees_every_word_of_progress() -> None:
    kept, position, told = history(), 0, []
    for number in range(100):
        kept.add(progress(number))
        told += [event.detail for event in seen(kept, position) if isinstance(event, Notice)]
        position = kept.count
    assert told == [f"at {number}" for number in range(100)]
