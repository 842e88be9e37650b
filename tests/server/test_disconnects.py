"""A client that goes away in the middle of its request."""

from __future__ import annotations

import logging
import queue
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.telemetry.logs import Event
from orchestrator.testing import running_server

if TYPE_CHECKING:
    import pytest


class Told(logging.Handler):
    """Hands every event to the test, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: queue.Queue[tuple[str, Event]] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Event):
            self.events.put((record.levelname, record.msg))


def test_a_request_that_is_cut_off_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    logger = logging.getLogger("orchestrator.server")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(told)
    head = "POST /v1/threads HTTP/1.1\r\nhost: 127.0.0.1\r\nopenai-beta: assistants=v2\r\n"
    head += "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    try:
        with running_server(api_key=None) as server:
            port = urlsplit(server.base_url).port
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head.encode())
            level, event = told.events.get(timeout=10)
    finally:
        logger.removeHandler(told)
    assert (level, event["event"], event["status"]) == ("INFO", "server.request", 0)
