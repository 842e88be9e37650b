"""Who is asking: the credentials of a request, and the headers that carry them.

A secret is never part of a `repr`, a log line, an error or a pickle: a value that cannot be sent is refused
by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

from orchestrator.client.headers import fits_header
from orchestrator.client.tokens import AsyncTokens, BlockingTokens, TokenProvider

__all__ = ["ApiKey", "AuthHeader", "Credentials"]

ApiKey: TypeAlias = str | TokenProvider
"""A key, or a function that returns a bearer token: asked once, and again when a server answers 401."""

AuthHeader: TypeAlias = Literal["authorization", "api-key"]
"""The header that carries a key; a provider's tokens are always bearer tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A key and the account it is used for.

    Attributes:
        api_key: The key, or where tokens come from; `None` sends neither.
        auth_header: The header that carries a key, `authorization` as a bearer token.
        organization: Sent as `OpenAI-Organization`.
        project: Sent as `OpenAI-Project`.

    Raises:
        ValueError: A value cannot stand in a header; the text does not repeat it.
    """

    api_key: str | AsyncTokens | BlockingTokens | None = field(default=None, repr=False)
    auth_header: AuthHeader = "authorization"
    organization: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        if self.auth_header not in ("authorization", "api-key"):
            raise ValueError(f"auth_header must be 'authorization' or 'api-key', got {self.auth_header!r}")
        for name in ("api_key", "organization", "project"):
            value = getattr(self, name)
            if value is None or isinstance(value, (AsyncTokens, BlockingTokens)):
                continue
            if not fits_header(value):
                raise ValueError(
                    f"{name} must be text that fits into a header:"
                    " not empty, ASCII, without line breaks or spaces around it"
                )

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: what is written somewhere is read by somebody.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a client and its credentials are not pickled: make a client where it is used")

    @property
    def tokens(self) -> AsyncTokens | BlockingTokens | None:
        """Where the tokens come from, or `None` without a provider."""
        return self.api_key if isinstance(self.api_key, (AsyncTokens, BlockingTokens)) else None

    def headers(self) -> dict[str, str]:
        """Return the headers that carry them, by lower-case name; a provider's token is not among them."""
        headers: dict[str, str] = {}
        if isinstance(self.api_key, str):
            is_bearer = self.auth_header == "authorization"
            headers[self.auth_header] = f"Bearer {self.api_key}" if is_bearer else self.api_key
        if self.organization is not None:
            headers["openai-organization"] = self.organization
        if self.project is not None:
            headers["openai-project"] = self.project
        return headers
