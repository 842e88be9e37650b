"""What is kept of a run's events: everything but old deltas, which are merged into what they built.

Owns which events stay, where snapshots and gaps stand, and what a reader at any position has yet to see. It
knows nothing of threads, readers and time.

The notices of how far a tool is are kept and dropped as deltas are; nothing stands for them.

A position is a number of events, counted from the run's first one; merging changes no position. Every event
that is not a delta is kept for ever. Deltas are kept until too many have gathered; then the older half of
them is dropped, so that a reader that keeps up always finds those it has not come to. In their place stand:

- For each stretch of them that nothing else interrupts, a *gap*: a `run.gap` notice where the first of them
  stood. It is for readers that had not come to the last of them.
- For each message or step, a *snapshot*: the whole object as it is so far, where the last of its deltas
  stood. It is for readers that had not come to that one, and is kept until the object's next snapshot, or
  until an event shows the object itself.

So there is at most one gap more than there are other events, and at most as many snapshots.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias, TypeGuard

import msgspec

from orchestrator.protocol.events import (
    MessageDeltaEvent,
    MessageEvent,
    RunStepDeltaEvent,
    RunStepEvent,
)
from orchestrator.protocol.fragments import DeltaEvent, joined
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.runs.result import Notice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.runs.result import StreamedEvent

__all__ = ["Entry", "History", "in_order"]

_Key: TypeAlias = tuple[str, str]
"""Which object an event is about: `message` or `step`, and the id."""

_GAP: Final = (
    "deltas were merged: what they added is in the next event that shows their message or step as a whole"
)


# As tuples: unions are made anew by each check, and there is one for each event.
_DELTAS: Final = (MessageDeltaEvent, RunStepDeltaEvent)
_WHOLE: Final = (MessageEvent, RunStepEvent)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event, and the numbers of the first and last one that it stands for: its own, unless it is a gap.

    A delta has a size: its bytes as JSON.
    """

    first: int
    last: int
    event: StreamedEvent
    size: int = 0


class History:
    """A run's events, of which old deltas are merged. Not thread-safe; entries never change.

    Args:
        max_deltas: As many deltas are kept as they are; one more, and the older half is merged.
        max_delta_bytes: Likewise by their size as JSON; the newest delta is kept, however large it is.

    Attributes:
        count: How many events were added: the position after the last one.
    """

    __slots__ = (
        "_delta_bytes",
        "_deltas",
        "_max_delta_bytes",
        "_max_deltas",
        "_objects",
        "_past",
        "_recent",
        "_snapshots",
        "count",
    )

    def __init__(self, *, max_deltas: int, max_delta_bytes: int) -> None:
        self.count = 0
        self._max_deltas = max_deltas
        self._max_delta_bytes = max_delta_bytes
        # Up to the last delta that was merged: all but deltas, and the gaps.
        self._past: list[Entry] = []
        # What the deltas in the gaps built and no later event shows.
        self._snapshots: dict[_Key, Entry] = {}
        # Everything since.
        self._recent: list[Entry] = []
        self._deltas = 0
        self._delta_bytes = 0
        # Messages and steps, as what is past shows them and the deltas that were merged.
        self._objects: Snapshots | None = None

    def add(self, event: StreamedEvent) -> None:
        """Add an event; where there are too many deltas now, merge the older half."""
        size = _size(event) if _is_passing(event) else 0
        self._recent.append(Entry(self.count, self.count, event, size))
        self.count += 1
        if not size:
            if self._snapshots and isinstance(event, _WHOLE):
                self._snapshots.pop(_key(event), None)
        else:
            self._deltas += 1
            self._delta_bytes += size
            if self._deltas > self._max_deltas or self._delta_bytes > self._max_delta_bytes:
                self._merge()

    def after(self, position: int) -> list[Entry]:
        """What a reader at this position has yet to see; `in_order` puts it in order."""
        read = position - (self.count - len(self._recent))
        if read >= 0:
            return self._recent[read:]
        past = self._past[bisect_left(self._past, position, key=attrgetter("last")) :]
        snapshots = [entry for entry in self._snapshots.values() if entry.last >= position]
        return [*past, *snapshots, *self._recent]

    def _merge(self) -> None:
        end = self._end_of_older_half()
        older, self._recent = self._recent[:end], self._recent[end:]
        objects = self._objects = self._objects or Snapshots()
        for is_delta, stretch in itertools.groupby(older, key=lambda entry: entry.size > 0):
            if is_delta:
                entries = list(stretch)
                self._place_gap(entries, goes_on=entries[0] is older[0])
            else:
                self._past.extend(stretch)
        for entry in older:
            if isinstance(entry.event, _WHOLE):
                objects.add(entry.event)
        for key, deltas in self._to_be_shown(older).items():
            for delta in joined(delta for _, delta in deltas):
                objects.add(delta)
            self._place_snapshot(objects, key, *deltas[-1])

    def _end_of_older_half(self) -> int:
        """Where the recent events part, after a delta; the newest delta is beyond. They are counted off."""
        end = 0
        for index, entry in enumerate(self._recent):
            if self._deltas <= max(1, self._max_deltas // 2) and (
                self._deltas == 1 or self._delta_bytes <= self._max_delta_bytes // 2
            ):
                break
            if entry.size:
                self._deltas -= 1
                self._delta_bytes -= entry.size
                end = index + 1
        return end

    def _place_gap(self, stretch: list[Entry], *, goes_on: bool) -> None:
        """Put a gap in the place of these deltas, or widen the last one, where they go on from its own."""
        last = stretch[-1].last
        # Every merging ends with a delta, so that what is past ends with a gap.
        if goes_on and self._past:
            self._past[-1] = msgspec.structs.replace(self._past[-1], last=last)
        else:
            notice = Notice(event="run.gap", run_id=stretch[0].event.run_id, detail=_GAP)
            self._past.append(Entry(stretch[0].first, last, notice))

    def _to_be_shown(self, older: list[Entry]) -> dict[_Key, list[tuple[int, DeltaEvent]]]:
        """Deltas and their numbers by object, without those that the object as a whole comes after."""
        deltas: dict[_Key, list[tuple[int, DeltaEvent]]] = {}
        for entry in older:
            event = entry.event
            if isinstance(event, MessageEvent | RunStepEvent):
                deltas.pop(_key(event), None)
            elif isinstance(event, MessageDeltaEvent | RunStepDeltaEvent):
                deltas.setdefault(_key(event), []).append((entry.last, event))
        for entry in self._recent:
            if isinstance(entry.event, MessageEvent | RunStepEvent):
                deltas.pop(_key(entry.event), None)
        return deltas

    def _place_snapshot(self, objects: Snapshots, key: _Key, number: int, delta: DeltaEvent) -> None:
        """Show an object where its last delta stood; one of which only deltas are known cannot be shown."""
        snapshot: MessageEvent | RunStepEvent | None = None
        if isinstance(delta, MessageDeltaEvent):
            message = objects.messages.get(delta.data.id)
            if message is not None:
                run_id = delta.run_id or message.run_id
                snapshot = MessageEvent(event="thread.message.in_progress", run_id=run_id, data=message)
        else:
            step = objects.steps.get(delta.data.id)
            if step is not None:
                run_id = delta.run_id or step.run_id or None
                snapshot = RunStepEvent(event="thread.run.step.in_progress", run_id=run_id, data=step)
        if snapshot is not None:
            self._snapshots[key] = Entry(number, number, snapshot)


def in_order(entries: Iterable[Entry]) -> list[StreamedEvent]:
    """The events of entries in the order in which they are read: a gap before what stands for its deltas."""
    return [entry.event for entry in sorted(entries, key=attrgetter("first"))]


def _key(event: MessageEvent | RunStepEvent | DeltaEvent) -> _Key:
    return "message" if isinstance(event, MessageEvent | MessageDeltaEvent) else "step", event.data.id


def _is_passing(event: StreamedEvent) -> TypeGuard[DeltaEvent | Notice]:
    """Whether an event tells what a later one tells as well, or better."""
    if isinstance(event, _DELTAS):
        return True
    return isinstance(event, Notice) and event.event == "tool.progress"


def _size(event: DeltaEvent | Notice) -> int:
    if isinstance(event, Notice):
        return max(1, len(event.detail or ""))
    return memoryview(event.data.raw).nbytes
