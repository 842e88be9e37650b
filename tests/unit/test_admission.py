"""Who may start when: places, threads, and what passes on when somebody leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.admission import Admission

if TYPE_CHECKING:
    from collections.abc import Sequence


def asked(admission: Admission, *runs: tuple[str, str | None]) -> list[str]:
    for key, thread_id in runs:
        admission.ask(key, thread_id)
    return admission.admitted()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run must be allowed at a time, got 0"):
        Admission(0)


def test_runs_start_in_the_order_they_came_and_never_more_than_the_limit() -> None:
    admission = Admission(2)
    assert asked(admission, ("a", None), ("b", None), ("c", None), ("d", None)) == ["a", "b"]
    assert admission.admitted() == []
    admission.leave("b")
    assert admission.admitted() == ["c"]
    admission.leave("a")
    admission.leave("c")
    assert admission.admitted() == ["d"]


def test_a_thread_has_one_run_at_a_time_and_passes_on_in_order() -> None:
    admission = Admission(10)
    assert asked(admission, ("a", "t"), ("b", "t"), ("c", "t")) == ["a"]
    assert admission.holder("t") == "a"
    assert admission.leave("a") == "b"
    assert admission.holder("t") == "b"
    assert admission.admitted() == ["b"]
    assert admission.leave("b") == "c"
    assert admission.admitted() == ["c"]
    assert admission.leave("c") is None
    assert admission.holder("t") is None


def test_a_run_whose_thread_is_held_keeps_nobody_behind_it_waiting() -> None:
    assert asked(Admission(3), ("a", "t"), ("b", "t"), ("c", "u"), ("d", None)) == ["a", "c", "d"]


def test_a_run_that_waited_for_its_thread_goes_before_those_who_came_later() -> None:
    admission = Admission(1)
    assert asked(admission, ("a", "t"), ("b", "t"), ("c", None)) == ["a"]
    admission.leave("a")
    assert admission.admitted() == ["b"]


def test_a_run_that_leaves_while_it_waits_for_a_place_gives_its_thread_on() -> None:
    admission = Admission(1)
    assert asked(admission, ("a", None), ("b", "t"), ("c", "t")) == ["a"]
    admission.leave("b")
    assert admission.holder("t") == "c"
    admission.leave("a")
    assert admission.admitted() == ["c"]


def test_a_run_that_leaves_while_it_waits_for_its_thread_is_passed_over() -> None:
    admission = Admission(10)
    assert asked(admission, ("a", "t"), ("b", "t"), ("c", "t")) == ["a"]
    admission.leave("b")
    admission.leave("a")
    assert admission.admitted() == ["c"]


def test_a_key_that_is_used_again_does_not_inherit_the_place_of_the_one_that_left() -> None:
    admission = Admission(10)
    assert asked(admission, ("a", "t"), ("b", "t")) == ["a"]
    admission.leave("b")
    assert asked(admission, ("b", "u")) == ["b"]
    assert admission.leave("a") is None
    assert admission.admitted() == []
    assert (admission.holder("t"), admission.holder("u")) == (None, "b")


def test_leaving_twice_or_without_having_come_does_nothing() -> None:
    admission = Admission(1)
    assert asked(admission, ("a", "t"), ("b", "t")) == ["a"]
    admission.leave("nobody")
    admission.leave("a")
    admission.leave("a")
    assert admission.admitted() == ["b"]
    assert admission.holder("t") == "b"


def test_a_run_holds_the_thread_that_it_made() -> None:
    admission = Admission(10)
    assert asked(admission, ("a", None)) == ["a"]
    admission.hold("a", "t")
    assert admission.holder("t") == "a"
    assert asked(admission, ("b", "t")) == []
    admission.leave("a")
    assert admission.admitted() == ["b"]


def test_a_run_that_has_a_thread_or_is_over_takes_no_other() -> None:
    admission = Admission(10)
    asked(admission, ("a", "t"), ("b", None))
    admission.hold("a", "u")
    admission.leave("b")
    admission.hold("b", "v")
    assert admission.holder("u") is None
    assert admission.holder("v") is None


def test_a_made_thread_that_somebody_has_stays_theirs() -> None:
    admission = Admission(10)
    asked(admission, ("a", "t"), ("b", None))
    admission.hold("b", "t")
    admission.leave("b")
    assert admission.holder("t") == "a"


def test_who_waits_for_a_thread_is_told_so_and_can_be_named_in_order() -> None:
    admission = Admission(10)
    assert not admission.ask("a", "t")
    assert admission.ask("b", "t")
    assert admission.ask("c", "t")
    assert not admission.ask("d", None)
    assert (admission.holders("t"), admission.waiting("t")) == (("a",), ("b", "c"))
    admission.leave("b")
    assert admission.waiting("t") == ("c",)
    assert (admission.holders("u"), admission.waiting("u")) == ((), ())


def test_one_that_is_next_in_line_gets_the_thread_before_those_who_came_earlier() -> None:
    admission = Admission(10)
    assert asked(admission, ("a", "t"), ("b", "t")) == ["a"]
    assert admission.ask("c", "t", next_in_line=True)
    assert admission.waiting("t") == ("c", "b")
    assert admission.leave("a") == "c"
    assert admission.leave("c") == "b"


@pytest.mark.parametrize(("first", "last"), [("a", "b"), ("b", "a")])
def test_a_thread_that_another_run_joined_passes_on_when_both_have_left(first: str, last: str) -> None:
    admission = Admission(10)
    admission.ask("a", "t")
    admission.join("b", "t")
    admission.ask("c", "t")
    assert admission.admitted() == ["a", "b"]
    assert admission.holders("t") == ("a", "b")
    assert admission.leave(first) is None
    assert admission.holder("t") == last
    assert admission.leave(last) == "c"
    assert admission.admitted() == ["c"]
    assert admission.leave("c") is None
    assert admission.holder("t") is None


class Model:
    """What admission promises, written down as slowly and plainly as can be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.queue: list[tuple[str, str | None]] = []
        self.working: dict[str, str | None] = {}

    def admitted(self) -> list[str]:
        first: list[str] = []
        held = {thread for thread in self.working.values() if thread is not None}
        for key, thread in tuple(self.queue):
            if thread in held:
                continue
            if thread is not None:
                held.add(thread)
            # A run that waits for a place only has its thread already.
            if len(self.working) < self.limit:
                self.queue.remove((key, thread))
                self.working[key] = thread
                first.append(key)
        return first

    def leave(self, key: str) -> None:
        self.working.pop(key, None)
        self.queue = [asker for asker in self.queue if asker[0] != key]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([None, "t", "u", "v"])),
        st.tuples(st.just("leave"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(limit=st.integers(1, 4), steps=steps)
def test_any_sequence_admits_what_the_plain_model_admits(
    limit: int, steps: Sequence[tuple[str, str | int | None]]
) -> None:
    admission, model = Admission(limit), Model(limit)
    keys: list[str] = []
    for what, which in steps:
        if what == "ask":
            # A key may be used again once its run has left.
            free = (key for key in keys if key not in model.working and key not in dict(model.queue))
            keys.append(next(free, f"run-{len(keys)}"))
            thread = which if isinstance(which, str) else None
            admission.ask(keys[-1], thread)
            model.queue.append((keys[-1], thread))
        elif keys:
            assert isinstance(which, int)
            key = keys[which % len(keys)]
            admission.leave(key)
            model.leave(key)
        assert admission.admitted() == model.admitted()
        assert len(model.working) <= limit
    for key in keys:  # parked ones get their turn: everybody who leaves lets others in, until none is left
        admission.leave(key)
        model.leave(key)
        assert admission.admitted() == model.admitted()
    assert admission.admitted() == []
    assert [admission.holder(thread) for thread in "tuv"] == [None, None, None]
