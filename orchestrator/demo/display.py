"""What the demo puts on the screen: a live table in a terminal, plain lines everywhere else.

It reads snapshots and draws; it starts, waits for and judges nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import Console
    from rich.table import Table

    from orchestrator.supervision.state import RunSnapshot

__all__ = ["Display", "LiveTable", "PlainLines", "display_on"]

_PHASE_STYLES = {
    Phase.ADMITTED: "dim",
    Phase.CREATING: "yellow",
    Phase.WATCHING: "cyan",
    Phase.ACTING: "magenta",
    Phase.SUBMITTING: "blue",
    Phase.CANCELLING: "red",
    Phase.COLLECTING: "blue",
    Phase.FINISHED: "green",
}

_FIXED_LINES = 7
"""Title, header, borders and the line of totals."""

_WIDE = 70
"""Columns of a terminal that has room for what is asked and waited for."""


class Display(Protocol):
    """Shows how the runs stand; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, questions: Sequence[str], snapshots: Sequence[RunSnapshot]) -> None:
        """Show this moment."""


def display_on(console: Console) -> Display:
    """The display that suits the console: a terminal that cannot move its cursor gets lines, like a pipe."""
    can_redraw = console.is_terminal and not console.is_dumb_terminal
    return LiveTable(console) if can_redraw else PlainLines(console)


class PlainLines:
    """A line whenever the number of finished runs has grown by a tenth: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, questions: Sequence[str], snapshots: Sequence[RunSnapshot]) -> None:
        """Print how far the runs are, if that has changed enough."""
        finished = sum(snapshot.phase is Phase.FINISHED for snapshot in snapshots)
        tenths = finished * 10 // max(1, len(questions))
        if tenths != self._tenths:
            self._tenths = tenths
            self._console.print(f"{finished} of {len(questions)} runs are over", highlight=False)


class LiveTable:
    """A table of the runs, redrawn in place; those that are not over come first when not all fit."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, questions: Sequence[str], snapshots: Sequence[RunSnapshot]) -> None:
        """Redraw the table."""
        self._live.update(self._table(questions, snapshots), refresh=True)

    def _table(self, questions: Sequence[str], snapshots: Sequence[RunSnapshot]) -> Table:
        from rich.table import Table
        from rich.text import Text

        phases = Counter(snapshot.phase for snapshot in snapshots)
        totals = ", ".join(f"{phases[phase]} {phase}" for phase in Phase if phases[phase])
        table = Table(title=f"{len(snapshots)} runs", caption=totals, expand=True)
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("phase", no_wrap=True)
        table.add_column("age", justify="right", no_wrap=True)
        table.add_column("calls", justify="right", no_wrap=True)
        if self._console.width >= _WIDE:
            table.add_column("waits for", ratio=2, no_wrap=True, overflow="ellipsis")
            table.add_column("question", ratio=3, no_wrap=True, overflow="ellipsis")
        for index in self._shown(snapshots):
            snapshot = snapshots[index]
            over = snapshot.phase is Phase.FINISHED
            phase = (snapshot.status or "failed") if over else str(snapshot.phase)
            style = "red" if over and snapshot.status != "completed" else _PHASE_STYLES[snapshot.phase]
            cells = [
                Text(str(index + 1)),
                Text(phase, style=style),
                Text(f"{snapshot.age_s:.1f} s"),
                Text(str(snapshot.tool_calls + len(snapshot.open_calls))),
                Text("" if over else f"{snapshot.waits_for}: {snapshot.waits_detail}"),
                Text(questions[index]),
            ]
            table.add_row(*cells[: len(table.columns)])
        return table

    def _shown(self, snapshots: Sequence[RunSnapshot]) -> list[int]:
        room = max(1, self._console.height - _FIXED_LINES)
        order = sorted(range(len(snapshots)), key=lambda index: snapshots[index].phase is Phase.FINISHED)
        return sorted(order[:room])
