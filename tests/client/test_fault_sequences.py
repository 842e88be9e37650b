"""Randomised faults: nothing is ever created twice, nothing hangs, and what the client says is what happened.

Every sequence is one call with its own thread on a shared server of real sockets, drawn from a seed that a
failure names. A request that takes effect after its connection died does so within `settle_s`; what lies
beyond that is tested in `test_reconciliation.py`, where it is reported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from drivers import KEY
from faulty_server import FaultyServer
from ledger_server import FAULTS, PLAN, Ledger, Plan

from orchestrator.client import AsyncThreadsClient, RetryPolicy, ThreadsClient
from orchestrator.errors import AmbiguousOutcome, APIError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

LATE_S = 0.02
POLICY = RetryPolicy(base_s=0.002, cap_s=0.01, settle_s=5 * LATE_S, deadline_s=20.0)
TIMEOUT_S = 0.4
AT_ONCE = 24

MAKERS = ("create_run", "stream_run", "create_message")
SUBMITTERS = ("submit_tool_outputs", "stream_tool_outputs")
OUTPUTS = [{"tool_call_id": "call_0", "output": "5"}]


@dataclass
class Sequence:
    """One call and what it meets."""

    seed: int
    operation: str
    plan: Plan
    ids: tuple[str, ...]
    fields: dict[str, Any]
    value: Any = None
    error: APIError | AmbiguousOutcome | None = None
    took_s: float = 0.0

    @property
    def thread_id(self) -> str:
        return f"thread_{self.seed}"

    @property
    def nonce(self) -> str:
        return f"n{self.seed}"


def drawn(seed: int, ledger: Ledger) -> Sequence:
    chance = random.Random(seed)
    operation = chance.choice((*MAKERS, *SUBMITTERS, "cancel_run"))
    faults = [
        chance.choice(FAULTS) if chance.random() < share else "none"
        for share in (0.95, 0.3, 0.3, 0.3, 0.3, *[0.5] * 12)
    ]
    plan = Plan(
        deque(faults),
        late_s=chance.random() * LATE_S,
        rounds=chance.choice((1, 1, 2)),
    )
    thread_id = f"thread_{seed}"
    ledger.plan(thread_id, plan, tool_run=operation not in MAKERS)
    ids: tuple[str, ...] = (thread_id,)
    fields: dict[str, Any] = {}
    if operation == "create_message":
        fields = {"nonce": f"n{seed}", "role": "user", "content": "hi"}
    elif operation in MAKERS:
        fields = {"nonce": f"n{seed}", "assistant_id": "asst_1"}
    else:
        ids = (thread_id, ledger.runs[thread_id][0]["id"])
        fields = {"tool_outputs": OUTPUTS} if operation in SUBMITTERS else {}
    return Sequence(seed, operation, plan, ids, fields | {"headers": {PLAN: thread_id}})


async def awaited(client: AsyncThreadsClient, sequence: Sequence) -> Any:
    method = getattr(client, sequence.operation)
    if not sequence.operation.startswith("stream"):
        return await method(*sequence.ids, **sequence.fields)
    async with method(*sequence.ids, **sequence.fields) as stream:
        return (await anext(stream)).data


def blocked(client: ThreadsClient, sequence: Sequence) -> Any:
    method = getattr(client, sequence.operation)
    if not sequence.operation.startswith("stream"):
        return method(*sequence.ids, **sequence.fields)
    with method(*sequence.ids, **sequence.fields) as stream:
        return next(stream).data


async def play_async(url: str, sequences: list[Sequence]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def play(sequence: Sequence) -> None:
        async with room:
            begun = time.monotonic()
            try:
                sequence.value = await awaited(client, sequence)
            except (APIError, AmbiguousOutcome) as error:
                sequence.error = error
            sequence.took_s = time.monotonic() - begun

    async with AsyncThreadsClient(url, api_key=KEY, retry=POLICY, timeout=TIMEOUT_S) as client:
        await asyncio.gather(*map(play, sequences))


def play_sync(url: str, sequences: list[Sequence]) -> None:
    def play(sequence: Sequence) -> None:
        begun = time.monotonic()
        try:
            sequence.value = blocked(client, sequence)
        except (APIError, AmbiguousOutcome) as error:
            sequence.error = error
        sequence.took_s = time.monotonic() - begun

    with (
        ThreadsClient(url, api_key=KEY, retry=POLICY, timeout=TIMEOUT_S) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for _ in pool.map(play, sequences):
            pass


def judge(sequence: Sequence, ledger: Ledger) -> str:
    """Compare what the client said with the ledger; the kind of ending."""
    ledger.settle(sequence.thread_id)
    if sequence.operation in MAKERS:
        done = ledger.marked(sequence.thread_id, sequence.nonce)
    elif sequence.operation in SUBMITTERS:
        done = ledger.accepted(sequence.thread_id)
    else:
        run = ledger.runs[sequence.thread_id][0]
        done = ["cancelled"] if run["status"] == "cancelling" else []
    assert len(done) <= 1, "done twice"
    assert sequence.took_s < POLICY.deadline_s, "past its deadline"
    if sequence.error is None:
        assert len(done) == 1, "said to be done"
        if sequence.operation in MAKERS:
            assert sequence.value.id == done[0]
        return "done"
    if isinstance(sequence.error, AmbiguousOutcome):
        assert sequence.operation != "cancel_run"
        return "ambiguous"
    if sequence.operation != "cancel_run":
        assert done == [], "said to have failed for good"
    return "failed"


@pytest.mark.parametrize("play", [play_async, play_sync])
@pytest.mark.parametrize(
    "number",
    [250, pytest.param(5_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_nothing_is_done_twice_whatever_becomes_of_the_answers(
    play: Callable[[str, list[Sequence]], Any], number: int
) -> None:
    first = int(os.environ.get("ORCHESTRATOR_SEED", "0"))
    ledger = Ledger()
    sequences = [drawn(seed, ledger) for seed in range(first, first + number)]
    with FaultyServer(default=ledger.step) as server:
        if play is play_async:
            asyncio.run(play_async(server.url, sequences))
        else:
            play_sync(server.url, sequences)
        endings = {"done": 0, "ambiguous": 0, "failed": 0}
        for sequence in sequences:
            try:
                endings[judge(sequence, ledger)] += 1
            except AssertionError as error:
                story = ledger.requests[sequence.thread_id]
                raise AssertionError(
                    f"seed {sequence.seed}: {sequence.operation} {error}: {story}, said {sequence.error!r}"
                ) from error
    log.info("%s", endings)
    # The faults bite, and most of them are got over.
    assert endings["ambiguous"] > number * 0.02
    assert endings["done"] > number * 0.5
