"""A token provider's token: asked for once, kept, and asked for again when a server refuses it.

Owns how many callers share one question to the provider, on an event loop and between threads, and the
rule that a refused token is replaced once for each request. Knows no header and no server, and never shows
a token.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from orchestrator.client.callables import is_async
from orchestrator.client.headers import fits_header
from orchestrator.errors import APIConnectionError, APITimeout, AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.client.call import Call
    from orchestrator.client.settings import Request

__all__ = ["AsyncTokens", "BlockingTokens", "Token", "TokenProvider", "authorized", "authorized_blocking"]

T = TypeVar("T")

TokenProvider: TypeAlias = Callable[[], str | Awaitable[str]]
"""Returns a bearer token, or, for the asynchronous client only, something to await for one."""

WAIT_SHARE: Final = 0.2
"""The part of a request's time that a token may take; with the waits for a connection less than the whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """One answer of a provider; compared by identity, since the next one may have the same text.

    Raises:
        ValueError: It cannot stand in a header; the text does not repeat it.
    """

    value: str = field(repr=False)

    def __post_init__(self) -> None:
        if not fits_header(self.value):
            raise ValueError(f"a token provider must return text that fits a header, got {_kind(self.value)}")


def _kind(value: object) -> str:
    return type(value).__name__


class _Tokens:
    """What both share: a provider and the last token it gave."""

    def __init__(self, provider: TokenProvider) -> None:
        self._provider = provider
        self._token: Token | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def identity(self) -> object:
        """What is equal for all askers of one provider, and can be hashed."""
        try:
            hash(self._provider)
        except TypeError:
            return id(self._provider)
        return self._provider

    def _kept(self, refused: Token | None) -> Token | None:
        return None if self._token is refused else self._token


class _Asking:
    """One question to a provider, and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[Token]) -> None:
        self.task = task
        self.waiting = 0
        # A failure that nobody waits for any more is nobody's.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class AsyncTokens(_Tokens):
    """The tokens of one provider, for one event loop.

    Args:
        provider: A coroutine function is awaited on the loop; anything else runs in a thread, which goes on
            when nobody waits for it any more.
    """

    def __init__(self, provider: TokenProvider) -> None:
        super().__init__(provider)
        self._asking: _Asking | None = None

    async def get(self, *, refused: Token | None = None) -> Token:
        """Return the token; those who come while the provider is being asked share its answer.

        Args:
            refused: The token that a server refused, or `None`.
        """
        kept = self._kept(refused)
        if kept is not None:
            return kept
        if self._asking is None or self._asking.task.done():
            self._asking = _Asking(asyncio.create_task(self._ask(), name="token-provider"))
        asking = self._asking
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
            # A thread cannot be taken back: who comes next shares what it finds.
            if not asking.waiting and is_async(self._provider):
                self._asking = None if self._asking is asking else self._asking
                asking.task.cancel()

    async def _ask(self) -> Token:
        value = self._provider() if is_async(self._provider) else await _in_thread(self._provider)
        self._token = token = Token(await value if inspect.isawaitable(value) else value)
        return token


async def _in_thread(provider: TokenProvider) -> str | Awaitable[str]:
    # Not the loop's own executor: whatever else waits there would delay every request. And a daemon, because
    # the interpreter joins the threads of executors at its exit: one that never returns would keep it alive.
    answer: Future[str | Awaitable[str]] = Future()
    threading.Thread(target=_tell, args=(answer, provider), name="token-provider", daemon=True).start()
    return await asyncio.wrap_future(answer)


def _tell(answer: Future[str | Awaitable[str]], provider: TokenProvider) -> None:
    if not answer.set_running_or_notify_cancel():
        return  # nobody waits any more
    try:
        value = provider()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the one who waits
        answer.set_exception(error)
    else:
        answer.set_result(value)


class BlockingTokens(_Tokens):
    """The tokens of one provider, for any threads.

    Args:
        provider: Called on the thread of the request that needs a token, one at a time.

    Raises:
        TypeError: It is a coroutine function.
    """

    def __init__(self, provider: TokenProvider) -> None:
        if is_async(provider):
            raise TypeError(
                "ThreadsClient cannot await api_key: pass a plain function, or AsyncThreadsClient"
            )
        super().__init__(provider)
        self._lock = threading.Lock()
        self._asking: Future[Token] | None = None

    def get(self, *, refused: Token | None = None, wait_s: float) -> Token:
        """Return the token; blocks. Those who come while the provider is being asked share its answer.

        Args:
            refused: The token that a server refused, or `None`.
            wait_s: How long to wait for another thread's question; the thread that asks takes its time.
        """
        with self._lock:
            kept = self._kept(refused)
            if kept is not None:
                return kept
            asking, is_first = self._asking, self._asking is None
            if asking is None:
                asking = self._asking = Future()
        if is_first:
            self._ask(asking)
        return asking.result(wait_s)

    def _ask(self, asking: Future[Token]) -> None:
        try:
            value = self._provider()
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise TypeError("ThreadsClient cannot await what api_key returned")
            token = Token(value)
        except BaseException as error:
            with self._lock:
                self._asking = None
            if isinstance(error, Exception):
                asking.set_exception(error)
                return
            # An interrupt is the business of the thread that it reached.
            asking.set_exception(RuntimeError("the thread that asked for the token was interrupted"))
            raise
        with self._lock:
            self._token, self._asking = token, None
        asking.set_result(token)


async def authorized(call: Call[Any], request: Request, send: Callable[[Request], Awaitable[T]]) -> T:
    """Send a request with its token, and once more with a new one when a server refuses the first.

    Args:
        call: What is asked.
        request: The request, without a token if a provider gives it.
        send: Sends it, and raises what the answer means.

    Raises:
        APIConnectionError: The provider gave no token: nothing was sent, or what was sent was refused.
        AuthenticationError: The new token was refused, too.
    """
    tokens = request.tokens
    if not isinstance(tokens, AsyncTokens):
        return await send(request)
    ends = time.monotonic() + request.timeout_s
    wait_s = request.timeout_s * WAIT_SHARE
    with _explained(call):
        async with asyncio.timeout(wait_s):
            token = await tokens.get()
    try:
        return await send(request.bearing(token, timeout_s=_left_s(call, ends)))
    except AuthenticationError:
        pass  # the server did nothing: the request may go out again, once
    with _explained(call):
        async with asyncio.timeout(wait_s):
            token = await tokens.get(refused=token)
    return await send(request.bearing(token, timeout_s=_left_s(call, ends)))


def authorized_blocking(call: Call[Any], request: Request, send: Callable[[Request], T]) -> T:
    """Do as `authorized` does, blocking."""
    tokens = request.tokens
    if not isinstance(tokens, BlockingTokens):
        return send(request)
    ends = time.monotonic() + request.timeout_s
    wait_s = request.timeout_s * WAIT_SHARE
    with _explained(call):
        token = tokens.get(wait_s=wait_s)
    try:
        return send(request.bearing(token, timeout_s=_left_s(call, ends)))
    except AuthenticationError:
        pass  # as above
    with _explained(call):
        token = tokens.get(refused=token, wait_s=wait_s)
    return send(request.bearing(token, timeout_s=_left_s(call, ends)))


@contextmanager
def _explained(call: Call[Any]) -> Iterator[None]:
    """Turn whatever a provider raises into an `APIError`, whose text does not repeat its own."""
    try:
        yield
    except TimeoutError as error:
        raise APITimeout(
            "nothing was sent (the token provider took too long)",
            method=call.method,
            path=call.path,
            sent=False,
        ) from error
    except Exception as error:  # a provider may raise anything
        raise APIConnectionError(
            f"nothing was sent (the token provider failed: {_kind(error)})",
            method=call.method,
            path=call.path,
            sent=False,
        ) from error


def _left_s(call: Call[Any], ends: float) -> float:
    left_s = ends - time.monotonic()
    if left_s <= 0:
        raise APITimeout(
            "nothing was sent (the token came too late)", method=call.method, path=call.path, sent=False
        )
    return left_s
