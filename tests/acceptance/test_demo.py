"""`orchestrator demo` on a server of its own: what it prints, how it ends, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from processes import SCRIPT, complaints, finished, next_line, on_terminal, started, until

if TYPE_CHECKING:
    from pathlib import Path

    from processes import Finished


def assert_right(demo: Finished, *, runs: int) -> None:
    """All but the middle run completed, and the sums, which this test can do itself, are right."""
    assert (demo.code, demo.err) == (0, ""), demo
    answers = [match[1] for line in demo.lines if (match := re.fullmatch(r" *\d+  (.+)", line))]
    assert len(answers) == runs
    assert [number for number, said in enumerate(answers) if said == "(cancelled)"] == [runs // 2]
    assert re.fullmatch(rf"{runs - 1} completed, 1 cancelled in \d+\.\d s", demo.lines[-3])
    assert re.fullmatch(
        r"\d+ tool calls in \d+ batches: the server's steps show each batch once and whole", demo.lines[-2]
    )
    assert demo.lines[-1] == "every answer agrees with the tools"
    sums = [said.split(" = ") for said in answers if " = " in said]
    assert len(sums) >= runs // 7
    for expression, value in sums:
        assert eval(expression) == pytest.approx(json.loads(value), abs=1e-6)


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_24_runs_complete_with_right_answers_and_one_is_cancelled(watch: str, tmp_path: Path) -> None:
    demo = finished(tmp_path, "demo", "--watch", watch)
    assert_right(demo, runs=25)
    assert "\x1b" not in demo.out
    assert "25 of 25 runs are over" in demo.lines


def test_500_runs_at_once_complete_with_right_answers(tmp_path: Path) -> None:
    assert_right(finished(tmp_path, "demo", "--runs", "500"), runs=500)


def test_a_terminal_shows_phase_age_calls_and_what_each_run_waits_for(tmp_path: Path) -> None:
    with on_terminal(tmp_path, "demo", "--runs", "12") as terminal:
        terminal.expect("phase .*age .*calls .*waits for .*question")
        terminal.expect("creating|watching")
        terminal.expect(r"acting|submitting|\d finished")
        code, shown = terminal.finish()
        terminal.traces.assert_none()
    assert code == 0
    assert "How warm is Nairobi over the year?" in shown
    assert "runs are over" not in shown
    assert shown.endswith("every answer agrees with the tools\n")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is hidden still"


def test_a_narrow_terminal_keeps_numbers_and_phases_and_no_color_is_kept_to(tmp_path: Path) -> None:
    with on_terminal(
        tmp_path, "demo", "--runs", "12", size=(10, 34), env={"NO_COLOR": "1", "COLUMNS": "34", "LINES": "10"}
    ) as terminal:
        code, shown = terminal.finish()
        terminal.traces.assert_none()
    assert code == 0
    assert re.search(r" 1 │ (admitted|creating|watching|completed)", shown)
    assert "question" not in shown
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", shown) is None


def test_the_settings_of_the_machine_are_not_the_demos(tmp_path: Path) -> None:
    """Keys and proxies for other servers, and somebody's module of the same name in the working directory."""
    (tmp_path / "orchestrator.py").write_text("raise SystemExit('not this one')")
    nobody = "http://127.0.0.1:9"
    demo = finished(
        tmp_path,
        "demo",
        "--runs",
        "7",
        command=SCRIPT,
        cwd=tmp_path,
        env={
            "ORCHESTRATOR_API_KEY": "for-serve",
            "OPENAI_API_KEY": "for-another-server",
            "OPENAI_BASE_URL": nobody,
            "HTTP_PROXY": nobody,
            "ALL_PROXY": nobody,
        },
    )
    assert_right(demo, runs=7)


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--runs", "10") as (process, traces):
        assert next_line(process).endswith("of 10 runs are over\n")
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert complaints(process.stderr.read()) == ""
        assert process.wait() == 1
        traces.assert_none()


def test_an_output_that_knows_only_ascii_gets_question_marks(tmp_path: Path) -> None:
    demo = finished(tmp_path, "demo", "--runs", "7", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert_right(demo, runs=7)
    assert " ?C on average" in demo.out


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    command = ("sh", "-c", 'exec "$0" -m orchestrator "$@" >/dev/full', sys.executable)
    demo = finished(tmp_path, "demo", "--runs", "3", command=command)
    assert (demo.code, demo.out) == (1, "")
    assert re.fullmatch(
        r"orchestrator: the machine does not let the demo go on: .*No space left.*\n", demo.err
    )


def test_a_server_that_dies_in_the_middle_is_one_clear_line(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--runs", "100") as (process, traces):
        assert next_line(process).endswith("of 100 runs are over\n")
        [server] = [one for one in traces.processes() if one.pid != process.pid]
        server.kill()
        _, err = process.communicate(timeout=30)
        traces.assert_none()
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(
        "orchestrator: the demo's server ended in the middle, with code -9"
    )
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_cancels_the_runs_and_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--runs", "100") as (process, traces):
        assert next_line(process).endswith("of 100 runs are over\n")
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        traces.assert_none()
    assert (process.returncode, complaints(err)) == (code, "")
    assert re.search(
        r"^interrupted: cancelling \d+ of 100 runs\n(\d+ (completed|cancelled)(, )?)+\n\Z", out, re.MULTILINE
    )


def test_a_signal_while_the_server_starts_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path, "demo") as (process, traces):
        until(lambda: len(traces.processes()) == 2, "the server's process")
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        traces.assert_none()
    assert (process.returncode, out, complaints(err)) == (143, "", "")


def test_more_signals_during_the_teardown_change_nothing(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--runs", "50") as (process, traces):
        assert next_line(process).endswith("of 50 runs are over\n")
        process.send_signal(signal.SIGINT)
        while not next_line(process).startswith("interrupted: "):
            assert process.poll() is None
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
        traces.assert_none()
    assert process.returncode == 130
    assert "Traceback" not in err
