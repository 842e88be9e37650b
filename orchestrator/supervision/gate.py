"""Where a run's requests wait for their turn at a server: one gate for each server and key.

Owns who waits, in which order, and who is woken when. Whether a request has to wait is decided elsewhere: by
the `breaker`, whether the server is worth asking, and by the `limiter`, how fast. Knows nothing of runs, and
of a request only what it is for. Lives on the actors' loop, save for `Gates`, the table of the gates.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from weakref import WeakValueDictionary

from orchestrator.errors import APIConnectionError, InternalServerError, OutOfFiles
from orchestrator.runs.effects import (
    CancelRun,
    CreateRun,
    CreateThread,
    FetchTranscript,
    ListRuns,
    RequestEffect,
    RetrieveRun,
    SubmitToolOutputs,
)
from orchestrator.runs.request import require_kind
from orchestrator.supervision.breaker import Breaker, BreakerPolicy
from orchestrator.supervision.limiter import Limiter, Urgency
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from orchestrator.client.settings import Account
    from orchestrator.errors import APIError
    from orchestrator.runtime import LoopThread

__all__ = ["Gate", "Gates", "Holder", "ServerLimits", "Ticket"]

log = get_logger(__name__)

Holder: TypeAlias = Literal["limiter", "server"]
"""What holds a request back: the limiter, or the breaker of a server that fails."""

_KEPT: Final = 64
"""How many gates that no run uses are remembered, with what was learned of their servers."""

_URGENCIES: Final[Mapping[type[RequestEffect], Urgency]] = {
    CancelRun: Urgency.CANCEL,
    SubmitToolOutputs: Urgency.FINISH,
    ListRuns: Urgency.FINISH,
    FetchTranscript: Urgency.FINISH,
    CreateThread: Urgency.CREATE,
    CreateRun: Urgency.CREATE,
    RetrieveRun: Urgency.POLL,
}


def _urgency(effect: RequestEffect) -> Urgency:
    if isinstance(effect, RetrieveRun) and effect.urgent:
        return Urgency.LOOK
    return _URGENCIES[type(effect)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How an orchestrator treats one server on one key, over all its runs.

    Attributes:
        polls_per_s: The most polls per second; what a server says of its own limits slows them further.
        breaker: When a server that fails is left alone, and for how long.

    Raises:
        ValueError: A bound makes no sense.
        TypeError: A value is of another type.
    """

    polls_per_s: float = 200.0
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)

    def __post_init__(self) -> None:
        require_kind("breaker", self.breaker, BreakerPolicy)
        if not isinstance(self.polls_per_s, int | float):
            raise TypeError(f"polls_per_s must be a number, got {self.polls_per_s!r}")
        if not 0 < self.polls_per_s < math.inf:
            raise ValueError(f"polls_per_s must be a positive number, got {self.polls_per_s}")


class Ticket:
    """One request at the gate; made by `Gate.ask`, and given back by `leave` whatever became of it."""

    __slots__ = ("_gate", "_left", "_refusal", "probe", "request", "turn", "urgency")

    def __init__(self, gate: Gate, request: str, urgency: Urgency) -> None:
        self.request = request
        self.urgency = urgency
        self.turn: asyncio.Future[None] | None = None
        self.probe: int | None = None
        self._gate = gate
        self._left = False
        self._refusal: APIConnectionError | None = None

    @property
    def held_by(self) -> Holder | None:
        """What holds the request back; `None` once it may go. From any thread."""
        waiting = self.turn is not None and not self.turn.done()
        return self._gate.holder if waiting else None

    async def passed(self) -> None:
        """Wait for the request's turn.

        Raises:
            APIConnectionError: It is not sent: the server does not answer, or it was withdrawn.
        """
        if self.turn is not None:
            await self.turn
        if self._refusal is not None:
            raise self._refusal
        self._left = True

    def withdraw(self) -> None:
        """Take the request back, unless it has left."""
        if not self._left:
            self._gate.forget(self)
            self.refuse("the request was withdrawn before it was sent")

    def refuse(self, why: str) -> None:
        """Have the request fail unsent."""
        self._refusal = APIConnectionError(why, method="?", path=self.request, sent=False)
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    def fail(self, error: APIError) -> None:
        """The request failed; an answer that was heard and refuses it is no failure of the server's."""
        self._gate.fail(self, error)

    def leave(self) -> None:
        """The request is over, or will never be made. Repeatable."""
        self._gate.forget(self)


class Gate:
    """The gate of one server and key.

    Args:
        account: The server, and the key by its digest.
        limits: How the server is treated.
        loop_thread: The actors' loop.
    """

    def __init__(self, account: Account, limits: ServerLimits, loop_thread: LoopThread) -> None:
        self._account = account
        self._loop_thread = loop_thread
        self._limiter = Limiter(limits.polls_per_s, unix_time=time.time)
        self._breaker = Breaker(limits.breaker)
        self._waiting: dict[Urgency, OrderedDict[Ticket, None]] = {
            urgency: OrderedDict() for urgency in Urgency if urgency is not Urgency.CANCEL
        }
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    def __repr__(self) -> str:
        return f"<Gate to {self._account.server}, account {self._account.digest}>"

    @property
    def holder(self) -> Holder:
        """What holds back those who wait."""
        return "server" if self._breaker.is_open else "limiter"

    def ask(self, effect: RequestEffect) -> Ticket:
        """Ask for a request's turn, behind those of its urgency who wait already."""
        return self._ticket(type(effect).__name__, _urgency(effect))

    def ask_aside(self, request: str) -> Ticket:
        """Ask for the turn of a request for which no run waits, behind everybody's.

        It does not try a server that fails, where a run's own request would then have to wait for it.
        """
        return self._ticket(request, Urgency.ASIDE)

    def _ticket(self, request: str, urgency: Urgency) -> Ticket:
        ticket = Ticket(self, request, urgency)
        if urgency is Urgency.CANCEL:
            return ticket
        queue = self._waiting[urgency]
        wait_s = math.inf if queue else self._enter(ticket, time.monotonic())
        if wait_s > 0:
            ticket.turn = self._loop_thread.loop.create_future()
            queue[ticket] = None
            self._wake_in(wait_s)
        return ticket

    def hear(self, status: int, headers: Mapping[str, str]) -> None:
        """Learn from an answer, whoever asked."""
        self._limiter.learn(status, headers, time.monotonic())
        if status < 500:
            self._succeed()
        self._let_go()

    def fail(self, ticket: Ticket, error: APIError) -> None:
        """A request failed, and why."""
        if isinstance(error, APIConnectionError | InternalServerError):
            # Without a file for a connection, nobody was asked.
            if not isinstance(error, OutOfFiles):
                self._fail(error, ticket.probe)
        else:
            self._succeed()
        self._let_go()

    def forget(self, ticket: Ticket) -> None:
        """A request is over: it neither waits any more, nor does anybody wait for its outcome."""
        if ticket.urgency is not Urgency.CANCEL:
            self._waiting[ticket.urgency].pop(ticket, None)
        if ticket.probe is not None:
            self._breaker.leave(ticket.probe)
            ticket.probe = None
        self._let_go()

    def _enter(self, ticket: Ticket, now: float) -> float:
        """Let a request go, or return the seconds after which it is worth asking again."""
        if ticket.urgency is Urgency.ASIDE and self._breaker.is_open:
            return math.inf
        wait_s = self._breaker.wait_s(now) or self._limiter.reserve(ticket.urgency, now)
        if wait_s == 0:
            ticket.probe = self._breaker.enter()
        return wait_s

    def _let_go(self) -> None:
        """Let those go whose turn has come, the most urgent first, and look again when the next one's may."""
        if not any(self._waiting.values()):
            self._rest()
            return
        now = time.monotonic()
        soonest = math.inf
        for queue in self._waiting.values():
            while queue:
                ticket = next(iter(queue))
                assert ticket.turn is not None
                # One that was cancelled is on its way out.
                wait_s = 0.0 if ticket.turn.done() else self._enter(ticket, now)
                if wait_s > 0:
                    soonest = min(soonest, wait_s)
                    break
                queue.popitem(last=False)
                if not ticket.turn.done():
                    ticket.turn.set_result(None)
        self._wake_in(soonest)

    def _wake_in(self, seconds: float) -> None:
        """Look again by then; infinite where only an outcome can change anything."""
        at = time.monotonic() + seconds
        if at >= self._wakes_at:
            return
        self._rest()
        self._wakes_at = at
        self._timer = self._loop_thread.loop.call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._rest()
        self._let_go()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._wakes_at = math.inf

    def _succeed(self) -> None:
        failures = self._breaker.failures
        if self._breaker.succeed():
            log.info("server.breaker_closed", server=self._account.server, failures=failures)

    def _fail(self, error: APIError, probe: int | None) -> None:
        breaker = self._breaker
        was_open = breaker.is_open
        was_probe = breaker.fail(type(error).__name__, time.monotonic(), probe=probe)
        if was_probe or breaker.is_open is not was_open:
            known = {"failures": breaker.failures, "error": breaker.last_error, "pause_s": breaker.pause_s}
            log.warning("server.breaker_opened", server=self._account.server, **known)
        if was_probe:
            self._refuse_all()

    def _refuse_all(self) -> None:
        breaker = self._breaker
        why = (
            f"nothing was sent: the circuit breaker of {self._account.server} is open after "
            f"{breaker.failures} failures in a row, the last of them {breaker.last_error}"
        )
        for queue in self._waiting.values():
            while queue:
                queue.popitem(last=False)[0].refuse(why)


class Gates:
    """The gates of one orchestrator, by server and key. Used under its lock.

    Those that a run uses are kept, and of the others the last ones.
    """

    def __init__(self, limits: ServerLimits, loop_thread: LoopThread) -> None:
        self._limits = limits
        self._loop_thread = loop_thread
        self._used: WeakValueDictionary[Account, Gate] = WeakValueDictionary()
        self._last: OrderedDict[Account, Gate] = OrderedDict()

    def of(self, account: Account) -> Gate:
        """Return the gate that everybody shares who asks this server with this key."""
        gate = self._used.get(account)
        if gate is None:
            gate = self._used[account] = Gate(account, self._limits, self._loop_thread)
        self._last[account] = gate
        self._last.move_to_end(account)
        if len(self._last) > _KEPT:
            self._last.popitem(last=False)
        return gate
