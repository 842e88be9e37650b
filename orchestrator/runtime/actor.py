"""Actors without a thread or task of their own: Pykka's, run by callbacks on one shared loop thread.

It owns how a message is handled and how an actor ends; Pykka's dispatch (`_handle_receive`), its ways to stop
and its failure hook are used as they are. It refuses to wait: handlers are plain functions, and I/O belongs
into tasks (`LoopThread.create_task`) that tell the actor what came of it.

Pykka has no supervision: an exception in `on_start` stops the actor and calls nothing. `on_terminated` is
the one hook that is called whatever ended the actor; links, monitors and restarts are built on it.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import pykka
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop

from orchestrator.runtime.foreign_futures import refuse_to_wait_for_foreign_actors
from orchestrator.runtime.future import DerivedFuture, LoopFuture
from orchestrator.runtime.loop import acquire, refuse_waiting_on_loop
from orchestrator.runtime.mailbox import Mailbox
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from typing import Self

    from pykka._envelope import Envelope

    from orchestrator.runtime.loop import LoopThread

__all__ = ["LoopActor", "LoopActorRef"]

A = TypeVar("A", bound=pykka.Actor)

log = get_logger(__name__)
# Where Pykka documents that exceptions answered to a caller are logged.
pykka_log = logging.getLogger("pykka")

_HOOKS = ("on_start", "on_stop", "on_failure", "on_receive", "on_terminated")
_PLAIN_FUNCTIONS = (
    "handlers of a LoopActor are plain functions: start a task with loop_thread.create_task() and have it "
    "tell the actor what came of it"
)


class _Flag(threading.Event):
    """An event that is no more than a flag until somebody waits for it: hardly anybody waits for an actor.

    Pykka's own consists of eight objects, which the garbage collector visits for each run that is open.
    Without a lock, which a fork could copy while it is held: who sets it and who waits each do their part
    first and look at the other's then.
    """

    _waited_for: threading.Event | None = None

    def __init__(self) -> None:  # not the event's own: what it would make is what is to be spared
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        if self._waited_for is not None:
            self._waited_for.set()

    def clear(self) -> None:
        raise RuntimeError("an actor that has stopped does not go on")

    def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            return True
        event: threading.Event = vars(self).setdefault("_waited_for", threading.Event())
        return self._flag or event.wait(timeout)


class LoopActorRef(pykka.ActorRef[A]):
    """A reference to a `LoopActor`: Pykka's, except that it refuses to block the actors' loop thread.

    In a forked child a reference made by the parent is dead, and its errors say so.
    """

    actor_inbox: Mailbox

    def is_alive(self) -> bool:
        """Whether the actor has not stopped yet; False in a process forked since it was started."""
        return not (self.actor_stopped.is_set() or self.actor_inbox.inherited)

    def tell(self, message: Any) -> None:
        """Send a message and wait for nothing; from any thread.

        Raises:
            pykka.ActorDeadError: The actor has stopped, or belongs to the parent of this forked process.
        """
        try:
            super().tell(message)
        except pykka.ActorDeadError:
            if self.actor_inbox.inherited:
                raise self._left_behind() from None
            raise

    @overload
    def ask(
        self, message: Any, *, block: Literal[False], timeout: float | None = None
    ) -> LoopFuture[Any]: ...
    @overload
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any: ...
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and return the answer, or with `block=False` a future of it; from any thread.

        Args:
            message: Anything.
            block: Whether to wait for the answer.
            timeout: The most seconds to wait for it; None waits as long as it takes.

        Raises:
            RuntimeError: It would block the actors' loop thread; nothing was sent.
            pykka.Timeout: No answer came in time; the message is handled nevertheless.
            pykka.ActorDeadError: The actor has stopped, or belongs to the parent of this forked process.
            BaseException: What handling the message raised.
        """
        if block:
            refuse_waiting_on_loop(timeout)
        if self.actor_inbox.inherited:
            future: LoopFuture[Any] = LoopFuture()
            future.set_exception((pykka.ActorDeadError, self._left_behind(), None))
        else:
            future = cast("LoopFuture[Any]", super().ask(message, block=False))
        return future.get(timeout=timeout) if block else future

    @overload
    def stop(self, *, block: Literal[True], timeout: float | None = None) -> bool: ...
    @overload
    def stop(self, *, block: Literal[False], timeout: float | None = None) -> LoopFuture[bool]: ...
    @overload
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | LoopFuture[bool]: ...
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | LoopFuture[bool]:
        """Ask the actor to stop after the messages it has; from any thread, repeatable.

        Args:
            block: Whether to wait until it has stopped and `LoopActor.on_terminated` has run.
            timeout: The most seconds to wait for that; None waits as long as it takes.

        Returns:
            Whether the actor was alive, or with `block=False` a future of that.

        Raises:
            RuntimeError: It would block the actors' loop thread; nothing was sent.
            pykka.Timeout: It did not stop in time; it will.
        """
        if block:
            refuse_waiting_on_loop(timeout)
        asked = self.ask(_ActorStop(), block=False)
        stopped = DerivedFuture((asked,), lambda: _was_alive(asked))
        return stopped.get(timeout=timeout) if block else stopped

    def _left_behind(self) -> pykka.ActorDeadError:
        return pykka.ActorDeadError(
            f"{self} belongs to the parent of this forked process: start new actors in the child"
        )


class LoopActor(pykka.Actor):
    """An actor whose messages are handled by callbacks on the actors' loop thread.

    Everything Pykka says of actors holds, and besides:

    * Handlers and hooks are plain functions on that thread. They never wait: a blocking `get`, `ask` or
      `stop` raises `RuntimeError` there, and one that takes long is logged as `actor.slow_handler`. A
      coroutine function is a `TypeError`, as a hook when the class is made, else when it is called.
    * Messages are handled in order, at most `MESSAGES_PER_TURN` before the other actors get their turn.
      What is sent before `on_start` has run waits for it.
    * Every message that was asked is answered, also when it arrives during or after the end.
    * The loop thread lives as long as any actor does; no other set-up is needed.

    Attributes:
        loop_thread: The thread this actor lives on; set before `on_start` is called.
    """

    actor_inbox: Mailbox
    loop_thread: LoopThread

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hook in _HOOKS:
            if inspect.iscoroutinefunction(getattr(cls, hook)):
                raise TypeError(f"{cls.__name__}.{hook} is a coroutine function; {_PLAIN_FUNCTIONS}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_stopped = _Flag()
        self._actor_ref = LoopActorRef(self)
        self._cause: BaseException | None = None

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> LoopActorRef[Self]:
        """Make an actor and start it; from any thread, not blocking.

        Args:
            *args: Passed to the class.
            **kwargs: Passed to the class.

        Returns:
            A reference to the actor. `on_start` may not have run yet.
        """
        return cast("LoopActorRef[Self]", super().start(*args, **kwargs))

    @property
    def actor_ref(self) -> LoopActorRef[Self]:
        """A reference to this actor."""
        return cast("LoopActorRef[Self]", self._actor_ref)

    def on_terminated(self, cause: BaseException | None) -> None:
        """Learn that the actor has ended: called exactly once for every actor that was started.

        On the loop thread, after `on_stop` or `on_failure` and after every message left was answered; before
        the answer to a request to stop. An exception raised here is logged and changes nothing.

        Args:
            cause: None after a stop; else what `on_start` or the handling of a told message raised, or a
                `BaseException` that is no `Exception`, whatever raised it. What `on_stop` raises is logged
                by Pykka and is no cause.
        """

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox()

    @staticmethod
    def _create_future() -> LoopFuture[Any]:
        return LoopFuture()

    def _start_actor_loop(self) -> None:
        refuse_to_wait_for_foreign_actors()
        try:
            self.loop_thread = acquire()
        except BaseException:  # the system refuses the thread
            # Pykka has registered this actor already, and `stop_all` would wait for it for ever.
            pykka.ActorRegistry.unregister(self.actor_ref)
            self.actor_stopped.set()
            self.actor_inbox.close(str(self.actor_ref))
            raise
        self.actor_inbox.open(self.loop_thread, self._live)

    def _live(self, envelope: Envelope[Any] | None) -> None:
        started = time.perf_counter()
        try:
            if envelope is None:
                self._begin()
            else:
                self._answer(envelope)
        except BaseException as error:  # noqa: BLE001 - what escaped would leave the loop and take all actors along
            self._collapse(error)
        took_s = time.perf_counter() - started
        if took_s > self.loop_thread.slow_handler_s:
            log.warning(
                "actor.slow_handler",
                actor=type(self).__name__,
                urn=self.actor_urn,
                handling=_name_of(envelope),
                took_s=round(took_s, 3),
            )
        if self.actor_stopped.is_set():
            self._end()

    def _begin(self) -> None:
        try:
            _refuse_coroutine(self.on_start())  # type: ignore[func-returns-value]  # a wrong override may
        except Exception as error:  # noqa: BLE001 - Pykka stops the actor and calls nothing
            self._cause = error
            self._handle_failure(*sys.exc_info())

    def _answer(self, envelope: Envelope[Any]) -> None:
        reply_to = envelope.reply_to
        try:
            response = self._handle_receive(envelope.message)
            _refuse_coroutine(response)
        except Exception as error:  # noqa: BLE001 - it goes to the caller, or ends the actor
            if reply_to is None:
                self._fail(error)
            else:
                pykka_log.info("Exception returned from %s to caller:", self, exc_info=True)
                reply_to.set_exception()
        except BaseException:
            if reply_to is not None:
                reply_to.set_exception()
            raise
        else:
            if self.actor_stopped.is_set():
                self._end()
            if reply_to is not None:
                reply_to.set(response)

    def _fail(self, error: Exception) -> None:
        self._cause = error
        self._handle_failure(*sys.exc_info())
        try:
            self.on_failure(*sys.exc_info())
        except Exception:  # noqa: BLE001 - logged, as Pykka does; the actor has failed already
            self._handle_failure(*sys.exc_info())

    def _collapse(self, error: BaseException) -> None:
        """End this actor, and as Pykka does every other one unless the error is ordinary."""
        self._cause = error
        pykka_log.debug("%r in %s. Stopping all actors.", error, self)
        log.error("actor.collapsed", actor=type(self).__name__, urn=self.actor_urn, exc_info=error)
        if not self.actor_stopped.is_set():
            try:
                self._stop()
            except BaseException:  # on_stop may be what raises
                log.exception("actor.on_stop_failed", actor=type(self).__name__, urn=self.actor_urn)
        if not isinstance(error, Exception):
            pykka.ActorRegistry.stop_all(block=False)

    def _end(self) -> None:
        if self.actor_inbox.closed:
            return
        self.actor_inbox.close(str(self.actor_ref))
        # Not kept: the traceback refers to this actor.
        cause, self._cause = self._cause, None
        try:
            self.on_terminated(cause)
        except BaseException:  # the lease must be given back whatever happens
            log.exception("actor.on_terminated_failed", actor=type(self).__name__, urn=self.actor_urn)
        self.loop_thread.release()


def _was_alive(asked: LoopFuture[Any]) -> bool:
    try:
        asked.get(timeout=0)
    except pykka.ActorDeadError:
        return False
    except BaseException:  # noqa: BLE001 - on_stop raised it, not the caller's business; the actor has stopped
        return True
    return True


def _refuse_coroutine(response: object) -> None:
    if isinstance(response, CoroutineType):
        response.close()
        raise TypeError(f"{response.__qualname__} is a coroutine function; {_PLAIN_FUNCTIONS}")


def _name_of(envelope: Envelope[Any] | None) -> str:
    if envelope is None:
        return "on_start"
    if isinstance(envelope.message, ProxyCall | ProxyGetAttr | ProxySetAttr):
        return ".".join(envelope.message.attr_path)
    message = envelope.message
    # Several that were sent as one.
    kinds = {type(one).__name__: None for one in (message if isinstance(message, tuple) else (message,))}
    return ", ".join(kinds)
