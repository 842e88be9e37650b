"""A list of any length, page by page: which page is asked for next, and what of an answer is new.

Owns the meaning of `has_more`, `last_id` and `after`, and the promise that a list ends. Sends nothing: the
clients' `iter_…` methods and `orchestrator.runs.backend` do, each in their own way of trying again.

Servers differ, so the rules are these:

- An object that was seen already, by its id, is not yielded again.
- The next page begins after `last_id`; where a server leaves it out, or names one that was used already,
  after the last object's own id.
- An empty page with nothing to go on from is the end, whatever its `has_more` says.
- A list that says it goes on, but shows no way to, or nothing new for too many pages, is an
  `APIResponseError`: half a list must not pass for the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from msgspec.structs import replace

from orchestrator.errors import APIResponseError

if TYPE_CHECKING:
    from orchestrator.client.call import Call
    from orchestrator.protocol.objects import Page

__all__ = ["MAX_BARREN_PAGES", "Listed", "Pager"]

MAX_BARREN_PAGES: Final = 100
"""How many pages in a row may bring nothing new: a server that filters late sends some."""


class Listed(Protocol):
    """What stands in a list: something with an id."""

    @property
    def id(self) -> str:
        """The id; may be empty on odd servers."""


L = TypeVar("L", bound=Listed)


class Pager(Generic[L]):
    """Where one reading of a list stands; not thread-safe.

    Args:
        call: A call of a list operation; its own `after`, if any, is where the list begins.
    """

    def __init__(self, call: Call[Page[L]]) -> None:
        self._call = call
        self._page: Page[L] | None = None
        self._cursors = {value for name, value in call.query if name == "after"}
        self._seen: set[str] = set()
        self._yielded = 0
        self._barren = 0

    def next(self) -> Call[Page[L]] | None:
        """Return the call for the next page, or `None` after the last one.

        Raises:
            APIResponseError: The server says that the list goes on, and does not say how.
        """
        if self._page is None:
            return self._call
        if not self._page.has_more:
            return None
        cursor = self._cursor(self._page)
        if cursor is None and not self._page.data:
            return None
        if cursor is None or self._barren > MAX_BARREN_PAGES:
            raise self._stuck()
        self._cursors.add(cursor)
        others = tuple(pair for pair in self._call.query if pair[0] != "after")
        return replace(self._call, query=(*others, ("after", cursor)))

    def take(self, page: Page[L]) -> list[L]:
        """Take in the page that answers the last call, and return what is new in it, in its order."""
        new = []
        for one in page.data:
            if one.id in self._seen:
                continue
            new.append(one)
            if one.id:  # without one it cannot be known again
                self._seen.add(one.id)
        self._page = page
        self._yielded += len(new)
        self._barren = 0 if new else self._barren + 1
        return new

    def _cursor(self, page: Page[L]) -> str | None:
        last = page.data[-1].id if page.data else None
        return next((one for one in (page.last_id, last) if one and one not in self._cursors), None)

    def _stuck(self) -> APIResponseError:
        where = f" on thread {self._call.thread_id}" if self._call.thread_id else ""
        return APIResponseError(
            f"{self._call.operation}{where}: after {self._yielded} objects the server says that there are"
            " more, and sends nothing new",
            method=self._call.method,
            path=self._call.path,
        )
