"""What came of the demo's runs: judged one by one, then printed with the totals.

Claims no more than it compared: each completed run's submissions with the steps that the server keeps of it,
and, on the demo's own server, each answer with the tools' own results.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from rich.console import Console

    from orchestrator.demo.questions import Asked
    from orchestrator.runs.result import RunResult

__all__ = ["Outcome", "judged", "print_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run.

    Attributes:
        result: The run's result; `None` when it failed on this side.
        wrong: What is not as it should be, or `None`.
    """

    result: RunResult | None
    wrong: str | None


def judged(asked: Asked, future: Future[RunResult], *, own: bool) -> Outcome:
    """Judge a run that is over.

    Args:
        asked: What was asked.
        future: What came of it, done.
        own: Whether the demo's own rules answered, so that the answer can be judged, too.
    """
    try:
        result = future.result()
    except OrchestratorError as error:
        return Outcome(result=None, wrong=f"failed here: {error}")
    return Outcome(result=result, wrong=_wrong(asked, result, own=own))


def _wrong(asked: Asked, result: RunResult, *, own: bool) -> str | None:
    if asked.to_cancel and result.status == "cancelled":
        return None
    if result.status != "completed" or (asked.to_cancel and own):
        reason = "" if result.error is None else f": {result.error.message}"
        return f"run {result.run_id} on thread {result.thread_id} ended as {result.status}{reason}"
    if not _is_whole(result):
        return f"the server's steps of run {result.run_id} do not show what was submitted, batch by batch"
    return asked.question.wrong(result) if own else None


def _is_whole(result: RunResult) -> bool:
    """Whether the server's own account, its steps, holds each batch once and with all its outputs."""
    answered = [
        {call["id"]: call["function"]["output"] for call in step.step_details.tool_calls or ()}
        for step in result.steps
        if step.status == "completed" and step.step_details is not None and step.type == "tool_calls"
    ]
    submitted = [
        {call.call_id: call.output for call in result.tool_calls if call.round == number}
        for number in sorted({call.round for call in result.tool_calls})
    ]
    return answered == submitted


def print_report(console: Console, outcomes: Sequence[Outcome], elapsed_s: float, *, own: bool) -> int:
    """Print every answer and the totals.

    Args:
        console: Where to.
        outcomes: In the order in which the runs were started.
        elapsed_s: Seconds from the first start to the last end.
        own: Whether the answers were judged.

    Returns:
        The exit code: 1 when anything is wrong, else 0.
    """
    for number, outcome in enumerate(outcomes, 1):
        _print_outcome(console, number, outcome)
    console.print()
    console.print(f"{_statuses(outcomes)} in {elapsed_s:.1f} s", highlight=False, soft_wrap=True)
    wrong = sum(outcome.wrong is not None for outcome in outcomes)
    if wrong:
        said = f"{wrong} of {_count(len(outcomes), 'run')} not as it should be"
        console.print(said, style="bold red", highlight=False, soft_wrap=True)
        return 1
    console.print(_batches(outcomes), highlight=False, soft_wrap=True)
    said = "every answer agrees with the tools" if own else "the answers are the server's own: not judged"
    console.print(said, highlight=False, soft_wrap=True)
    return 0


def _print_outcome(console: Console, number: int, outcome: Outcome) -> None:
    style = None
    if outcome.wrong is not None:
        said, style = outcome.wrong, "red"
    else:
        assert outcome.result is not None
        said = outcome.result.text if outcome.result.status == "completed" else f"({outcome.result.status})"
    console.print(f"{number:>4}  {said}", style=style, highlight=False, markup=False, soft_wrap=True)


def _statuses(outcomes: Sequence[Outcome]) -> str:
    statuses = Counter(
        "failed here" if outcome.result is None else outcome.result.status for outcome in outcomes
    )
    return ", ".join(f"{number} {status}" for status, number in statuses.most_common())


def _batches(outcomes: Sequence[Outcome]) -> str:
    """Say what the comparison of completed runs showed."""
    completed = [
        outcome.result
        for outcome in outcomes
        if outcome.result is not None and outcome.result.status == "completed"
    ]
    calls = sum(len(result.tool_calls) for result in completed)
    batches = sum(len({call.round for call in result.tool_calls}) for result in completed)
    return (
        f"{_count(calls, 'tool call')} in {_count(batches, 'batch', 'batches')}: "
        "the server's steps show each batch once and whole"
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
