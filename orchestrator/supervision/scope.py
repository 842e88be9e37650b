"""What runs live in: which of those that exist are taken over, what is open, and how all of it is left.

Owns `with` and `async with`, adopting and sweeping, resuming, draining and closing, as users meet them. What
may be said of a new run is for its subclass, and how runs end on the actors' loop is for the roster.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from orchestrator.client import AsyncThreadsClient, endpoints
from orchestrator.client.call import CallOptions
from orchestrator.errors import JournalError, OrchestratorClosed, Overloaded
from orchestrator.journal import Address, DurableJournal, Ended, Journal, StoredRun
from orchestrator.runs.record import RunRecord
from orchestrator.runs.request import (
    OnDeadline,
    RunRequest,
    require_choice,
    require_patience,
)
from orchestrator.runtime import refuse_blocking_on_running_loop
from orchestrator.supervision.commission import Commission, address_of
from orchestrator.supervision.roster import OnActive, Roster, StreamTo, require_consumer
from orchestrator.supervision.tool_checks import CheckTools
from orchestrator.telemetry import get_logger
from orchestrator.tools import RunTools, ToolRegistry

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from orchestrator.supervision.handle import RunHandle
    from orchestrator.supervision.state import RunSnapshot

__all__ = ["Credentials", "RunScope", "new_record", "stated"]

log = get_logger(__name__)

Credentials: TypeAlias = Callable[[Address], str | None]
"""Gives the API key for a run's server, organization and project; `None` is for the orchestrator's own."""

MAX_KEY_CHARACTERS: Final = 255


class RunScope:
    """What runs are started in and do not outlive. Every method may be called from any thread.

    Args:
        roster: The open runs.
        client: Makes the requests.
        registry: What runs may call.
        defaults: What is asked of a run, where nothing else is said of it.
        credentials: Gives the key for a run that is taken up from the journal.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        client: AsyncThreadsClient,
        registry: ToolRegistry,
        defaults: RunRequest,
        credentials: Credentials | None,
    ) -> None:
        self._credentials = credentials
        self._on_taken_up: Callable[[RunHandle], None] = lambda _: None
        self._roster = roster
        self._client = client
        self._registry = registry
        self._defaults = defaults

    def __enter__(self) -> Self:
        refuse_blocking_on_running_loop("`with Orchestrator(...)`", "use `async with`")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(on_active="wait" if kind is None else None)

    async def __aenter__(self) -> Self:
        self._roster.run_async_tools_on(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        on_active: OnActive | None = "wait" if kind is None else None
        # A thread of its own: those of the loop's executor may all wait for the runs that end only here.
        executor = ThreadPoolExecutor(1, thread_name_prefix="orchestrator-closing")
        close = partial(contextvars.copy_context().run, self.close, on_active=on_active)
        closing = asyncio.get_running_loop().run_in_executor(executor, close)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            # The thread that waits cannot be interrupted, but what it waits for can.
            self._roster.end_soon()
            await closing
            raise
        finally:
            executor.shutdown(wait=closing.done() and not closing.cancelled())

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
        Its tools are not checked: whoever started it may have given it others than its assistant's.

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
            context=context,
            stream_to=stream_to,
            options=stated(api_key=api_key, organization=organization, project=project, base_url=base_url),
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
        options = stated(api_key=api_key, organization=organization, project=project, base_url=base_url)
        client = self._client.with_options(**options) if options else self._client
        found = self._roster.orphans(lambda: client.list_runs(thread_id, limit=100, order="desc"))
        request = self._adoption(deadline_s, on_deadline)
        return [
            self._begin(
                request,
                thread_id=thread_id,
                run_id=run.id,
                key=None,
                context=context,
                stream_to=stream_to,
                options=options,
                unwanted=orphans == "cancel",
            )
            for run in found
        ]

    @property
    def journal(self) -> Journal:
        """What keeps the runs' records; see `Orchestrator(journal=)`."""
        return self._roster.journal

    def attach(self, key: str, *, context: object = None, stream_to: StreamTo = None) -> RunHandle:
        """Conduct a run that the journal knows, or follow it where another process conducts it.

        A run that is followed is taken over, should its process die; one that is over has its outcome. Blocks
        until the journal is read; may be repeated.

        Args:
            key: The run's key.
            context: As in `start()`.
            stream_to: As in `start()`. The events begin where this process takes the run up.

        Raises:
            UnknownRun: The journal has no such run.
            JournalError: There is no journal that survives, it cannot be read, or no key is given for the
                run's server.
            Overloaded: `max_pending` runs wait already.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        refuse_blocking_on_running_loop("Orchestrator.attach()", "use `await asyncio.to_thread(...)`")
        self._roster.refuse_fork()
        stored = self._durable("attach()").load(key)
        return self._take_up(stored, context=context, stream_to=stream_to)

    def resume(self, *, on_taken_up: Callable[[RunHandle], None] | None = None) -> list[RunHandle]:
        """Take up every run in the journal that is not over and whose process has died or let go of it.

        From then on runs of other processes that die are taken up, too, for as long as this orchestrator is
        open: they are among `runs()`. Runs that were enqueued and never begun are left to whoever attaches to
        them. Blocks until the journal is read; may be repeated. Whatever the runs were started with that a
        journal cannot hold is gone: `context`, `stream_to`, and functions given to `start(tools=…)`; tools
        are found by their names among the orchestrator's own.

        Args:
            on_taken_up: Told each run that is taken up, now and later, on a thread where it should not block.

        Returns:
            The handles, oldest run first; of a run that another process was quicker to take up, one that
            follows it. Runs for whose server `credentials` gives no key are left, with a warning in the logs.

        Raises:
            JournalError: There is no journal that survives, or it cannot be read.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        refuse_blocking_on_running_loop("Orchestrator.resume()", "use `await asyncio.to_thread(...)`")
        self._roster.refuse_fork()
        if on_taken_up is not None:
            self._on_taken_up = on_taken_up
        taken = [self._found(stored) for stored in self._durable("resume()").unfinished()]
        self._roster.sweep()
        return [handle for handle in taken if handle is not None]

    def _found(self, stored: StoredRun) -> RunHandle | None:
        """Take up a run of a process that died, unless that is impossible now; blocks."""
        try:
            handle = self._take_up(stored, context=None, stream_to=None)
        except (JournalError, Overloaded) as error:
            log.warning("run.not_taken_up", run_key=stored.record.key, reason=str(error))
        except OrchestratorClosed as error:
            log.debug("run.not_taken_up", run_key=stored.record.key, reason=str(error))
        else:
            self._on_taken_up(handle)
            return handle
        return None

    def _take_up(self, stored: StoredRun | Ended, *, context: object, stream_to: StreamTo) -> RunHandle:
        require_consumer(stream_to)
        client = self._client if isinstance(stored, Ended) else self._client_for(stored)
        commission = Commission(
            record=stored.record,
            client=client,
            tools=RunTools(registry=self._registry),
            check_tools="off",
            context=context,
            claims=True,
        )
        return self._roster.begin(commission, stream_to=stream_to)

    def _client_for(self, stored: StoredRun) -> AsyncThreadsClient:
        """A client for a run's server, with the key that the user gives for it."""
        address = stored.address
        api_key = None
        if self._credentials is not None:
            try:
                api_key = self._credentials(address)
            except Exception as error:
                raise JournalError(
                    f"credentials= raised {type(error).__name__} for run {stored.record.key!r} at "
                    f"{address.base_url}: {error}"
                ) from error
        if api_key is None and address != address_of(self._client):
            raise JournalError(
                f"run {stored.record.key!r} goes to {address.base_url} (organization {address.organization}, "
                f"project {address.project}), for which this orchestrator has no key: pass credentials=, "
                f"which gives it"
            )
        if api_key is None:
            return self._client
        options = stated(
            base_url=address.base_url,
            api_key=api_key,
            organization=address.organization,
            project=address.project,
        )
        return self._client.with_options(**options)

    def _durable(self, what: str) -> DurableJournal:
        journal = self._roster.journal
        if not journal.survives:
            raise JournalError(
                f"{what} needs a journal that survives: Orchestrator(journal='sqlite:///runs.db')"
            )
        return cast("DurableJournal", journal)

    def runs(self) -> list[RunSnapshot]:
        """Every run that is not over, as it stands at this moment, oldest first; never blocks.

        Raises:
            OrchestratorClosed: The orchestrator belongs to the parent of this process.
        """
        return [handle.snapshot() for handle in self._roster.handles()]

    @property
    def stuck_tool_threads(self) -> int:
        """How many threads are held by synchronous tools whose calls timed out or were cancelled.

        Nothing can stop such a thread but the tool itself, by looking at `ToolContext.cancelled`.
        """
        return self._roster.stuck_tool_threads

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

    def close(self, *, on_active: OnActive | None = None, timeout_s: float | None = None) -> list[RunHandle]:
        """End the orchestrator and everything it made: actors, threads, connections. Repeatable; blocks.

        In a forked process it does nothing: what there was belongs to the parent.

        Args:
            on_active: What becomes of runs that are not over: cancel them and wait for their end, leave them
                to the server and whoever resumes them, or wait for them. By default they are cancelled, and
                with a journal that survives left.
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
        if on_active is None:
            on_active = "detach" if self._roster.journal.survives else "cancel"
        require_choice("on_active", on_active, get_args(OnActive))
        if timeout_s is not None:
            require_patience("timeout_s", timeout_s)
        return self._roster.close(on_active, timeout_s)

    def _adoption(self, deadline_s: float | None, on_deadline: OnDeadline) -> RunRequest:
        return RunRequest(
            assistant_id="",
            watch=self._defaults.watch,
            deadline_s=self._defaults.deadline_s if deadline_s is None else deadline_s,
            on_deadline=on_deadline,
        )

    def _begin(
        self,
        request: RunRequest,
        *,
        thread_id: str | None,
        run_id: str | None = None,
        key: str | None,
        tools: RunTools | None = None,
        check_tools: CheckTools = "off",
        context: object,
        stream_to: StreamTo,
        options: CallOptions,
        unwanted: bool = False,
    ) -> RunHandle:
        self._roster.refuse_fork()
        require_consumer(stream_to)
        client = self._client.with_options(**options) if options else self._client
        record = new_record(request, key=key, thread_id=thread_id, run_id=run_id)
        commission = Commission(
            record=record,
            client=client,
            tools=tools or RunTools(registry=self._registry),
            check_tools=check_tools,
            context=context,
            unwanted=unwanted,
        )
        return self._roster.begin(commission, stream_to=stream_to)


def new_record(
    request: RunRequest, *, key: str | None, thread_id: str | None, run_id: str | None = None
) -> RunRecord:
    """Return the first record of a run, from now on.

    Raises:
        TypeError: The key is no string.
        ValueError: It is longer than 255 characters, or has such as no database takes.
    """
    if key is not None:
        if not isinstance(key, str):
            raise TypeError(f"key must be a str, got {key!r}")
        if len(key) > MAX_KEY_CHARACTERS or "\x00" in key:
            raise ValueError(f"key must be at most {MAX_KEY_CHARACTERS} characters, without NUL")
    return RunRecord(
        key=key or f"run-{uuid.uuid4().hex[:16]}",
        nonce=uuid.uuid4().hex,
        request=request,
        deadline_at=time.monotonic() + request.deadline_s,
        thread_id=thread_id,
        run_id=run_id,
    )


def stated(**given: str | None) -> CallOptions:
    """Return what a caller gave of a request's options, without what it left out."""
    return cast("CallOptions", {name: value for name, value in given.items() if value is not None})
