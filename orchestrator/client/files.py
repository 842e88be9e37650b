"""How many files this process may have open: said when many connections are planned, and when one finds none.

Every connection is an open file. Owns what users are told about the limit, and how an error of the system's
is recognised that means it. It changes no limit: those are the process's owner's to set. Knows no pool.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["USUAL_CONNECTIONS", "expect_connections", "out_of_files"]

USUAL_CONNECTIONS: Final = 1000
"""How many streams a client allows that was told nothing: a bound, and no plan to open so many."""

log = get_logger(__name__)


def expect_connections(connections: int) -> None:
    """Warn, as `client.few_files`, if this process may not have so many files open beside those it has.

    Args:
        connections: How many there may be at the same time, of all kinds.
    """
    limit = _limit()
    if limit is None:
        return
    free = _free()
    opened = limit if free is None else free
    if opened + connections > limit:
        log.warning(
            "client.few_files",
            limit=limit,
            open=opened,
            connections=connections,
            remedy=_remedy(opened + connections),
        )


def out_of_files(exc: BaseException) -> str | None:
    """Say what to do, if an error means that no file could be opened for a connection; else `None`.

    Args:
        exc: What connecting raised, with what it came from.
    """
    causes = list(_causes(exc))
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if errno.ENFILE in numbers:
        return "the machine has no file left to open for a connection: raise the sysctl fs.file-max"
    unresolved = any(isinstance(cause, socket.gaierror) for cause in causes)
    # A resolver that cannot open its own files or sockets says that the name is not known.
    if errno.EMFILE not in numbers and not (unresolved and _free() is None):
        return None
    limit = _limit()
    most = "as many files open as it may" if limit is None else f"all {limit:,} files open that it may have"
    return f"this process has {most} (RLIMIT_NOFILE), and a connection is one more: {_remedy(None)}"


def _remedy(needed: int | None) -> str:
    number = "N" if needed is None else str(needed)
    return (
        f"raise the limit, by `ulimit -n {number}` before it starts, or by "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ...) within it; or lower max_concurrent_runs or "
        f"max_connections"
    )


def _limit() -> int | None:
    """How many files this process may have open; `None` where nothing says so."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _free() -> int | None:
    """How many files are open, or a little less: the lowest number that is free; `None` if none is."""
    try:
        free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None
    os.close(free)
    return free


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """An error and all it came from, those within groups included."""
    while exc is not None:
        yield exc
        if isinstance(exc, BaseExceptionGroup):
            for member in exc.exceptions:
                yield from _causes(member)
        exc = exc.__cause__ or exc.__context__
