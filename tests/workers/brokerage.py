"""The brokers, each started by the first test that wants it. A plugin, for mypy takes one conftest."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import brokers
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def redis() -> Iterator[brokers.Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed here (Debian: apt-get install redis-server)")
    with brokers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[brokers.RabbitMQ]:
    programs = brokers.rabbitmq_programs()
    if programs is None:
        pytest.skip("RabbitMQ is not installed here (Debian: apt-get install rabbitmq-server)")
    with brokers.rabbitmq(programs) as node:
        yield node
