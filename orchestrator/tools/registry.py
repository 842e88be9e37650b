"""Which tools a run may call, by name.

A registry describes what it is given at once: what cannot be described is refused where the program is set
up, not in the middle of a run. It runs nothing.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from orchestrator.tools.declaration import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.protocol.objects import JSON, Assistant
    from orchestrator.tools.comparison import ToolCheck

__all__ = ["ToolRegistry"]

P = ParamSpec("P")
R = TypeVar("R")


class ToolRegistry:
    """Tools by name. Reading it is safe from any thread; register before it is handed to a run.

    Args:
        tools: Tools, functions to make into tools, and objects whose class marks methods with `@tool`.

    Raises:
        TypeError: One cannot be described; the message names the tool and the parameter.
        ValueError: A name is not acceptable or is taken.
    """

    def __init__(self, tools: Iterable[object] = ()) -> None:
        self._tools: dict[str, Tool[..., Any]] = {}
        if callable(tools):
            raise TypeError(f"tools are given in a list: [{getattr(tools, '__name__', tools)}]")
        for one in tools:
            for function in _functions(one):
                self.register(function)

    def register(self, function: Callable[P, R], /) -> Tool[P, R]:
        """Add a tool, or a function made into one, and return it; works as a decorator.

        Raises:
            TypeError: It cannot be described; the message names the tool and the parameter.
            ValueError: Its name is not acceptable or is taken.
        """
        added: Tool[P, R] = function if isinstance(function, Tool) else Tool(function)
        if added.name in self._tools:
            raise ValueError(f"a tool named {added.name!r} is registered already")
        added.definition()  # refuses now what could not be described later
        self._tools[added.name] = added
        return added

    def merged(self, tools: Iterable[object]) -> ToolRegistry:
        """Return a new registry: these tools, and those of this one whose names they leave free.

        Raises:
            TypeError: One cannot be described; the message names the tool and the parameter.
            ValueError: A name is not acceptable, or two of the given tools share it.
        """
        merged = ToolRegistry(tools)
        merged._tools = self._tools | merged._tools
        return merged

    def get(self, name: str) -> Tool[..., Any] | None:
        """Return the tool of this name, or `None`."""
        return self._tools.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of registration."""
        return tuple(self._tools)

    def definitions(self) -> list[JSON]:
        """Return what to create an assistant or a run with, in the order of registration."""
        return [tool.definition() for tool in self._tools.values()]

    def check(self, assistant: Assistant) -> ToolCheck:
        """Say which functions of an assistant have no handler here, and whose schemas differ.

        Nothing is asked of the server: `client.get_assistant(…)` gives the assistant. Its tools that are no
        functions, and handlers that it does not know, do not matter. The report is true when all agrees.
        """
        from orchestrator.tools.comparison import compared

        return compared(assistant.tools, {made.name: made.parameters for made in self})

    def __iter__(self) -> Iterator[Tool[..., Any]]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __repr__(self) -> str:
        return f"<ToolRegistry {', '.join(self._tools) or 'empty'}>"


def _is_tool(member: object) -> bool:
    """Whether a class marks this member with `@tool`, above or below `@staticmethod` and `@classmethod`."""
    below = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    return isinstance(below, Tool)


def _functions(thing: Any) -> list[Callable[..., Any]]:
    """Return the methods of an object that its class marks with `@tool`, else what was given itself."""
    if isinstance(thing, Tool):
        return [thing]
    marked = thing if isinstance(thing, type) else type(thing)
    names = dict.fromkeys(name for each in reversed(marked.__mro__) for name in vars(each))
    found = [name for name in names if _is_tool(inspect.getattr_static(marked, name))]
    if found and marked is thing:
        raise TypeError(
            f"{marked.__name__} has tools among its methods: give an object, {marked.__name__}(…)"
        )
    return [getattr(thing, name) for name in found] or [thing]
