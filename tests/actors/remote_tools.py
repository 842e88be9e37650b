"""Tools that run in other processes, which find them here by their names."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

from orchestrator import tool

__all__ = ["Square", "die", "divide", "process_of", "processes", "sleep"]


@cache
def processes() -> ProcessPoolExecutor:
    """A pool that is made when it is first needed; `spawn`, because the tests' process has threads."""
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@tool(executor=processes)
def process_of(number: int) -> dict[str, int]:
    """Say where this runs."""
    return {"pid": os.getpid(), "number": number}


@tool(executor=processes)
def divide(number: int) -> float:
    return 1 / number


@tool(executor=processes, timeout_s=0.2)
def sleep(seconds: float) -> str:
    time.sleep(seconds)  # what a process cannot be kept from
    return "slept"


@tool(executor=processes)
def die() -> None:
    os._exit(3)


class Square:
    """An object with a tool; it goes along to the other process."""

    def __init__(self, power: int) -> None:
        self.power = power

    @tool(executor=processes)
    def raised(self, number: int) -> dict[str, int]:
        return {"pid": os.getpid(), "result": number**self.power}
