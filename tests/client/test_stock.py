"""Whoever carries a request, a caller is told the same: our own pools beside httpx's, fault by fault."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from drivers import driven
from fault_table import ANSWER, FAULTS, REPEATABLE, STREAM_FAULTS, UNREPEATABLE, Fault, Operation
from faulty_server import FaultyServer, Peer, Step, chunks, full_backlog, head, raw, refused_url

from orchestrator.client import NO_RETRIES
from orchestrator.errors import AmbiguousOutcome, APIError

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUTS_S = (0.1, 3.0)
"""Of calls that end by it: a machine that is too busy for one is given the next."""


CERTIFICATES = ssl.create_default_context()
"""Read once: that takes longer than a test here."""


class Told(NamedTuple):
    """What a caller learns: the error, what is behind it, and whether that says that something was sent."""

    error: str
    cause: str = ""
    sent: bool | None = None


def no_tls(peer: Peer) -> bool:
    peer._more()
    peer.send(b"this is not TLS")
    return False


@dataclass(frozen=True)
class Elsewhere:
    """A server that is not there to be asked, by the way in which it is not."""

    name: str
    error: str

    @contextmanager
    def url(self) -> Iterator[str]:
        match self.name:
            case "nobody listens":
                yield refused_url()
            case "nobody accepts":
                with full_backlog() as url:
                    yield url
            case "nobody knows the name":
                yield "http://no-such-host.invalid/v1"
            case "a server that speaks no TLS":
                with FaultyServer(default=no_tls) as server:
                    yield server.url.replace("http:", "https:")


ELSEWHERE = [
    Elsewhere("nobody listens", "APIConnectionError"),
    Elsewhere("nobody accepts", "APITimeout"),
    Elsewhere("nobody knows the name", "APIConnectionError"),
    Elsewhere("a server that speaks no TLS", "APIConnectionError"),
]

FRAMES: dict[str, Step] = {
    "a head without an end": raw(b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 1_000_000),
    "half a status line": raw(b"HTTP/1."),
    "half a head": raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"),
    "a length that is none": raw(head(200, content_length="five") + b"hello"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
    "an answer of HTTP/2": raw(b"HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
    "an announcement and no answer": raw(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunks that do not end": chunks([b"{}"], content_type="application/json", end=b""),
    "a line end missing after a chunk": chunks([], content_type="application/json", end=b"2\r\n{}0\r\n\r\n"),
    "no content": raw(head(204)),
    "an upgrade nobody asked for": raw(head(101, connection="upgrade", upgrade="websocket")),
}
"""Faults of the framing, about which the two parsers might think otherwise."""

ROWS: list[Fault] = [
    *(fault for fault in FAULTS if fault.step is not None),
    *(Fault(name=name, step=step, meaning="uncertain", error="") for name, step in FRAMES.items()),
]

OPERATIONS = {
    str(operation): operation
    for operation in (*REPEATABLE, *UNREPEATABLE)
    if str(operation) in ("get_run", "create_run without nonce", "stream_run without nonce")
}


def told(url: str, operation: Operation, *, stock: bool, **options: Any) -> Told:
    """Call an operation once."""
    settings: dict[str, Any] = {"verify": CERTIFICATES}
    if stock:
        settings = {"transport": httpx.AsyncHTTPTransport(verify=CERTIFICATES)}
    with driven("async", url, retry=NO_RETRIES, **settings) as driver:
        send = driver.stream if operation.streams else driver.call
        try:
            send(operation.name, *operation.ids, **operation.fields, **options)
        except (APIError, AmbiguousOutcome) as error:
            cause = error.__cause__ if isinstance(error, AmbiguousOutcome) else error
            return Told(type(error).__name__, type(cause).__name__, getattr(cause, "sent", None))
    return Told(ANSWER)


def rows() -> Iterator[Any]:
    for name, operation in OPERATIONS.items():
        for fault in (*ROWS, *(STREAM_FAULTS if operation.streams else ())):
            yield pytest.param(operation, fault, id=f"{name}: {fault.name}")


@pytest.mark.parametrize(("operation", "fault"), list(rows()))
def test_the_same_is_told_of_a_server_that_answers_badly(operation: Operation, fault: Fault) -> None:
    assert fault.step is not None
    for timeout_s in TIMEOUTS_S if fault.is_timed else (10.0,):
        with FaultyServer(default=fault.step) as server:
            by_ours = told(server.url, operation, stock=False, timeout=timeout_s)
            asked = len(server.received) + server.unread
            by_stock = told(server.url, operation, stock=True, timeout=timeout_s)
        if by_ours == by_stock and asked == 1:
            return
    assert by_ours == by_stock
    assert asked == 1


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
@pytest.mark.parametrize("server", ELSEWHERE, ids=lambda server: server.name)
def test_the_same_is_told_of_a_server_that_cannot_be_asked(operation: Operation, server: Elsewhere) -> None:
    timeout_s = TIMEOUTS_S[0] if server.error == "APITimeout" else 10.0
    with server.url() as url:
        by_ours = told(url, operation, stock=False, timeout=timeout_s)
        by_stock = told(url, operation, stock=True, timeout=timeout_s)
    assert by_ours == by_stock == Told(server.error, server.error, sent=False)
