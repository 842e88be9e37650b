"""What has to be looked at from time to time: leases, and what other processes did.

Owns the questions, and whom they are asked for: the runs that another process conducts and that are followed
here, those that wait for another process's run on their thread, and those that have lost their owner. Runs in
the journal thread's transactions and decides nothing about a run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, or_, select, update

from orchestrator.journal.batch import Owned, Waiting, ahead
from orchestrator.journal.interface import Conducted, StoredRun
from orchestrator.journal.orders import CancelNews, Claim, FoundNews, News, OpenedNews
from orchestrator.journal.reading import load
from orchestrator.journal.schema import runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from orchestrator.journal.batch import Batch
    from orchestrator.journal.database import Database

__all__ = ["FREE", "OURS", "Housekeeping"]

FREE: Final = or_(runs.c.owner.is_(None), runs.c.lease_until <= bindparam("now"))
"""A run that nobody conducts, or whose owner was not heard of in time."""

_OPEN: Final = runs.c.ended_at.is_(None)

OURS: Final = (
    select(runs.c.key).where(runs.c.owner == bindparam("me"), _OPEN).order_by(runs.c.key).with_for_update()
)
"""What is conducted here, locked in the order in which a batch locks, so that neither waits for the other."""

_RENEW: Final = (
    update(runs)
    .where(runs.c.owner == bindparam("me"), _OPEN)
    .values(lease_until=bindparam("until"))
    .returning(runs.c.key)
)
_UNWANTED: Final = select(runs.c.key).where(runs.c.owner == bindparam("me"), _OPEN, runs.c.cancel_requested)
_ORPHANED: Final = select(runs.c.key, runs.c.epoch).where(_OPEN, runs.c.epoch >= 1, FREE)
_MOVED: Final = select(runs.c.key).where(
    runs.c.key.in_(bindparam("keys", expanding=True)), or_(runs.c.ended_at.is_not(None), FREE)
)


class Housekeeping:
    """Looks at the rows for one orchestrator. On the journal's thread.

    Args:
        me: Who we are, in the rows.

    Attributes:
        sweeps: Whether runs without an owner are looked for. Set by anybody.
    """

    def __init__(self, me: str) -> None:
        self.sweeps = False
        self._me = me
        self._followed: dict[str, int] = {}
        self._behind: dict[str, Waiting] = {}
        self._told: set[str] = set()
        self._found: dict[str, int] = {}

    def hear(self, batch: Batch) -> None:
        """A batch was committed."""
        for key, owned in batch.changed.items():
            self._followed.pop(key, None)
            if owned is None:
                self._told.discard(key)
                self._behind.pop(key, None)
        for key in batch.left:
            self._followed.pop(key, None)
        self._followed.update(batch.followed)
        self._behind.update({waiting.key: waiting for waiting in batch.behind})

    def has_reason(self, owned: Mapping[str, Owned]) -> bool:
        """Whether there is anything to look for."""
        return bool(owned or self._followed or self.sweeps)

    def renew(self, connection: Connection, database: Database, lease_s: float) -> set[str]:
        """Make all our leases longer; return the keys of those that were still ours."""
        connection.execute(OURS, {"me": self._me}).all()
        until = float(connection.execute(select(database.now)).scalar_one()) + lease_s
        return set(connection.execute(_RENEW, {"me": self._me, "until": until}).scalars())

    def look(
        self, connection: Connection, now: float, offset_s: float, owned: Mapping[str, Owned]
    ) -> tuple[list[News], list[Claim]]:
        """Return what is to be told, and which of the followed runs are to be claimed."""
        news: list[News] = []
        if owned:
            unwanted = set(connection.execute(_UNWANTED, {"me": self._me}).scalars())
            news += [CancelNews(key) for key in sorted(unwanted - self._told)]
            self._told |= unwanted
        if self._behind:
            news += self._come_forward(connection, now, owned)
        if self.sweeps:
            news += self._sweep(connection, now, offset_s, owned)
        return news, self._moved(connection, now)

    def _come_forward(self, connection: Connection, now: float, owned: Mapping[str, Owned]) -> list[News]:
        """Tell those that wait for another run from now on, or for none."""
        before = self._behind
        still = {waiting.key: waiting for waiting in ahead(connection, before.values(), self._me, now)}
        self._behind = still
        news: list[News] = []
        for key, waiting in before.items():
            behind = still[key].behind if key in still else None
            if behind != waiting.behind and key in owned:
                answer = Conducted(record=owned[key].written, first=False, behind=behind)
                news.append(OpenedNews(key, waiting.number, answer))
        return news

    def _moved(self, connection: Connection, now: float) -> list[Claim]:
        if not self._followed:
            return []
        keys = connection.execute(_MOVED, {"keys": list(self._followed), "now": now}).scalars()
        return [Claim(key, self._followed[key], time.monotonic()) for key in keys]

    def _sweep(
        self, connection: Connection, now: float, offset_s: float, owned: Mapping[str, Owned]
    ) -> list[News]:
        orphaned = {row.key: row.epoch for row in connection.execute(_ORPHANED, {"now": now})}
        new = [
            key
            for key, epoch in orphaned.items()
            if key not in owned and key not in self._followed and self._found.get(key) != epoch
        ]
        self._found = orphaned
        loaded = load(connection, new, offset_s)
        return [FoundNews(found.run) for found in loaded.values() if isinstance(found.run, StoredRun)]
