"""Runs in a process without files enough for their connections: they wait, and the server is not blamed."""

from __future__ import annotations

from limited import told_by
from stage import Stage

RUNS = """
from concurrent.futures import wait
from orchestrator import Orchestrator, Timing
from orchestrator.client import RetryPolicy

assistant, attempts, runs, left = sys.argv[2], *map(int, sys.argv[3:])
limit(120)
orchestrator = Orchestrator(
    base_url=base_url,
    api_key="test-key",
    check_tools="off",
    timing=Timing(retry=RetryPolicy(attempts=attempts, base_s=0.05, cap_s=0.2)),
)
with orchestrator:
    # The loop, the certificates and the first connection have files of their own.
    orchestrator.start(assistant, messages="hello").result(20)
    taken = use_up(left)
    handles = [orchestrator.start(assistant, messages="hello") for _ in range(runs)]
    wait([handle.future for handle in handles], 40)
    for file in taken:
        os.close(file)
errors = [handle.future.exception() for handle in handles]
print(json.dumps({
    "errors": [f"{type(error).__name__}: {error}" for error in errors if error],
    "threads": [handle.thread_id for handle in handles],
    "events": sorted({event["event"] for event in kept.events}),
}))
"""


def test_more_runs_than_files_for_their_connections_all_complete(stage: Stage) -> None:
    told = told_by(RUNS, stage.server.base_url, stage.assistant, "100", "60", "5")

    assert told["errors"] == []
    assert [len(stage.runs(thread)) for thread in told["threads"]] == [1] * 60
    assert "server.breaker_opened" not in told["events"]


def test_a_run_that_finds_no_file_in_all_its_attempts_ends_with_what_to_do(stage: Stage) -> None:
    told = told_by(RUNS, stage.server.base_url, stage.assistant, "2", "30", "0")

    assert told["errors"]
    for error in told["errors"]:
        assert error.startswith("OutOfFiles: nothing was sent: this process has all 120 files open")
        assert "ulimit -n" in error
        assert "this ended run" in error
        assert "check that a server answers" not in error
    assert "server.breaker_opened" not in told["events"]
