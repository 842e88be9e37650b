"""The rows that a batch changes: collected one by one, written all at once.

Owns the statements that write, a handful whatever the number of runs. Decides nothing: whoever adds a row has
seen, in the same transaction, that it may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, update

from orchestrator.journal.codec import asked, encoded_finish, encoded_record, encoded_text
from orchestrator.journal.schema import events, runs, servers, submissions, tool_calls
from orchestrator.journal.timeline import calls_begun, calls_ended, changes, ending, submission

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from orchestrator.journal.database import Database
    from orchestrator.journal.interface import Address
    from orchestrator.journal.redaction import Redaction
    from orchestrator.journal.timeline import Happening
    from orchestrator.protocol.objects import ToolCall
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.result import ToolCallResult

__all__ = ["Changes", "Place", "first_row"]


@dataclass(slots=True)
class Place:
    """Where a run's rows are, and under which owner they are written.

    Attributes:
        ordinal: The run's row.
        epoch: How often somebody has begun to conduct it.
        seq: The number of the last line of its time line.
    """

    ordinal: int
    epoch: int
    seq: int


def _updated(*names: str) -> Any:
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
    return update(runs).where(runs.c.ordinal == bindparam("row")).values(values)


_STATE: Final = ("thread_id", "run_id", "state", "phase", "status", "attempts", "seq", "updated_at")
_PROGRESS: Final = _updated(*_STATE)
_END: Final = _updated(*_STATE, "ended_at", "outcome", "error", "owner", "lease_until")
_OWNER: Final = _updated("owner", "lease_until", "epoch", "seq", "updated_at")
_CANCEL: Final = _updated("cancel_requested")


@dataclass(slots=True)
class Changes:
    """What is to be written in one transaction.

    Args:
        database: Whose statements.
        now: The database's clock in this transaction.
        offset_s: That minus this process's monotonic clock.
        redaction: What may be kept of tool calls.
    """

    database: Database
    now: float
    offset_s: float
    redaction: Redaction
    _progress: list[dict[str, Any]] = field(default_factory=list)
    _ends: list[dict[str, Any]] = field(default_factory=list)
    _owners: list[dict[str, Any]] = field(default_factory=list)
    _cancels: list[dict[str, Any]] = field(default_factory=list)
    _begun: list[dict[str, Any]] = field(default_factory=list)
    _ended: list[dict[str, Any]] = field(default_factory=list)
    _submissions: list[dict[str, Any]] = field(default_factory=list)
    _events: list[dict[str, Any]] = field(default_factory=list)
    _servers: list[dict[str, Any]] = field(default_factory=list)

    def own(self, place: Place, owner: str | None, lease_until: float | None) -> None:
        """The run is somebody's, or nobody's, from now on."""
        row = {"owner": owner, "lease_until": lease_until, "epoch": place.epoch, "seq": place.seq}
        self._owners.append(_new(place, row | {"updated_at": self.now}))

    def cancel(self, ordinal: int) -> None:
        """Somebody wants the run to end."""
        self._cancels.append({"row": ordinal, "new_cancel_requested": True})

    def happen(self, place: Place, happening: Happening) -> None:
        """Add a line to the run's time line."""
        place.seq += 1
        self._events.append(
            {
                "run": place.ordinal,
                "seq": place.seq,
                "at": self.now,
                "kind": happening.kind[:32],
                "detail": _plain(happening.detail),
                "epoch": place.epoch,
            }
        )

    def follow(self, place: Place, before: RunRecord, after: RunRecord) -> None:
        """The run's record was another one for a while: tell what happened."""
        for happening in changes(before, after):
            self.happen(place, happening)
        begun, ended = calls_begun(before, after), calls_ended(before, after)
        if begun or ended:
            numbers = {call.id: number for number, call in enumerate(after.calls)}
            for call in begun:
                self._begun.append(self._begun_row(place, after, call, numbers[call.id]))
            for result in ended:
                self._ended.append(self._ended_row(place, result, numbers.get(result.call_id, 0)))
        submitted = submission(before, after)
        if submitted is not None:
            round_number, state = submitted
            row = {"round": round_number, "state": state, "run_id": after.run_id, "at": self.now}
            self._submissions.append({"run": place.ordinal, "epoch": place.epoch} | row)

    def keep(self, place: Place, record: RunRecord, finish: Finish | None) -> None:
        """This is the run's record; with an outcome it is the last."""
        record = self.redaction.record(record)
        columns = _columns(record, self.offset_s) | {"updated_at": self.now}
        if finish is None:
            self._progress.append(_new(place, columns | {"seq": place.seq}))
            return
        self.happen(place, ending(finish))
        error = None if finish.error is None else _plain(str(finish.error))
        ended = {
            "ended_at": self.now,
            "outcome": encoded_finish(self.redaction.finish(finish)),
            "error": error,
        }
        free = {"owner": None, "lease_until": None}
        self._ends.append(_new(place, columns | ended | free | {"seq": place.seq}))

    def echoing(self, base_url: str) -> None:
        """A server was seen to give metadata back."""
        self._servers.append({"base_url": base_url})

    def write(self, connection: Connection) -> None:
        """Write everything; a table that is not concerned costs nothing."""
        upsert = self.database.upsert
        ended = ("state", "output", "error", "attempts", "duration_s", "run_id", "epoch")
        for statement, rows in (
            (_PROGRESS, self._progress),
            (_END, self._ends),
            (_OWNER, self._owners),
            (_CANCEL, self._cancels),
            (upsert(tool_calls), self._begun),
            (upsert(tool_calls, *ended), self._ended),
            (upsert(submissions, "state", "epoch", "at"), self._submissions),
            (upsert(events), self._events),
            (upsert(servers), self._servers),
        ):
            if rows:
                self.database.execute_many(connection, statement, rows)

    def _begun_row(self, place: Place, record: RunRecord, call: ToolCall, number: int) -> dict[str, Any]:
        return {
            "run": place.ordinal,
            "round": record.round,
            "call_id": call.id,
            "ordinal": number,
            "name": _plain(call.function.name),
            "arguments": encoded_text(self.redaction.arguments(call.function.name, call.function.arguments)),
            "state": "started",
            "attempts": 0,
            "duration_s": 0.0,
            "run_id": record.run_id,
            "epoch": place.epoch,
        }

    def _ended_row(self, place: Place, result: ToolCallResult, number: int) -> dict[str, Any]:
        error = (
            None if result.error is None else encoded_text(self.redaction.output(result.name, result.error))
        )
        return {
            "run": place.ordinal,
            "round": result.round,
            "call_id": result.call_id,
            "ordinal": number,
            "name": _plain(result.name),
            "arguments": encoded_text(self.redaction.arguments(result.name, result.arguments)),
            "state": "finished",
            "output": encoded_text(self.redaction.output(result.name, result.output)),
            "error": error,
            "attempts": result.attempts,
            "duration_s": result.duration_s,
            "run_id": result.run_id,
            "epoch": place.epoch,
        }


def first_row(
    record: RunRecord,
    address: Address,
    now: float,
    offset_s: float,
    owner: str | None,
    lease_until: float | None,
) -> dict[str, Any]:
    """The row of a run that is new."""
    return {
        "key": record.key,
        "nonce": record.nonce,
        "server": address.base_url,
        "organization": address.organization,
        "project": address.project,
        "assistant_id": record.request.assistant_id,
        "asked": asked(record, address),
        "cancel_requested": False,
        "owner": owner,
        "lease_until": lease_until,
        "epoch": 0 if owner is None else 1,
        "seq": 0,
        "created_at": now,
        "updated_at": now,
    } | _columns(record, offset_s)


def _columns(record: RunRecord, offset_s: float) -> dict[str, Any]:
    return {
        "thread_id": record.thread_id,
        "run_id": record.run_id,
        "state": encoded_record(record, offset_s),
        "phase": record.phase.value,
        "status": record.status,
        "attempts": record.attempt,
    }


def _new(place: Place, columns: dict[str, Any]) -> dict[str, Any]:
    return {"row": place.ordinal} | {f"new_{name}": value for name, value in columns.items()}


def _plain(text: str | None) -> str | None:
    """A text that both databases take."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
