"""Where a model is and which key it takes: what is sent there, and what is shown to nobody."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.server.chat import BadEndpointError, ChatModel, Endpoint


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host", "http://host/chat/completions"),
        ("http://host:11434/v1/", "http://host:11434/v1/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/x?api-version=1#y", "https://host/x/chat/completions?api-version=1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/chat/completions"),
    ],
)
def test_an_endpoint_s_url_is_completed(url: str, target: str) -> None:
    assert Endpoint.of(url).url == target


def test_the_url_s_own_credentials_are_sent_and_never_shown() -> None:
    endpoint = Endpoint.of("http://me:p%40ss@host/v1")
    assert endpoint.url == "http://host/v1/chat/completions"
    assert endpoint.headers["authorization"] == "Basic bWU6cEBzcw=="
    assert "p@ss" not in repr(endpoint)
    assert "bWU6" not in repr(endpoint)
    assert endpoint.redacted("p@ss is wrong") == "[secret] is wrong"
    assert "key" not in repr(Endpoint.of("http://host", "the-key"))


@pytest.mark.parametrize(
    "url", ["", "host/v1", "ftp://host", "http://", "http://h:99999", "http://a b/", "http://:secret@/"]
)
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadEndpointError, match="must be such as") as caught:
        Endpoint.of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "ключ", " padded"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(BadEndpointError, match="no header can carry") as caught:
        Endpoint.of("http://host", key)
    assert key not in str(caught.value)


def test_a_model_lives_only_inside_its_server() -> None:
    chat: Any = ChatModel(Endpoint.of("http://host"))
    assert chat._http is None, "nothing is opened before the server starts"
