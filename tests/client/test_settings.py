"""Where requests go, what they carry, and that a key stays where it belongs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import subprocess
import sys
import traceback
from typing import Any

import httpx
import pytest
from drivers import KEY, both, driven
from faulty_server import FaultyServer, failure, hang_up, raw, refused_url, reply

from orchestrator.client import AsyncThreadsClient, RetryPolicy, ThreadsClient, endpoints
from orchestrator.errors import APIError, OrchestratorClosed, OrchestratorError

THREAD = {"id": "thread_1", "object": "thread"}
VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
CLIENTS = pytest.mark.parametrize("client", [AsyncThreadsClient, ThreadsClient])


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@both
def test_a_request_carries_the_protocols_headers_and_the_credentials(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(
            kind, server.url + "/", organization="org-1", project="proj_1", headers={"X-Own": "1"}
        ) as driver:
            driver.call("create_thread", headers={"x-own": "2", "X-More": "3"})
            driver.call("get_thread", "thread_1")
        posted, got = server.received
    assert posted.target == "/v1/threads"
    expected = {
        "authorization": f"Bearer {KEY}",
        "openai-beta": "assistants=v2",
        "openai-organization": "org-1",
        "openai-project": "proj_1",
        "x-own": "2",
        "x-more": "3",
        "content-type": "application/json",
        "accept": "application/json",
    }
    assert posted.headers.items() >= expected.items()
    assert got.headers["x-own"] == "1"
    assert "content-type" not in got.headers


@both
def test_the_environment_stands_in_for_missing_arguments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        for name, value in zip(VARIABLES, (server.url, "sk-env", "org-env", "proj-env"), strict=True):
            monkeypatch.setenv(name, value)
        with driven(kind, None, api_key=None, project="proj-own") as driver:
            for name in VARIABLES:
                monkeypatch.delenv(name)
            driver.call("get_thread", "thread_1")
        headers = server.received[0].headers
    assert headers["authorization"] == "Bearer sk-env"
    assert headers["openai-organization"] == "org-env"
    assert headers["openai-project"] == "proj-own"


@CLIENTS
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"api_key": "k"}, "pass base_url or set OPENAI_BASE_URL"),
        ({"base_url": "https://api.example/v1"}, "pass api_key or set OPENAI_API_KEY"),
        ({"base_url": "api.example/v1", "api_key": "k"}, "must begin with http"),
        ({"base_url": "ftp://api.example/v1", "api_key": "k"}, "must begin with http"),
        ({"base_url": "http://", "api_key": "k"}, "name a host"),
        ({"base_url": "http://a b/", "api_key": "k"}, "name a host"),
        ({"base_url": "http://a:99999/", "api_key": "k"}, "[Pp]ort"),
        ({"base_url": "https://me:pw@api.example/v1", "api_key": "k"}, "user name or password"),
        ({"base_url": "https://api.example/v1?x=1", "api_key": "k"}, "end with its path"),
        ({"base_url": "http://127.0.0.1/", "timeout": None}, "timeout must be"),
        ({"base_url": "http://127.0.0.1/", "timeout": 0}, "timeout must be"),
        ({"base_url": "http://127.0.0.1/", "timeout": float("inf")}, "timeout must be"),
        ({"base_url": "http://127.0.0.1/", "stream_idle_s": -1}, "stream_idle_s must be"),
        ({"base_url": "http://127.0.0.1/", "headers": {"a b": "c"}}, "not a header name"),
        ({"base_url": "http://127.0.0.1/", "headers": {"Content-Length": "0"}}, "only the transport knows"),
        ({"base_url": "http://a..b/", "api_key": "k"}, "no possible host"),
        ({"base_url": f"http://{'a' * 64}.example/", "api_key": "k"}, "no possible host"),
        ({"base_url": "http://999.1.1.1/", "api_key": "k"}, "no possible host"),
    ],
)
def test_a_mistake_is_named_when_the_client_is_made(
    client: type, arguments: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ValueError, match=hint):
        client(**arguments)


@CLIENTS
@pytest.mark.parametrize("bad", ["sk-top\n", " sk-top", "sk-top\r\nX: y", "sk-töp", "sk-top\0"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(client: type, bad: str) -> None:
    with pytest.raises(ValueError, match="api_key must be text") as caught:
        client(base_url="http://127.0.0.1/", api_key=bad)
    assert "sk-t" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValueError, match="'x-key'") as caught:
        client(base_url="http://127.0.0.1/", headers={"x-key": bad})
    assert "sk-t" not in str(caught.value)
    with pytest.raises(ValueError, match="without query") as caught:
        client(base_url="https://api.example/v1?api-key=sk-t", api_key="k")
    assert "sk-t" not in str(caught.value)


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_may_be_asked_without_a_key(kind: str, host: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url.replace("127.0.0.1", host), api_key=None) as driver:
            driver.call("get_thread", "thread_1")
        assert "authorization" not in server.received[0].headers


@both
def test_a_call_may_bring_its_own_credentials(kind: str) -> None:
    with (
        FaultyServer(default=reply(THREAD)) as server,
        driven(kind, server.url, organization="org-1") as driver,
    ):
        driver.call("get_thread", "thread_1", api_key="sk-other", organization="org-2", project="p-2")
        driver.call("get_thread", "thread_1")
    other, own = (one.headers for one in server.received)
    assert other["authorization"] == "Bearer sk-other"
    assert (other["openai-organization"], other["openai-project"]) == ("org-2", "p-2")
    assert own["authorization"] == f"Bearer {KEY}"
    assert (own["openai-organization"], "openai-project" in own) == ("org-1", False)


@both
def test_a_key_goes_to_no_other_server_and_neither_does_what_came_with_it(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, FaultyServer(default=reply(THREAD)) as other:
        settings: dict[str, Any] = {"organization": "org-1", "headers": {"api-key": "secret"}}
        with driven(kind, server.url, **settings) as driver:
            with pytest.raises(ValueError, match="pass the api_key for it too"):
                driver.call("get_thread", "thread_1", base_url=other.url)
            with pytest.raises(ValueError, match="pass the api_key for it too"):
                driver.client.with_options(base_url=other.url)
            driver.call("get_thread", "thread_1", base_url=other.url, api_key="sk-other")
            driver.call("get_thread", "thread_1", base_url=server.url.replace("/v1", "/v2"))
        assert [one.target for one in server.received] == ["/v2/threads/thread_1"]
    headers = other.received[0].headers
    assert headers["authorization"] == "Bearer sk-other"
    assert "openai-organization" not in headers
    assert "api-key" not in headers


@both
def test_no_key_shows_in_reprs_errors_logs_or_tracebacks(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    retry = RetryPolicy(attempts=2, base_s=0)
    with (
        FaultyServer(hang_up, failure(401), raw(b"garbage\r\n\r\n"), failure(500)) as server,
        driven(kind, server.url, retry=retry) as driver,
    ):
        shown = [repr(driver.client), str(vars(driver.client)), repr(driver.client._settings)]
        for options in (
            {},
            {"api_key": "sk-very-secret-too"},
            {"base_url": refused_url(), "api_key": KEY},
        ):
            with pytest.raises(OrchestratorError) as caught:
                driver.call("get_thread", "thread_1", **options)
            shown += ["".join(traceback.format_exception(caught.value)), repr(vars(caught.value))]
        shown.append(repr(endpoints.get_run("t", "r", api_key=KEY)))
        shown.append(repr(driver.client._settings.request(endpoints.get_run("t", "r"))))
    assert caplog.records
    assert KEY not in "\n".join(shown) + caplog.text


@both
def test_clients_with_other_options_share_the_connections_and_leave_them_open(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, driven(kind, server.url) as driver:
        client = driver.client
        for key in (KEY, "sk-other"):
            driver.client = client.with_options(api_key=key)
            driver.call("get_thread", "thread_1")
            if kind == "sync":
                driver.client.close()
            else:
                asyncio.run(driver.client.aclose())
        driver.client = client
        driver.call("get_thread", "thread_1")
        assert server.accepted == 1
        assert [one.headers["authorization"] for one in server.received][1:] == [
            "Bearer sk-other",
            f"Bearer {KEY}",
        ]
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            client.with_options(colour="red")


@both
def test_a_closed_client_says_so(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url) as driver:
            pass
        if kind == "sync":
            with pytest.raises(OrchestratorClosed):
                driver.call("get_thread", "thread_1")
        else:
            with pytest.raises(OrchestratorClosed):
                asyncio.run(driver.client.get_thread("thread_1"))
        assert server.accepted == 0


def test_an_async_client_belongs_to_the_loop_that_used_it_first() -> None:
    with FaultyServer(default=reply(THREAD)) as server, driven("async", server.url) as driver:
        driver.call("get_thread", "thread_1")
        with pytest.raises(RuntimeError, match="make one for each loop"):
            asyncio.run(driver.client.get_thread("thread_1"))


def _in_child(client: ThreadsClient, reports: Any) -> None:
    try:
        client.get_thread("thread_1")
    except OrchestratorClosed as error:
        client.close()
        reports.put(str(error))


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*:DeprecationWarning"
)  # the test's own server has threads
def test_a_client_inherited_by_a_fork_says_so_and_harms_nothing() -> None:
    context = multiprocessing.get_context("fork")
    with FaultyServer(default=reply(THREAD)) as server, driven("sync", server.url) as driver:
        driver.call("get_thread", "thread_1")
        reports = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(driver.client, reports))
        child.start()
        child.join()
        assert "fork" in reports.get()
        driver.call("get_thread", "thread_1")
        assert server.accepted == 1


@both
def test_any_httpx_transport_can_be_passed_in(kind: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": request.url.path})

    with driven(kind, "http://server.example/v1", transport=httpx.MockTransport(answer)) as driver:
        assert driver.call("get_thread", "thread_1").id == "/v1/threads/thread_1"


@both
def test_an_error_that_is_not_httpxs_own_is_a_connection_error_and_counts_as_sent(kind: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise LookupError("some transport's own")

    with (
        driven(kind, "http://server.example/v1", transport=httpx.MockTransport(fail)) as driver,
        pytest.raises(APIError) as caught,
    ):
        driver.attempt(endpoints.get_thread("thread_1"))
    assert getattr(caught.value, "sent", None) is True


@CLIENTS
def test_a_method_is_described_by_its_endpoint(client: type) -> None:
    for name in set(endpoints.__all__) - {"CallOptions"}:
        method, endpoint = getattr(client, name), getattr(endpoints, name)
        assert (method.__name__, method.__doc__) == (name, endpoint.__doc__)
        assert list(inspect.signature(method).parameters)[1:] == list(inspect.signature(endpoint).parameters)


def test_importing_the_client_imports_no_http_library() -> None:
    code = (
        "import sys, orchestrator.client, orchestrator.client.endpoints;"
        "print([name for name in ('httpx', 'httpcore', 'anyio', 'pydantic') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
