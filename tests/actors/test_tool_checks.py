"""Whether an assistant's functions have their handlers here: told beside the runs, at no run's expense."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from between import UNAVAILABLE, Between, between, once
from stage import PATIENCE_S, TOOLS, Gate, Stage, definition, wait_until

from orchestrator import BreakerPolicy, Notice, ServerLimits, ToolRegistry, tool
from orchestrator.errors import NotFoundError
from orchestrator.supervision import tool_checks
from orchestrator.telemetry import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator import Orchestrator, RunHandle
    from orchestrator.runs.request import Watch
    from orchestrator.supervision.tool_checks import CheckTools, ToolChecks

pytestmark = pytest.mark.usefixtures("nothing_is_left")

FLEET = 200

LOST = b""
NO_JSON = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"


@tool(name="fetch")
def quick() -> str:
    """Fetch at once."""
    return "it"


def other() -> str:
    """Say something else."""
    return "that"


def third() -> str:
    """Say a third thing."""
    return "this"


@pytest.fixture
def assistant(stage: Stage) -> str:
    """One of the test's own, that knows `TOOLS`; nobody has asked for it yet."""
    return stage.client.create_assistant(model="rules", tools=[definition(name) for name in TOOLS]).id


@pytest.fixture
def middleman(stage: Stage) -> Iterator[Between]:
    with between(stage.server.base_url) as middleman:
        yield middleman


def fetched(stage: Stage, assistant: str) -> int:
    """How often the assistant was asked for."""
    return stage.server.requests.count(("GET", f"/v1/assistants/{assistant}"))


def checks(orchestrator: Orchestrator) -> ToolChecks:
    fleet = orchestrator._roster._fleet
    assert fleet is not None
    return fleet.tool_checks


def wait_until_checked(orchestrator: Orchestrator, count: int = 1) -> None:
    """Wait until so many checks are made, and none is under way."""
    wait_until(lambda: len(checks(orchestrator)._made) == count and not checks(orchestrator)._tasks)


def wait_until_remembered(orchestrator: Orchestrator, assistant: str) -> None:
    wait_until(lambda: assistant in str(checks(orchestrator)._made))


def notice(run: RunHandle) -> Notice:
    """The first word in a run's events that its tools differ; waits for it."""
    events = (event for event in run.events() if isinstance(event, Notice))
    return next(event for event in events if event.event == "run.tools_differ")


def notices(run: RunHandle) -> list[Notice]:
    """Every such word of a run that is over."""
    events = (event for event in run.events() if isinstance(event, Notice))
    return [event for event in events if event.event == "run.tools_differ"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[Event]:
    events = [record.msg for record in caplog.records if isinstance(record.msg, Event)]
    return [event for event in events if event["event"] == "run.tools_differ"]


def nonsense(assistant: str) -> bytes:
    """An assistant whose schema is none."""
    parameters = {"type": "object", "properties": {"word": {"enum": 5}}}
    function = {"type": "function", "function": {"name": "fetch", "parameters": parameters}}
    body = json.dumps({"id": assistant, "tools": [function]}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)


def test_what_has_no_handler_or_takes_other_arguments_is_in_the_run_s_events_and_in_one_warning(
    stage: Stage, assistant: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch, third]) as orchestrator:
        run = orchestrator.start(assistant, messages="each secret")
        told = notice(run)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got secret"
    (warning,) = warnings(caplog)
    assert (warning["without_handler"], warning["different"]) == (["other"], ["fetch"])
    assert (warning["assistant_id"], warning["run_key"]) == (assistant, run.key)
    assert (warning["thread_id"], warning["run_id"]) == (run.thread_id, run.run_id)
    assert "register functions of these names" in warning["remedy"]
    assert "modify_assistant" in warning["remedy"]
    assert told.run_id == run.run_id
    assert told.detail == warning["detail"]
    assert told.detail == (
        f"assistant {assistant}: other: no function is registered under this name; "
        f"fetch: word: only the function knows it"
    )
    assert notices(run) == [told]
    assert "secret" not in str(warning)


def test_where_every_function_has_its_handler_nothing_is_told(
    stage: Stage, assistant: str, caplog: pytest.LogCaptureFixture
) -> None:
    with stage.orchestrator(tools=[quick, other, third]) as orchestrator:
        run = orchestrator.start(assistant, messages="fetch")
        run.result(PATIENCE_S)
        wait_until_checked(orchestrator)
    assert fetched(stage, assistant) == 1
    assert (warnings(caplog), notices(run)) == ([], [])


def test_a_streamed_run_with_two_legs_of_a_checked_assistant_takes_exactly_two_requests(
    stage: Stage, assistant: str
) -> None:
    with stage.orchestrator(tools=[quick]) as orchestrator:
        orchestrator.start(assistant, messages="hello").result(PATIENCE_S)
        wait_until_checked(orchestrator)
        thread_id = stage.thread()
        before = len(stage.server.requests)
        run = orchestrator.start(assistant, thread_id=thread_id, messages="fetch")
        assert run.result(PATIENCE_S).text == "got it"
    runs = f"/v1/threads/{thread_id}/runs"
    assert stage.server.requests[before:] == [
        ("POST", runs),
        ("POST", f"{runs}/{run.run_id}/submit_tool_outputs"),
    ]


@pytest.mark.parametrize(("check", "count"), [("once", 1), ("always", 3), ("off", 0)])
@pytest.mark.parametrize("where", ["the orchestrator", "the run"])
def test_an_assistant_is_fetched_once_or_for_each_run_or_never(
    stage: Stage, assistant: str, check: CheckTools, count: int, where: str
) -> None:
    ours: dict[str, Any] = {"check_tools": check} if where == "the orchestrator" else {}
    own: dict[str, Any] = {} if ours else {"check_tools": check}
    with stage.orchestrator(**ours) as orchestrator:
        for _ in range(3):
            orchestrator.start(assistant, messages="hello", **own).result(PATIENCE_S)
            wait_until_checked(orchestrator, min(count, 1))
    assert fetched(stage, assistant) == count


def test_each_assistant_account_and_set_of_tools_is_checked(stage: Stage, assistant: str) -> None:
    registry = ToolRegistry([quick])
    another = stage.client.create_assistant(model="rules").id
    with stage.orchestrator(tools=registry) as orchestrator:
        for count, (one, organization) in enumerate(
            [(assistant, None), (another, None), (another, "org-2")], start=1
        ):
            orchestrator.start(one, messages="hello", organization=organization).result(PATIENCE_S)
            wait_until_checked(orchestrator, count)
        assert (fetched(stage, assistant), fetched(stage, another)) == (1, 2)
        registry.register(other)
        orchestrator.start(assistant, messages="hello").result(PATIENCE_S)
        wait_until_checked(orchestrator, 4)
    assert fetched(stage, assistant) == 2


def test_what_is_remembered_of_checks_is_bounded_and_what_is_forgotten_is_checked_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_checks, "_KEPT", 2)
    first, second, third_ = (stage.client.create_assistant(model="rules").id for _ in range(3))
    with stage.orchestrator() as orchestrator:
        for one in (first, second, first, third_):
            orchestrator.start(one, messages="hello").result(PATIENCE_S)
            wait_until_remembered(orchestrator, one)
            assert len(checks(orchestrator)._made) <= 2
        # The second one was of use least lately.
        for one in (first, second):
            orchestrator.start(one, messages="hello").result(PATIENCE_S)
            wait_until_remembered(orchestrator, one)
    assert [fetched(stage, one) for one in (first, second, third_)] == [1, 2, 1]


def test_runs_at_the_same_time_share_one_fetch_and_one_warning_and_each_is_told(
    stage: Stage, assistant: str, middleman: Between, caplog: pytest.LogCaptureFixture
) -> None:
    gate, answers = Gate(), threading.Event()
    middleman.meets = lambda method, path: wait_for(answers) if "/assistants/" in path else None
    with stage.orchestrator(base_url=middleman.base_url, tools=[gate.fetch]) as orchestrator:
        runs = [orchestrator.start(assistant, messages="fetch") for _ in range(FLEET)]
        wait_until(lambda: all(run.status == "requires_action" for run in runs))
        answers.set()
        assert {notice(run).run_id for run in runs} == {run.run_id for run in runs}
        gate.open.set()
        assert {run.result(60).text for run in runs} == {"got it"}
    assert fetched(stage, assistant) == 1
    assert len(warnings(caplog)) == 1
    assert {len(notices(run)) for run in runs} == {1}


def wait_for(event: threading.Event) -> None:
    """Pass a request on when this is set."""
    assert event.wait(PATIENCE_S)


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_the_assistant_is_asked_for_only_when_the_run_exists(
    stage: Stage, assistant: str, watch: Watch
) -> None:
    with stage.orchestrator(watch=watch) as orchestrator:
        run = orchestrator.start(assistant, messages="hello")
        run.result(PATIENCE_S)
        wait_until_checked(orchestrator)
        refused = orchestrator.start("asst_nobody", messages="hello")
        with pytest.raises(NotFoundError):
            refused.result(PATIENCE_S)
    asked = stage.server.requests
    created = asked.index(("POST", f"/v1/threads/{run.thread_id}/runs"))
    assert asked.index(("GET", f"/v1/assistants/{assistant}")) > created
    assert fetched(stage, "asst_nobody") == 0


def test_a_run_that_waits_for_another_one_s_thread_asks_for_no_assistant_meanwhile(
    stage: Stage, assistant: str
) -> None:
    thread_id = stage.thread()
    foreign = stage.run_id("fetch", thread_id)
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(assistant, thread_id=thread_id, messages="hello")
        wait_until(lambda: stage.requests(thread_id).count(f"GET /runs/{foreign}") > 2)
        assert fetched(stage, assistant) == 0
        stage.client.cancel_run(thread_id, foreign)
        assert run.result(PATIENCE_S).text == "hello to you"
        wait_until_checked(orchestrator)
    assert fetched(stage, assistant) == 1


@pytest.mark.parametrize("failure", ["an error", "a lost connection", "no JSON", "no schema"])
def test_a_check_that_fails_is_silent_harms_no_run_and_is_made_again_with_the_next(
    stage: Stage, assistant: str, middleman: Between, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {"an error": UNAVAILABLE, "a lost connection": LOST, "no JSON": NO_JSON}
    answers["no schema"] = nonsense(assistant)
    over, meets = threading.Event(), once("GET", f"/assistants/{assistant}", answers[failure])

    def late(method: str, path: str) -> bytes | None:
        """No answer to the run comes after this one, and takes the server to be well again."""
        if "/assistants/" in path:
            wait_for(over)
        return meets(method, path)

    middleman.meets = late
    caplog.set_level(logging.DEBUG, "orchestrator")
    # A failure of a run's own request would keep all of them from this server for a minute.
    limits = ServerLimits(breaker=BreakerPolicy(failures=1, open_s=60.0, cap_s=60.0))
    with stage.orchestrator(base_url=middleman.base_url, tools=[quick], limits=limits) as orchestrator:
        assert orchestrator.start(assistant, messages="fetch").result(PATIENCE_S).text == "got it"
        over.set()
        wait_until(lambda: any("tools.check_failed" in record.getMessage() for record in caplog.records))
        wait_until(lambda: not checks(orchestrator)._tasks)
        (failed,) = [record for record in caplog.records if "tools.check_failed" in record.getMessage()]
        assert failed.levelno == logging.DEBUG
        assert warnings(caplog) == []
        assert not checks(orchestrator)._made
        assert orchestrator.start(assistant, messages="fetch").result(PATIENCE_S).text == "got it"
        wait_until_checked(orchestrator)
    assert fetched(stage, assistant) == 1
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("status", [b"403 Forbidden", b"404 Not Found", b"405 Method Not Allowed"])
def test_a_server_that_refuses_to_show_an_assistant_is_not_asked_by_every_run(
    stage: Stage, assistant: str, middleman: Between, status: bytes
) -> None:
    refusal = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
    middleman.meets = lambda _, path: refusal if "/assistants/" in path else None
    with stage.orchestrator(base_url=middleman.base_url, tools=[quick]) as orchestrator:
        for _ in range(3):
            assert orchestrator.start(assistant, messages="fetch").result(PATIENCE_S).text == "got it"
            wait_until_checked(orchestrator)
    assert sum("/assistants/" in one for one in middleman.seen) == 1


@pytest.mark.parametrize("ends", ["leaving", "cancel", "detach"])
def test_neither_a_run_nor_a_close_waits_for_a_check_and_no_task_stays_behind(
    stage: Stage, assistant: str, middleman: Between, ends: str
) -> None:
    asked, answers = threading.Semaphore(0), threading.Event()

    def meets(_: str, path: str) -> None:
        if "/assistants/" in path:
            asked.release()
            wait_for(answers)

    middleman.meets = meets
    orchestrator = stage.orchestrator(base_url=middleman.base_url, tools=[quick])
    open_run = orchestrator.start(assistant, messages="dawdle")
    assert asked.acquire(timeout=PATIENCE_S)
    run = orchestrator.start(assistant, messages="fetch")
    assert run.result(PATIENCE_S).text == "got it"
    loop, tasks = checks(orchestrator)._loop_thread.loop, checks(orchestrator)._tasks
    assert [task.get_name() for task in tasks] == [f"{open_run.key}:CheckTools"]
    began = time.monotonic()
    if ends == "leaving":
        open_run.detach()
        orchestrator.close(on_active="wait")
    else:
        orchestrator.close(on_active="cancel" if ends == "cancel" else "detach")
    assert time.monotonic() - began < PATIENCE_S / 4
    assert not tasks
    assert loop.is_closed() or not asyncio.all_tasks(loop)
    assert notices(run) == notices(open_run) == []
    answers.set()
    if ends != "cancel":
        stage.client.cancel_run(open_run.thread_id or "", open_run.run_id or "")


def test_a_run_s_own_functions_need_no_check_and_its_definitions_without_a_function_are_told_unasked(
    stage: Stage, assistant: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[other]) as orchestrator:
        complete = orchestrator.start(assistant, messages="fetch", tools=[quick, definition("other")])
        assert complete.result(PATIENCE_S).text == "got it"
        assert checks(orchestrator)._made == {}
        runs = []
        for _ in range(2):
            tools = [gate.fetch, definition("other"), definition("nobody")]
            runs.append(orchestrator.start(assistant, messages="fetch", tools=tools))
            gate.wait_until_reached()
            wait_until_checked(orchestrator)
        gate.open.set()
        for run in runs:
            run.result(PATIENCE_S)
    assert fetched(stage, assistant) == 0
    assert notices(complete) == notices(runs[1]) == []
    assert [one.detail for one in notices(runs[0])] == [
        f"assistant {assistant}: nobody: no function is registered under this name"
    ]
    (warning,) = warnings(caplog)
    assert (warning["without_handler"], warning["run_key"]) == (["nobody"], runs[0].key)


def test_a_run_that_is_adopted_is_not_checked(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "orchestrator")
    thread_id = stage.thread()
    run_id = stage.run_id("fetch", thread_id)
    before = fetched(stage, stage.assistant)
    with stage.orchestrator(tools=[quick], check_tools="always") as orchestrator:
        assert orchestrator.adopt(thread_id, run_id).result(PATIENCE_S).text == "got it"
        wait_until(lambda: not checks(orchestrator)._tasks)
    assert "tools.check_failed" not in caplog.text
    assert fetched(stage, stage.assistant) == before


def test_a_word_that_is_no_way_to_check_is_refused(stage: Stage) -> None:
    with pytest.raises(ValueError, match="check_tools must be one of 'once', 'always', 'off'"):
        stage.orchestrator(check_tools="never")
    with stage.orchestrator() as orchestrator, pytest.raises(ValueError, match="check_tools must be one of"):
        orchestrator.start(stage.assistant, messages="hello", check_tools="never")  # type: ignore[arg-type]
