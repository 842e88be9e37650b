"""Celery workers die, and so do their brokers; every run has its verdict once, in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from stage import staged
from storms import RULES, weather
from workforce import workforce

if TYPE_CHECKING:
    from pathlib import Path

    from brokers import Broker
    from server.postgresql import PostgreSQL

LEASE_S = 2.0
LONG_RUNS = 300
CONCURRENCY = {"threads": 4, "prefork": 2}


def storm(
    request: pytest.FixtureRequest,
    directory: Path,
    *,
    broker: str,
    pool: str,
    database: str,
    runs: int,
    restart: bool,
) -> None:
    server: Broker = request.getfixturevalue(broker)
    journal = f"sqlite:///{directory / 'runs.db'}"
    if database == "postgresql":
        postgresql: PostgreSQL = request.getfixturevalue("postgresql")
        journal = postgresql.schema()
    # So short that what is at work comes back, too.
    conf = {"broker_transport_options": {"visibility_timeout": 5}} if broker == "redis" else {}
    queue = f"{pool}-{database}"
    with (
        staged(RULES) as stage,
        workforce(
            stage, server, journal, directory, lease_s=LEASE_S, task_default_queue=queue, **conf
        ) as at_work,
    ):
        workers = [at_work.hire(pool, concurrency=CONCURRENCY[pool]) for _ in range(3)]
        aftermath = weather(
            at_work, workers, runs=runs, restart=server if restart else None, patience_s=2.0 * runs
        )
    print(f"\n{broker}, {pool}, {database}, {runs} runs, restart={restart}: {aftermath}")  # noqa: T201
    assert aftermath.recovered_s <= LEASE_S + 5.0


@pytest.mark.parametrize(
    ("broker", "pool", "database"),
    [("redis", "threads", "sqlite"), ("rabbitmq", "prefork", "postgresql")],
)
def test_a_worker_is_killed_another_one_told_to_end_and_every_run_has_its_verdict(
    request: pytest.FixtureRequest, tmp_path: Path, broker: str, pool: str, database: str
) -> None:
    storm(request, tmp_path, broker=broker, pool=pool, database=database, runs=40, restart=False)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_the_same_while_the_broker_is_restarted(
    request: pytest.FixtureRequest, tmp_path: Path, broker: str, pool: str, database: str
) -> None:
    storm(request, tmp_path, broker=broker, pool=pool, database=database, runs=LONG_RUNS, restart=True)
