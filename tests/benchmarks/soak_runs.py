"""The runs of a soak: what is asked of each, the tools that they call, and whether each came out right.

A run is right if it ended as its plan allows, says what the server said, and left the server as it should:
created once, each batch submitted once, each tool called once. What has been found right is forgotten, here
and there, so that nothing of the measurement itself grows. Knows nothing of how the runs are paced.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.request import Request, urlopen

from run_server import calls_of

from orchestrator import RunResult, ToolContext, tool
from orchestrator.errors import DeadlineExceeded, OrchestratorError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from orchestrator import RunHandle
    from orchestrator.runs.request import Watch

PATIENCE_S: Final = 60.0
TOOL_TIMEOUT_S: Final = 0.3
DEADLINE_S: Final = 2.0

MIXTURES: Final = (
    ("double", "square"),
    ("double",),
    ("square", "stumble"),
    ("dawdle", "double"),
    ("drowse", "square", "stumble"),
)
"""The tools that runs call by turns: two that succeed, one that raises, and two that come too late."""

FAILING: Final = {"stumble": "raised", "dawdle": "timeout", "drowse": "timeout"}
"""The tools that have no result, and what is reported of them."""

Cancel: TypeAlias = Literal["before", "while", "after"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is to be started.

    Attributes:
        number: Its number.
        rounds: How many batches of tool calls it asks for.
        calls: How many calls there are in each.
        tools: The tools it calls, by turns.
        think_ms: How long the server's model thinks before each batch, and before its message.
        watch: Whether it is streamed or polled.
        journalled: Whether it is started where there is a journal.
        told: Whether somebody is told its events.
        cancel: When it is cancelled, if it is.
        cancel_after_s: Seconds from its start to that, for `"while"`.
        endless: The server lets it go on until it is cancelled.
        deadline_s: Its deadline, where that is to end it.
    """

    number: int
    rounds: int
    calls: int
    tools: tuple[str, ...]
    think_ms: int
    watch: Watch
    journalled: bool
    told: bool
    cancel: Cancel | None = None
    cancel_after_s: float = 0.0
    endless: bool = False
    deadline_s: float | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What tells the server all that."""
        plan: dict[str, object] = {
            "rounds": self.rounds,
            "calls": self.calls,
            "number": self.number,
            "think_ms": self.think_ms,
            "tools": ",".join(self.tools),
        }
        if self.endless:
            plan["until"] = "cancelled"
        return {name: str(value) for name, value in plan.items()}

    @property
    def asked(self) -> list[tuple[str, int]]:
        """The tool calls of a whole run, in order."""
        rounds = (calls_of(self.number, number + 1, self.calls, self.tools) for number in range(self.rounds))
        return [call for round_ in rounds for call in round_]

    @property
    def owed(self) -> set[tuple[str, int]]:
        """The calls that are made in a whole run, by id and number: all but those that may never begin.

        A call that comes too late may have waited for its thread or loop until then.
        """
        rounds = (calls_of(self.number, number + 1, self.calls, self.tools) for number in range(self.rounds))
        return {
            (f"call_{place}", number)
            for round_ in rounds
            for place, (name, number) in enumerate(round_)
            if FAILING.get(name) != "timeout"
        }

    @property
    def endings(self) -> set[str]:
        """The ways it may end."""
        if self.deadline_s is not None:
            return {"DeadlineExceeded"}
        if self.endless:
            return {"cancelled"}
        return {"completed", "cancelled"} if self.cancel in ("before", "while") else {"completed"}


def plan(rng: random.Random, number: int, think_ms: int) -> Plan:
    """Draw a run: most are left alone, a third is cancelled at some time, a few run into their deadline.

    Args:
        rng: Draws.
        number: Its number.
        think_ms: The longest that its model thinks at a time.
    """
    drawn = rng.random()
    life_s = 2 * think_ms / 1000
    ended: dict[str, Any] = {}
    if drawn < 0.05:
        ended = {"cancel": "before"}
    elif drawn < 0.20:
        ended = {"cancel": "while", "cancel_after_s": rng.uniform(0.0, life_s)}
    elif drawn < 0.25:
        ended = {"cancel": "while", "cancel_after_s": rng.uniform(0.0, 2 * life_s), "endless": True}
    elif drawn < 0.30:
        ended = {"cancel": "after"}
    elif drawn < 0.33:
        ended = {"deadline_s": DEADLINE_S, "endless": True}
    return Plan(
        number=number,
        rounds=rng.choice((0, 1, 1, 2)),
        calls=rng.randint(1, 3),
        tools=rng.choice(MIXTURES),
        think_ms=rng.randint(think_ms // 20, think_ms),
        watch="stream" if rng.random() < 0.65 else "poll",
        journalled=rng.random() < 0.25,
        told=rng.random() < 0.25,
        **ended,
    )


class Workshop:
    """The tools. Each counts its calls.

    Args:
        keeps: How many bytes each call of `double` keeps for ever: a leak on purpose.

    Attributes:
        calls: How often each call was made, by run, and within it by call id and number.
    """

    def __init__(self, *, keeps: int = 0) -> None:
        self.calls: defaultdict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
        self._lock = threading.Lock()
        self._keeps = keeps
        self._kept: list[bytearray] = []

    @property
    def tools(self) -> list[Callable[..., Any]]:
        """All of them, for an orchestrator."""
        late = tool(timeout_s=TOOL_TIMEOUT_S)
        return [self.double, self.square, self.stumble, late(self.dawdle), late(self.drowse)]

    def double(self, number: int, context: ToolContext) -> str:
        """Twice the number."""
        self._count(context, number)
        if self._keeps:
            self._kept.append(bytearray(b"x" * self._keeps))
        return str(2 * number)

    async def square(self, number: int, context: ToolContext) -> str:
        """The number's square, after a moment."""
        self._count(context, number)
        await asyncio.sleep(0.01)
        return str(number * number)

    def stumble(self, number: int, context: ToolContext) -> str:
        """Raise."""
        self._count(context, number)
        raise LookupError(f"there is no {number}")

    async def dawdle(self, number: int, context: ToolContext) -> str:
        """Take longer than there is time, on the loop."""
        self._count(context, number)
        await asyncio.sleep(PATIENCE_S)
        return "too late"

    def drowse(self, number: int, context: ToolContext) -> str:
        """Take longer than there is time, in a thread."""
        self._count(context, number)
        context.stop.wait(PATIENCE_S)
        return "too late"

    def _count(self, context: ToolContext, number: int) -> None:
        with self._lock:
            self.calls[context.run_id][context.call_id, number] += 1

    def forget(self, run_id: str) -> Counter[tuple[str, int]]:
        """How often each call of a run was made; not counted any more."""
        with self._lock:
            return self.calls.pop(run_id, Counter())


@dataclass
class Inquest:
    """Looks at one run after another.

    Attributes:
        workshop: The tools they called.
        server_url: Where the server is asked directly.
        found: How many runs ended how, and how many calls were made.
        wrong: What is not as it must be, a line each.
    """

    workshop: Workshop
    server_url: str
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _ended: dict[str, tuple[Plan, RunResult | None]] = field(default_factory=dict)

    def examine(self, plan: Plan, handle: RunHandle) -> None:
        """Take a run that is over; what the server says of it is asked later, for many at once."""
        result: RunResult | None = None
        try:
            result = handle.result(0)
            how = result.status
        except OrchestratorError as error:
            how = type(error).__name__
            if not isinstance(error, DeadlineExceeded):
                self._note(plan, str(error))
        self.found[how] += 1
        if how not in plan.endings:
            self._note(plan, f"it ended as {how}")
        if result is not None and result.status == "completed":
            self._examine_result(plan, result)
        if handle.run_id is not None:
            self._ended[handle.run_id] = plan, result
        else:
            self.found["never created"] += 1

    def _examine_result(self, plan: Plan, result: RunResult) -> None:
        asked = plan.asked
        if [call.name for call in result.tool_calls] != [name for name, _ in asked]:
            self._note(plan, f"it called {[call.name for call in result.tool_calls]}")
            return
        for call, (name, number) in zip(result.tool_calls, asked, strict=True):
            kind = None if call.error is None else call.error.partition(":")[0]
            right = str(2 * number if name == "double" else number * number)
            if kind != FAILING.get(name) or (kind is None and call.output != right):
                self._note(plan, f"{name}({number}) came to {call.output!r}, {call.error!r}")
        if result.text != (" ".join(call.output for call in result.tool_calls) or "well"):
            self._note(plan, f"it says {result.text!r}")

    def settle(self) -> None:
        """Hold the runs that are over against the server, and forget them there and here."""
        ended, self._ended = self._ended, {}
        if not ended:
            return
        for run_id, told in self._ask(ended).items():
            plan, result = ended[run_id]
            made = self.workshop.forget(run_id)
            self.found["tool calls"] += made.total()
            if told is None:
                self._note(plan, f"the server has no {run_id} that is over")
                continue
            self._compare(plan, result, told)
            if any(times != 1 for times in made.values()):
                self._note(plan, f"its calls were made {dict(made)}")
            if result is not None and result.status == "completed" and not plan.owed <= made.keys():
                self._note(plan, f"its calls {plan.owed - made.keys()} were never made")

    def _compare(self, plan: Plan, result: RunResult | None, told: Mapping[str, Any]) -> None:
        status = "cancelled" if result is None else result.status
        if told["status"] != status:
            self._note(plan, f"it is {told['status']} there and {status} here")
        if told["creates"] != 1:
            self._note(plan, f"it was created {told['creates']} times")
        counts = set(told["submissions"])
        if counts - {0, 1} or (status == "completed" and counts - {1}):
            self._note(plan, f"its batches were submitted {told['submissions']} times")
        if status == "completed" and result is not None and told["text"] not in ("", result.text):
            self._note(plan, f"it was told {told['text']!r} and says {result.text!r}")

    def _ask(self, ended: Mapping[str, object]) -> dict[str, Any]:
        body = json.dumps({"runs": list(ended)}).encode()
        with urlopen(Request(f"{self.server_url}/stub/settle", data=body), timeout=PATIENCE_S) as answer:
            settled: dict[str, Any] = json.load(answer)
        return settled

    def finish(self, report: Mapping[str, Any]) -> None:
        """Look at what the server has left when all runs are settled.

        Args:
            report: What it says of itself.
        """
        for name in ("runs", "active", "open_streams", "nonces", "submissions", "partial_submissions"):
            if report[name]:
                self.wrong.append(f"the server has {report[name]} {name} left")
        late = {run_id: dict(made) for run_id, made in self.workshop.calls.items()}
        if late:
            self.wrong.append(f"tools were called after their runs had ended: {late}")

    def _note(self, plan: Plan, what: str) -> None:
        self.wrong.append(f"{plan}: {what}")
