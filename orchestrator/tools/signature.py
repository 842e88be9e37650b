"""Which parameters a function has, with their annotations resolved.

Knows Python's ways of wrapping functions, and how annotations written as strings find their names. It does
not know what an annotation means.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

from orchestrator.tools.context import ToolContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Parameter", "is_async", "local_names", "parameters_of", "plain_function"]

_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter that gets its value from the model, or the call's context.

    Attributes:
        name: Its name.
        annotation: The type, `Annotated` included.
        default: The default value, or `inspect.Parameter.empty`.
        positional: Whether it can be given by position only.
    """

    name: str
    annotation: Any
    default: Any
    positional: bool


def plain_function(function: Callable[..., object]) -> object:
    """Return what stands below partials, bound methods, decorators and callable objects."""
    while True:
        below = getattr(function, "func" if isinstance(function, partial) else "__func__", None)
        if below is None:
            below = getattr(function, "__wrapped__", None)
        if below is None:
            break
        function = below
    # A class is called through its metaclass: its own signature is what counts.
    if isinstance(function, type | FunctionType) or inspect.isbuiltin(function):
        return function
    return type(function).__call__


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling the function returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(plain_function(function))


def local_names(function: Callable[..., object]) -> dict[str, Any]:
    """Return the names that the function's string annotations take from an enclosing function.

    They are gone once that function has returned, so this is asked while it still runs. Only what the
    annotations mention is kept, so that no frame lives longer than it should.
    """
    plain = plain_function(function)
    if not isinstance(plain, FunctionType) or "<locals>" not in plain.__qualname__:
        return {}
    texts = [text for text in plain.__annotations__.values() if isinstance(text, str)]
    wanted = {name for text in texts for name in _NAME.findall(text)}
    encloser = plain.__qualname__.rpartition(".<locals>.")[0]
    frame = inspect.currentframe()
    while wanted and frame is not None:
        if frame.f_code.co_qualname == encloser and frame.f_globals is plain.__globals__:
            return {name: value for name, value in frame.f_locals.items() if name in wanted}
        frame = frame.f_back
    return {}


def parameters_of(
    function: Callable[..., object], *, tool_name: str, names: Mapping[str, Any]
) -> list[Parameter]:
    """List what a call must or may be given; what a partial has fixed by keyword is left out.

    Args:
        function: The function.
        tool_name: Said in errors.
        names: More names that annotations may use, from `local_names`.

    Raises:
        TypeError: A parameter cannot be described; the message names it.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tool {tool_name!r}: {error}") from error
    fixed = function.keywords if isinstance(function, partial) else {}
    namespace = {"ToolContext": ToolContext, **_globals(function)}
    return [
        _parameter(parameter, f"tool {tool_name!r}: parameter {parameter.name!r}", namespace, dict(names))
        for parameter in signature.parameters.values()
        if parameter.name not in fixed
    ]


def _parameter(
    parameter: inspect.Parameter, where: str, namespace: dict[str, Any], names: dict[str, Any]
) -> Parameter:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise TypeError(f"{where}: {stars}{parameter.name} has no schema; name each parameter")
    if parameter.annotation is parameter.empty:
        hint = "register the bound method" if parameter.name == "self" else "annotate it"
        raise TypeError(f"{where} has no annotation; {hint}")
    try:
        annotation = _resolved(parameter.annotation, namespace, names)
    except Exception as error:
        # Evaluating runs what the user wrote, so that anything may be raised; a name known to type
        # checkers only is the usual case.
        raise TypeError(f"{where}: its annotation {parameter.annotation!r} means nothing: {error}") from error
    positional = parameter.kind is parameter.POSITIONAL_ONLY
    return Parameter(
        name=parameter.name, annotation=annotation, default=parameter.default, positional=positional
    )


def _resolved(annotation: object, namespace: dict[str, Any], names: dict[str, Any]) -> Any:
    # One by one, not for the whole function: the return type is nobody's business here and may be a name
    # that exists for type checkers only.
    holder: Any = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, namespace, names, include_extras=True)["it"]


def _globals(function: Callable[..., object]) -> dict[str, Any]:
    found: dict[str, Any] = getattr(plain_function(function), "__globals__", {})
    return found
