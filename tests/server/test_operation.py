"""What surrounds the operations: limits, the log, failures, other paths, and being mounted elsewhere."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from orchestrator.server import app as application
from orchestrator.testing import running_server
from server.speaker import Speaker
from server.told import telling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BETA = {"openai-beta": "assistants=v2"}


@pytest.mark.parametrize("prefix", ["/openai", "/openai/v1", "/api/projects/mine", "/api/projects/other"])
def test_azures_paths_version_and_key_reach_the_same_objects(speaker: Speaker, prefix: str) -> None:
    thread_id = speaker.thread("hello")
    root = speaker.server.base_url.removesuffix("/v1")
    answer = httpx.get(
        f"{root}{prefix}/threads/{thread_id}",
        params={"api-version": "v1"},
        headers={"api-key": speaker.server.api_key},
        trust_env=False,
    )
    assert answer.json() == speaker.ok("GET", f"/threads/{thread_id}")
    error = httpx.get(f"{root}{prefix}/threads/{thread_id}", headers=speaker.http.headers, trust_env=False)
    assert error.status_code == 200, "openai's way on Azure's path is as good"
    bare = {"api-key": speaker.server.api_key}
    refused = httpx.get(f"{root}{prefix}/threads/{thread_id}", headers=bare, trust_env=False)
    assert refused.json()["error"]["code"] == "invalid_beta"


def test_a_query_parameter_that_no_operation_knows_is_ignored(speaker: Speaker) -> None:
    assert speaker.ok("GET", "/assistants", params={"api-version": "1", "limit": "1", "unknown": "x"})
    speaker.ok("POST", "/threads", {}, params={"limit": "none"})


def test_headers_beyond_the_limit_are_refused_in_the_envelope(speaker: Speaker) -> None:
    for size, status in ((application.HEADER_LIMIT - 2_000, 200), (application.HEADER_LIMIT, 431)):
        answer = speaker.send("GET", "/assistants", headers={"x-filler": "x" * size})
        assert answer.status_code == status


def test_endless_headers_are_cut_off_before_they_fill_the_memory(speaker: Speaker) -> None:
    port = urlsplit(speaker.server.base_url).port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /v1/assistants HTTP/1.1\r\nhost: 127.0.0.1\r\nx-filler: ")
        sent = 0
        try:
            while sent < 16_000_000:
                sent += connection.send(b"x" * 65_536)
        except OSError:
            pass  # It does not read on.
        assert sent < 16_000_000
    speaker.ok("GET", "/assistants")


@pytest.mark.parametrize("path", ["/threads/thread_%00", "/assistants?after=%00"])
def test_a_nul_character_reaches_no_database(speaker: Speaker, path: str) -> None:
    assert "NUL" in speaker.http.get(path).json()["error"]["message"]
    error = speaker.refused(404, "POST", "/threads/runs", {"assistant_id": "asst_\0"})
    assert error["message"] == "No assistant found with id 'asst_\0'."


def test_ids_are_random_and_no_two_are_alike(speaker: Speaker) -> None:
    ids = {speaker.thread() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"thread_[0-9a-f]{24}", one) for one in ids)
    # Not one of the 24 places is the same in all of them, as it would be in a counter or a time.
    assert all(len(set(place)) > 1 for place in zip(*(one[-24:] for one in ids), strict=True))


def test_every_request_is_logged_once_without_body_query_or_key(caplog: pytest.LogCaptureFixture) -> None:
    with telling(caplog) as told, running_server() as server:
        speaker = Speaker(server)
        with speaker.http:
            answer = speaker.send(
                "POST", "/threads", {"metadata": {"k": "body-secret"}}, params={"q": "query-secret"}
            )
            level, event = told.get(timeout=10)
    assert (level, event["event"], event["method"], event["path"], event["status"]) == (
        "INFO",
        "server.request",
        "POST",
        "/v1/threads",
        200,
    )
    assert event["request_id"] == answer.headers["x-request-id"]
    assert event["ms"] >= 0
    assert told.empty()
    assert "secret" not in str(event)
    assert server.api_key not in str(event)


@asynccontextmanager
async def _mounted(db: Path) -> AsyncIterator[tuple[Starlette, httpx.AsyncClient]]:
    """The application below `/inner` of another one, which runs its lifespan."""
    inner = application.create_app(db=db, api_keys=["the-key"])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    outer = Starlette(routes=[Mount("/inner", app=inner)], lifespan=lifespan)
    # An exception must not leave the application: it would here.
    transport = httpx.ASGITransport(outer, raise_app_exceptions=True)
    headers = {**BETA, "api-key": "the-key"}
    async with (
        outer.router.lifespan_context(outer),
        httpx.AsyncClient(transport=transport, base_url="http://x.example/inner", headers=headers) as http,
    ):
        yield inner, http


def test_it_can_be_mounted_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with _mounted(tmp_path / "runs.sqlite") as (_, http):
            thread = (await http.post("/v1/threads", json={})).json()
            for prefix in ("/v1", "/openai"):
                assert (await http.get(f"{prefix}/threads/{thread['id']}")).json() == thread
            bare = {"api-key": ""}
            assert (await http.get("/healthz", headers=bare)).json() == {"status": "ok"}
            assert (await http.get(f"/v1/threads/{thread['id']}", headers=bare)).status_code == 401
            error = (await http.get("/v1/nowhere")).json()["error"]
            assert error["message"] == "Invalid URL (GET /inner/v1/nowhere)"
            key = {"idempotency-key": "k"}
            first = (await http.post("/v1/threads", json={}, headers=key)).json()
            assert (await http.post("/openai/threads", json={}, headers=key)).json() == first

    asyncio.run(main())


def test_a_failure_of_its_own_tells_the_caller_nothing_and_the_log_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> httpx.Response:
        async with _mounted(tmp_path / "runs.sqlite") as (inner, http):
            # The store is gone, as when its disk is.
            inner.state.store.close()
            return await http.get("/v1/threads/thread_X")

    with telling(caplog) as told:
        answer = asyncio.run(main())
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "The server had an error.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    level, event = told.get(timeout=10)
    assert (level, event["event"]) == ("ERROR", "server.request_failed")
    assert event["request_id"] == answer.headers["x-request-id"]
