"""How an endpoint becomes a client's method: its name, text and signature stay described once."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["described_by"]

F = TypeVar("F", bound="Callable[..., Any]")


def described_by(build: Callable[..., Any], *, iterated: bool = False) -> Callable[[F], F]:
    """Give a method the description of the endpoint that it calls, for `help()` and editors.

    Args:
        build: The endpoint.
        iterated: Whether the method iterates over what a `list_…` endpoint lists.
    """
    name, text = _iterated(build) if iterated else (build.__name__, build.__doc__)

    def describe(method: F) -> F:
        signature = inspect.signature(build)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what `inspect` asks for
            parameters=[this, *signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        method.__name__ = method.__qualname__ = name
        method.__doc__ = text
        return method

    return describe


def _iterated(build: Callable[..., Any]) -> tuple[str, str]:
    _, _, parameters = (build.__doc__ or "").partition("\n\n")
    summary = (
        f"Iterate over everything that `{build.__name__}` lists, whatever the number of pages.\n\n"
        "    Each page is fetched, with retries of its own, when iteration reaches it. An object that the\n"
        "    server repeats is yielded once; a list that says it goes on and shows no way to is an\n"
        "    `APIResponseError`."
    )
    return build.__name__.replace("list_", "iter_"), f"{summary}\n\n{parameters}"
