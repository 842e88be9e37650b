"""One face for both clients, so that a test is written once and run on each."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from orchestrator.client import Answer, AsyncThreadsClient, Call, RetryPolicy, ThreadsClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from orchestrator.protocol.events import StreamEvent
    from orchestrator.protocol.objects import Run

T = TypeVar("T")

KEY = "sk-very-secret"

QUICK = RetryPolicy(base_s=0.0)
"""The default policy, without the waits."""

both = pytest.mark.parametrize("kind", ["async", "sync"])


class Driver(Protocol):
    """A client, driven from a test."""

    client: Any
    slept: list[float]

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a flat method."""

    def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Call an iterating method; what it yields is fetched as it is asked for."""

    def attempt(self, call: Call[T]) -> Answer[T]:
        """Make one attempt."""

    def attempt_stream(self, call: Call[Run], until: Callable[[StreamEvent], bool]) -> list[StreamEvent]:
        """Make one streaming attempt and collect its events, up to and with one that satisfies `until`."""

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> list[StreamEvent]:
        """Call a streaming method and collect its events."""


class SyncDriver:
    def __init__(self, base_url: str | None, settings: dict[str, Any]) -> None:
        self.slept: list[float] = []
        self.client = ThreadsClient(base_url, sleep=self.slept.append, **settings)

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, name)(*args, **kwargs)

    def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        found: Iterator[Any] = getattr(self.client, name)(*args, **kwargs)
        return found

    def attempt(self, call: Call[T]) -> Answer[T]:
        return self.client.attempt(call)

    def attempt_stream(self, call: Call[Run], until: Callable[[StreamEvent], bool]) -> list[StreamEvent]:
        events = []
        with self.client.attempt_stream(call) as stream:
            for event in stream:
                events.append(event)
                if until(event):
                    break
        return events

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> list[StreamEvent]:
        with getattr(self.client, name)(*args, **kwargs) as stream:
            return list(stream)

    def close(self) -> None:
        self.client.close()


class AsyncDriver:
    def __init__(self, base_url: str | None, settings: dict[str, Any]) -> None:
        self.slept: list[float] = []
        self.runner = asyncio.Runner()

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        self.client = AsyncThreadsClient(base_url, sleep=sleep, **settings)

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return self.runner.run(getattr(self.client, name)(*args, **kwargs))

    def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        found: AsyncIterator[Any] = getattr(self.client, name)(*args, **kwargs)

        async def one() -> list[Any]:
            async for item in found:
                return [item]
            return []

        return (item for batch in iter(lambda: self.runner.run(one()), []) for item in batch)

    def attempt(self, call: Call[T]) -> Answer[T]:
        return self.runner.run(self.client.attempt(call))

    def attempt_stream(self, call: Call[Run], until: Callable[[StreamEvent], bool]) -> list[StreamEvent]:
        async def collect() -> list[StreamEvent]:
            events = []
            async with self.client.attempt_stream(call) as stream:
                async for event in stream:
                    events.append(event)
                    if until(event):
                        break
            return events

        return self.runner.run(collect())

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> list[StreamEvent]:
        async def collect() -> list[StreamEvent]:
            async with getattr(self.client, name)(*args, **kwargs) as stream:
                return [event async for event in stream]

        return self.runner.run(collect())

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


@contextmanager
def driven(kind: str, base_url: str | None, **settings: Any) -> Iterator[Driver]:
    """Open a client of a kind, and close it."""
    settings = {"api_key": KEY, "retry": QUICK, "timeout": 10.0, **settings}
    driver = SyncDriver(base_url, settings) if kind == "sync" else AsyncDriver(base_url, settings)
    try:
        yield driver
    finally:
        driver.close()
