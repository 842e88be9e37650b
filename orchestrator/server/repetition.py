"""What a repeated `Idempotency-Key` means: the object that the first request made, and never a second one.

Owns what makes two requests the same, and who waits for whom. The header is a plus over the protocol, for
every create. A key is scoped to the caller's API key and stands for one operation on one path with one
meaning: how its JSON is spelt does not matter, nor whether a null stands where a field may be left out, nor
whether the answer is wanted as a stream. Knows nothing of what is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from orchestrator.server.refusal import invalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.store import Shelf

__all__ = ["Repeat", "Repetitions", "repeat_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """An `Idempotency-Key`: what it is stored under, and a digest of the request it stands for."""

    key: str
    digest: str


def repeat_of(key: str, *, scope: str, path: str, fields: JSON) -> Repeat:
    """Say what a key stands for.

    Args:
        key: As the client sent it.
        scope: Who sent it.
        path: The operation's path, below the prefix under which it was asked for.
        fields: The validated request.
    """
    meant = {name: value for name, value in fields.items() if value is not None and name != "stream"}
    text = json.dumps([path, meant], sort_keys=True)
    return Repeat(key=_digest(f"{scope}\n{key}"), digest=_digest(text))


class Repetitions:
    """Remembers what keys made; made anywhere, then used on one event loop.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Shelf) -> None:
        self._store = store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, repeat: Repeat | None) -> AsyncIterator[str | None]:
        """Wait until the request that this one repeats was decided; yield the id of what that made, if any.

        Raises:
            RefusalError: The key stands for another request.
        """
        if repeat is None:
            yield None
            return
        lock = self._locks.setdefault(repeat.key, asyncio.Lock())
        async with lock:
            yield await self._made(repeat)

    def note(self, repeat: Repeat | None, object_id: str, *, thread_id: str = "") -> None:
        """Note what a request has made; stored together with what this turn of the loop saves.

        Args:
            repeat: Its key, if it had one.
            object_id: What it made.
            thread_id: The thread whose deletion takes this note along; `""` for none.
        """
        if repeat is not None:
            self._store.remember(repeat.key, digest=repeat.digest, run_id=object_id, thread_id=thread_id)

    async def _made(self, repeat: Repeat) -> str | None:
        known = await self._store.remembered(repeat.key)
        if known is None:
            return None
        digest, object_id = known
        if digest != repeat.digest:
            raise invalid("This Idempotency-Key was used before with another request.")
        return object_id


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
