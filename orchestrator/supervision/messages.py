"""What the supervisor is told: by the façade, by the actors of its runs, and by the journal.

Owns the messages' shapes. What is done about them is the supervisor's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import JournalError
from orchestrator.journal import Address, Answer
from orchestrator.protocol.objects import Run
from orchestrator.runs.inputs import Input
from orchestrator.runs.record import RunRecord
from orchestrator.supervision.in_flight import InFlight
from orchestrator.supervision.state import RunState

__all__ = [
    "Abandon",
    "ActorEnded",
    "Admit",
    "CancelWanted",
    "FindOrphans",
    "Forward",
    "Lost",
    "MetadataEchoed",
    "Opened",
    "OutcomeKept",
    "Sweep",
    "ThreadTaken",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Take a run on, or follow it where another process conducts it.

    Attributes:
        record: The run's first record; of a run that the journal knows, what it was when it was looked up.
        address: Where its requests go.
        state: The run as it is seen from outside.
        serve: Makes what will be under way for it, once it is ours to conduct.
        settle: Decides of the calls that were under way when another process died.
        claims: The journal knows the run; else it is new, unless its key is known.
    """

    record: RunRecord
    address: Address
    state: RunState
    serve: Callable[[RunRecord], InFlight]
    settle: Callable[[RunRecord], RunRecord]
    claims: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Tell a run something, whoever conducts it; a run that is over is not told.

    Attributes:
        state: The run; its key may be another run's by now.
        input: What it is told.
    """

    state: RunState
    input: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class FindOrphans:
    """Answered with those of the runs, a tuple, that are not over and that nobody here conducts.

    Attributes:
        runs: A thread's runs, as the server lists them.
    """

    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Let go of every run that is still open, at once; each handle fails with its ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """From now on take up the runs of other processes that have died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorEnded:
    """A run's actor has ended; told whatever the reason.

    Attributes:
        key: The run's key.
        urn: The actor's name in Pykka's registry.
        cause: What it died of, or `None` when it had finished its run or was stopped.
    """

    key: str
    urn: str
    cause: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadTaken:
    """A run has made the thread it will be on.

    Attributes:
        key: The run's key.
        thread_id: The thread.
    """

    key: str
    thread_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataEchoed:
    """A run has seen its server give metadata back.

    Attributes:
        server: The base URL of its requests.
    """

    server: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The journal says how a run stands."""

    key: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class OutcomeKept:
    """The journal has kept a run's outcome."""

    key: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The journal says that a run is not ours to conduct any more."""

    key: str
    error: JournalError


@dataclass(frozen=True, slots=True)
class CancelWanted:
    """The journal says that somebody has asked for the end of a run."""

    key: str
