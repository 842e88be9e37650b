"""What the server logs, handed to a test as it happens."""

from __future__ import annotations

import logging
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.telemetry.logs import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

Told: TypeAlias = "queue.Queue[tuple[str, Event]]"
"""Level and event, in order."""


class _Telling(logging.Handler):
    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Event):
            self._told.put((record.levelname, record.msg))


@contextmanager
def telling(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """Yield what the server logs from now on; a test waits for it."""
    told: Told = queue.Queue()
    logger = logging.getLogger("orchestrator.server")
    caplog.set_level(logging.INFO, logger.name)
    handler = _Telling(told)
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
