"""What is wrong ends in words that say what happened, to which run, and what to do; and it leaves nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from stage import PATIENCE_S, QUICK, Gate, Stage, active_runs

from orchestrator import BreakerPolicy, Orchestrator, RerunPolicy, RestartPolicy, RunHandle, ServerLimits
from orchestrator.client import AsyncThreadsClient, ThreadsClient
from orchestrator.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OrchestratorClosed,
    OrchestratorError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("nothing_is_left")

# Nothing listens on port 1 of this machine, and nothing may without privileges.
NOWHERE = "http://127.0.0.1:1/v1"


async def consume(event: object) -> None:
    raise AssertionError(event)


def failure(run: RunHandle) -> OrchestratorError:
    with pytest.raises(OrchestratorError) as raised:
        run.result(PATIENCE_S)
    return raised.value


def test_a_wrong_key_names_run_and_assistant_and_says_what_to_check(stage: Stage) -> None:
    with stage.orchestrator(api_key="wrong") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", key="mine")
        error = failure(run)
    assert isinstance(error, AuthenticationError)
    assert str(error) == (
        f"HTTP 401: Incorrect API key provided; this ended run 'mine' of assistant {stage.assistant}: check "
        f"api_key, or OPENAI_API_KEY, for {stage.server.base_url} (POST /threads, request {error.request_id})"
    )
    assert "wrong" not in str(error)


def test_an_unreachable_server_is_named_within_the_attempts_allowed(stage: Stage) -> None:
    began = time.monotonic()
    with Orchestrator(base_url=NOWHERE, timing=QUICK) as orchestrator:
        error = failure(
            orchestrator.start(stage.assistant, thread_id="thread_1", messages="hello", key="mine")
        )
    assert time.monotonic() - began < 5
    assert isinstance(error, APIConnectionError)
    assert not error.sent
    assert f"this ended run 'mine' on thread thread_1 of assistant {stage.assistant}" in str(error)
    assert f"check that a server answers at {NOWHERE}, and base_url, or OPENAI_BASE_URL" in str(error)


def test_a_run_with_a_server_of_its_own_names_that_one(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        error = failure(orchestrator.start(stage.assistant, messages="hello", base_url=NOWHERE, api_key="k"))
    assert f"check that a server answers at {NOWHERE}" in str(error)


def test_an_unknown_assistant_is_named(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start("asst_nobody", messages="hello")
        error = failure(run)
    assert isinstance(error, NotFoundError)
    assert "No assistant found with id 'asst_nobody'" in str(error)
    assert f"this ended run {run.key!r} on thread {run.thread_id} of assistant asst_nobody" in str(error)
    assert f"check the ids, and that they belong to this key's project at {stage.server.base_url}" in str(
        error
    )
    assert stage.runs(run.thread_id) == []


def test_an_unknown_thread_is_named(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        error = failure(orchestrator.start(stage.assistant, thread_id="thread_nobody", messages="hello"))
    assert isinstance(error, NotFoundError)
    assert "No thread found with id 'thread_nobody'" in str(error)
    assert "on thread thread_nobody" in str(error)


def test_an_unknown_run_to_adopt_is_named(stage: Stage) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        error = failure(orchestrator.adopt(thread_id, "run_nobody"))
    assert "run_nobody" in str(error)
    assert thread_id in str(error)


def test_what_the_server_refuses_is_said_with_the_ids(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", temperature=55)
        error = failure(run)
    assert isinstance(error, BadRequestError)
    assert "'temperature'" in str(error)
    assert str(run.thread_id) in str(error)
    assert "correct what the server refuses and start it again" in str(error)


def test_a_tool_nobody_registered_completes_the_run_and_is_told_to_model_user_and_log(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(opened=True)
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="all").result(PATIENCE_S)
    assert result.text == "all done"
    calls = {call.name: call for call in result.tool_calls}
    assert calls["fetch"].error is None
    assert calls["other"].error == (
        "unknown_tool: there is no tool named 'other'; the known tools: fetch; "
        "register a function of this name, Orchestrator(tools=[...]) or start(tools=[...]), "
        "or take it off the assistant"
    )
    assert "unknown_tool" in calls["other"].output
    told = [record for record in caplog.records if record.getMessage().startswith("run.tool_unknown")]
    assert len(told) == 2
    text = told[0].getMessage()
    assert told[0].levelname == "WARNING"
    for part in (
        "other",
        str(result.run_id),
        str(result.thread_id),
        calls["other"].call_id,
        "Orchestrator(tools=",
    ):
        assert part in text


def test_a_tool_that_raises_completes_the_run_and_says_so(stage: Stage) -> None:
    def fetch() -> str:
        raise KeyError("no such thing")

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="fetch").result(PATIENCE_S)
    assert result.status == "completed"
    (call,) = result.tool_calls
    assert call.error == "raised: KeyError: 'no such thing'"
    assert "no such thing" in call.output


def test_arguments_that_are_no_json_never_reach_the_tool(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="garbled").result(PATIENCE_S)
    assert (result.status, result.text, gate.calls) == ("completed", "so be it", 0)
    (call,) = result.tool_calls
    assert call.arguments == '{"word": '
    assert call.error is not None
    assert call.error.startswith("invalid_arguments: ")


def test_arguments_of_the_wrong_type_never_reach_the_tool(stage: Stage) -> None:
    called: list[int] = []

    def fetch(word: int) -> str:
        called.append(word)
        return "never"

    with stage.orchestrator(tools=[fetch]) as orchestrator:
        result = orchestrator.start(stage.assistant, messages="each a").result(PATIENCE_S)
    assert result.status == "completed"
    assert called == []
    assert str(result.tool_calls[0].error).startswith("invalid_arguments: ")


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"metadata": {str(number): "" for number in range(16)}}, ValueError, "metadata has 16 pairs"),
        ({"metadata": {"orchestrator_nonce": "mine"}}, ValueError, "is reserved"),
        ({"deadline_s": 0}, ValueError, "deadline_s must be a positive number"),
        ({"watch": "listen"}, ValueError, "watch must be one of 'stream', 'poll', got 'listen'"),
        ({"on_deadline": "explode"}, ValueError, "on_deadline must be one of"),
        ({"messages": 3}, TypeError, "messages must be a str, a mapping or several of them, got int"),
        ({"messages": [3]}, TypeError, r"messages\[0\] must be a str or a mapping, got int"),
        ({"messages": {"role": "user"}}, ValueError, r"messages\[0\] lacks content"),
        ({"messages": {"role": "user", "content": object()}}, TypeError, "has no JSON form"),
        ({"truncation_strategy": {"type": object()}}, TypeError, "has no JSON form"),
        ({"thread_id": ""}, ValueError, "thread_id cannot be part of a path"),
        ({"thread_id": "../runs"}, ValueError, "thread_id cannot be part of a path"),
        ({"tools": [lambda: 3]}, ValueError, "tool name '<lambda>'"),
        ({"tools": ["fetch"]}, TypeError, "a tool is made of a function, not of 'fetch'"),
        ({"tools": print}, TypeError, "tools are given in a list, got <built-in function print>"),
        ({"tools": {"type": "function"}}, TypeError, "tools are given in a list"),
        ({"stream_to": "print"}, TypeError, "stream_to must be a callable or a pykka.ActorRef, got 'print'"),
        ({"stream_to": consume}, TypeError, "stream_to cannot be a coroutine .* iterate with `async for"),
        ({"key": 7}, TypeError, "key must be a str, got 7"),
        ({"api_key": "two\nlines"}, ValueError, "api_key must be text that fits into a header"),
        ({"base_url": "http://elsewhere.example/v1"}, ValueError, "pass the api_key for it too"),
        ({"base_url": "elsewhere"}, ValueError, "base_url must begin with http"),
        ({"temprature": 1}, TypeError, "unexpected keyword argument 'temprature'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_sent_raises_in_start_and_starts_nothing(
    stage: Stage, arguments: dict[str, Any], kind: type[Exception], text: str
) -> None:
    asked = len(stage.server.requests)
    with stage.orchestrator() as orchestrator:
        with pytest.raises(kind, match=text):
            orchestrator.start(stage.assistant, **arguments)
        assert orchestrator.runs() == []
    assert len(stage.server.requests) == asked


def test_fifteen_pairs_of_metadata_are_sent(stage: Stage) -> None:
    metadata = {str(number): "value" for number in range(15)}
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", metadata=metadata)
        run.result(PATIENCE_S)
    sent = stage.run(run.thread_id, run.run_id).metadata or {}
    assert metadata.items() <= sent.items()
    assert len(sent) == 16


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"max_concurrent_runs": 0}, ValueError, "must be at least 1"),
        ({"max_pending": -1}, ValueError, "max_pending at least 0"),
        ({"tool_threads": 0}, ValueError, "must be at least 1"),
        ({"watch": "listen"}, ValueError, "watch must be one of 'stream', 'poll'"),
        ({"on_busy_thread": "push"}, ValueError, "on_busy_thread must be one of 'enqueue', 'reject'"),
        ({"deadline_s": -1}, ValueError, "deadline_s must be a positive number of seconds"),
        ({"tools": [print, print]}, (TypeError, ValueError), "print"),
        ({"tolls": []}, TypeError, "unexpected keyword argument 'tolls'"),
        ({"client": AsyncThreadsClient(NOWHERE)}, TypeError, "give either client= or base_url"),
        ({"client": ThreadsClient(NOWHERE), "base_url": None}, TypeError, "must be an AsyncThreadsClient"),
        (
            {"client": AsyncThreadsClient(NOWHERE).with_options(timeout=5), "base_url": None},
            ValueError,
            "with_options",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_orchestrator_that_makes_no_sense_is_not_made(
    stage: Stage, arguments: dict[str, Any], kind: Any, text: str
) -> None:
    with pytest.raises(kind, match=text):
        Orchestrator(**({"base_url": NOWHERE} | arguments))


def test_no_server_at_all_is_a_value_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="pass base_url or set OPENAI_BASE_URL"):
        Orchestrator()


def test_a_key_that_is_taken_is_refused_and_the_open_run_goes_on(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch", key="taken")
        with pytest.raises(ValueError, match="a run with key 'taken' is open already"):
            orchestrator.start(stage.assistant, messages="fetch", key="taken")
        gate.open.set()
        assert run.result(PATIENCE_S).status == "completed"
        assert gate.calls == 1


def test_a_closed_orchestrator_takes_no_runs(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    orchestrator.close()
    with pytest.raises(OrchestratorClosed, match="the orchestrator is closed: make a new one"):
        orchestrator.start(stage.assistant)
    with pytest.raises(OrchestratorClosed, match="the orchestrator is closed: make a new one"):
        orchestrator.adopt("thread_1", "run_1")


def test_close_refuses_a_word_it_does_not_know(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator, pytest.raises(ValueError, match="on_active must be one of"):
        orchestrator.close(on_active="forget")  # type: ignore[arg-type]  # misuse is the point


def test_no_failure_leaves_a_run_active_on_the_server(stage: Stage) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="dawdle", deadline_s=0.3)
        error = failure(run)
    assert f"run {run.run_id} on thread {thread_id} exceeded its deadline of 0.3 s" in str(error)
    assert "it was cancelled and ended as cancelled" in str(error)
    assert active_runs(stage, thread_id) == []


@pytest.mark.parametrize(
    "name", ["rerun", "restart", "timing", "limits", "interrupt_foreign", "log_tool_data"]
)
def test_a_setting_of_another_type_is_refused_where_it_is_given(name: str) -> None:
    given: dict[str, Any] = {name: {"attempts": 2}}
    with pytest.raises(TypeError, match=rf"^{name} must be of type \w+, got {{'attempts': 2}}$"):
        Orchestrator(base_url=NOWHERE, **given)


@pytest.mark.parametrize("name", ["rerun", "interrupt_foreign"])
def test_an_argument_of_another_type_is_refused_before_the_run_begins(stage: Stage, name: str) -> None:
    given: dict[str, Any] = {name: {}}
    with stage.orchestrator() as orchestrator:
        with pytest.raises(TypeError, match=rf"^{name} must be of type \w+, got {{}}$"):
            orchestrator.start(stage.assistant, messages="hello", **given)
        assert orchestrator.runs() == []


def test_nobody_drains_or_closes_for_what_is_no_number_of_seconds(stage: Stage) -> None:
    wrong: tuple[Any, ...] = ("3", None)
    with stage.orchestrator() as orchestrator:
        for value in wrong:
            with pytest.raises(TypeError, match="timeout_s must be a number of seconds"):
                orchestrator.drain(value)
        for value in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout_s must not be a negative number of seconds"):
                orchestrator.drain(value)
            with pytest.raises(ValueError, match="timeout_s must not be a negative number of seconds"):
                orchestrator.close(timeout_s=value)
        run = orchestrator.start(stage.assistant, messages="hello")
        assert run.result(PATIENCE_S).status == "completed", "a refusal closes nothing"


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: ServerLimits(breaker=cast("Any", None)), TypeError, "breaker"),
        (lambda: ServerLimits(polls_per_s=cast("Any", "9")), TypeError, "polls_per_s"),
        (lambda: ServerLimits(polls_per_s=float("nan")), ValueError, "polls_per_s"),
        (lambda: BreakerPolicy(failures=cast("Any", float("nan"))), TypeError, "failures"),
        (lambda: BreakerPolicy(open_s=cast("Any", "1")), TypeError, "open_s"),
        (lambda: BreakerPolicy(cap_s=float("nan")), ValueError, "cap_s"),
        (lambda: RestartPolicy(max_restarts=-1), ValueError, "max_restarts"),
        (lambda: RestartPolicy(backoff_s=float("nan")), ValueError, "backoff_s"),
        (lambda: RerunPolicy(codes=cast("Any", "server_error")), TypeError, "codes"),
        (lambda: RerunPolicy(cap_s=cast("Any", None)), TypeError, "cap_s"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_where_it_is_made(
    make: Callable[[], object], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        make()


def test_draining_may_take_for_ever(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        assert orchestrator.drain(float("inf")) == []
        assert run.result(PATIENCE_S).text == "hello to you"
