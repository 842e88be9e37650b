"""The journal's thread: it alone writes for an orchestrator, in transactions that take all that waits.

Owns the thread, the order of what it was asked, the leases of the runs that are conducted here, and what
happens while the database fails: everything is kept and tried again; a run whose lease runs out meanwhile is
lost, and one that is not opened yet is refused after a while. What is done with rows is the batch's.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from orchestrator.errors import JournalError
from orchestrator.journal.batch import Batch, Owned
from orchestrator.journal.housekeeping import OURS, Housekeeping
from orchestrator.journal.interface import Refused
from orchestrator.journal.orders import Claim, LostNews, News, Open, OpenedNews, Order, Write
from orchestrator.journal.schema import runs, servers
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from orchestrator.journal.database import Database
    from orchestrator.journal.redaction import Redaction

__all__ = ["Writer"]

log = get_logger(__name__)

ACTING_SHARE: Final = 0.8
"""The part of a lease in which a run is acted on; the rest covers clocks that go at different speeds."""

_UNWRITABLE: Final = (DataError, IntegrityError)
"""What the database says of a value that it cannot take."""

_MOST_ORDERS: Final = 2_000
"""The most of a batch: a database takes only so many parameters."""


class Writer:
    """Writes for one orchestrator, from a thread of its own.

    Args:
        database: The database.
        lease_s: For how long a run is ours, in seconds.
        poll_s: How often it is looked at what other processes did, in seconds.
        backoff_s: The pause before a batch that failed is tried again; it doubles up to `poll_s`.
        patience_s: For how long a failing database keeps a run waiting that is to be opened.
        redaction: What may be kept of tool calls.
        tell: Told the news, in order, a list at a time; called on the thread.

    Attributes:
        me: Who we are, for the other processes.
        acting_until: Until when each run that is conducted here may be acted on, in seconds of the monotonic
            clock. Written by the thread, read by anybody.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float,
        poll_s: float,
        backoff_s: float,
        patience_s: float,
        redaction: Redaction,
        tell: Callable[[list[News]], None],
    ) -> None:
        self.me = f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"
        self.acting_until: dict[str, float] = {}
        self._database = database
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._backoff_s = backoff_s
        self._patience_s = patience_s
        self._redaction = redaction
        self._tell = tell
        self._condition = threading.Condition()
        self._asked: deque[Order] = deque()
        self._closing = False
        self._abandoned = threading.Event()
        self._orders: deque[Order] = deque()
        self._owned: dict[str, Owned] = {}
        self._ends_at: dict[str, float] = {}
        self._echoing: frozenset[str] = frozenset()
        self._connection: Connection | None = None
        self._failing_since: float | None = None
        self._pause_s = backoff_s
        self._worked = self._careful = False
        self._next_poll = self._next_renewal = 0.0
        self._housekeeping = Housekeeping(self.me)
        self._thread = threading.Thread(target=self._work, name="orchestrator-journal", daemon=True)
        self._thread.start()

    def ask(self, order: Order) -> None:
        """Have this done, after everything that was asked before; returns at once. From any thread."""
        with self._condition:
            self._asked.append(order)
            self._condition.notify()

    def sweep(self) -> None:
        """From now on look for runs without an owner. From any thread."""
        self._housekeeping.sweeps = True

    def close(self, timeout_s: float) -> bool:
        """Do what was asked, give every lease up, and end; say whether that was done in time."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        self._abandoned.set()
        return not self._thread.is_alive()

    # The thread

    def _work(self) -> None:
        try:
            while self._take():
                self._go_on()
        except BaseException:
            log.exception("journal.thread_died")
            raise
        finally:
            self._disconnect()

    def _take(self) -> bool:
        """Wait for something to do; say whether there may be more."""
        with self._condition:
            if not (self._asked or self._orders or self._closing):
                wake_at = min(self._next_poll, self._next_renewal)
                self._condition.wait(max(0.0, wake_at - time.monotonic()))
            self._orders.extend(self._asked)
            self._asked.clear()
            done = self._closing and not self._orders and not self._owned
            return not (done or self._abandoned.is_set())

    def _go_on(self) -> None:
        try:
            self._write()
        except JournalError as error:
            self._fail(error)
        except (SQLAlchemyError, OSError) as error:
            self._fail(self._database.error("written", error), at_fault=isinstance(error, _UNWRITABLE))
        except Exception as error:
            log.exception("journal.defect")
            self._fail(JournalError(f"the journal cannot write it: {error!r}"), at_fault=True)
        else:
            self._succeed()

    def _succeed(self) -> None:
        if self._failing_since is not None:
            log.info("journal.works_again", failed_for_s=round(time.monotonic() - self._failing_since, 3))
        self._worked = self._worked or self._connection is not None
        self._careful = False
        self._failing_since, self._pause_s = None, self._backoff_s

    def _write(self) -> None:
        while self._orders:
            self._perform(self._chunk())
        now = time.monotonic()
        if self._closing:
            self._release_all()
            return
        if now >= self._next_renewal:
            if self._owned:
                self._renew()
            self._next_renewal = now + self._lease_s / 3
        if now >= self._next_poll:
            self._look()
            self._next_poll = now + self._poll_s

    def _chunk(self) -> list[Order]:
        """The next orders that can be done at once: only writes follow another order of their run."""
        most = 1 if self._careful else _MOST_ORDERS
        chunk: list[Order] = []
        kinds: dict[str, type[Order]] = {}
        for order in self._orders:
            earlier = kinds.get(order.key)
            if len(chunk) == most or not (earlier is None or earlier is type(order) is Write):
                break
            kinds[order.key] = type(order)
            chunk.append(order)
        return chunk

    def _perform(self, orders: Sequence[Order]) -> None:
        began = time.monotonic()
        connection = self._connected()
        batch = Batch(
            database=self._database,
            me=self.me,
            lease_s=self._lease_s,
            redaction=self._redaction,
            owned=self._owned,
            echoing=self._echoing,
        )
        with self._database.write(connection):
            now, offset_s = self._times(connection)
            batch.perform(connection, orders, now, offset_s)
        for _ in orders:
            self._orders.popleft()
        self._adopt(batch, began)
        self._tell_all(batch.news)

    def _times(self, connection: Connection) -> tuple[float, float]:
        now = float(connection.execute(select(self._database.now)).scalar_one())
        return now, now - time.monotonic()

    def _adopt(self, batch: Batch, began: float) -> None:
        """What the batch has made of things is so, now that it is committed."""
        for key, owned in batch.changed.items():
            if owned is None:
                self._drop(key)
            else:
                if key not in self._owned:
                    self._hold(key, began)
                self._owned[key] = owned
        self._echoing |= batch.echoed
        self._housekeeping.hear(batch)

    def _hold(self, key: str, began: float) -> None:
        self.acting_until[key] = began + ACTING_SHARE * self._lease_s
        self._ends_at[key] = began + self._lease_s

    def _drop(self, key: str) -> None:
        self.acting_until.pop(key, None)
        self._ends_at.pop(key, None)
        self._owned.pop(key, None)

    def _tell_all(self, news: list[News]) -> None:
        if news:
            self._tell(news)

    def _renew(self) -> None:
        began = time.monotonic()
        connection = self._connected()
        with self._database.write(connection):
            kept = self._housekeeping.renew(connection, self._database, self._lease_s)
        lost: list[News] = []
        for key in tuple(self._owned):
            if key in kept:
                self._hold(key, began)
            else:
                self._drop(key)
                lost.append(LostNews(key, JournalError(f"run {key!r} was taken over: its lease had run out")))
        self._tell_all(lost)

    def _look(self) -> None:
        if not self._housekeeping.has_reason(self._owned):
            return
        connection = self._connected()
        with self._database.read(connection):
            now, offset_s = self._times(connection)
            news, claims = self._housekeeping.look(connection, now, offset_s, self._owned)
        self._orders.extend(claims)
        self._tell_all(news)

    def _release_all(self) -> None:
        """Nobody conducts these runs here any more: whoever wants may."""
        connection = self._connected()
        with self._database.write(connection):
            connection.execute(OURS, {"me": self.me}).all()
            free = {"owner": None, "lease_until": None}
            connection.execute(runs.update().where(runs.c.owner == self.me).values(free))
        for key in tuple(self._owned):
            self._drop(key)

    # Connections, and their failures

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connection = self._database.connect()
            with self._database.explained("read"), connection.begin():
                self._echoing = frozenset(connection.execute(select(servers.c.base_url)).scalars())
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError as error:
                log.debug("journal.connection_broken", reason=type(error).__name__)

    def _fail(self, error: JournalError, *, at_fault: bool = False) -> None:
        """Keep everything for another try, but what cannot wait any longer.

        Args:
            error: What is wrong.
            at_fault: It may be what was to be written, and not the database: find out which.
        """
        self._disconnect()
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log.warning("journal.failing", reason=str(error))
        news = [*self._refuse(error, now), *self._lose(error, now)]
        if at_fault and self._careful and self._orders:
            news += self._give_up(self._orders[0].key, error)
        self._careful = at_fault
        self._tell_all(news)
        if self._closing:
            self._abandoned.wait(self._pause_s)
        else:
            with self._condition:
                self._condition.wait_for(lambda: self._closing, self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._poll_s)

    def _give_up(self, key: str, error: JournalError) -> list[News]:
        """One run cannot be written: it is not kept from ending, nor are the others kept from going on."""
        opening = [order for order in self._orders if order.key == key and isinstance(order, Open | Claim)]
        self._orders = deque(order for order in self._orders if order.key != key)
        owned = key in self._owned
        self._drop(key)
        news: list[News] = [OpenedNews(key, order.number, Refused(error=error)) for order in opening]
        return [*news, LostNews(key, error)] if owned else news

    def _refuse(self, error: JournalError, now: float) -> list[News]:
        """Give up what has waited for long, or at once where the database has never worked."""
        patience_s = self._patience_s if self._worked else 0.0
        late = {
            order.key: order
            for order in self._orders
            if isinstance(order, Open | Claim) and order.at + patience_s <= now
        }
        self._orders = deque(order for order in self._orders if order.key not in late)
        return [
            OpenedNews(order.key, order.number, Refused(error=JournalError(f"run {order.key!r}: {error}")))
            for order in late.values()
        ]

    def _lose(self, error: JournalError, now: float) -> list[News]:
        """Give up the runs whose leases have run out."""
        over = {key for key, at in self._ends_at.items() if at <= now}
        for key in over:
            self._drop(key)
        self._orders = deque(
            order for order in self._orders if not (isinstance(order, Write) and order.key in over)
        )
        return [LostNews(key, JournalError(f"the lease of run {key!r} has run out: {error}")) for key in over]
