"""A client that goes away in the middle of its request."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.testing import running_server
from server.told import telling

if TYPE_CHECKING:
    import pytest


def test_a_request_that_is_cut_off_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    head = "POST /v1/threads HTTP/1.1\r\nhost: 127.0.0.1\r\nopenai-beta: assistants=v2\r\n"
    head += "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with telling(caplog) as told, running_server(api_key=None) as server:
        port = urlsplit(server.base_url).port
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode())
        level, event = told.get(timeout=10)
    assert (level, event["event"], event["status"]) == ("INFO", "server.request", 0)
