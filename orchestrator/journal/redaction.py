"""What of a run's tool calls a journal may keep, where its user has a say in that.

Owns where the user's function is applied: to what tools are given and what they answer, in the calls of a
batch, in outcomes and in a result's steps. It changes what is written, never what is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from orchestrator.runs.record import digest_of
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.protocol.objects import RunStep, ToolCall
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.result import ToolCallResult

__all__ = ["Redact", "Redaction"]

log = get_logger(__name__)

Redact: TypeAlias = Callable[[Literal["arguments", "output"], str, str], str]
"""Given what it is, the tool's name and the text; returns what may be kept in its place."""

_FAILED: Final = "(not kept: redact= failed)"


class Redaction:
    """Applies the user's function; without one, everything is kept as it is.

    Args:
        redact: The function. Where it raises, nothing of the text is kept.
    """

    def __init__(self, redact: Redact | None) -> None:
        self._redact = redact

    def arguments(self, tool: str, text: str) -> str:
        """What is kept of a call's arguments."""
        return self._kept("arguments", tool, text)

    def output(self, tool: str, text: str) -> str:
        """What is kept of an output, or of the error in its place."""
        return self._kept("output", tool, text)

    def record(self, record: RunRecord) -> RunRecord:
        """What is kept of a record: it says whether its batch can be gone on with, and what stands for it."""
        if self._redact is None or not record.calls or record.redacted:
            return record
        calls = tuple(map(self._call, record.calls))
        if calls == record.calls and not self._changes(record.results_of(record.round).values()):
            return record
        return msgspec.structs.replace(record, calls=calls, redacted=True, digest=digest_of(record.calls))

    def finish(self, finish: Finish) -> Finish:
        """What is kept of an outcome; the calls of its result are written apart."""
        if self._redact is None or finish.result is None:
            return finish
        steps = tuple(map(self._step, finish.result.steps))
        return msgspec.structs.replace(finish, result=replace(finish.result, steps=steps))

    def _kept(self, what: Literal["arguments", "output"], tool: str, text: str) -> str:
        if self._redact is None:
            return text
        try:
            kept = self._redact(what, tool, text)
        except Exception as error:  # noqa: BLE001 - a user's function must not lose the run
            log.warning("journal.redact_failed", tool=tool[:100], error=type(error).__name__)
            return _FAILED
        return kept if isinstance(kept, str) else _FAILED

    def _changes(self, results: Iterable[ToolCallResult]) -> bool:
        return any(self.output(one.name, one.output) != one.output for one in results)

    def _call(self, call: ToolCall) -> ToolCall:
        function = call.function
        kept = self.arguments(function.name, function.arguments)
        return msgspec.structs.replace(call, function=msgspec.structs.replace(function, arguments=kept))

    def _step(self, step: RunStep) -> RunStep:
        details = step.step_details
        if details is None or not details.tool_calls:
            return step
        calls = [self._shown(call) for call in details.tool_calls]
        return msgspec.structs.replace(step, step_details=msgspec.structs.replace(details, tool_calls=calls))

    def _shown(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        name, kept = str(function.get("name")), dict(function)
        for what, keep in (("arguments", self.arguments), ("output", self.output)):
            if isinstance(kept.get(what), str):
                kept[what] = keep(name, kept[what])
        return call | {"function": kept}
