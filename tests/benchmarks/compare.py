"""What a run costs, ours and our peers': one table, one file of figures, one picture.

`python tests/benchmarks/compare.py` takes twenty minutes on two cores and needs the extra `bench`;
`--quick` takes two minutes. It prints the table, and writes `results/compare.json` and `results/compare.png`
beside this file; `--table` prints the table of the figures that are there.

Every wave is a process of its own, against a server of its own (`two_legs.py`), so that nobody pays for the
memory of another. Rounds go through all contestants before they begin again; what is compared is medians of
the same rounds. A *burst* starts all runs at once. A *paced* wave spreads the starts over as long as one run
takes, so that all are open when the last one starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import fleet
from contestants import CONTESTANTS, Round, missing
from run_server import run_server
from stub_server import allow_many_files
from two_legs import EVENTS, two_legs

RESULTS: Final = Path(__file__).parent / "results"
TICK_S: Final = 0.02
"""The pause between two events of a run in a burst: the model takes a second."""

PATIENCE_S: Final = 300.0
OURS, FLOOR = "ours, streamed", "floor"
UNCOLLECTED = "ours, streamed, collector off"
STREAMING, POLLING = "AsyncOpenAI, streamed, aiohttp", "AsyncOpenAI, polled, aiohttp"
PACKAGES: Final = ("pykka", "httpx", "httptools", "uvloop", "openai", "aiohttp", "azure-ai-agents")


def wave(name: str, runs: int, *, spread_s: float = 0.0) -> dict[str, Any]:
    """See one wave through, in a process of its own; what it cost, and what the server saw."""
    tick_s = spread_s / EVENTS if spread_s else TICK_S
    with two_legs(tick_s) as base_url:
        before = fleet.ask_server(base_url, "report")
        script = Path(__file__).parent / "contestants.py"
        told = [sys.executable, str(script), name, base_url, str(runs), str(spread_s)]
        try:
            done = subprocess.run(
                told, capture_output=True, text=True, timeout=PATIENCE_S + 2 * spread_s, check=True
            )
        except subprocess.TimeoutExpired:
            print(f"  {name}, {runs:,} runs: not through after {PATIENCE_S:.0f} s", flush=True)
            return {"name": name, "runs": runs, "given_up": True}
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{name}, {runs} runs: {error.stderr[-2000:]}") from error
        seen = fleet.ask_server(base_url, "report")
    measured = Round(**json.loads(done.stdout.splitlines()[-1]))
    share = (seen["cpu_s"] - before["cpu_s"]) / measured.wall_s
    figures = {
        "name": name,
        "runs": runs,
        "spread_s": spread_s,
        "cpu_ms": measured.cpu_ms,
        "wall_s": measured.wall_s,
        "delay_p50_ms": measured.delay_ms(0.5),
        "delay_p99_ms": measured.delay_ms(0.99),
        "open_kb": measured.open_bytes / 1e3 / runs,
        # The assistant is looked at once, and the figures themselves are asked for.
        "requests_per_run": round(seen["requests"] / seen["creates"], 2),
        "server_share": share,
    }
    print(
        f"  {name}, {runs:,} runs{f' over {spread_s:.0f} s' if spread_s else ''}: {measured.cpu_ms:.2f} ms,"
        f" server {share:.0%} of a core",
        flush=True,
    )
    return figures


def measured(*, quick: bool) -> dict[str, Any]:
    """Measure everything."""
    allow_many_files()
    rounds, runs, many = (1, 200, 500) if quick else (3, 1_000, 5_000)
    names = [name for name in CONTESTANTS if missing(name) is None]
    left_out = {name: missing(name) for name in CONTESTANTS if missing(name) is not None}
    bursts = [wave(name, runs) for _ in range(rounds) for name in names]
    sizes = [100, runs, many]
    swept = [wave(name, size) for _ in range(rounds) for size in sizes for name in (FLOOR, OURS)]
    pace_s = 3.0 if quick else 12.0
    paced = [wave(OURS, size, spread_s=pace_s * size / runs) for size in (runs // 5, runs, many)]
    uncollected = wave(UNCOLLECTED, many, spread_s=pace_s * many / runs)
    most = [] if quick else [wave(OURS, 10_000)]
    with run_server() as base_url:
        cancels = fleet.cancels(base_url, many, many // 10, over_s=many / 500, every_s=0.01, beside=5)
    return {
        "environment": environment(),
        "bursts": bursts,
        "swept": swept,
        "paced": paced,
        "uncollected": uncollected,
        "most": most,
        "left_out": left_out,
        "cancel_p99_ms": 1e3 * fleet.percentile(cancels.latencies_s, 0.99),
        "cancel_beside": many,
        "failed": cancels.failed,
    }


def environment() -> dict[str, Any]:
    """What was measured on and with."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
    }


def median(waves: list[dict[str, Any]], name: str, runs: int | None = None) -> float | None:
    """The median CPU time of a run in the waves of one contestant; `None` where there are none."""
    figures = [
        one["cpu_ms"]
        for one in waves
        if one["name"] == name and runs in (None, one["runs"]) and "cpu_ms" in one
    ]
    return statistics.median(figures) if figures else None


def goals(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was to be reached and what was: name, goal, figure."""
    bursts, swept, paced = figures["bursts"], figures["swept"], figures["paced"]
    ours = median(bursts, OURS)
    few, many = min(one["runs"] for one in swept), max(one["runs"] for one in swept)
    rows = [
        ("CPU per streamed run ÷ raw sockets", "≤ 4", _ratio(ours, median(bursts, FLOOR))),
        ("AsyncOpenAI streaming on aiohttp ÷ ours", "≥ 8", _ratio(median(bursts, STREAMING), ours)),
        ("AsyncOpenAI polling on aiohttp ÷ ours", "≥ 4", _ratio(median(bursts, POLLING), ours)),
        (
            f"CPU per run, {many:,} at once ÷ {few:,}",
            "≤ 1.4",
            _ratio(median(swept, OURS, many), median(swept, OURS, few)),
        ),
    ]
    rows += [
        (f"memory per open run, {one['runs']:,} paced", "≤ 45 KB", f"{one['open_kb']:.0f} KB")
        for one in paced[-1:]
    ]
    rows += [
        (
            f"result seen after the run's end, p99, {one['runs']:,} paced",
            limit,
            f"{one['delay_p99_ms']:.1f} ms",
        )
        for one, limit in zip(paced[-2:], ("≤ 5 ms", "≤ 50 ms"), strict=True)
    ]
    beside = figures["uncollected"]
    rows.append(
        (
            f"the same with Python's garbage collector off, {beside['runs']:,} paced",
            "≤ 50 ms",
            f"{beside['delay_p99_ms']:.1f} ms",
        )
    )
    requests = max(one["requests_per_run"] for one in bursts if one["name"] == OURS)
    rows.append(("requests per streamed run", "2", f"{requests:.2f}"))
    rows += [("streamed at once, one process", "10,000", f"{one['runs']:,}") for one in figures["most"]]
    rows.append(
        (
            f"cancel to the wire, p99, beside {figures['cancel_beside']:,}",
            "≤ 50 ms",
            f"{figures['cancel_p99_ms']:.1f} ms",
        )
    )
    return rows


def _ratio(one: float | None, other: float | None) -> str:
    return "not measured" if one is None or other is None else f"{one / other:.1f}"


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown: what each contestant costs, and what was to be reached."""
    bursts = figures["bursts"]
    ours = median(bursts, OURS)
    names = list(dict.fromkeys(one["name"] for one in bursts))
    lines = [f"| {bursts[0]['runs']:,} runs at once | CPU per run | ÷ ours |", "|---|---|---|"]
    for name in names:
        cpu_ms = median(bursts, name)
        spent = "not through" if cpu_ms is None else f"{cpu_ms:.2f} ms"
        lines.append(f"| {name} | {spent} | {_ratio(cpu_ms, ours)} |")
    lines += ["", "| figure | goal | reached |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in goals(figures)]
    lines += [
        f"\n{name} was left out: {package} is not installed" for name, package in figures["left_out"].items()
    ]
    return "\n".join(lines)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw CPU per run and delays over concurrency, beside what each contestant costs."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    drawn, (flat, seen, costs) = plt.subplots(
        1, 3, figsize=(14, 4), layout="constrained", width_ratios=(3, 3, 4)
    )
    sizes = sorted({one["runs"] for one in figures["swept"]})
    for name, style in ((OURS, "o-"), (FLOOR, "s--")):
        flat.plot(sizes, [median(figures["swept"], name, size) for size in sizes], style, label=name)
    flat.set(xscale="log", yscale="log", ylim=(0.1, 20), xlabel="runs at once, in a burst")
    flat.set(ylabel="CPU per run, ms", title="CPU over concurrency")
    flat.legend()
    paced = figures["paced"]
    for share, style in (("p50", "o-"), ("p99", "^--")):
        delays = [one[f"delay_{share}_ms"] for one in paced]
        seen.plot([one["runs"] for one in paced], delays, style, label=share)
    seen.set(xscale="log", yscale="log", xlabel="runs open, paced", ylabel="ms")
    seen.set(title="Result seen after the run's end")
    seen.legend()
    for axes, ticks in ((flat, sizes), (seen, [one["runs"] for one in paced])):
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.yaxis.set_major_formatter(plain)
        axes.grid(visible=True, alpha=0.3)
    spent = {name: median(figures["bursts"], name) for name in CONTESTANTS}
    known = sorted((cost, name) for name, cost in spent.items() if cost is not None)
    colours = ["C0" if "ours" in name else "C1" if name == FLOOR else "0.6" for _, name in known]
    bars = costs.barh([name for _, name in known], [cost for cost, _ in known], color=colours)
    costs.bar_label(bars, fmt="%.1f", padding=3)
    costs.set(xlabel="CPU per run, ms", title=f"{figures['bursts'][0]['runs']:,} at once")
    costs.margins(x=0.12)
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Measure, print and write; or print what was measured last."""
    parser = argparse.ArgumentParser(description="What a run costs, ours and our peers'.")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of twenty")
    parser.add_argument("--table", action="store_true", help="print the figures that are there, and no more")
    asked = parser.parse_args()
    kept = RESULTS / "compare.json"
    if asked.table:
        print(table(json.loads(kept.read_text(encoding="utf-8"))))
        return
    figures = measured(quick=asked.quick)
    RESULTS.mkdir(exist_ok=True)
    kept.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    plot(figures, RESULTS / "compare.png")
    print(f"\n{table(figures)}\n\nWritten: {kept}, {RESULTS / 'compare.png'}")
    for failure in figures["failed"][:20]:
        print(failure)


if __name__ == "__main__":
    main()
