"""After the storm: what each handle says, held against what the server's own store says.

Owns the runs' scripts, the tools that count their calls, and what is right. Knows nothing of what broke.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import (
    AmbiguousOutcome,
    DeadlineExceeded,
    OrchestratorClosed,
    OrchestratorError,
    RunError,
    ToolError,
)
from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.tools import ToolContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator import RunHandle, RunResult
    from orchestrator.client import ThreadsClient
    from orchestrator.protocol.objects import Run, RunStep

Kind: TypeAlias = Literal["quiet", "one", "wide", "deep", "stumbling", "broken", "slow"]

ROUNDS: Final[dict[Kind, tuple[tuple[str, ...], ...]]] = {
    "quiet": (),
    "one": (("look",),),
    "wide": (("look", "fetch", "look", "fetch"),),
    "deep": (("fetch",), ("look", "fetch"), ("look",)),
    "stumbling": (("look", "stumble"),),
    "broken": (("look",),),
    "slow": (("fetch",),),
}
"""The tools that each kind of run calls, round by round."""

TOOLS: Final = ("look", "fetch", "stumble")

RESTARTED: Final = "The server was restarted while the model worked on this run."


def script() -> str:
    """The server's script; a run's message is its kind and its tag."""
    rules = [_rule(kind, rounds) for kind, rounds in ROUNDS.items()]
    return json.dumps({"piece_chars": 8, "piece_s": 0.004, "rules": rules})


def _rule(kind: Kind, rounds: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"think_s": 0.02}]
    for number, tools in enumerate(rounds, start=1):
        calls = [
            {
                "tool": tool,
                "arguments": {"tag": "{tag}", "round": number, "place": place},
                "as": f"r{number}p{place}",
            }
            for place, tool in enumerate(tools)
        ]
        steps += [{"call": calls}, {"think_s": 0.01}]
    if kind == "broken":
        steps.append({"fail": {"code": "server_error", "message": "the model broke"}})
    elif kind == "slow":
        steps.append({"think_s": 3600})
    else:
        names = [f"{{r{number}p{place}}}" for number, place, _ in _calls(kind)]
        steps.append({"say": " ".join(["{tag} is done:", *names])})
    return {"match": f"^{kind} (?P<tag>\\w+)$", "steps": steps}


def _calls(kind: Kind) -> list[tuple[int, int, str]]:
    return [
        (number, place, tool)
        for number, tools in enumerate(ROUNDS[kind], start=1)
        for place, tool in enumerate(tools)
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is to be started.

    Attributes:
        tag: Its own word, in its message, its calls and its text.
        kind: Its script.
        cancel_after: Events until it is cancelled, or `None`.
        deadline_s: Its deadline where that is short, or `None`.
        tight: Its actor may not die often.
        closed: It is under way when its orchestrator is closed.
    """

    tag: str
    kind: Kind
    cancel_after: int | None = None
    deadline_s: float | None = None
    tight: bool = False
    closed: bool = False

    @property
    def text(self) -> str:
        """What it says if it completes."""
        outputs = [_output(tool, self.tag, number, place) for number, place, tool in _calls(self.kind)]
        return " ".join([f"{self.tag} is done:", *outputs])


def _output(tool: str, tag: str, number: int, place: int) -> str:
    return f"{tool}-{tag}-{number}-{place}"


class Workshop:
    """The tools: one is synchronous, one asynchronous, one fails. Each counts its calls.

    Attributes:
        calls: How often each call was executed, by run id and call id.
    """

    def __init__(self, seed: int) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._random = random.Random(seed)

    @property
    def tools(self) -> tuple[Callable[..., Any], ...]:
        return (self.look, self.fetch, self.stumble)

    def look(self, tag: str, round: int, place: int, context: ToolContext) -> str:  # noqa: A002 - its argument
        """Work on a thread for a moment."""
        context.stop.wait(self._count(context))
        return _output("look", tag, round, place)

    async def fetch(self, tag: str, round: int, place: int, context: ToolContext) -> str:  # noqa: A002
        """Work on the loop for a moment."""
        import asyncio

        await asyncio.sleep(self._count(context))
        return _output("fetch", tag, round, place)

    def stumble(self, tag: str, round: int, place: int, context: ToolContext) -> str:  # noqa: A002
        """Fail, and say so."""
        self._count(context)
        raise ToolError(_output("stumble", tag, round, place))

    def _count(self, context: ToolContext) -> float:
        with self._lock:
            self.calls[context.run_id, context.call_id] += 1
            return self._random.uniform(0, 0.05)


@dataclass
class Inquest:
    """Looks at one run after another, and keeps count of what it found.

    Attributes:
        client: Asks the server directly.
        workshop: The tools that ran.
        found: How many runs ended how.
        named: Ids of runs and threads that an error named.
        wrong: What is not as it must be, a line each.
        ambiguous: The errors that leave open whether a run was made, and what the server says of it.
    """

    client: ThreadsClient
    workshop: Workshop
    found: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    def examine(self, plan: Plan, handle: RunHandle) -> None:
        runs = [] if handle.thread_id is None else self.client.list_runs(handle.thread_id).data
        nonce = handle._state.record.nonce
        made = [run for run in runs if run.metadata and run.metadata.get(NONCE_KEY) == nonce]
        if len(runs) > 1 or runs != made:
            self._note(plan, handle, f"there are {[run.id for run in runs]}, {len(made)} its own")
        try:
            result = handle.result(0)
        except OrchestratorError as error:
            self._examine_error(plan, handle, error, made)
        else:
            self._examine_result(plan, handle, result, made)
        for run in made:
            self._examine_calls(plan, handle, run)

    def _examine_result(self, plan: Plan, handle: RunHandle, result: RunResult, made: list[Run]) -> None:
        self.found[result.status] += 1
        if result.run_id is None:
            self.found["cancelled, unsent"] += 1
            if made or result.status != "cancelled" or not (plan.closed or plan.cancel_after is not None):
                self._note(plan, handle, f"ended as {result.status} without a run; there are {made}")
            return
        if result.run_id not in {run.id for run in made}:
            self._note(plan, handle, f"{result.run_id} is not on its thread")
            return
        run = self.client.get_run(result.thread_id or "", result.run_id)
        if run.status != result.status:
            self._note(plan, handle, f"is {run.status} there and {result.status} here")
        messages = self.client.list_messages(run.thread_id, run_id=run.id, order="asc").data
        if tuple(messages) != result.messages:
            self._note(plan, handle, f"messages differ: {messages} there and {result.messages} here")
        if tuple(self._steps(run)) != result.steps:
            self._note(plan, handle, f"steps differ: {self._steps(run)} there and {result.steps} here")
        answered = [(id_, output) for id_, output in _outputs(result.steps) if output is not None]
        reported = [(call.call_id, call.output) for call in result.tool_calls]
        if run.status == "completed" and answered != reported:
            self._note(plan, handle, f"was answered {answered}, and reports {reported}")
        self._examine_status(plan, handle, run, result)

    def _examine_status(self, plan: Plan, handle: RunHandle, run: Run, result: RunResult) -> None:
        reason = None if run.last_error is None else run.last_error.message
        unwanted = plan.cancel_after is not None or plan.closed
        match run.status:
            case "completed":
                right = result.text == plan.text and plan.kind not in ("broken", "slow")
            case "failed":
                right = reason == RESTARTED or (plan.kind == "broken" and reason == "the model broke")
                self.found[f"failed: {reason}"] += 1
            case "cancelled":
                right = unwanted
            case _:
                right = False
        if not right:
            self._note(plan, handle, f"ended as {run.status} ({reason}) and said {result.text!r}")

    def _examine_error(
        self, plan: Plan, handle: RunHandle, error: OrchestratorError, made: list[Run]
    ) -> None:
        name = type(error).__name__
        self.found[name] += 1
        active = [run.id for run in made if run.status in ACTIVE_STATUSES]
        nonce = handle._state.record.nonce
        self.named |= {run.id for run in made if run.id in str(error) or nonce in str(error)}
        match error:
            case AmbiguousOutcome():
                self.ambiguous.append(f"{plan.tag}: {error} ({len(made)} made, {len(active)} active)")
                right = error.thread_id == handle.thread_id and error.nonce == nonce
            case DeadlineExceeded():
                right = plan.deadline_s is not None and not active
            case OrchestratorClosed():
                right = plan.closed
            case RunError():
                right = plan.tight and "given up" in str(error)
                self.found[str(error).rpartition("; ")[2].partition(" (")[0].partition(":")[0]] += 1
            case _:
                right = False
        if not right or not set(active) <= self.named:
            self._note(plan, handle, f"{name}: {error}; active there: {active}; made: {len(made)}")

    def _examine_calls(self, plan: Plan, handle: RunHandle, run: Run) -> None:
        for call_id, output in _outputs(self._steps(run)):
            times = self.workshop.calls[run.id, call_id]
            self.found["calls"] += times
            if times > 1 or (output is not None and times != 1):
                self._note(plan, handle, f"{call_id} was executed {times} times; its output: {output}")

    def _steps(self, run: Run) -> list[RunStep]:
        return self.client.list_run_steps(run.thread_id, run.id, order="asc").data

    def _note(self, plan: Plan, handle: RunHandle, what: str) -> None:
        self.wrong.append(f"{plan} {handle}: {what}")


def _outputs(steps: Iterable[RunStep]) -> list[tuple[str, str | None]]:
    """The calls that steps show: ids and outputs, `None` where there is none yet."""
    calls = (call for step in steps for call in (step.step_details and step.step_details.tool_calls) or ())
    return [(call["id"], call["function"].get("output")) for call in calls]
