"""What breaks things at random, from a seed: a server that is killed, a network that resets, dying actors.

The server is `orchestrator serve` as a process of its own, on one port and one file for all its lives. The
network is a proxy in front of it. Actors die of inputs that they cannot digest and of a journal that raises.
Nothing here knows what is right; `inquest` does.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pykka
from crew import poison
from stage import PATIENCE_S

from orchestrator.journal import MemoryJournal
from orchestrator.supervision.actor import RunActor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from orchestrator.runs.record import RunRecord

KEY: Final = "storm-key"


class Citadel:
    """The server: one port and one file, any number of processes after one another.

    Args:
        directory: Where its file, its script and its log are.
        script: What its model plays; a script file's text.
        url: A database to use instead of the file.
        log_level: What its log holds; with "info", a line for each request.
    """

    def __init__(
        self, directory: Path, script: str, *, url: str | None = None, log_level: str = "error"
    ) -> None:
        self.db = directory / "storm.sqlite"
        self._database = url or str(self.db)
        self.log = directory / "storm.log"
        self._script = directory / "storm.yaml"
        self._script.write_text(script)
        self._log_level = log_level
        self.port = _port_no_client_can_take()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.lives = 0
        self._process: subprocess.Popen[str] | None = None

    def rise(self) -> None:
        """Start; blocks until it answers."""
        command = [sys.executable, "-m", "orchestrator", "serve", "--port", str(self.port)]
        options = ["--db", self._database, "--script", str(self._script), "--api-key", KEY]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, *options, "--log-level", self._log_level],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.lives += 1
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("listening on "), self.log.read_text()

    def fall(self, how: signal.Signals) -> None:
        """End it by a signal; blocks until it is gone."""
        assert self._process is not None
        with self._process as process:
            process.send_signal(how)
            process.wait(PATIENCE_S)
        self._process = None

    @contextmanager
    def standing(self) -> Iterator[Citadel]:
        self.rise()
        try:
            yield self
        finally:
            if self._process is not None:
                self.fall(signal.SIGKILL)


def _port_no_client_can_take() -> int:
    """A free port outside the range from which the system gives clients theirs.

    From within that range, a client that dials a server which is down may be given the very port it dials,
    be connected with itself, and hold the port against the server.
    """
    for port in random.Random().sample(range(20000, 32000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


FAULTS: Final = {
    "unsent": 0.02,  # the request is dropped
    "unanswered": 0.03,  # it is carried out, and nothing of the answer arrives
    "cut": 0.03,  # some of the answer arrives
    "ended": 0.01,  # the same, with an end that looks orderly
    "whenever": 0.02,  # the connection breaks a little later, wherever it is then
    "slow": 0.10,
}
"""What becomes of a request, and how often; the others pass."""

REFUSALS: Final = {
    "limited": (429, "Too Many Requests", 0.2),
    "failed": (500, "Internal Server Error", None),
    "unavailable": (503, "Service Unavailable", 0.3),
}
"""Faults that answer in the server's place: the status, and what `Retry-After` asks for, in seconds."""


class Rapids:
    """A proxy on a port of its own that passes on most requests and breaks the others' connections.

    Args:
        port: The server's.
        seed: Decides what breaks.
        chances: What becomes of a request, and how often: besides `FAULTS` also any of `REFUSALS`;
            "held", which is "slow", but lost if the connection breaks meanwhile, where a slow request still
            takes effect; and "dripping", where the answer comes in small pieces.
    """

    def __init__(self, port: int, seed: int, chances: Mapping[str, float] = FAULTS) -> None:
        self.faults: Counter[str] = Counter()
        self._chances = chances
        self.base_url = ""
        self._port = port
        self._random = random.Random(seed)
        self._ready = threading.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event

    @contextmanager
    def flowing(self) -> Iterator[Rapids]:
        thread = threading.Thread(target=asyncio.run, args=(self._flow(),), name="storm-rapids")
        thread.start()
        assert self._ready.wait(PATIENCE_S)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    async def _flow(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, back))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            upstream, forth = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            self.faults["down"] += 1
            _reset(back)
            return
        passage = _Passage(upstream, back)
        answers = asyncio.create_task(passage.answers())
        try:
            while await self._pass_on(client, forth, passage):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # either side broke off, or a fault did
        finally:
            answers.cancel()
            for side in (forth, back):
                side.transport.abort()

    async def _pass_on(
        self, client: asyncio.StreamReader, forth: asyncio.StreamWriter, passage: _Passage
    ) -> bool:
        request = await _read(client)
        fault = self._draw()
        if fault is not None:
            self.faults[fault] += 1
        passage.allow(None)
        if fault in REFUSALS:
            await passage.refuse(*REFUSALS[fault])
            return True
        passage.dripping = fault == "dripping"
        match fault:
            case "unsent":
                passage.reset()
                return False
            case "unanswered":
                passage.allow(0)
            case "cut" | "ended":
                passage.allow(self._random.randint(1, 6000), orderly=fault == "ended")
            case "whenever":
                self._loop.call_later(self._random.uniform(0, 0.3), passage.reset)
            case "slow" | "held":
                await asyncio.sleep(self._random.uniform(0, 0.1))
                if fault == "held" and passage.is_reset:
                    return False
        forth.write(request)
        await forth.drain()
        return True

    def _draw(self) -> str | None:
        drawn = self._random.random()
        for fault, chance in self._chances.items():
            drawn -= chance
            if drawn < 0:
                return fault
        return None


class _Passage:
    """The way of the answers on one connection."""

    def __init__(self, upstream: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.dripping = False
        self.is_reset = False
        self._upstream = upstream
        self._back = back
        self._allowed: int | None = None
        self._orderly = False

    def allow(self, answer_bytes: int | None, *, orderly: bool = False) -> None:
        """Break the connection after so many further bytes of an answer, or not."""
        self._allowed, self._orderly = answer_bytes, orderly

    def reset(self) -> None:
        self.is_reset = True
        _reset(self._back)

    async def refuse(self, status: int, reason: str, retry_after_s: float | None) -> None:
        """Answer a request that the server does not get to see."""
        body = b'{"error": {"message": "the weather is bad", "type": "server_error"}}'
        hint = "" if retry_after_s is None else f"retry-after: {retry_after_s}\r\n"
        head = f"HTTP/1.1 {status} {reason}\r\n{hint}content-length: {len(body)}\r\n\r\n"
        self._back.write(head.encode() + body)
        await self._back.drain()

    async def answers(self) -> None:
        with suppress(OSError):
            while data := await self._upstream.read(_DRIP_BYTES if self.dripping else 65536):
                if self.dripping:
                    await asyncio.sleep(_DRIP_S)
                if self._allowed is not None:
                    data, cut = data[: self._allowed], len(data) >= self._allowed
                    self._allowed -= len(data)
                    self._back.write(data)
                    if cut:
                        break
                else:
                    self._back.write(data)
                await self._back.drain()
        if self._orderly:
            self._back.close()
        else:
            self.reset()


_DRIP_BYTES: Final = 500
_DRIP_S: Final = 0.01


async def _read(client: asyncio.StreamReader) -> bytes:
    """One request, as it came."""
    head = await client.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next((line.partition(":")[2] for line in lines if line.startswith("content-length:")), "0")
    return head + await client.readexactly(int(length))


def _reset(side: asyncio.StreamWriter) -> None:
    sock = side.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.transport.abort()


class StruckError(Exception):
    """What a journal raises here; it stands for a full disk or a lost database."""


class FickleJournal(MemoryJournal):
    """Raises now and then, before or after it kept a record, and when a new actor asks for it.

    A record is kept in the middle of what an actor does about an input, so that this kills actors in any
    handler and between any two effects, and in `on_start`. The first record of a run and `forget` are the
    supervisor's, which is not to die here.

    Args:
        seed: Decides when.
        chance: How likely it is, for each call.
    """

    def __init__(self, seed: int, chance: float) -> None:
        super().__init__()
        self.strikes: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._chance = chance

    def record(self, record: RunRecord) -> None:
        drawn = self._random.random() if record.key in self._records else 1.0
        if drawn < self._chance / 2:
            self._strike("before the record")
        super().record(record)
        if drawn < self._chance:
            self._strike("after the record")

    def last(self, key: str) -> RunRecord:
        if self._random.random() < self._chance:
            self._strike("on_start")
        return super().last(key)

    def _strike(self, where: str) -> None:
        self.strikes[where] += 1
        raise StruckError(where)


class Lightning:
    """Kills actors of runs at random moments, whatever they are at; a thread while in `with`.

    Args:
        seed: Decides when and whom.
        life_s: Seconds that an actor lives until it is struck, on average.
    """

    def __init__(self, seed: int, life_s: float) -> None:
        self.strikes = 0
        self._random = random.Random(seed)
        self._life_s = life_s
        self._over = threading.Event()

    @contextmanager
    def striking(self) -> Iterator[Lightning]:
        thread = threading.Thread(target=self._strike, name="storm-lightning")
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(PATIENCE_S)

    def _strike(self) -> None:
        while not self._over.wait(_TICK_S):
            for actor in pykka.ActorRegistry.get_by_class(RunActor):
                if self._random.random() < _TICK_S / self._life_s:
                    with suppress(pykka.ActorDeadError):
                        actor.tell((poison(),))
                        self.strikes += 1


_TICK_S: Final = 0.02
