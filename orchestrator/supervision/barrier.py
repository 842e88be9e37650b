"""What keeps an effect of a run's back until the journal has kept what it is about, and the lease is good.

Owns the order: effects pass in the order they came in, each once everything that was recorded before it is
kept. It does not know what an effect is, nor what a journal does. Lives on the actors' loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Barrier"]

_LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class _Held:
    what: Any
    ticket: int
    act: Callable[[], None]


class Barrier:
    """Holds back what must not happen yet.

    Args:
        may_act: Whether the run is still ours to act on, by the clock of its lease.
        loop: Where that is looked at again.
    """

    def __init__(self, may_act: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
        self._may_act = may_act
        self._loop = loop
        self._recorded = self._kept = 0
        self._held: list[_Held] = []
        self._look: asyncio.TimerHandle | None = None

    @property
    def held(self) -> list[Any]:
        """What is held back, in its order."""
        return [held.what for held in self._held]

    def recorded(self, ticket: int | None) -> None:
        """What comes from now on waits until the journal has kept this; `None` where there is no waiting."""
        if ticket is not None:
            self._recorded = max(self._recorded, ticket)

    def kept(self, ticket: int) -> None:
        """The journal has kept everything up to this."""
        self._kept = max(self._kept, ticket)
        self._pass()

    def act(self, what: Any, act: Callable[[], None]) -> None:
        """Call `act` now, or as soon as it may be.

        Args:
            what: Stands for it meanwhile.
            act: Does it.
        """
        if not self._held and self._recorded <= self._kept and self._may_act():
            act()
            return
        self._held.append(_Held(what, self._recorded, act))
        self._pass()

    def take_back(self, unwanted: Callable[[Any], bool]) -> list[Any]:
        """Forget what is held back and not wanted any more, and say what that was."""
        taken = [held.what for held in self._held if unwanted(held.what)]
        self._held = [held for held in self._held if not unwanted(held.what)]
        return taken

    async def allowed(self) -> None:
        """Wait until the lease is good; it is, unless the journal's database does not answer."""
        while not self._may_act():  # noqa: ASYNC110 - nobody tells when a lease is good again
            await asyncio.sleep(_LOOK_AGAIN_S)

    def close(self) -> None:
        """Forget everything that is held back."""
        self._held.clear()
        if self._look is not None:
            self._look.cancel()

    def _pass(self) -> None:
        while self._held and self._held[0].ticket <= self._kept:
            if not self._may_act():
                # Nobody tells when a lease is good again.
                if self._look is not None:
                    self._look.cancel()
                self._look = self._loop.call_later(_LOOK_AGAIN_S, self._pass)
                return
            self._held.pop(0).act()
