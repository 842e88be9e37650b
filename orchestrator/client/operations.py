"""How the endpoints become the clients' methods, described once: `AsyncOperations` and `BlockingOperations`.

Owns the two tables of names and the way each method gets its name, text and signature. Knows nothing of how a
call is performed: that is the clients' own part, stated in `AsyncPerformer` and `BlockingPerformer`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from orchestrator.client import endpoints
from orchestrator.client.pages import Listed, Pager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from orchestrator.client.call import Call
    from orchestrator.client.stream import AsyncEventStream, EventStream
    from orchestrator.protocol.objects import Page, Run

__all__ = ["AsyncOperations", "BlockingOperations"]

F = TypeVar("F", bound="Callable[..., Any]")
P = ParamSpec("P")
T = TypeVar("T")
L = TypeVar("L", bound=Listed)


class AsyncPerformer(Protocol):
    """What the asynchronous methods stand on."""

    async def _perform(self, call: Call[T]) -> T: ...

    def _iterate(self, pager: Pager[L]) -> AsyncIterator[L]: ...

    def _stream(self, call: Call[Run]) -> AbstractAsyncContextManager[AsyncEventStream]: ...


class BlockingPerformer(Protocol):
    """What the blocking methods stand on."""

    def _perform(self, call: Call[T]) -> T: ...

    def _iterate(self, pager: Pager[L]) -> Iterator[L]: ...

    def _stream(self, call: Call[Run]) -> AbstractContextManager[EventStream]: ...


def _described_by(build: Callable[..., Any], *, iterated: bool = False) -> Callable[[F], F]:
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


def _async_method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncPerformer, P], Coroutine[Any, Any, T]]:
    @_described_by(build)
    async def method(self: AsyncPerformer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._perform(build(*args, **kwargs))

    return method


def _async_iteration(
    build: Callable[P, Call[Page[L]]],
) -> Callable[Concatenate[AsyncPerformer, P], AsyncIterator[L]]:
    @_described_by(build, iterated=True)
    def method(self: AsyncPerformer, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[L]:
        return self._iterate(Pager(build(*args, **kwargs)))

    return method


def _async_stream(
    build: Callable[P, Call[Run]],
) -> Callable[Concatenate[AsyncPerformer, P], AbstractAsyncContextManager[AsyncEventStream]]:
    @_described_by(build)
    def method(
        self: AsyncPerformer, /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[AsyncEventStream]:
        return self._stream(build(*args, **kwargs))

    return method


def _blocking_method(build: Callable[P, Call[T]]) -> Callable[Concatenate[BlockingPerformer, P], T]:
    @_described_by(build)
    def method(self: BlockingPerformer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._perform(build(*args, **kwargs))

    return method


def _blocking_iteration(
    build: Callable[P, Call[Page[L]]],
) -> Callable[Concatenate[BlockingPerformer, P], Iterator[L]]:
    @_described_by(build, iterated=True)
    def method(self: BlockingPerformer, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[L]:
        return self._iterate(Pager(build(*args, **kwargs)))

    return method


def _blocking_stream(
    build: Callable[P, Call[Run]],
) -> Callable[Concatenate[BlockingPerformer, P], AbstractContextManager[EventStream]]:
    @_described_by(build)
    def method(
        self: BlockingPerformer, /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractContextManager[EventStream]:
        return self._stream(build(*args, **kwargs))

    return method


class AsyncOperations:
    """Every operation of the protocol, awaited."""

    create_assistant = _async_method(endpoints.create_assistant)
    get_assistant = _async_method(endpoints.get_assistant)
    modify_assistant = _async_method(endpoints.modify_assistant)
    delete_assistant = _async_method(endpoints.delete_assistant)
    list_assistants = _async_method(endpoints.list_assistants)
    iter_assistants = _async_iteration(endpoints.list_assistants)

    create_thread = _async_method(endpoints.create_thread)
    get_thread = _async_method(endpoints.get_thread)
    modify_thread = _async_method(endpoints.modify_thread)
    delete_thread = _async_method(endpoints.delete_thread)

    create_message = _async_method(endpoints.create_message)
    get_message = _async_method(endpoints.get_message)
    modify_message = _async_method(endpoints.modify_message)
    delete_message = _async_method(endpoints.delete_message)
    list_messages = _async_method(endpoints.list_messages)
    iter_messages = _async_iteration(endpoints.list_messages)

    create_run = _async_method(endpoints.create_run)
    create_thread_and_run = _async_method(endpoints.create_thread_and_run)
    get_run = _async_method(endpoints.get_run)
    modify_run = _async_method(endpoints.modify_run)
    cancel_run = _async_method(endpoints.cancel_run)
    list_runs = _async_method(endpoints.list_runs)
    iter_runs = _async_iteration(endpoints.list_runs)
    submit_tool_outputs = _async_method(endpoints.submit_tool_outputs)

    get_run_step = _async_method(endpoints.get_run_step)
    list_run_steps = _async_method(endpoints.list_run_steps)
    iter_run_steps = _async_iteration(endpoints.list_run_steps)

    stream_run = _async_stream(endpoints.stream_run)
    stream_thread_and_run = _async_stream(endpoints.stream_thread_and_run)
    stream_tool_outputs = _async_stream(endpoints.stream_tool_outputs)


class BlockingOperations:
    """Every operation of the protocol, blocking."""

    create_assistant = _blocking_method(endpoints.create_assistant)
    get_assistant = _blocking_method(endpoints.get_assistant)
    modify_assistant = _blocking_method(endpoints.modify_assistant)
    delete_assistant = _blocking_method(endpoints.delete_assistant)
    list_assistants = _blocking_method(endpoints.list_assistants)
    iter_assistants = _blocking_iteration(endpoints.list_assistants)

    create_thread = _blocking_method(endpoints.create_thread)
    get_thread = _blocking_method(endpoints.get_thread)
    modify_thread = _blocking_method(endpoints.modify_thread)
    delete_thread = _blocking_method(endpoints.delete_thread)

    create_message = _blocking_method(endpoints.create_message)
    get_message = _blocking_method(endpoints.get_message)
    modify_message = _blocking_method(endpoints.modify_message)
    delete_message = _blocking_method(endpoints.delete_message)
    list_messages = _blocking_method(endpoints.list_messages)
    iter_messages = _blocking_iteration(endpoints.list_messages)

    create_run = _blocking_method(endpoints.create_run)
    create_thread_and_run = _blocking_method(endpoints.create_thread_and_run)
    get_run = _blocking_method(endpoints.get_run)
    modify_run = _blocking_method(endpoints.modify_run)
    cancel_run = _blocking_method(endpoints.cancel_run)
    list_runs = _blocking_method(endpoints.list_runs)
    iter_runs = _blocking_iteration(endpoints.list_runs)
    submit_tool_outputs = _blocking_method(endpoints.submit_tool_outputs)

    get_run_step = _blocking_method(endpoints.get_run_step)
    list_run_steps = _blocking_method(endpoints.list_run_steps)
    iter_run_steps = _blocking_iteration(endpoints.list_run_steps)

    stream_run = _blocking_stream(endpoints.stream_run)
    stream_thread_and_run = _blocking_stream(endpoints.stream_thread_and_run)
    stream_tool_outputs = _blocking_stream(endpoints.stream_tool_outputs)
