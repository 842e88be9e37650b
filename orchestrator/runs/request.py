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
    "OnDeadline",
    "RunRequest",
    "Watch",
    "normalized_messages",
    "require_choice",
    "require_seconds",
]

Messages: TypeAlias = str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]]
"""A user's text, one message as the protocol writes it, or several of either."""

OnDeadline: TypeAlias = Literal["cancel", "detach"]
Watch: TypeAlias = Literal["stream", "poll"]

USER_METADATA_PAIRS = 15
"""Of the protocol's 16 pairs, the nonce takes one."""


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
    """

    assistant_id: str
    messages: tuple[JSON, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    watch: Watch = "stream"
    deadline_s: float = 600.0
    on_deadline: OnDeadline = "cancel"

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


def require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the allowed words.

    Raises:
        ValueError: It is another.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
