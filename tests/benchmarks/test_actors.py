"""An idle actor on the shared loop costs a fraction of one with a thread of its own."""

from __future__ import annotations

import pytest
from actors import LOOP, THREADING, measured, row

pytestmark = pytest.mark.alone


def test_an_idle_loop_actor_takes_6_kb_and_a_fraction_of_a_threading_actor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    threading_actor = measured(THREADING, 1_000)
    loop_actor = measured(LOOP, 1_000)
    many = measured(LOOP, 10_000)
    with capsys.disabled():
        print("\n" + row(THREADING, 1_000, threading_actor, threading_actor))
        print(row(LOOP, 1_000, loop_actor, threading_actor))
        print(row(LOOP, 10_000, many, threading_actor))
    assert many.idle_bytes <= 6_000
    assert 4 * many.idle_bytes <= threading_actor.idle_bytes
    assert 3 * loop_actor.start_s <= threading_actor.start_s
