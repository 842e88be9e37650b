"""One face for both libraries, and what a program leaves behind when it runs on one.

Plain JSON goes in and comes out, under our names of the operations, so that a program is written once.
Knows nothing of what the programs do.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import openai
import pytest
from drivers import Driver, driven

from orchestrator.errors import APIStatusError
from orchestrator.protocol.events import DoneEvent
from orchestrator.testing import RunningServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

JSON: TypeAlias = dict[str, Any]
Event: TypeAlias = tuple[str, JSON]


class Refused(Exception):
    """A server's refusal, in words that both libraries have."""

    def __init__(self, **error: Any) -> None:
        super().__init__(error)
        self.error = error


class Client(Protocol):
    """A client of either library: plain JSON in and out, `Refused` for an error of the server's."""

    def call(self, name: str, /, *ids: str, **fields: Any) -> JSON:
        """Call the operation of that name of ours."""

    def stream(self, name: str, /, *ids: str, **fields: Any) -> list[Event]:
        """Call the streaming operation of that name of ours; `done` is seen, and left out."""


class Ours:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def call(self, name: str, /, *ids: str, **fields: Any) -> JSON:
        with self._refusing():
            value: JSON = msgspec.to_builtins(self._driver.call(name, *ids, **fields))
            return value

    def stream(self, name: str, /, *ids: str, **fields: Any) -> list[Event]:
        with self._refusing():
            *events, last = self._driver.stream(name, *ids, **fields)
        assert isinstance(last, DoneEvent)
        return [(event.event, json.loads(msgspec.json.encode(event.data))) for event in events]

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except APIStatusError as error:
            raise Refused(
                status=error.status,
                traced=bool(error.request_id),
                message=error.message,
                type=error.type,
                code=error.code,
                param=error.param,
            ) from error


RESOURCES = {
    "assistant": "assistants",
    "thread": "threads",
    "message": "threads.messages",
    "run": "threads.runs",
    "run_step": "threads.runs.steps",
}
VERBS = {"create": "create", "get": "retrieve", "modify": "update", "delete": "delete", "list": "list"}
OTHERS = {
    "cancel_run": "threads.runs.cancel",
    "submit_tool_outputs": "threads.runs.submit_tool_outputs",
    "create_thread_and_run": "threads.create_and_run",
    "stream_run": "threads.runs.create",
    "stream_thread_and_run": "threads.create_and_run",
    "stream_tool_outputs": "threads.runs.submit_tool_outputs",
}


def peers_name(name: str) -> str:
    """Where openai-python keeps an operation, below `client.beta`."""
    verb, _, noun = name.partition("_")
    return OTHERS.get(name) or f"{RESOURCES[noun.removesuffix('s')]}.{VERBS[verb]}"


class Peers:
    """openai-python's, blocking or asynchronous."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI, runner: asyncio.Runner | None) -> None:
        self._client = client
        self._runner = runner

    def call(self, name: str, /, *ids: str, **fields: Any) -> JSON:
        value: JSON = self._wait(self._send(name, *ids, **fields)).to_dict(warnings=False)
        return value

    def stream(self, name: str, /, *ids: str, **fields: Any) -> list[Event]:
        events = self._wait(self._send(name, *ids, stream=True, **fields))
        found = list(events) if self._runner is None else self._runner.run(_collected(events))
        return [(event.event, event.data.to_dict(warnings=False)) for event in found]

    def _send(self, name: str, /, *ids: str, **fields: Any) -> Any:
        method: Any = self._client.beta
        for part in peers_name(name).split("."):
            method = getattr(method, part)
        above = dict(zip(("thread_id", "run_id"), ids[:-1], strict=False))
        return lambda: method(*ids[-1:], **above, **fields)

    def _wait(self, send: Callable[[], Any]) -> Any:
        try:
            return send() if self._runner is None else self._runner.run(_awaited(send()))
        except openai.APIStatusError as error:
            body: Any = error.body
            raise Refused(status=error.status_code, traced=bool(error.request_id), **body) from error


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


async def _collected(events: Any) -> list[Any]:
    return [event async for event in events]


@contextmanager
def ours(kind: str, server: RunningServer) -> Iterator[Client]:
    with driven(kind, server.base_url, api_key=server.api_key) as driver:
        yield Ours(driver)


@contextmanager
def peers(kind: str, server: RunningServer) -> Iterator[Client]:
    options: Any = {"base_url": server.base_url, "api_key": server.api_key, "max_retries": 0}
    if kind == "sync":
        with openai.OpenAI(**options) as client:
            yield Peers(client, None)
        return
    with asyncio.Runner() as runner:
        asynchronous = openai.AsyncOpenAI(**options)
        try:
            yield Peers(asynchronous, runner)
        finally:
            runner.run(asynchronous.close())


ID = re.compile(r"\b(?:asst|thread|msg|run|step|call)_[0-9a-f]{24}\b")


class Recorder:
    """Runs operations on a client and writes down what came of them."""

    def __init__(self, client: Client, server: RunningServer) -> None:
        self.transcript: list[Any] = []
        self.used: set[str] = set()
        self._client = client
        self._server = server
        self._numbers: dict[str, str] = {}

    def call(self, name: str, /, *ids: str, **fields: Any) -> JSON:
        with self._writing(name) as written:
            written.append(value := self._client.call(name, *ids, **fields))
        return value

    def stream(self, name: str, /, *ids: str, **fields: Any) -> list[Event]:
        with self._writing(name) as written:
            written.append(events := self._client.stream(name, *ids, **fields))
        return events

    def refused(self, name: str, /, *ids: str, **fields: Any) -> None:
        """Run an operation, streaming or not, that the server must refuse."""
        send = self._client.stream if name.startswith("stream_") else self._client.call
        with self._writing(name) as written:
            with pytest.raises(Refused) as caught:
                send(name, *ids, **fields)
            written.append(caught.value.error)

    def until(self, status: str, thread_id: str, run_id: str) -> JSON:
        """Poll a run until it has a status; how often that takes is nobody's promise."""
        while (run := self._client.call("get_run", thread_id, run_id))["status"] != status:
            assert run["status"] in ("queued", "in_progress", "cancelling"), run
        self.used.add("get_run")
        self.transcript.append(("until", self._plain(run)))
        return run

    def ids(self, page: JSON) -> list[str]:
        return [one["id"] for one in page["data"]]

    @contextmanager
    def _writing(self, name: str) -> Iterator[list[Any]]:
        before = len(self._server.requests)
        written: list[Any] = []
        yield written
        self.used.add(name)
        requests = self._plain(self._server.requests[before:])
        self.transcript.append((name, requests, self._plain(written[0])))

    def _plain(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._plain(item, name) for name, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if key.endswith("_at"):
            return "<time>"
        return ID.sub(self._number, value) if isinstance(value, str) else value

    def _number(self, found: re.Match[str]) -> str:
        prefix = found[0].partition("_")[0]
        return self._numbers.setdefault(found[0], f"{prefix}_#{len(self._numbers)}")


def without_nulls(value: Any) -> Any:
    """A null and an absent field are the same to a reader."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value
