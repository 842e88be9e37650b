"""A list of any length: what is asked for next, what is yielded, and that it ends, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client import endpoints
from orchestrator.client.pages import MAX_BARREN_PAGES, Pager
from orchestrator.errors import APIResponseError
from orchestrator.protocol.objects import Page, Run

FIRST = endpoints.list_runs("thread_1", limit=2, order="asc", after="r0")


def page(*ids: str, more: bool = True, last: str | None = None) -> Page[Run]:
    return Page(data=[Run(id=one) for one in ids], last_id=last, has_more=more)


def read(*pages: Page[Run]) -> tuple[list[str], list[str]]:
    """The ids that were yielded, and where each page began, for pages that come whatever is asked."""
    pager = Pager(FIRST)
    yielded, asked = [], []
    coming = iter(pages)
    while (call := pager.next()) is not None:
        asked.append(dict(call.query)["after"])
        yielded += [one.id for one in pager.take(next(coming))]
    assert list(coming) == []
    return yielded, asked


def test_pages_are_asked_for_until_there_are_no_more() -> None:
    pages = [page("a", "b", last="b"), page("c", "d", last="d"), page("e", more=False, last="e")]
    assert read(*pages) == (["a", "b", "c", "d", "e"], ["r0", "b", "d"])


def test_every_page_is_asked_for_with_the_same_parameters() -> None:
    pager = Pager(FIRST)
    pager.take(page("a"))
    call = pager.next()
    assert call is not None
    assert call.query == (("limit", "2"), ("order", "asc"), ("after", "a"))
    assert (call.path, call.operation) == (FIRST.path, "list_runs")


@pytest.mark.parametrize("last", [None, ""])
def test_without_a_last_id_the_last_object_s_own_counts(last: str | None) -> None:
    pages = [page("a", "b", last=last), page("c", more=False, last=last)]
    assert read(*pages) == (["a", "b", "c"], ["r0", "b"])


def test_a_last_id_that_stays_behind_is_passed_over() -> None:
    pages = [page("a", "b", last="r0"), page("c", last="r0"), page(more=False)]
    assert read(*pages) == (["a", "b", "c"], ["r0", "b", "c"])


def test_what_a_server_repeats_is_yielded_once() -> None:
    pages = [page("a", "b", "a"), page("b", "c"), page("c", more=False)]
    assert read(*pages) == (["a", "b", "c"], ["r0", "a", "c"])


def test_objects_without_ids_are_all_yielded() -> None:
    assert read(page("", "", more=False)) == (["", ""], ["r0"])
    assert read(page("", last="x"), page("", more=False)) == (["", ""], ["r0", "x"])


def test_an_empty_page_ends_the_list_whatever_it_says() -> None:
    assert read(page("a"), page()) == (["a"], ["r0", "a"])
    assert read(page()) == ([], ["r0"])


def test_an_empty_page_that_says_where_to_go_on_is_followed() -> None:
    assert read(page("a"), page(last="x"), page("b", more=False)) == (["a", "b"], ["r0", "a", "x"])


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param([page("a", "b")] * 2, id="the same page again"),
        pytest.param([page("a", last="a"), page("b", last="b"), page("a", last="a")], id="a circle"),
        pytest.param([page("")], id="no ids"),
        pytest.param([page("r0")], id="the object it was to begin after"),
    ],
)
def test_a_list_that_does_not_go_on_is_an_error_after_what_it_had(pages: list[Page[Run]]) -> None:
    pager = Pager(FIRST)
    for one in pages:
        assert pager.next() is not None
        pager.take(one)
    with pytest.raises(APIResponseError, match=r"list_runs on thread thread_1: after \d objects .* more"):
        pager.next()


def test_a_server_that_always_says_where_to_go_on_and_sends_nothing_is_an_error() -> None:
    pager = Pager(FIRST)
    for number in range(MAX_BARREN_PAGES + 1):
        assert pager.next() is not None
        pager.take(page(last=f"x{number}"))
    with pytest.raises(APIResponseError, match="after 0 objects"):
        pager.next()


_ids = st.sampled_from(["", "a", "b", "c", "r0"])
_pages = st.builds(
    lambda ids, more, last: page(*ids, more=more, last=last),
    st.lists(_ids, max_size=3),
    st.sampled_from([True, True, True, False]),
    st.none() | _ids,
)


@given(st.lists(_pages, min_size=1, max_size=20))
def test_whatever_pages_come_nothing_is_lost_or_doubled_and_it_ends(pages: list[Page[Run]]) -> None:
    pager = Pager(FIRST)
    yielded: list[str] = []
    taken: list[str] = []
    asked = 0
    try:
        while pager.next() is not None:
            one = pages[asked % len(pages)]  # round and round
            asked += 1
            taken += [run.id for run in one.data]
            yielded += [run.id for run in pager.take(one)]
    except APIResponseError:
        pass
    # A page has a beginning that none had before it, and there are five.
    assert asked <= 5
    named = [one for one in yielded if one]
    assert len(named) == len(set(named))
    assert set(yielded) == set(taken)
