"""How long a fresh process takes to import the package, and to have its first request on the wire.

`python tests/benchmarks/startup.py [PROCESSES]` (default 7) prints, for an orchestrator without tools and for
one with a documented tool, the medians over so many processes of the seconds from the start of the process
to each step, and what the import costs beside that of the packages it cannot do without.

File caches are warm: a process that is not counted goes first and leaves its bytecode in a directory of its
own, so that it does not matter whether this one may write any. The request is seen by a socket that answers
nothing.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60.0

STEPS = (
    "the interpreter runs",
    "`import orchestrator` is done",
    "`Orchestrator(...)` is made",
    "`start()` has returned",
    "the first request is on the wire",
)

NEEDED = "asyncio, msgspec, pykka"
"""What the package imports of others and cannot do without."""

PROGRAM = """
import sys, time
base_url, began, tools = sys.argv[1], float(sys.argv[2]), []
passed = [time.monotonic() - began]
import orchestrator
passed.append(time.monotonic() - began)
if sys.argv[3] == "tool":
    def double(number: int) -> int:
        '''Twice the number.

        Args:
            number: Any number.
        '''
        return 2 * number
    tools.append(double)
fleet = orchestrator.Orchestrator(base_url=base_url, api_key="k", tools=tools)
passed.append(time.monotonic() - began)
fleet.start("asst_1", thread_id="thread_1", messages="go")
passed.append(time.monotonic() - began)
sys.stdin.read()
import json, os
print(json.dumps([passed, sorted(name for name in sys.modules if "." not in name)]), flush=True)
os._exit(0)
"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One process.

    Attributes:
        passed_s: Seconds from its start to each of `STEPS`.
        modules: The top-level modules it had imported when its first request was out.
    """

    passed_s: list[float]
    modules: frozenset[str]


@contextmanager
def warm() -> Iterator[dict[str, str]]:
    """Yield an environment whose processes find the bytecode of those before them."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield environment


def first_request(environment: dict[str, str], *, tool: bool) -> Start:
    """Start a process that makes an orchestrator and starts a run; wait for its first byte.

    The clock is `time.monotonic()`, which on Linux all processes share.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        began = time.monotonic()
        command = [sys.executable, "-c", PROGRAM, base_url, str(began), "tool" if tool else ""]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                arrived = connection.recv(1)
                arrived_s = time.monotonic() - began
                passed, modules = json.loads(process.communicate(timeout=PATIENCE_S)[0])
    assert arrived
    return Start(passed_s=[*passed, arrived_s], modules=frozenset(modules))


def import_s(environment: dict[str, str], modules: str) -> float:
    """Seconds that a process takes which imports modules and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=environment, check=True)
    return time.perf_counter() - began


def measure(processes: int, *, tool: bool) -> list[Start]:
    """Start so many processes, one after the other, after one that is not counted."""
    with warm() as environment:
        starts = [first_request(environment, tool=tool) for _ in range(processes + 1)]
    return starts[1:]


def import_ratio(processes: int) -> float:
    """Seconds to import the package for each second that importing `NEEDED` takes, by turns; the median.

    What a process takes that imports nothing else is taken off both.
    """
    ratios = []
    with warm() as environment:
        for turn in range(processes + 1):
            empty, needed, ours = (
                import_s(environment, modules) for modules in ("sys", NEEDED, "orchestrator")
            )
            if turn:
                ratios.append((ours - empty) / (needed - empty))
    return statistics.median(ratios)


def medians(starts: list[Start]) -> list[float]:
    """The median of each step."""
    return [statistics.median(step) for step in zip(*(start.passed_s for start in starts), strict=True)]


def table(without: list[Start], with_tool: list[Start]) -> str:
    """Put the medians, and the fastest, into a table."""
    columns = (without, with_tool)
    lines = [
        f"| seconds until, median (fastest) of {len(without)} processes | without tools | with a tool |",
        "|---|---|---|",
    ]
    for step, name in enumerate(STEPS):
        cells = (
            f"{medians(starts)[step]:.3f} ({min(start.passed_s[step] for start in starts):.3f})"
            for starts in columns
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(table(measure(processes, tool=False), measure(processes, tool=True)))
    ratio = import_ratio(processes)
    print(f"\n`import orchestrator` takes {ratio:.1f} times as long as `import {NEEDED}`")


if __name__ == "__main__":
    main()
