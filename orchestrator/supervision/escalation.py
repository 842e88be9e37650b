"""What is left on the server of a run that is given up: the last requests for it, and where to look for it.

Made outside of the run's machine, which has died too often, by the policy of its requests. Decides nothing
about when.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from orchestrator.client.retry import NONCE_KEY, RetryPolicy, Verdict, delay_s, judge
from orchestrator.errors import BadRequestError
from orchestrator.runs.effects import CancelRun, ListRuns
from orchestrator.runs.inputs import Input, RequestFailed, RunObserved, RunsListed
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.runs.record import RunRecord
    from orchestrator.supervision.in_flight import InFlight

__all__ = ["ended_remotely", "whereabouts"]

log = get_logger(__name__)


async def ended_remotely(
    in_flight: InFlight, record: RunRecord, retry: RetryPolicy, jitter: Callable[[], float]
) -> tuple[str | None, str]:
    """Cancel what a run that is given up left on the server; its id, if any, and what became of it."""
    if record.thread_id is None or (record.run_id is None and record.pending is None):
        return None, "nothing was created on the server"
    run_id = record.run_id or in_flight.run_seen(record.pending)
    if run_id is None:
        listing = await _told(in_flight, ListRuns(number=0, thread_id=record.thread_id), retry, jitter)
        listed = listing.runs if isinstance(listing, RunsListed) else ()
        marked = (run.id for run in listed if record.is_current(run))
        run_id = next(marked, None)
    if run_id is None:
        return None, whereabouts(record)
    cancel = CancelRun(number=0, thread_id=record.thread_id, run_id=run_id)
    match await _told(in_flight, cancel, retry, jitter):
        case RunObserved():
            return run_id, "the run was cancelled on the server"
        case RequestFailed(error=BadRequestError() as error):
            return run_id, f"the server would not cancel the run, which may have ended ({error})"
        case RequestFailed(error=error):
            return run_id, f"the run could not be cancelled on the server ({error}): look at it there"
        case _:
            return run_id, "whether the run was cancelled on the server is not known: look at it there"


async def _told(
    in_flight: InFlight, effect: ListRuns | CancelRun, retry: RetryPolicy, jitter: Callable[[], float]
) -> Input | None:
    """Make a request outside of the run's machine, as often as the policy allows: both may be repeated."""
    told: Input | None = None
    for failures in range(1, retry.attempts + 1):
        told = await _attempted(in_flight, effect)
        if not isinstance(told, RequestFailed) or judge(told.error, repeatable=True) is not Verdict.AGAIN:
            break
        pause_s = delay_s(retry, failures=failures, error=told.error, jitter=jitter(), unix_now=time.time())
        if failures < retry.attempts:
            await asyncio.sleep(min(pause_s, retry.cap_s))
    return told


async def _attempted(in_flight: InFlight, effect: ListRuns | CancelRun) -> Input | None:
    told: list[Input] = []
    try:
        await in_flight.backend.perform(effect, lambda *inputs: told.extend(inputs))
    except Exception:
        log.exception(
            "run.request_broken", request=type(effect).__name__, run_id=getattr(effect, "run_id", None)
        )
    return told[0] if told else None


def whereabouts(record: RunRecord) -> str:
    """Where to look for a run that nobody conducts any more."""
    if record.run_id is not None:
        return "it may go on there: look at it, cancel it, or take it up again with adopt(thread_id, run_id)"
    if record.pending is not None:
        return f"it may have been created: look on its thread for metadata {NONCE_KEY}={record.mark}"
    return "it was not created"
