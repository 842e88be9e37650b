"""What a run did, told by how its successive records differ: its time line, its calls, its submissions.

Owns the comparison, as pure functions over two records. Knows no database; who writes the rows numbers and
dates them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.protocol.objects import ToolCall
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.result import ToolCallResult

__all__ = ["Happening", "calls_begun", "calls_ended", "changes", "ending", "submission"]


class Happening(NamedTuple):
    """One line of a time line.

    Attributes:
        kind: What happened, in a word or two.
        detail: What it happened to, or how; never what a tool was given or gave.
    """

    kind: str
    detail: str | None = None


def changes(before: RunRecord, after: RunRecord) -> Iterator[Happening]:
    """What has happened between two records of one run."""
    if after.thread_id != before.thread_id:
        yield Happening("thread", after.thread_id)
    if after.attempt != before.attempt:
        yield Happening("rerun", f"run {after.attempt}")
    if after.run_id != before.run_id and after.run_id is not None:
        yield Happening("run", after.run_id)
    if after.round != before.round:
        yield Happening("tool calls", ", ".join(call.function.name[:100] for call in after.calls))
    for result in calls_ended(before, after):
        yield Happening("tool call ended", f"{result.name[:100]} ({result.call_id}): {_how(result)}")
    if after.ending is not None and after.ending is not before.ending:
        yield Happening("ending", str(after.ending))
    if after.phase is not before.phase:
        yield Happening(str(after.phase), after.status)


def _how(result: ToolCallResult) -> str:
    return "done" if result.error is None else result.error.partition(":")[0]


def ending(finish: Finish) -> Happening:
    """The last line."""
    if finish.result is not None:
        return Happening("ended", finish.result.status)
    return Happening("ended", type(finish.error).__name__)


def calls_begun(before: RunRecord | None, after: RunRecord) -> tuple[ToolCall, ...]:
    """The calls of a batch that the earlier record did not have."""
    if before is not None and after.round == before.round:
        return ()
    return after.calls


def calls_ended(before: RunRecord | None, after: RunRecord) -> list[ToolCallResult]:
    """The outcomes that the earlier record did not have."""
    if before is None:
        return list(after.results)
    if after.results is before.results:
        return []
    # By identity: an outcome that takes the place of another one is written over it.
    known = {id(result) for result in before.results}
    return [result for result in after.results if id(result) not in known]


def submission(before: RunRecord | None, after: RunRecord) -> tuple[int, str] | None:
    """The batch whose submission began or was seen to be accepted between the two, and which of both."""
    submitting = after.phase is Phase.SUBMITTING
    was_submitting = before is not None and before.phase is Phase.SUBMITTING
    if submitting and not was_submitting:
        return after.round, "sent"
    if was_submitting and not submitting and after.ending is None and before is not None:
        return before.round, "accepted"
    return None
