"""Where the model is: the URL as it was given, taken apart so that nothing secret is left in it.

Owns the address and the headers of every request, and taking secrets out of texts that leave the server.
Sends nothing.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

__all__ = ["BadEndpointError", "Endpoint"]

_PATH: Final = "/chat/completions"


class BadEndpointError(ValueError):
    """The URL or the key cannot be used; the text repeats neither a key nor a password."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Chat Completions endpoint.

    Attributes:
        url: Where requests go, without user and password.
        headers: What every request carries; holds the key, and stays out of `repr`.
        secrets: What must never leave the server.
    """

    url: str
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Endpoint:
        """Read a base URL such as `http://127.0.0.1:11434/v1`; `/chat/completions` is added if missing.

        Args:
            url: Its user and password become Basic authentication where there is no key; its query stays.
            key: Sent as a bearer token.

        Raises:
            BadEndpointError: It is no http(s) URL, or no header can carry the key.
        """
        parts = _split(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        path = parts.path.rstrip("/")
        if not path.endswith(_PATH):
            path += _PATH
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment="")
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",  # what is not compressed cannot unfold into more than was sent
        }
        if key:
            if not (key.isascii() and key.isprintable()) or key != key.strip():
                raise BadEndpointError("the model's key holds characters that no header can carry")
            headers["authorization"] = f"Bearer {key}"
        elif user or password:
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["authorization"] = f"Basic {basic}"
        return cls(urlunsplit(bare), headers, tuple(secret for secret in (key, password) if secret))

    def redacted(self, text: str) -> str:
        """Return a text of the endpoint's, without what is secret."""
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(character.isspace() for character in url):
        raise BadEndpointError("the model's URL must be such as http://127.0.0.1:11434/v1")
    return parts
