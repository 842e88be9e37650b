"""Several processes lock the rows of many runs, each its own way: none may wait for one that waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
from desk import PATIENCE_S, desk, record

if TYPE_CHECKING:
    from server.postgresql import PostgreSQL


def test_a_renewal_locks_in_the_order_of_a_batch(postgresql: PostgreSQL) -> None:
    url = postgresql.schema()
    plain = url.replace("+psycopg", "")
    with (
        desk(url, lease_s=4) as at_work,
        psycopg.connect(plain) as other,
        psycopg.connect(plain, autocommit=True) as watching,
    ):
        for key in ("b", "a"):  # not the order in which a batch locks them
            at_work.conduct(record(key))
        other.execute("SET lock_timeout = '5s'")
        other.execute("SELECT key FROM journal_runs WHERE key = 'a' FOR UPDATE")
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        pause = threading.Event()
        while not watching.execute(waiting).fetchall():
            pause.wait(0.01)
        # A renewal that had locked this one before would wait for us, and we for it.
        other.execute("SELECT key FROM journal_runs WHERE key = 'b' FOR UPDATE")
        other.commit()
        assert at_work.journal.load("a")
        assert not any(news[0] == "lost" for news in at_work.told)
        at_work.record(record("a"))
        at_work.wait("kept", "a", timeout_s=PATIENCE_S)
