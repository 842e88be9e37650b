"""The tools of one run: what the server is told of them, and what answers its calls.

Owns how the two are told apart among what a user gives to `start(tools=…)`. Knows no run and no server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.tools.declaration import Tool
from orchestrator.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RunTools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTools:
    """What a run may call.

    Attributes:
        registry: The handlers.
        sent: What goes out as the run's `tools`, in place of the assistant's; `None` where those stand.
    """

    registry: ToolRegistry
    sent: tuple[Mapping[str, Any], ...] | None = None

    @classmethod
    def given(cls, tools: Iterable[object] | None, registry: ToolRegistry) -> RunTools:
        """Split what a run is given into what is sent and what is called.

        Args:
            tools: Tools and wire definitions; with `None` the assistant's stand.
            registry: The handlers of all runs; the run's own come before those of the same name.

        Raises:
            TypeError: They are not in a list, or one cannot be described.
            ValueError: A name is not acceptable, or two of them share it.
        """
        if tools is None:
            return cls(registry=registry)
        if callable(tools) or isinstance(tools, Mapping):
            raise TypeError(f"tools are given in a list, got {tools!r}")
        sent: list[Mapping[str, Any]] = []
        handlers: list[Tool[..., Any]] = []
        for item in tools:
            if isinstance(item, Mapping):
                sent.append(item)
            else:
                own = ToolRegistry([item])
                sent.extend(own.definitions())
                handlers.extend(own)
        return cls(registry=registry.merged(handlers), sent=tuple(sent))

    @property
    def without_handler(self) -> tuple[str, ...]:
        """The functions that are sent and that nothing here answers; those of Python always have theirs."""
        functions = (definition.get("function") for definition in self.sent or ())
        names = (str(function.get("name")) for function in functions if isinstance(function, Mapping))
        return tuple(name for name in names if name not in self.registry)
