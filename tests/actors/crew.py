"""A supervisor without a façade, and backends around the real one that kill actors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
import uuid
from typing import TYPE_CHECKING, Any, NoReturn, cast

from stage import PATIENCE_S, QUICK, Stage, assert_nothing_left

from orchestrator import RestartPolicy, RunHandle, ServerLimits, ToolRegistry
from orchestrator.client import AsyncThreadsClient
from orchestrator.errors import APIConnectionError
from orchestrator.journal import Address, MemoryJournal
from orchestrator.runs.backend import Heard, ThreadsBackend
from orchestrator.runs.effects import CancelRun, CreateRun, RequestEffect
from orchestrator.runs.inputs import Input, RequestFailed, TimerFired
from orchestrator.runs.record import RunRecord
from orchestrator.runs.request import RunRequest, Watch, normalized_messages
from orchestrator.runtime import acquire
from orchestrator.supervision import RunState, Supervisor
from orchestrator.supervision.draining import Draining
from orchestrator.supervision.gate import Gates
from orchestrator.supervision.in_flight import InFlight
from orchestrator.supervision.messages import Admit, Forward
from orchestrator.tools import Approvals, ToolExecutor
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.runs.backend import Backend, Report

AT_ONCE = RestartPolicy(backoff_s=0.0)


class Poison:
    """A timer's name that no table can look up."""

    def __hash__(self) -> NoReturn:
        raise ArithmeticError("poisoned")


def poison() -> Input:
    return TimerFired(timer=cast("Any", Poison()), serial=0)


class Killing:
    """A backend that kills the actor around the first request of a kind.

    Args:
        backend: What makes the requests.
        kind: Which request kills.
        before: Whether the actor dies while the request is under way, or once its outcome was told.
    """

    def __init__(self, backend: Backend, *, kind: type[RequestEffect], before: bool = True) -> None:
        self._backend = backend
        self._kind = kind
        self._before = before
        self._armed = True

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        strikes = self._armed and isinstance(effect, self._kind)
        self._armed = self._armed and not strikes
        if strikes and self._before:
            report(poison())
        await self._backend.perform(effect, report)
        if strikes and not self._before:
            report(poison())


def collected() -> tuple[list[Input], Report]:
    """A list, and the report that puts everything into it."""
    told: list[Input] = []
    return told, lambda *inputs: told.extend(inputs)


class Refusing:
    """A backend whose first cancels meet a server that fails."""

    def __init__(self, backend: Backend, *, times: int) -> None:
        self._backend = backend
        self._left = times

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        if isinstance(effect, CancelRun) and self._left:
            self._left -= 1
            error = APIConnectionError("reset", method="POST", path="/cancel", sent=True)
            report(RequestFailed(number=effect.number, error=error))
        else:
            await self._backend.perform(effect, report)


class Swallowing:
    """A backend that makes creates, and reports what kills instead of their answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        swallowed, swallow = collected()
        swallows = isinstance(effect, CreateRun)
        await self._backend.perform(effect, swallow if swallows else report)
        if swallowed:
            report(poison())


class Outlived:
    """A backend that kills the actor and answers its create in one breath: nobody comes to handle that."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        told, tell = collected()
        creates = isinstance(effect, CreateRun)
        await self._backend.perform(effect, tell if creates else report)
        if creates:
            report(poison(), *told)


class Unsent:
    """A backend that cannot send the first create, and kills the actor once it has said so."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._armed = True

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        if self._armed and isinstance(effect, CreateRun):
            self._armed = False
            error = APIConnectionError("refused", method="POST", path="/runs", sent=False)
            report(RequestFailed(number=effect.number, error=error))
            report(poison())
        else:
            await self._backend.perform(effect, report)


class Crew:
    """A supervisor and what it needs, without a façade."""

    def __init__(
        self,
        stage: Stage,
        *tools: Callable[..., Any],
        restart: RestartPolicy,
        journal: MemoryJournal | None = None,
    ) -> None:
        self._stage = stage
        self._client = AsyncThreadsClient(stage.server.base_url, api_key=stage.server.api_key)
        self._registry = ToolRegistry(tools)
        self._thread = acquire()
        self._executor = ToolExecutor()
        self._resolver = ThreadPool(1, "orchestrator-resolver")
        self._gate = Gates(ServerLimits(), self._thread).of(self._client.account)
        self._draining = Draining(self._thread)
        self.supervisor = Supervisor.start(
            journal=journal or MemoryJournal(),
            max_concurrent_runs=100,
            restart=restart,
            timing=QUICK,
            jitter=random.random,
            log_tool_data=False,
            ended=RunState.hand_over,
            take_up=lambda stored: None,
        )

    def start(
        self,
        text: str,
        around: Callable[[Backend], Backend] = lambda backend: backend,
        *,
        watch: Watch = "stream",
    ) -> RunHandle:
        """Admit a run whose requests go through the real backend, and through what is put around that."""
        request = RunRequest(
            assistant_id=self._stage.assistant, messages=normalized_messages(text), watch=watch
        )
        key = uuid.uuid4().hex
        record = RunRecord(key=key, nonce=key, request=request, deadline_at=time.monotonic() + PATIENCE_S)
        state = RunState(record, server=self._client.base_url, resolver=self._resolver)
        variables = contextvars.copy_context()

        def serve(record: RunRecord) -> InFlight:
            return InFlight(
                key=record.key,
                backend=around(ThreadsBackend(self._client, heard=self._hear)),
                gate=self._gate,
                draining=self._draining,
                executor=self._executor,
                approvals=Approvals(),
                registry=self._registry,
                context=None,
                contextvars_context=variables,
                loop_thread=self._thread,
                may_act=lambda: True,
            )

        address = Address(base_url=self._client.base_url)
        self.supervisor.tell(
            Admit(record=record, address=address, state=state, serve=serve, settle=lambda record: record)
        )
        return RunHandle(state, self.supervisor)

    def _hear(self, heard: Heard) -> None:
        self._gate.hear(heard.status, heard.headers)

    def tell(self, run: RunHandle, input_: Input) -> None:
        self.supervisor.tell(Forward(state=run._state, input=input_))

    def close(self) -> None:
        self.supervisor.stop(timeout=PATIENCE_S)
        self._executor.close()
        for closing in (self._draining.aclose(), self._client.aclose()):
            asyncio.run_coroutine_threadsafe(closing, self._thread.loop).result(PATIENCE_S)
        self._thread.release()
        self._resolver.close(PATIENCE_S)


@contextlib.contextmanager
def crewed(
    stage: Stage,
    *tools: Callable[..., Any],
    restart: RestartPolicy = AT_ONCE,
    journal: MemoryJournal | None = None,
) -> Iterator[Crew]:
    crew = Crew(stage, *tools, restart=restart, journal=journal)
    try:
        yield crew
    finally:
        crew.close()
        assert_nothing_left(stage.server.base_url, ours=1)
