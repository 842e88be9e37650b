"""A process that conducts runs which another one conducts, too, on the same journal, with very short leases.

Owns what such a process does and what it reports. Who pauses it, and what is right, is in `test_leases.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crashing
from stage import QUICK

from orchestrator import Orchestrator, RunHandle, RunResult, tool
from orchestrator.journal.sql import SQLJournal
from orchestrator.tools import ToolContext

LEASE_S = 0.05
RESULT_S = 60.0
AT_ONCE = 12
"""How many runs are open at the same time: with many more, a commit alone takes longer than such a lease."""

SCRIPT = r"""
piece_chars: 16
rules:
  - match: '^order (?P<tag>\w+)'
    steps:
      - think_s: 0.02
      - call:
          - {tool: look, arguments: {part: seats}}
          - {tool: book, as: booked, arguments: {part: seat}}
      - think_s: 0.02
      - call: {tool: book, as: paid, arguments: {part: meal}}
      - say: 'order {tag}: {look}, {booked}, {paid}'
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to do.

    Attributes:
        name: Its own name.
        journal: The journal's URL.
        base_url: The server.
        api_key: Its key.
        assistant: The runs' assistant.
        keys: The runs' keys; every process starts all of them.
        directory: Where it leaves its report.
    """

    name: str
    journal: str
    base_url: str
    api_key: str
    assistant: str
    keys: list[str]
    directory: str


def tools(effects: crashing.Effects) -> list[Any]:
    """The two tools: one may be called again, the other had better not."""

    @tool(idempotent=True)
    def look(part: str, context: ToolContext) -> str:
        """Look."""
        effects.add(context.call_id, "look", part)
        time.sleep(0.01)
        return f"look-{part}"

    @tool
    async def book(part: str, context: ToolContext) -> str:
        """Book."""
        effects.add(context.call_id, "book", part)
        await asyncio.sleep(0.01)
        return f"book-{part}"

    return [look, book]


def warm_up() -> None:
    """Do once what every process would."""
    crashing.warm_up()


def perform(given: dict[str, Any]) -> None:
    """See all the runs to their ends, whoever conducts them, and leave a report."""
    job = Job(**given)
    directory = Path(job.directory)
    with Orchestrator(
        base_url=job.base_url,
        api_key=job.api_key,
        journal=SQLJournal(job.journal, lease_s=LEASE_S, poll_s=LEASE_S / 5, patience_s=RESULT_S),
        tools=tools(crashing.Effects(directory / "effects")),
        timing=QUICK,
        check_tools="off",
    ) as orchestrator:
        orchestrator.resume()
        results: dict[str, RunResult] = {}
        for some in (job.keys[at : at + AT_ONCE] for at in range(0, len(job.keys), AT_ONCE)):
            handles = {key: _started(orchestrator, job, key) for key in some}
            results |= {key: handle.result(RESULT_S) for key, handle in handles.items()}
    report = {
        key: {
            "status": result.status,
            "text": result.text,
            "run_id": result.run_id,
            "thread_id": result.thread_id,
            "calls": [(call.call_id, call.name, call.output) for call in result.tool_calls],
        }
        for key, result in results.items()
    }
    (directory / f"{job.name}.json").write_text(json.dumps(report))


def _started(orchestrator: Orchestrator, job: Job, key: str) -> RunHandle:
    return orchestrator.start(job.assistant, messages=f"order {key}", metadata={"order": key}, key=key)
