"""The journal that survives: a SQLite file for the processes of one machine, PostgreSQL for those of many.

Owns the loop's side: tickets, the records that were given last, and whom news is told. The database is the
business of a thread of its own, which lives from `serve` to `close`; what blocks goes past it.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from orchestrator.errors import JournalError
from orchestrator.journal.access import Access
from orchestrator.journal.database import Database
from orchestrator.journal.interface import Conducted
from orchestrator.journal.orders import (
    Cancel,
    CancelNews,
    Claim,
    FoundNews,
    KeptNews,
    LetGo,
    LostNews,
    News,
    Open,
    OpenedNews,
    Write,
)
from orchestrator.journal.redaction import Redact, Redaction
from orchestrator.journal.writer import Writer
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio

    from orchestrator.journal.entries import JournalHistory, JournalRun
    from orchestrator.journal.interface import Address, Ended, Listener, StoredRun
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord

__all__ = ["SQLJournal"]

log = get_logger(__name__)


class SQLJournal:
    """Keeps runs in a SQL database that several processes may share.

    What orchestrators call is described at `Journal`, and belongs to their loop. Everything else blocks, may
    be called from any thread and any process, and opens a connection of its own.

    Args:
        url: `sqlite:///runs.db`, a file that is created with mode 0600, or
            `postgresql+psycopg://user@host/database`. Nothing is opened yet.
        lease_s: For how long a run stays with a process that is not heard of any more, in seconds. A process
            that is silent for longer has lost its runs, so it should outlast every pause that is survived.
        poll_s: How often it is looked at what other processes did, in seconds.
        backoff_s: The pause before the first new try of a database that failed, in seconds.
        patience_s: For how long a run that is to begin waits for a database that fails; by default `lease_s`.
        redact: Called with `"arguments"` or `"output"`, the tool's name and the text, on a thread of the
            journal's; what it returns is kept in place of the text. A batch whose texts are not kept cannot
            be gone on with by another process: the model is told that the results of its calls are unknown.

    Raises:
        ValueError: The URL is none that is known, or a time is not positive.
        JournalError: The driver is not installed.
    """

    survives: Final = True

    def __init__(
        self,
        url: str,
        *,
        lease_s: float = 30.0,
        poll_s: float = 0.5,
        backoff_s: float = 0.05,
        patience_s: float | None = None,
        redact: Redact | None = None,
    ) -> None:
        for name, value in (("lease_s", lease_s), ("poll_s", poll_s), ("backoff_s", backoff_s)):
            if not value > 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
        self._database = Database(url)
        self._access = Access(self._database)
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._backoff_s = backoff_s
        self._patience_s = lease_s if patience_s is None else patience_s
        self._redaction = Redaction(redact)
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._pid = 0
        self._listener: Listener
        self._tickets = 0
        self._numbers: dict[str, int] = {}
        self._last: dict[str, RunRecord] = {}
        self._ending: set[str] = set()

    def __eq__(self, other: object) -> bool:
        """Whether both work on the same database."""
        return isinstance(other, SQLJournal) and self._database.place == other._database.place

    def __hash__(self) -> int:
        return hash(self._database.place)

    @property
    def url(self) -> str:
        """The database, without its password."""
        return self._database.shown

    # On the actors' loop

    def serve(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """See `Journal.serve`."""
        with self._lock:
            if self._writer is not None:
                whose = "another orchestrator" if self._pid == os.getpid() else "the parent of this process"
                raise JournalError(
                    f"this journal object serves {whose}: give every orchestrator one of its own, of the "
                    f"same URL"
                )
            self._pid = os.getpid()
            self._listener = listener
            self._writer = Writer(
                self._database,
                lease_s=self._lease_s,
                poll_s=self._poll_s,
                backoff_s=self._backoff_s,
                patience_s=self._patience_s,
                redaction=self._redaction,
                tell=partial(self._hear, loop),
            )

    def open(self, record: RunRecord, address: Address) -> None:
        """See `Journal.open`."""
        self._serving.ask(Open(record.key, self._number(record.key), time.monotonic(), record, address))

    def claim(self, key: str) -> None:
        """See `Journal.claim`."""
        self._serving.ask(Claim(key, self._number(key), time.monotonic()))

    def record(self, record: RunRecord) -> int:
        """See `Journal.record`."""
        return self._write(record, None)

    def last(self, key: str) -> RunRecord:
        """See `Journal.last`."""
        return self._last[key]

    def finish(self, record: RunRecord, finish: Finish) -> int:
        """See `Journal.finish`."""
        self._ending.add(record.key)
        return self._write(record, finish)

    def let_go(self, key: str) -> None:
        """See `Journal.let_go`."""
        ends = key in self._ending
        self._ending.discard(key)
        self._last.pop(key, None)
        if self._numbers.pop(key, None) is not None and not ends:
            self._serving.ask(LetGo(key))

    def request_cancel(self, key: str) -> None:
        """See `Journal.request_cancel`."""
        self._serving.ask(Cancel(key))

    def may_act(self, key: str) -> bool:
        """See `Journal.may_act`."""
        return time.monotonic() < self._serving.acting_until.get(key, 0.0)

    def sweep(self) -> None:
        """See `Journal.sweep`."""
        self._serving.sweep()

    def _number(self, key: str) -> int:
        """What tells the answer to this question from one to an earlier question about the same run."""
        self._tickets += 1
        self._numbers[key] = self._tickets
        self._last.pop(key, None)
        self._ending.discard(key)
        return self._tickets

    def _write(self, record: RunRecord, finish: Finish | None) -> int:
        self._tickets += 1
        if record.key in self._last:
            self._last[record.key] = record
            self._serving.ask(Write(record.key, self._tickets, record, finish))
        return self._tickets

    @property
    def _serving(self) -> Writer:
        assert self._writer is not None, "serve() comes first"
        return self._writer

    def _hear(self, loop: asyncio.AbstractEventLoop, news: list[News]) -> None:
        """Pass on what the thread has to tell; on that thread."""
        try:
            loop.call_soon_threadsafe(self._tell, news)
        except RuntimeError:
            log.debug("journal.news_dropped")  # the loop has ended, and with it whoever would hear

    def _tell(self, news: list[News]) -> None:
        for one in news:
            match one:
                case KeptNews(key=key, ticket=ticket):
                    self._listener.kept(key, ticket)
                case OpenedNews():
                    self._tell_opened(one)
                case LostNews(key=key, error=error):
                    self._last.pop(key, None)
                    self._ending.discard(key)
                    self._listener.lost(key, error)
                case CancelNews(key=key):
                    self._listener.cancel_wanted(key)
                case FoundNews(stored=stored):
                    self._listener.found(stored)

    def _tell_opened(self, news: OpenedNews) -> None:
        if self._numbers.get(news.key) != news.number:
            return  # nobody waits for it any more
        if isinstance(news.answer, Conducted):
            self._last.setdefault(news.key, news.answer.record)
        self._listener.opened(news.key, news.answer)

    # From anywhere; these block

    def close(self, timeout_s: float) -> None:
        """See `Journal.close`."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None and self._pid == os.getpid() and not writer.close(timeout_s):
            log.warning("journal.stuck", journal=self.url, waited_s=timeout_s)

    def prepare(self) -> None:
        """Make the database's tables, or bring those of an older version up to date. Repeatable.

        The first use does it, too.

        Raises:
            JournalError: It cannot be reached or written, or its tables are a newer version's.
        """
        self._access.prepare()

    def add(self, record: RunRecord, address: Address) -> bool:
        """See `DurableJournal.add`."""
        return self._access.add(record, address)

    def load(self, key: str) -> StoredRun | Ended:
        """See `DurableJournal.load`."""
        return self._access.load(key)

    def unfinished(self) -> list[StoredRun]:
        """See `DurableJournal.unfinished`."""
        return self._access.unfinished()

    def outcome(self, key: str) -> Finish | None:
        """Return a run's outcome, or `None` while it is not over.

        Raises:
            UnknownRun: There is none of this key.
            JournalError: The database cannot be read.
        """
        return self._access.outcome(key)

    def cancel(self, key: str) -> None:
        """Ask whoever conducts a run to end it; one that nobody has begun ends at once. Repeatable.

        Of a run that is over, nothing changes.

        Raises:
            UnknownRun: There is none of this key.
            JournalError: The database cannot be written.
        """
        self._access.cancel(key)

    def runs(self, *, ended: bool = False, limit: int = 100) -> list[JournalRun]:
        """Return the runs, newest first.

        Args:
            ended: Whether those that are over are among them.
            limit: The most of them.

        Raises:
            JournalError: The database cannot be read.
        """
        return self._access.runs(ended=ended, limit=limit)

    def show(self, key: str) -> JournalHistory:
        """Return a run with its time line and its tool calls.

        Raises:
            UnknownRun: There is none of this key.
            JournalError: The database cannot be read.
        """
        return self._access.show(key)

    def prune(self, older_than: timedelta | float) -> int:
        """Remove the runs that ended longer ago than this; their keys may be used again.

        Args:
            older_than: How long ago, in seconds if it is a number.

        Returns:
            How many there were.

        Raises:
            JournalError: The database cannot be written.
        """
        if not isinstance(older_than, timedelta):
            older_than = timedelta(seconds=older_than)
        return self._access.prune(older_than)
