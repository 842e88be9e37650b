"""How the server says no: one exception, and the protocol's texts for the cases that have one.

Owns the error envelope `{"error": {message, type, param, code}}` (PROTOCOL.md, "Errors"). Knows nothing of
HTTP frameworks; `orchestrator.server.app` turns a `RefusalError` into an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.protocol.objects import JSON

__all__ = [
    "RefusalError",
    "cannot_cancel",
    "invalid",
    "missing_beta",
    "no_outputs_accepted",
    "not_found",
    "outputs_differ",
    "thread_busy",
    "thread_locked",
]


class RefusalError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status, 400 or more.
        message: For the caller: what happened, naming ids; never a path, key or stack trace of this machine.
        code: A stable code, or `None`.
        param: The parameter at fault, such as `"metadata"` or `"tools[0].type"`, or `None`.
        type: The protocol's error type.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",  # noqa: A002 - the protocol's own name
    ) -> None:
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        super().__init__(message)

    def detail(self) -> JSON:
        """Return the error object."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """Return the envelope as JSON."""
        return msgspec.json.encode({"error": self.detail()})

    def event(self) -> JSON:
        """Return the payload of an `error` event: flat, as specified, and in the envelope too.

        openai-python raises an error that it finds in the envelope; of a flat one it makes an empty event.
        """
        return {**self.detail(), "error": self.detail()}


def invalid(message: str, param: str | None = None) -> RefusalError:
    """400: a parameter is not acceptable."""
    return RefusalError(400, message, param=param)


def not_found(noun: str, object_id: str) -> RefusalError:
    """404: no object of that kind has this id, here."""
    return RefusalError(404, f"No {noun} found with id '{object_id}'.")


def thread_locked(thread_id: str, run_id: str, *, doing: str = "add messages to") -> RefusalError:
    """400: the thread cannot be changed while a run is active on it."""
    return RefusalError(400, f"Can't {doing} {thread_id} while a run {run_id} is active.")


def thread_busy(thread_id: str, run_id: str) -> RefusalError:
    """400, never 409: public clients would retry a 409."""
    return RefusalError(400, f"Thread {thread_id} already has an active run {run_id}.")


def cannot_cancel(status: str) -> RefusalError:
    """400: the run is cancelling or over."""
    return RefusalError(400, f"Cannot cancel run with status '{status}'.")


def no_outputs_accepted(status: str) -> RefusalError:
    """400: the run does not wait for tool outputs."""
    return RefusalError(400, f'Runs in status "{status}" do not accept tool outputs.')


def outputs_differ(expected: Iterable[str], got: Iterable[str]) -> RefusalError:
    """400: the outputs are not exactly those the run waits for."""
    return RefusalError(
        400, f"Expected tool outputs for call_ids {list(expected)}, got {list(got)}", param="tool_outputs"
    )


def missing_beta() -> RefusalError:
    """400: the header that turns this protocol on is absent."""
    return RefusalError(
        400,
        "You must provide the 'OpenAI-Beta' header to access the Assistants API. "
        "Please try again by setting the header 'OpenAI-Beta: assistants=v2'.",
        code="invalid_beta",
    )
