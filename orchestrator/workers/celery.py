"""A Celery task that sees runs to their end: its message is a wake-up, and the journal says what it is about.

Owns what a run is for Celery: its key is the task's id, its progress the task's state, its outcome the task's
result. Whose a run is, and what becomes of it when a worker dies, is for the journal: a message may come
late, twice or never again, and the outcome is the same. Knows no broker.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from celery import Task, current_app
from celery.exceptions import Reject
from celery.local import Proxy
from celery.signals import task_revoked, worker_init
from msgspec import to_builtins

from orchestrator.errors import JournalError, OrchestratorClosed, OrchestratorError, UnknownRun
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.request import require_patience
from orchestrator.telemetry import get_logger
from orchestrator.workers.attendance import Attendance
from orchestrator.workers.process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from celery import Celery
    from celery.result import AsyncResult

    from orchestrator.journal import SQLJournal
    from orchestrator.orchestrator import Orchestrator
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.result import RunResult
    from orchestrator.supervision.asking import RunOptions
    from orchestrator.supervision.handle import RunHandle

__all__ = ["RunAssistant", "RunTaskError", "cancel", "install", "run_assistant", "wake_up_waiting"]

log = get_logger(__name__)

NAME: Final = "orchestrator.run_assistant"

_LOOK_S: Final = 0.5
"""How often a task looks whether its run has moved."""

_ALL: Final = 1_000_000
"""More runs than wait anywhere."""

_PAUSE_S: Final = 5.0
"""How long a message is kept that this worker can do nothing about, before another one gets it."""


class RunTaskError(OrchestratorError):
    """A run came to an end without a result; raised by the task, and by `AsyncResult.get()`.

    Its arguments are strings, so that it survives every result backend and serializer.

    Attributes:
        key: The run's key.
        kind: The class of the error, such as `"DeadlineExceeded"`.
        text: What it says; it names the ids.
    """

    def __init__(self, key: str, kind: str, text: str) -> None:
        super().__init__(key, kind, text)
        self.key = key
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return f"run {self.key!r}: {self.kind}: {self.text}"


class RunAssistant(Task):  # type: ignore[misc]  # Celery has no types
    """The task; made by `install()`, and found as `run_assistant`.

    While the run is open, the task's state is `PROGRESS`, with the run's phase, status, ids, and numbers of
    rounds and tool calls as its info. Its result is a dictionary: `status`, `text`, `thread_id`, `run_id`,
    `usage`, `error`, and `tool_calls` without what they were given and what they answered. A run that fails,
    expires or is cancelled has a result; one that cannot be conducted to its end raises `RunTaskError`.
    """

    # The message goes back, should the worker or its process die: whoever gets it finds the run as it stands.
    acks_late = True
    reject_on_worker_lost = True
    # Celery logs the beginning of a result, where a status has room, and what the model said has not.
    resultrepr_maxsize = 40
    processes: PerProcess
    attendance: Attendance

    def delay(
        self, assistant_id: str, *, key: str | None = None, **options: Unpack[RunOptions]
    ) -> AsyncResult:
        """Write a run into the journal and wake up a worker; blocks until the journal and the broker have it.

        May be repeated with the same key: it stands for one run, and another message does no harm.

        Args:
            assistant_id: The assistant.
            key: A name for the run, which becomes the task's id; by default one is generated.
            options: As for `Orchestrator.start()`, without functions among the `tools`. The deadline counts
                from now, so it includes the time in the queue.

        Returns:
            The task's result, which resolves to the run's outcome.

        Raises:
            ValueError: An argument cannot be sent.
            TypeError: A message is of no kind that is known.
            KeyReused: The key is that of another request.
            JournalError: The journal cannot be written.
            kombu.exceptions.OperationalError: The broker cannot be reached. With a key, try again; without,
                the run is cancelled.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        return self.apply_async((assistant_id,), {"key": key, **options})

    def apply_async(
        self,
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """As `delay()`, with Celery's own options, such as `countdown`, `queue` and `link`.

        Args:
            args: The assistant.
            kwargs: The options of the run.
            task_id: The same as the run's key.
            options: Celery's.

        Raises:
            ValueError: The key and the task's id differ, as they may in a canvas, which gives each task an
                id: there, use `run_assistant.s(…).set(task_id=key)`.
        """
        asked = dict(kwargs or {})
        named = asked.pop("key", None) or task_id
        if task_id not in (None, named):
            raise ValueError(f"key {named!r} and task id {task_id!r} differ: use .set(task_id={named!r})")
        orchestrator = self.processes.orchestrator
        key = orchestrator.enqueue(*(args or ()), key=named, **asked)
        try:
            return self.wake_up(key, **options)
        except Exception:
            if named is None:  # nobody knows the key, so that nobody could ever wake a worker up for it
                with suppress(JournalError):
                    journal_of(orchestrator).cancel(key)
            raise

    def wake_up(self, key: str, **options: Any) -> AsyncResult:
        """Have a worker look after a run that the journal knows; repeatable.

        Args:
            key: The run's key.
            options: Celery's, as for `apply_async()`.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached.
        """
        return super().apply_async((key,), {}, task_id=key, **options)

    def conduct(self, key: str) -> dict[str, Any]:
        """See a run to its end, or watch whoever does; blocks. What the worker calls.

        Returns:
            What came of it.

        Raises:
            RunTaskError: It has no result, or is not known.
            Reject: This process cannot see the run to its end; the message goes back to the queue.
        """
        try:
            orchestrator = self.processes.orchestrator
            return summary(self._awaited(orchestrator.attach(key)))
        except UnknownRun as error:
            raise RunTaskError(key, type(error).__name__, str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the journal says whether the run is over
            finish = self._verdict(key, error)
        if finish.error is not None:
            raise RunTaskError(key, type(finish.error).__name__, str(finish.error)) from None
        assert finish.result is not None
        return summary(finish.result)

    def _awaited(self, handle: RunHandle) -> RunResult:
        """Wait for a run's result, and tell Celery how it stands."""
        told: dict[str, Any] | None = None
        while True:
            try:
                return handle.result(_LOOK_S)
            except TimeoutError:
                now = handle.snapshot()
            if now.waits_for is WaitsFor.PROCESS:
                continue  # its own task tells
            progress = {
                "phase": str(now.phase.value),
                "status": now.status,
                "thread_id": now.thread_id,
                "run_id": now.run_id,
                "round": now.round,
                "tool_calls": now.tool_calls,
            }
            if progress != told:
                self._tell(handle.key, progress)
                told = progress

    def _tell(self, key: str, progress: dict[str, Any]) -> None:
        try:
            self.update_state(state="PROGRESS", meta=progress)
        except Exception as error:  # noqa: BLE001 - each backend has errors of its own; the run goes on
            log.warning("celery.progress_not_told", run_key=key, reason=type(error).__name__)

    def _verdict(self, key: str, error: Exception) -> Finish:
        """Return how a run ended, after this process could not go on with it.

        Raises:
            Reject: It has not ended, as far as is known: the message goes back to the queue.
        """
        finish = None
        with suppress(Exception):
            finish = journal_of(self.processes.orchestrator).outcome(key)
        if finish is not None:
            return finish
        tell = log.info if isinstance(error, OrchestratorClosed) else log.warning
        tell("celery.run_given_back", run_key=key, error=type(error).__name__, reason=str(error))
        self.attendance.pause(_PAUSE_S)
        raise Reject(f"run {key!r} is left to another worker: {type(error).__name__}", requeue=True) from None


def install(app: Celery, factory: Callable[[], Orchestrator], *, drain_s: float = 10.0) -> RunAssistant:
    """Give a Celery application the task `run_assistant`, and each of its worker processes an orchestrator.

    For the prefork, threads and solo pools. The orchestrator is made once a process accepts tasks, so after
    the fork, and takes up the runs of workers that died. At a warm shutdown the open runs have `drain_s`
    seconds to end; the rest is let go of, and its messages go back to the queue. Who only sends tasks has an
    orchestrator, too, which connects to nothing but the journal.

    Starts nothing; call it where the application is made.

    Args:
        app: The application.
        factory: Makes an orchestrator with a journal that survives; the same for those that send tasks and
            for those that do them.
        drain_s: The most seconds that open runs have at a shutdown.

    Returns:
        The task.

    Raises:
        TypeError: `drain_s` is no number.
        ValueError: `drain_s` is negative.
    """
    require_patience("drain_s", drain_s)
    processes = PerProcess(factory)

    def wake_up(key: str) -> None:
        task.wake_up(key)

    attendance = Attendance(processes, wake_up=wake_up, drain_s=drain_s)

    def run_assistant(task: RunAssistant, key: str) -> dict[str, Any]:
        return task.conduct(key)

    # After a broker's restart Celery would raise the prefetch count on the threads of its pool, by requests
    # whose answers its main thread may read: such a worker hangs. And a result that cannot be stored at that
    # moment would become a failed task as soon as it can, though the run has ended well. Whoever configures
    # them is obeyed.
    app.add_defaults({"worker_enable_prefetch_count_reduction": False, "result_backend_always_retry": True})
    declare = app.task(
        name=NAME, base=RunAssistant, bind=True, shared=False, processes=processes, attendance=attendance
    )
    task = cast("RunAssistant", declare(run_assistant))

    def begin(sender: Any, **_: object) -> None:
        if sender.app is app:
            attendance.expect_processes()
            task_revoked.connect(revoked, weak=False)

    def revoked(sender: Any, request: Any, *, terminated: bool, **_: object) -> None:
        if sender.name == NAME:
            cancel_revoked(journal_of(processes.orchestrator), request.id, terminated=terminated)

    worker_init.connect(begin, weak=False)
    return task


def cancel(run: AsyncResult | str) -> None:
    """Have a run end, in whatever process it is conducted; blocks until the journal has that. Repeatable.

    One that no worker has begun ends at once. Its task then resolves as any other does: to the run's outcome,
    usually with status `cancelled`. It does nothing once the run is over.

    Args:
        run: What `delay()` returned, or the run's key.

    Raises:
        UnknownRun: The journal has no such run.
        JournalError: It cannot be written.
        RuntimeError: The current Celery application has no `run_assistant`.
    """
    key = run if isinstance(run, str) else run.id
    journal_of(_installed().processes.orchestrator).cancel(key)


def wake_up_waiting(older_than_s: float) -> list[str]:
    """Send another message for each run that nobody has begun in this time; for a periodic task.

    A broker may lose a message, or give it back late: what a worker that died had fetched and not begun comes
    back from Redis after its visibility timeout and up to two minutes more. Blocks; may be repeated, for a
    second message does a run no harm. It knows no countdown, and no queue but the task's own.

    Args:
        older_than_s: For longer than a run may wait in the queue, in seconds.

    Returns:
        The keys, oldest run first.

    Raises:
        JournalError: The journal cannot be read.
        kombu.exceptions.OperationalError: The broker cannot be reached.
        RuntimeError: The current Celery application has no `run_assistant`.
    """
    task = _installed()
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    runs = journal_of(task.processes.orchestrator).runs(limit=_ALL)
    keys = [run.key for run in reversed(runs) if run.state == "waiting" and run.created_at < before]
    for key in keys:
        task.wake_up(key)
    return keys


def cancel_revoked(journal: SQLJournal, key: str, *, terminated: bool) -> None:
    """Keep a run from ever being conducted whose task was revoked or has expired; on the worker's thread.

    A revoked task that is at work is not stopped, in Celery's own words, unless it is to be terminated: what
    is revoked then may be no more than a second message.
    """
    try:
        if terminated or journal.show(key).run.state == "waiting":
            journal.cancel(key)
    except JournalError as error:
        log.warning("celery.revoke_not_recorded", run_key=key, reason=str(error))


def journal_of(orchestrator: Orchestrator) -> SQLJournal:
    """Return an orchestrator's journal.

    Raises:
        JournalError: It does not survive.
    """
    if not orchestrator.journal.survives:
        raise JournalError(
            "tasks need a journal that survives: Orchestrator(journal='sqlite:///runs.db') in the factory"
        )
    return cast("SQLJournal", orchestrator.journal)


def summary(result: RunResult) -> dict[str, Any]:
    """Return what a result says, as JSON can say it; without what tools were given and what they answered."""
    return {
        "status": result.status,
        "thread_id": result.thread_id,
        "run_id": result.run_id,
        "usage": to_builtins(result.usage),
        "error": to_builtins(result.error),
        "tool_calls": [
            {
                "round": call.round,
                "call_id": call.call_id,
                "name": call.name,
                "error": call.error,
                "attempts": call.attempts,
            }
            for call in result.tool_calls
        ],
        "text": result.text,
    }


def _installed() -> RunAssistant:
    task = current_app.tasks.get(NAME)
    if task is None:
        raise RuntimeError(
            "the current Celery application has no run_assistant: call "
            "orchestrator.workers.celery.install(app, factory) where it is made"
        )
    return cast("RunAssistant", task)


run_assistant = cast("RunAssistant", Proxy(_installed))
"""The task of the current Celery application, for modules that do not import the application."""
