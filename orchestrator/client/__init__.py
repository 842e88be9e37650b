"""The retrying client core: every operation of the protocol, typed, asynchronous and blocking."""

from orchestrator.client._async import AsyncThreadsClient
from orchestrator.client._sync import ThreadsClient
from orchestrator.client.attempts import Clocks
from orchestrator.client.auth import ApiKey
from orchestrator.client.call import Answer, Call, CallOptions
from orchestrator.client.consumer import StreamTo
from orchestrator.client.retry import NO_RETRIES, RetryPolicy, When, when_error, when_status
from orchestrator.client.stream import AsyncEventStream, EventStream

__all__ = [
    "NO_RETRIES",
    "Answer",
    "ApiKey",
    "AsyncEventStream",
    "AsyncThreadsClient",
    "Call",
    "CallOptions",
    "Clocks",
    "EventStream",
    "RetryPolicy",
    "StreamTo",
    "ThreadsClient",
    "When",
    "when_error",
    "when_status",
]
