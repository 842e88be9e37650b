"""What may stand between a client and a server: a proxy, and TLS in front of a server that has none.

Real ones, on loopback, in a thread of their own. They know no host but those they are told of, which is what
lets a test ask for a name that exists nowhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from faulty_server import PATIENCE_S

if TYPE_CHECKING:
    import ssl

Handle: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@contextmanager
def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve connections in a thread until the end of `with`; gives the port."""
    started: list[int] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="middleman")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes) -> None:
    upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
    upstream.write(first)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    try:
        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))
    finally:
        upstream.close()


@contextmanager
def tls_front(url: str, tls: ssl.SSLContext) -> Iterator[int]:
    """Accept TLS on a port, and pass on to a server what it protected."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relay(reader, writer, port_of(url), b"")

    with listening(handle, tls) as port:
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

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        proxy.requests.append(f"{method} {target}")
        proxy.credentials.append(fields.get("proxy-authorization"))
        host = target.removeprefix("http://").partition("/")[0]
        port = hosts.get(host.removesuffix(":443"))
        if port is None:
            writer.write(b"HTTP/1.1 502 Unknown\r\ncontent-length: 0\r\n\r\n")
        elif method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
            await relay(reader, writer, port, b"")
        else:
            await relay(reader, writer, port, head)

    with listening(handle, tls) as port:
        proxy.port = port
        yield proxy
