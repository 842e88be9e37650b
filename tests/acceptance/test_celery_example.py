"""The example of a Celery application runs offline, and prints what it says."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from processes import ROOT, finished

if TYPE_CHECKING:
    from pathlib import Path

OUTPUT = """\
Rome has 25.3 °C on average in July.
Rome has 25.3 °C on average in July. (the same run)
question-2 is in_progress; its worker is killed
Oslo has 17.6 °C on average in July.
question-2 is cancelled, by the second worker
it is the same run
"""


def test_the_example_prints_what_it_says(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed here (Debian: apt-get install redis-server)")

    example = finished(
        tmp_path,
        command=[sys.executable, "-m", "celery_app"],
        cwd=ROOT / "examples",
        env={"PYTHONUTF8": "1", "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1"},
    )

    assert (example.code, example.out, example.err) == (0, OUTPUT, "")
