"""How rows become runs again.

Owns the queries for whole runs. Runs in the caller's transaction and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from orchestrator.journal.codec import decoded_finish, decoded_record, decoded_text
from orchestrator.journal.interface import Address, Ended, StoredRun
from orchestrator.journal.schema import runs, tool_calls
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

__all__ = ["Loaded", "load"]

_RUNS = select(runs).where(runs.c.key.in_(bindparam("keys", expanding=True))).order_by(runs.c.ordinal)
_CALLS = (
    select(tool_calls)
    .where(tool_calls.c.run.in_(bindparam("runs", expanding=True)), tool_calls.c.state == "finished")
    .order_by(tool_calls.c.run, tool_calls.c.round, tool_calls.c.ordinal)
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run, whole.

    Attributes:
        ordinal: Its row.
        asked: What was asked for, as bytes.
        epoch: How often somebody has begun to conduct it.
        run: The run.
    """

    ordinal: int
    asked: bytes
    epoch: int
    run: StoredRun | Ended


def load(connection: Connection, keys: Collection[str], offset_s: float) -> dict[str, Loaded]:
    """Return the runs of these keys, by key, oldest first.

    Args:
        connection: In a transaction.
        keys: The runs.
        offset_s: The database's clock minus this process's monotonic one.

    Raises:
        JournalError: What is stored is not ours.
    """
    rows = connection.execute(_RUNS, {"keys": list(keys)}).all() if keys else []
    if not rows:
        return {}
    results: dict[int, list[ToolCallResult]] = {}
    for call in connection.execute(_CALLS, {"runs": [row.ordinal for row in rows]}):
        results.setdefault(call.run, []).append(_result(call))
    return {row.key: _loaded(row, tuple(results.get(row.ordinal, ())), offset_s) for row in rows}


def _loaded(row: Any, results: tuple[ToolCallResult, ...], offset_s: float) -> Loaded:
    record = decoded_record(row.key, row.asked, row.state, results, offset_s)
    run: StoredRun | Ended
    if row.ended_at is not None:
        run = Ended(record=record, finish=decoded_finish(row.outcome, results))
    else:
        address = Address(base_url=row.server, organization=row.organization, project=row.project)
        run = StoredRun(record=record, address=address)
    return Loaded(ordinal=row.ordinal, asked=bytes(row.asked), epoch=row.epoch, run=run)


def _result(row: Any) -> ToolCallResult:
    return ToolCallResult(
        round=row.round,
        call_id=row.call_id,
        name=row.name,
        arguments=decoded_text(row.arguments),
        output=decoded_text(row.output),
        error=None if row.error is None else decoded_text(row.error),
        attempts=row.attempts,
        duration_s=row.duration_s,
        run_id=row.run_id,
    )
