"""One transaction of the journal's thread: what it was asked, decided by what the rows say, and written.

Owns the fencing and the leases. Every row that a batch may change is locked and read first, and a run is
written only where the row still says that it is ours: the same owner, the same epoch. What the batch makes of
the thread's own picture is kept apart until the transaction is committed, so that a batch which fails can be
tried again as if it had never been; lines of a time line that an earlier try did commit are not added twice,
because they have the numbers that they had then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs
from sqlalchemy import bindparam, select

from orchestrator.errors import JournalError, KeyReused, UnknownRun
from orchestrator.journal.changing import Changes, Place, first_row
from orchestrator.journal.codec import asked, asked_by
from orchestrator.journal.interface import Conducted, Ended, Held, Refused
from orchestrator.journal.orders import (
    Cancel,
    Claim,
    KeptNews,
    LetGo,
    LostNews,
    News,
    Open,
    OpenedNews,
    Order,
    Write,
)
from orchestrator.journal.reading import Loaded, load
from orchestrator.journal.schema import runs
from orchestrator.journal.timeline import Happening
from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from orchestrator.journal.database import Database
    from orchestrator.journal.interface import Answer
    from orchestrator.journal.redaction import Redaction
    from orchestrator.runs.record import RunRecord

__all__ = ["Batch", "Owned", "Waiting", "ahead", "reused"]

_OPENING: Final = 0x6F6A6F70
"""What the advisory lock is told from others' by under which runs get their order on a thread."""

_LOCKED: Final = (
    select(
        runs.c.key,
        runs.c.ordinal,
        runs.c.nonce,
        runs.c.epoch,
        runs.c.seq,
        runs.c.owner,
        runs.c.lease_until,
        runs.c.cancel_requested,
        runs.c.ended_at,
    )
    .where(runs.c.key.in_(bindparam("keys", expanding=True)))
    .order_by(runs.c.key)
    .with_for_update()
)

_AHEAD: Final = select(runs.c.key, runs.c.ordinal, runs.c.server, runs.c.thread_id, runs.c.phase).where(
    runs.c.thread_id.in_(bindparam("threads", expanding=True)),
    runs.c.ended_at.is_(None),
    runs.c.owner.is_not(None),
    runs.c.owner != bindparam("me"),
    runs.c.lease_until > bindparam("now"),
)


@dataclass(slots=True)
class Owned:
    """A run that is conducted here, as the database has it.

    Attributes:
        place: Where its rows are.
        server: Where its requests go.
        written: Its record.
    """

    place: Place
    server: str
    written: RunRecord

    def copy(self) -> Owned:
        """Another one that says the same."""
        place = self.place
        return Owned(Place(place.ordinal, place.epoch, place.seq), self.server, self.written)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that is conducted here and that waits for one of another process.

    Attributes:
        key: The run's key.
        number: What it is told with.
        server: Its server.
        thread_id: The thread they both want.
        ordinal: Its row.
        behind: The key of the other.
    """

    key: str
    number: int
    server: str
    thread_id: str
    ordinal: int
    behind: str


@dataclass(slots=True, kw_only=True)
class Batch:
    """What is to be done in one transaction, and what came of it once that is committed.

    Args:
        database: The database.
        me: Who we are, in the rows.
        lease_s: For how long a run is ours.
        redaction: What may be kept of tool calls.
        owned: The runs that are conducted here; not changed.
        echoing: The servers that are known to give metadata back; not changed.

    Attributes:
        news: What is to be told, in order.
        changed: The runs that are conducted here from now on, or with `None` no longer.
        followed: The claims of runs that another process conducts.
        left: The keys that are not followed any more.
        behind: The runs that wait for one of another process.
        echoed: The servers that were seen to give metadata back.
    """

    database: Database
    me: str
    lease_s: float
    redaction: Redaction
    owned: Mapping[str, Owned]
    echoing: frozenset[str]
    news: list[News] = field(default_factory=list)
    changed: dict[str, Owned | None] = field(default_factory=dict)
    followed: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    behind: list[Waiting] = field(default_factory=list)
    echoed: set[str] = field(default_factory=set)
    _newest: dict[str, Write] = field(default_factory=dict)
    _now: float = 0.0
    _offset_s: float = 0.0
    _changes: Changes = field(init=False)

    def perform(self, connection: Connection, orders: Sequence[Order], now: float, offset_s: float) -> None:
        """Do what was asked; no two orders but writes are of one run.

        Args:
            connection: In a transaction that writes.
            orders: What was asked, in order.
            now: The database's clock.
            offset_s: That minus this process's monotonic clock.
        """
        self._now, self._offset_s = now, offset_s
        self._changes = Changes(self.database, now, offset_s, self.redaction)
        self._insert(connection, [order for order in orders if isinstance(order, Open)])
        keys = sorted({order.key for order in orders})
        rows = {row.key: row for row in connection.execute(_LOCKED, {"keys": keys})}
        loaded = load(connection, list(self._to_load(orders, rows)), offset_s)
        for order in orders:
            self._do(order, rows.get(order.key), loaded.get(order.key))
        self._keep()
        self._find_ahead(connection)
        self._changes.write(connection)

    def _insert(self, connection: Connection, opens: list[Open]) -> None:
        """Make the rows of runs whose keys are not known."""
        if not opens:
            return
        if any(order.record.thread_id for order in opens):
            self.database.lock(connection, _OPENING)
        rows = [
            first_row(order.record, order.address, self._now, self._offset_s, self.me, self._lease_until)
            for order in sorted(opens, key=lambda order: order.key)
        ]
        connection.execute(self.database.insert_new(runs, "key"), rows)

    def _to_load(self, orders: Sequence[Order], rows: Mapping[str, Any]) -> Iterable[str]:
        for order in orders:
            row = rows.get(order.key)
            if row is None:
                continue
            if isinstance(order, Claim) or (isinstance(order, Open) and not self._is_new(order, row)):
                yield order.key

    def _is_new(self, order: Open, row: Any) -> bool:
        return bool(row.nonce == order.record.nonce and row.owner == self.me and row.epoch == 1)

    @property
    def _lease_until(self) -> float:
        return self._now + self.lease_s

    def _do(self, order: Order, row: Any, loaded: Loaded | None) -> None:
        match order:
            case Open() if self._is_new(order, row):
                self._begin(order, row)
            case Open():
                assert loaded is not None
                if asked_by(loaded.asked) != asked_by(asked(order.record, order.address)):
                    self._answer(order, Refused(error=reused(order.key, loaded)))
                else:
                    self._claim(order, row, loaded)
            case Claim() if loaded is None:
                unknown = UnknownRun(
                    f"the journal {self.database.shown} has no run {order.key!r}: see its keys with "
                    f"`orchestrator runs`",
                    key=order.key,
                )
                self._answer(order, Refused(error=unknown))
            case Claim():
                self._claim(order, row, loaded)
            case Write():
                self._write(order, row)
            case LetGo():
                self._let_go(order, row)
            case Cancel():
                if row is not None and row.ended_at is None:
                    self._changes.cancel(row.ordinal)

    def _answer(self, order: Open | Claim, answer: Answer) -> None:
        self.news.append(OpenedNews(order.key, order.number, answer))

    def _begin(self, order: Open, row: Any) -> None:
        record = order.record
        if order.address.base_url in self.echoing:
            record = structs.replace(record, metadata_echoed=True)
        place = Place(row.ordinal, row.epoch, 0)
        self._changes.happen(place, Happening("begun", self.me))
        self._changes.own(place, self.me, self._lease_until)
        self.changed[order.key] = Owned(place, order.address.base_url, record)
        self._answer(order, Conducted(record=record, first=True))
        self._want_thread(order, record, order.address.base_url, row.ordinal)

    def _claim(self, order: Open | Claim, row: Any, loaded: Loaded | None) -> None:
        assert loaded is not None
        if isinstance(loaded.run, Ended):
            self._answer(order, loaded.run)
            return
        record = loaded.run.record
        held = row.owner is not None and row.owner != self.me and row.lease_until > self._now
        if held:
            self.followed[order.key] = order.number
            self._answer(order, Held(record=record, owner=row.owner))
            return
        first = row.epoch == 0
        if loaded.run.address.base_url in self.echoing:
            # Its last owner may have known less: what is not found by its nonce was never created.
            record = structs.replace(record, metadata_echoed=True)
        place = Place(row.ordinal, row.epoch + 1, row.seq)
        self._changes.happen(place, Happening("begun" if first else "taken over", self.me))
        self._changes.own(place, self.me, self._lease_until)
        self.changed[order.key] = Owned(place, loaded.run.address.base_url, record)
        wanted = bool(row.cancel_requested)
        self._answer(order, Conducted(record=record, first=first, cancel_requested=wanted))
        self._want_thread(order, record, loaded.run.address.base_url, row.ordinal)

    def _want_thread(self, order: Open | Claim, record: RunRecord, server: str, ordinal: int) -> None:
        if record.thread_id is not None and record.run_id is None and record.phase is Phase.ADMITTED:
            # Whom it waits for is found out for all of them at once.
            self.behind.append(Waiting(order.key, order.number, server, record.thread_id, ordinal, ""))

    def _write(self, order: Write, row: Any) -> None:
        owned = self._mine(order.key)
        if owned is None:
            return  # lost before, which was told
        if row is None or row.owner != self.me or row.epoch != owned.place.epoch:
            self.changed[order.key] = None
            self.news.append(LostNews(order.key, _lost(order.key, row)))
            return
        self._changes.follow(owned.place, owned.written, order.record)
        if order.record.metadata_echoed and not owned.written.metadata_echoed:
            self.echoed.add(owned.server)
            self._changes.echoing(owned.server)
        owned.written = order.record
        self._newest[order.key] = order

    def _mine(self, key: str) -> Owned | None:
        """The run as it is in this batch: a copy, so that the batch can fail."""
        if key not in self.changed:
            known = self.owned.get(key)
            self.changed[key] = None if known is None else known.copy()
        return self.changed[key]

    def _let_go(self, order: LetGo, row: Any) -> None:
        self.left.add(order.key)
        owned = self._mine(order.key)
        self.changed[order.key] = None
        if owned is None or row is None or row.owner != self.me or row.epoch != owned.place.epoch:
            return
        self._changes.happen(owned.place, Happening("let go", self.me))
        self._changes.own(owned.place, None, None)

    def _keep(self) -> None:
        for key, order in self._newest.items():
            owned = self.changed[key]
            assert owned is not None
            self._changes.keep(owned.place, order.record, order.finish)
            self.news.append(KeptNews(key, order.ticket))
            if order.finish is not None:
                self.changed[key] = None

    def _find_ahead(self, connection: Connection) -> None:
        """See which of the runs that were begun must wait for one of another process."""
        self.behind = ahead(connection, self.behind, self.me, self._now)
        blocked = {waiting.key: waiting.behind for waiting in self.behind}
        for number, news in enumerate(self.news):
            if isinstance(news, OpenedNews) and news.key in blocked and isinstance(news.answer, Conducted):
                self.news[number] = replace(news, answer=replace(news.answer, behind=blocked[news.key]))


def ahead(connection: Connection, wanting: Iterable[Waiting], me: str, now: float) -> list[Waiting]:
    """Return those that must wait for a run of another process on the same thread, and for which.

    One goes before another that was asked for earlier or that is under way already; only as long as somebody
    conducts it: what a process that died has left on the server, the server itself tells.
    """
    by_thread: dict[tuple[str, str], list[Any]] = {}
    wanting = list(wanting)
    threads = {waiting.thread_id for waiting in wanting}
    if threads:
        for row in connection.execute(_AHEAD, {"threads": list(threads), "me": me, "now": now}):
            by_thread.setdefault((row.server, row.thread_id), []).append(row)
    found = []
    for waiting in wanting:
        before = [
            row
            for row in by_thread.get((waiting.server, waiting.thread_id), ())
            if row.ordinal < waiting.ordinal or row.phase != Phase.ADMITTED
        ]
        if before:
            first = min(before, key=lambda row: (row.phase == Phase.ADMITTED, row.ordinal))
            found.append(replace(waiting, behind=first.key))
    return found


def _lost(key: str, row: Any) -> JournalError:
    if row is None:
        return JournalError(f"run {key!r} is not in the journal any more: somebody has removed it")
    if row.ended_at is not None:
        return JournalError(f"run {key!r} was ended by another process, which had taken it over")
    owner = row.owner or "another process"
    return JournalError(f"run {key!r} was taken over by {owner}: its lease had run out")


def reused(key: str, loaded: Loaded) -> KeyReused:
    """What to raise where a key is that of another request."""
    run_id = loaded.run.record.run_id or "not created yet"
    return KeyReused(
        f"key {key!r} is that of run {run_id}, which asks for something else: use another key", key=key
    )
