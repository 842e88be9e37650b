"""What the journal's thread is asked to do, and what it has to tell: the words between it and the loop.

Owns their shapes. What is asked of one run is done in the order in which it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from orchestrator.errors import JournalError
    from orchestrator.journal.interface import Address, Answer, StoredRun
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord

__all__ = [
    "Cancel",
    "CancelNews",
    "Claim",
    "FoundNews",
    "KeptNews",
    "LetGo",
    "LostNews",
    "News",
    "Open",
    "OpenedNews",
    "Order",
    "Write",
]


@dataclass(frozen=True, slots=True)
class Open:
    """Make the run's row, or conduct the run that has its key.

    Attributes:
        key: The run's key.
        number: What the answer is told with.
        at: When it was asked, in seconds of the monotonic clock.
        record: The run's first record.
        address: Where its requests go.
    """

    key: str
    number: int
    at: float
    record: RunRecord
    address: Address


@dataclass(frozen=True, slots=True)
class Claim:
    """Conduct a run that is known."""

    key: str
    number: int
    at: float


@dataclass(frozen=True, slots=True)
class Write:
    """Keep a record, and with an outcome end the run."""

    key: str
    ticket: int
    record: RunRecord
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class LetGo:
    """Give the lease up, or stop following the run."""

    key: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Note that somebody wants the run to end."""

    key: str


Order: TypeAlias = Open | Claim | Write | LetGo | Cancel


@dataclass(frozen=True, slots=True)
class OpenedNews:
    """How a run stands."""

    key: str
    number: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class KeptNews:
    """Everything of the run up to this ticket is kept."""

    key: str
    ticket: int


@dataclass(frozen=True, slots=True)
class LostNews:
    """The run is not conducted here any more."""

    key: str
    error: JournalError


@dataclass(frozen=True, slots=True)
class CancelNews:
    """Somebody wants the run to end."""

    key: str


@dataclass(frozen=True, slots=True)
class FoundNews:
    """A run has lost its owner."""

    stored: StoredRun


News: TypeAlias = OpenedNews | KeptNews | LostNews | CancelNews | FoundNews
