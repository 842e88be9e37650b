"""One orchestrator for each process: made once, after the fork, and left in good time."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stage import PATIENCE_S

from orchestrator import Orchestrator
from orchestrator.errors import OrchestratorClosed
from orchestrator.journal import SQLJournal
from orchestrator.workers.process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.postgresql import PostgreSQL
    from stage import Stage

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def in_a_fork(says: Callable[[], str]) -> str:
    """What a forked process has to say, or the error that it dies of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = says()
        except BaseException as error:  # noqa: BLE001 - the parent is told
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def per_process(stage: Stage, journal: Path | str) -> PerProcess:
    url = f"sqlite:///{journal}" if isinstance(journal, Path) else journal
    return PerProcess(lambda: stage.orchestrator(journal=url, check_tools="off"))


def test_threads_of_a_process_share_one(stage: Stage, tmp_path: Path) -> None:
    processes = per_process(stage, tmp_path / "runs.db")
    together = threading.Barrier(8)

    def asked() -> Orchestrator:
        together.wait(PATIENCE_S)
        return processes.orchestrator

    with ThreadPoolExecutor(8) as threads:
        made = {id(future.result()) for future in [threads.submit(asked) for _ in range(8)]}

    assert made == {id(processes.orchestrator)}
    processes.close(0.0)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_has_its_own_and_leaves_its_parent_s_alone(stage: Stage, postgresql: PostgreSQL) -> None:
    # SQLite itself does not survive a fork of a process that has it open.
    processes = per_process(stage, postgresql.schema())
    parents = processes.orchestrator
    running = parents.start(stage.assistant, key="parent", messages="dawdle")
    running.recorded.result(PATIENCE_S)

    def child() -> str:
        mine = processes.orchestrator
        result = mine.start(stage.assistant, key="child", messages="hello").result(PATIENCE_S)
        processes.close(1.0)
        return f"{mine is parents} {result.status}"

    assert in_a_fork(child) == "False completed"
    assert not running.done()
    running.cancel()
    assert running.result(PATIENCE_S).status == "cancelled"
    processes.close(PATIENCE_S)


def test_closing_lets_runs_end_leaves_the_rest_and_makes_none_again(stage: Stage, tmp_path: Path) -> None:
    processes = per_process(stage, tmp_path / "runs.db")
    long = processes.orchestrator.start(stage.assistant, key="long", messages="dawdle")
    short = processes.orchestrator.start(stage.assistant, key="short", messages="hello")
    short.recorded.result(PATIENCE_S)
    long.recorded.result(PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        for closing in [threads.submit(processes.close, 2.0) for _ in range(2)]:
            closing.result(PATIENCE_S)
    processes.close(2.0)

    assert short.result(0).status == "completed"
    with pytest.raises(OrchestratorClosed, match="left to the server"):
        long.result(0)
    with pytest.raises(OrchestratorClosed):
        processes.orchestrator.attach("long")
    journal = SQLJournal(f"sqlite:///{tmp_path / 'runs.db'}")
    assert (journal.show("long").run.state, journal.show("long").run.held) == ("open", False)
    with stage.orchestrator(journal=journal) as another:
        another.attach("long").cancel()


def test_a_process_that_ends_before_it_has_begun_makes_none(stage: Stage, tmp_path: Path) -> None:
    processes = per_process(stage, tmp_path / "runs.db")

    processes.close(0.0)

    with pytest.raises(OrchestratorClosed, match="this process is ending"):
        _ = processes.orchestrator


def test_a_factory_that_fails_is_asked_again(stage: Stage) -> None:
    made: list[Callable[[], Any]] = [lambda: int("one"), lambda: 1, stage.orchestrator]

    def factory() -> Any:
        return made.pop(0)()

    processes = PerProcess(factory)

    with pytest.raises(ValueError, match="invalid literal"):
        _ = processes.orchestrator
    with pytest.raises(TypeError, match="the factory must make an Orchestrator, it made int"):
        _ = processes.orchestrator
    assert isinstance(processes.orchestrator, Orchestrator)

    with pytest.raises(ValueError, match="timeout_s"):
        processes.close(-1)
    processes.close(0.0)
