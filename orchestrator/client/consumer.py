"""Whoever is told the events of a stream: a callable or an actor, beside the code that iterates.

Owns the isolation: one that raises is logged and told no more, and the stream goes on. Of actors it knows
nothing but that they can be told; when events come is the stream's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from orchestrator.client.callables import is_async
from orchestrator.protocol.events import StreamEvent
from orchestrator.telemetry import get_logger

__all__ = ["Consumer", "StreamTo", "Tellable", "teller"]

log = get_logger(__name__)


class Tellable(Protocol):
    """A Pykka `ActorRef`, or anything that is told things as one is."""

    def tell(self, message: Any, /) -> None:
        """Take a message without waiting for what becomes of it."""


StreamTo: TypeAlias = Callable[[StreamEvent], object] | Tellable
"""Who is told every event of a stream, in order, with its name: a plain callable or an actor."""


def teller(stream_to: StreamTo) -> Callable[[StreamEvent], object]:
    """Return the function that tells a `stream_to` one event.

    Raises:
        TypeError: It is neither callable nor an actor, or what it returns would have to be awaited.
    """
    if is_async(stream_to):
        raise TypeError("stream_to must be a plain function, because nobody awaits it: iterate the stream")
    tell = stream_to if callable(stream_to) else getattr(stream_to, "tell", None)
    if not callable(tell):
        raise TypeError(f"stream_to must be callable or have a tell(), got {type(stream_to).__name__}")
    return tell


class Consumer:
    """One stream's `stream_to`, told events until it raises.

    Args:
        tell: Tells it one event, on the thread that reads the stream.
        operation: The stream's, for the log.
    """

    __slots__ = ("_operation", "_tell")

    def __init__(self, tell: Callable[[StreamEvent], object], operation: str) -> None:
        self._tell: Callable[[StreamEvent], object] | None = tell
        self._operation = operation

    def tell(self, event: StreamEvent) -> None:
        """Tell it one event, unless it has raised before; never raises."""
        if self._tell is None:
            return
        try:
            self._tell(event)
        except Exception:
            self._tell = None
            log.exception("stream.consumer_failed", operation=self._operation, event_name=event.event)
