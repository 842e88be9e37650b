"""Whether an assistant's functions have their handlers here: looked at beside the runs.

Owns when the assistant is fetched for that, what is remembered of it, and who is told. Refuses to know how
schemas are compared (that is the registry's) and how a run goes on: no run waits for a check, fails with it
or is kept open by it. Lives on the actors' loop, save for `ToolChecks.beside`.

The rules:

1.  A check begins when its run was first seen on the server, so that it never comes before the create; its
    request has no urgency at the gate, and is made once.
2.  Runs whose checks would ask and compare the same share one: it is told in the events of all of them that
    are not over, and logged once.
3.  What was fetched and compared is remembered for `"once"`, and so is an assistant that the server will not
    show on this key, or does not serve; what could not be fetched for another reason is not.
4.  A run that sends its own tools overrides the assistant's, which is then not asked for. Its functions of
    Python have their handlers; of its wire definitions those are told that have none. That they describe a
    function otherwise than its handler is the caller's wish.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from orchestrator.client import endpoints
from orchestrator.errors import APIStatusError
from orchestrator.runs.effects import CreateRun, RequestEffect
from orchestrator.runs.inputs import Input, RunObserved
from orchestrator.runs.result import Notice
from orchestrator.telemetry import get_logger
from orchestrator.tools import ToolCheck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from orchestrator.client import AsyncThreadsClient
    from orchestrator.protocol.objects import Assistant
    from orchestrator.runs.backend import Backend, Report
    from orchestrator.runtime import LoopThread
    from orchestrator.supervision.gate import Gate
    from orchestrator.supervision.state import RunState
    from orchestrator.tools import RunTools, ToolRegistry

__all__ = ["CheckTools", "ToolChecks"]

log = get_logger(__name__)

CheckTools: TypeAlias = Literal["once", "always", "off"]

_KEPT: Final = 1024
"""How many checks are remembered; the one that was of use least lately is forgotten first, and made again."""

_REFUSED: Final = frozenset({401, 403, 404, 405, 501})
"""Statuses that another attempt would get again."""

_DETAIL_CHARS: Final = 1000

_NO_HANDLER_REMEDY = (
    "register functions of these names, Orchestrator(tools=[...]) or start(tools=[...]), "
    "or take them off the assistant"
)
_DIFFERENT_REMEDY = (
    "bring the assistant up to date, modify_assistant(..., tools=registry.definitions()), or the functions"
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Look:
    """What one run's check is about.

    Attributes:
        subject: Equal for those that ask and compare the same.
        once: Whether it need not be made where it was made before.
        tools: What the run may call.
        state: The run, as it is seen from outside.
        client: Makes the run's requests.
        gate: Where they wait for their turn.
    """

    subject: Hashable
    once: bool
    tools: RunTools
    state: RunState
    client: AsyncThreadsClient
    gate: Gate

    @property
    def assistant_id(self) -> str:
        return self.state.record.request.assistant_id


class ToolChecks:
    """The checks of one orchestrator.

    Args:
        loop_thread: The actors' loop.
    """

    def __init__(self, loop_thread: LoopThread) -> None:
        self._loop_thread = loop_thread
        self._made: OrderedDict[Hashable, None] = OrderedDict()
        self._waiting: dict[Hashable, list[RunState]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def beside(
        self,
        backend: Backend,
        *,
        check: CheckTools,
        tools: RunTools,
        state: RunState,
        client: AsyncThreadsClient,
        gate: Gate,
    ) -> Backend:
        """Return a backend that does the same, and begins the run's check when it first shows the run.

        From any thread; nothing is asked yet.

        Args:
            backend: Makes the run's requests.
            check: Whether there is a check, and whether one that was made before will do.
            tools: What the run may call.
            state: The run, as it is seen from outside.
            client: Makes the check's request.
            gate: Where it waits for its turn.
        """
        missing = tools.without_handler
        if check == "off" or (tools.sent is not None and not missing):
            return backend
        # By identity: a registry's tools are replaced by none, and live as long as it does.
        compared: tuple[object, ...] = tuple(tools.registry) if tools.sent is None else missing
        subject = (client.account, state.record.request.assistant_id, tools.sent is None, compared)
        look = _Look(
            subject=subject, once=check == "once", tools=tools, state=state, client=client, gate=gate
        )
        return _FirstSight(backend, state, partial(self._begin, look))

    async def aclose(self) -> None:
        """Cancel the checks that are under way, and wait until they are gone."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, look: _Look) -> None:
        if look.once and look.subject in self._made:
            self._made.move_to_end(look.subject)
        elif look.subject in self._waiting:
            self._waiting[look.subject].append(look.state)
        else:
            self._waiting[look.subject] = [look.state]
            task = self._loop_thread.create_task(self._check(look), name=f"{look.state.key}:CheckTools")
            self._tasks.add(task)
            task.add_done_callback(partial(self._forget, look.subject))

    def _forget(self, subject: Hashable, task: asyncio.Task[None]) -> None:
        # Not in the task itself: one that is cancelled before its first step never gets to a `finally`.
        self._tasks.discard(task)
        self._waiting.pop(subject, None)

    async def _check(self, look: _Look) -> None:
        try:
            if look.tools.sent is None:
                found = await _compared(await _assistant(look), look.tools.registry)
            else:
                found = ToolCheck(without_handler=look.tools.without_handler)
        except Exception as error:  # noqa: BLE001 - whatever a server answers, it is no matter of the run's
            log.debug(
                "tools.check_failed",
                assistant_id=look.assistant_id,
                run_key=look.state.key,
                error=type(error).__name__,
                reason=str(error),
            )
            if isinstance(error, APIStatusError) and error.status in _REFUSED:
                self._remember(look.subject)
            return
        self._remember(look.subject)
        if not found:
            _tell(look, found, self._waiting[look.subject])

    def _remember(self, subject: Hashable) -> None:
        self._made[subject] = None
        self._made.move_to_end(subject)
        if len(self._made) > _KEPT:
            self._made.popitem(last=False)


class _FirstSight:
    """A backend that says when it first shows its run.

    Args:
        backend: Makes the requests.
        state: The run; the backend shows others, too, that have its thread.
        seen: Called once, after what was seen has been reported. It must not raise.
    """

    __slots__ = ("_backend", "_seen", "_state")

    def __init__(self, backend: Backend, state: RunState, seen: Callable[[], None]) -> None:
        self._backend = backend
        self._state = state
        self._seen: Callable[[], None] | None = seen

    def perform(self, effect: RequestEffect, report: Report) -> Awaitable[None]:
        """Make one attempt; see `Backend.perform`."""
        if self._seen is not None:
            report = partial(self._told, effect, report)
        return self._backend.perform(effect, report)

    def _told(self, effect: RequestEffect, report: Report, *inputs: Input) -> None:
        report(*inputs)
        if self._seen is not None and any(self._shows_the_run(effect, input_) for input_ in inputs):
            seen, self._seen = self._seen, None
            seen()

    def _shows_the_run(self, effect: RequestEffect, input_: Input) -> bool:
        if not isinstance(input_, RunObserved):
            return False
        return isinstance(effect, CreateRun) or input_.run.id == self._state.record.run_id


async def _assistant(look: _Look) -> Assistant:
    """Fetch the assistant, in one attempt.

    A failure is not told to the server's breaker: checks alone must not keep runs from a server.

    Raises:
        APIError: It could not be fetched.
    """
    ticket = look.gate.ask_aside("GetAssistant")
    try:
        await ticket.passed()
        answer = await look.client.attempt(endpoints.get_assistant(look.assistant_id))
    except APIStatusError as error:
        look.gate.hear(error.status, error.headers)
        raise
    finally:
        ticket.leave()
    look.gate.hear(answer.status, answer.headers)
    return answer.value


async def _compared(assistant: Assistant, registry: ToolRegistry) -> ToolCheck:
    """Compare one function at a time, so that no mailbox waits for a hundred of them."""
    found = []
    for definition in assistant.tools:
        found.append(registry.check(msgspec.structs.replace(assistant, tools=[definition])))
        await asyncio.sleep(0)
    return ToolCheck(
        without_handler=tuple(name for one in found for name in one.without_handler),
        different=tuple(function for one in found for function in one.different),
    )


def _tell(look: _Look, found: ToolCheck, runs: list[RunState]) -> None:
    different = tuple(one.name for one in found.different)
    detail = f"assistant {look.assistant_id}: {'; '.join(str(found).splitlines())}"
    if len(detail) > _DETAIL_CHARS:
        detail = f"{detail[: _DETAIL_CHARS - 1]}…"
    remedies = [_NO_HANDLER_REMEDY] * bool(found.without_handler) + [_DIFFERENT_REMEDY] * bool(different)
    record = look.state.record
    log.warning(
        "run.tools_differ",
        assistant_id=look.assistant_id,
        without_handler=found.without_handler,
        different=different,
        detail=detail,
        run_key=record.key,
        run_id=record.run_id,
        thread_id=record.thread_id,
        request_id=look.state.last_request_id,
        attempt=record.attempt,
        remedy="; ".join(remedies),
    )
    for state in runs:
        if not state.finished:  # its verdict is the last of its events
            state.publish(Notice(event="run.tools_differ", run_id=state.record.run_id, detail=detail))
