"""The way to a server: its certificate, and the proxies before it; on both clients, with real ones."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from drivers import both, driven
from faulty_server import FaultyServer, reply
from middlemen import port_of, proxying, tls_front

from orchestrator.client import NO_RETRIES, AsyncThreadsClient, ThreadsClient
from orchestrator.errors import APIConnectionError

CLIENTS = pytest.mark.parametrize("client", [AsyncThreadsClient, ThreadsClient])
THREAD = {"id": "thread_1", "object": "thread"}
NAME = "server.example"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", NAME).configure_cert(context)
    return context


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(default=reply(THREAD)) as server:
        yield server


def asks(kind: str, url: str, **settings: Any) -> None:
    with driven(kind, url, retry=NO_RETRIES, **settings) as driver:
        for _ in range(2):
            assert driver.call("get_thread", "thread_1").id == "thread_1"


@both
@pytest.mark.parametrize("given", ["path", "text", "context"])
def test_a_private_authority_is_trusted_when_it_is_named(
    kind: str, given: str, server: FaultyServer, certified: ssl.SSLContext, ca_file: Path
) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    verify = {"path": ca_file, "text": str(ca_file), "context": context}[given]
    with tls_front(server.url, certified) as port:
        asks(kind, f"https://127.0.0.1:{port}/v1", verify=verify)
    assert server.accepted == 1


@both
def test_the_environment_may_name_the_authority(
    kind: str,
    server: FaultyServer,
    certified: ssl.SSLContext,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    with tls_front(server.url, certified) as port:
        asks(kind, f"https://127.0.0.1:{port}/v1")


@both
@pytest.mark.parametrize("why", ["nobody vouches", "another name"])
def test_a_server_that_cannot_prove_itself_is_sent_nothing(
    kind: str, why: str, server: FaultyServer, certified: ssl.SSLContext, ca_file: Path
) -> None:
    verify, host = (None, "127.0.0.1") if why == "nobody vouches" else (ca_file, "localhost")
    with tls_front(server.url, certified) as port:
        with pytest.raises(APIConnectionError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            asks(kind, f"https://{host}:{port}/v1", verify=verify)
        assert not caught.value.sent
    assert server.received == []


@CLIENTS
def test_verification_cannot_be_turned_off_nor_told_nonsense(client: type, tmp_path: Path) -> None:
    for verify in (False, True, 3):
        with pytest.raises(TypeError, match="servers are always verified"):
            client("https://api.example/v1", api_key="k", verify=verify)
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ValueError, match=f"no CA certificates can be read from .*{path.name}"):
            client("https://api.example/v1", api_key="k", verify=path)


@CLIENTS
def test_a_proxy_that_cannot_be_one_is_refused_without_being_shown(client: type) -> None:
    for proxy in ("proxy.example:3128", "ftp://me:secret@proxy.example", "http://"):
        with pytest.raises(ValueError, match="proxy must begin with") as caught:
            client("https://api.example/v1", api_key="k", proxy=proxy)
        assert "secret" not in str(caught.value)
    for own in ({"proxy": "http://proxy.example"}, {"verify": ssl.create_default_context()}):
        with pytest.raises(ValueError, match="for our own transport"):
            client(
                "https://api.example/v1",
                api_key="k",
                transport=httpx.MockTransport(lambda _: httpx.Response(200)),
                **own,
            )


@both
def test_a_proxy_forwards_what_is_not_encrypted(kind: str, server: FaultyServer) -> None:
    with proxying({NAME: port_of(server.url)}) as proxy:
        asks(kind, f"http://{NAME}/v1", proxy=f"http://me:pw@127.0.0.1:{proxy.port}")
    assert proxy.requests == [f"GET http://{NAME}/v1/threads/thread_1"]
    assert proxy.credentials == ["Basic bWU6cHc="]
    assert server.accepted == 1


@both
def test_a_proxy_opens_a_tunnel_for_what_is_encrypted(
    kind: str, server: FaultyServer, certified: ssl.SSLContext, ca_file: Path
) -> None:
    with tls_front(server.url, certified) as port, proxying({NAME: port}) as proxy:
        given = httpx.Proxy(f"http://127.0.0.1:{proxy.port}", auth=("me", "pw"))
        asks(kind, f"https://{NAME}/v1", proxy=given, verify=ca_file)
    assert proxy.requests == [f"CONNECT {NAME}:443"]
    assert proxy.credentials == ["Basic bWU6cHc="]
    assert all("proxy-authorization" not in one.headers for one in server.received)


@both
def test_a_proxy_that_is_itself_asked_over_tls_is_verified_like_a_server(
    kind: str, server: FaultyServer, certified: ssl.SSLContext, ca_file: Path
) -> None:
    with (
        tls_front(server.url, certified) as port,
        proxying({NAME: port}, certified) as proxy,
    ):
        asks(kind, f"https://{NAME}/v1", proxy=f"https://127.0.0.1:{proxy.port}", verify=ca_file)
        with pytest.raises(APIConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            asks(kind, f"https://{NAME}/v1", proxy=f"https://127.0.0.1:{proxy.port}")
    assert proxy.requests == [f"CONNECT {NAME}:443"]


@both
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_the_environments_proxy_opens_tunnels(
    kind: str,
    variable: str,
    server: FaultyServer,
    certified: ssl.SSLContext,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tls_front(server.url, certified) as port, proxying({NAME: port}) as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        asks(kind, f"https://{NAME}/v1", verify=ca_file)
    assert proxy.requests == [f"CONNECT {NAME}:443"]


@both
@pytest.mark.parametrize("listed", ["127.0.0.1", "*", "other.example,127.0.0.1"])
def test_no_proxy_is_asked_for_a_host_that_the_environment_excepts(
    kind: str,
    listed: str,
    server: FaultyServer,
    certified: ssl.SSLContext,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tls_front(server.url, certified) as port, proxying({}) as proxy:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", listed)
        asks(kind, f"https://127.0.0.1:{port}/v1", verify=ca_file)
        asks(kind, server.url)
    assert proxy.requests == []


@both
def test_a_proxy_that_is_named_takes_every_request_whatever_the_environment_says(
    kind: str, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxying({NAME: port_of(server.url)}) as proxy, proxying({}) as other:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{other.port}")
        monkeypatch.setenv("NO_PROXY", NAME)
        asks(kind, f"http://{NAME}/v1", proxy=f"http://127.0.0.1:{proxy.port}")
    assert len(proxy.requests) == 1
    assert other.requests == []


@both
def test_a_proxy_that_cannot_reach_the_server_was_sent_nothing(kind: str, ca_file: Path) -> None:
    with proxying({}) as proxy:
        with pytest.raises(APIConnectionError, match="502") as caught:
            asks(kind, f"https://{NAME}/v1", proxy=f"http://127.0.0.1:{proxy.port}", verify=ca_file)
        assert not caught.value.sent
