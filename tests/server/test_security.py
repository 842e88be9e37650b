"""Who may talk to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from orchestrator.server.security import is_loopback
from orchestrator.testing import running_server
from server.speaker import Speaker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def open_speaker() -> Iterator[Speaker]:
    """A client of a server without a key."""
    with running_server(api_key=None) as server:
        speaker = Speaker(server)
        with speaker.http:
            yield speaker


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic test-key"},
        {"authorization": "", "api-key": "wrong"},
        {"authorization": "Bearer test-key-and-more"},
    ],
)
def test_a_missing_or_wrong_key_is_refused(speaker: Speaker, headers: dict[str, str]) -> None:
    error = speaker.refused(401, "GET", "/assistants", headers=headers)
    assert error["code"] == "invalid_api_key"
    assert "wrong" not in error["message"]


def test_the_key_comes_first_so_that_strangers_learn_nothing(speaker: Speaker) -> None:
    speaker.refused(401, "GET", "/nowhere", headers={"authorization": "", "openai-beta": ""})


def test_the_key_may_come_in_its_own_header(speaker: Speaker) -> None:
    speaker.ok("GET", "/assistants", headers={"authorization": "", "api-key": "test-key"})


def test_a_key_need_not_be_ascii() -> None:
    with running_server(api_key="clé") as server:
        headers = {b"openai-beta": b"assistants=v2", b"authorization": "Bearer clé".encode()}
        assert httpx.get(f"{server.base_url}/assistants", headers=headers, trust_env=False).status_code == 200


def test_with_a_key_any_host_name_will_do(speaker: Speaker) -> None:
    speaker.ok("GET", "/assistants", headers={"host": "runs.example.org"})


def test_without_a_key_local_callers_need_none(open_speaker: Speaker) -> None:
    for host in ("localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8765"):
        open_speaker.ok("GET", "/assistants", headers={"host": host, "authorization": ""})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.7:80", "[::2]", "", "["]
)
def test_without_a_key_a_foreign_host_is_refused(open_speaker: Speaker, host: str) -> None:
    assert "loopback" in open_speaker.refused(403, "GET", "/assistants", headers={"host": host})["message"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_without_a_key_a_foreign_page_is_refused(open_speaker: Speaker, origin: str) -> None:
    assert "web pages" in open_speaker.refused(403, "POST", "/threads", headers={"origin": origin})["message"]


def test_without_a_key_a_local_page_is_served_but_never_allowed_across_origins(open_speaker: Speaker) -> None:
    response = open_speaker.send("POST", "/threads", headers={"origin": "http://localhost:3000"})
    assert response.status_code == 200
    preflight = open_speaker.send("OPTIONS", "/threads", headers={"origin": "http://localhost:3000"})
    assert preflight.status_code == 405


def test_health_needs_no_key(speaker: Speaker) -> None:
    url = speaker.server.base_url.removesuffix("/v1") + "/healthz"
    assert httpx.get(url, trust_env=False).json() == {"status": "ok"}


def test_a_name_is_loopback_only_if_it_can_be_nothing_else() -> None:
    assert all(map(is_loopback, ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]))
    assert not any(
        map(is_loopback, ["", "0.0.0.0", "::", "localhost.example", "127.0.0.1.example", "10.0.0.1"])
    )
