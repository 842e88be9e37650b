"""What may stand between a client and a server: a proxy, and TLS in front of a server that has none.

Real ones, on loopback, with a thread for each connection. They know no host but those they are told of, which
is what lets a test ask for a name that exists nowhere.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from faulty_server import PATIENCE_S

Handle: TypeAlias = Callable[[socket.socket], None]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@contextmanager
def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve connections in threads until the end of `with`; gives the port."""
    threads: list[threading.Thread] = []
    ending = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def start(target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, name="middleman")
        threads.append(thread)
        thread.start()

    def serve(accepted: socket.socket) -> None:
        # A client that breaks off, within the handshake too, is within its rights.
        with suppress(OSError), ExitStack() as closing:
            sock = closing.enter_context(accepted)
            if tls is not None:
                sock = closing.enter_context(tls.wrap_socket(sock, server_side=True))
            handle(sock)

    def accept() -> None:
        while not ending.is_set():
            if select.select([listener], [], [], 0.01)[0]:
                start(serve, listener.accept()[0])

    start(accept)
    try:
        yield listener.getsockname()[1]
    finally:
        ending.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        listener.close()
    assert not any(thread.is_alive() for thread in threads)


def relay(client: socket.socket, port: int, first: bytes = b"") -> None:
    """Pass on what either side says, until one of them closes."""
    with socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(first)
        others = {client: server, server: client}
        while True:
            decrypted = isinstance(client, ssl.SSLSocket) and client.pending()
            for source in [client] if decrypted else select.select(list(others), [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                others[source].sendall(data)


@contextmanager
def tls_front(url: str, tls: ssl.SSLContext) -> Iterator[int]:
    """Accept TLS on a port, and pass on to a server what it protected."""
    with listening(lambda client: relay(client, port_of(url)), tls) as port:
        yield port


@dataclass
class Proxy:
    """A proxy that was asked for something.

    Attributes:
        port: Where it listens.
        requests: The first line of every connection.
        credentials: The `Proxy-Authorization` of each, or `None`.
    """

    port: int = 0
    requests: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)


@contextmanager
def proxying(hosts: Mapping[str, int], tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Forward requests and open tunnels to the hosts that it knows; 502 for any other."""
    proxy = Proxy()

    def handle(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return
            head += data
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        proxy.requests.append(f"{method} {target}")
        proxy.credentials.append(fields.get("Proxy-Authorization"))
        host = target.removeprefix("http://").partition("/")[0]
        port = hosts.get(host.removesuffix(":443"))
        if port is None:
            client.sendall(b"HTTP/1.1 502 Unknown\r\ncontent-length: 0\r\n\r\n")
        elif method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 Established\r\n\r\n")
            relay(client, port)
        else:
            relay(client, port, head)

    with listening(handle, tls) as port:
        proxy.port = port
        yield proxy
