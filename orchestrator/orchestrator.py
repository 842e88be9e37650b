"""The façade: `Orchestrator` starts and ends runs, `RunHandle` is what a user holds of one.

Owns the public signatures of what begins a run, and the checks that need no server; the protocol's options,
each with its line of explanation, are what makes the file long. It decides nothing about a run: that is the
lifecycle's. Who may run is the supervisor's; how the block around the runs is left is the scope's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from msgspec import UNSET, UnsetType

from orchestrator.client import AsyncThreadsClient, endpoints
from orchestrator.journal import Address, sql_journal
from orchestrator.runs.machine import Timing
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
)
from orchestrator.runtime import refuse_blocking_on_running_loop
from orchestrator.supervision import RestartPolicy, ServerLimits
from orchestrator.supervision.asking import DEFAULTED, SAID, SENT, RunOptions
from orchestrator.supervision.commission import address_of
from orchestrator.supervision.handle import RunHandle
from orchestrator.supervision.roster import OnActive, Roster, StreamTo
from orchestrator.supervision.scope import Credentials, RunScope, new_record, stated
from orchestrator.supervision.tool_checks import CheckTools
from orchestrator.tools import RunTools, ToolExecutor, ToolRegistry
from orchestrator.tools.signature import is_async

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Unpack

    from orchestrator.journal import Journal
    from orchestrator.tools.approval import ApprovalHook
    from orchestrator.tools.middleware import Middleware

__all__ = ["OnActive", "Orchestrator", "RunHandle"]


class Orchestrator(RunScope):
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
        check_tools: Whether the assistant is fetched beside a run, and its functions compared with those
            that are registered: `"once"` for each assistant, `"always"` or `"off"`. Where one has no handler
            or takes other arguments, there is a warning in the logs and a notice in the run's events.
        tool_threads: The most threads for synchronous tools. One that is stuck in a call that timed out is
            replaced, up to as many again.
        middleware: What stands around every tool call, the outermost first: `def around(invocation,
            call_next)`, which returns `call_next(invocation)` or something else, or raises; or the same as an
            `async def`. Either kind goes around tools of both.
        approve: Decides of calls whose tools ask for approval, before anybody is asked: a function of an
            `ApprovalRequest`, plain or `async def`. True approves, false denies, a string denies with that
            reason, and `None` leaves it to `RunHandle.approve()` and `deny()`.
        timing: Backoffs, timeouts and intervals of the runs.
        limits: How fast each server is asked, on each key, by all runs together, and when it is left alone.
        log_tool_data: Whether the logs show what tools are called with and what they answer.
        journal: What the runs survive this process in: `"sqlite:///runs.db"`, the URL of a PostgreSQL
            database (`postgresql+psycopg://…`), or a `SQLJournal`, which is closed with the orchestrator. By
            default they do not. It is opened with the first run.
        credentials: Gives the API key for a run that is taken up from the journal, which holds none: a plain
            function of an `Address` (server, organization, project). `None` stands for the orchestrator's own
            key, where the server is its own.

    Raises:
        ValueError: No server is named, a bound makes no sense, or the journal's URL is none.
        JournalError: The packages for the journal are not installed.
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
        check_tools: CheckTools = "once",
        tool_threads: int = 32,
        middleware: Sequence[Middleware] = (),
        approve: ApprovalHook | None = None,
        timing: Timing | None = None,
        limits: ServerLimits | None = None,
        log_tool_data: bool = False,
        journal: str | Journal | None = None,
        credentials: Credentials | None = None,
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
        require_choice("check_tools", check_tools, get_args(CheckTools))
        defaults = RunRequest(
            assistant_id="",
            deadline_s=deadline_s,
            watch=watch,
            on_busy_thread=on_busy_thread,
            interrupt_foreign=interrupt_foreign,
            rerun=RerunPolicy(codes=frozenset()) if rerun is None else rerun,
        )
        restart = RestartPolicy() if restart is None else restart
        timing = Timing() if timing is None else timing
        limits = ServerLimits() if limits is None else limits
        require_kind("restart", restart, RestartPolicy)
        require_kind("timing", timing, Timing)
        require_kind("limits", limits, ServerLimits)
        require_kind("log_tool_data", log_tool_data, bool)
        for function in (*middleware, *([] if approve is None else [approve])):
            if not callable(function):
                raise TypeError(f"middleware and approve are functions, got {function!r}")
        if credentials is not None and (not callable(credentials) or is_async(credentials)):
            raise TypeError(f"credentials must be a plain function of an Address, got {credentials!r}")
        # Imported here and not on the actors' loop, whose mailboxes it would hold up for a sixth of a second.
        importlib.import_module("orchestrator.client.transport")
        client = client or AsyncThreadsClient(
            base_url=base_url,
            api_key=api_key,
            organization=organization,
            project=project,
            max_connections=max(1000, max_concurrent_runs),
        )
        self._check_tools: CheckTools = check_tools
        super().__init__(
            Roster(
                client=client,
                journal=sql_journal(journal) if isinstance(journal, str) else journal,
                take_up=self._found,
                max_concurrent_runs=max_concurrent_runs,
                max_pending=max_pending,
                restart=restart,
                executor=ToolExecutor(threads=tool_threads, middleware=tuple(middleware), approve=approve),
                timing=timing,
                limits=limits,
                log_tool_data=log_tool_data,
            ),
            client=client,
            registry=tools if isinstance(tools, ToolRegistry) else ToolRegistry(tools),
            defaults=defaults,
            credentials=credentials,
        )

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
        max_failed_tool_rounds: int | None = 10,
        max_total_tokens: int | None = None,
        on_busy_thread: OnBusyThread | None = None,
        interrupt_foreign: bool | None = None,
        stream_to: StreamTo = None,
        key: str | None = None,
        check_tools: CheckTools | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
    ) -> RunHandle:
        """Start a run and return at once; nothing here waits for a server.

        Each call is another run, except that with a journal a key stands for one run: whichever process
        starts it again gets the same run, whether it conducts it, another process does, or it is over.

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
            max_failed_tool_rounds: The most batches in a row in which every tool call failed or was denied;
                with the last of them the run is cancelled and fails with `BudgetExceeded`. `None` for any
                number.
            max_total_tokens: The most tokens, as far as the server tells them before the end; a run that
                takes more is cancelled and fails with `BudgetExceeded`.
            on_busy_thread: Overrides the orchestrator's `on_busy_thread`.
            interrupt_foreign: Overrides the orchestrator's `interrupt_foreign`.
            stream_to: Told every event: a plain callable, called in order on a thread of its own pool, or a
                Pykka actor. One that is slow or raises does not harm the run.
            key: A name for the run, unique among the open ones, with a journal among all it knows; by default
                one is generated.
            check_tools: Overrides the orchestrator's `check_tools`. The run neither waits for the check nor
                fails with it. With `tools`, which override the assistant's, nothing is fetched, and of their
                wire definitions those count that no function answers.
            api_key: Credentials and server of this run, where they differ from the orchestrator's.
            organization: Likewise.
            project: Likewise.
            base_url: Likewise.

        Raises:
            ValueError: An argument cannot be sent, or the key is taken. Where the journal says that it is
                another run's, `RunHandle.result()` and `recorded` raise `KeyReused`.
            TypeError: A message, tool or consumer is of no kind that is known.
            Overloaded: `max_pending` runs wait already.
            OrchestratorClosed: The orchestrator is closed, or belongs to the parent of this process.
        """
        check_tools = self._check_tools if check_tools is None else check_tools
        require_choice("check_tools", check_tools, get_args(CheckTools))
        request, given = self._asked(
            assistant_id,
            thread_id=thread_id,
            messages=messages,
            model=model,
            reasoning_effort=reasoning_effort,
            instructions=instructions,
            additional_instructions=additional_instructions,
            additional_messages=additional_messages,
            temperature=temperature,
            top_p=top_p,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            truncation_strategy=truncation_strategy,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            metadata=metadata,
            tools=tools,
            deadline_s=deadline_s,
            on_deadline=on_deadline,
            watch=watch,
            on_stall=on_stall,
            on_expired=on_expired,
            rerun=rerun,
            max_tool_rounds=max_tool_rounds,
            max_failed_tool_rounds=max_failed_tool_rounds,
            max_total_tokens=max_total_tokens,
            on_busy_thread=on_busy_thread,
            interrupt_foreign=interrupt_foreign,
        )
        return self._begin(
            request,
            thread_id=thread_id,
            key=key,
            tools=given,
            check_tools=check_tools,
            context=context,
            stream_to=stream_to,
            options=stated(api_key=api_key, organization=organization, project=project, base_url=base_url),
        )

    def enqueue(
        self,
        assistant_id: str,
        *,
        key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
        **options: Unpack[RunOptions],
    ) -> str:
        """Write a run into the journal and leave it to whoever attaches to it, in whatever process.

        Nothing is sent and nothing is started here. Blocks until the journal has the run. May be repeated
        with the same key: it stands for one run.

        Args:
            assistant_id: The assistant.
            key: A name for the run; by default one is generated.
            organization: As in `start()`.
            project: As in `start()`.
            base_url: As in `start()`. Whoever attaches to the run has the key for it.
            options: As in `start()`; its deadline counts from now.

        Returns:
            The key, for `attach()`.

        Raises:
            ValueError: An argument cannot be sent.
            TypeError: A message or tool is of no kind that is known.
            KeyReused: The key is that of another request.
            JournalError: There is no journal that survives, or it cannot be written.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        refuse_blocking_on_running_loop("Orchestrator.enqueue()", "use `await asyncio.to_thread(...)`")
        self._roster.refuse_fork()
        journal = self._durable("enqueue()")
        request, _ = self._asked(assistant_id, **options)
        record = new_record(request, key=key, thread_id=options.get("thread_id"))
        own = address_of(self._client)
        elsewhere = base_url is not None and base_url.rstrip("/") != own.base_url
        address = Address(
            base_url=base_url.rstrip("/") if base_url else own.base_url,
            organization=organization or (None if elsewhere else own.organization),
            project=project or (None if elsewhere else own.project),
        )
        journal.add(record, address)
        return record.key

    def _asked(self, assistant_id: str, **options: Unpack[RunOptions]) -> tuple[RunRequest, RunTools]:
        """Bring what is asked for into the form in which a run keeps it, and check it."""
        given = RunTools.given(options.get("tools"), self._registry)
        asked: dict[str, Any] = {name: value for name, value in options.items() if value is not UNSET}
        sent = {name: asked[name] for name in SENT if name in asked}
        if given.sent is not None:
            sent["tools"] = list(given.sent)
        said = {name: asked[name] for name in SAID if name in asked}
        for name in DEFAULTED:
            value = asked.get(name)
            said[name] = getattr(self._defaults, name) if value is None else value
        request = RunRequest(
            assistant_id=assistant_id,
            messages=normalized_messages(asked.get("messages")),
            options=sent,
            metadata=dict(asked.get("metadata") or {}),
            unrepeatable_tools=frozenset(tool.name for tool in given.registry if not tool.options.idempotent),
            **said,
        )
        # Built once here, so that what cannot be sent raises where the mistake was made.
        thread_id = asked.get("thread_id")
        more = sent.get("additional_messages") or ()
        endpoints.create_run(
            "thread" if thread_id is None else thread_id,
            assistant_id=assistant_id,
            metadata=request.metadata,
            **(sent | {"additional_messages": [*request.messages, *more]}),
        )
        return request, given
