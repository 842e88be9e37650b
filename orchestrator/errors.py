"""The exception tree: what went wrong, where, and what to do about it.

Every error that this package raises on its own account is an `OrchestratorError`; misuse (a wrong
argument, a blocking call on an event loop) raises `TypeError`, `ValueError` or `RuntimeError` instead.
Whether a failed request may be tried again is not known here: `orchestrator.client.retry` decides that.

```
OrchestratorError
├── APIError                        a request to the server failed
│   ├── APIStatusError              it answered, with a status of 300 or more
│   │   ├── BadRequestError         400
│   │   ├── AuthenticationError     401
│   │   ├── PermissionDeniedError   403
│   │   ├── NotFoundError           404
│   │   ├── RequestTimeoutError     408
│   │   ├── ConflictError           409
│   │   ├── UnprocessableEntityError 422
│   │   ├── RateLimitError          429
│   │   └── InternalServerError     500 and above
│   ├── APIConnectionError          no complete answer: refused, reset, cut off
│   │   ├── APITimeout              no answer in time
│   │   └── OutOfFiles              no file could be opened for a connection
│   └── APIResponseError            an answer that cannot be understood
├── AmbiguousOutcome                a request may or may not have taken effect
├── RunError                        a run ended without a usable result
│   ├── RunFailed                   raised by RunResult.raise_for_status()
│   ├── DeadlineExceeded            the run's own deadline passed
│   ├── CancelUnconfirmed           cancel was accepted, the end was never seen
│   ├── RunStalled                  no progress, and on_stall="cancel" was asked for
│   ├── BudgetExceeded              its rounds, failed rounds or tokens reached their most
│   ├── ToolFailed                  a tool failed, and on_error="fail" was asked for
│   └── RunLost                     the server no longer knows the run
├── ThreadBusy                      another run holds the thread
├── Overloaded                      max_pending runs wait already
├── OrchestratorClosed              the orchestrator is closed, or this process is a fork
├── ToolError                       a tool speaks to the model
├── Retry                           a tool asks to be run again
└── JournalError                    the journal could not be read or written, or the run is not ours
    ├── KeyReused                   the key of another request is given to this one
    └── UnknownRun                  the journal does not know the key
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseError",
    "APIStatusError",
    "APITimeout",
    "AmbiguousOutcome",
    "AuthenticationError",
    "BadRequestError",
    "BudgetExceeded",
    "CancelUnconfirmed",
    "ConflictError",
    "DeadlineExceeded",
    "InternalServerError",
    "JournalError",
    "KeyReused",
    "NotFoundError",
    "OrchestratorClosed",
    "OrchestratorError",
    "OutOfFiles",
    "Overloaded",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestTimeoutError",
    "Retry",
    "RunError",
    "RunFailed",
    "RunLost",
    "RunStalled",
    "ThreadBusy",
    "ToolError",
    "ToolFailed",
    "UnknownRun",
    "UnprocessableEntityError",
    "status_error",
]


class OrchestratorError(Exception):
    """The root of the tree: catch it to catch everything this package raises on its own account.

    Errors can be copied and pickled, so that they cross process boundaries; their cause stays behind.
    """

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with `args`, which constructors with keywords refuse.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[OrchestratorError], args: tuple[object, ...], state: dict[str, object]) -> object:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class APIError(OrchestratorError):
    """A request to the server failed.

    Attributes:
        method: The HTTP method, such as `"POST"`.
        path: The path below the base URL, such as `"/threads/thread_1/runs"`.
        request_id: The server's `x-request-id`, or `None` when there was no answer.
    """

    def __init__(self, message: str, *, method: str, path: str, request_id: str | None = None) -> None:
        self.message = message
        self.method = method
        self.path = path
        self.request_id = request_id
        super().__init__(message)

    def __str__(self) -> str:
        where = f"{self.method} {self.path}"
        if self.request_id is not None:
            where += f", request {self.request_id}"
        return f"{self.message} ({where})"


class APIStatusError(APIError):
    """The server answered with a status of 300 or more.

    Attributes:
        status: The HTTP status.
        headers: The answer's headers, lower-case names; retry hints are read from here.
        body: The answer's text, at most 64 KiB of it; it may be HTML or empty.
        type: The protocol's `error.type`, or `None`.
        code: The protocol's `error.code`, or `None`.
        param: The protocol's `error.param`, or `None`.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status: int,
        headers: Mapping[str, str],
        body: str = "",
        request_id: str | None = None,
        type: str | None = None,  # noqa: A002 - the protocol's own name
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.type = type
        self.code = code
        self.param = param
        super().__init__(message, method=method, path=path, request_id=request_id)

    def __str__(self) -> str:
        return f"HTTP {self.status}: {super().__str__()}"


class BadRequestError(APIStatusError):
    """400: the request is not acceptable as it stands, or the thread or run is in another state."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or expired."""


class PermissionDeniedError(APIStatusError):
    """403: the key is known and may not do this."""


class NotFoundError(APIStatusError):
    """404: no such object, for this key."""


class RequestTimeoutError(APIStatusError):
    """408: the server gave up waiting for the request."""


class ConflictError(APIStatusError):
    """409: the server could not lock what the request needs."""


class UnprocessableEntityError(APIStatusError):
    """422: the body was understood and refused."""


class RateLimitError(APIStatusError):
    """429: too many requests; nothing was done."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed, perhaps after doing what was asked."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(status: int) -> type[APIStatusError]:
    """Return the class that stands for an HTTP status of 300 or more."""
    if status >= 500:
        return InternalServerError
    return _BY_STATUS.get(status, APIStatusError)


class APIConnectionError(APIError):
    """No complete answer came: refused, reset or cut off.

    Attributes:
        sent: False only when the transport states that no byte of the request left; else True.
    """

    def __init__(
        self, message: str, *, method: str, path: str, sent: bool, request_id: str | None = None
    ) -> None:
        self.sent = sent
        super().__init__(message, method=method, path=path, request_id=request_id)


class APITimeout(APIConnectionError):
    """No answer came within the time allowed."""


class OutOfFiles(APIConnectionError):
    """No file could be opened for a connection, so that nothing was sent: it says nothing about the server.

    The message names the limit, this process's or the machine's, and how to raise it.
    """

    def __init__(self, message: str, *, method: str, path: str) -> None:
        super().__init__(message, method=method, path=path, sent=False)


class APIResponseError(APIError):
    """The server's answer cannot be understood: not JSON, of another shape, or too large."""


class AmbiguousOutcome(OrchestratorError):
    """A request may or may not have taken effect, and nothing could settle which.

    It was not repeated, because that might do the work twice. Look at the server before you start again.

    Attributes:
        operation: The operation's name, such as `"create_run"`.
        thread_id: The thread concerned, or `None`.
        run_id: The run concerned, or `None` when it is the run's creation that is uncertain.
        nonce: The value under metadata key `orchestrator_nonce` that marks the object, or `None`.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        thread_id: str | None = None,
        run_id: str | None = None,
        nonce: str | None = None,
    ) -> None:
        self.operation = operation
        self.thread_id = thread_id
        self.run_id = run_id
        self.nonce = nonce
        super().__init__(message)


class RunError(OrchestratorError):
    """A run ended without a usable result.

    Attributes:
        thread_id: The run's thread, or `None` when none was created.
        run_id: The run, or `None` when none was created.
        status: The last status that was seen, or `None`.
    """

    def __init__(
        self, message: str, *, thread_id: str | None, run_id: str | None, status: str | None
    ) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self.status = status
        super().__init__(message)


class RunFailed(RunError):
    """A run ended as failed, cancelled, expired or incomplete; raised by `RunResult.raise_for_status()`."""


class DeadlineExceeded(RunError):
    """The deadline given to `start()` passed before the run ended."""


class CancelUnconfirmed(RunError):
    """Cancel was posted, and the run did not reach a terminal status in time."""


class RunStalled(RunError):
    """The run showed no progress for `stall_s`, and `on_stall="cancel"` was asked for: it was cancelled."""


class BudgetExceeded(RunError):
    """The run went past its most tool rounds, failed ones in a row, or tokens, and was cancelled."""


class ToolFailed(RunError):
    """A tool with `on_error="fail"` raised or took too long: the run was cancelled.

    `__cause__` is what it raised, or a `TimeoutError`.
    """


class RunLost(RunError):
    """The server no longer knows a run that it created."""


class ThreadBusy(OrchestratorError):
    """Another run is active on the thread.

    Attributes:
        thread_id: The thread.
        run_id: The run that holds it, or `None` when the server did not name it.
    """

    def __init__(self, message: str, *, thread_id: str, run_id: str | None) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        super().__init__(message)


class Overloaded(OrchestratorError):
    """`max_pending` runs wait already; nothing was started. Try again later or raise the bound."""


class OrchestratorClosed(OrchestratorError):
    """The orchestrator is closed, or was inherited by a fork: make a new one in this process."""


class ToolError(OrchestratorError):
    """Raised by a tool to speak to the model: the text is sent as the call's output, as it is."""


class Retry(OrchestratorError):
    """Raised by a tool to be run again, as far as its `retries` and its deadline allow.

    Where they do not, the text is sent to the model as an error.

    Args:
        message: Why.
        after_s: Seconds to wait before; by default a jittered pause that doubles each time, from 0.1 to 5.

    Attributes:
        after_s: As given.

    Raises:
        TypeError: `after_s` is no number.
    """

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        if after_s is not None and not isinstance(after_s, int | float):
            raise TypeError(f"after_s must be a number of seconds, got {after_s!r}")
        self.after_s = after_s
        super().__init__(message)


class JournalError(OrchestratorError):
    """The journal could not be read or written, or says that a run is not this process's to conduct."""


class KeyReused(JournalError, ValueError):
    """A run was started with the key of a run that asked for something else.

    Attributes:
        key: The key.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class UnknownRun(JournalError):
    """The journal has no run of this key.

    Attributes:
        key: The key.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key
