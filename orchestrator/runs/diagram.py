"""The lifecycle's table, drawn: what the README shows is printed by `python -m orchestrator.runs.diagram`."""

from __future__ import annotations

import sys

from orchestrator.runs.lifecycle import TABLE
from orchestrator.runs.record import Phase

__all__ = ["mermaid"]


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram, in a fenced block that Markdown renders.

    An edge carries every input that may lead along it; inputs that leave a phase as it is are left out.
    """
    edges = [
        f"    {phase} --> {to}: {', '.join(causes)}"
        for phase in Phase
        for to in Phase
        if to is not phase and (causes := _causes(phase, to))
    ]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.ADMITTED}", *edges]
    return "\n".join([*lines, f"    {Phase.FINISHED} --> [*]", "```"])


def _causes(phase: Phase, to: Phase) -> list[str]:
    return [kind.__name__ for kind, rule in TABLE[phase].items() if to in rule.to]


if __name__ == "__main__":
    sys.stdout.write(mermaid() + "\n")
