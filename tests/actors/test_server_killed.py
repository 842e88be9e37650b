"""The server is killed under many runs of an orchestrator, and started again on what it had stored.

The server is a process, the database is SQLite or PostgreSQL, the orchestrator is as users have it but for
its pauses. While the server is down connections are refused, which the client's policy bears with.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from stage import PATIENCE_S, assert_nothing_left, definition
from storm import KEY, Citadel

from orchestrator import Orchestrator, RunHandle, Timing, tool
from orchestrator.client import RetryPolicy, ThreadsClient
from orchestrator.server.queries import listed
from orchestrator.server.security import namespace_of
from orchestrator.server.store import Store
from orchestrator.supervision import BreakerPolicy, ServerLimits

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.database import Database

PATIENT = Timing(
    retry=RetryPolicy(attempts=200, base_s=0.05, cap_s=0.2, settle_s=0.1),
    poll_min_s=0.05,
    poll_max_s=0.3,
)
"""Enough attempts to outlast the restart of a server, on a slow machine too."""

EAGER = ServerLimits(breaker=BreakerPolicy(open_s=0.1, cap_s=0.5))
"""A server that is down is asked again soon."""

SCRIPT = r"""
rules:
  - match: '^job (?P<tag>\w+)'
    steps:
      - think_s: 0.05
      - call:
          - {tool: fetch, arguments: {tag: '{tag}', part: left}}
          - {tool: fetch, as: other, arguments: {tag: '{tag}', part: right}}
      - think_s: 0.05
      - call: {tool: fetch, as: last, arguments: {tag: '{tag}', part: last}}
      - say: 'done with {tag}: {last}'
"""
PARTS = ("left", "right", "last")
ROUNDS = 2


class Workshop:
    """The tool of the runs: it takes its time, and counts.

    Every second run's first calls last until the server was killed: however slow the machine, only the others
    can be cut off in the middle of a word.
    """

    def __init__(self, enough: int) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.busy = threading.Event()
        self.killed = threading.Event()
        self._enough = enough

    def tools(self) -> list[Any]:
        @tool
        async def fetch(tag: str, part: str) -> str:
            """Fetch a part of a job.

            Args:
                tag: The job.
                part: Which part of it.
            """
            self.calls[tag, part] += 1
            if self.calls.total() >= self._enough:
                self.busy.set()
            await asyncio.sleep(0.1)
            if int(tag[1:]) % 2:
                await asyncio.to_thread(self.killed.wait, PATIENCE_S)
            return f"{part} of {tag}"

        return [fetch]


def stored(database: Database) -> tuple[list[str], list[JSON], list[JSON]]:
    """What a server left: the namespaces that hold active runs, and the runs and steps of ours."""

    async def story() -> tuple[list[str], list[JSON], list[JSON]]:
        store = Store(database)
        store.open()
        try:
            ours = namespace_of(KEY)
            runs, steps = await store.perform(
                lambda connection: [listed(connection, ours, kind) for kind in ("runs", "steps")]
            )
            return await store.namespaces_at_work(), runs, steps
        finally:
            store.close()

    return asyncio.run(story())


def accepted(citadel: Citadel) -> Counter[str]:
    """How many submissions of each run were answered with 200."""
    line = re.compile(r"path=\S*/runs/(run_\w+)/submit_tool_outputs\b.* status=200\b")
    return Counter(line.findall(citadel.log.read_text()))


def start(orchestrator: Orchestrator, assistant: str, runs: int) -> dict[str, RunHandle]:
    return {
        f"t{number}": orchestrator.start(
            assistant, messages=f"job t{number}", watch="stream" if number % 4 else "poll"
        )
        for number in range(runs)
    }


def test_every_run_reaches_its_verdict_and_no_accepted_output_is_asked_for_again(
    tmp_path: Path, database: Database
) -> None:
    runs = 200
    workshop = Workshop(enough=runs + runs // 2)
    url = database if isinstance(database, str) else None
    citadel = Citadel(tmp_path, SCRIPT, url=url, log_level="info")
    with citadel.standing():
        with ThreadsClient(citadel.base_url, api_key=KEY) as client:
            assistant = client.create_assistant(model="rules", tools=[definition("fetch")]).id
        with Orchestrator(
            base_url=citadel.base_url,
            api_key=KEY,
            tools=workshop.tools(),
            timing=PATIENT,
            limits=EAGER,
        ) as orchestrator:
            handles = start(orchestrator, assistant, runs)
            assert workshop.busy.wait(PATIENCE_S)
            called_before = set(workshop.calls)
            over_before = {tag for tag, handle in handles.items() if handle.done()}
            citadel.fall(signal.SIGKILL)
            workshop.killed.set()
            citadel.rise()
            results = {tag: handle.result(timeout=3 * PATIENCE_S) for tag, handle in handles.items()}
        assert_nothing_left(citadel.base_url)
        citadel.fall(signal.SIGTERM)

    begun = {tag for tag, _ in called_before}
    assert len(begun - over_before) >= runs // 4, "it was to be killed in the middle"
    at_work, stored_runs, steps = stored(url or citadel.db)
    assert at_work == []
    assert sorted(run["id"] for run in stored_runs) == sorted(str(one.run_id) for one in results.values())
    statuses = Counter(result.status for result in results.values())
    assert statuses["completed"] >= runs * 0.8, statuses
    for tag, result in results.items():
        if result.status == "completed":
            assert result.text == f"done with {tag}: last of {tag}"
            assert [workshop.calls[tag, part] for part in PARTS] == [1, 1, 1]
        else:  # cut off while the model said something, which is not much of the time
            assert result.status == "failed"
            assert result.error is not None
            assert "restarted" in result.error.message
    assert max(workshop.calls.values()) == 1, "a tool was called twice for one call of the model"
    calls = [call for step in steps for call in step["step_details"].get("tool_calls", ())]
    outputs = {call["id"]: call["function"]["output"] for call in calls}
    assert len(outputs) == len(calls)
    assert max(accepted(citadel).values()) <= ROUNDS, "outputs were accepted twice"
    assert sum(output is not None for output in outputs.values()) >= len(PARTS) * statuses["completed"]
    log = citadel.log.read_text()
    assert "Traceback" not in log
    assert not re.search(r"status=5\d\d", log)
