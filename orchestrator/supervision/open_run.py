"""A run that is not over, as the supervisor has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.runs.inputs import CancelRequested, DetachRequested, Input, Word

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from orchestrator.runs.record import RunRecord
    from orchestrator.runtime import LoopActorRef
    from orchestrator.supervision.actor import RunActor
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.log import RunLog
    from orchestrator.supervision.state import RunState

__all__ = ["OpenRun"]


@dataclass(slots=True, kw_only=True, eq=False)
class OpenRun:
    """A run that is not over.

    Attributes:
        state: The run as it is seen from outside.
        serve: Makes what is under way for it, once it is ours to conduct.
        settle: Decides of the calls that were under way when another process died.
        log: Says what happens to it.
        in_flight: What is under way for it; `None` while the journal has not made it ours.
        wish: What somebody has asked of it meanwhile.
        actor: Its actor; `None` between two incarnations.
        coming: What will go on with it then: the restart after the backoff, or the end.
        deferred: It was taken over in the middle of its life, and its actor begins when it has a place.
        deaths: When its actors died, within the window.
        closing: What the journal must have kept before its outcome is told.
    """

    state: RunState
    serve: Callable[[RunRecord], InFlight]
    settle: Callable[[RunRecord], RunRecord]
    log: RunLog
    in_flight: InFlight | None = None
    wish: CancelRequested | DetachRequested | None = None
    actor: LoopActorRef[RunActor] | None = None
    coming: asyncio.TimerHandle | asyncio.Task[None] | None = None
    deferred: bool = False
    deaths: list[float] = field(default_factory=list)
    closing: int | None = None

    @property
    def key(self) -> str:
        """The run's key."""
        return self.state.key

    @property
    def serving(self) -> InFlight:
        """What is under way for a run that is conducted here."""
        assert self.in_flight is not None
        return self.in_flight

    def report(self, input_: Input) -> None:
        """Tell whoever conducts the run here, now or later."""
        if self.in_flight is None:
            if isinstance(input_, CancelRequested | DetachRequested):
                self.wish = input_
        elif isinstance(input_, Word):
            self.in_flight.say(input_)
        else:
            self.in_flight.report(input_)
