"""What became of a request whose answer was lost: plans that find it out, without any I/O.

A plan is a generator. It yields what is to be done next, is sent what came of it (a value, or the `APIError`
in its place), and ends with the operation's value or with an error. Both clients carry plans out. Which
failures are uncertain is decided in `orchestrator.client.retry`.

The rules:

1. What was created carries a nonce in its metadata. Two looks at the list, `settle_s` apart and both after
   the lost request's connection was closed, tell whether it is there. Only a server that was seen to keep
   metadata, and to list the newest first where it does not list all, proves its absence, and only then is
   the create sent again.
2. Outputs are submitted again only to a run that asks for the same calls of the same step, in two looks.
   Ids alone prove nothing: servers use them again in later rounds.
3. A cancel is as good as done once the run is `cancelling` or over.
4. What cannot be settled is an `AmbiguousOutcome`. A request that takes effect later than the second look
   may be doubled: after a repeated create the list is looked at once more, and what is there twice is
   reported.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from msgspec.structs import replace

from orchestrator.client.retry import NO_RETRIES, NONCE_KEY, Verdict, judge
from orchestrator.errors import AmbiguousOutcome, APIError
from orchestrator.protocol.objects import TERMINAL_STATUSES, Message, Page, Run, RunStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.client.call import Call

__all__ = [
    "Again",
    "Cancelled",
    "Case",
    "Created",
    "Look",
    "Pause",
    "Plan",
    "Reconciler",
    "Step",
    "Submitted",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
M = TypeVar("M", Run, Message)


@dataclass(frozen=True, slots=True)
class Look:
    """Make a repeatable call, with retries of its own; its value or its `APIError` is sent back."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Again:
    """Send the original request again; its value or its `APIError` is sent back."""


Step: TypeAlias = Look | Pause | Again
Plan: TypeAlias = Generator[Step, Any, T]


class Case(Protocol):
    """One call whose outcome is uncertain: what its reconciler may ask about it."""

    def pause_s(self, error: APIError) -> float:
        """Seconds from the first look to the second: `settle_s`, or longer where the failure asks for it.

        Infinite when that is more than the policy or the call's deadline allows.
        """

    @property
    def keeps_metadata(self) -> bool:
        """Whether the server was ever seen to answer with metadata it was sent."""

    def see_metadata(self) -> None:
        """Take note that the server keeps metadata."""

    def may_repeat(self, error: APIError) -> bool:
        """Whether the policy and the server allow one more attempt after this failure."""

    def report_twins(self, ids: Sequence[str]) -> None:
        """Report that one request took effect more than once."""

    def ambiguous(self, error: APIError, why: str) -> AmbiguousOutcome:
        """Return the error that says that an outcome could not be settled.

        Args:
            error: The failure that left it open.
            why: What stood in the way, as a clause.
        """


class Reconciler(Protocol[T_co]):
    """Knows how to find out what became of one call."""

    def settle(self, error: APIError, case: Case) -> Plan[T_co]:
        """Plan how to find out, and what to do then.

        Args:
            error: The failure that left the outcome open.
            case: The call.

        Raises:
            AmbiguousOutcome: It could not be settled, or may not be sent again.
            APIError: The call failed for good, without having done anything.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Created(Generic[M]):
    """Finds a run or a message by the nonce in its metadata.

    Attributes:
        listing: Lists the newest of its kind on the thread.
        nonce: What marks it.
    """

    listing: Call[Page[M]]
    nonce: str

    def settle(self, error: APIError, case: Case) -> Plan[M]:
        """See `Reconciler.settle`."""
        while True:
            found = yield from self._found(error, case)
            if found is None:
                yield from _pause(error, case)
                found = yield from self._found(error, case)
            if found is not None:
                return found
            if not case.keeps_metadata:
                raise case.ambiguous(error, "this server was not seen to keep metadata, which would prove it")
            if not case.may_repeat(error):
                raise case.ambiguous(error, "no further attempt is allowed")
            outcome = yield Again()
            if not isinstance(outcome, APIError):
                yield from self._look_for_twins(case)
                return outcome  # type: ignore[no-any-return]  # what the client made of the same call
            if judge(outcome, repeatable=False) is not Verdict.AMBIGUOUS:
                # Refused, perhaps because the lost one is there by now and holds the thread.
                found = yield from self._found(error, case)
                if found is None:
                    raise outcome
                return found
            error = outcome

    def _found(self, error: APIError, case: Case) -> Plan[M | None]:
        page = yield from _look(self.listing, error, case)
        if any(one.metadata for one in page.data):
            case.see_metadata()
        found = next(iter(self._marked(page)), None)
        if found is None and page.has_more and not _begins_with_newest(page):
            raise case.ambiguous(error, "the list goes on, and does not show the newest first")
        return found

    def _look_for_twins(self, case: Case) -> Plan[None]:
        # Once, because what is known already must not wait for it.
        page = yield Look(replace(self.listing, options={**self.listing.options, "retry": NO_RETRIES}))
        marked = [] if isinstance(page, APIError) else self._marked(page)
        if len(marked) > 1:
            case.report_twins([one.id for one in marked])

    def _marked(self, page: Page[M]) -> list[M]:
        return [one for one in page.data if (one.metadata or {}).get(NONCE_KEY) == self.nonce]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """Finds out from a run and its steps whether it took a batch of outputs.

    Attributes:
        retrieval: Retrieves the run.
        listing: Lists its newest steps, newest first.
        outputs: What was submitted, by call id.
    """

    retrieval: Call[Run]
    listing: Call[Page[RunStep]]
    outputs: Mapping[str, str]

    def settle(self, error: APIError, case: Case) -> Plan[Run]:
        """See `Reconciler.settle`."""
        while True:
            run = yield from self._moved_on(error, case)
            if run is None:
                yield from _pause(error, case)
                run = yield from self._moved_on(error, case)
            if run is not None:
                return run
            if not case.may_repeat(error):
                raise case.ambiguous(error, "the run still waits, and no further attempt is allowed")
            outcome = yield Again()
            if not isinstance(outcome, APIError):
                return outcome  # type: ignore[no-any-return]  # what the client made of the same call
            if judge(outcome, repeatable=False) is not Verdict.AMBIGUOUS:
                # Refused, perhaps because the lost one has arrived by now.
                run = yield from self._moved_on(error, case)
                if run is None:
                    raise outcome
                return run
            error = outcome

    def _moved_on(self, error: APIError, case: Case) -> Plan[Run | None]:
        """Return the run if it no longer waits for this batch, `None` if it does."""
        run = yield from _look(self.retrieval, error, case)
        asked = {call.id for call in run.required_calls}
        if not asked:
            return run
        page = yield from _look(self.listing, error, case)
        outputs = [taken for step in page.data if (taken := _outputs(step)).keys() == self.outputs.keys()]
        if asked != self.outputs.keys():
            if self.outputs in outputs:
                return run
            raise case.ambiguous(error, f"the run waits for {sorted(asked)}, and no step shows these outputs")
        waiting, earlier = outputs[:1], outputs[1:]
        # A server that shows no outputs of an earlier step would show none of one that took these either.
        hides = any(None in taken.values() for taken in earlier)
        if not waiting or hides or any(output is not None for output in waiting[0].values()):
            raise case.ambiguous(error, "the run's steps do not show which of them waits")
        if self.outputs in earlier:
            raise case.ambiguous(error, "an earlier step has the same calls with the same outputs")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Finds out whether a run that was to be cancelled still goes on.

    Attributes:
        retrieval: Retrieves the run.
    """

    retrieval: Call[Run]

    def settle(self, error: APIError, case: Case) -> Plan[Run]:  # noqa: ARG002 - the signature of all of them
        """See `Reconciler.settle`."""
        run = yield Look(self.retrieval)
        if isinstance(run, Run) and (run.status == "cancelling" or run.status in TERMINAL_STATUSES):
            return run
        raise error


def _look(call: Call[T], error: APIError, case: Case) -> Plan[T]:
    seen = yield Look(call)
    if isinstance(seen, APIError):
        raise case.ambiguous(error, f"{call.operation}, which could tell, failed: {seen}")
    return seen  # type: ignore[no-any-return]  # what the client made of this call


def _pause(error: APIError, case: Case) -> Plan[None]:
    seconds = case.pause_s(error)
    if seconds == float("inf"):
        raise case.ambiguous(error, "there is no time for a second look before the deadline")
    yield Pause(seconds)


def _begins_with_newest(page: Page[M]) -> bool:
    return bool(page.data) and page.data[0].created_at > page.data[-1].created_at


def _outputs(step: RunStep) -> dict[str, str | None]:
    """Return the outputs of a step's function calls by their ids; `None` for one that has none yet."""
    calls = (step.step_details.tool_calls or ()) if step.step_details is not None else ()
    return {str(call.get("id")): (call.get("function") or {}).get("output") for call in calls}
