"""A Celery application as a project has one: what the workers of the tests load, and who sends them tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery

from orchestrator import Orchestrator, Timing, tool
from orchestrator.client import RetryPolicy
from orchestrator.journal import SQLJournal
from orchestrator.workers.celery import install

SETTINGS = "RUNS_SETTINGS"
"""The environment variable that has the settings, as JSON."""


def make(settings: dict[str, Any]) -> Celery:
    """Make the application.

    Args:
        settings: `broker`, `backend`, `server`, `key`, `journal`, `calls`, `lease_s`, `drain_s`, `conf`.
    """
    app = Celery("runs", broker=settings["broker"], backend=settings["backend"], set_as_current=False)
    app.conf.update(
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        result_extended=False,
        **settings["conf"],
    )

    @tool(idempotent=True)
    def fetch(word: str = "") -> str:
        """Say what was fetched, and write down that it was."""
        with Path(settings["calls"]).open("a", encoding="utf-8") as calls:
            calls.write(f"{os.getpid()} {word}\n")
        return word or "it"

    def factory() -> Orchestrator:
        return Orchestrator(
            base_url=settings["server"],
            api_key=settings["key"],
            tools=[fetch],
            check_tools="off",
            journal=SQLJournal(settings["journal"], lease_s=settings["lease_s"], poll_s=0.2),
            timing=Timing(retry=RetryPolicy(base_s=0.01, cap_s=0.05, settle_s=0.05)),
        )

    install(app, factory, drain_s=settings["drain_s"])
    return app


if SETTINGS in os.environ:
    app = make(json.loads(os.environ[SETTINGS]))
