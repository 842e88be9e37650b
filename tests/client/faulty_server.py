"""A real HTTP server on loopback whose answers, faults included, are a script.

Each request that begins to arrive takes the next step of the script. A step gets the connection and does
what a server, or the network in front of it, might do: answer, answer half, say nothing, reset. Threads
and blocking sockets, so that it serves blocking and asynchronous clients alike. Knows nothing of the
protocol.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType

PATIENCE_S = 20.0
"""How long a test waits for what must happen; never reached unless something is wrong."""


@dataclass(frozen=True)
class Received:
    """One request, as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """One connection, from the server's side."""

    def __init__(self, server: FaultyServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.number = number
        self._sock = sock
        self._buffer = b""

    def begins(self) -> bool:
        """Wait until a request begins to arrive, or the client hangs up."""
        try:
            return bool(self._buffer) or bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def read(self) -> Received:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self._buffer = rest
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        method, target, _ = lines[0].split(" ")
        received = Received(method, target, headers, body, self.number)
        self.server.note(received)
        return received

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def wait_for_hang_up(self) -> None:
        while self._sock.recv(65536):
            pass

    def reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _more(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionError("the client hung up within a request")
        self._buffer += data


Step: TypeAlias = Callable[[Peer], bool]
"""Does one thing on a connection; says whether the connection lives on."""


def head(status: int = 200, headers: dict[str, str] | None = None, **more: str) -> bytes:
    fields = {**(headers or {}), **{name.replace("_", "-"): value for name, value in more.items()}}
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def reply(body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> Step:
    """Answer with JSON, or with bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(head(status, fields) + data)
        return True

    return step


def failure(status: int, headers: dict[str, str] | None = None, message: str = "no") -> Step:
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return reply({"error": error}, status, headers)


def chunks(
    parts: Iterable[bytes],
    *,
    content_type: str = "text/event-stream",
    end: bytes = b"0\r\n\r\n",
    **headers: str,
) -> Step:
    """Answer in chunks; any `end` but the right one is a fault, and the connection closes after it."""

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(head(200, {"content-type": content_type, "transfer-encoding": "chunked"}, **headers))
        for part in parts:
            peer.send(b"%x\r\n%s\r\n" % (len(part), part))
        peer.send(end)
        return end == b"0\r\n\r\n"

    return step


def event(name: str, payload: Any) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


DONE = event("done", b"[DONE]")


def raw(data: bytes) -> Step:
    """Read the request, send bytes, close."""

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(data)
        return False

    return step


hang_up = raw(b"")
"""Read the request, close without a word."""


def reset_after(data: bytes = b"") -> Step:
    """Read the request, send bytes, reset the connection."""

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(data)
        peer.reset()
        return False

    return step


def reset_unread(peer: Peer) -> bool:
    """Reset the connection when the request begins to arrive."""
    peer.server.note_unread()
    peer.reset()
    return False


def stall(data: bytes = b"") -> Step:
    """Read the request, send bytes, then nothing until the client hangs up."""

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(data)
        peer.wait_for_hang_up()
        return False

    return step


def drip(data: bytes, every_s: float = 0.02) -> Step:
    """Read the request, send bytes, then one more space at a time until the client hangs up."""

    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(data)
        while not peer.server.closing.wait(every_s):
            peer.send(b" ")
        return False

    return step


def held(gate: threading.Event, then: Step) -> Step:
    """Go on with a step once the gate is open."""

    def step(peer: Peer) -> bool:
        if not gate.wait(PATIENCE_S):
            raise TimeoutError("the gate was never opened")
        return then(peer)

    return step


SCRIPT_IS_OVER = failure(418, message="the script is over")


class FaultyServer:
    """Listens on a free port of loopback from `with` to the end of it.

    Args:
        *script: What the requests meet, in the order in which they begin to arrive.
        default: What every further one meets.
        host: The address of loopback.
    """

    def __init__(self, *script: Step, default: Step = SCRIPT_IS_OVER, host: str = "127.0.0.1") -> None:
        self.received: list[Received] = []
        self.unread = 0
        self.accepted = 0
        self._open: dict[int, socket.socket] = {}
        self._script = deque(script)
        self._default = default
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self.closing = threading.Event()
        self._host = f"[{host}]" if ":" in host else host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._listener.getsockname()[1]}/v1"

    @property
    def seen(self) -> list[str]:
        """The requests, in short, those reset before they were read left out."""
        return [f"{one.method} {one.target.removeprefix('/v1')}" for one in self.received]

    @property
    def open_connections(self) -> int:
        with self._changed:
            return len(self._open)

    def play(self, *script: Step, default: Step) -> None:
        """Begin another script; what was received so far is forgotten."""
        with self._changed:
            self._script, self._default = deque(script), default
            self.received, self.unread = [], 0

    def wait_until(self, holds: Callable[[FaultyServer], bool]) -> None:
        """Block until something holds, looked at whenever a request or a connection comes or goes."""
        with self._changed:
            if not self._changed.wait_for(lambda: holds(self), PATIENCE_S):
                raise TimeoutError(f"after {self.seen}, {len(self._open)} connections open")

    def note(self, received: Received) -> None:
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()

    def note_unread(self) -> None:
        with self._changed:
            self.unread += 1
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        # Shutting a listener down wakes its accept(); closing it would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE_S)
        self._listener.close()
        with self._changed:
            for sock in self._open.values():
                with suppress(OSError):  # its client may have gone already
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads)
        if exc is None and self._errors:
            raise self._errors[0]

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="faulty-server")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self.accepted += 1
                self._open[self.accepted] = sock
                self._changed.notify_all()
            self._start(self._serve, sock, self.accepted)

    def _serve(self, sock: socket.socket, number: int) -> None:
        peer = Peer(self, sock, number)
        try:
            while peer.begins() and self._next()(peer):
                pass
        except OSError:
            pass  # the client went away, which is the client's right
        except Exception as exc:  # noqa: BLE001 - raised where the test ends
            self._errors.append(exc)
        finally:
            with self._changed:
                del self._open[number]
                sock.close()
                self._changed.notify_all()

    def _next(self) -> Step:
        with self._changed:
            return self._script.popleft() if self._script else self._default


def refused_url() -> str:
    """Return a base URL on loopback where nobody listens."""
    return f"http://127.0.0.1:{_unheard().getsockname()[1]}/v1"


@cache
def _unheard() -> socket.socket:
    """A port that is taken, so that nobody else begins to listen there meanwhile."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken


@contextmanager
def full_backlog() -> Iterator[str]:
    """A port whose connections are never established: its queue is full and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with ExitStack() as fillers:
            for _ in range(4):
                filler = fillers.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
