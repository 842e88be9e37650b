"""What a journal costs: the CPU time of a run with one and without, measured by turns in one process.

`python tests/benchmarks/journalling.py [RUNS] [TURNS]` (default 500 and 5) prints a table. A wave is so many
runs that are all open at the same time, each streamed, with two tool calls in one batch, against a run server
in another process. The journal is a SQLite file with `synchronous=FULL`. What is compared is this process's
CPU time from the first start to the last result, in all its threads. Beside that stands what a run leaves in
the journal. `test_journalling.py` holds the ratio to what is promised.
"""

from __future__ import annotations

import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fleet import PATIENCE_S, all_open, ask_server, double, square
from run_server import calls_of, run_server
from stub_server import allow_many_files

from orchestrator import Orchestrator, RunHandle

CALLS = 2


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What was measured.

    Attributes:
        runs: How many were open at the same time.
        without_s: CPU seconds of each wave without a journal.
        with_s: CPU seconds of each wave with one.
        failed: The runs that did not complete with the right outputs, and why.
        kept: For each run the rows that it has in the journal beside its own, and its bytes there.
    """

    runs: int
    without_s: list[float]
    with_s: list[float]
    failed: list[str]
    kept: dict[str, float]

    @property
    def ratio(self) -> float:
        """CPU time with a journal for each second without, by the medians."""
        return statistics.median(self.with_s) / statistics.median(self.without_s)

    @property
    def ratios(self) -> list[float]:
        """The same for each turn, sorted."""
        return sorted(one / other for one, other in zip(self.with_s, self.without_s, strict=True))


def measure(runs: int, turns: int) -> Overhead:
    """See waves through, by turns with a journal and without."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    failed: list[str] = []
    kept: dict[str, float] = {}
    with run_server() as base_url, tempfile.TemporaryDirectory() as directory:
        for turn in range(-1, turns):
            # Whatever goes first may find another machine than what comes after it.
            for journalled in (False, True) if turn % 2 else (True, False):
                file = Path(directory) / f"{turn}.sqlite"
                url = f"sqlite:///{file}" if journalled else None
                cpu_s = _wave(base_url, runs if turn >= 0 else 10, f"{turn}-{journalled}", url, failed)
                if turn >= 0:  # what is made once for all is nobody's cost
                    spent[journalled].append(cpu_s)
                if journalled:
                    kept = _kept(file)
    return Overhead(runs=runs, without_s=spent[False], with_s=spent[True], failed=failed, kept=kept)


def _kept(file: Path) -> dict[str, float]:
    """What a run leaves in a journal that is closed."""
    journal = sqlite3.connect(file)
    try:
        tables = [name for (name,) in journal.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = {name: journal.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    finally:
        journal.close()
    runs = rows["journal_runs"]
    each = {name: rows[f"journal_{name}"] / runs for name in ("tool_calls", "submissions", "events")}
    return each | {"bytes": file.stat().st_size / runs}


def _wave(base_url: str, runs: int, gate: str, journal: str | None, failed: list[str]) -> float:
    with Orchestrator(
        base_url=base_url,
        api_key="k",
        tools=[double, square],
        max_concurrent_runs=runs + 1,
        journal=journal,
    ) as orchestrator:
        # The journal's tables and the connections' first are not a run's cost.
        _examine(0, _start(orchestrator, 0, None), failed)
        gc.collect()
        began = time.process_time()
        handles = [_start(orchestrator, number, gate) for number in range(runs)]
        all_open(base_url, handles, streams=runs)
        ask_server(base_url, f"gates/{gate}", method="POST")
        for handle in handles:
            handle.result(PATIENCE_S)
        spent = time.process_time() - began
        for number, handle in enumerate(handles):
            _examine(number, handle, failed)
    return spent


def _start(orchestrator: Orchestrator, number: int, gate: str | None) -> RunHandle:
    plan = {"rounds": "1", "calls": str(CALLS), "number": str(number)}
    return orchestrator.start(
        "asst_1", messages="go", metadata=plan if gate is None else plan | {"gate": gate}
    )


def _examine(number: int, handle: RunHandle, failed: list[str]) -> None:
    result = handle.result(PATIENCE_S)
    outputs = (2 * given if name == "double" else given * given for name, given in calls_of(number, 1, CALLS))
    if result.status != "completed" or result.text != " ".join(map(str, outputs)):
        failed.append(f"{handle.key}: {result.status}, {result.text!r}")


def table(measured: Overhead) -> str:
    """Put the figures into a table."""
    rows = []
    for name, seconds in (("none", measured.without_s), ("SQLite", measured.with_s)):
        each = [1e3 * one / measured.runs for one in seconds]
        rows.append(f"| {name} | {statistics.median(each):.2f} ms | {min(each):.2f} to {max(each):.2f} ms |")
    ratios = measured.ratios
    kept = ", ".join(f"{each:,.0f} {name}" for name, each in measured.kept.items())
    return "\n".join(
        (
            f"{measured.runs:,} runs at once, {len(ratios)} turns\n",
            "| journal | CPU per run, median | from, to |\n|---|---|---|",
            *rows,
            f"\nratio of the medians {measured.ratio:.3f}, of each turn {ratios[0]:.3f} to {ratios[-1]:.3f}",
            f"a run leaves in the journal: {kept}",
        )
    )


def main() -> None:
    """Print the table."""
    allow_many_files()
    numbers = [int(argument) for argument in sys.argv[1:]]
    runs, turns = (*numbers, *(500, 5)[len(numbers) :])
    measured = measure(runs, turns)
    print(table(measured))
    for failure in measured.failed[:20]:
        print(failure)


if __name__ == "__main__":
    main()
