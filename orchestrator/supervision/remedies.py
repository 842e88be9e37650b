"""What to do about a request's error that ended a run, in the words of its message.

The client knows the request that failed, not the run it was made for nor the arguments a user can change;
the lifecycle knows no server. Here both meet. Errors of other kinds speak for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    OutOfFiles,
    PermissionDeniedError,
    RateLimitError,
)

if TYPE_CHECKING:
    from orchestrator.errors import OrchestratorError
    from orchestrator.runs.record import RunRecord

__all__ = ["explain"]


# The first that fits counts.
_REMEDIES: Final[tuple[tuple[type[APIError], str], ...]] = (
    (AuthenticationError, "check api_key, or OPENAI_API_KEY, for {server}"),
    (PermissionDeniedError, "check that this key, organization and project may do it at {server}"),
    (NotFoundError, "check the ids, and that they belong to this key's project at {server}"),
    (RateLimitError, "start it again later, or start fewer at once (max_concurrent_runs)"),
    (InternalServerError, "the server at {server} failed, start it again later"),
    (APIStatusError, "correct what the server refuses and start it again"),
    (OutOfFiles, "start it again when that is done"),
    (APIConnectionError, "check that a server answers at {server}, and base_url, or OPENAI_BASE_URL"),
    (APIError, "check that {server} speaks the Threads/Runs protocol"),
)


def explain(error: OrchestratorError, record: RunRecord, server: str) -> None:
    """Complete the message of an `APIError`: which run it ended, and what to do about it.

    Changes the error in place, so that its class, its attributes and its cause stay what they were.

    Args:
        error: What ends the run; not to be explained twice.
        record: The run.
        server: The base URL that the run's requests went to.
    """
    if isinstance(error, APIError):
        error.message = f"{error.message.rstrip('.')}; {_ended(record)}: {_remedy(error, server)}"
        error.args = (error.message,)


def _ended(record: RunRecord) -> str:
    parts = [f"this ended run {record.run_id or record.key!r}"]
    if record.thread_id is not None:
        parts.append(f"on thread {record.thread_id}")
    if record.request.assistant_id:
        parts.append(f"of assistant {record.request.assistant_id}")
    return " ".join(parts)


def _remedy(error: APIError, server: str) -> str:
    text = next(text for kind, text in _REMEDIES if isinstance(error, kind))
    return text.format(server=server)
