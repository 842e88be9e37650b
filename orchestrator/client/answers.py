"""What a server's answer means: a value, or an error of the tree in `orchestrator.errors`.

Pure functions over status, headers and body. How far a body is read is decided here too, so that no server
can fill the memory. Knows nothing of sockets; what a broken connection means is `transport.api_error`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from orchestrator.client.call import Answer
from orchestrator.errors import APIResponseError, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.client.call import Call
    from orchestrator.errors import APIStatusError

__all__ = ["MAX_ANSWER_BYTES", "MAX_ERROR_BYTES", "answer", "body_limit", "is_success", "too_large"]

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""The most of an answer that is read, decompressed; more is an error."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""The most of an error's body that is read; the rest is left unread."""


def is_success(status: int) -> bool:
    """Say whether a status promises what was asked for."""
    return 200 <= status < 300


def body_limit(status: int) -> int:
    """Return how many decompressed bytes of a body to read."""
    return MAX_ANSWER_BYTES if is_success(status) else MAX_ERROR_BYTES


def answer(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> Answer[T]:
    """Decode what a server answered.

    Args:
        call: What was asked.
        status: The HTTP status.
        headers: By lower-case name.
        body: As much of the body as was read.

    Raises:
        APIStatusError: The status is not a success; the class goes by the status.
        APIResponseError: The body is not what the operation answers with.
    """
    if not is_success(status):
        raise _status_error(call, status, headers, body)
    request_id = headers.get("x-request-id")
    try:
        value = call.decode(body)
    except (ValueError, RecursionError) as error:
        raise APIResponseError(
            f"the answer to {call.operation} cannot be understood: {error}",
            method=call.method,
            path=call.path,
            request_id=request_id,
        ) from error
    return Answer(value=value, status=status, headers=headers, request_id=request_id)


def too_large(call: Call[Any], headers: Mapping[str, str]) -> APIResponseError:
    """Return the error for a successful answer that goes on past `MAX_ANSWER_BYTES`."""
    return APIResponseError(
        f"the answer to {call.operation} is larger than {MAX_ANSWER_BYTES} bytes",
        method=call.method,
        path=call.path,
        request_id=headers.get("x-request-id"),
    )


def _status_error(call: Call[Any], status: int, headers: Mapping[str, str], body: bytes) -> APIStatusError:
    text = body[:MAX_ERROR_BYTES].decode("utf-8", "replace")
    detail = _detail(body)
    message = detail.message or _phrase(status)
    if 300 <= status < 400:
        message = f"redirected to {headers.get('location', 'nowhere')}, which is not followed"
    return status_error(status)(
        message,
        method=call.method,
        path=call.path,
        status=status,
        headers=headers,
        body=text,
        request_id=headers.get("x-request-id"),
        type=detail.type,
        code=detail.code,
        param=detail.param,
    )


class _Detail(NamedTuple):
    message: str | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None


def _detail(body: bytes) -> _Detail:
    """Look for the protocol's error object: enveloped, flat, or as a bare text; gateways vary."""
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return _Detail()
    error = found.get("error", found) if isinstance(found, dict) else None
    if isinstance(error, str):
        return _Detail(message=error)
    if not isinstance(error, dict):
        return _Detail()
    message = _text(error.get("message")) or _text(error.get("detail"))
    return _Detail(message, *(_text(error.get(name)) for name in ("type", "code", "param")))


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
