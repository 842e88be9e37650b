"""`orchestrator demo`: many runs at once against a server of the demo's own, or against any other.

Owns the demo's course: set the stage, start the runs, cancel one, show them until all are over, have them
judged. Leaves nothing behind, however it ends.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from orchestrator.client import AsyncThreadsClient
from orchestrator.demo.display import display_on
from orchestrator.demo.interruption import Interrupted, Interruptions
from orchestrator.demo.questions import asked
from orchestrator.demo.report import judged, print_report
from orchestrator.demo.stage import DemoFailed, other_stage, own_stage
from orchestrator.demo.tools import TOOLS
from orchestrator.orchestrator import Orchestrator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from orchestrator.client.options import AsyncClientOptions
    from orchestrator.demo.questions import Asked
    from orchestrator.demo.stage import Stage
    from orchestrator.runs.request import Watch
    from orchestrator.supervision.handle import RunHandle

__all__ = ["play"]

_CANCEL_PATIENCE_S = 10.0
_OWN_CONNECT_S = 60.0
_REFRESH_S = 0.1
_NAMED = 10


def play(
    console: Console,
    *,
    runs: int,
    watch: Watch,
    base_url: str | None = None,
    api_key: str | None = None,
    assistant_id: str | None = None,
) -> int:
    """Play the demo; blocks until every run is over. On the main thread, whose signals it handles meanwhile.

    Args:
        console: Where to print.
        runs: How many runs to start at once.
        watch: Whether to stream or to poll them.
        base_url: Another server than the demo's own. The threads of the runs stay there.
        api_key: The key for that server; by default `OPENAI_API_KEY`.
        assistant_id: An assistant there that knows the demo's tools; by default one is created, and deleted
            at the end.

    Returns:
        The exit code: 0 when all went as it should, 1 when a run failed or an answer is wrong, 130 after
        Ctrl-C, 143 after SIGTERM.

    Raises:
        DemoFailed: The demo cannot begin or go on.
        OrchestratorError: The server refuses the demo's assistant.
    """
    with Interruptions() as interruptions, ExitStack() as resources:
        try:
            stage = resources.enter_context(
                own_stage(interruptions)
                if base_url is None
                else other_stage(interruptions, base_url=base_url, api_key=api_key, assistant_id=assistant_id)
            )
        except Interrupted as interrupted:
            return interrupted.exit_code
        most = max(1000, runs)
        options: AsyncClientOptions = {"max_connections": most}
        if stage.own:
            # It shares the machine with everything else, and all runs connect to it at once.
            options["connect_timeout"] = _OWN_CONNECT_S
        client = AsyncThreadsClient(stage.base_url, api_key=stage.api_key, **options)
        orchestrator = Orchestrator(client=client, tools=TOOLS, watch=watch, max_concurrent_runs=most)
        resources.callback(orchestrator.close, on_active="cancel", timeout_s=_CANCEL_PATIENCE_S)
        return _perform(console, interruptions, stage, orchestrator, asked(runs, own=stage.own))


def _perform(
    console: Console,
    interruptions: Interruptions,
    stage: Stage,
    orchestrator: Orchestrator,
    asked: Sequence[Asked],
) -> int:
    started = time.monotonic()
    handles = [orchestrator.start(stage.assistant_id, messages=one.text) for one in asked]
    try:
        _follow(console, interruptions, stage, asked, handles)
        elapsed_s = time.monotonic() - started
        outcomes = [
            judged(one, handle.future, own=stage.own) for one, handle in zip(asked, handles, strict=True)
        ]
        with interruptions.heeded():
            return print_report(console, outcomes, elapsed_s, own=stage.own)
    except Interrupted as interrupted:
        _cancel(console, interruptions, handles)
        orchestrator.close(timeout_s=0)
        return interrupted.exit_code
    except DemoFailed:
        # There is nobody left to cancel anything.
        orchestrator.close(timeout_s=0)
        raise


def _follow(
    console: Console,
    interruptions: Interruptions,
    stage: Stage,
    asked: Sequence[Asked],
    handles: Sequence[RunHandle],
) -> None:
    """Show the runs until all are over, and cancel what is to be cancelled as soon as the server has it.

    Signals are heeded while it sleeps and nowhere else: one that raises while `concurrent.futures.wait`, say,
    takes the locks of all the futures would leave some of them taken for ever.
    """
    texts = [one.text for one in asked]
    to_cancel = {handle for one, handle in zip(asked, handles, strict=True) if one.to_cancel}
    with display_on(console) as display:
        while True:
            # In this order, so that the last thing shown is that all are over.
            running = [handle for handle in handles if not handle.done()]
            display.show(texts, [handle.snapshot() for handle in handles])
            if not running:
                return
            stage.check()
            for handle in [handle for handle in to_cancel if handle.run_id is not None]:
                handle.cancel()
                to_cancel.remove(handle)
            with interruptions.heeded():
                time.sleep(_REFRESH_S)


def _cancel(console: Console, interruptions: Interruptions, handles: Sequence[RunHandle]) -> None:
    """Cancel every run on the server and wait briefly for its word; a second interruption ends the wait."""
    running = [handle for handle in handles if not handle.done()]
    for handle in running:
        handle.cancel()
    console.print(
        f"interrupted: cancelling {len(running)} of {len(handles)} runs", style="yellow", highlight=False
    )
    patience_ends = time.monotonic() + _CANCEL_PATIENCE_S
    with suppress(Interrupted):
        while time.monotonic() < patience_ends and not all(handle.done() for handle in running):
            with interruptions.heeded():
                time.sleep(_REFRESH_S)
    words = Counter(_word(handle) for handle in handles)
    console.print(", ".join(f"{number} {word}" for word, number in words.most_common()), highlight=False)
    unseen = [handle for handle in handles if not handle.done() and handle.thread_id is not None]
    for handle in unseen[:_NAMED]:
        run = f"run {handle.run_id}" if handle.run_id is not None else "a run whose id is not known yet"
        console.print(f"not seen to end: {run} on thread {handle.thread_id}", highlight=False, soft_wrap=True)
    if len(unseen) > _NAMED:
        console.print(f"and {len(unseen) - _NAMED} more")


def _word(handle: RunHandle) -> str:
    if not handle.done():
        return "not confirmed"
    return "failed here" if handle.future.exception() is not None else handle.future.result().status
