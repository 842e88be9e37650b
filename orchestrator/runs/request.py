"""What a user asks for: one run, described once, before anything is sent.

Owns the checks that need no server (messages, metadata, bounds) and the body of the create request. Knows
nothing of credentials, tools' code or how the run is carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from orchestrator.client.retry import NONCE_KEY
from orchestrator.protocol.objects import JSON

__all__ = [
    "Messages",
    "OnBusyThread",
    "OnDeadline",
    "OnExpired",
    "OnStall",
    "RerunPolicy",
    "RunRequest",
    "Watch",
    "normalized_messages",
    "require_choice",
    "require_kind",
    "require_patience",
    "require_seconds",
]

Messages: TypeAlias = str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]]
"""A user's text, one message as the protocol writes it, or several of either."""

OnBusyThread: TypeAlias = Literal["enqueue", "reject", "interrupt"]
OnDeadline: TypeAlias = Literal["cancel", "detach"]
OnExpired: TypeAlias = Literal["fail", "restart"]
OnStall: TypeAlias = Literal["report", "cancel"]
Watch: TypeAlias = Literal["stream", "poll"]

USER_METADATA_PAIRS = 15
"""Of the protocol's 16 pairs, the nonce takes one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunPolicy:
    """Which failed runs are followed by another run on the same thread, and how soon.

    Attributes:
        attempts: The most runs for one `start()`, the first included; those that follow an expired one count.
        codes: The `last_error.code`s worth another run.
        base_s: The upper bound of the first pause, in seconds; it doubles with each further one.
        cap_s: The upper bound of every pause, in seconds.
    """

    attempts: int = 3
    codes: frozenset[str] = frozenset({"rate_limit_exceeded", "server_error"})
    base_s: float = 1.0
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        require_kind("attempts", self.attempts, int)
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        # A str would be searched for parts of itself.
        require_kind("codes", self.codes, frozenset)
        for name in ("base_s", "cap_s"):
            require_patience(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run, as it was asked for.

    Attributes:
        assistant_id: The assistant to run.
        messages: Messages added with the run, in the protocol's own form.
        options: Every other field of the create request that was given, in the protocol's own form.
        metadata: The user's metadata, at most 15 pairs.
        watch: Whether to stream or to poll.
        deadline_s: Seconds from `start()` to the end of the run, waiting for admission included.
        on_deadline: What happens then: cancel the run, or leave it running and stop watching.
        on_stall: What happens to a run that shows no progress: it is reported, or cancelled too.
        on_busy_thread: What happens while another run holds the thread: wait for its end, fail, or end it.
        interrupt_foreign: Whether "interrupt" may end a run that this orchestrator does not conduct.
        on_expired: What happens to a run that expires: its result says so, or another run follows it, which
            is told the tool results so far.
        rerun: Which failed runs are followed by another; by default none.
        unrepeatable_tools: Names of the tools that may not be called once more by a run that follows.
        max_tool_rounds: The most batches of tool calls, or `None`; one more ends the run.
        max_failed_tool_rounds: The most batches in a row in which every call failed, or `None`; the run ends
            with the last of them.
        max_total_tokens: The most tokens, as far as the server tells, or `None`; more end the run.
    """

    assistant_id: str
    messages: tuple[JSON, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    watch: Watch = "stream"
    deadline_s: float = 600.0
    on_deadline: OnDeadline = "cancel"
    on_stall: OnStall = "report"
    on_busy_thread: OnBusyThread = "enqueue"
    interrupt_foreign: bool = False
    on_expired: OnExpired = "fail"
    rerun: RerunPolicy = field(default_factory=lambda: RerunPolicy(codes=frozenset()))
    unrepeatable_tools: frozenset[str] = frozenset()
    max_tool_rounds: int | None = None
    max_failed_tool_rounds: int | None = 10
    max_total_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.assistant_id, str):
            raise TypeError(f"assistant_id must be a str, got {type(self.assistant_id).__name__}")
        for key, value in self.metadata.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise TypeError(f"metadata keys and values are strings; {key!r} has {value!r}")
        if NONCE_KEY in self.metadata:
            raise ValueError(f"metadata key {NONCE_KEY!r} is reserved: it marks the run's create request")
        if len(self.metadata) > USER_METADATA_PAIRS:
            raise ValueError(
                f"metadata has {len(self.metadata)} pairs; at most {USER_METADATA_PAIRS} fit beside the "
                f"{NONCE_KEY!r} that the orchestrator adds: remove {len(self.metadata) - USER_METADATA_PAIRS}"
            )
        require_seconds("deadline_s", self.deadline_s)
        require_choice("watch", self.watch, get_args(Watch))
        require_choice("on_deadline", self.on_deadline, get_args(OnDeadline))
        require_choice("on_stall", self.on_stall, get_args(OnStall))
        require_choice("on_busy_thread", self.on_busy_thread, get_args(OnBusyThread))
        require_choice("on_expired", self.on_expired, get_args(OnExpired))
        require_kind("rerun", self.rerun, RerunPolicy)
        require_kind("interrupt_foreign", self.interrupt_foreign, bool)
        _require_count("max_tool_rounds", self.max_tool_rounds, least=0)
        _require_count("max_failed_tool_rounds", self.max_failed_tool_rounds, least=1)
        _require_count("max_total_tokens", self.max_total_tokens, least=1)


def normalized_messages(messages: Messages | None) -> tuple[JSON, ...]:
    """Bring messages into the protocol's form.

    Raises:
        TypeError: It is no message and no collection, or a message is neither a string nor a mapping.
        ValueError: A mapping lacks `role` or `content`.
    """
    if messages is None:
        return ()
    if isinstance(messages, str | Mapping):
        messages = (messages,)
    if not isinstance(messages, Iterable):
        raise TypeError(
            f"messages must be a str, a mapping or several of them, got {type(messages).__name__}"
        )
    return tuple(_message(message, index) for index, message in enumerate(messages))


def _message(message: str | Mapping[str, Any], index: int) -> JSON:
    if isinstance(message, str):
        return {"role": "user", "content": message}
    if not isinstance(message, Mapping):
        raise TypeError(f"messages[{index}] must be a str or a mapping, got {type(message).__name__}")
    missing = [name for name in ("role", "content") if name not in message]
    if missing:
        raise ValueError(f"messages[{index}] lacks {' and '.join(missing)}")
    return dict(message)


def require_seconds(name: str, value: float) -> None:
    """Refuse what is no positive number of seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, got {value}")


def require_patience(name: str, value: float) -> None:
    """Refuse what is no number of seconds to wait; 0 is one.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, or no number that can be waited for.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must not be a negative number of seconds, got {value}")


def require_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is of another type.

    Raises:
        TypeError: It is.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")


def _require_count(name: str, value: int | None, *, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number or None, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the allowed words.

    Raises:
        ValueError: It is another.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
