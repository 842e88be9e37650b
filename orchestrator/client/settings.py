"""Where requests go and what goes with each: a client's settings, and a call's own over them.

Owns the defaults, the environment variables, and the rule that a key goes to no other server than the one
it was given for. Sends nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

import msgspec
from msgspec import structs

from orchestrator.client.auth import Credentials
from orchestrator.client.headers import checked_headers
from orchestrator.client.retry import RetryPolicy
from orchestrator.client.tokens import AsyncTokens, BlockingTokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.client.auth import ApiKey, AuthHeader
    from orchestrator.client.azure import AzureServer
    from orchestrator.client.call import Call, CallOptions
    from orchestrator.client.tokens import Token

__all__ = ["Account", "Request", "Settings"]

_DOTTED: Final = re.compile(r"[0-9]+(\.[0-9]+){3}")

_PORTS: Final = {"http": 80, "https": 443}

_ACCOUNT_HEADERS: Final = ("authorization", "api-key", "openai-organization", "openai-project")

# Another one in each process: a digest that found its way into a log cannot be tried against guessed keys.
_SALT: Final = os.urandom(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose limits requests count towards; equal for clients that share them. It holds no secret.

    Attributes:
        server: Where the paths begin.
        digest: Stands for the key, organization and project; another one in each process.
        provider: What gives the tokens, or `None`.
    """

    server: str
    digest: str
    provider: object = field(default=None, repr=False)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to be sent.

    Attributes:
        method: The HTTP method.
        base_url: Where its path begins, without a slash at the end.
        path: The path below the base URL.
        query: What follows it, with its question mark, or nothing.
        headers: By lower-case name; they hold the key, but no provider's token.
        content: The body, or `None`.
        timeout_s: Seconds for all of it, or for opening it when it streams.
        extensions: For the transport: the lane, and the time for each phase.
        tokens: Where its token comes from, or `None` when it needs none.
        exposes_key: Whether a key or token goes unencrypted to another machine.
    """

    method: str
    base_url: str
    path: str
    query: str
    headers: Mapping[str, str]
    content: bytes | None
    timeout_s: float
    extensions: dict[str, Any]
    tokens: AsyncTokens | BlockingTokens | None = None
    exposes_key: bool = False

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}>"  # neither the body nor a key

    @property
    def target(self) -> str:
        """What is asked for below the base URL."""
        return f"{self.path}{self.query}"

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.base_url}{self.path}{self.query}"

    def bearing(self, token: Token, *, timeout_s: float) -> Request:
        """Return the request with a token, to be sent within the time that is left."""
        headers = {**self.headers, "authorization": f"Bearer {token.value}"}
        return structs.replace(self, headers=headers, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a client was told, checked.

    Attributes:
        base_url: Where the paths begin, without a slash at the end.
        credentials: Sent with every request.
        tokens: What asks the token providers of this client.
        query: Added to every request's own.
        headers: Added to every request, by lower-case name.
        timeout_s: Seconds for one request.
        connect_timeout_s: The most of it for opening a connection.
        stream_idle_s: The longest silence in an open stream, in seconds.
        retry: The policy of calls that bring none.
    """

    base_url: str
    credentials: Credentials
    tokens: type[AsyncTokens] | type[BlockingTokens] = AsyncTokens
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    stream_idle_s: float = 45.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @classmethod
    def read(
        cls,
        *,
        base_url: str | None,
        api_key: ApiKey | None,
        auth_header: AuthHeader,
        tokens: type[AsyncTokens] | type[BlockingTokens],
        organization: str | None,
        project: str | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        connect_timeout_s: float,
        stream_idle_s: float,
        retry: RetryPolicy,
    ) -> Settings:
        """Check a client's arguments; what is `None` is looked up in the environment, now.

        Raises:
            ValueError: An argument makes no sense, or the base URL or key is missing.
            TypeError: A provider cannot be asked by `tokens`.
        """
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not base_url:
            raise ValueError("no server: pass base_url or set OPENAI_BASE_URL")
        settings = cls(
            base_url=_checked_url(base_url),
            credentials=Credentials(
                api_key=_credential(api_key or os.environ.get("OPENAI_API_KEY") or None, tokens),
                auth_header=auth_header,
                organization=organization or os.environ.get("OPENAI_ORG_ID") or None,
                project=project or os.environ.get("OPENAI_PROJECT_ID") or None,
            ),
            tokens=tokens,
            headers=checked_headers(headers or {}),
            timeout_s=_checked_seconds("timeout", timeout_s),
            connect_timeout_s=_checked_seconds("connect_timeout", connect_timeout_s),
            stream_idle_s=_checked_seconds("stream_idle_s", stream_idle_s),
            retry=retry,
        )
        settings.require_key()
        return settings

    @property
    def account(self) -> Account:
        """Whose limits the requests count towards."""
        said = {**self.credentials.headers(), **self.headers}
        text = "\n".join(said.get(name, "") for name in _ACCOUNT_HEADERS)
        tokens = self.credentials.tokens
        return Account(
            server=self.base_url,
            digest=hashlib.blake2b(text.encode(), digest_size=8, key=_SALT).hexdigest(),
            provider=None if tokens is None else tokens.identity,
        )

    def with_options(self, options: CallOptions) -> Settings:
        """Return these settings with a call's own over them.

        Raises:
            ValueError: A value makes no sense, or the key would go to a server it was not given for.
        """
        if not options:
            return self
        settings = self._at(options["base_url"], options) if "base_url" in options else self
        own: dict[str, Any] = {name: options[name] for name in ("organization", "project") if name in options}
        if "api_key" in options:
            own["api_key"] = _credential(options["api_key"], self.tokens)
        merged = replace(
            settings,
            credentials=replace(settings.credentials, **own),
            headers={**settings.headers, **checked_headers(options.get("headers") or {})},
            timeout_s=_checked_seconds("timeout", options.get("timeout", self.timeout_s)),
            retry=options.get("retry") or self.retry,
        )
        merged.require_key()
        return merged

    def on_azure(self, server: AzureServer) -> Settings:
        """Return these settings for a server of Azure's: no other account goes there, whatever was set."""
        credentials = Credentials(api_key=self.credentials.api_key, auth_header=server.auth_header)
        return replace(self, base_url=server.base_url, credentials=credentials, query=server.query)

    def request(self, call: Call[Any]) -> Request:
        """Return the request that a call becomes.

        Raises:
            ValueError: The call's options make no sense; see `with_options`.
        """
        settings = self.with_options(call.options)
        read_s = self.stream_idle_s if call.streams else settings.timeout_s
        # What comes before the first byte gets less than the whole, so that a request whose time ran out
        # altogether was sent, and one that was not says so with an error of its own.
        phases = {
            "pool": settings.timeout_s / 2,
            "connect": min(settings.connect_timeout_s, settings.timeout_s / 4),
            "write": settings.timeout_s,
            "read": read_s,
        }
        pairs = (*call.query, *settings.query)
        query = f"?{urlencode(pairs)}" if pairs else ""
        headers = settings.headers_for(call)
        # A header of the user's own stands over the provider.
        tokens = settings.credentials.tokens if "authorization" not in headers else None
        has_key = tokens is not None or "authorization" in headers or "api-key" in headers
        return Request(
            method=call.method,
            base_url=settings.base_url,
            path=call.path,
            query=query,
            headers=headers,
            content=call.body,
            timeout_s=settings.timeout_s,
            extensions={"timeout": phases, "lane": call.lane},
            tokens=tokens,
            exposes_key=has_key and _is_exposed(settings.base_url),
        )

    def headers_for(self, call: Call[Any]) -> dict[str, str]:
        """Return all the headers of a call, by lower-case name; the user's own win."""
        headers = {
            "accept": "text/event-stream" if call.streams else "application/json",
            # A compressed stream arrives late: encoders wait for enough to compress.
            "accept-encoding": "identity" if call.streams else "gzip, deflate",
            "user-agent": "run-orchestrator",
            "openai-beta": "assistants=v2",
        }
        if call.body is not None:
            headers["content-type"] = "application/json"
        if call.nonce is not None:
            headers["idempotency-key"] = call.nonce
        return {**headers, **self.credentials.headers(), **self.headers}

    def _at(self, base_url: str, options: CallOptions) -> Settings:
        base_url = _checked_url(base_url)
        if _origin(base_url) == _origin(self.base_url):
            return replace(self, base_url=base_url)
        if "api_key" not in options and self.credentials.api_key is not None:
            raise ValueError(
                f"base_url {base_url} is another server than {self.base_url}: pass the api_key for it too"
            )
        return replace(self, base_url=base_url, credentials=Credentials(), headers={}, query=())

    def require_key(self) -> None:
        """Refuse to go on without a key, except to this machine.

        Raises:
            ValueError: There is none.
        """
        if self.credentials.api_key is None and not _is_loopback(self.base_url):
            raise ValueError(f"no key for {self.base_url}: pass api_key or set OPENAI_API_KEY")


def _credential(
    api_key: ApiKey | None, tokens: type[AsyncTokens] | type[BlockingTokens]
) -> str | AsyncTokens | BlockingTokens | None:
    return tokens(api_key) if callable(api_key) else api_key


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname or not base_url.isprintable() or " " in base_url:
        raise ValueError("base_url must begin with http:// or https:// and name a host")
    if "@" in parts.netloc:
        raise ValueError("base_url must not hold a user name or password: pass api_key")
    if parts.query or parts.fragment:
        raise ValueError("base_url must end with its path, without query and fragment")
    _port(parts)
    try:
        _check_host(parts.hostname)
    except ValueError:
        raise ValueError(f"base_url names no possible host: {parts.hostname!r}") from None
    return base_url.rstrip("/")


def _check_host(host: str) -> None:
    # What is refused here, the HTTP library or the resolver would refuse only when a request is under way.
    if _DOTTED.fullmatch(host):
        ip_address(host)
    host.encode("idna")


def _port(parts: SplitResult) -> int:
    return parts.port if parts.port is not None else _PORTS[parts.scheme]


def _origin(base_url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(base_url)
    return parts.scheme, parts.hostname, _port(parts)


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=64)  # asked for each request, and it takes as long as the rest of one
def _is_exposed(base_url: str) -> bool:
    return urlsplit(base_url).scheme == "http" and not _is_loopback(base_url)


def _checked_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    return float(value)
