"""Mailboxes: what was sent to an actor and not handled yet, and when its turn comes.

It owns the order of messages, the one scheduled turn per mailbox, the budget of a turn, and the answer to
whatever is left, or still comes, when the actor has ended. It refuses to know how a message is handled.

Actor references hold the mailbox. So the mailbox holds its actor only from start to end, when nothing else
does, and a reference to an ended actor keeps none of it alive.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from typing import TYPE_CHECKING, Any

import pykka

# The two types a mailbox cannot do without and Pykka does not export; both are as they were in Pykka 2.
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from orchestrator.errors import OrchestratorClosed
from orchestrator.runtime.future import LoopFuture

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.runtime.loop import LoopThread

__all__ = ["MESSAGES_PER_TURN", "Mailbox"]

MESSAGES_PER_TURN = 64
"""How many messages of one mailbox are handled before all others get their turn."""


class Mailbox:
    """An actor's inbox, emptied by turns on the loop thread.

    `put` and `empty` may be called from any thread and never block. What is put before `open` is kept.
    """

    __slots__ = ("_envelopes", "_handle", "_scheduled", "_thread", "_whose")

    # Without a lock: each thread first does its own part and then looks at what the other one did, so that of
    # two at least one sees it. A turn too many finds nothing to do.

    def __init__(self) -> None:
        self._envelopes: deque[Envelope[Any]] = deque()
        self._handle: Callable[[Envelope[Any] | None], None] | None = None
        self._thread: LoopThread | None = None
        self._whose: str | None = None
        # Nobody needs to schedule the first turn: opening does.
        self._scheduled = True

    @property
    def inherited(self) -> bool:
        """Whether the actor stayed behind in the parent of this forked process."""
        return self._thread is not None and self._thread.inherited

    @property
    def closed(self) -> bool:
        """Whether the actor has ended."""
        return self._whose is not None

    def open(self, thread: LoopThread, handle: Callable[[Envelope[Any] | None], None]) -> None:
        """Begin to have messages handled on `thread`.

        Args:
            thread: The loop thread, leased by the caller.
            handle: Called there, with None before the first message and then with each one. It lets nothing
                escape, and closes the mailbox when the actor ends.
        """
        self._thread = thread
        self._handle = handle
        thread.residents.add(self)
        thread.schedule(self._take_first_turn)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, or answer it if the actor has ended."""
        self._envelopes.append(envelope)
        if self._whose is not None:
            self._answer_the_rest(self._whose)
        elif not self._scheduled:
            self._scheduled = True
            self._schedule_turn()

    def get(self) -> Envelope[Any]:
        """Take the oldest message; unlike a queue's, this method never waits.

        Raises:
            IndexError: There is none.
        """
        return self._envelopes.popleft()

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._envelopes

    def close(self, whose: str) -> None:
        """Let go of the actor and answer every message that is left; from now on `put` answers.

        A request to stop is answered with None, everything else with `ActorDeadError`. It may be repeated.

        Args:
            whose: The actor, as its answers shall name it.
        """
        self._whose = whose
        self._handle = None
        if self._thread is not None:
            self._thread.residents.discard(self)
        self._answer_the_rest(whose)

    def evict(self) -> Callable[[float], object]:
        """Ask the actor to stop; return what waits for that, for at most the seconds given."""
        gone: LoopFuture[None] = LoopFuture()
        self.put(Envelope(_ActorStop(), reply_to=gone))

        def wait(timeout_s: float) -> None:
            with contextlib.suppress(pykka.Timeout):
                gone.wait(timeout_s)

        return wait

    def _schedule_turn(self) -> None:
        assert self._thread is not None
        try:
            self._thread.schedule(self._take_turn)
        except OrchestratorClosed:
            # The interpreter is exiting, and the thread left before this actor.
            self.close("an actor that outlived its loop thread")

    def _take_first_turn(self) -> None:
        assert self._handle is not None
        self._handle(None)
        self._take_turn()

    def _take_turn(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            if not self._envelopes:
                self._scheduled = False
                # Whoever put one between the look and the flag has left its turn to this one.
                if not self._envelopes:
                    return
                self._scheduled = True
            handle = self._handle
            if handle is None:
                return  # the actor has ended, and what is left was answered
            handle(self._envelopes.popleft())
        self._schedule_turn()

    def _answer_the_rest(self, whose: str) -> None:
        while True:
            try:
                envelope = self._envelopes.popleft()
            except IndexError:
                return
            _answer_as_ended(envelope, whose)


def _answer_as_ended(envelope: Envelope[Any], whose: str) -> None:
    if envelope.reply_to is None:
        return
    with contextlib.suppress(queue.Full):
        if isinstance(envelope.message, _ActorStop):
            envelope.reply_to.set(None)
        else:
            error = pykka.ActorDeadError(f"{whose} stopped before handling the message")
            envelope.reply_to.set_exception((type(error), error, None))
