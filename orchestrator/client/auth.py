"""Who is asking: the credentials of a request, and the headers that carry them.

A secret is never part of a `repr`, a log line or an error: a value that cannot be sent is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Credentials", "checked_headers"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?|")

# A wrong one breaks a request off halfway, and nobody knows then what the server made of it.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A key and the account it is used for.

    Attributes:
        api_key: Sent as a bearer token; `None` sends no `Authorization`.
        organization: Sent as `OpenAI-Organization`.
        project: Sent as `OpenAI-Project`.

    Raises:
        ValueError: A value cannot stand in a header; the text does not repeat it.
    """

    api_key: str | None = field(default=None, repr=False)
    organization: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        for name in ("api_key", "organization", "project"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value or not _VALUE.fullmatch(value)):
                raise ValueError(
                    f"{name} must be text that fits into a header:"
                    " not empty, ASCII, without line breaks or spaces around it"
                )

    def headers(self) -> dict[str, str]:
        """Return the headers that carry them, by lower-case name."""
        headers = {}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        if self.organization is not None:
            headers["openai-organization"] = self.organization
        if self.project is not None:
            headers["openai-project"] = self.project
        return headers


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by lower-case name.

    Refused here, because the HTTP library would name the value, which may be a secret, in its error.

    Raises:
        ValueError: A name or a value cannot be sent; the text does not repeat the value.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if name.lower() in _FRAMING:
            raise ValueError(f"header {name!r} says how long the body is, which only the transport knows")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"the value of header {name!r} must be ASCII text without line breaks")
    return {name.lower(): value for name, value in headers.items()}
