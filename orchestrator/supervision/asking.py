"""What may be said of a run before it begins, by name: for those who pass it on.

`Orchestrator.start()` explains each. Owns the names and their types, and which of them go to the server as
they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from msgspec import UnsetType

    from orchestrator.runs.request import (
        Messages,
        OnBusyThread,
        OnDeadline,
        OnExpired,
        OnStall,
        RerunPolicy,
        Watch,
    )

__all__ = ["DEFAULTED", "SAID", "SENT", "RunOptions"]


class SentOptions(TypedDict, total=False):
    """The protocol's own options of a run."""

    model: str | UnsetType | None
    reasoning_effort: str | UnsetType | None
    instructions: str | UnsetType | None
    additional_instructions: str | UnsetType | None
    additional_messages: Sequence[Mapping[str, Any]] | UnsetType | None
    temperature: float | UnsetType | None
    top_p: float | UnsetType | None
    max_prompt_tokens: int | UnsetType | None
    max_completion_tokens: int | UnsetType | None
    truncation_strategy: Mapping[str, Any] | UnsetType | None
    tool_choice: str | Mapping[str, Any] | UnsetType | None
    parallel_tool_calls: bool | UnsetType
    response_format: str | Mapping[str, Any] | UnsetType | None


class SaidOptions(TypedDict, total=False):
    """What the lifecycle is told of a run, as it is said."""

    on_deadline: OnDeadline
    on_stall: OnStall
    on_expired: OnExpired
    max_tool_rounds: int | None
    max_failed_tool_rounds: int | None
    max_total_tokens: int | None


class DefaultedOptions(TypedDict, total=False):
    """What the lifecycle is told of a run, where `None` stands for the orchestrator's own."""

    watch: Watch | None
    deadline_s: float | None
    rerun: RerunPolicy | None
    on_busy_thread: OnBusyThread | None
    interrupt_foreign: bool | None


class RunOptions(SentOptions, SaidOptions, DefaultedOptions, total=False):
    """Everything that describes a run and that a journal can keep."""

    thread_id: str | None
    messages: Messages | None
    metadata: Mapping[str, str] | None
    tools: Iterable[object] | None


SENT: Final = tuple(SentOptions.__annotations__)
SAID: Final = tuple(SaidOptions.__annotations__)
DEFAULTED: Final = tuple(DefaultedOptions.__annotations__)
