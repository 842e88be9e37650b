"""The brokers, each started by the first test that wants it. A plugin, for mypy takes one conftest."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brokers import RabbitMQ, Redis

# What they need is imported on first use: every test process knows these fixtures.


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    import brokers

    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed here (Debian: apt-get install redis-server)")
    with brokers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    import brokers

    programs = brokers.rabbitmq_programs()
    if programs is None:
        pytest.skip("RabbitMQ is not installed here (Debian: apt-get install rabbitmq-server)")
    with brokers.rabbitmq(programs) as node:
        yield node
