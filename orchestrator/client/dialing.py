"""How a socket to a server is opened: which address, in what time, and how many at once.

Owns names and addresses, the race between addresses of one name, and the TLS handshake. It knows no HTTP, and
says of every failure that nothing was sent: `ConnectError`, `ConnectTimeout` or `PoolTimeout` of httpcore's.

Imported on first use, because it imports httpcore. Asyncio only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import defaultdict
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpcore

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OPENING", "Places", "acquire", "dial", "patience_until"]

P = TypeVar("P", bound=asyncio.Protocol)

OPENING: Final = 64
"""How many connections to one host a pool opens at once.

The time for opening one is counted by the clock. Of thousands that are begun together, each would wait for
the loop's turns of all others, and a server that answers at once would seem not to.
"""

NEXT_ADDRESS_S: Final = 0.25
"""How long one address of a name is tried alone before the next one is tried beside it (RFC 8305)."""

patience_until: ContextVar[float | None] = ContextVar("patience_until", default=None)
"""Until when, by the loop's clock, the request at hand may wait for a connection to be its own."""


async def acquire(permit: asyncio.Semaphore) -> None:
    """Wait for a permit, as long as the request at hand may.

    Raises:
        httpcore.PoolTimeout: None was free in time; nothing was sent.
    """
    if not permit.locked():
        await permit.acquire()
        return
    try:
        async with asyncio.timeout_at(patience_until.get()):
            await permit.acquire()
    except TimeoutError:
        raise httpcore.PoolTimeout("no connection was free in time") from None


class Places:
    """Lets no more than `OPENING` connections to one host be opened at once.

    The wait for that is none of the time to connect: it belongs to the wait for a connection.
    """

    def __init__(self) -> None:
        self._places: defaultdict[tuple[str, int], asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(OPENING)
        )

    def to(self, host: str, port: int) -> asyncio.Semaphore:
        """The places of a host: `acquire` one, and release it once the connection is open or failed."""
        return self._places[host, port]


async def dial(
    protocol: Callable[[], P], host: str, port: int, *, tls: ssl.SSLContext | None, timeout_s: float | None
) -> P:
    """Open a connection.

    Args:
        protocol: Makes what the connection is handed to.
        host: A name or an address.
        port: The port.
        tls: Whom to trust, where the connection is to be encrypted.
        timeout_s: The most seconds for all of it.

    Raises:
        httpcore.ConnectTimeout: It took too long.
        httpcore.ConnectError: The name is not known, no address answers, or the handshake failed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _dialled(protocol, host, port, tls)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(str(error) or f"no connection in {timeout_s} s") from error
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error) or type(error).__name__) from error


async def _dialled(protocol: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None) -> P:
    loop = asyncio.get_running_loop()
    addresses = [(host, port)] if _is_address(host) else await _addresses(host, port)
    where: dict[str, Any]
    if len(addresses) == 1:
        where = {"host": addresses[0][0], "port": addresses[0][1]}
    else:
        where = {"sock": await _first_to_answer(addresses)}
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
        where |= {"ssl": tls, "server_hostname": host}
    _, made = await loop.create_connection(protocol, **where)
    return made


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, UnicodeError):
            continue
        return True
    return False


async def _addresses(host: str, port: int) -> list[Any]:
    """The addresses of a name, the families by turns."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[int, list[Any]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append(address)
    queues = list(by_family.values())
    longest = max(map(len, queues))
    return [queue[index] for index in range(longest) for queue in queues if index < len(queue)]


async def _first_to_answer(addresses: list[Any]) -> socket.socket:
    """Connect to whichever address answers first, each given a moment before the next is tried, too.

    Raises:
        OSError: None of them does; the first one's reason.
    """
    attempts: set[asyncio.Task[socket.socket]] = set()
    failures: list[BaseException] = []
    waiting = list(addresses)
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connected(waiting.pop(0))))
            patience_s = NEXT_ADDRESS_S if waiting else None
            done, attempts = await asyncio.wait(
                attempts, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    attempts |= done - {attempt}
                    return attempt.result()
                failures.append(error)
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_unwanted)
    raise failures[0]


async def _connected(address: Any) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.settimeout(0)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _close_unwanted(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
