"""`python -m orchestrator` itself: its help, and what it says where an extra is not installed."""

from __future__ import annotations

import signal
import sys
import sysconfig
from pathlib import Path

import pytest
from processes import ROOT, finished, next_line, started


def test_the_help_names_the_commands(tmp_path: Path) -> None:
    shown = finished(tmp_path, "--help", env={"COLUMNS": "100"})
    assert (shown.code, shown.err) == (0, "")
    assert "demo" in shown.out
    assert "serve" in shown.out


def test_a_typing_error_is_code_2(tmp_path: Path) -> None:
    refused = finished(tmp_path, "demo", "--watch", "stare")
    assert (refused.code, refused.out) == (2, "")
    assert "'stare'" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("absent", "command", "expected"),
    [
        (["typer", "rich"], "--help", "this needs the 'cli' extra (typer, rich not found)"),
        (["uvicorn"], "demo", "this needs the 'server' extra (uvicorn not found)"),
        (["yaml"], "serve", "this needs the 'server' extra (yaml not found)"),
    ],
)
def test_a_missing_extra_is_named(absent: list[str], command: str, expected: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    installed = [*Path(sysconfig.get_path("purelib")).iterdir(), ROOT / "orchestrator"]
    for path in {path.name: path for path in installed if path.name not in absent}.values():
        (site / path.name).symlink_to(path)
    without = [sys.executable, "-S", "-m", "orchestrator"]
    refused = finished(tmp_path, command, command=without, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    extra = expected.split("'")[1]
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"orchestrator: {expected}: pip install 'run-orchestrator[{extra}]'\n"


def test_a_ctrl_c_while_a_command_is_imported_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with started(tmp_path, "demo", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}) as (process, traces):
        assert next_line(process) == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        traces.assert_none()
    assert (process.returncode, out, err) == (130, "", "")
