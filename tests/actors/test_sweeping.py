"""Orphans: runs that a process left on a thread when it let go of them or died, found by the next one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import pytest
from between import between
from crew import collected, crewed
from stage import PATIENCE_S, Gate, Stage, active_runs, wait_until

from orchestrator.errors import APIError, AuthenticationError, OrchestratorClosed
from orchestrator.runs.effects import CreateRun
from orchestrator.supervision.messages import FindOrphans

if TYPE_CHECKING:
    from orchestrator.runs.backend import Backend, Report
    from orchestrator.runs.effects import RequestEffect

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def detached(stage: Stage, text: str) -> tuple[str, str]:
    """Leave a run to the server as soon as it works, or asks for its tool."""
    gate = Gate()
    orchestrator = stage.orchestrator(tools=[gate.fetch])
    run = orchestrator.start(stage.assistant, thread_id=stage.thread(), messages=text)
    if text == "fetch":
        gate.wait_until_reached()
    else:
        wait_until(lambda: run.status == "in_progress")
    gate.open.set()
    assert orchestrator.close(on_active="detach") == [run]
    return str(run.thread_id), str(run.run_id)


KILLED = """
import sys
from orchestrator import Orchestrator

def fetch() -> str:
    print("reached", flush=True)
    sys.stdin.read()

base_url, api_key, assistant, thread_id = sys.argv[1:]
orchestrator = Orchestrator(base_url=base_url, api_key=api_key, tools=[fetch])
orchestrator.start(assistant, thread_id=thread_id, messages="fetch").result()
"""


def killed(stage: Stage) -> tuple[str, str]:
    """Leave a run with an open tool call by the death of its process."""
    thread_id = stage.thread()
    arguments = (stage.server.base_url, stage.server.api_key, stage.assistant, thread_id)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.kill()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    return thread_id, stage.runs(thread_id)[0].id


@pytest.mark.parametrize("by", ["detach", "kill"])
def test_an_orphan_with_open_tool_calls_is_adopted_and_its_tools_are_called(stage: Stage, by: str) -> None:
    thread_id, run_id = detached(stage, "fetch") if by == "detach" else killed(stage)
    gate = Gate(opened=True)
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        (run,) = orchestrator.sweep(thread_id, orphans="adopt")
        assert run.result(PATIENCE_S).text == "got it"
    assert (run.thread_id, run.run_id, gate.calls) == (thread_id, run_id, 1)


def test_an_orphan_without_tool_calls_is_adopted_and_followed(stage: Stage) -> None:
    thread_id, run_id = detached(stage, "dawdle")
    with stage.orchestrator() as orchestrator:
        (run,) = orchestrator.sweep(thread_id, orphans="adopt")
        wait_until(lambda: run.status == "in_progress")
        run.cancel()
        assert (run.result(PATIENCE_S).status, run.run_id) == ("cancelled", run_id)


@pytest.mark.parametrize("text", ["dawdle", "fetch"])
def test_an_orphan_is_cancelled_and_none_of_its_tools_is_called(
    stage: Stage, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread_id, run_id = detached(stage, text)
    gate = Gate(opened=True)
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        (run,) = orchestrator.sweep(thread_id, orphans="cancel")
        result = run.result(PATIENCE_S)
        assert (result.status, result.run_id) == ("cancelled", run_id)
        assert orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello").result(PATIENCE_S)
    assert gate.calls == 0
    assert active_runs(stage, thread_id) == []
    assert "run.illegal_input" not in caplog.text, "it was cancelled and then told to begin"


def test_runs_that_are_over_or_conducted_here_are_no_orphans(stage: Stage) -> None:
    gate, thread_id = Gate(), stage.thread()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        assert orchestrator.sweep(thread_id, orphans="cancel") == []
        orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello").result(PATIENCE_S)
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        gate.wait_until_reached()
        assert orchestrator.sweep(thread_id, orphans="cancel") == []
        gate.open.set()
        assert run.result(PATIENCE_S).status == "completed"
        assert orchestrator.sweep(thread_id, orphans="cancel") == []


def test_a_second_sweep_finds_nothing_more(stage: Stage) -> None:
    thread_id, _ = detached(stage, "dawdle")
    with stage.orchestrator() as orchestrator:
        (run,) = orchestrator.sweep(thread_id, orphans="adopt")
        assert orchestrator.sweep(thread_id, orphans="cancel") == []
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"


class Withholding:
    """A backend whose creates take effect long before anybody hears of it."""

    def __init__(self, backend: Backend, heard: threading.Event) -> None:
        self._backend = backend
        self._heard = heard

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        withheld, withhold = collected()
        withholds = isinstance(effect, CreateRun)
        await self._backend.perform(effect, withhold if withholds else report)
        if withholds:
            await asyncio.to_thread(self._heard.wait, PATIENCE_S)
            report(*withheld)


def test_a_run_whose_create_is_still_unanswered_here_is_no_orphan(stage: Stage) -> None:
    heard = threading.Event()
    with crewed(stage) as crew:
        run = crew.start("dawdle", lambda backend: Withholding(backend, heard), watch="poll")
        wait_until(lambda: run.thread_id is not None and bool(stage.runs(run.thread_id)))
        made = tuple(stage.runs(run.thread_id))
        assert run.run_id is None
        assert crew.supervisor.ask(FindOrphans(runs=made), timeout=PATIENCE_S) == ()
        heard.set()
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"


def test_a_sweep_uses_the_credentials_it_is_given_and_says_when_they_are_wrong(stage: Stage) -> None:
    thread_id, run_id = detached(stage, "fetch")
    with stage.orchestrator(api_key="wrong", tools=[Gate(opened=True).fetch]) as orchestrator:
        with pytest.raises(AuthenticationError):
            orchestrator.sweep(thread_id, orphans="adopt")
        (run,) = orchestrator.sweep(thread_id, orphans="adopt", api_key=stage.server.api_key)
        assert (run.result(PATIENCE_S).text, run.run_id) == ("got it", run_id)


def test_a_sweep_blocks_no_running_loop_and_ends_with_its_orchestrator(stage: Stage) -> None:
    orchestrator, thread_id = stage.orchestrator(), stage.thread()

    async def main() -> list[Any]:
        with pytest.raises(RuntimeError, match=r"use `await asyncio\.to_thread"):
            orchestrator.sweep("thread_1", orphans="adopt")
        return await asyncio.to_thread(orchestrator.sweep, thread_id, orphans="adopt")

    assert asyncio.run(main()) == []
    orchestrator.close()
    with pytest.raises(OrchestratorClosed):
        orchestrator.sweep("thread_1", orphans="adopt")


@pytest.mark.parametrize("orphans", ["wait", ""])
def test_what_is_to_become_of_orphans_has_to_be_said(stage: Stage, orphans: Any) -> None:
    with (
        stage.orchestrator() as orchestrator,
        pytest.raises(ValueError, match="orphans must be one of 'adopt', 'cancel'"),
    ):
        orchestrator.sweep("thread_1", orphans=orphans)


@pytest.mark.parametrize("orphans", ["adopt", "cancel"])
def test_a_close_does_not_wait_for_a_sweep_that_hangs(
    stage: Stage, orphans: Literal["adopt", "cancel"]
) -> None:
    asked, over = threading.Event(), threading.Event()
    ended: list[BaseException] = []

    def meets(method: str, path: str) -> bytes | None:
        asked.set()
        assert over.wait(PATIENCE_S)
        return b""

    with between(stage.server.base_url) as middleman:
        middleman.meets = meets
        orchestrator = stage.orchestrator(base_url=middleman.base_url)

        def sweep() -> None:
            try:
                orchestrator.sweep("thread_1", orphans=orphans)
            except (APIError, OrchestratorClosed) as error:
                ended.append(error)

        sweeping = threading.Thread(target=sweep)
        sweeping.start()
        assert asked.wait(PATIENCE_S)
        orchestrator.close()
        sweeping.join(PATIENCE_S)
        assert not sweeping.is_alive()
        over.set()
    assert len(ended) == 1
