"""Decides what may happen to runs: which may start, which outputs are accepted, what a repeated create gets.

Owns the operations on runs, up to the point where they are accepted and on disk. What then works on them is
`orchestrator.server.execution`'s business; how they are asked for and answered, that of the routes.

Checks and what follows from them happen in one turn of the event loop, so requests that race (two creates on
one thread, cancel against submit) are decided one by one. Locks live in memory: a file belongs to one server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.server import objects, refusal
from orchestrator.server.execution import server_error
from orchestrator.server.queries import active_runs, find, listed
from orchestrator.server.sse import DONE, Subscription, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.active import ActiveRun
    from orchestrator.server.execution import Execution
    from orchestrator.server.repetition import Repeat, Repetitions
    from orchestrator.server.store import Shelf

__all__ = ["Engine", "Started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A leg of a run that was accepted and is on disk.

    Attributes:
        run: The run as it was at that moment.
        stream: The leg's events, when they were asked for.
    """

    run: JSON
    stream: Subscription | None


class Engine:
    """Decides on the runs of one namespace; made anywhere, then used on one event loop.

    Args:
        store: Where everything is kept; opened.
        execution: What works on the runs that are accepted here.
        repetitions: What idempotency keys stand for.
        run_ttl_s: Seconds after which a run that is not over expires.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        store: Shelf,
        execution: Execution,
        repetitions: Repetitions,
        run_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._execution = execution
        self._repetitions = repetitions
        self._run_ttl_s = run_ttl_s
        self._clock = clock

    async def start(self) -> None:
        """Take up the runs that are stored as active, so that each of them comes to an end.

        - One that waits for tool outputs goes on waiting; its time counts from its creation, as before.
        - A queued one is executed, and so is one whose model had said nothing yet when it was cut off.
        - One that was cut off in the middle of a message or call fails with `server_error`: what was said can
          neither be continued nor unsaid.
        - One that was being cancelled is cancelled; one whose time passed meanwhile expires.
        """
        for run, messages, steps in await self._store.perform(_interrupted):
            self._take_up(run, messages, steps)

    async def create_run(
        self,
        thread_id: str,
        fields: JSON,
        messages: Sequence[JSON],
        *,
        stream: bool,
        repeat: Repeat | None = None,
    ) -> Started:
        """Start a run on a thread; returns when it is on disk.

        Args:
            thread_id: The thread, perhaps unknown.
            fields: The validated request.
            messages: What `additional_messages` became.
            stream: Whether the leg's events are wanted.
            repeat: The request's idempotency key; a run it made before is returned instead.

        Raises:
            RefusalError: The thread is held by another run; thread or assistant do not exist; the choice of
                a tool that the run does not have.
        """
        async with self._repetitions.alone(repeat) as made:
            if made is not None:
                return await self._again(made, stream=stream)
            return await self._create_run(thread_id, fields, messages, stream=stream, repeat=repeat)

    async def create_thread_and_run(
        self,
        thread: JSON,
        fields: JSON,
        messages: Sequence[JSON],
        *,
        stream: bool,
        repeat: Repeat | None = None,
    ) -> Started:
        """Store a new thread and start a run on it; as `create_run`."""
        async with self._repetitions.alone(repeat) as made:
            if made is not None:
                return await self._again(made, stream=stream)
            return await self._create_thread_and_run(thread, fields, messages, stream=stream, repeat=repeat)

    async def submit(
        self, thread_id: str, run_id: str, outputs: Sequence[tuple[str, str]], *, stream: bool
    ) -> Started:
        """Take all outputs of a batch and go on; returns when they are on disk.

        Raises:
            RefusalError: The run does not exist, does not wait, or waits for other calls.
        """
        active = await self._expect(thread_id, run_id, refusal.no_outputs_accepted)
        if active.status != "requires_action":
            raise refusal.no_outputs_accepted(active.status)
        got = [call_id for call_id, _ in outputs]
        if sorted(got) != sorted(active.call_ids):
            raise refusal.outputs_differ(active.call_ids, got)
        subscription = _subscribe(active) if stream else None
        active.accept(dict(outputs))
        return await self._started(active, subscription)

    async def cancel(self, thread_id: str, run_id: str) -> JSON:
        """Begin to cancel a run; return it as it is then, in `cancelling`.

        Raises:
            RefusalError: The run does not exist, is over, or is cancelling already.
        """
        active = await self._expect(thread_id, run_id, refusal.cannot_cancel)
        if active.status == "cancelling":
            raise refusal.cannot_cancel(active.status)
        self._execution.cancel(active)
        run = dict(active.run)
        await self._store.settle()
        return run

    async def modify_run(self, thread_id: str, run_id: str, metadata: dict[str, str]) -> JSON:
        """Replace a run's metadata, whatever its status.

        Raises:
            RefusalError: The run does not exist.
        """
        active = self._execution.get(run_id)
        if active is None:
            return await self._modify_ended(thread_id, run_id, metadata)
        if active.run["thread_id"] != thread_id:
            raise refusal.not_found("run", run_id)
        # In the turn that found it active: one that ends from here on ends with the new metadata.
        active.run["metadata"] = metadata
        self._store.save("runs", active.run)
        run = dict(active.run)
        await self._store.settle()
        return run

    async def get_run(self, thread_id: str, run_id: str) -> JSON:
        """Return a run as it is stored.

        Raises:
            RefusalError: The thread has no such run.
        """
        run = await self._store.get("runs", run_id)
        if run is None or run["thread_id"] != thread_id:
            raise refusal.not_found("run", run_id)
        return run

    async def _modify_ended(self, thread_id: str, run_id: str, metadata: dict[str, str]) -> JSON:
        def change(run: JSON) -> None:
            if run["thread_id"] != thread_id:
                raise refusal.not_found("run", run_id)
            run["metadata"] = metadata

        run = await self._store.change("runs", run_id, change)
        if run is None:
            raise refusal.not_found("run", run_id)
        return run

    async def _create_run(
        self,
        thread_id: str,
        fields: JSON,
        messages: Sequence[JSON],
        *,
        stream: bool,
        repeat: Repeat | None,
    ) -> Started:
        run_id = self._lock(thread_id)
        try:
            assistant, earlier = await self._store.perform(
                lambda connection, own: _look(connection, own, thread_id, fields["assistant_id"])
            )
            run = self._new_run(run_id, thread_id, assistant, fields)
        except BaseException:
            self._execution.unlock(thread_id)
            raise
        return await self._launch(run, [*earlier, *messages], messages, stream=stream, repeat=repeat)

    async def _create_thread_and_run(
        self,
        thread: JSON,
        fields: JSON,
        messages: Sequence[JSON],
        *,
        stream: bool,
        repeat: Repeat | None,
    ) -> Started:
        assistant = await self._store.get("assistants", fields["assistant_id"])
        if assistant is None:
            raise refusal.not_found("assistant", fields["assistant_id"])
        run = self._new_run(objects.mint("run"), thread["id"], assistant, fields)
        self._store.save("threads", thread)
        return await self._launch(run, messages, messages, stream=stream, repeat=repeat, thread=thread)

    async def _expect(
        self, thread_id: str, run_id: str, refused: Callable[[str], refusal.RefusalError]
    ) -> ActiveRun:
        active = self._execution.get(run_id)
        if active is None or active.run["thread_id"] != thread_id:
            run = await self.get_run(thread_id, run_id)
            raise refused(run["status"])
        return active

    def _lock(self, thread_id: str) -> str:
        """Lock a thread under a new run's id, before anything is awaited."""
        if holder := self._execution.holder(thread_id):
            raise refusal.thread_busy(thread_id, holder)
        run_id = objects.mint("run")
        self._execution.lock(thread_id, run_id)
        return run_id

    def _new_run(self, run_id: str, thread_id: str, assistant: JSON, fields: JSON) -> JSON:
        now = self._clock()
        run = objects.run(
            run_id=run_id,
            created_at=int(now),
            expires_at=int(now + self._run_ttl_s),
            thread_id=thread_id,
            assistant=assistant,
            fields=fields,
        )
        _check_choice(run)
        return run

    async def _launch(
        self,
        run: JSON,
        context: Sequence[JSON],
        new_messages: Sequence[JSON],
        *,
        stream: bool,
        repeat: Repeat | None,
        thread: JSON | None = None,
    ) -> Started:
        for message in new_messages:
            self._store.save("messages", message)
        self._repetitions.note(repeat, run["id"], thread_id=run["thread_id"])
        active = self._execution.register(run, context, self._run_ttl_s)
        subscription = _subscribe(active) if stream else None
        if subscription is not None and thread is not None:
            subscription.send(encode("thread.created", thread))
        active.announce()
        return await self._started(active, subscription)

    async def _started(self, active: ActiveRun, subscription: Subscription | None) -> Started:
        """Set the model to work; what it says is read only once what was accepted is on disk."""
        run = dict(active.run)
        self._execution.begin_leg(active)
        await self._store.settle()
        return Started(run=run, stream=subscription)

    async def _again(self, run_id: str, *, stream: bool) -> Started:
        """Return what an idempotency key made.

        A stream that is asked for again begins with the run as it is now and follows the leg under way.
        """
        run = await self._store.get("runs", run_id)
        if run is None:
            raise refusal.not_found("run", run_id)
        return Started(run=run, stream=self._rejoin(run) if stream else None)

    def _rejoin(self, run: JSON) -> Subscription:
        active = self._execution.get(run["id"])
        if active is not None and active.status in ("queued", "in_progress"):
            subscription = _subscribe(active)
            subscription.send(encode(f"thread.run.{active.status}", active.run))
            return subscription
        subscription = Subscription()
        subscription.send(encode(f"thread.run.{run['status']}", run) + DONE)
        subscription.end()
        return subscription

    def _take_up(self, run: JSON, messages: Sequence[JSON], steps: list[JSON]) -> None:
        run_id, status = run["id"], run["status"]
        left_s = run["expires_at"] - self._clock()
        before = [message for message in messages if message["run_id"] != run_id]
        active = self._execution.register(run, before, left_s)
        active.resume(steps, list(messages))
        for message in messages:
            if message["run_id"] == run_id and message["status"] == "in_progress":
                active.resume_message(message)
        if status == "cancelling":
            self._execution.end(active, "cancelled")
        elif left_s <= 0:
            self._execution.end(active, "expired")
        elif status == "queued" or (status == "in_progress" and _is_silent(steps)):
            self._execution.begin_leg(active)
        elif status == "in_progress":
            text = "The server was restarted while the model worked on this run."
            self._execution.end(active, "failed", error=server_error(text))


def _interrupted(connection: Connection, namespace: str) -> list[tuple[JSON, list[JSON], list[JSON]]]:
    """Return every active run, with its thread's messages and its steps."""
    return [
        (
            run,
            listed(connection, namespace, "messages", thread_id=run["thread_id"]),
            listed(connection, namespace, "steps", run_id=run["id"]),
        )
        for run in active_runs(connection, namespace)
    ]


def _is_silent(steps: Sequence[JSON]) -> bool:
    """Whether the model has said nothing since it was asked: at first, or after the last tool outputs."""
    return not steps or (steps[-1]["type"], steps[-1]["status"]) == ("tool_calls", "completed")


def _look(
    connection: Connection, namespace: str, thread_id: str, assistant_id: str
) -> tuple[JSON, list[JSON]]:
    if find(connection, namespace, "threads", thread_id) is None:
        raise refusal.not_found("thread", thread_id)
    assistant = find(connection, namespace, "assistants", assistant_id)
    if assistant is None:
        raise refusal.not_found("assistant", assistant_id)
    return assistant, listed(connection, namespace, "messages", thread_id=thread_id)


def _check_choice(run: JSON) -> None:
    choice = run["tool_choice"]
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        if name not in [tool["function"]["name"] for tool in run["tools"]]:
            raise refusal.invalid(f"Invalid 'tool_choice': this run has no function '{name}'.", "tool_choice")


def _subscribe(active: ActiveRun) -> Subscription:
    subscription = Subscription()
    active.subscriptions.append(subscription)
    return subscription
