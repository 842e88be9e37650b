"""What users hand in to be called: whether its result would have to be awaited.

Knows nothing of why it is called.
"""

from __future__ import annotations

import inspect

__all__ = ["is_async"]


def is_async(function: object) -> bool:
    """Say whether calling something, a function or an object with `__call__`, gives what must be awaited."""
    candidates = (function, getattr(function, "__call__", None))  # noqa: B004 - the method itself is asked for
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in candidates)
