"""What becomes of the tool calls that were under way when the process died that conducted their run.

Owns the policy, as a pure function over the record. A call whose outcome was recorded is not touched, nor is
one that still waited for approval: it had not begun. Of the others nobody knows whether they took effect, and
of all of them where the journal was not to keep their texts:

1. A tool that is `idempotent` is called again; not once more, though, when that has killed several processes.
2. One with `on_unknown="ask"` is called again if somebody approves.
3. The model is told of every other that its outcome is unknown.

How a call is started, approved or answered is decided elsewhere, as for any call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from orchestrator.runs.record import Phase
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from orchestrator.protocol.objects import ToolCall
    from orchestrator.runs.record import RunRecord
    from orchestrator.tools import ToolRegistry

__all__ = ["MAX_INTERRUPTIONS", "unknown_settled"]

MAX_INTERRUPTIONS: Final = 3
"""How many processes may die within one batch before its calls are not made again any more."""

_UNKNOWN: Final = (
    "no result: the process that made this call died before the result was known, and whether the call took "
    "effect is not known; do not assume either"
)


def unknown_settled(record: RunRecord, registry: ToolRegistry) -> RunRecord:
    """Decide of the calls of the current batch that were started and have no outcome.

    Args:
        record: The run's last record, as its dead process left it.
        registry: The tools that the run may call here.

    Returns:
        What to go on from: outcomes for the calls that are not made again, and who is to be asked of others.
    """
    # The outputs of a batch that is redacted are not those that the model is to be given.
    if record.phase is not Phase.ACTING and not (record.phase is Phase.SUBMITTING and record.redacted):
        return record
    interruptions = record.interruptions + 1
    outcomes = {} if record.redacted else record.results_of(record.round)
    doubtful = set()
    for call in record.calls:
        if call.id in outcomes or (call.id in record.awaiting and not record.redacted):
            continue
        tool = registry.get(call.function.name)
        again = tool is not None and not record.redacted and interruptions <= MAX_INTERRUPTIONS
        if again and tool is not None and tool.options.idempotent:
            continue
        if again and tool is not None and tool.options.on_unknown == "ask":
            doubtful.add(call.id)
        else:
            outcomes[call.id] = _unknown(record, call)
    earlier = (result for result in record.results if result.round != record.round)
    return replace(
        record,
        interruptions=interruptions,
        doubtful=frozenset(doubtful),
        awaiting=record.awaiting - outcomes.keys(),
        results=(*earlier, *(outcomes[call.id] for call in record.calls if call.id in outcomes)),
    )


def _unknown(record: RunRecord, call: ToolCall) -> ToolCallResult:
    return ToolCallResult(
        round=record.round,
        call_id=call.id,
        name=call.function.name,
        arguments=call.function.arguments,
        output=_UNKNOWN,
        error="unknown: the process died that made the call, and whether it took effect is not known",
        run_id=record.run_id,
    )
