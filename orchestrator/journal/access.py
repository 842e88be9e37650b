"""The journal for whoever does not conduct runs: producers, people, other programs.

Owns what blocks: each call is one transaction on a connection of its own, from any thread and any process.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, select

from orchestrator.errors import UnknownRun
from orchestrator.journal.batch import reused
from orchestrator.journal.changing import Changes, Place, first_row
from orchestrator.journal.codec import asked, asked_by, decoded_text
from orchestrator.journal.entries import JournalCall, JournalEvent, JournalHistory, JournalRun
from orchestrator.journal.housekeeping import FREE
from orchestrator.journal.interface import Ended, StoredRun
from orchestrator.journal.reading import load
from orchestrator.journal.redaction import Redaction
from orchestrator.journal.schema import events, runs, tool_calls
from orchestrator.runs.effects import Finish
from orchestrator.runs.result import RunResult

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from orchestrator.journal.database import Database
    from orchestrator.journal.interface import Address
    from orchestrator.runs.record import RunRecord

__all__ = ["Access"]

_ORPHANED: Final = select(runs.c.key).where(runs.c.ended_at.is_(None), runs.c.epoch >= 1, FREE)
_AT_ONCE: Final = 500
"""How many runs are removed in one transaction, so that nobody waits for long."""


class Access:
    """Reads and changes a journal, one transaction at a time; see `SQLJournal` for the methods."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prepare(self) -> None:
        """Make or migrate the tables."""
        self._database.connect().close()

    def add(self, record: RunRecord, address: Address) -> bool:
        """Make the row of a run that nobody conducts yet."""
        with self._database.writing() as connection:
            now, offset_s = self._times(connection)
            row = first_row(record, address, now, offset_s, None, None)
            connection.execute(self._database.insert_new(runs, "key"), row)
            known = load(connection, [record.key], offset_s)[record.key]
            if known.run.record.nonce == record.nonce:
                return True
            if asked_by(known.asked) != asked_by(asked(record, address)):
                raise reused(record.key, known)
            return False

    def load(self, key: str) -> StoredRun | Ended:
        """Return a run."""
        with self._database.reading() as connection:
            _, offset_s = self._times(connection)
            known = load(connection, [key], offset_s)
        if key not in known:
            raise self._unknown(key)
        return known[key].run

    def unfinished(self) -> list[StoredRun]:
        """Return the runs without an owner."""
        with self._database.reading() as connection:
            now, offset_s = self._times(connection)
            keys = connection.execute(_ORPHANED, {"now": now}).scalars().all()
            known = load(connection, keys, offset_s).values()
        return [one.run for one in known if isinstance(one.run, StoredRun)]

    def outcome(self, key: str) -> Finish | None:
        """Return a run's outcome."""
        known = self.load(key)
        return known.finish if isinstance(known, Ended) else None

    def cancel(self, key: str) -> None:
        """Ask for a run's end, or end one that nobody has begun."""
        with self._database.writing() as connection:
            now, offset_s = self._times(connection)
            row = connection.execute(select(runs).where(runs.c.key == key).with_for_update()).one_or_none()
            if row is None:
                raise self._unknown(key)
            if row.ended_at is not None:
                return
            changes = Changes(self._database, now, offset_s, Redaction(None))
            changes.cancel(row.ordinal)
            if row.epoch == 0:
                known = load(connection, [key], offset_s)[key].run
                result = RunResult(status="cancelled", thread_id=row.thread_id, run_id=row.run_id)
                changes.keep(Place(row.ordinal, 0, row.seq), known.record, Finish(result=result))
            changes.write(connection)

    def runs(self, *, ended: bool, limit: int) -> list[JournalRun]:
        """Return what there is, newest first."""
        query = select(runs).order_by(runs.c.ordinal.desc()).limit(limit)
        if not ended:
            query = query.where(runs.c.ended_at.is_(None))
        with self._database.reading() as connection:
            now, _ = self._times(connection)
            return [_entry(row, now) for row in connection.execute(query)]

    def show(self, key: str) -> JournalHistory:
        """Return all there is of one run."""
        with self._database.reading() as connection:
            now, _ = self._times(connection)
            row = connection.execute(select(runs).where(runs.c.key == key)).one_or_none()
            if row is None:
                raise self._unknown(key)
            told = connection.execute(
                select(events).where(events.c.run == row.ordinal).order_by(events.c.seq)
            ).all()
            calls = connection.execute(
                select(tool_calls)
                .where(tool_calls.c.run == row.ordinal)
                .order_by(tool_calls.c.round, tool_calls.c.ordinal)
            ).all()
        return JournalHistory(
            run=_entry(row, now),
            events=tuple(
                JournalEvent(seq=one.seq, at=_time(one.at), kind=one.kind, detail=one.detail, epoch=one.epoch)
                for one in told
            ),
            calls=tuple(_call(one) for one in calls),
        )

    def prune(self, older_than: timedelta) -> int:
        """Remove runs that ended long ago."""
        removed = 0
        while True:
            with self._database.writing() as connection:
                now, _ = self._times(connection)
                old = (
                    select(runs.c.ordinal)
                    .where(runs.c.ended_at < now - older_than.total_seconds())
                    .limit(_AT_ONCE)
                    .with_for_update(skip_locked=True)  # somebody is about to read that one
                )
                ordinals = connection.execute(old).scalars().all()
                if ordinals:
                    connection.execute(delete(runs).where(runs.c.ordinal.in_(ordinals)))
            removed += len(ordinals)
            if len(ordinals) < _AT_ONCE:
                return removed

    def _times(self, connection: Connection) -> tuple[float, float]:
        now = float(connection.execute(select(self._database.now)).scalar_one())
        return now, now - time.monotonic()

    def _unknown(self, key: str) -> UnknownRun:
        return UnknownRun(
            f"the journal {self._database.shown} has no run {key!r}: `orchestrator runs` lists those it has",
            key=key,
        )


def _entry(row: Any, now: float) -> JournalRun:
    state = "ended" if row.ended_at is not None else "waiting" if row.epoch == 0 else "open"
    return JournalRun(
        key=row.key,
        state=state,
        phase=row.phase,
        status=row.status,
        server=row.server,
        assistant_id=row.assistant_id,
        thread_id=row.thread_id,
        run_id=row.run_id,
        owner=row.owner,
        epoch=row.epoch,
        held=row.owner is not None and row.lease_until > now,
        cancel_requested=row.cancel_requested,
        attempts=row.attempts,
        created_at=_time(row.created_at),
        updated_at=_time(row.updated_at),
        ended_at=None if row.ended_at is None else _time(row.ended_at),
        error=row.error,
    )


def _call(row: Any) -> JournalCall:
    return JournalCall(
        round=row.round,
        call_id=row.call_id,
        name=row.name,
        state=row.state,
        attempts=row.attempts,
        error=None if row.error is None else decoded_text(row.error),
        arguments=decoded_text(row.arguments),
        output=None if row.output is None else decoded_text(row.output),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
