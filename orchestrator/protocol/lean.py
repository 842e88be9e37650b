"""What a run's events repeat, held once.

Every event of a run repeats ids, names and kilobytes of definitions, and a run's events are kept. Owns making
an object of the same content that holds what an earlier one holds already. Nobody can tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, TypeVar, cast

from msgspec.structs import replace

from orchestrator.protocol.events import (
    MessageDeltaEvent,
    MessageEvent,
    RunStepDeltaEvent,
    RunStepEvent,
    StreamEvent,
)
from orchestrator.protocol.objects import Message, Run, RunStep

__all__ = ["Lean"]

W = TypeVar("W", Run, RunStep, Message)

_DELTAS: Final = (MessageDeltaEvent, RunStepDeltaEvent)
_WHOLE: Final = (MessageEvent, RunStepEvent)

_MOST_TEXTS: Final = 64
"""So many ids and names are remembered; with one more, they begin anew."""

_FIELDS: Final[dict[type, tuple[str, ...]]] = {
    kind: kind.__struct_fields__ for kind in (Run, RunStep, Message)
}
_VALUES: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    kind: attrgetter(*fields) for kind, fields in _FIELDS.items()
}


class Lean:
    """Remembers the last run, step and message it saw. Not thread-safe.

    Args:
        others: One for many runs, where the first object of a kind is compared with that of another run:
            those of one assistant have instructions and tools in common.
    """

    __slots__ = ("_last", "_others", "_texts")

    def __init__(self, others: Lean | None = None) -> None:
        self._others = others
        self._last: dict[type, Any] = {}
        self._texts: dict[str, str] = {}

    def whole(self, seen: W) -> W:
        """The same object, holding what the last one of its kind holds of it."""
        kind = type(seen)
        last = self._last.get(kind)
        if last is None and self._others is not None:
            self._last[kind] = self._others.whole(seen)
            return cast("W", self._last[kind])
        if last is not None:
            fields, values = _FIELDS[kind], _VALUES[kind]
            pairs = zip(fields, values(last), values(seen))  # noqa: B905 - as many as there are fields
            seen = replace(seen, **{name: old for name, old, new in pairs if old is not new and old == new})
        self._last[kind] = seen
        return seen

    def event(self, seen: StreamEvent, run_id: str | None) -> StreamEvent:
        """The same event, of the run named where it names none itself."""
        if seen.run_id and seen.run_id != run_id:
            run_id = seen.run_id
        kind = cast("Any", type(seen))
        if kind in _DELTAS:
            delta = cast("Any", seen.data)
            # A copy: what is not one keeps all of the event's bytes.
            raw = delta.raw.copy()
            data = type(delta)(id=self._text(delta.id), object=self._text(delta.object), raw=raw)
            return cast("StreamEvent", kind(event=seen.event, data=data, run_id=run_id))
        if kind in _WHOLE:
            data = self.whole(cast("Any", seen.data))
            return cast("StreamEvent", kind(event=seen.event, data=data, run_id=run_id))
        return seen if seen.run_id == run_id else replace(seen, run_id=run_id)

    def _text(self, text: str) -> str:
        if len(self._texts) > _MOST_TEXTS:
            self._texts.clear()
        return self._texts.setdefault(text, text)
