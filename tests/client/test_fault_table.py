"""The table of what is sent how often, held to what is promised: every fault, operation and client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from drivers import QUICK, both
from fault_table import (
    ANSWER,
    RECONCILABLE,
    REPEATABLE,
    UNREPEATABLE,
    Fault,
    Operation,
    Outcome,
    observed,
)

from orchestrator.client import endpoints

Promise: TypeAlias = Callable[[Fault, bool], Outcome]
"""What comes of an uncertain fault, shown once or always."""

TIMEOUTS_S = (0.05, 0.5, 5.0)
"""For what ends by a timeout: a machine that is too busy for one is given the next."""

situations = pytest.mark.parametrize(
    ("always", "is_timed"),
    [
        pytest.param(False, False, id="once"),
        pytest.param(True, False, id="always"),
        pytest.param(False, True, id="stalled once"),
        pytest.param(True, True, id="stalled always", marks=pytest.mark.long),
    ],
)


def repeated(fault: Fault, always: bool) -> Outcome:
    if fault.meaning == "uncertain, not again":
        return Outcome(1, fault.error)
    return Outcome(QUICK.attempts, fault.error) if always else Outcome(2, ANSWER)


def raised(fault: Fault, always: bool) -> Outcome:
    return Outcome(1, "AmbiguousOutcome")


def expected(fault: Fault, always: bool, when_uncertain: Promise) -> Outcome:
    match fault.meaning:
        case "never sent":
            return Outcome(0, fault.error)
        case "refused":
            return Outcome(QUICK.attempts, fault.error) if always else Outcome(2, ANSWER)
        case "final" | "begun":
            return Outcome(1, fault.error)
        case "ok":
            return Outcome(1, ANSWER)
        case "uncertain" | "uncertain, not again":
            return when_uncertain(fault, always)


def check(kind: str, operation: Operation, always: bool, is_timed: bool, when_uncertain: Promise) -> None:
    faults = [fault for fault in operation.faults if fault.is_timed == is_timed]
    promised = {fault.name: expected(fault, always, when_uncertain) for fault in faults}
    for timeout_s in TIMEOUTS_S if is_timed else (10.0,):
        table = observed(kind, operation, faults, always=always, timeout_s=timeout_s)
        if when_uncertain is raised:
            # Not even a busy machine excuses this.
            assert all(table[fault.name].sent <= 1 for fault in faults if fault.meaning == "uncertain")
        if table == promised:
            return
    assert table == promised


@both
@situations
@pytest.mark.parametrize("operation", REPEATABLE, ids=str)
def test_what_does_no_harm_twice_is_sent_until_it_is_answered(
    kind: str, operation: Operation, always: bool, is_timed: bool
) -> None:
    check(kind, operation, always, is_timed, repeated)


@both
@situations
@pytest.mark.parametrize("operation", UNREPEATABLE, ids=str)
def test_what_may_have_been_done_is_not_sent_again(
    kind: str, operation: Operation, always: bool, is_timed: bool
) -> None:
    check(kind, operation, always, is_timed, raised)


def looked_up(fault: Fault, always: bool) -> Outcome:
    if not always:
        return Outcome(2, ANSWER)
    looks = 1 if fault.meaning == "uncertain, not again" else QUICK.attempts
    return Outcome(1 + looks, "AmbiguousOutcome")


def repeated_and_looked_up(fault: Fault, always: bool) -> Outcome:
    if fault.meaning == "uncertain, not again":
        return Outcome(2, fault.error)
    return Outcome(2 * QUICK.attempts, fault.error) if always else Outcome(2, ANSWER)


RECONCILED = [
    pytest.param(
        operation,
        repeated_and_looked_up if operation.name == "cancel_run" else looked_up,
        id=str(operation),
    )
    for operation in RECONCILABLE
]


@both
@situations
@pytest.mark.parametrize(("operation", "when_uncertain"), RECONCILED)
def test_what_can_be_looked_up_is_not_sent_blindly(
    kind: str, operation: Operation, when_uncertain: Promise, always: bool, is_timed: bool
) -> None:
    check(kind, operation, always, is_timed, when_uncertain)


def test_no_operation_is_missing() -> None:
    tested = {operation.name for operation in (*REPEATABLE, *UNREPEATABLE, *RECONCILABLE)}
    assert tested == set(endpoints.__all__) - {"CallOptions"}
