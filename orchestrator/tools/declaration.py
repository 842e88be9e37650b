"""A function that a model may call, and what was said of it when it was made one.

Describing a function loads pydantic and griffe, so a `Tool` does it when it is first asked. It runs nothing:
how a call is executed is the executor's.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial, update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    get_args,
    overload,
)

from orchestrator.tools.signature import is_async, local_names

if TYPE_CHECKING:
    from typing import Unpack

    from orchestrator.protocol.objects import JSON
    from orchestrator.tools.schema import Description

__all__ = [
    "Approval",
    "ExecutorSource",
    "OnError",
    "OnUnknown",
    "Tool",
    "ToolOptions",
    "ToolSettings",
    "tool",
]

P = ParamSpec("P")
R = TypeVar("R")

OnError: TypeAlias = Literal["report", "fail"]
OnUnknown: TypeAlias = Literal["report", "ask"]
Approval: TypeAlias = bool | Callable[[Mapping[str, Any]], bool]
"""Whether a call waits for a person's approval, or what says so of the call's arguments, by name."""
ExecutorSource: TypeAlias = Executor | Callable[[], Executor]
"""An executor, or what returns one when it is needed: in the process that needs it, after a fork."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class ToolSettings(TypedDict, total=False):
    """The keyword arguments of `tool`, which explains them."""

    name: str | None
    description: str | None
    timeout_s: float
    retries: int | None
    max_concurrency: int | None
    on_error: OnError
    approval: Approval
    executor: ExecutorSource | None
    idempotent: bool
    on_unknown: OnUnknown
    strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What was said of a tool when it was made; `tool` explains each attribute."""

    name: str | None = None
    description: str | None = None
    timeout_s: float = 60.0
    retries: int | None = None
    max_concurrency: int | None = None
    on_error: OnError = "report"
    approval: Approval = False
    executor: ExecutorSource | None = None
    idempotent: bool = False
    on_unknown: OnUnknown = "report"
    strict: bool = False

    def require_sense(self, name: str) -> None:
        """Check every value, for a tool of this name.

        Raises:
            TypeError: A value is of a kind that makes no sense.
            ValueError: A number or a choice makes no sense.
        """
        where = f"tool {name!r}"
        self._require_numbers(where)
        for flag in ("idempotent", "strict"):
            if not isinstance(getattr(self, flag), bool):
                raise TypeError(f"{where}: {flag} must be a bool, got {getattr(self, flag)!r}")
        if self.description is not None and not isinstance(self.description, str):
            raise TypeError(f"{where}: description must be a str or None, got {self.description!r}")
        if self.on_error not in get_args(OnError):
            raise ValueError(f"{where}: on_error must be 'report' or 'fail', got {self.on_error!r}")
        if self.on_unknown not in get_args(OnUnknown):
            raise ValueError(f"{where}: on_unknown must be 'report' or 'ask', got {self.on_unknown!r}")
        if not isinstance(self.approval, bool) and (not callable(self.approval) or is_async(self.approval)):
            raise TypeError(f"{where}: approval must be a bool or a plain function, got {self.approval!r}")
        if self.executor is not None and not _gives_executor(self.executor):
            raise TypeError(f"{where}: executor must be an executor or return one, got {self.executor!r}")

    def _require_numbers(self, where: str) -> None:
        if isinstance(self.timeout_s, bool) or not isinstance(self.timeout_s, int | float):
            raise TypeError(f"{where}: timeout_s must be a number of seconds, got {self.timeout_s!r}")
        if not self.timeout_s > 0:
            raise ValueError(f"{where}: timeout_s must be positive, got {self.timeout_s}")
        for bound, least in (("retries", 0), ("max_concurrency", 1)):
            value = getattr(self, bound)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{where}: {bound} must be an int or None, got {value!r}")
            if value is not None and value < least:
                raise ValueError(f"{where}: {bound} must be at least {least}, got {value}")


def _gives_executor(source: object) -> bool:
    # A class is what somebody forgot to call.
    return not isinstance(source, type) and (hasattr(source, "submit") or callable(source))


class Tool(Generic[P, R]):
    """A function that a model may call; Python calls it as before. Made by `tool`.

    A method that is a tool gives a tool bound to its object, so that `ToolRegistry([desk.book])` works.

    Attributes:
        function: The function itself.
        name: The name by which the model calls it.
        options: What was said of it when it was made.
        is_async: Whether it is an `async def`, and runs on an event loop instead of a thread.
        annotation_names: What the annotations mention of the function that encloses this one.
    """

    def __init__(self, function: Callable[P, R], options: ToolOptions | None = None) -> None:
        if not isinstance(function, classmethod) and not callable(function):
            raise TypeError(f"a tool is made of a function, not of {function!r}")
        names = function.annotation_names if isinstance(function, Tool) else local_names(function)
        if isinstance(function, Tool):
            function = function.function
        update_wrapper(self, function)
        self.function: Callable[P, R] = function
        self.options = ToolOptions() if options is None else options
        self.name = _checked_name(function, self.options.name)
        self.options.require_sense(self.name)
        self.is_async = is_async(function)
        self.annotation_names: dict[str, Any] = names
        if self.is_async and self.options.executor is not None:
            raise TypeError(f"tool {self.name!r} is an async def: executor= takes plain functions only")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, on this thread: no schema, no validation, no timeout."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Tool[..., R]:
        bind = getattr(self.function, "__get__", None)
        bound: Any = self.function if bind is None else bind(instance, owner)
        if bound is self.function:
            return self
        made: Tool[..., R] = Tool(bound, self.options)
        made.name = self.name
        made.annotation_names = self.annotation_names
        return made

    def __repr__(self) -> str:
        return f"<Tool {self.name!r}>"

    def __reduce__(self) -> str:
        # By its name, as functions are: another process finds the tool under it.
        return str(getattr(self, "__qualname__", self.name))

    @property
    def portable(self) -> Callable[P, R]:
        """What can be sent to another process: the tool where its own name leads to it, else the function."""
        found: object = sys.modules.get(self.__module__)
        for part in str(getattr(self, "__qualname__", "")).split("."):
            found = getattr(found, part, None)
        return self if found is self else self.function

    @property
    def description(self) -> str:
        """What the model is told it does: as given to `tool`, else the docstring's text; may be empty."""
        stated = self.options.description
        return self.described.text if stated is None else stated

    @property
    def parameters(self) -> JSON:
        """The JSON schema of the arguments. Do not change it.

        Raises:
            TypeError: A parameter cannot be described; the message names it.
        """
        return self.described.schema

    @cached_property
    def described(self) -> Description:
        """The description, worked out on first use: milliseconds, and the import of pydantic and griffe.

        Raises:
            TypeError: A parameter cannot be described; the message names it.
        """
        from orchestrator.tools.schema import describe

        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise TypeError(f"tool {self.name!r} is a generator; return a list instead of yielding its items")
        described = describe(
            self.function, tool_name=self.name, names=self.annotation_names, strict=self.options.strict
        )
        contexts = [parameter.name for parameter, field in described.fields if field is None]
        if contexts and self.options.executor is not None:
            raise TypeError(
                f"tool {self.name!r}: parameter {contexts[0]!r} is a ToolContext, which cannot be sent to an "
                f"executor: leave it out, or leave executor= out"
            )
        return described

    def definition(self) -> JSON:
        """Return the tool as an assistant or a run lists it on the wire.

        Raises:
            TypeError: A parameter cannot be described; the message names it.
        """
        function: JSON = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = self.parameters
        if self.options.strict:
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
def tool(**settings: Unpack[ToolSettings]) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None, /, **settings: Unpack[ToolSettings]
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Make a function callable by a model: `@tool`, or `@tool(name=…, timeout_s=…)`.

    The signature becomes the JSON schema of its arguments, the docstring (Google, NumPy or Sphinx style) the
    description. A parameter annotated `ToolContext` is not part of it and receives the call's context.

    Args:
        function: The function, synchronous or `async def`.
        name: The name for the model; the function's own by default.
        description: What it does, for the model; the docstring's text by default.
        timeout_s: Seconds after which a call is answered with a timeout, further executions included; counted
            from the moment it runs. 60 by default.
        retries: The most further executions of a call whose function raises, `ToolError` excepted. By default
            only `Retry` makes it run again, and at most three times.
        max_concurrency: The most calls of this function that run at once, in all runs of an orchestrator; the
            others wait without a thread. By default no more than there are threads.
        on_error: What an exception or a timeout does: `"report"` tells the model, `"fail"` cancels the run,
            whose handle raises `ToolFailed`. What the model did wrong is reported either way.
        approval: Whether every call waits for `RunHandle.approve()`, or a plain function that says so of the
            arguments, a mapping by name.
        executor: Where the function is called instead of in a thread, such as a `ProcessPoolExecutor`, or a
            function that returns it when it is needed. It is not closed with the orchestrator. What goes to
            another process must be picklable, and there is no `ToolContext` there.
        idempotent: Whether a call may be made again: because its process died before the outcome was known,
            or by a run that follows a failed one (`rerun=`).
        on_unknown: What becomes of a call, not idempotent, whose process died before the outcome was known:
            `"report"` tells the model so, `"ask"` makes it again if somebody approves.
        strict: Ask the server to hold the model to the schema. Every parameter is then required.

    Raises:
        TypeError: It is no function, or a setting is unknown or of the wrong kind.
        ValueError: The name or a setting is not acceptable.
    """
    options = ToolOptions(**settings)
    return partial(Tool, options=options) if function is None else Tool(function, options)
