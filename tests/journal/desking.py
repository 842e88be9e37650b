"""A database of either kind as a journal's, and two processes' worth of journals on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from desk import Desk, desk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.server.database import Database


@pytest.fixture
def url(database: Database) -> str:
    return f"sqlite:///{database}" if isinstance(database, Path) else database


@pytest.fixture
def first(url: str) -> Iterator[Desk]:
    with desk(url) as at_work:
        yield at_work


@pytest.fixture
def second(url: str, first: Desk) -> Iterator[Desk]:
    with desk(url) as at_work:
        yield at_work
