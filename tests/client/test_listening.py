"""What a client says about its requests: `on_response`, and the warning about a key in the clear."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from drivers import KEY, both, driven
from faulty_server import DONE, FaultyServer, chunks, event, failure, hang_up, reply
from middlemen import Proxy, port_of, proxying

from orchestrator.client import NO_RETRIES, AsyncThreadsClient, ThreadsClient
from orchestrator.errors import APIError, NotFoundError
from orchestrator.telemetry.logs import Event

THREAD = {"id": "thread_1", "object": "thread"}
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})

Heard = tuple[str, int, str | None]


class Ear:
    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.elapsed_s: list[float] = []
        self.threads: set[int] = set()

    def __call__(self, operation: str, status: int, headers: Mapping[str, str], elapsed_s: float) -> None:
        self.heard.append((operation, status, headers.get("x-request-id")))
        self.elapsed_s.append(elapsed_s)
        self.threads.add(threading.get_ident())


@both
def test_every_answer_is_told_errors_and_streams_included(kind: str) -> None:
    ear = Ear()
    script = [
        failure(429, {"X-Request-Id": "req_1"}),
        hang_up,
        reply(THREAD, headers={"X-Request-Id": "req_3"}),
        failure(404),
        chunks([CREATED, DONE], x_request_id="req_5"),
        failure(400),
    ]
    with FaultyServer(*script) as server, driven(kind, server.url, on_response=ear) as driver:
        driver.call("get_thread", "thread_1")
        with pytest.raises(NotFoundError):
            driver.call("get_run", "thread_1", "run_1")
        driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        with pytest.raises(APIError):
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
    assert ear.heard == [
        ("get_thread", 429, "req_1"),
        ("get_thread", 200, "req_3"),
        ("get_run", 404, None),
        ("stream_run", 200, "req_5"),
        ("stream_run", 400, None),
    ]
    assert all(0 < elapsed_s < 10 for elapsed_s in ear.elapsed_s)
    assert ear.threads == {threading.get_ident()}


@both
def test_a_listener_that_raises_is_logged_and_harms_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def deaf(*_: object) -> None:
        raise LookupError("nobody listens")

    with FaultyServer(default=reply(THREAD)) as server, driven(kind, server.url, on_response=deaf) as driver:
        assert driver.call("get_thread", "thread_1").id == "thread_1"
        assert driver.client.with_options(timeout=3.0).base_url == server.url
    (record,) = caplog.records
    assert isinstance(record.msg, Event)
    assert record.msg == {"event": "client.on_response_failed", "operation": "get_thread"}
    assert record.exc_info is not None


@both
def test_a_listener_must_be_a_plain_function(kind: str) -> None:
    client = ThreadsClient if kind == "sync" else AsyncThreadsClient

    async def listen(*_: object) -> None: ...

    class Listener:
        async def __call__(self, *_: object) -> None: ...

    for listener in (listen, Listener(), "print"):
        with pytest.raises(TypeError, match="on_response must be a plain function"):
            client("http://127.0.0.1/", on_response=listener)  # type: ignore[arg-type]  # what is refused


@pytest.fixture
def remote() -> Iterator[Proxy]:
    """A proxy through which two hosts that are not this machine can be asked."""
    with FaultyServer(default=reply(THREAD)) as server:
        port = port_of(server.url)
        with proxying({"one.example": port, "two.example": port}) as proxy:
            yield proxy


def exposures(caplog: pytest.LogCaptureFixture) -> list[str]:
    events = [record.msg for record in caplog.records if isinstance(record.msg, Event)]
    assert KEY not in caplog.text
    return [event["server"] for event in events if event["event"] == "client.key_exposed"]


@both
def test_a_key_in_the_clear_is_warned_of_once_for_each_client(
    kind: str, remote: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = f"http://127.0.0.1:{remote.port}"
    for _ in range(2):
        with driven(kind, "http://one.example/v1", proxy=proxy) as driver:
            driver.call("get_thread", "thread_1")
            driver.call("get_thread", "thread_1", base_url="http://two.example/v1", api_key=KEY)
            client, driver.client = driver.client, driver.client.with_options(timeout=5.0)
            driver.call("get_thread", "thread_1")
            driver.client = client
    assert exposures(caplog) == ["one.example"] * 2
    assert all(record.levelname == "WARNING" for record in caplog.records)


@both
@pytest.mark.parametrize("credential", ["key", "header", "provider"])
def test_a_key_in_the_clear_is_warned_of_wherever_a_call_takes_it(
    kind: str, credential: str, remote: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "key": {"api_key": KEY},
        "header": {"api_key": KEY, "headers": {"Authorization": KEY}},
        "provider": {"api_key": lambda: KEY},
    }
    settings = {"proxy": f"http://127.0.0.1:{remote.port}"}
    with driven(kind, "https://one.example/v1", **settings) as driver:
        driver.call("get_thread", "thread_1", base_url="http://two.example/v1", **ways[credential])
    assert exposures(caplog) == ["two.example"]


@both
def test_neither_this_machine_nor_an_encrypted_way_is_warned_of(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        for host in ("127.0.0.1", "localhost"):
            with driven(kind, server.url.replace("127.0.0.1", host)) as driver:
                driver.call("get_thread", "thread_1")
        url, settings = server.url.replace("http:", "https:"), {"retry": NO_RETRIES, "connect_timeout": 0.2}
        with driven(kind, url, **settings) as driver, pytest.raises(APIError):
            driver.call("get_thread", "thread_1")
    assert exposures(caplog) == []
