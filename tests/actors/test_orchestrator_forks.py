"""Forks and exits: a child gets clear errors and can begin anew; a process that ends with open runs ends.

Each story is told by a process of its own, against a server in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from stage import PATIENCE_S, Stage

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")

PREAMBLE = """
import asyncio, functools, os, sys, threading, time, traceback
from orchestrator import Orchestrator, tool
from orchestrator.errors import OrchestratorClosed

print = functools.partial(print, flush=True)
base_url, api_key, assistant = sys.argv[1:]

def fetch() -> str:
    return "it"

def made(**options):
    # The assistant knows more tools than there are: that is not what is told here.
    return Orchestrator(base_url=base_url, api_key=api_key, tools=[fetch], check_tools="off", **options)

def working(run):
    for event in run.events():
        if event.event == "thread.run.in_progress":
            return run

def in_child(story):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        story()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def refused(call):
    try:
        call()
    except OrchestratorClosed as error:
        print("refused:", error)
    else:
        print("not refused")
"""

FORK = """
with made() as orchestrator:
    over = orchestrator.start(assistant, messages="hello")
    over.result(20)
    run = working(orchestrator.start(assistant, messages="dawdle", key="open"))

    def story():
        for call in (
            lambda: orchestrator.start(assistant, messages="hello"),
            lambda: orchestrator.adopt("thread_1", "run_1"),
            orchestrator.runs, orchestrator.cancel_all, lambda: orchestrator.drain(1),
            lambda: orchestrator.sweep("thread_1", orphans="adopt"),
            run.result, run.cancel, run.detach, run.done, lambda: run.watch(None),
            run.events, lambda: run.future, run.__aiter__,
            lambda: asyncio.run(awaited()),
        ):
            refused(call)
        assert orchestrator.close() == []
        assert run.run_id in repr(run)
        with made() as anew:
            print(anew.start(assistant, messages="fetch").result(20).text)
        print([thread.name for thread in threading.enumerate()])

    async def awaited():
        await run

    print("child", in_child(story))
    run.cancel()
    print(run.result(20).status, orchestrator.start(assistant, messages="fetch").result(20).text)
"""

FORK_UNDER_LOAD = """
# Other threads of the parent hold locks at every moment; a child must never wait for one of them.
with made() as orchestrator:
    # First, or the standard library's own hooks are registered in the middle of a fork.
    orchestrator.start(assistant, messages="fetch").result(20)
    stop = threading.Event()

    def load():
        while not stop.is_set():
            run = orchestrator.start(assistant, messages="hello")
            run.cancel()
            if len(orchestrator.runs()) > 50:
                run.result(20)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()

    def story():
        for call in (orchestrator.runs, lambda: orchestrator.start(assistant, messages="hello")):
            try:
                call()
            except OrchestratorClosed:
                pass
        orchestrator.close()

    codes = {in_child(story) for _ in range(20)}
    stop.set()
    for thread in threads:
        thread.join()
    orchestrator.cancel_all()
print(codes)
"""

EXIT_WITH_OPEN_RUNS = """
orchestrator = made()
run = working(orchestrator.start(assistant, messages="dawdle"))
print(run.run_id)
"""

EXIT_WITH_RUNS_OF_EVERY_KIND = """
# One works, one waits for its thread, one for its turn, one for a server that is not there.
orchestrator = made(max_concurrent_runs=2)
run = working(orchestrator.start(assistant, messages="dawdle"))
orchestrator.start(assistant, thread_id=run.thread_id, messages="hello")
failing = orchestrator.start(assistant, messages="hello", base_url="http://127.0.0.1:9/v1", api_key="none")
while failing.snapshot().waits_for != "backoff":
    time.sleep(0.01)
orchestrator.start(assistant, messages="hello", stream_to=print)
print(sorted(snapshot.waits_for for snapshot in orchestrator.runs()))
"""

EXIT_WITHIN_ASYNCIO = """
async def main():
    orchestrator = await made().__aenter__()
    run = orchestrator.start(assistant, messages="dawdle")
    async for event in run:
        if event.event == "thread.run.in_progress":
            return run.run_id

print(asyncio.run(main()))
"""

EXIT_THAT_CLOSES = """
import atexit
orchestrator = made()
atexit.register(orchestrator.close)
run = working(orchestrator.start(assistant, messages="dawdle"))
print(run.run_id)
"""

HEAVY_IMPORTS = """
made()
print({"httpx", "httpcore"} <= sys.modules.keys(), threading.active_count())
"""

EXIT_WHILE_A_TOOL_HANGS = """
reached = threading.Event()

@tool(name="fetch")
def hang() -> str:
    reached.set()
    time.sleep(3600)
    return "never"

orchestrator = Orchestrator(base_url=base_url, api_key=api_key, tools=[hang], check_tools="off")
orchestrator.start(assistant, messages="fetch")
assert reached.wait(20)
print("reached")
"""

INTERRUPT = """
import signal
with made() as orchestrator:
    run = working(orchestrator.start(assistant, messages="dawdle"))
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        orchestrator.close(on_active="wait")
    except KeyboardInterrupt:
        print("interrupted", run.result().status)
print([thread.name for thread in threading.enumerate()])
"""


def told(stage: Stage, script: str, *, measured: bool = True) -> list[str]:
    server = stage.server
    # A story that forks is not measured: a fork may copy a lock of coverage's own as held.
    environ = {name: value for name, value in os.environ.items() if measured or "COVERAGE" not in name}
    process = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-W", "ignore:.*fork.*:DeprecationWarning", "-c"),
            *(PREAMBLE + script, server.base_url, server.api_key, stage.assistant),
        ],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    # A machine under load may make any handler slow.
    expected = ("run.failed", "actor.slow_handler")
    assert [line for line in process.stderr.splitlines() if not line.startswith(expected)] == []
    return process.stdout.splitlines()


@needs_fork
def test_a_forked_child_is_refused_clearly_and_can_make_a_new_orchestrator(stage: Stage) -> None:
    *refused, text, threads, code, parent = told(stage, FORK, measured=False)
    assert len(refused) == 15
    assert all(line.startswith("refused:") and "parent of this forked process" in line for line in refused)
    assert all("make a new" in line for line in refused)
    assert text == "got it"
    assert threads == "['MainThread']"
    assert code == "child 0"
    assert parent == "cancelled got it"


@needs_fork
def test_a_fork_at_any_moment_leaves_the_child_no_lock_to_wait_for(stage: Stage) -> None:
    assert told(stage, FORK_UNDER_LOAD, measured=False) == ["{0}"]


@pytest.mark.parametrize(
    "script",
    [
        EXIT_WITH_OPEN_RUNS,
        EXIT_WITH_RUNS_OF_EVERY_KIND,
        EXIT_WITHIN_ASYNCIO,
        EXIT_THAT_CLOSES,
        EXIT_WHILE_A_TOOL_HANGS,
    ],
    ids=["a stream", "all kinds", "an async block", "a close", "a tool"],
)
def test_a_process_that_ends_with_an_open_run_ends(stage: Stage, script: str) -> None:
    began = time.monotonic()
    assert len(told(stage, script)) == 1
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_while_close_waits_cancels_the_runs_and_ends_everything(stage: Stage) -> None:
    interrupted, threads = told(stage, INTERRUPT)
    assert interrupted == "interrupted cancelled"
    assert threads == "['MainThread']"


def test_what_takes_long_to_import_is_not_left_to_the_actors_loop(stage: Stage) -> None:
    assert told(stage, HEAVY_IMPORTS) == ["True 1"]
