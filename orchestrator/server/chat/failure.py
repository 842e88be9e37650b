"""What a failed request to the model is called in a run's `last_error`.

Owns codes and texts. The owner of a run is told the status and, for a request that was refused, the
endpoint's own first line; never a URL, a key, a body or a stack trace.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.errors import APIConnectionError, APIStatusError, APITimeout
from orchestrator.server.models import FailureCode, ModelFailedError

if TYPE_CHECKING:
    from orchestrator.errors import APIError
    from orchestrator.server.chat.endpoint import Endpoint

__all__ = ["detail_of", "failure"]

_DETAIL_CHARS: Final = 200
_REFUSALS: Final = (400, 413, 422)
"""The statuses that blame the request."""


def failure(error: APIError, *, attempts: int, began: bool) -> ModelFailedError:
    """Return what a run fails with.

    Args:
        error: The last failure.
        attempts: How many requests were sent.
        began: Whether a part of the answer was passed on already.
    """
    times = f" to each of {attempts} attempts" if attempts > 1 else ""
    if isinstance(error, APIStatusError):
        status = f"HTTP {error.status}{_phrase(error.status)}"
        if error.status in _REFUSALS:
            detail = f": {error.message}" if error.message else "."
            return ModelFailedError(
                "invalid_prompt", f"The model's server refused the request with {status}{detail}"
            )
        limited = error.status == HTTPStatus.TOO_MANY_REQUESTS
        code: FailureCode = "rate_limit_exceeded" if limited else "server_error"
        return ModelFailedError(code, f"The model's server answered {status}{times}.")
    return ModelFailedError("server_error", _broken(error, attempts, began=began))


def detail_of(body: bytes, endpoint: Endpoint) -> str:
    """Return the first line of the message in an error's body, short and without secrets, or `""`."""
    try:
        found: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message"):
        if isinstance(found, dict):
            found = found.get(name, found.get("detail"))
    text = found if isinstance(found, str) else ""
    line = next(iter(text.strip().splitlines()), "")
    return endpoint.redacted(line)[:_DETAIL_CHARS]


def _broken(error: APIError, attempts: int, *, began: bool) -> str:
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    if isinstance(error, APIConnectionError) and not error.sent:
        return f"The model's server could not be reached{tried}."
    middle = " in the middle of its answer" if began else ""
    if isinstance(error, APITimeout):
        return f"The model's server was silent for too long{middle}."
    return f"The connection to the model's server broke{middle}{tried}."


def _phrase(status: int) -> str:
    try:
        return f" ({HTTPStatus(status).phrase})"
    except ValueError:
        return ""
