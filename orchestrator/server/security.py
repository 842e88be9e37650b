"""Who may talk to the server, and as whom: keys, and what protects a server without one from web pages.

Owns the comparison of keys, the namespace that each of them opens, the rule about loopback, and which hosts
and origins count as local. Reads header values; knows nothing of routes.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.server.refusal import RefusalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["OPEN", "Gate", "is_loopback", "namespace_of"]

OPEN: Final = ""
"""The namespace of a server without keys."""

_SALT: Final = b"orchestrator server, namespace of a key, 1"
_COST: Final = {"n": 2**12, "r": 8, "p": 1}


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine and nothing else; brackets are allowed."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets a request in or raises.

    Without keys only local callers are served: `Host` must be loopback, which stops DNS rebinding, and a page
    of another origin is refused. With keys neither matters, since a page does not have one.

    Args:
        keys: The accepted API keys; only their hashes are kept, each of which takes some milliseconds.

    Attributes:
        namespaces: What the keys open, in their order; without keys, `OPEN`.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._known = {_hash(_bytes(key)): namespace_of(key) for key in keys}
        self.namespaces = tuple(self._known.values()) or (OPEN,)

    def admit(self, headers: Mapping[str, str]) -> str:
        """Check a request's headers; return the namespace that they open.

        Raises:
            RefusalError: 401 for a missing or wrong key, 403 for a foreign host or origin.
        """
        if not self._known:
            _check_local(headers)
            return OPEN
        # Headers are read as Latin-1, byte by byte; a key that is not ASCII was sent as UTF-8.
        given = _hash(_key(headers).encode("latin-1"))
        # Every key is compared, so that the time taken does not tell how many there are before the right one.
        opened = [namespace for known, namespace in self._known.items() if hmac.compare_digest(given, known)]
        if not opened:
            raise RefusalError(401, "Incorrect API key provided.", code="invalid_api_key")
        return opened[0]


def namespace_of(key: str) -> str:
    """Return the namespace that a key opens, which is stored with every object: a hash too slow to guess by.

    It is the same in every database, so that a key finds its objects again wherever they are served from.
    """
    return hashlib.scrypt(_bytes(key), salt=_SALT, dklen=16, **_COST).hex()


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
    if not key:
        raise RefusalError(
            401,
            "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or as 'api-key: KEY'.",
            code="invalid_api_key",
        )
    return key


def _check_local(headers: Mapping[str, str]) -> None:
    if not is_loopback(_host_of(f"//{headers.get('host', '')}")):
        raise RefusalError(403, "Without an API key this server answers only to a loopback 'Host'.")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        raise RefusalError(403, "Without an API key this server refuses requests of web pages.")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
