"""What time and restarts do to runs."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from sqlalchemy.exc import DatabaseError

from orchestrator.server import objects
from orchestrator.server.database import DatabaseHeldError
from orchestrator.server.execution import Execution
from orchestrator.server.models import CallPiece, Finish, ModelFailedError, TextPiece
from orchestrator.server.rules import RuleModel
from orchestrator.server.security import OPEN
from orchestrator.server.sse import Subscription
from orchestrator.server.store import Store
from orchestrator.testing import FakeClock, running_server
from server.conftest import SCRIPT
from server.speaker import WEATHER, Speaker, names, outputs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.active import ActiveRun
    from orchestrator.server.models import Model, ModelOutput, Prompt
    from orchestrator.server.schema import Kind

_Executing: TypeAlias = "tuple[Execution, ActiveRun]"


@contextmanager
def _speaking(db: Path | None = None, **options: Any) -> Iterator[Speaker]:
    with running_server(SCRIPT, db=db, **options) as server:
        speaker = Speaker(server)
        with speaker.http:
            yield speaker


def test_a_run_that_waits_too_long_expires_and_takes_no_more_outputs() -> None:
    with _speaking(run_ttl_s=0.5) as speaker:
        path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER)
        run = speaker.until(path, "expired")
        assert run["required_action"] is None
        (step,) = speaker.ok("GET", f"{path}/steps")["data"]
        assert step["status"] == "expired"
        assert step["expired_at"] is not None
        error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", outputs((call_id, "1")))
        assert error["message"] == 'Runs in status "expired" do not accept tool outputs.'
        error = speaker.refused(400, "POST", f"{path}/cancel")
        assert error["message"] == "Cannot cancel run with status 'expired'."


@asynccontextmanager
async def _executing(db: Path, model: Model, watch: list[str] | None = None) -> AsyncIterator[_Executing]:
    """A queued run on a store of its own; every status that is saved goes to `watch`."""
    store = Store(db)
    save = store.save

    def note(namespace: str, kind: Kind, body: JSON) -> None:
        if kind == "runs" and watch is not None:
            watch.append(body["status"])
        save(namespace, kind, body)

    store.save = note  # type: ignore[method-assign]  # what is saved is seen here first
    store.open()
    try:
        execution = Execution(store=store.within(OPEN), model=model, clock=FakeClock())
        assistant = objects.assistant(created_at=0, fields={"model": "m"})
        run = objects.run(
            run_id="run_1", created_at=0, expires_at=9, thread_id="t", assistant=assistant, fields={}
        )
        yield execution, execution.register(run, [], ttl_s=600)
        await execution.stop()
    finally:
        store.close()


def test_a_waiting_run_expires_within_the_turn_of_its_timer_so_that_no_late_output_slips_in(
    tmp_path: Path,
) -> None:
    async def expire() -> str:
        async with _executing(tmp_path / "runs.sqlite", RuleModel()) as (execution, active):
            active.run["status"] = "requires_action"
            execution._expire(active)
            return active.status

    assert asyncio.run(expire()) == "expired"


class _Gated:
    """A model that calls a tool once it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        yield CallPiece(index=0, name=prompt.model, arguments="{}")
        self.asked.set()
        await self.go.wait()
        yield Finish(reason="tool_calls")


@pytest.mark.parametrize("asked", [False, True], ids=["before the model is asked", "as the model ends"])
def test_a_run_that_is_cancelling_never_goes_back(tmp_path: Path, asked: bool) -> None:
    statuses = list[str]()

    async def cancel() -> bytes:
        model = _Gated()
        async with _executing(tmp_path / "runs.sqlite", model, statuses) as (execution, active):
            stream = Subscription()
            active.subscriptions.append(stream)
            execution.begin_leg(active)
            if asked:
                await model.asked.wait()
                model.go.set()  # What the leg does next is due in this very turn, behind the cancel.
            execution.cancel(active)
            return b"".join([chunk async for chunk in stream.chunks()])

    said = asyncio.run(cancel())
    assert statuses[-2:] == ["cancelling", "cancelled"]
    assert b"requires_action" not in said
    assert said.index(b"event: thread.run.cancelling\n") < said.index(b"event: thread.run.cancelled\n")


class _Garbled:
    """A model whose text no event and no row can carry."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    async def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        yield TextPiece(f"well, {prompt.model}")
        if self._fails:
            raise ModelFailedError("server_error", "\ud83d")
        yield TextPiece("\ud83d")


@pytest.mark.parametrize("fails", [False, True], ids=["text", "message of a failure"])
def test_text_that_cannot_be_stored_fails_the_run_and_frees_its_thread(tmp_path: Path, fails: bool) -> None:
    async def run() -> tuple[str, str | None]:
        async with _executing(tmp_path / "runs.sqlite", _Garbled(fails=fails)) as (execution, active):
            stream = Subscription()
            active.subscriptions.append(stream)
            execution.begin_leg(active)
            async for _ in stream.chunks():
                pass
            return active.status, execution.holder("t")

    assert asyncio.run(run()) == ("failed", None)


def test_a_run_that_works_too_long_expires_in_the_middle_of_its_message() -> None:
    with _speaking(run_ttl_s=0.5) as speaker:
        thread_id = speaker.thread("slow")
        events = speaker.stream(f"/threads/{thread_id}/runs", {"assistant_id": speaker.assistant()})
        assert names(events)[-5:] == [
            *("message.delta", "message.incomplete", "run.step.expired", "run.expired", "done"),
        ]
        assert events[-4][1]["incomplete_details"] == {"reason": "run_expired"}


def test_stopping_ends_open_streams_with_an_error_and_no_verdict() -> None:
    events: list[tuple[str, Any]] = []
    reading = threading.Event()

    def read(speaker: Speaker) -> None:
        body = {"assistant_id": assistant_id}
        with speaker.streaming(f"/threads/{thread_id}/runs", body) as stream:
            for event in stream:
                events.append(event)
                if event[0] == "thread.message.delta":
                    reading.set()

    with running_server(SCRIPT) as server:
        speaker = Speaker(server)
        thread_id, assistant_id = speaker.thread("slow"), speaker.assistant()
        reader = threading.Thread(target=read, args=(speaker,))
        reader.start()
        assert reading.wait(20)
    reader.join(20)
    speaker.http.close()
    assert events[-1][0] == "error"
    assert events[-1][1]["message"] == "The server is shutting down."


def test_a_stopped_server_leaves_no_thread_and_no_file_behind() -> None:
    before = set(threading.enumerate())
    with _speaking() as speaker:
        db = speaker.server.db
        assert isinstance(db, Path)
        assert db.stat().st_mode & 0o777 == 0o600
        path = speaker.run("think")
        speaker.until(path, "in_progress")
        assert ("GET", f"/v1{path}") in speaker.server.requests
    assert set(threading.enumerate()) == before
    assert not db.parent.exists()


def test_a_database_that_cannot_be_used_is_named_to_who_starts_the_server(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, only some text that is long enough to be looked at" * 20)
    with pytest.raises(DatabaseError, match="file is not a database"), running_server(db=text):
        pass
    with pytest.raises(FileNotFoundError), running_server(db=tmp_path / "none" / "a.sqlite"):
        pass
    with _speaking(tmp_path / "held.sqlite") as speaker:
        with pytest.raises(DatabaseHeldError, match="another server"), running_server(db=speaker.server.db):
            pass
        speaker.thread()
    assert set(threading.enumerate()) == before


def test_a_clock_stands_still_until_it_is_advanced_and_never_goes_back() -> None:
    clock = FakeClock(10)
    clock.advance(2.5)
    assert clock() == clock() == 12.5
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)
    assert clock() == 12.5
