"""Which functions a model may call, and under which names.

Describing a function loads pydantic and griffe, so a `Tool` does it when it is first asked. A registry asks
at once: what cannot be described is refused where the program is set up, not in the middle of a run.
"""

from __future__ import annotations

import inspect
import re
from functools import cached_property, partial, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from orchestrator.tools.signature import is_async, local_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.protocol.objects import JSON, Assistant
    from orchestrator.tools.comparison import ToolCheck
    from orchestrator.tools.schema import Description

__all__ = ["Tool", "ToolRegistry", "tool"]

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DEFAULT_TIMEOUT_S = 60.0


class Tool(Generic[P, R]):
    """A function that a model may call; Python calls it as before. Made by `tool`.

    A method that is a tool gives a tool bound to its object, so that `ToolRegistry([desk.book])` works.

    Attributes:
        function: The function itself.
        name: The name by which the model calls it.
        timeout_s: Seconds after which a call is answered with a timeout.
        idempotent: Whether a call may be made again: because its process died before the outcome was known,
            or by a run that follows a failed one (`rerun=`).
        strict: Whether the server is asked to hold the model to the schema.
        is_async: Whether it is an `async def`, and runs on an event loop instead of a thread.
        annotation_names: What the annotations mention of the function that encloses this one.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        idempotent: bool = False,
        strict: bool = False,
    ) -> None:
        if not isinstance(function, classmethod) and not callable(function):
            raise TypeError(f"a tool is made of a function, not of {function!r}")
        names = function.annotation_names if isinstance(function, Tool) else local_names(function)
        if isinstance(function, Tool):
            function = function.function
        update_wrapper(self, function)
        self.function: Callable[P, R] = function
        self.name = _checked_name(function, name)
        if not timeout_s > 0:
            raise ValueError(f"tool {self.name!r}: timeout_s must be positive, got {timeout_s}")
        self.timeout_s = timeout_s
        self.idempotent = idempotent
        self.strict = strict
        self.is_async = is_async(function)
        self._stated_description = description
        self.annotation_names: dict[str, Any] = names

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, on this thread: no schema, no validation, no timeout."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Tool[..., R]:
        bind = getattr(self.function, "__get__", None)
        bound: Any = self.function if bind is None else bind(instance, owner)
        if bound is self.function:
            return self
        made: Tool[..., R] = Tool(
            bound,
            name=self.name,
            description=self._stated_description,
            timeout_s=self.timeout_s,
            idempotent=self.idempotent,
            strict=self.strict,
        )
        made.annotation_names = self.annotation_names
        return made

    def __repr__(self) -> str:
        return f"<Tool {self.name!r}>"

    @property
    def description(self) -> str:
        """What the model is told it does: as given to `tool`, else the docstring's text; may be empty."""
        return self.described.text if self._stated_description is None else self._stated_description

    @property
    def parameters(self) -> JSON:
        """The JSON schema of the arguments. Do not change it.

        Raises:
            TypeError: A parameter cannot be described; the message names it.
        """
        return self.described.schema

    @cached_property
    def described(self) -> Description:
        """The description, worked out on first use: milliseconds, and the import of pydantic and griffe."""
        from orchestrator.tools.schema import describe

        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise TypeError(f"tool {self.name!r} is a generator; return a list instead of yielding its items")
        return describe(self.function, tool_name=self.name, names=self.annotation_names, strict=self.strict)

    def definition(self) -> JSON:
        """Return the tool as an assistant or a run lists it on the wire.

        Raises:
            TypeError: A parameter cannot be described; the message names it.
        """
        function: JSON = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = self.parameters
        if self.strict:
            function["strict"] = True
        return {"type": "function", "function": function}


def _checked_name(function: Callable[..., object], name: str | None) -> str:
    if name is None:
        inner = function.func if isinstance(function, partial) else function
        name = getattr(inner, "__name__", None)
    if name is None:
        raise ValueError(f"a tool made of {type(function).__name__} needs a name: tool(name=…)(…)")
    if not _NAME.fullmatch(name):
        raise ValueError(f"tool name {name!r}: 1 to 64 of a-z, A-Z, 0-9, _ and - are allowed; pass name=…")
    return name


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = _DEFAULT_TIMEOUT_S,
    idempotent: bool = False,
    strict: bool = False,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = _DEFAULT_TIMEOUT_S,
    idempotent: bool = False,
    strict: bool = False,
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Make a function callable by a model: `@tool`, or `@tool(name=…, timeout_s=…)`.

    The signature becomes the JSON schema of its arguments, the docstring (Google, NumPy or Sphinx style) the
    description. A parameter annotated `ToolContext` is not part of it and receives the call's context.

    Args:
        function: The function, synchronous or `async def`.
        name: The name for the model; the function's own by default.
        description: What it does, for the model; the docstring's text by default.
        timeout_s: Seconds after which a call is answered with a timeout, counted from the moment it runs.
        idempotent: Whether a call may be made again: because its process died before the outcome was known,
            or by a run that follows a failed one (`rerun=`).
        strict: Ask the server to hold the model to the schema. Every parameter is then required.

    Raises:
        TypeError: It is no function.
        ValueError: The name or the timeout is not acceptable.
    """

    def decorate(function: Callable[P, R]) -> Tool[P, R]:
        return Tool(
            function,
            name=name,
            description=description,
            timeout_s=timeout_s,
            idempotent=idempotent,
            strict=strict,
        )

    return decorate if function is None else decorate(function)


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


def _functions(thing: Any) -> list[Callable[..., Any]]:
    """Return the methods of an object that its class marks with `@tool`, else what was given itself."""
    if isinstance(thing, Tool):
        return [thing]
    marked = thing if isinstance(thing, type) else type(thing)
    names = dict.fromkeys(name for each in reversed(marked.__mro__) for name in vars(each))
    found = [name for name in names if isinstance(inspect.getattr_static(marked, name), Tool)]
    if found and marked is thing:
        raise TypeError(
            f"{marked.__name__} has tools among its methods: give an object, {marked.__name__}(…)"
        )
    return [getattr(thing, name) for name in found] or [thing]
