"""`orchestrator resume`: somebody's orchestrator, taking up what processes that died have left.

Owns how the orchestrator is found, what is said of each run, and how the process ends. Which runs are free
is the journal's to say, and what becomes of them the orchestrator's.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from orchestrator.demo.interruption import Interrupted, Interruptions
from orchestrator.errors import OrchestratorClosed, OrchestratorError
from orchestrator.orchestrator import Orchestrator

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.supervision.handle import RunHandle

__all__ = ["BadApplicationError", "found", "take_up"]


_LOOK_S: Final = 0.2


class BadApplicationError(Exception):
    """What was named is no orchestrator, and makes none; the text is one line for stderr."""


def found(path: str) -> Orchestrator:
    """Import the orchestrator that `module:name` names, or call what makes it.

    The module is looked for in the current directory first, like those of other servers of applications.
    What it raises while it is imported is raised as it is.

    Raises:
        BadApplicationError: There is no such module or name, or it is no orchestrator.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise BadApplicationError(f"--app must be module:name, such as shop.runs:orchestrator, not {path!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise BadApplicationError(f"there is no module {module_name!r}, here or installed") from None
    try:
        target = getattr(module, name)
    except AttributeError:
        raise BadApplicationError(f"module {module_name!r} has no {name!r}") from None
    made = target if isinstance(target, Orchestrator) or not callable(target) else target()
    if not isinstance(made, Orchestrator):
        raise BadApplicationError(f"{path} is no Orchestrator and makes none, but {type(made).__name__}")
    return made


def take_up(orchestrator: Orchestrator, *, forever: bool, drain_s: float, tell: Callable[[str], None]) -> int:
    """Take up the runs that are free, wait for them, and close the orchestrator; blocks, on the main thread.

    Args:
        orchestrator: Closed at the end; what has not ended by then is left to whoever resumes it.
        forever: Go on taking up runs whose processes die, until SIGTERM, SIGINT or SIGHUP.
        drain_s: Seconds that the open runs have to end after a signal.
        tell: Told a line of what happens.

    Returns:
        The exit code: 0 when every run has reached a verdict, or the process was told to end that was to
        work for ever; 1 when a run could not be conducted to its end; what shells report for the signal.

    Raises:
        JournalError: The journal does not survive, or cannot be read.
    """
    ended: SimpleQueue[RunHandle] = SimpleQueue()
    code = 0
    with Interruptions() as interruptions:
        try:
            with interruptions.heeded():
                taken = orchestrator.resume(on_taken_up=lambda handle: _put_at_end(handle, ended))
                tell(f"{len(taken)} {'run is' if len(taken) == 1 else 'runs are'} taken up")
                waited_for = {handle.key for handle in taken}
                while waited_for or forever:
                    handle = _next(ended)
                    waited_for.discard(handle.key)
                    line, well = _outcome(handle)
                    tell(line)
                    code = code if well else 1
        except Interrupted as interrupted:
            code = 0 if forever else interrupted.exit_code
            orchestrator.drain(drain_s)
        finally:
            orchestrator.close(on_active="detach")
    while not ended.empty():
        tell(_outcome(ended.get())[0])
    return code


def _next(ended: SimpleQueue[RunHandle]) -> RunHandle:
    """Wait for a run's end, in steps: a signal just before a wait without an end would not be heeded."""
    while True:
        with contextlib.suppress(Empty):
            return ended.get(timeout=_LOOK_S)


def _put_at_end(handle: RunHandle, ended: SimpleQueue[RunHandle]) -> None:
    handle.future.add_done_callback(lambda _: ended.put(handle))


def _outcome(handle: RunHandle) -> tuple[str, bool]:
    """What became of a run that is over here, and whether that is a verdict."""
    where = f"run {handle.run_id} on thread {handle.thread_id}"
    try:
        result = handle.result()
    except OrchestratorClosed:
        return f"{handle.key}: left to whoever resumes it ({where})", True
    except OrchestratorError as error:
        return f"{handle.key}: {type(error).__name__}: {' '.join(str(error).split())}", False
    return f"{handle.key}: {result.status} ({where})", True
