"""The promises of the design, end to end: what the server was asked, and what users were told."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from stage import PATIENCE_S, QUICK, TOOLS, Gate, Stage, active_runs, wait_until

from orchestrator import Notice
from orchestrator.errors import DeadlineExceeded
from orchestrator.protocol.events import MessageDeltaEvent, RunEvent
from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from orchestrator import RunHandle
    from orchestrator.runs.request import OnDeadline, Watch

pytestmark = pytest.mark.usefixtures("nothing_is_left")

FLEET = 200


class Counted:
    """Three tools that count who called them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def fetch(self) -> str:
        return self._note("fetch")

    def other(self) -> str:
        return self._note("other")

    def third(self) -> str:
        return self._note("third")

    def _note(self, name: str) -> str:
        self.calls[name] += 1
        return name

    @property
    def all(self) -> list[object]:
        return [self.fetch, self.other, self.third]


def test_a_streamed_run_with_two_legs_takes_two_requests(stage: Stage) -> None:
    thread_id = stage.thread()
    tools = Counted()
    with stage.orchestrator(tools=tools.all) as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="all")
        assert run.result(PATIENCE_S).text == "all done"
    assert stage.requests(thread_id) == ["POST /runs", f"POST /runs/{run.run_id}/submit_tool_outputs"]
    assert tools.calls == Counter(TOOLS)


def test_a_run_without_a_thread_takes_one_more_request(stage: Stage) -> None:
    before = len(stage.server.requests)
    with stage.orchestrator(check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        run.result(PATIENCE_S)
    asked = stage.server.requests[before:]
    assert asked == [("POST", "/v1/threads"), ("POST", f"/v1/threads/{run.thread_id}/runs")]


@pytest.mark.parametrize("watch", ["stream", "poll"])
def test_each_batch_is_submitted_once_and_a_run_is_created_once(stage: Stage, watch: Watch) -> None:
    thread_id = stage.thread()
    words: list[str] = []

    def fetch(word: str) -> str:
        words.append(word)
        return word

    def other(word: str) -> str:
        words.append(word)
        return word

    with stage.orchestrator(tools=[fetch, other], watch=watch) as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="twice")
        result = run.result(PATIENCE_S)
    assert Counter(stage.requests(thread_id, "POST")) == {
        "POST /runs": 1,
        f"POST /runs/{run.run_id}/submit_tool_outputs": 2,
    }
    assert words == ["one", "two"]
    assert [(call.round, call.name, call.output) for call in result.tool_calls] == [
        (1, "fetch", "one"),
        (2, "other", "two"),
    ]


def outputs_on_the_server(stage: Stage, run: RunHandle) -> list[list[tuple[str, str | None]]]:
    steps = stage.client.list_run_steps(str(run.thread_id), str(run.run_id), order="asc").data
    return [
        [(call["function"]["name"], call["function"]["output"]) for call in step.step_details.tool_calls]
        for step in steps
        if step.step_details is not None and step.step_details.tool_calls is not None
    ]


def test_many_runs_at_once_keep_every_promise_each(stage: Stage) -> None:
    tools = Counted()
    with stage.orchestrator(tools=tools.all) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="all") for _ in range(FLEET)]
        results = [run.result(60) for run in runs]
    assert {result.text for result in results} == {"all done"}
    assert tools.calls == dict.fromkeys(TOOLS, FLEET)
    whole = [(name, name) for name in TOOLS]
    for run, result in zip(runs, results, strict=True):
        assert [(call.name, call.output) for call in result.tool_calls] == whole
        assert Counter(request.rsplit("/", 1)[1] for request in stage.requests(run.thread_id)) == {
            "runs": 1,
            "submit_tool_outputs": 1,
        }
    # The server's own record, for some of them: it costs a request each.
    for run in runs[::20]:
        assert outputs_on_the_server(stage, run) == [whole]
    assert len({result.run_id for result in results}) == FLEET
    for run in runs:
        events = list(run.events())
        assert {event.run_id for event in events} == {run.run_id}
        assert_in_order([str(event.event) for event in events])


def assert_in_order(names: list[str]) -> None:
    notable = (
        "thread.run.created",
        "thread.run.requires_action",
        "tool.started",
        "tool.finished",
        "thread.message.created",
        "thread.message.completed",
        "thread.run.completed",
    )
    places = [names.index(name) for name in notable]
    assert places == sorted(places)
    assert names.count("tool.started") == names.count("tool.finished") == len(TOOLS)
    assert names.count("thread.run.completed") == 1
    assert names[-1] == "thread.run.completed"


@pytest.mark.alone
def test_cancel_is_answered_at_once_while_many_runs_stream(stage: Stage) -> None:
    def cancelled() -> tuple[float, float]:
        run = orchestrator.start(stage.assistant, messages="long")
        deltas = (event for event in run.events() if isinstance(event, MessageDeltaEvent))
        assert next(deltas).run_id == run.run_id
        began = time.monotonic()
        run.cancel()
        wait_until(lambda: run.snapshot().phase is not Phase.WATCHING)
        heard = time.monotonic() - began
        assert run.result(PATIENCE_S).status == "cancelled"
        return heard, time.monotonic() - began

    with stage.orchestrator() as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="long") for _ in range(FLEET)]
        wait_until(lambda: all(run.status == "in_progress" for run in runs))
        took = [cancelled() for _ in range(5)]
        assert not any(run.done() for run in runs)
        began = time.monotonic()
        assert len(orchestrator.cancel_all()) == FLEET
        assert {run.result(PATIENCE_S).status for run in runs} == {"cancelled"}
        all_in = time.monotonic() - began
    # A minute of streaming lay ahead. The bounds leave room for a server that shares this process, and for a
    # machine that does other things as well; on an idle one it is milliseconds and a tenth of a second.
    assert min(heard for heard, _ in took) < 0.1
    assert min(ended for _, ended in took) < 1
    assert all_in < 10
    assert active_runs(stage, *(run.thread_id for run in runs[::20])) == []


def test_the_texts_of_a_streamed_run_are_the_pieces_put_together(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        pieces = [event.data.text for event in run.events() if isinstance(event, MessageDeltaEvent)]
        assert "".join(pieces) == run.result(PATIENCE_S).text == "hello to you"


def test_a_stall_is_said_and_the_run_goes_on(stage: Stage) -> None:
    with stage.orchestrator(timing=replace(QUICK, stall_s=0.1)) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        stalls = (
            event for event in run.events() if isinstance(event, Notice) and event.event == "run.stalled"
        )
        stall = next(stalls)
        assert stall.run_id == run.run_id
        assert "in status in_progress" in str(stall.detail)
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"


@pytest.mark.parametrize("on_deadline", ["cancel", "detach"])
def test_a_deadline_ends_the_wait_and_says_what_became_of_the_run(
    stage: Stage, on_deadline: OnDeadline
) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle", deadline_s=1.5, on_deadline=on_deadline)
        with pytest.raises(DeadlineExceeded) as exceeded:
            run.result(PATIENCE_S)
    assert (exceeded.value.thread_id, exceeded.value.run_id) == (run.thread_id, run.run_id)
    left = active_runs(stage, run.thread_id)
    if on_deadline == "cancel":
        assert left == []
    else:
        assert left == [run.run_id]
        stage.client.cancel_run(str(run.thread_id), str(run.run_id))


def test_a_deadline_that_passes_during_admission_sends_nothing(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        first = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        late = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello", deadline_s=0.05)
        with pytest.raises(DeadlineExceeded, match="nothing was sent"):
            late.result(PATIENCE_S)
        gate.open.set()
        assert first.result(PATIENCE_S).status == "completed"
    assert stage.requests(thread_id) == []


def test_the_verdict_is_the_last_event_and_the_only_terminal_one(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fail")
        events = list(run.events())
        run.result(PATIENCE_S)
    terminal = [event for event in events if isinstance(event, RunEvent) and event.data.is_terminal]
    assert terminal == [events[-1]]
    assert terminal[0].data.status == "failed"
