"""What a server may say without harm: where to go instead, what to remember, and more than can be kept."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from drivers import Driver, both, driven
from faulty_server import FaultyServer, chunks, reply

from orchestrator.client import NO_RETRIES, answers, stream
from orchestrator.errors import AmbiguousOutcome, APIResponseError, APIStatusError, InternalServerError

THREAD = {"id": "thread_1", "object": "thread"}
BOMB = gzip.compress(b" " * 10_000_000)

Ask = Callable[[Driver], Any]

WAYS: dict[str, Ask] = {
    "a look": lambda driver: driver.call("get_run", "thread_1", "run_1"),
    "a create": lambda driver: driver.call("create_run", "thread_1", assistant_id="asst_1"),
    "a stream": lambda driver: driver.stream("stream_run", "thread_1", assistant_id="asst_1"),
}
ways = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS.keys())


@both
@ways
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("auth_header", ["authorization", "api-key"])
def test_a_redirect_is_named_and_not_followed(kind: str, ask: Ask, status: int, auth_header: str) -> None:
    with FaultyServer(default=reply(THREAD)) as elsewhere:
        location = f"{elsewhere.url}/threads/thread_2"
        with FaultyServer(default=reply(b"", status, {"location": location})) as server:
            with (
                driven(kind, server.url, auth_header=auth_header) as driver,
                pytest.raises(APIStatusError, match=f"redirected to {location}") as caught,
            ):
                ask(driver)
            assert caught.value.status == status
            assert len(server.received) == 1
        assert elsewhere.accepted == 0


@both
def test_no_redirect_leads_to_another_path_of_the_same_server_either(kind: str) -> None:
    with FaultyServer(reply(b"", 307, {"location": "/v1/threads"})) as server:
        with (
            driven(kind, server.url) as driver,
            pytest.raises(APIStatusError, match="redirected to /v1/threads, which is not followed"),
        ):
            driver.call("create_thread")
        assert len(server.received) == 1


@both
@ways
def test_what_a_server_wants_remembered_is_forgotten(kind: str, ask: Ask) -> None:
    run = {"id": "run_1", "object": "thread.run", "status": "queued"}
    cookies = {"set-cookie": "session=1; Path=/; Max-Age=9999", "set-cookie2": "session=1"}
    with FaultyServer(default=reply(run, headers=cookies)) as server, driven(kind, server.url) as driver:
        for _ in range(2):
            ask(driver)
        assert not any("cookie" in one.headers for one in server.received)


@both
def test_an_errors_text_that_unpacks_to_too_much_is_cut(kind: str) -> None:
    step = reply(BOMB, 500, {"content-encoding": "gzip"})
    with FaultyServer(step) as server, driven(kind, server.url, retry=NO_RETRIES) as driver:
        with pytest.raises(InternalServerError) as caught:
            driver.call("get_thread", "thread_1")
        assert len(caught.value.body) == answers.MAX_ERROR_BYTES


@both
@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_an_event_that_unpacks_to_too_much_is_refused(
    kind: str, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    step = chunks([pack(b"data: " + b"x" * 50_000_000)], content_encoding=encoding)
    with FaultyServer(step) as server, driven(kind, server.url, retry=NO_RETRIES) as driver:
        with pytest.raises(AmbiguousOutcome, match="an event of the stream is larger than") as caught:
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert isinstance(caught.value.__cause__, APIResponseError)
        assert server.received[0].headers["accept-encoding"] == "identity"


@both
def test_an_answer_instead_of_a_stream_is_bounded_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_ANSWER_BYTES", 100_000)
    step = reply(BOMB, headers={"content-encoding": "gzip"})
    with FaultyServer(step) as server, driven(kind, server.url, retry=NO_RETRIES) as driver:
        with pytest.raises(AmbiguousOutcome, match="larger") as caught:
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert isinstance(caught.value.__cause__, APIResponseError)


@both
def test_an_id_that_could_change_its_path_is_sent_nowhere(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, driven(kind, server.url) as driver:
        for bad in ("../threads", "a/b", "a?b", "a\r\nx: y", "", "%2e%2e", "a#b", "..", "a\\b", "\x00"):
            with pytest.raises(ValueError, match="cannot be part of a path"):
                driver.call("get_thread", bad)
            with pytest.raises(ValueError, match="cannot be part of a path"):
                driver.stream("stream_run", bad, assistant_id="asst_1")
        assert server.accepted == 0
