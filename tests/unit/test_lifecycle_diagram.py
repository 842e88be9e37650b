"""The README's picture of the lifecycle is the table's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from orchestrator.runs.diagram import mermaid
from orchestrator.runs.lifecycle import TABLE
from orchestrator.runs.record import Phase

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- lifecycle diagram -->", "<!-- /lifecycle diagram -->"


def test_the_diagram_has_an_edge_for_every_way_between_two_phases_and_no_other() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", mermaid(), flags=re.MULTILINE))
    ways = {
        (str(phase), str(to))
        for phase, rules in TABLE.items()
        for rule in rules.values()
        for to in rule.to
        if to is not phase
    }
    assert drawn == ways
    assert {phase for way in drawn for phase in way} == set(Phase)


def test_the_readme_shows_the_diagram_that_the_table_makes() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"README.md needs {BEGIN} and {END}, once each"
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == mermaid(), "paste what `python -m orchestrator.runs.diagram` prints between the markers"


def test_the_diagram_can_be_printed() -> None:
    command = [sys.executable, "-m", "orchestrator.runs.diagram"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=README.parent)
    assert printed.stdout.strip() == mermaid()
