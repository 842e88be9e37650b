"""The runs that are not over: the tasks that work on them, the locks they hold, and when they expire.

Owns everything that lives only while a run does. Which run may start and what a request gets back is
`orchestrator.server.engine`'s business; what a transition means, that of `orchestrator.server.active`.

All of it runs on one event loop. A decision and the transition that follows from it happen in one turn of
that loop, so that a model that finishes, a cancel and an expiry that race are decided one by one.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from orchestrator.protocol.objects import TERMINAL_STATUSES
from orchestrator.server.active import ActiveRun, ContentFilteredError, Ending
from orchestrator.server.models import CallPiece, ModelFailedError, RunExpiredError, TextPiece, Turn
from orchestrator.server.refusal import RefusalError
from orchestrator.server.sse import Subscription, encode
from orchestrator.server.usage import TokenLimitError
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.models import Model
    from orchestrator.server.store import Shelf

__all__ = ["Execution", "server_error"]

_log = get_logger(__name__)


class Execution:
    """Works on the runs of one namespace; made anywhere, then used on one event loop.

    Args:
        store: Where everything is kept.
        model: Writes the answers.
        clock: Unix seconds.
    """

    def __init__(self, *, store: Shelf, model: Model, clock: Callable[[], float]) -> None:
        self._store = store
        self._model = model
        self._clock = clock
        self._locks: dict[str, str] = {}
        self._active: dict[str, ActiveRun] = {}
        self._legs: dict[str, asyncio.Task[None]] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, run_id: str) -> ActiveRun | None:
        """Return a run that is not over, or `None`."""
        return self._active.get(run_id)

    def lock(self, thread_id: str, run_id: str) -> None:
        """Lock a thread for a run that is about to be registered; `unlock` it if that comes to nothing."""
        self._locks[thread_id] = run_id

    def unlock(self, thread_id: str) -> None:
        """Give a locked thread free."""
        del self._locks[thread_id]

    def holder(self, thread_id: str) -> str | None:
        """Return the run that holds a thread, or `None`."""
        return self._locks.get(thread_id)

    def register(self, run: JSON, messages: Sequence[JSON], ttl_s: float) -> ActiveRun:
        """Hold a run and its thread until it ends.

        Args:
            run: The run, not over.
            messages: The thread's messages before it, oldest first.
            ttl_s: Seconds until it expires.
        """
        turns = tuple(Turn(role=message["role"], content=message["content"]) for message in messages)
        strategy = run["truncation_strategy"]
        if strategy["type"] == "last_messages":
            turns = turns[-strategy["last_messages"] :]
        active = ActiveRun(run, turns=turns, save=self._store.save, clock=self._clock)
        self._active[run["id"]] = active
        self._locks[run["thread_id"]] = run["id"]
        timer = asyncio.get_running_loop().call_later(max(0.0, ttl_s), self._expire, active)
        self._expiries[run["id"]] = timer
        return active

    def begin_leg(self, active: ActiveRun) -> None:
        """Set the model to work on a queued run."""
        run = active.run
        self._legs[run["id"]] = asyncio.create_task(self._leg(active), name=f"leg of {run['id']}")

    def cancel(self, active: ActiveRun) -> None:
        """Begin to cancel a run; it ends on a later turn of the loop."""
        active.begin_cancelling()
        self._halt(active, "cancelled", {})

    def end(self, active: ActiveRun, ending: Ending, **details: Any) -> None:
        """End a run now; its lock is free before anybody learns of it. `details` as for `ActiveRun.end`."""
        active.end(ending, **details)
        run_id = active.run["id"]
        self._expiries.pop(run_id).cancel()
        del self._active[run_id], self._locks[active.run["thread_id"]]
        self._legs.pop(run_id, None)
        self._deliver(active)

    def interrupt(self, active: ActiveRun, ending: Ending, **details: Any) -> None:
        """End a run from outside, soon, unless it is being cancelled already; `details` as for `end`."""
        if active.status == "requires_action":
            # At once: an output that arrives later must find the run over.
            self.end(active, ending, **details)
        elif active.status != "cancelling":
            self._halt(active, ending, details)

    def end_streams(self) -> None:
        """End every open stream with an `error` event: no verdict, its reader has to look again."""
        error = RefusalError(503, "The server is shutting down.", type="server_error")
        for active in self._active.values():
            for stream in active.subscriptions:
                stream.send(encode("error", error.event()))
                stream.end()

    async def stop(self) -> None:
        """Stop working; open streams end with an error event. Runs keep their stored status."""
        self.end_streams()
        for expiry in self._expiries.values():
            expiry.cancel()
        tasks = [*self._legs.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leg(self, active: ActiveRun) -> None:
        try:
            waits = await self._complete(active)
        except TokenLimitError as limit:
            self.end(active, "incomplete", reason=limit.reason)
        except ContentFilteredError:
            # The specification knows this reason for messages only; the run has to say it some other way.
            error = server_error("The model's content filter stopped the answer.")
            self.end(active, "incomplete", error=error, message_reason="content_filter")
        except RunExpiredError:
            self.end(active, "expired")
        except ModelFailedError as failure:
            self.end(active, "failed", error={"code": failure.code, "message": failure.message})
        except Exception:  # noqa: BLE001 - a model's failure ends its run, whatever it was
            _log.exception("server.model_raised", run_id=active.run["id"])
            self.end(active, "failed", error=server_error("The model failed unexpectedly."))
        else:
            if waits:
                self._deliver(active)
            else:
                self.end(active, "completed")

    async def _complete(self, active: ActiveRun) -> bool:
        prompt = active.prompt()
        active.begin(prompt)
        async with aclosing(self._model.respond(prompt)) as outputs:
            async for output in outputs:
                if isinstance(output, TextPiece):
                    active.add_text(output.text)
                elif isinstance(output, CallPiece):
                    active.add_call(output)
                else:
                    return active.finish(output)
        raise ModelFailedError("server_error", "The model stopped in the middle of its answer.")

    def _expire(self, active: ActiveRun) -> None:
        self.interrupt(active, "expired")

    def _halt(self, active: ActiveRun, ending: Ending, details: dict[str, Any]) -> None:
        """Stop the model, and end the run once it has stopped."""
        leg = self._legs.get(active.run["id"])
        if leg is not None:
            # In this turn: a leg that is about to run must not take a cancelling run to another status.
            leg.cancel()
        self._spawn(self._end_after(leg, active, ending, details))

    async def _end_after(
        self, leg: asyncio.Task[None] | None, active: ActiveRun, ending: Ending, details: dict[str, Any]
    ) -> None:
        if leg is not None:
            await asyncio.wait([leg])
        if active.status not in TERMINAL_STATUSES:
            self.end(active, ending, **details)

    def _deliver(self, active: ActiveRun) -> None:
        """Close the leg's streams with its last event, once that is on disk."""
        streams, last = active.detach_streams()
        if streams:
            self._spawn(self._close_streams(streams, last))

    async def _close_streams(self, streams: list[Subscription], last: bytes) -> None:
        try:
            await self._store.settle()
            for stream in streams:
                stream.send(last)
        finally:
            for stream in streams:
                stream.end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def server_error(message: str) -> JSON:
    """Build the `last_error` of a run that the server failed."""
    return {"code": "server_error", "message": message}
