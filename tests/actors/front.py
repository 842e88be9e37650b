"""What stands before a server: it passes on, answers in the server's place, or is gone. Counts what comes.

A real port on loopback, with a thread for each connection. Each change of its mind breaks the connections
that are open, so that what comes next meets the new one.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stage import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Front:
    """Made by `fronting`.

    Attributes:
        base_url: The server's, through this.
        accepted: How many connections were opened.
        refused: When each request came that was answered here, and what it asked.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.accepted = 0
        self.refused: list[tuple[float, str]] = []
        self._behind = (parts.hostname, parts.port)
        self._lock = threading.RLock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._answer: bytes | None = None
        self._until = ""
        self._most = 0
        self._listener: socket.socket | None = None
        self._port = 0
        self.appear()
        self.base_url = f"http://127.0.0.1:{self._port}{parts.path}"

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, *, until: str = "none", most: int = 10**6
    ) -> None:
        """Answer in the server's place, until something is asked for that ends so, or so many times."""
        fields = {"content-type": "application/json", "connection": "close", **(headers or {})}
        body = b'{"error": {"message": "not now", "type": "server_error", "param": null, "code": null}}'
        lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        with self._lock:
            self._answer = "\r\n".join([*lines, "", ""]).encode() + body
            self._until, self._most = until, most
            self._break()

    def mend(self) -> None:
        """Pass on again."""
        with self._lock:
            self._answer = None
            self._break()

    def vanish(self) -> None:
        """Nobody listens any more."""
        with self._lock:
            listener, self._listener = self._listener, None
            assert listener is not None
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._break()

    def appear(self) -> None:
        """Listen again, where it listened before."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        with self._lock:
            self._listener = listener
            self._port = listener.getsockname()[1]
        self._start(self._accept, listener)

    def close(self) -> None:
        if self._listener is not None:
            self.vanish()
        self._break()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def _break(self) -> None:
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="front")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            first = b""
            if self._answer is not None:
                first = _request(sock)
                if self._answers(sock, first):
                    return
            self._relay(sock, first)
        except OSError:
            pass  # somebody went away, or was sent away
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _answers(self, sock: socket.socket, request: bytes) -> bool:
        asked = request.partition(b" HTTP/")[0].decode()
        with self._lock:
            if asked.endswith(self._until) or len(self.refused) >= self._most:
                self._answer = None
            answer = self._answer
            if answer is None:
                return False
            self.refused.append((time.monotonic(), asked))
        sock.sendall(answer)
        return True

    def _relay(self, sock: socket.socket, first: bytes) -> None:
        with socket.create_connection(self._behind) as server:
            server.sendall(first)
            others = {sock: server, server: sock}
            while True:
                for source in select.select(list(others), [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    others[source].sendall(data)


def _request(sock: socket.socket) -> bytes:
    """Read one request, to the end of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
    while len(body) < length:
        more = _some(sock)
        data, body = data + more, body + more
    return data


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the client hung up")
    return data


@contextmanager
def fronting(base_url: str) -> Iterator[Front]:
    """Stand before a server until the end of `with`."""
    front = Front(base_url)
    try:
        yield front
    finally:
        front.close()
