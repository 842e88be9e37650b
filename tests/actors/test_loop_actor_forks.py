"""A forked child inherits no loop thread and no actor: what it finds of them says so, and new ones work.

Forking a process that has threads is the point here, so each story is told by a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")

PREAMBLE = """
import functools, os, sys, threading, time, traceback
import pykka
from orchestrator.errors import OrchestratorClosed
from orchestrator.runtime import LoopActor, LoopFuture, acquire, on_loop_thread

print = functools.partial(print, flush=True)

class Echo(LoopActor):
    def on_receive(self, message):
        return message() if callable(message) else message

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

def refused(kind, call):
    try:
        call()
    except kind as error:
        print(type(error).__name__, str(error).partition(") ")[2] or error)
    else:
        print("not refused")
"""


def told(script: str) -> list[str]:
    # Not measured: every thread takes a lock of coverage's own, which a fork may copy as held.
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    process = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + script],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )
    assert process.stderr == ""
    assert process.returncode == 0
    return process.stdout.splitlines()


INHERITED = """
ref = Echo.start()
proxy = ref.proxy()
lease = acquire()
held = LoopFuture()

def story():
    print(ref.is_alive(), lease.is_alive(), threading.active_count())
    refused(pykka.ActorDeadError, lambda: ref.tell("x"))
    refused(pykka.ActorDeadError, lambda: ref.ask("x"))
    refused(pykka.ActorDeadError, lambda: proxy.on_receive("x").get())
    refused(pykka.ActorDeadError, lambda: held.get())
    print(ref.stop(), pykka.ActorRegistry.stop_all())
    try:
        lease.call_soon(print, "never")
    except OrchestratorClosed as error:
        print("make new actors" in str(error))
    lease.release()

print(in_child(story))
print(ref.ask("the parent's actor is alive"))
ref.stop()
lease.release()
"""


def test_what_a_child_finds_of_its_parents_actors_is_dead_and_says_so() -> None:
    left_behind = "belongs to the parent of this forked process: start new actors in the child"

    assert told(INHERITED) == [
        "False False 1",
        f"ActorDeadError {left_behind}",
        f"ActorDeadError {left_behind}",
        f"ActorDeadError {left_behind}",
        "ActorDeadError this process is a fork; the future's actor stayed with its parent",
        "False [False]",
        "True",
        "0",
        "the parent's actor is alive",
    ]


ANEW = """
ref = Echo.start()

def story():
    mine = Echo.start()
    print(mine.ask("the child's own"), mine.ask(on_loop_thread), on_loop_thread())
    print(in_child(lambda: print(mine.is_alive(), Echo.start().ask("the grandchild's own"))))
    print(mine.stop())

print(in_child(story))
print(ref.ask(os.getpid) == os.getpid(), ref.stop())
"""


def test_new_actors_work_in_a_child_and_in_its_child() -> None:
    assert told(ANEW) == [
        "the child's own True False",
        "False the grandchild's own",
        "0",
        "True",
        "0",
        "True True",
    ]


# The first actor imports uvloop, which imports concurrent.futures.thread, and that announces its own hooks.
BUSY = """
Echo.start().stop()
busy = threading.Event()

def churn():
    while not busy.is_set():
        Echo.start().stop()

def story():
    assert Echo.start().ask("alive") == "alive"

threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
codes = [in_child(story) for _ in range(40)]
busy.set()
for thread in threads:
    thread.join()
print(set(codes))
"""


def test_a_fork_in_the_middle_of_starts_and_stops_leaves_no_lock_held() -> None:
    assert told(BUSY) == ["{0}"]
