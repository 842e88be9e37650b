"""Signals to this very process: where the demo heeds them, and where it does not."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from orchestrator.demo.interruption import Interrupted, Interruptions, ignore_from_now_on

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does, the handlers of this process come back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def arrive(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_heeded_block_with_the_shell_s_code(number: int, code: int) -> None:
    with Interruptions() as interruptions:
        with pytest.raises(Interrupted) as caught, interruptions.heeded():
            arrive(number)
        assert caught.value.exit_code == code


def test_elsewhere_it_waits_for_the_next_heeded_block() -> None:
    reached = []
    with Interruptions() as interruptions:
        with interruptions.heeded():
            reached.append("before")
        arrive(signal.SIGTERM)
        reached.append("undisturbed")
        with pytest.raises(Interrupted) as caught, interruptions.heeded():
            reached.append("never")
        with interruptions.heeded():
            reached.append("after")
    assert caught.value.exit_code == 143
    assert reached == ["before", "undisturbed", "after"]


def test_what_handles_an_interruption_is_not_interrupted_itself() -> None:
    with Interruptions() as interruptions:
        with pytest.raises(Interrupted), interruptions.heeded(), ExitStack() as handling:
            handling.callback(arrive, signal.SIGINT)(signal.SIGINT)
        with pytest.raises(Interrupted), interruptions.heeded():
            pass


def test_the_handlers_of_before_come_back_and_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruptions() as interruptions, interruptions.heeded():
        arrive(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt):
        arrive(signal.SIGINT)


def test_once_the_exit_code_is_known_no_signal_changes_it() -> None:
    ignore_from_now_on()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        arrive(number)
