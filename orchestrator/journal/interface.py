"""What a journal is to those who conduct runs: where records are kept, and who may go on with a run.

Owns the words that are exchanged with a journal. A journal does not decide anything about a run: it keeps
what it is given, says when that is safe, and sees to it that one process at a time conducts a run. `Journal`
is used on the actors' loop, where nothing waits: answers are told to its `Listener`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import asyncio

    from orchestrator.errors import JournalError, OrchestratorError
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord

__all__ = [
    "Address",
    "Answer",
    "Conducted",
    "DurableJournal",
    "Ended",
    "Held",
    "Journal",
    "Listener",
    "Refused",
    "StoredRun",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a run's requests go; the key that lets them in is never part of it.

    Attributes:
        base_url: The server.
        organization: As the client was told, or `None`.
        project: Likewise.
    """

    base_url: str
    organization: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run that is not over, as a journal has it.

    Attributes:
        record: Its last record; its times are in seconds of this process's monotonic clock.
        address: Where its requests go.
    """

    record: RunRecord
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Conducted:
    """The run is this process's to conduct.

    Attributes:
        record: What to go on from: the last record that was kept.
        first: Nobody has conducted it before, so that nothing can be under way.
        cancel_requested: Somebody has asked for its end.
        behind: The key of a run of another process that has its thread; the run is opened once more when its
            turn has come. `None` when nobody is before it.
    """

    record: RunRecord
    first: bool
    cancel_requested: bool = False
    behind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Another process conducts the run; it is opened once more when it has ended, or its lease is free.

    Attributes:
        record: Its last record.
        owner: Who conducts it, for people.
    """

    record: RunRecord
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run is over.

    Attributes:
        record: Its last record.
        finish: Its outcome.
    """

    record: RunRecord
    finish: Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The run cannot be opened.

    Attributes:
        error: Why: the key has another request, is not known, or the journal cannot be used.
    """

    error: OrchestratorError


Answer: TypeAlias = Conducted | Held | Ended | Refused


class Listener(Protocol):
    """Who is told what comes of it, on the actors' loop, never from within a call of the journal's."""

    def opened(self, key: str, answer: Answer) -> None:
        """This is how the run stands; told again after `Held`, and after a `Conducted` that was behind."""

    def kept(self, key: str, ticket: int) -> None:
        """What was given to the journal of the run, up to this ticket, survives from now on."""

    def lost(self, key: str, error: JournalError) -> None:
        """This process conducts the run no longer: its lease is over, or cannot be renewed."""

    def cancel_wanted(self, key: str) -> None:
        """Somebody, in whatever process, has asked for the end of a run that is conducted here."""

    def found(self, stored: StoredRun) -> None:
        """A run that was conducted before has no owner any more; told while `sweep` is on."""


class Journal(Protocol):
    """Keeps records, and who may act on them. On the actors' loop; nothing waits."""

    @property
    def survives(self) -> bool:
        """Whether what is kept outlives this process.

        Where it does not, every call takes effect at once, `record` and `finish` return `None`, and the
        listener is never told anything.
        """

    def serve(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to tell this listener, on this loop. Once, before anything else.

        Raises:
            JournalError: The journal serves another orchestrator, or belongs to the parent of this process.
        """

    def open(self, record: RunRecord, address: Address) -> Answer | None:
        """Conduct this run, which is new unless its key is known.

        A key that is known must have the same request: it is then the same run, whoever conducts it.

        Returns:
            How the run stands, or `None` where that is told to `Listener.opened` in a while.
        """

    def claim(self, key: str) -> Answer | None:
        """Conduct a run that the journal knows, or hear who does.

        Returns:
            As `open` does.
        """

    def record(self, record: RunRecord) -> int | None:
        """Keep this in place of the run's earlier record.

        Returns:
            The ticket that `Listener.kept` will reach, or `None` where there is nothing to wait for.
        """

    def last(self, key: str) -> RunRecord:
        """The last record that was given for a run that is conducted here, kept or not.

        Raises:
            KeyError: It is not conducted here.
        """

    def finish(self, record: RunRecord, finish: Finish) -> int | None:
        """The run is over: keep its outcome and give its lease up.

        Returns:
            As `record` does.
        """

    def let_go(self, key: str) -> None:
        """Conduct or watch the run no longer; another process may take it up at once. Repeatable."""

    def request_cancel(self, key: str) -> None:
        """Ask whoever conducts the run, or will, to end it."""

    def may_act(self, key: str) -> bool:
        """Whether the lease of a run that is conducted here is good for another request or tool call."""

    def sweep(self) -> None:
        """From now on look for runs whose owners have died, and tell `Listener.found`. Repeatable."""

    def close(self, timeout_s: float) -> None:
        """Write what is left, give every lease up and stop; blocks, on any thread but the loop's. Repeatable.

        Args:
            timeout_s: The most seconds to wait for the database.
        """


class DurableJournal(Journal, Protocol):
    """A journal that survives; what follows blocks, on any thread, and needs no `serve`."""

    def add(self, record: RunRecord, address: Address) -> bool:
        """Keep a run that nobody conducts yet.

        Returns:
            Whether it is new; a key that is known with the same request changes nothing.

        Raises:
            KeyReused: The key is that of another request.
            JournalError: The database cannot be written.
        """

    def load(self, key: str) -> StoredRun | Ended:
        """Return a run as it was last kept.

        Raises:
            UnknownRun: There is none of this key.
            JournalError: The database cannot be read.
        """

    def unfinished(self) -> list[StoredRun]:
        """Return the runs, oldest first, that somebody has conducted, that are not over, and that are free.

        Raises:
            JournalError: The database cannot be read.
        """
