"""A journal in use: what it is told on a loop of its own, and what it has told."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.journal import Address, Answer, Conducted, SQLJournal, StoredRun
from orchestrator.protocol.objects import FunctionCall, ToolCall
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.errors import JournalError
    from orchestrator.runs.effects import Finish

T = TypeVar("T")

PATIENCE_S = 20.0
ADDRESS = Address(base_url="http://server/v1", organization="org", project=None)
CALL = ToolCall(id="call_1", function=FunctionCall(name="fetch", arguments='{"city":"Rome"}'))


def record(key: str = "one", **changes: Any) -> RunRecord:
    """A run's first record, or a later one."""
    now = time.monotonic()
    fields: dict[str, Any] = {"nonce": f"nonce-{key}-{now}", "deadline_at": now + 60}
    request = changes.pop("request", None) or RunRequest(assistant_id="asst_1", messages=({"role": "user"},))
    return RunRecord(key=key, request=request, **(fields | changes))


def outcome(call_id: str = "call_1", round_number: int = 1, **changes: Any) -> ToolCallResult:
    fields: dict[str, Any] = {"name": "fetch", "arguments": CALL.function.arguments, "output": "sunny"}
    return ToolCallResult(round=round_number, call_id=call_id, **(fields | changes))


ACTING: dict[str, Any] = {
    "phase": Phase.ACTING,
    "thread_id": "thread_1",
    "run_id": "run_1",
    "round": 1,
    "calls": (CALL,),
}


class Desk:
    """Listens to a journal, and asks it things from the test's thread."""

    def __init__(self, journal: SQLJournal) -> None:
        self.journal = journal
        self.loop = asyncio.new_event_loop()
        self.told: list[tuple[Any, ...]] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self.loop.run_forever, name="desk")
        self._thread.start()
        self.do(journal.serve, self, self.loop)

    def opened(self, key: str, answer: Answer) -> None:
        self._tell("opened", key, answer)

    def kept(self, key: str, ticket: int) -> None:
        self._tell("kept", key, ticket)

    def lost(self, key: str, error: JournalError) -> None:
        self._tell("lost", key, error)

    def cancel_wanted(self, key: str) -> None:
        self._tell("cancel_wanted", key)

    def found(self, stored: StoredRun) -> None:
        self._tell("found", stored.record.key, stored)

    def _tell(self, *news: Any) -> None:
        with self._news:
            self.told.append(news)
            self._news.notify_all()

    def do(self, what: Callable[..., T], *args: Any) -> T:
        """Call something on the loop."""

        async def calling() -> T:
            return what(*args)

        return asyncio.run_coroutine_threadsafe(calling(), self.loop).result(PATIENCE_S)

    def wait(self, *begins: Any, after: int = 0, timeout_s: float = PATIENCE_S) -> tuple[Any, ...]:
        """Return the first news that begins like this."""

        def found() -> tuple[Any, ...] | None:
            return next((news for news in self.told[after:] if news[: len(begins)] == begins), None)

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, timeout_s), (begins, self.told)
            news = found()
        assert news is not None
        return news

    def open(self, run: RunRecord, address: Address = ADDRESS) -> Answer:
        """Open a run; return how it stands."""
        after = len(self.told)
        self.do(self.journal.open, run, address)
        return self.wait("opened", run.key, after=after)[2]  # type: ignore[no-any-return]

    def claim(self, key: str) -> Answer:
        after = len(self.told)
        self.do(self.journal.claim, key)
        return self.wait("opened", key, after=after)[2]  # type: ignore[no-any-return]

    def conduct(self, run: RunRecord) -> RunRecord:
        """Open a run that becomes ours; return its record."""
        answer = self.open(run)
        assert isinstance(answer, Conducted), answer
        return answer.record

    def take(self, key: str) -> Conducted:
        """Claim a run whose owner lets go of it about now; return how it stands once it is ours."""
        after = len(self.told)
        answer = self.claim(key)
        while not isinstance(answer, Conducted):
            after = self.told.index(("opened", key, answer), after) + 1
            answer = self.wait("opened", key, after=after)[2]
        return answer

    def record(self, run: RunRecord) -> None:
        """Have a record kept."""
        self._wait_kept(run.key, self.do(self.journal.record, run))

    def finish(self, run: RunRecord, finish: Finish) -> None:
        self._wait_kept(run.key, self.do(self.journal.finish, run, finish))

    def _wait_kept(self, key: str, ticket: int) -> None:
        with self._news:
            assert self._news.wait_for(
                lambda: any(news[:2] == ("kept", key) and news[2] >= ticket for news in self.told),
                PATIENCE_S,
            ), (key, ticket, self.told)

    def close(self) -> None:
        self.journal.close(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


@contextmanager
def desk(url: str, **options: Any) -> Iterator[Desk]:
    """A journal that is quick to look and to try again."""
    at_work = Desk(SQLJournal(url, **({"poll_s": 0.02, "backoff_s": 0.01} | options)))
    try:
        yield at_work
    finally:
        at_work.close()
