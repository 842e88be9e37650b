"""Lean events say what the events said that came, in any order, and hold once what these repeat."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import msgspec
from event_furniture import RUN, message, message_delta, step, step_delta, text
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.events import (
    DoneEvent,
    ErrorDetail,
    ErrorEvent,
    MessageDeltaEvent,
    MessageEvent,
    UnknownEvent,
    decode_event,
)
from orchestrator.protocol.lean import Lean
from orchestrator.protocol.objects import Run

if TYPE_CHECKING:
    from orchestrator.protocol.events import StreamEvent

STATUSES = st.sampled_from(["created", "completed"])
EVENTS = st.one_of(
    st.builds(
        message, st.sampled_from("mn"), st.sampled_from(["created", "completed"]), st.none() | st.text()
    ),
    st.builds(step, st.sampled_from("st"), st.sampled_from(["created", "completed"])),
    st.builds(text, st.text(), st.sampled_from("mn")),
    st.builds(lambda id_: step_delta({"index": 0}, id_=id_), st.sampled_from("st")),
    st.just(ErrorEvent(event="error", data=ErrorDetail(message="x"))),
    st.just(UnknownEvent(event="thread.odd", data={"a": 1})),
    st.just(DoneEvent(event="done")),
)


def as_json(event: StreamEvent) -> bytes:
    return msgspec.json.encode(event)


@given(events=st.lists(EVENTS, max_size=30))
def test_what_events_say_stays_the_same(events: list[StreamEvent]) -> None:
    fleet = Lean()
    for lean in (Lean(fleet), Lean(fleet), Lean()):
        for event in events:
            named = msgspec.structs.replace(event, run_id=event.run_id or RUN)
            assert as_json(lean.event(event, RUN)) == as_json(named)


def test_an_event_of_another_run_keeps_its_run() -> None:
    other = msgspec.structs.replace(message(), run_id="run_2")
    assert Lean().event(other, RUN).run_id == "run_2"


def decoded(json: bytes) -> Run:
    return msgspec.json.decode(json, type=Run)


RUNS = [
    msgspec.json.encode(
        Run(
            id=id_,
            thread_id=f"thread_{id_}",
            status=status,
            instructions="Be brief. " * 50,
            tools=[{"type": "function", "function": {"name": "look_up"}}],
        )
    )
    for id_ in ("run_1", "run_2")
    for status in ("queued", "in_progress")
]


def test_looks_at_one_run_share_what_did_not_change() -> None:
    lean = Lean()
    first, second = (lean.whole(decoded(json)) for json in RUNS[:2])
    assert (first.status, second.status) == ("queued", "in_progress")
    assert first.id is second.id
    assert first.thread_id is second.thread_id
    assert first.tools is second.tools
    assert first.instructions is second.instructions


def test_runs_of_one_fleet_share_what_their_assistant_says_and_keep_their_ids() -> None:
    fleet = Lean()
    one, other = Lean(fleet), Lean(fleet)
    seen = [(one if number < 2 else other).whole(decoded(json)) for number, json in enumerate(RUNS)]
    assert [msgspec.json.encode(run) for run in seen] == RUNS
    assert len({id(run.instructions) for run in seen}) == 1
    assert len({id(run.tools) for run in seen}) == 1
    assert seen[2].id is seen[3].id


def test_deltas_hold_their_id_once_and_no_more_of_their_event_than_the_delta() -> None:
    lean = Lean()
    tracemalloc.start()
    try:
        first, second = (lean.event(padded_delta(), RUN) for _ in range(2))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(first, MessageDeltaEvent)
    assert isinstance(second, MessageDeltaEvent)
    assert first.data.id is second.data.id
    assert bytes(first.data.raw) == b'{"content": []}'
    assert held_bytes < 10_000


def padded_delta() -> StreamEvent:
    body = b'{"id": "msg_1", "padding": "%s", "delta": {"content": []}}' % (b"x" * 100_000)
    return decode_event("thread.message.delta", body)


def test_ids_without_end_are_not_remembered_without_end() -> None:
    lean = Lean()
    for number in range(1000):
        lean.event(message_delta(id_=f"m{number}"), RUN)
    assert len(lean._texts) <= 66


def test_what_has_no_run_gets_the_stream_s() -> None:
    event = MessageEvent(event="thread.message.created", data=message().data)
    assert Lean().event(event, RUN).run_id == RUN
