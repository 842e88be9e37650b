"""A run that writes more than its log keeps of deltas: what late and slow readers are told of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from stage import PATIENCE_S, Stage

from orchestrator.protocol.events import MessageDeltaEvent, MessageEvent
from orchestrator.runs.result import Notice

if TYPE_CHECKING:
    from orchestrator.runs.result import StreamedEvent

pytestmark = pytest.mark.usefixtures("nothing_is_left")

LENGTH = 2500
# The pause lets a consumer come to the first events before there are deltas.
RULES = [{"match": "^write", "piece_chars": 1, "steps": [{"think_s": 1.0}, {"say": "x" * LENGTH}]}]


def is_gap(event: StreamedEvent) -> bool:
    return isinstance(event, Notice) and event.event == "run.gap"


def deltas(events: list[StreamedEvent]) -> int:
    return sum(isinstance(event, MessageDeltaEvent) for event in events)


def test_slow_consumers_and_late_readers_get_merged_deltas_and_a_gap_and_everything_else(
    stage: Stage,
) -> None:
    slow: list[StreamedEvent] = []
    run_is_over = threading.Event()

    def consume(event: StreamedEvent) -> None:
        slow.append(event)
        assert run_is_over.wait(PATIENCE_S)

    with stage.orchestrator(check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="write", stream_to=consume)
        # The run waits for no consumer, and so does its result.
        assert len(run.result(PATIENCE_S).text) == LENGTH
        run_is_over.set()
    late = list(run.events())
    assert deltas(late) <= 1000
    # What it had taken before it was held up, and what was kept for it then.
    assert deltas(slow) <= 2000
    for told in (slow, late):
        assert sum(map(is_gap, told)) == 1
        assert [
            event.event for event in told if not (isinstance(event, MessageDeltaEvent) or is_gap(event))
        ] == [
            "thread.run.created",
            "thread.run.queued",
            "thread.run.in_progress",
            "thread.run.step.created",
            "thread.run.step.in_progress",
            "thread.message.created",
            "thread.message.in_progress",
            "thread.message.completed",
            "thread.run.step.completed",
            "thread.run.completed",
        ]
        gap = next(event for event in told if is_gap(event))
        assert gap.run_id == run.run_id
        assert [event.data.text for event in told if isinstance(event, MessageEvent)][-1] == "x" * LENGTH
