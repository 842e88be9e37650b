"""No request outlives its time, whatever a server does meanwhile; on both clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from drivers import both, driven
from faulty_server import FaultyServer, Step, chunks, drip, event, head, stall

from orchestrator.client import NO_RETRIES
from orchestrator.errors import AmbiguousOutcome, APIResponseError, APITimeout

STREAM_HEAD = head(200, content_type="text/event-stream")
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})
ERROR = event("error", {"message": "overloaded"})

ENDLESS: dict[str, Step] = {
    "no answer": stall(),
    "dripping headers": drip(b"HTTP/1.1 200 OK\r\nx-slow:"),
    "a dripping body": drip(head(200, content_length="99999") + b"{"),
}


@contextmanager
def in_time() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 5.0


@both
@pytest.mark.parametrize("step", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_request_ends_in_its_time(kind: str, step: Step) -> None:
    with FaultyServer(step) as server, driven(kind, server.url, timeout=0.3, retry=NO_RETRIES) as driver:
        with in_time(), pytest.raises(APITimeout) as caught:
            driver.call("get_thread", "thread_1")
        assert caught.value.sent


@both
@pytest.mark.parametrize(
    "step",
    [stall(), drip(b"HTTP/1.1 200 OK\r\nx-slow:"), drip(STREAM_HEAD + b": not yet")],
    ids=["no answer", "dripping headers", "comments only"],
)
def test_a_stream_begins_in_the_time_of_a_request(kind: str, step: Step) -> None:
    with FaultyServer(step) as server, driven(kind, server.url, timeout=0.3, stream_idle_s=30.0) as driver:
        with in_time(), pytest.raises(AmbiguousOutcome) as caught:
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert isinstance(caught.value.__cause__, APITimeout)
        assert len(server.received) == 1


@both
def test_a_stream_that_begins_with_an_error_is_not_waited_for(kind: str) -> None:
    with FaultyServer(stall(STREAM_HEAD + ERROR)) as server, driven(kind, server.url, timeout=30.0) as driver:
        with in_time(), pytest.raises(AmbiguousOutcome, match="overloaded") as caught:
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert isinstance(caught.value.__cause__, APIResponseError)


@both
def test_a_stream_that_began_may_take_longer_than_a_request(kind: str) -> None:
    def parts() -> Iterator[bytes]:
        yield CREATED
        ends = time.monotonic() + 0.6
        while time.monotonic() < ends:
            time.sleep(0.05)  # the server's own pace, which is what the test is about
            yield b": still here\n"
        yield event("done", b"[DONE]")

    with FaultyServer(chunks(parts())) as server, driven(kind, server.url, timeout=0.3) as driver:
        events = driver.stream("stream_run", "thread_1", assistant_id="asst_1")
    assert [one.event for one in events] == ["thread.run.created", "done"]
