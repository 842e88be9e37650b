"""One execution of one call, from the model's arguments to the text for the model.

Runs on whichever thread or loop the executor chose, and turns everything that may go wrong there into a
result, `SystemExit` included: a tool must not take down the thread that serves all tools.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import ToolError
from orchestrator.tools.outcome import FailureKind, ToolFailure, error_output, message_of
from orchestrator.tools.outputs import bounded, encode

if TYPE_CHECKING:
    from orchestrator.tools.middleware import Invocation, Layer

__all__ = ["Result", "call_async", "call_sync", "failed", "is_for_program", "refused"]


class Result(NamedTuple):
    """What came of one execution.

    Attributes:
        output: The text for the model.
        failure: What went wrong, or `None`.
        error: The exception that was raised.
        repeatable: Whether it was the function, or what stands around it, that raised: another execution may
            have a result.
    """

    output: str
    failure: ToolFailure | None = None
    error: BaseException | None = None
    repeatable: bool = False


def call_sync(layer: Layer, invocation: Invocation, max_output_bytes: int) -> Result:
    """Call a synchronous layer on this thread. Blocks as long as the tool does; never raises."""
    try:
        value = layer.function(invocation)
    except BaseException as error:  # noqa: BLE001 - the tool is the user's; see the module's docstring
        return _raised(error, max_output_bytes)
    return _returned(invocation, value, max_output_bytes)


async def call_async(layer: Layer, invocation: Invocation, max_output_bytes: int) -> Result:
    """Call an asynchronous layer on this loop.

    Raises:
        KeyboardInterrupt: Ctrl-C struck on the main thread while the tool ran: that belongs to the program.
    """
    try:
        value = await layer.function(invocation)
    except BaseException as error:
        if is_for_program(error):
            raise
        return _raised(error, max_output_bytes)
    return _returned(invocation, value, max_output_bytes)


def is_for_program(error: BaseException) -> bool:
    """Whether this is Ctrl-C on the main thread, which struck while a tool ran and belongs to the program."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def failed(error: BaseException, max_output_bytes: int) -> Result:
    """Say to the model, and to us, what an exception means."""
    from orchestrator.tools.arguments import InvalidArguments

    message, name = message_of(error), type(error).__name__
    if isinstance(error, InvalidArguments):
        return refused("invalid_arguments", message)
    said = f"{name}: {message}" if message else name
    if isinstance(error, ToolError):
        failure = ToolFailure(kind="reported", message=said, origin=_origin(error))
        return Result(bounded(message_of(error, length=None), max_output_bytes), failure, error)
    failure = ToolFailure(kind="raised", message=said, origin=_origin(error))
    return Result(error_output(name, message), failure, error)


def refused(kind: FailureKind, message: str) -> Result:
    """Say to the model, and to us, why there is no result."""
    return Result(error_output(kind, message), ToolFailure(kind=kind, message=message))


def _raised(error: BaseException, max_output_bytes: int) -> Result:
    repeatable = isinstance(error, Exception) and not isinstance(error, ToolError)
    return failed(error, max_output_bytes)._replace(repeatable=repeatable)


def _returned(invocation: Invocation, value: Any, max_output_bytes: int) -> Result:
    name = invocation.tool.name
    try:
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(f"tool {name!r} returned a coroutine; it must be an async def itself")
        return Result(bounded(encode(value), max_output_bytes))
    except BaseException as error:  # noqa: BLE001 - so are the methods of what it returned
        return failed(error, max_output_bytes)


def _origin(error: BaseException) -> str:
    innermost, place = error.__traceback__, ""
    while innermost is not None:
        place = f" at {innermost.tb_frame.f_globals.get('__name__')}:{innermost.tb_lineno}"
        innermost = innermost.tb_next
    return f"{type(error).__name__}{place}"
