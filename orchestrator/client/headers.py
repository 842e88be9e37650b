"""What may stand in a request's headers; a value that may not is refused without being shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["checked_headers", "fits_header"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?|")

# A wrong one breaks a request off halfway, and nobody knows then what the server made of it.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


def fits_header(value: object) -> bool:
    """Say whether a value is text that a header can carry as it is, and not empty."""
    return isinstance(value, str) and bool(value) and _VALUE.fullmatch(value) is not None


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
