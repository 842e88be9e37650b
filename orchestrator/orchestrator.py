"""The façade: `Orchestrator` starts and ends runs, `RunHandle` is what a user holds of one.

Owns the public signatures and the checks that need no server; the protocol's options, each with its line of
explanation, are what makes the file long. It decides nothing about a run: that is the lifecycle's. Who may
run is the supervisor's, and how all runs end is the roster's.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from msgspec import UNSET, UnsetType

from orchestrator.client import AsyncThreadsClient, endpoints
from orchestrator.client.call import CallOptions
from orchestrator.runs.backend import Heard, ThreadsBackend
from orchestrator.runs.inputs import CancelRequested
from orchestrator.runs.machine import Timing
from orchestrator.runs.record import RunRecord
from orchestrator.runs.request import (
    Messages,
    OnBusyThread,
    OnDeadline,
    OnExpired,
    OnStall,
    RerunPolicy,
    RunRequest,
    Watch,
    normalized_messages,
    require_choice,
    require_kind,
    require_patience,
    require_seconds,
)
from orchestrator.runtime import refuse_blocking_on_running_loop
from orchestrator.supervision import RestartPolicy, RunSnapshot, ServerLimits
from orchestrator.supervision.handle import RunHandle
from orchestrator.supervision.in_flight import InFlight
from orchestrator.supervision.roster import OnActive, Roster, StreamTo, require_consumer
from orchestrator.tools import Tool, ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from orchestrator.supervision import RunState
    from orchestrator.supervision.fleet import Fleet

__all__ = ["OnActive", "Orchestrator", "RunHandle"]


class Orchestrator:
    """Starts runs and supervises them to their end.

    As `with` or `async with`, or closed by `close()`. Leaving the block normally waits for its runs, like an
    executor; leaving it on an exception cancels them. Nothing is started or connected before the first run.
    Every method may be called from any thread.

    Args:
        base_url: The server, such as `"http://127.0.0.1:8765/v1"`; by default `OPENAI_BASE_URL`.
        api_key: The key; by default `OPENAI_API_KEY`.
        organization: By default `OPENAI_ORG_ID`.
        project: By default `OPENAI_PROJECT_ID`.
        client: A client to use instead of one made from the arguments above; it must not have opened a
            connection yet, and is closed with the orchestrator; a copy from `with_options` closes nothing, so
            give the client itself. Its coroutine token provider and `on_response` run on the actors' loop,
            where they must not block. A streamed run holds a connection, so its `max_connections` ought not
            to be less than `max_concurrent_runs`.
        tools: Functions, `Tool`s, objects with methods that are tools, or a registry: what runs may call.
        max_concurrent_runs: The most runs at work at once; the others wait for their turn.
        max_pending: The most runs that wait; one more is refused with `Overloaded`.
        deadline_s: Seconds for a run from `start()` to its end, unless `start()` says otherwise.
        watch: Whether runs are streamed or polled. A stream that is lost is polled either way.
        on_busy_thread: What a run does whose thread another run has: `"enqueue"` waits for its end,
            `"reject"` fails with `ThreadBusy`, `"interrupt"` cancels it, and those that wait for it.
        interrupt_foreign: Whether `"interrupt"` may cancel a run, too, that this orchestrator does not
            conduct.
        restart: How often a run's actor is started again after it died.
        rerun: Which failed runs are followed by another one, unless `start()` says so; by default none.
        tool_threads: The most threads for synchronous tools.
        timing: Backoffs, timeouts and intervals of the runs.
        limits: How fast each server is asked, on each key, by all runs together, and when it is left alone.
        log_tool_data: Whether the logs show what tools are called with and what they answer.

    Raises:
        ValueError: No server is named, or a bound makes no sense.
        TypeError: Both `client` and an argument it replaces are given, `client` is of another type, or a tool
            cannot be described.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        client: AsyncThreadsClient | None = None,
        tools: Iterable[object] | ToolRegistry = (),
        max_concurrent_runs: int = 1000,
        max_pending: int = 10_000,
        deadline_s: float = 600.0,
        watch: Watch = "stream",
        on_busy_thread: OnBusyThread = "enqueue",
        interrupt_foreign: bool = False,
        restart: RestartPolicy | None = None,
        rerun: RerunPolicy | None = None,
        tool_threads: int = 32,
        timing: Timing | None = None,
        limits: ServerLimits | None = None,
        log_tool_data: bool = False,
    ) -> None:
        if client is not None and any(
            value is not None for value in (base_url, api_key, organization, project)
        ):
            raise TypeError("give either client= or base_url, api_key, organization and project, not both")
        if client is not None and not isinstance(client, AsyncThreadsClient):
            raise TypeError(f"client must be an AsyncThreadsClient, got {type(client).__name__}")
        if client is not None and not client.owns_connections:
            raise ValueError(
                "client came from with_options() and cannot be closed with the orchestrator: "
                "pass a client of its own"
            )
        if max_concurrent_runs < 1 or max_pending < 0 or tool_threads < 1:
            raise ValueError(
                "max_concurrent_runs and tool_threads must be at least 1, max_pending at least 0"
            )
        require_choice("watch", watch, get_args(Watch))
        require_choice("on_busy_thread", on_busy_thread, get_args(OnBusyThread))
        require_seconds("deadline_s", deadline_s)
        rerun = RerunPolicy(codes=frozenset()) if rerun is None else rerun
        restart = RestartPolicy() if restart is None else restart
        timing = Timing() if timing is None else timing
        limits = ServerLimits() if limits is None else limits
        require_kind("rerun", rerun, RerunPolicy)
        require_kind("restart", restart, RestartPolicy)
        require_kind("timing", timing, Timing)
        require_kind("limits", limits, ServerLimits)
        require_kind("interrupt_foreign", interrupt_foreign, bool)
        require_kind("log_tool_data", log_tool_data, bool)
        # Imported here and not on the actors' loop, whose mailboxes it would hold up for a sixth of a second.
        importlib.import_module("orchestrator.client.transport")
        self._client = client or AsyncThreadsClient(
            base_url=base_url,
            api_key=api_key,
            organization=organization,
            project=project,
            max_connections=max(1000, max_concurrent_runs),
        )
        self._registry = tools if isinstance(tools, ToolRegistry) else ToolRegistry(tools)
        self._deadline_s = deadline_s
        self._watch = watch
        self._rerun = rerun
        self._on_busy_thread: OnBusyThread = on_busy_thread
        self._interrupt_foreign = interrupt_foreign
        self._roster = Roster(
            client=self._client,
            max_concurrent_runs=max_concurrent_runs,
            max_pending=max_pending,
            restart=restart,
            tool_threads=tool_threads,
            timing=timing,
            limits=limits,
            log_tool_data=log_tool_data,
        )

    def __enter__(self) -> Self:
        refuse_blocking_on_running_loop("`with Orchestrator(...)`", "use `async with`")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(on_active="wait" if kind is None else "cancel")

    async def __aenter__(self) -> Self:
        self._roster.run_async_tools_on(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        on_active: OnActive = "wait" if kind is None else "cancel"
        # A thread of its own: those of the loop's executor may all wait for the runs that end only here.
        executor = ThreadPoolExecutor(1, thread_name_prefix="orchestrator-closing")
        close = partial(contextvars.copy_context().run, self.close, on_active=on_active)
        closing = asyncio.get_running_loop().run_in_executor(executor, close)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            # The thread that waits cannot be interrupted, but what it waits for can.
            self._roster.cancel()
            await closing
            raise
        finally:
            executor.shutdown(wait=closing.done() and not closing.cancelled())

    def start(
        self,
        assistant_id: str,
        *,
        thread_id: str | None = None,
        messages: Messages | None = None,
        model: str | UnsetType | None = UNSET,
        reasoning_effort: str | UnsetType | None = UNSET,
        instructions: str | UnsetType | None = UNSET,
        additional_instructions: str | UnsetType | None = UNSET,
        additional_messages: Sequence[Mapping[str, Any]] | UnsetType | None = UNSET,
        temperature: float | UnsetType | None = UNSET,
        top_p: float | UnsetType | None = UNSET,
        max_prompt_tokens: int | UnsetType | None = UNSET,
        max_completion_tokens: int | UnsetType | None = UNSET,
        truncation_strategy: Mapping[str, Any] | UnsetType | None = UNSET,
        tool_choice: str | Mapping[str, Any] | UnsetType | None = UNSET,
        parallel_tool_calls: bool | UnsetType = UNSET,
        response_format: str | Mapping[str, Any] | UnsetType | None = UNSET,
        metadata: Mapping[str, str] | None = None,
        tools: Iterable[object] | None = None,
        context: object = None,
        deadline_s: float | None = None,
        on_deadline: OnDeadline = "cancel",
        watch: Watch | None = None,
        on_stall: OnStall = "report",
        on_expired: OnExpired = "fail",
        rerun: RerunPolicy | None = None,
        max_tool_rounds: int | None = None,
        max_total_tokens: int | None = None,
        on_busy_thread: OnBusyThread | None = None,
        interrupt_foreign: bool | None = None,
        stream_to: StreamTo = None,
        key: str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
    ) -> RunHandle:
        """Start a run and return at once; nothing here waits for a server. Each call is another run.

        Args:
            assistant_id: The assistant.
            thread_id: The thread; by default an empty one is created.
            messages: A text, a message or several, added to the thread with the run.
            model: Overrides the assistant's; this and the following fields are the protocol's own.
            reasoning_effort: Overrides the assistant's.
            instructions: Replaces the assistant's.
            additional_instructions: Added to the assistant's.
            additional_messages: Added after `messages`, in the protocol's own form.
            temperature: Overrides the assistant's.
            top_p: Overrides the assistant's.
            max_prompt_tokens: Over the whole run, at least 256.
            max_completion_tokens: Over the whole run, at least 256.
            truncation_strategy: How much of the thread the model sees.
            tool_choice: Which tools the model may or must call.
            parallel_tool_calls: Whether the model may ask for several calls at once.
            response_format: The format of the model's answer.
            metadata: At most 15 pairs; one more is added to mark the run.
            tools: Tools and wire definitions for this run alone: they are sent as the run's `tools`, and the
                Python ones come before the orchestrator's of the same name.
            context: Handed to the tools as `ToolContext.state`.
            deadline_s: Seconds from now to the run's end, admission included.
            on_deadline: What happens then: cancel the run, or leave it to the server.
            watch: Overrides the orchestrator's `watch`.
            on_stall: What happens to a run that shows no progress for `Timing.stall_s`: a notice in its
                events, or `RunStalled` and its cancel.
            on_expired: Whether an expired run is the result, or followed by another one, which is told the
                tool results so far; there are never more of them than `rerun.attempts`.
            rerun: Which failed runs are followed by another one on the same thread, where every tool that was
                called is `idempotent`; `handle.run_ids` names all of them.
            max_tool_rounds: The most batches of tool calls; one more is not begun, the run is cancelled and
                fails with `BudgetExceeded`.
            max_total_tokens: The most tokens, as far as the server tells them before the end; a run that
                takes more is cancelled and fails with `BudgetExceeded`.
            on_busy_thread: Overrides the orchestrator's `on_busy_thread`.
            interrupt_foreign: Overrides the orchestrator's `interrupt_foreign`.
            stream_to: Told every event: a plain callable, called in order on a thread of its own pool, or a
                Pykka actor. One that is slow or raises does not harm the run.
            key: A name for the run, unique among the open ones; by default one is generated.
            api_key: Credentials and server of this run, where they differ from the orchestrator's.
            organization: Likewise.
            project: Likewise.
            base_url: Likewise.

        Raises:
            ValueError: An argument cannot be sent, or the key is taken.
            TypeError: A message, tool or consumer is of no kind that is known.
            Overloaded: `max_pending` runs wait already.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
        """
        wire, registry = self._run_tools(tools)
        options: dict[str, Any] = {
            name: value
            for name, value in {
                "model": model,
                "reasoning_effort": reasoning_effort,
                "instructions": instructions,
                "additional_instructions": additional_instructions,
                "additional_messages": additional_messages,
                "temperature": temperature,
                "top_p": top_p,
                "max_prompt_tokens": max_prompt_tokens,
                "max_completion_tokens": max_completion_tokens,
                "truncation_strategy": truncation_strategy,
                "tool_choice": tool_choice,
                "parallel_tool_calls": parallel_tool_calls,
                "response_format": response_format,
                "tools": wire,
            }.items()
            if value is not UNSET
        }
        request = RunRequest(
            assistant_id=assistant_id,
            messages=normalized_messages(messages),
            options=options,
            metadata=dict(metadata or {}),
            watch=self._watch if watch is None else watch,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            on_deadline=on_deadline,
            on_stall=on_stall,
            on_expired=on_expired,
            rerun=self._rerun if rerun is None else rerun,
            unrepeatable_tools=frozenset(tool.name for tool in registry if not tool.idempotent),
            max_tool_rounds=max_tool_rounds,
            max_total_tokens=max_total_tokens,
            on_busy_thread=self._on_busy_thread if on_busy_thread is None else on_busy_thread,
            interrupt_foreign=self._interrupt_foreign if interrupt_foreign is None else interrupt_foreign,
        )
        # Built once here, so that what cannot be sent raises where the mistake was made.
        more = options.get("additional_messages") or ()
        endpoints.create_run(
            "thread" if thread_id is None else thread_id,
            assistant_id=assistant_id,
            metadata=request.metadata,
            **(options | {"additional_messages": [*request.messages, *more]}),
        )
        return self._begin(
            request,
            thread_id=thread_id,
            key=key,
            registry=registry,
            context=context,
            stream_to=stream_to,
            options=_options(api_key=api_key, organization=organization, project=project, base_url=base_url),
        )

    def adopt(
        self,
        thread_id: str,
        run_id: str,
        *,
        context: object = None,
        deadline_s: float | None = None,
        on_deadline: OnDeadline = "cancel",
        stream_to: StreamTo = None,
        key: str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
    ) -> RunHandle:
        """Take over a run that exists on the server: watch it, answer its tool calls, cancel it.

        Returns at once. The run is polled until its next submission. The arguments are those of `start()`.

        Whoever adopts a run takes over what holds its thread: it waits for no other run there, whatever
        `on_busy_thread` says, and those that start later wait for it. Only where another handle of this
        orchestrator conducts the same run, it waits for that to end or to let go, so that no tool is called
        by two.

        Raises:
            ValueError: An id cannot be sent, or the key is taken.
            Overloaded: `max_pending` runs wait already.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
        """
        endpoints.get_run(thread_id, run_id)
        return self._begin(
            self._adoption(deadline_s, on_deadline),
            thread_id=thread_id,
            run_id=run_id,
            key=key,
            registry=self._registry,
            context=context,
            stream_to=stream_to,
            options=_options(api_key=api_key, organization=organization, project=project, base_url=base_url),
        )

    def sweep(
        self,
        thread_id: str,
        *,
        orphans: Literal["adopt", "cancel"],
        context: object = None,
        deadline_s: float | None = None,
        on_deadline: OnDeadline = "cancel",
        stream_to: StreamTo = None,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
    ) -> list[RunHandle]:
        """Take over every run on a thread that is not over and that this orchestrator does not conduct.

        For a start after a crash: what a process that died left on the server holds its thread until it
        expires. Blocks until the thread's runs are listed, which is retried like any request; it may be
        repeated. An orphan whose process is alive after all is conducted by two: sweep only threads of yours.

        Args:
            thread_id: The thread.
            orphans: Whether they are adopted, or cancelled; then no tool of theirs is called.
            context: This and what follows is as in `adopt()`.
            deadline_s: Likewise.
            on_deadline: Likewise.
            stream_to: Likewise.
            api_key: Likewise.
            organization: Likewise.
            project: Likewise.
            base_url: Likewise.

        Returns:
            Their handles, newest run first; with `"cancel"` their results tell what became of them.

        Raises:
            ValueError: `orphans` is neither, or the id cannot be sent.
            APIError: The runs could not be listed.
            Overloaded: `max_pending` runs wait already; those found before stay adopted, see `runs()`.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        refuse_blocking_on_running_loop("Orchestrator.sweep()", "use `await asyncio.to_thread(...)`")
        require_choice("orphans", orphans, ("adopt", "cancel"))
        options = _options(api_key=api_key, organization=organization, project=project, base_url=base_url)
        client = self._client.with_options(**options) if options else self._client
        found = self._roster.orphans(lambda: client.list_runs(thread_id, limit=100, order="desc"))
        request = self._adoption(deadline_s, on_deadline)
        return [
            self._begin(
                request,
                thread_id=thread_id,
                run_id=run.id,
                key=None,
                registry=self._registry,
                context=context,
                stream_to=stream_to,
                options=options,
                unwanted=orphans == "cancel",
            )
            for run in found
        ]

    def runs(self) -> list[RunSnapshot]:
        """Every run that is not over, as it stands at this moment, oldest first; never blocks.

        Raises:
            OrchestratorClosed: The orchestrator belongs to the parent of this process.
        """
        return [handle.snapshot() for handle in self._roster.handles()]

    def cancel_all(self) -> list[RunHandle]:
        """Cancel every run that is not over; returns their handles at once.

        Raises:
            OrchestratorClosed: The orchestrator belongs to the parent of this process.
        """
        return self._roster.cancel()

    def drain(self, timeout_s: float) -> list[RunHandle]:
        """Take no more runs, let the open ones end, and leave the rest to the server without cancelling.

        Blocks for `timeout_s` seconds and a moment to let go; `close()` is still to be called.

        Returns:
            The handles of the runs that were left to the server; their error names the ids.

        Raises:
            TypeError: `timeout_s` is no number.
            ValueError: `timeout_s` is negative.
            OrchestratorClosed: The orchestrator belongs to the parent of this process.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        refuse_blocking_on_running_loop("Orchestrator.drain()", "use `await asyncio.to_thread(...)`")
        require_patience("timeout_s", timeout_s)
        return self._roster.drain(timeout_s)

    def close(self, *, on_active: OnActive = "cancel", timeout_s: float | None = None) -> list[RunHandle]:
        """End the orchestrator and everything it made: actors, threads, connections. Repeatable; blocks.

        In a forked process it does nothing: what there was belongs to the parent.

        Args:
            on_active: What becomes of runs that are not over: cancel them and wait for their end, leave them
                to the server, or wait for them.
            timeout_s: Seconds to wait for the runs; by default as long as their own deadlines and timeouts
                allow. Runs that are not over by then are let go of, with an error that names them.

        Returns:
            The handles of the runs that were not seen to end.

        Raises:
            TypeError: `timeout_s` is no number.
            ValueError: `on_active` is none of the three, or `timeout_s` is negative.
            RuntimeError: An event loop runs on this thread: use `async with`.
        """
        refuse_blocking_on_running_loop("Orchestrator.close()", "use `async with`, or asyncio.to_thread()")
        require_choice("on_active", on_active, get_args(OnActive))
        if timeout_s is not None:
            require_patience("timeout_s", timeout_s)
        return self._roster.close(on_active, timeout_s)

    def _run_tools(
        self, tools: Iterable[object] | None
    ) -> tuple[list[Mapping[str, Any]] | UnsetType, ToolRegistry]:
        """Split a run's own tools into what is sent and what is called."""
        if tools is None:
            return UNSET, self._registry
        if callable(tools) or isinstance(tools, Mapping):
            raise TypeError(f"tools are given in a list, got {tools!r}")
        wire: list[Mapping[str, Any]] = []
        handlers: list[Tool[..., Any]] = []
        for item in tools:
            if isinstance(item, Mapping):
                wire.append(item)
            else:
                own = ToolRegistry([item])
                wire.extend(own.definitions())
                handlers.extend(own)
        return wire, self._registry.merged(handlers)

    def _adoption(self, deadline_s: float | None, on_deadline: OnDeadline) -> RunRequest:
        return RunRequest(
            assistant_id="",
            watch=self._watch,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            on_deadline=on_deadline,
        )

    def _begin(
        self,
        request: RunRequest,
        *,
        thread_id: str | None,
        run_id: str | None = None,
        key: str | None,
        registry: ToolRegistry,
        context: object,
        stream_to: StreamTo,
        options: CallOptions,
        unwanted: bool = False,
    ) -> RunHandle:
        self._roster.refuse_fork()
        require_consumer(stream_to)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must be a str, got {key!r}")
        client = self._client.with_options(**options) if options else self._client
        record = RunRecord(
            key=key or f"run-{uuid.uuid4().hex[:16]}",
            nonce=uuid.uuid4().hex,
            request=request,
            deadline_at=time.monotonic() + request.deadline_s,
            thread_id=thread_id,
            run_id=run_id,
        )

        def begun(fleet: Fleet, state: RunState) -> InFlight:
            gate = fleet.gates.of(client.account)

            def hear(heard: Heard) -> None:
                state.last_request_id = heard.request_id
                gate.hear(heard.status, heard.headers)

            in_flight = InFlight(
                key=record.key,
                backend=ThreadsBackend(client, heard=hear),
                gate=gate,
                draining=fleet.draining,
                executor=fleet.executor,
                registry=registry,
                context=context,
                contextvars_context=contextvars.copy_context(),
                loop_thread=fleet.loop_thread,
            )
            if unwanted:
                # Said before anybody conducts the run: what nobody wants is not gone on with.
                in_flight.report(CancelRequested())
            return in_flight

        return self._roster.begin(record, server=client.base_url, in_flight=begun, stream_to=stream_to)


def _options(**given: str | None) -> CallOptions:
    return cast("CallOptions", {name: value for name, value in given.items() if value is not None})
