"""What a journal holds, for people: tables on a terminal, lines with tabs between the columns in a pipe.

Owns words and widths. It is given what was read, and reads and changes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from orchestrator.journal.entries import JournalCall, JournalEvent, JournalHistory, JournalRun

__all__ = ["print_history", "print_runs", "safe", "standing"]

_WIDE: Final = 120
"""Columns of a terminal that has room for the ids of a run beside the rest."""

_SINGLE_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def print_runs(console: Console, runs: Sequence[JournalRun], *, limit: int) -> None:
    """Print a line for each run: how it stands, who has it, and since when it is known."""
    now = datetime.now(UTC)
    if not console.is_terminal:
        for run in runs:
            known = (run.thread_id or "", run.run_id or "", run.owner or "")
            _print_line(console, run.key, standing(run), *known, run.created_at.isoformat(timespec="seconds"))
        return
    if not runs:
        console.print("no runs")
        return
    wide = console.width >= _WIDE
    table = _table("key", "state", *(("thread", "run") if wide else ()), "owner", "age")
    table.columns[-1].justify = "right"
    for run in runs:
        ids = (run.thread_id or "-", run.run_id or "-") if wide else ()
        age = _short(now - run.created_at)
        table.add_row(*_cells(run.key, standing(run), *ids, run.owner or "-", age))
    for index, column in enumerate(table.columns):
        # The key and its state are what people look for; they are folded rather than cut.
        column.overflow = "fold" if index < 2 else "ellipsis"
        column.no_wrap = index >= 2
    console.print(table)
    if len(runs) == limit:
        console.print(f"the first {limit}: --limit shows more")


def print_history(console: Console, history: JournalHistory, *, data: bool) -> None:
    """Print one run: what is known of it, its time line, and its tool calls.

    Args:
        console: Where to.
        history: What the journal has of the run.
        data: Whether the arguments and outputs of the calls are shown.
    """
    console.print(Text(f"{safe(history.run.key)}: {standing(history.run)}"), soft_wrap=True)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in _facts(history.run):
        grid.add_row(name, Text(safe(value)))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    if history.events:
        _print_time_line(console, history.events)
    if history.calls:
        _print_calls(console, history.calls, data=data)


def standing(run: JournalRun) -> str:
    """How a run stands, in a word or two."""
    if run.state == "ended":
        return run.status or "ended" if run.error is None else "error"
    word = run.phase if run.held else f"left ({run.phase})"
    if run.state == "waiting":
        word = "waiting"
    return f"{word}, cancel wanted" if run.cancel_requested else word


def safe(text: str) -> str:
    """The text without such characters as would control a terminal."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _facts(run: JournalRun) -> Iterable[tuple[str, str]]:
    """What there is to say of a run beside how it stands."""
    facts = (
        ("server", run.server),
        ("assistant", run.assistant_id),
        ("thread", run.thread_id),
        ("run", run.run_id),
        ("status", run.status),
        ("owner", run.owner if run.held else None),
        ("taken up", None if run.epoch < 2 else f"{run.epoch} times"),
        ("began", _moment(run.created_at)),
        ("ended", None if run.ended_at is None else _moment(run.ended_at)),
        ("error", run.error),
    )
    return ((name, value) for name, value in facts if value)


def _print_time_line(console: Console, events: Sequence[JournalEvent]) -> None:
    table = _table("at (UTC)", "what", "")
    table.columns[2].overflow = "fold"
    for event in events:
        at = f"{event.at.astimezone(UTC):%m-%d %H:%M:%S.%f}"[:-3]
        table.add_row(*_cells(at, event.kind, event.detail or ""))
    console.print(table)


def _print_calls(console: Console, calls: Sequence[JournalCall], *, data: bool) -> None:
    table = _table("batch", "tool", "call", "state", "executions")
    for call in calls:
        state = call.state if call.error is None else f"{call.state}: {call.error}"
        table.add_row(*_cells(str(call.round), call.name, call.call_id, state, str(call.attempts)))
    table.columns[3].overflow = "fold"
    console.print(table)
    if not data:
        return
    for call in calls:
        for what, text in (("arguments", call.arguments), ("output", call.output)):
            if text is not None:
                console.print(Text(f"{safe(call.call_id)} {what}: {safe(text)}"), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="ellipsis")
    return table


def _cells(*texts: str) -> list[Text]:
    return [Text(safe(text)) for text in texts]


def _print_line(console: Console, *cells: str) -> None:
    # Not by the console's own print, which makes spaces of tabs.
    print("\t".join(safe(cell) for cell in cells), file=console.file)


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _short(age: timedelta) -> str:
    seconds = max(0, int(age.total_seconds()))
    for size, name in _SINGLE_UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"
