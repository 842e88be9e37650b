"""From a model's arguments document to a function's arguments, in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.tools.arguments import parsed, placed

if TYPE_CHECKING:
    from orchestrator.tools import ToolContext
    from orchestrator.tools.schema import Description

__all__ = ["bind"]


def bind(
    description: Description, document: str, context: ToolContext
) -> tuple[list[object], dict[str, object]]:
    """The positional and the keyword arguments."""
    return placed(description, parsed(description, document), context)
