"""What may stand between an orchestrator and the real server: it passes requests on, and fails some."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stage import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNAVAILABLE = b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Between:
    """A middleman that handles one request on each connection.

    Attributes:
        base_url: What to give to a client.
        meets: Called with the method and the path of each request. It gives what the client gets in place of
            the server's answer, nothing at all when that is empty; `None` passes the request on.
        seen: The requests, in short.
        cut: While it is set, what is being answered is broken off.
    """

    def __init__(self, base_url: str) -> None:
        self.meets: Callable[[str, str], bytes | None] = lambda method, path: None
        self.seen: list[str] = []
        self.cut = threading.Event()
        self._port = urlsplit(base_url).port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._in_thread(self._accept)

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listener.close()

    def _in_thread(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, name="between")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            if select.select([self._listener], [], [], 0.01)[0]:
                self._in_thread(self._serve, self._listener.accept()[0])

    def _serve(self, accepted: socket.socket) -> None:
        # A client that breaks off is within its rights.
        with suppress(OSError, ConnectionError), accepted as client:
            head, body = self._read(client)
            method, path, _ = head.split(b" ", 2)
            self.seen.append(f"{method.decode()} {path.decode()}")
            answer = self.meets(method.decode(), path.decode())
            if answer is None:
                self._pass_on(client, head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + body)
            else:
                client.sendall(answer)

    def _read(self, client: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(client)
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields.get(b"content-length", 0)):
            body += self._more(client)
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join(kept) + b"\r\n\r\n", body

    def _pass_on(self, client: socket.socket, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._port or 0)) as server:
            server.sendall(request)
            while not self._ending.is_set() and not self.cut.is_set():
                readable = select.select([server, client], [], [], 0.02)[0]
                if client in readable:
                    return  # it hung up: there is no second request on a connection
                if server in readable:
                    data = server.recv(65536)
                    if not data:
                        return
                    client.sendall(data)

    @staticmethod
    def _more(client: socket.socket) -> bytes:
        data = client.recv(65536)
        if not data:
            raise ConnectionError("the client hung up within a request")
        return data


@contextmanager
def between(base_url: str) -> Iterator[Between]:
    middleman = Between(base_url)
    middleman.start()
    try:
        yield middleman
    finally:
        middleman.close()


def once(method: str, ending: str, answer: bytes) -> Callable[[str, str], bytes | None]:
    """Fail the first request whose path ends so, and pass on every other."""
    left = [answer]

    def meets(asked: str, path: str) -> bytes | None:
        return left.pop() if left and asked == method and path.endswith(ending) else None

    return meets
