"""What a run is for Celery: its results, its progress, its end by other hands, and its second messages."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu.exceptions import OperationalError
from storms import RULES
from worker_app import make
from workforce import wait_until, workforce

from orchestrator import Orchestrator
from orchestrator.errors import JournalError, KeyReused, UnknownRun
from orchestrator.journal import SQLJournal
from orchestrator.workers.celery import RunTaskError, cancel, install, run_assistant, wake_up_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from brokers import Redis
    from stage import Stage
    from workforce import Workforce

__all__ = ["RULES"]  # the stage's

RESULT_S = 30.0


@contextmanager
def opened(stage: Stage, redis: Redis, directory: Path) -> Iterator[Workforce]:
    """An application with a journal and a queue of its own."""
    journal = f"sqlite:///{directory / 'runs.db'}"
    with workforce(stage, redis, journal, directory, task_default_queue=directory.name) as at_work:
        yield at_work


@pytest.fixture
def office(stage: Stage, redis: Redis, tmp_path: Path) -> Iterator[Workforce]:
    """An application without workers, which is the current one."""
    with opened(stage, redis, tmp_path) as at_work:
        at_work.app.set_current()
        yield at_work


@pytest.fixture(scope="module")
def shared(stage: Stage, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workforce]:
    """An application with two workers."""
    with opened(stage, redis, tmp_path_factory.mktemp("shared")) as at_work:
        at_work.hire("threads")
        at_work.hire("threads")
        yield at_work


@pytest.fixture
def staffed(shared: Workforce) -> Workforce:
    """An application with two workers, which is the current one."""
    shared.app.set_current()
    return shared


def status_of(office: Workforce, key: str) -> str | None:
    """How a run has ended, or `None` while it has not."""
    return status_in(office.journal, key)


def status_in(journal: SQLJournal, key: str) -> str | None:
    finish = journal.outcome(key)
    assert finish is None or finish.result is not None
    return None if finish is None or finish.result is None else finish.result.status


def test_a_task_resolves_to_what_came_of_its_run(staffed: Workforce) -> None:
    result = run_assistant.delay(staffed.stage.assistant, key="order-1", messages="fetch it")

    outcome = result.get(timeout=RESULT_S)
    assert result.id == "order-1"
    assert (outcome["status"], outcome["text"]) == ("completed", "got it")
    assert outcome["usage"]["total_tokens"] > 0
    assert [(call["name"], call["error"], call["attempts"]) for call in outcome["tool_calls"]] == [
        ("fetch", None, 1)
    ]
    assert staffed.stage.run(outcome["thread_id"], outcome["run_id"]).status == "completed"


def test_a_second_message_has_the_same_outcome_and_makes_no_run(staffed: Workforce) -> None:
    thread = staffed.stage.thread()
    options: dict[str, Any] = {"key": "order-2", "thread_id": thread, "messages": "fetch twice"}
    first = run_assistant.delay(staffed.stage.assistant, **options)
    again = [run_assistant.delay(staffed.stage.assistant, **options) for _ in range(6)]
    outcomes = [result.get(timeout=RESULT_S) for result in (first, *again)]
    after = run_assistant.delay(staffed.stage.assistant, **options).get(timeout=RESULT_S)

    assert outcomes == [after] * 7
    assert len(staffed.stage.runs(thread)) == 1
    assert staffed.calls.read_text(encoding="utf-8").split().count("twice") == 1


def test_a_task_tells_how_its_run_stands_and_cancel_ends_it_where_it_is_at_work(staffed: Workforce) -> None:
    result = run_assistant.delay(staffed.stage.assistant, messages="dawdle")
    wait_until(lambda: result.state == "PROGRESS" and result.info["status"] == "in_progress", "progress")
    told = result.info

    cancel(result)

    outcome = result.get(timeout=RESULT_S)
    assert (outcome["status"], outcome["run_id"]) == ("cancelled", told["run_id"])
    assert told["thread_id"] == outcome["thread_id"]
    assert staffed.stage.run(told["thread_id"], told["run_id"]).status == "cancelled"


def test_a_run_that_is_cancelled_before_it_has_begun_never_begins(office: Workforce) -> None:
    thread = office.stage.thread()
    result = run_assistant.delay(office.stage.assistant, thread_id=thread, messages="fetch it")

    cancel(result.id)
    office.hire("threads")

    assert result.get(timeout=RESULT_S)["status"] == "cancelled"
    assert office.stage.runs(thread) == []


def test_a_task_that_is_revoked_before_it_has_begun_never_begins(office: Workforce) -> None:
    office.hire("threads", concurrency=1)
    thread = office.stage.thread()
    busy = run_assistant.delay(office.stage.assistant, messages="dawdle")
    wait_until(lambda: busy.state == "PROGRESS", "progress")
    result = run_assistant.delay(office.stage.assistant, thread_id=thread, messages="fetch it")

    result.revoke()
    cancel(busy)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=RESULT_S)
    assert busy.get(timeout=RESULT_S)["status"] == "cancelled"
    wait_until(lambda: status_of(office, result.id) is not None, "the end of the revoked run")
    assert status_of(office, result.id) == "cancelled"
    assert office.stage.runs(thread) == []


def test_a_task_that_is_terminated_has_its_run_cancelled_by_whoever_takes_it_up(office: Workforce) -> None:
    office.hire("prefork", concurrency=2)
    result = run_assistant.delay(office.stage.assistant, messages="dawdle")
    wait_until(lambda: result.state == "PROGRESS" and result.info["status"] == "in_progress", "progress")
    told = result.info

    result.revoke(terminate=True)

    wait_until(lambda: status_of(office, result.id) is not None, "the end of the run")
    assert status_of(office, result.id) == "cancelled"
    assert office.stage.run(told["thread_id"], told["run_id"]).status == "cancelled"


def test_a_run_without_a_result_raises_and_its_error_survives_the_backend(staffed: Workforce) -> None:
    result = run_assistant.delay(staffed.stage.assistant, key="late", messages="dawdle", deadline_s=1.0)

    with pytest.raises(RunTaskError, match=r"^run 'late': DeadlineExceeded: run ") as raised:
        result.get(timeout=RESULT_S)

    assert (raised.value.key, raised.value.kind) == ("late", "DeadlineExceeded")


def test_a_message_about_a_run_that_nobody_knows_fails(staffed: Workforce) -> None:
    with pytest.raises(RunTaskError, match="UnknownRun"):
        staffed.task.wake_up("never-heard-of").get(timeout=RESULT_S)
    with pytest.raises(UnknownRun):
        cancel("never-heard-of")


def test_a_task_waits_for_its_countdown(staffed: Workforce) -> None:
    began = time.monotonic()

    result = run_assistant.apply_async(
        (staffed.stage.assistant,), {"key": "later", "messages": "fetch it"}, countdown=2
    )

    assert staffed.journal.show("later").run.state == "waiting"
    assert result.get(timeout=RESULT_S)["status"] == "completed"
    assert time.monotonic() - began >= 2


def test_a_message_that_was_lost_is_sent_again(staffed: Workforce) -> None:
    key = run_assistant.processes.orchestrator.enqueue(staffed.stage.assistant, messages="fetch it")

    assert wake_up_waiting(60.0) == []
    assert wake_up_waiting(0.0) == [key]

    assert staffed.app.AsyncResult(key).get(timeout=RESULT_S)["status"] == "completed"


def test_a_key_stands_for_one_request(staffed: Workforce) -> None:
    run_assistant.delay(staffed.stage.assistant, key="order-3", messages="fetch it")

    with pytest.raises(KeyReused):
        run_assistant.delay(staffed.stage.assistant, key="order-3", messages="fetch another")
    with pytest.raises(ValueError, match=r"use \.set\(task_id='order-3'\)"):
        run_assistant.apply_async((staffed.stage.assistant,), {"key": "order-3"}, task_id="other")


def test_a_signature_has_its_run_s_key_for_its_id(staffed: Workforce) -> None:
    result = run_assistant.s(staffed.stage.assistant, messages="fetch it").set(task_id="order-4").delay()

    assert result.id == "order-4"
    assert result.get(timeout=RESULT_S)["status"] == "completed"


def test_a_run_whose_message_was_not_sent_is_cancelled_unless_it_can_be_sent_again(
    stage: Stage, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "broker": "amqp://127.0.0.1:1//",
        "backend": f"file://{tmp_path}",
        "server": stage.server.base_url,
        "key": stage.server.api_key,
        "journal": f"sqlite:///{tmp_path / 'runs.db'}",
        "calls": str(tmp_path / "calls"),
        "lease_s": 2.0,
        "drain_s": 1.0,
        "conf": {"task_publish_retry": False, "broker_transport_options": {"max_retries": 1}},
    }
    app = make(settings)
    app.set_current()

    for key in ("order-5", None):
        with pytest.raises(OperationalError):
            run_assistant.delay(stage.assistant, key=key, messages="fetch it")

    journal = SQLJournal(settings["journal"])
    named, unnamed = sorted(journal.runs(ended=True), key=lambda run: run.key)
    assert (named.key, named.state) == ("order-5", "waiting")
    assert status_in(journal, unnamed.key) == "cancelled"


def test_an_application_without_the_task_says_so() -> None:
    Celery("empty").set_current()

    with pytest.raises(RuntimeError, match=r"call orchestrator\.workers\.celery\.install\(app, factory\)"):
        run_assistant.delay("asst_1")


def test_a_task_needs_a_journal_that_survives() -> None:
    app = Celery("forgetful", broker="memory://")
    app.set_current()
    install(app, lambda: Orchestrator(base_url="http://127.0.0.1:1/v1", api_key="key"))

    with pytest.raises(JournalError, match=r"needs a journal that survives: Orchestrator\(journal="):
        run_assistant.delay("asst_1")
    with pytest.raises(JournalError, match=r"need a journal that survives: Orchestrator\(journal="):
        cancel("order-1")
