"""A script's faults: what they do to requests, and what is said about mistakes in them."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from orchestrator.server import faults
from orchestrator.server.faults import operation_of
from orchestrator.server.sabotage import _Incoming
from orchestrator.server.script import ScriptError, build, load, parse
from orchestrator.testing import running_server
from server.speaker import WEATHER, Event, Speaker, names, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULES = [
    {"match": "weather", "steps": [{"call": {"tool": "get_weather"}}, {"say": "It is {get_weather}."}]},
    {"match": "expire", "steps": [{"say": "I was"}, {"expire": True}]},
    {"match": "think", "steps": [{"think_s": 600}]},
    {"match": "hello", "steps": [{"say": "Hello, how are you today, dear reader of streams?"}]},
]
CUT = (httpx.RemoteProtocolError, httpx.ReadError)
TEXT_RUN = [
    "run.created",
    "run.queued",
    "run.in_progress",
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
]


@contextmanager
def _speaking(*faults: dict[str, Any]) -> Iterator[Speaker]:
    with running_server({"rules": RULES, "faults": list(faults)}) as server:
        speaker = Speaker(server)
        with speaker.http:
            yield speaker


def _open(speaker: Speaker, text: str, *tools: Any) -> tuple[str, dict[str, Any]]:
    """A thread, and the body of a run on it."""
    return f"/threads/{speaker.thread(text)}/runs", {"assistant_id": speaker.assistant(*tools)}


def _runs(speaker: Speaker, path: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = speaker.ok("GET", path)["data"]
    return runs


def test_an_answer_can_be_an_error_with_a_hint_when_to_come_back() -> None:
    answer = {"status": 429, "message": "Slow down.", "code": "rate_limit_exceeded", "retry_after_s": 1.5}
    with _speaking({"operation": "create_run", "nth": 1, "answer": answer}) as speaker:
        path, body = _open(speaker, "hello")
        refused = speaker.send("POST", path, body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1.5"
        assert refused.json()["error"] == {
            "message": "Slow down.",
            "type": "server_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert _runs(speaker, path) == []
        speaker.ok("POST", path, body)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_can_come_after_everything_was_done(stream: bool) -> None:
    with _speaking(
        {"operation": "create_run", "nth": 1, "answer": {"status": 500, "performed": True}}
    ) as speaker:
        path, body = _open(speaker, "hello")
        speaker.refused(500, "POST", path, {**body, "stream": stream})
        (run,) = _runs(speaker, path)
        speaker.until(f"{path}/{run['id']}", "completed")


@pytest.mark.parametrize(("performed", "runs"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_can_be_cut_before_anything_is_done_or_after_everything(
    performed: bool, runs: int, stream: bool
) -> None:
    with _speaking({"operation": "create_run", "nth": 1, "drop": {"performed": performed}}) as speaker:
        path, body = _open(speaker, "hello")
        with pytest.raises(CUT):
            speaker.http.post(path, json={**body, "stream": stream})
        assert len(_runs(speaker, path)) == runs
        for run in _runs(speaker, path):
            speaker.until(f"{path}/{run['id']}", "completed")


@pytest.mark.parametrize("events", [0, 1, 7])
def test_a_stream_can_be_cut_after_so_many_events_and_the_run_goes_on(events: int) -> None:
    with _speaking({"operation": "create_run", "drop": {"after_events": events}}) as speaker:
        path, body = _open(speaker, "hello")
        seen: list[Event] = []
        with speaker.streaming(path, body) as stream, pytest.raises(CUT):
            seen.extend(event for event in stream)
        assert names(seen) == TEXT_RUN[:events]
        (run,) = _runs(speaker, path)
        speaker.until(f"{path}/{run['id']}", "completed")


def test_a_stream_can_end_without_its_done_as_if_all_was_well() -> None:
    with _speaking({"operation": "create_run", "end": {"after_events": 3}}) as speaker:
        path, body = _open(speaker, "hello")
        with speaker.streaming(path, body) as stream:
            assert names(list(stream)) == TEXT_RUN[:3]
        speaker.until(f"{path}/{_runs(speaker, path)[0]['id']}", "completed")


def test_a_fault_of_streams_leaves_other_and_shorter_answers_alone() -> None:
    with _speaking({"operation": "create_run", "drop": {"after_events": 1000}}) as speaker:
        path, body = _open(speaker, "hello")
        assert speaker.stream(path, body)[-2][1]["status"] == "completed"
        speaker.ok("POST", path, body)


def test_a_stream_can_fall_silent_and_go_on_without_loss() -> None:
    with _speaking({"operation": "create_run", "stall": {"after_events": 2, "seconds": 0.3}}) as speaker:
        path, body = _open(speaker, "hello")
        assert names(speaker.stream(path, body))[:7] == TEXT_RUN


def test_a_silence_ends_when_its_client_goes() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    asyncio.run(asyncio.wait_for(_Incoming(receive).silence(3600), timeout=10))


def test_a_client_may_leave_in_a_silence_and_the_server_serves_on() -> None:
    stalls: list[dict[str, Any]] = [
        {"operation": "create_run", "stall": {"after_events": 1, "seconds": 3600}},
        {"operation": "list_runs", "stall": {"seconds": 3600}},
    ]
    with _speaking(*stalls) as speaker:
        path, body = _open(speaker, "hello")
        with pytest.raises(httpx.ReadTimeout):
            speaker.http.get(path, timeout=0.2)
        with speaker.streaming(path, body) as stream:
            assert next(stream)[0] == "thread.run.created"


def test_a_run_can_expire_or_fail_under_a_request_for_it() -> None:
    failure = {"code": "invalid_prompt", "message": "not this"}
    ordered: list[dict[str, Any]] = [
        {"operation": "submit_tool_outputs", "nth": 1, "expire": {}},
        {"operation": ["submit_tool_outputs", "get_run"], "match": "bad", "fail": failure},
        {"operation": "modify_run", "fail": failure},
    ]
    with _speaking(*ordered) as speaker:
        path, (call_id,) = speaker.waiting("weather", WEATHER)
        error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", outputs((call_id, "cold")))
        assert error["message"] == 'Runs in status "expired" do not accept tool outputs.'
        path, (call_id,) = speaker.waiting("weather", WEATHER)
        error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", outputs((call_id, "bad")))
        assert error["message"] == 'Runs in status "failed" do not accept tool outputs.'
        assert speaker.ok("GET", path)["last_error"] == failure
        path = speaker.run("think")
        speaker.ok("POST", path, {"metadata": {}})
        assert speaker.until(path, "failed")["last_error"] == failure


def test_a_rule_can_let_its_run_expire_in_the_middle_of_a_text() -> None:
    with _speaking() as speaker:
        events = speaker.stream(*_open(speaker, "expire"))
    assert names(events)[-4:] == ["message.incomplete", "run.step.expired", "run.expired", "done"]


def test_requests_are_told_apart_by_operation_text_and_count() -> None:
    answer = {"answer": {"status": 503}}
    ordered: list[dict[str, Any]] = [
        {"operation": "create_message", "match": "(?i)oslo", "nth": [2, 3], **answer},
        {"operation": ["create_thread"], "match": "(?m)^second$", **answer},
        {"match": "everywhere", **answer},
    ]
    with _speaking(*ordered) as speaker:
        thread = speaker.thread()
        statuses = [
            speaker.send("POST", f"/threads/{thread}/messages", {"role": "user", "content": text}).status_code
            for text in ("Oslo", "Rome", "OSLO", "oslo", "oslo")
        ]
        assert statuses == [200, 200, 503, 503, 200]
        for texts, status in ((("first", "second"), 503), (("seconds",), 200)):
            messages = [{"role": "user", "content": text} for text in texts]
            assert speaker.send("POST", "/threads", {"messages": messages}).status_code == status
        speaker.refused(503, "POST", "/assistants", {"model": "m", "metadata": {"a": "everywhere"}})
        json_type = {"content-type": "application/json"}
        speaker.refused(400, "POST", "/assistants", content=b'{"model": "everywhere', headers=json_type)
        speaker.ok("POST", "/assistants", {"model": "m", "metadata": {"everywhere": "key"}})


def test_callers_without_a_key_meet_no_faults() -> None:
    with _speaking({"nth": 1, "answer": {"status": 503}}) as speaker:
        assert httpx.get(f"{speaker.server.base_url}/assistants", trust_env=False).status_code == 401
        speaker.refused(503, "GET", "/assistants")


def test_operations_are_recognised_below_any_prefix() -> None:
    assert operation_of("POST", "/v1/threads/runs") == "create_thread_and_run"
    assert operation_of("POST", "/api/projects/p/threads/thread_1/runs/") == "create_run"
    assert operation_of("GET", "/openai/threads/t/runs/r/steps/s") == "get_run_step"
    assert operation_of("DELETE", "/v1/threads/runs") is None
    assert operation_of("GET", "/healthz") is None


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({}, "give exactly one of answer, drop, end, stall, expire, fail"),
        ({"drop": {}, "expire": {}}, "give exactly one of"),
        (
            {"operation": "create_runs", "drop": {}},
            "no operation is called `create_runs`; there are: cancel_run, ",
        ),
        ({"match": "(", "drop": {}}, "is not a regular expression"),
        ({"nth": 0, "drop": {}}, ">= 1"),
        ({"nth": [1, 0], "drop": {}}, ">= 1"),
        ({"answer": {"status": 200}}, ">= 400"),
        ({"answer": {}}, "missing required field `status`"),
        ({"drop": {"after_event": 1}}, "unknown field `after_event`"),
        ({"drop": {"after_events": 1, "performed": True}}, "give `after_events` or `performed`"),
        ({"end": {}}, "missing required field `after_events`"),
        ({"stall": {"seconds": -1}}, ">= 0"),
        ({"expire": {}}, "need an `operation` that names a run: cancel_run"),
        ({"operation": ["get_run", "create_run"], "fail": {"message": "m"}}, "that names a run"),
        ({"operation": "get_run", "fail": {"code": "x", "message": "m"}}, "fail.code"),
        ("drop", "Expected `object`"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_number(fault: Any, text: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(json.dumps({"faults": [{"drop": {}}, fault]}))
    with pytest.raises(ScriptError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: fault 2: ")
    assert text in str(caught.value)


def test_the_faults_that_the_documentation_shows_are_read_from_yaml() -> None:
    assert faults.__doc__ is not None
    shown = faults.__doc__.partition("```yaml\n")[2].partition("```")[0]
    script = build(parse(shown, "shown"))
    assert [one.operations for one in script.faults] == [
        {"create_run"},
        {"submit_tool_outputs"},
        {"create_thread_and_run"},
    ]


def test_a_python_script_may_define_faults(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text("faults = [{'operation': 'get_run', 'nth': n, 'drop': {}} for n in (1, 3)]")
    script = load(file)
    assert (len(script.rules), len(script.faults)) == (0, 2)
    assert build([]).faults == ()
