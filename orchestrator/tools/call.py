"""One call of one tool, from the model's arguments to the text for the model.

Runs on whichever thread or loop the executor chose, and turns everything that may go wrong there into a
result, `SystemExit` included: a tool must not take down the thread that serves all tools.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import ToolError
from orchestrator.tools.outcome import ToolFailure, error_output, message_of
from orchestrator.tools.outputs import bounded, encode

if TYPE_CHECKING:
    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.registry import Tool

__all__ = ["Call", "Result", "call_async", "call_sync", "failed"]


class Result(NamedTuple):
    """The text for the model, and what went wrong if something did."""

    output: str
    failure: ToolFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What it takes to call a tool."""

    tool: Tool[..., Any]
    arguments: str
    context: ToolContext
    max_output_bytes: int


def call_sync(call: Call) -> Result:
    """Call a synchronous tool on this thread. Blocks as long as the tool does; never raises."""
    try:
        args, kwargs = _bound(call)
        return _returned(call, call.tool.function(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - the tool is the user's; see the module's docstring
        return failed(error, call.max_output_bytes)


async def call_async(call: Call) -> Result:
    """Call an asynchronous tool on this loop.

    Raises:
        KeyboardInterrupt: Ctrl-C struck on the main thread while the tool ran: that belongs to the program.
    """
    try:
        args, kwargs = _bound(call)
        return _returned(call, await call.tool.function(*args, **kwargs))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        return failed(error, call.max_output_bytes)


def failed(error: BaseException, max_output_bytes: int) -> Result:
    """Say to the model, and to us, what an exception means."""
    from orchestrator.tools.arguments import InvalidArguments

    message, name = message_of(error), type(error).__name__
    if isinstance(error, InvalidArguments):
        failure = ToolFailure(kind="invalid_arguments", message=message)
        return Result(error_output("invalid_arguments", message), failure)
    said = f"{name}: {message}" if message else name
    if isinstance(error, ToolError):
        failure = ToolFailure(kind="reported", message=said, origin=_origin(error))
        return Result(bounded(message_of(error, length=None), max_output_bytes), failure)
    return Result(
        error_output(name, message), ToolFailure(kind="raised", message=said, origin=_origin(error))
    )


def _bound(call: Call) -> tuple[list[Any], dict[str, Any]]:
    from orchestrator.tools.arguments import bind

    return bind(call.tool.described, call.arguments, call.context)


def _returned(call: Call, value: object) -> Result:
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(f"tool {call.tool.name!r} returned a coroutine; it must be an async def itself")
    return Result(bounded(encode(value), call.max_output_bytes))


def _origin(error: BaseException) -> str:
    innermost, place = error.__traceback__, ""
    while innermost is not None:
        place = f" at {innermost.tb_frame.f_globals.get('__name__')}:{innermost.tb_lineno}"
        innermost = innermost.tb_next
    return f"{type(error).__name__}{place}"
