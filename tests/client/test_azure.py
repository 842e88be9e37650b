"""Azure's servers: where they are asked, with which key, and that neither goes anywhere else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from drivers import KEY, Driver, both, driven
from faulty_server import DONE, FaultyServer, chunks, event, failure, reply

from orchestrator import Orchestrator, tool
from orchestrator.client import ApiKey, AsyncThreadsClient, ThreadsClient
from orchestrator.client.azure import azure_server
from orchestrator.client.options import AsyncClientOptions, BlockingClientOptions
from orchestrator.testing import running_server

CLIENTS = pytest.mark.parametrize("client", [AsyncThreadsClient, ThreadsClient])
THREAD = {"id": "thread_1", "object": "thread"}
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})
VERSION = "2024-05-01-preview"
PROJECT = "/api/projects/weather"


@pytest.fixture(autouse=True)
def another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment holds for another server."""
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "not-for-azure")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.openai.com/v1")


@contextmanager
def on_azure(
    kind: str, server: FaultyServer, path: str = "", version: str = VERSION, api_key: ApiKey = KEY
) -> Iterator[Driver]:
    """Drive a client of `for_azure`."""
    with driven(kind, server.url) as driver:
        endpoint = server.url.removesuffix("/v1") + path
        # The one that it replaces opened nothing.
        driver.client = type(driver.client).for_azure(endpoint, version, api_key=api_key)
        yield driver


@both
def test_azure_openai_is_asked_below_its_own_path_with_its_own_header(kind: str) -> None:
    script = [reply(THREAD), reply(THREAD), chunks([CREATED, DONE])]
    with FaultyServer(*script) as server, on_azure(kind, server) as driver:
        driver.call("create_thread")
        driver.call("get_run", "thread_1", "run_1")
        driver.stream("stream_run", "thread_1", assistant_id="asst_1", include=["x"])
        created, got, streamed = server.received
    assert created.target == f"/openai/threads?api-version={VERSION}"
    assert got.target == f"/openai/threads/thread_1/runs/run_1?api-version={VERSION}"
    assert streamed.target == f"/openai/threads/thread_1/runs?include%5B%5D=x&api-version={VERSION}"
    for one in (created, got, streamed):
        assert one.headers["api-key"] == KEY
        assert "authorization" not in one.headers
        assert not any("not-for-azure" in value for value in one.headers.values())


@both
def test_azure_openai_takes_tokens_too(kind: str) -> None:
    tokens = iter(["old", "new"])
    with (
        FaultyServer(failure(401), default=reply(THREAD)) as server,
        on_azure(kind, server, "/openai/", api_key=lambda: next(tokens)) as driver,
    ):
        driver.call("get_thread", "thread_1")
        assert [one.headers["authorization"] for one in server.received] == ["Bearer old", "Bearer new"]
        assert {one.target for one in server.received} == {f"/openai/threads/thread_1?api-version={VERSION}"}
        assert not any("api-key" in one.headers for one in server.received)


@both
def test_a_foundry_project_is_asked_below_its_path_with_tokens(kind: str) -> None:
    with (
        FaultyServer(default=reply(THREAD)) as server,
        on_azure(kind, server, PROJECT + "/", "v1", api_key=lambda: "entra") as driver,
    ):
        driver.call("get_assistant", "asst_1")
    assert server.received[0].target == f"{PROJECT}/assistants/asst_1?api-version=v1"
    assert server.received[0].headers["authorization"] == "Bearer entra"


@both
def test_a_call_may_bring_its_own_azure_key(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, on_azure(kind, server) as driver:
        driver.call("get_thread", "thread_1", api_key="other")
        driver.call("get_thread", "thread_1", api_key=lambda: "entra")
        driver.call("get_thread", "thread_1", base_url=server.url, headers={"x-more": "1"})
        keyed, token, elsewhere = server.received
    assert keyed.headers["api-key"] == "other"
    assert (token.headers["authorization"], "api-key" in token.headers) == ("Bearer entra", False)
    assert elsewhere.target == f"/v1/threads/thread_1?api-version={VERSION}"
    assert elsewhere.headers["api-key"] == KEY


@both
def test_neither_azures_key_nor_its_query_goes_to_another_server(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, FaultyServer(default=reply(THREAD)) as other:
        with on_azure(kind, server) as driver:
            with pytest.raises(ValueError, match="pass the api_key for it too"):
                driver.call("get_thread", "thread_1", base_url=other.url)
            driver.call("get_thread", "thread_1", base_url=other.url, api_key="sk-other")
        assert server.received == []
    (received,) = other.received
    assert received.target == "/v1/threads/thread_1"
    assert received.headers["authorization"] == "Bearer sk-other"
    assert KEY not in str(received)


@pytest.mark.parametrize(
    ("endpoint", "base_url", "auth_header"),
    [
        ("https://r.openai.azure.com", "https://r.openai.azure.com/openai", "api-key"),
        ("https://r.openai.azure.com/openai/", "https://r.openai.azure.com/openai", "api-key"),
        ("https://gateway.example/team/openai", "https://gateway.example/team/openai", "api-key"),
        (
            "https://r.services.ai.azure.com/api/projects/p/",
            "https://r.services.ai.azure.com/api/projects/p",
            "authorization",
        ),
        (
            "https://gateway.example/team/api/projects/p",
            "https://gateway.example/team/api/projects/p",
            "authorization",
        ),
    ],
)
def test_an_endpoints_path_says_which_server_it_is(endpoint: str, base_url: str, auth_header: str) -> None:
    server = azure_server(endpoint, "v1")
    assert (server.base_url, server.auth_header) == (base_url, auth_header)
    assert server.query == (("api-version", "v1"),)


@CLIENTS
@pytest.mark.parametrize(
    ("endpoint", "version", "hint"),
    [
        ("r.openai.azure.com", VERSION, "no Azure endpoint|must begin with http"),
        ("ftp://r.openai.azure.com", VERSION, "must begin with http"),
        ("https://", VERSION, "name a host"),
        ("https://me:pw@r.openai.azure.com", VERSION, "user name or password"),
        ("https://r.services.ai.azure.com/api/projects", "v1", "a Foundry project's ends with"),
        ("https://r.services.ai.azure.com/api/projects/p/agents", "v1", "a Foundry project's ends with"),
        ("https://r.openai.azure.com/openai/v1", VERSION, "ends with /openai"),
        ("https://r.openai.azure.com/openai/deployments/d", VERSION, "ends with /openai"),
        (f"https://r.openai.azure.com/openai?api-version={VERSION}", VERSION, "argument of its own"),
        ("https://r.openai.azure.com#x", VERSION, "argument of its own"),
        ("https://r.openai.azure.com", "", "api_version must be"),
        ("https://r.openai.azure.com", None, "api_version must be"),
        ("https://r.openai.azure.com", "v1&x=y", "api_version must be"),
    ],
)
def test_an_endpoint_that_is_none_is_refused(client: Any, endpoint: str, version: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        client.for_azure(endpoint, version, api_key=KEY)
    assert "pw" not in str(caught.value)
    assert KEY not in str(caught.value)


@CLIENTS
def test_the_environments_key_is_not_azures(client: Any) -> None:
    for key in ("", None):
        with pytest.raises(
            ValueError, match=r"no key for https://r\.openai\.azure\.com/openai: pass api_key"
        ):
            client.for_azure("https://r.openai.azure.com", VERSION, api_key=key)


@CLIENTS
def test_azures_clients_take_every_option_and_no_other(client: Any) -> None:
    parameters = set(inspect.signature(client.__init__).parameters)
    options = AsyncClientOptions if client is AsyncThreadsClient else BlockingClientOptions
    own = {"self", "base_url", "api_key", "auth_header", "organization", "project"}
    assert parameters - own == options.__optional_keys__
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        client.for_azure("https://r.openai.azure.com", VERSION, api_key=KEY, colour="red")


@both
def test_a_key_may_travel_as_api_key_to_any_server(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url, auth_header="api-key") as driver:
            driver.call("get_thread", "thread_1")
        assert server.received[0].headers["api-key"] == KEY
        assert "authorization" not in server.received[0].headers
    with pytest.raises(ValueError, match="auth_header must be"):
        ThreadsClient("http://127.0.0.1/", auth_header="x-key")  # type: ignore[arg-type]  # what is refused


class Azure(httpx.AsyncHTTPTransport):
    """Azure's address in front of a server that has none: asks for the version, and drops the path's root."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.params["api-version"] == VERSION
        assert request.headers["api-key"] == KEY
        url = str(request.url.copy_with(query=None))
        request.url = httpx.URL(url.replace("/openai/", "/v1/"))
        return await super().handle_async_request(request)


def test_runs_are_orchestrated_on_azure() -> None:
    @tool
    def double(number: int) -> int:
        """Double a number."""
        return 2 * number

    rule = {
        "match": "double",
        "steps": [{"call": {"tool": "double", "arguments": {"number": 21}}}, {"say": "ok"}],
    }
    with running_server([rule], api_key=KEY) as server:
        with ThreadsClient(server.base_url, api_key=KEY) as setup:
            assistant = setup.create_assistant(model="rules", tools=[double.definition()])
        endpoint = server.base_url.removesuffix("/v1")
        client = AsyncThreadsClient.for_azure(endpoint, VERSION, api_key=KEY, transport=Azure())
        with Orchestrator(client=client, tools=[double]) as orchestrator:
            result = orchestrator.start(assistant.id, messages="double 21").result(timeout=30)
    assert result.raise_for_status().text == "ok"
    assert [call.output for call in result.tool_calls] == ["42"]
