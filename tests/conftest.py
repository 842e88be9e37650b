"""What all tests share: the stage, and that the long profile runs only when it is asked for."""

from __future__ import annotations

import gc
import os

import pytest

pytest_plugins = ["staging"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is marked `long`, unless ORCHESTRATOR_LONG is set."""
    if os.environ.get("ORCHESTRATOR_LONG"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_collection_finish() -> None:
    """Take the thousands of collected tests out of the garbage collector's rounds.

    A full round over them pauses every thread for long enough to break what a test says about time.
    """
    gc.collect()
    gc.freeze()
