"""Deltas that continue the same string, joined: folding a thousand of them then copies the text once.

Owns when deltas may be joined: where `orchestrator.protocol.snapshots` makes of the joined one what it makes
of all of them. Only the plain forms are that come by the thousand: text, function arguments, code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from orchestrator.protocol.events import MessageDeltaEvent, RunStepDeltaEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from orchestrator.protocol.objects import JSON

__all__ = ["DeltaEvent", "joined"]

DeltaEvent: TypeAlias = MessageDeltaEvent | RunStepDeltaEvent
"""A fragment of a message or of a step."""

_Place: TypeAlias = tuple[str, int]
"""Where the string is that a delta continues: the type and the index of its part or call."""

_FIELDS: Final[dict[type[DeltaEvent], dict[str, str]]] = {
    MessageDeltaEvent: {"text": "value"},
    RunStepDeltaEvent: {"function": "arguments", "code_interpreter": "input"},
}
"""By the type of a part or call: the field that its deltas continue."""


def joined(deltas: Iterable[DeltaEvent]) -> Iterator[DeltaEvent]:
    """Join neighbours that continue the same string.

    Args:
        deltas: Of one message or of one step, in order.

    Yields:
        Deltas that fold into the same object; fewer, where they can be joined.
    """
    first: DeltaEvent | None = None
    place: _Place | None = None
    texts: list[str] = []
    for delta in deltas:
        here, text = _fragment(delta)
        if first is None or here is None or here != place:
            if first is not None:
                yield _with_text(first, place, texts)
            first, place, texts = delta, here, []
        texts.append(text)
    if first is not None:
        yield _with_text(first, place, texts)


def _fragment(delta: DeltaEvent) -> tuple[_Place | None, str]:
    """Which string a delta continues, and by what; no place if there is more to the delta than that."""
    item = _only_item(delta)
    if item is None or len(item) != 3:
        return None, ""
    kind, index = item.get("type"), item.get("index")
    if not isinstance(kind, str) or not isinstance(index, int):
        return None, ""
    field, body = _FIELDS[type(delta)].get(kind), item.get(kind)
    if field is None or not isinstance(body, dict):
        return None, ""
    text = body.get(field)
    # Some servers, ours too, send an empty list of annotations with every piece of text.
    bare = len(body) == 1 or (kind == "text" and len(body) == 2 and body.get("annotations") == [])
    return ((kind, index), text) if bare and isinstance(text, str) else (None, "")


def _only_item(delta: DeltaEvent) -> JSON | None:
    """The one part or call that a delta is about, if it is about one and nothing else."""
    items: object = None
    if isinstance(delta, MessageDeltaEvent):
        items = delta.data.delta.content
    else:
        details = delta.data.delta.step_details
        if details is not None and len(details) == 2 and details.get("type") == "tool_calls":
            items = details.get("tool_calls")
    if isinstance(items, list) and len(items) == 1 and isinstance(items[0], dict):
        return items[0]
    return None


def _with_text(delta: DeltaEvent, place: _Place | None, texts: list[str]) -> DeltaEvent:
    """A delta of a string, with all of these in the place of its own."""
    if place is None or len(texts) == 1:
        return delta
    kind, index = place
    body = {_FIELDS[type(delta)][kind]: "".join(texts)}
    items = [{"index": index, "type": kind, kind: body}]
    replace = msgspec.structs.replace
    if isinstance(delta, MessageDeltaEvent):
        return replace(delta, data=replace(delta.data, raw=_raw({"content": items})))
    details = {"step_details": {"type": "tool_calls", "tool_calls": items}}
    return replace(delta, data=replace(delta.data, raw=_raw(details)))


def _raw(body: JSON) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(body))
