"""A run that follows one which failed or expired: whether, how soon, and what it is asked for.

Owns the policy, as pure functions over the record. How the next run is created and followed is the
lifecycle's, for which it is a run like any other.

The rules:

1. Only a run that ended by itself is followed, only while the deadline and `max_total_tokens` leave room for
   another, and only until there were `RerunPolicy.attempts` of them.
2. A failed run is followed if the policy lists its `last_error.code`, and if no tool was called that may not
   be called once more: what the model was told is lost with the run.
3. An expired run is followed if `on_expired="restart"`. The tool results so far are carried over in
   `additional_instructions`, so that nothing has to be called again; a call that had no outcome by then is
   among them, as one whose effect is not known.
4. The messages went to the thread with the first run, and are not sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.protocol.objects import Usage
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.protocol.objects import Run
    from orchestrator.runs.record import RunRecord

__all__ = ["MAX_CARRIED_CHARACTERS", "abandoned", "options", "pause_s", "spent"]

MAX_CARRIED_CHARACTERS = 100_000
"""The most characters of tool results that are carried over; the protocol allows instructions 256,000."""

_HEADING = (
    "An earlier run expired before it could answer. It had made these tool calls already: use their results, "
    "and do not make the calls again."
)


def pause_s(record: RunRecord, run: Run, *, now: float, jitter: float) -> float | None:
    """Seconds until another run follows this one, or `None` when none does.

    Args:
        record: The record, before anything of it is given up.
        run: How the current run ended.
        now: Seconds of the clock that `RunRecord.deadline_at` is reckoned by.
        jitter: A number in [0, 1).
    """
    policy = record.request.rerun
    if record.ending is not None or record.attempt >= policy.attempts or not record.request.assistant_id:
        return None
    if not (_is_worth_another(record, run) or _is_restarted(record, run)) or _is_spent(record, run):
        return None
    pause = min(policy.cap_s, policy.base_s * 2.0 ** (record.attempt - 1)) * jitter
    return pause if now + pause < record.deadline_at else None


def _is_worth_another(record: RunRecord, run: Run) -> bool:
    code = run.last_error.code if run.status == "failed" and run.last_error is not None else None
    return code in record.request.rerun.codes and not (record.request.unrepeatable_tools & _called(record))


def _is_spent(record: RunRecord, run: Run) -> bool:
    most, used = record.request.max_total_tokens, spent(record, run.usage)
    return most is not None and used is not None and used.total_tokens >= most


def _is_restarted(record: RunRecord, run: Run) -> bool:
    return run.status == "expired" and record.request.on_expired == "restart"


def _called(record: RunRecord) -> set[str]:
    return {result.name for result in record.results} | {call.function.name for call in record.calls}


def abandoned(record: RunRecord) -> tuple[ToolCallResult, ...]:
    """Return what stands for the calls of a run that ended before they had an outcome."""
    known = record.results_of(record.round)
    return tuple(
        ToolCallResult(
            round=record.round,
            call_id=call.id,
            name=call.function.name,
            arguments=call.function.arguments,
            output="no result: the run ended before the call did, and whether it took effect is not known",
            error="abandoned: the run ended before the call did",
            run_id=record.run_id,
        )
        for call in record.calls
        if call.id not in known
    )


def options(record: RunRecord) -> Mapping[str, Any]:
    """Return the options of the current run's create request; a following run's differ from the first's."""
    if record.attempt == 1:
        return record.request.options
    changed = {key: value for key, value in record.request.options.items() if key != "additional_messages"}
    if record.carries and record.results:
        own = changed.get("additional_instructions")
        changed["additional_instructions"] = "\n\n".join(filter(None, (own, _carried(record))))
    return changed


def _carried(record: RunRecord) -> str:
    text = "\n".join((_HEADING, *_lines(record)))
    if len(text) <= MAX_CARRIED_CHARACTERS:
        return text
    return text[:MAX_CARRIED_CHARACTERS] + "\n(cut: there was more)"


def _lines(record: RunRecord) -> Iterator[str]:
    for result in record.results:
        yield f"- {result.name}({result.arguments}): {result.output}"


def spent(record: RunRecord, usage: Usage | None) -> Usage | None:
    """The tokens of all runs so far, given those of the current one."""
    if record.spent is None or usage is None:
        return usage or record.spent
    return Usage(
        prompt_tokens=record.spent.prompt_tokens + usage.prompt_tokens,
        completion_tokens=record.spent.completion_tokens + usage.completion_tokens,
        total_tokens=record.spent.total_tokens + usage.total_tokens,
    )
