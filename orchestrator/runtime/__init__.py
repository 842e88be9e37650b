"""The actor type without a thread of its own, and the one loop thread that all such actors share."""

from __future__ import annotations

from orchestrator.runtime.actor import LoopActor, LoopActorRef
from orchestrator.runtime.future import LoopFuture
from orchestrator.runtime.loop import (
    LoopThread,
    acquire,
    on_loop_thread,
    refuse_blocking,
    refuse_blocking_on_running_loop,
)

__all__ = [
    "LoopActor",
    "LoopActorRef",
    "LoopFuture",
    "LoopThread",
    "acquire",
    "on_loop_thread",
    "refuse_blocking",
    "refuse_blocking_on_running_loop",
]
