"""What all tests share: the stage, PostgreSQL, and which tests run only when they are asked for, or alone."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from server import postgresql as postgresql_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.postgresql import PostgreSQL

    from orchestrator.server.database import Database

pytest_plugins = ["brokerage", "desking", "staging"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `long` tests unless ORCHESTRATOR_LONG is set, and `alone` ones under `-n`."""
    unwanted = set() if os.environ.get("ORCHESTRATOR_LONG") else {"long"}
    if "PYTEST_XDIST_WORKER" in os.environ:
        unwanted.add("alone")
    deselected = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


def pytest_collection_finish() -> None:
    """Take the thousands of collected tests out of the garbage collector's rounds.

    A full round over them pauses every thread for long enough to break what a test says about time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server, started by the first test that wants it."""
    programs = postgresql_server.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    with postgresql_server.running(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of either kind: what is tested with it must hold on both."""
    if request.param == "sqlite":
        return tmp_path / "runs.sqlite"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.schema()
