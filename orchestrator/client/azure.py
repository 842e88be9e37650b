"""Where Azure serves the protocol, told from an endpoint's path.

Azure OpenAI: the paths below `{endpoint}/openai`, a key in the `api-key` header or an Entra token. A Foundry
project: the paths below the project, Entra tokens only. Both want `api-version` in every query.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from orchestrator.client.auth import AuthHeader

__all__ = ["AzureServer", "azure_server"]

_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")

# Gateways put a path of their own before both.
_PROJECT: Final = re.compile(r"(/[^/]+)*/api/projects/[^/]+")
_OPENAI: Final = re.compile(r"(/[^/]+)*/openai")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureServer:
    """How to ask one.

    Attributes:
        base_url: Where the paths begin.
        query: Added to every request.
        auth_header: Where a key goes.
    """

    base_url: str
    query: tuple[tuple[str, str], ...]
    auth_header: AuthHeader


def azure_server(endpoint: str, api_version: str) -> AzureServer:
    """Read an endpoint as the portal shows it.

    Args:
        endpoint: `https://<resource>.openai.azure.com`, or
            `https://<resource>.services.ai.azure.com/api/projects/<project>`.
        api_version: Such as `"2024-05-01-preview"`; `"v1"` for a project.

    Raises:
        ValueError: It is neither, or the version is no version.
    """
    if not isinstance(api_version, str) or not _VERSION.fullmatch(api_version):
        raise ValueError(f"api_version must be a version such as '2024-05-01-preview', got {api_version!r}")
    parts = urlsplit(endpoint)
    if parts.query or parts.fragment:
        raise ValueError("endpoint must end with its path: api_version is an argument of its own")
    path = parts.path.rstrip("/")
    root = f"{parts.scheme}://{parts.netloc}"
    query = (("api-version", api_version),)
    if _PROJECT.fullmatch(path):
        return AzureServer(base_url=root + path, query=query, auth_header="authorization")
    if not path or _OPENAI.fullmatch(path):
        return AzureServer(base_url=root + (path or "/openai"), query=query, auth_header="api-key")
    raise ValueError(
        f"no Azure endpoint of this protocol has the path {parts.path!r}: Azure OpenAI's has none, or one"
        " that ends with /openai; a Foundry project's ends with /api/projects/<project>"
    )
