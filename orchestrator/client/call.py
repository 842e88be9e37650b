"""One request and its answer, without any I/O: what an endpoint describes and what a client sends.

Owns `Call`, the options that every call takes, the lanes, and the rules for ids and fields on their way
into a request. Knows neither the server nor the credentials: those are `orchestrator.client.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypedDict, TypeVar, cast
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from orchestrator.client.auth import ApiKey
from orchestrator.client.consumer import StreamTo, teller
from orchestrator.client.retry import NONCE_KEY, RetryPolicy
from orchestrator.protocol.events import StreamEvent

if TYPE_CHECKING:
    from orchestrator.client.reconciliation import Reconciler

__all__ = [
    "Answer",
    "Call",
    "CallOptions",
    "Lane",
    "Metadata",
    "body",
    "checked",
    "path",
    "poll_after_s",
    "query",
    "streaming",
    "with_nonce",
]

T = TypeVar("T")

Lane: TypeAlias = Literal["stream", "control", "cancel"]
"""Which share of the connections a call draws from, so that open streams never keep a cancel waiting."""

Metadata: TypeAlias = Mapping[str, str] | UnsetType | None
"""Up to 16 pairs; `None` clears them, `UNSET` leaves them out of the request."""

MAX_METADATA_PAIRS = 16

# It travels as a metadata value, at most 512 characters, and as a header.
_NONCE = re.compile(r"[\x21-\x7e]{1,512}")


class CallOptions(TypedDict, total=False):
    """What every call takes beside its own parameters; each overrides the client's own value.

    Attributes:
        api_key: As for the client. A function's token is kept for one attempt only; `with_options` keeps
            it.
        organization: Sent as `OpenAI-Organization`.
        project: Sent as `OpenAI-Project`.
        base_url: Where the paths begin. Another origin than the client's needs its own `api_key`, and gets
            none of the client's own headers, organization, project, `auth_header` and Azure's query.
        timeout: Seconds for one request.
        headers: Added to the request; names are case-insensitive, and these win.
        retry: The policy for this call.
    """

    api_key: ApiKey
    organization: str
    project: str
    base_url: str
    timeout: float
    headers: Mapping[str, str]
    retry: RetryPolicy


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request, described.

    Attributes:
        operation: The operation's name, such as `"create_run"`.
        method: The HTTP method.
        path: The path below the base URL, ids percent-encoded.
        decode: Turns the answer's body into a value; a streaming call's answer too, where a server cannot
            stream.
        query: Pairs in the order they are sent.
        body: The JSON body, or `None`.
        repeatable: Whether doing it twice equals doing it once.
        streams: Whether the answer is an event stream.
        lane: Which share of the connections it draws from.
        thread_id: The thread concerned, if any, for errors.
        nonce: The value that marks what it creates, or `None`.
        if_gone: What a repeated delete answers when the first one has done its work already, or `None`.
        reconciler: Finds out what became of it when its answer was lost, or `None` where nothing can.
        tell: Is told each event of a stream as it is read, or `None`.
        options: The caller's own settings for this call; may hold a key.
    """

    operation: str
    method: str
    path: str
    decode: Callable[[bytes], T]
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    repeatable: bool = False
    streams: bool = False
    lane: Lane = "control"
    thread_id: str | None = None
    nonce: str | None = None
    if_gone: T | None = None
    reconciler: Reconciler[T] | None = None
    tell: Callable[[StreamEvent], object] | None = None
    options: CallOptions = msgspec.field(default_factory=CallOptions)

    def __repr__(self) -> str:
        return f"<Call {self.operation}: {self.method} {self.path}>"  # neither the body nor a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What a server answered to one request.

    Attributes:
        value: The decoded body.
        status: The HTTP status, 200 to 299.
        headers: By lower-case name.
        request_id: The server's `x-request-id`, or `None`.
    """

    value: T
    status: int
    headers: Mapping[str, str]
    request_id: str | None

    @property
    def poll_after_s(self) -> float | None:
        """Seconds after which the server wants to be asked again, or `None` when it did not say."""
        return poll_after_s(self.headers)


def poll_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `openai-poll-after-ms`, in seconds; `None` when it is absent or no sensible number.

    Args:
        headers: By lower-case name.
    """
    try:
        seconds = float(headers.get("openai-poll-after-ms", "")) / 1000
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def checked(operation: str, options: CallOptions, *, streamed_by: str | None = None) -> CallOptions:
    """Refuse keywords that no call takes; a type checker sees them, a run time does not.

    Args:
        operation: The function that was called.
        options: The keywords it did not know.
        streamed_by: The method that does the same and streams.

    Raises:
        TypeError: There is such a keyword.
    """
    for name in options.keys() - CallOptions.__optional_keys__:
        if name == "stream" and streamed_by is not None:
            raise TypeError(f"{operation}() does not stream: call {streamed_by}() for an event stream")
        raise TypeError(f"{operation}() got an unexpected keyword argument {name!r}")
    return options


def path(template: str, **ids: str) -> str:
    """Fill ids into a path.

    Args:
        template: The path, with `{thread_id}` where the id of that name belongs.
        **ids: The ids by name.

    Raises:
        TypeError: An id is not a string.
        ValueError: An id could change the path it stands in.
    """
    return template.format_map({name: _path_id(name, value) for name, value in ids.items()})


def _path_id(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    # Refused rather than escaped: proxies and servers disagree on %2F and %2E%2E, and no real id has them.
    if not value or not value.isprintable() or value == "." or ".." in value or set(value) & set("/\\?#%"):
        raise ValueError(f"{name} cannot be part of a path: {value!r}")
    return quote(value, safe="")


def query(**parameters: object) -> tuple[tuple[str, str], ...]:
    """Collect query parameters: `UNSET` ones are absent, a list is sent as `name[]`, once per item."""
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            pairs.extend((f"{name}[]", str(item)) for item in value)
        elif value is not UNSET:
            pairs.append((name, str(value)))
    return tuple(pairs)


def body(**fields: object) -> bytes:
    """Encode a JSON body; the fields left `UNSET` are absent, `None` is sent as null.

    Raises:
        TypeError: A value has no JSON form.
    """
    present = {name: value for name, value in fields.items() if value is not UNSET}
    return msgspec.json.encode(present, enc_hook=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def with_nonce(metadata: Metadata, nonce: str | UnsetType) -> Metadata:
    """Add the nonce to metadata, if there is one.

    Raises:
        ValueError: It cannot be sent, no pair is left for it, or the metadata has that key already.
    """
    if isinstance(nonce, UnsetType):
        return metadata
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise ValueError(f"nonce must be 1 to 512 ASCII characters without spaces, got {nonce!r}")
    pairs = {} if metadata is None or isinstance(metadata, UnsetType) else dict(metadata)
    if NONCE_KEY in pairs:
        raise ValueError(f"metadata key {NONCE_KEY!r} is taken by the nonce")
    if len(pairs) >= MAX_METADATA_PAIRS:
        raise ValueError(
            f"metadata has {len(pairs)} pairs, and one of {MAX_METADATA_PAIRS} is needed for {NONCE_KEY!r}"
        )
    return {**pairs, NONCE_KEY: nonce}


def streaming(call: Call[T], operation: str, stream_to: StreamTo | None) -> Call[T]:
    """Return the call that asks for the same work, answered by an event stream.

    Args:
        call: A call with a body.
        operation: The streaming operation's name.
        stream_to: Told every event, or `None`.

    Raises:
        TypeError: `stream_to` cannot be told anything.
    """
    # An object with one field at least: no operation that can be streamed has a body without.
    body = cast("bytes", call.body).removesuffix(b"}") + b',"stream":true}'
    return replace(
        call,
        operation=operation,
        body=body,
        streams=True,
        lane="stream",
        tell=None if stream_to is None else teller(stream_to),
    )
