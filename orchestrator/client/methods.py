"""How an endpoint becomes a client's method: its name, text and signature stay described once."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["described_by"]

F = TypeVar("F", bound="Callable[..., Any]")


def described_by(build: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the description of the endpoint that it calls, for `help()` and editors.

    Args:
        build: The endpoint.
    """

    def describe(method: F) -> F:
        signature = inspect.signature(build)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what `inspect` asks for
            parameters=[this, *signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        method.__name__ = method.__qualname__ = build.__name__
        method.__doc__ = build.__doc__
        return method

    return describe
