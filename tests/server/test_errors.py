"""The table of errors (PROTOCOL.md, "Errors"), the locks behind it, and what strict validation says."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from server.speaker import TIME, WEATHER, Speaker, call_ids, outputs

if TYPE_CHECKING:
    from collections.abc import Callable


def _split(path: str) -> tuple[str, str]:
    _, _, thread_id, _, run_id = path.split("/")
    return thread_id, run_id


def test_every_error_has_all_four_keys(speaker: Speaker) -> None:
    error = speaker.refused(404, "GET", "/threads/thread_X")
    assert error == {
        "message": "No thread found with id 'thread_X'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_locked_thread_takes_no_message_no_run_and_no_deletion(speaker: Speaker) -> None:
    path, _ = speaker.waiting("Weather in Oslo?", WEATHER)
    thread_id, run_id = _split(path)
    message = {"role": "user", "content": "me too"}
    error = speaker.refused(400, "POST", f"/threads/{thread_id}/messages", message)
    assert error["message"] == f"Can't add messages to {thread_id} while a run {run_id} is active."
    error = speaker.refused(400, "POST", f"/threads/{thread_id}/runs", {"assistant_id": speaker.assistant()})
    assert error["message"] == f"Thread {thread_id} already has an active run {run_id}."
    error = speaker.refused(400, "DELETE", f"/threads/{thread_id}")
    assert error["message"] == f"Can't delete {thread_id} while a run {run_id} is active."
    assert len(speaker.ok("GET", f"/threads/{thread_id}/messages")["data"]) == 1


def test_a_finished_run_can_neither_be_cancelled_nor_given_outputs(speaker: Speaker) -> None:
    path = speaker.run("hello")
    speaker.until(path, "completed")
    assert (
        speaker.refused(400, "POST", f"{path}/cancel")["message"]
        == "Cannot cancel run with status 'completed'."
    )
    error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", outputs(("call_a", "")))
    assert error["message"] == 'Runs in status "completed" do not accept tool outputs.'


def test_a_working_run_accepts_no_outputs(speaker: Speaker) -> None:
    path = speaker.run("think")
    speaker.until(path, "in_progress")
    error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", outputs(("call_a", "")))
    assert error["message"] == 'Runs in status "in_progress" do not accept tool outputs.'
    speaker.ok("POST", f"{path}/cancel")
    assert speaker.until(path, "cancelled")["cancelled_at"] is not None


def test_only_whole_submissions_are_taken_and_a_refused_one_changes_nothing(speaker: Speaker) -> None:
    path, (oslo, rome) = speaker.waiting("Weather in Oslo and Rome?", WEATHER)
    before = speaker.ok("GET", path)

    def submit(*call_ids: str) -> str:
        body = outputs(*((call_id, '{"celsius": 0}') for call_id in call_ids))
        return str(speaker.refused(400, "POST", f"{path}/submit_tool_outputs", body)["message"])

    expected = f"Expected tool outputs for call_ids ['{oslo}', '{rome}'], got "
    assert submit(oslo) == f"{expected}['{oslo}']"
    assert submit() == f"{expected}[]"
    assert submit(oslo, rome, "call_x") == f"{expected}['{oslo}', '{rome}', 'call_x']"
    assert submit(oslo, oslo) == f"{expected}['{oslo}', '{oslo}']"
    assert speaker.ok("GET", path) == before


def test_a_misspelt_output_is_refused_instead_of_taken_for_an_empty_one(speaker: Speaker) -> None:
    path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER)
    body = {"tool_outputs": [{"tool_call_id": call_id, "outptu": "5"}]}
    error = speaker.refused(400, "POST", f"{path}/submit_tool_outputs", body)
    assert (error["message"], error["param"]) == (
        "Unknown parameter: 'tool_outputs[0].outptu'.",
        "tool_outputs[0].outptu",
    )
    assert speaker.ok("GET", path)["status"] == "requires_action"


def test_of_two_submissions_at_once_exactly_one_is_accepted(speaker: Speaker) -> None:
    path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER)
    body = outputs((call_id, '{"celsius": 5}'))
    answers = _at_once(*[lambda: speaker.send("POST", f"{path}/submit_tool_outputs", body).status_code] * 8)
    assert sorted(answers) == [200] + [400] * 7


def test_of_two_runs_at_once_on_a_thread_exactly_one_is_created(speaker: Speaker) -> None:
    thread_id, body = speaker.thread("Weather in Oslo?"), {"assistant_id": speaker.assistant(WEATHER)}
    answers = _at_once(*[lambda: speaker.send("POST", f"/threads/{thread_id}/runs", body).status_code] * 8)
    assert sorted(answers) == [200] + [400] * 7
    assert len(speaker.ok("GET", f"/threads/{thread_id}/runs")["data"]) == 1


def test_a_cancel_beside_a_submission_ends_in_one_verdict(speaker: Speaker) -> None:
    for _ in range(5):
        path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER)
        cancel = partial(speaker.send, "POST", f"{path}/cancel")
        submit = partial(
            speaker.send, "POST", f"{path}/submit_tool_outputs", outputs((call_id, '{"celsius": 5}'))
        )
        answers = [answer.status_code for answer in _at_once(cancel, submit)]
        run = speaker.until(path, "cancelled", "completed")
        assert 200 in answers
        assert speaker.ok("GET", path) == run
        statuses = [step["status"] for step in speaker.ok("GET", f"{path}/steps")["data"]]
        assert "in_progress" not in statuses


def test_a_second_cancel_is_refused_while_the_first_is_under_way_or_done(speaker: Speaker) -> None:
    path, _ = speaker.waiting("Weather in Oslo?", WEATHER)
    assert speaker.ok("POST", f"{path}/cancel")["status"] == "cancelling"
    error = speaker.refused(400, "POST", f"{path}/cancel")
    assert error["message"] in [f"Cannot cancel run with status '{s}'." for s in ("cancelling", "cancelled")]
    speaker.until(path, "cancelled")
    (step,) = speaker.ok("GET", f"{path}/steps")["data"]
    assert step["status"] == "cancelled"


def test_unknown_objects_are_named(speaker: Speaker) -> None:
    path = speaker.run("hello")
    thread_id, run_id = _split(path)
    other = speaker.thread()
    for method, where, noun, object_id in [
        ("GET", "/assistants/asst_X", "assistant", "asst_X"),
        ("GET", f"/threads/{thread_id}/messages/msg_X", "message", "msg_X"),
        ("GET", "/threads/thread_X/messages", "thread", "thread_X"),
        ("POST", "/threads/thread_X/messages", "thread", "thread_X"),
        ("GET", f"/threads/{thread_id}/runs/run_X", "run", "run_X"),
        ("GET", f"/threads/{other}/runs/{run_id}", "run", run_id),
        ("POST", f"/threads/{other}/runs/{run_id}/cancel", "run", run_id),
        ("GET", f"{path}/steps/step_X", "run step", "step_X"),
    ]:
        body = {"role": "user", "content": "x"} if where.endswith("messages") and method == "POST" else None
        assert (
            speaker.refused(404, method, where, body)["message"] == f"No {noun} found with id '{object_id}'."
        )
    missing = {"assistant_id": "asst_X"}
    for where in (f"/threads/{speaker.thread('hello')}/runs", "/threads/runs"):
        assert (
            speaker.refused(404, "POST", where, missing)["message"] == "No assistant found with id 'asst_X'."
        )
    error = speaker.refused(404, "POST", "/threads/thread_X/runs", {"assistant_id": speaker.assistant()})
    assert error["message"] == "No thread found with id 'thread_X'."


def test_a_refused_run_leaves_its_thread_unlocked(speaker: Speaker) -> None:
    thread_id = speaker.thread("hello")
    speaker.refused(404, "POST", f"/threads/{thread_id}/runs", {"assistant_id": "asst_X"})
    speaker.ok("POST", f"/threads/{thread_id}/messages", {"role": "user", "content": "x"})


def test_unknown_paths_and_methods_are_refused_in_the_envelope(speaker: Speaker) -> None:
    assert speaker.refused(404, "GET", "/nowhere")["message"] == "Invalid URL (GET /v1/nowhere)"
    root = speaker.server.base_url
    assert speaker.refused(404, "GET", root)["message"] == "Invalid URL (GET /v1)"
    assert speaker.refused(405, "PUT", "/threads")["message"] == "Not allowed to PUT on /v1/threads."


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"x": 1}, "x", "Unknown parameter: 'x'."),
        ({}, "assistant_id", "Missing required parameter: 'assistant_id'."),
        ({"assistant_id": 1}, "assistant_id", "Invalid value for 'assistant_id': expected 'str', got 'int'."),
        ({"assistant_id": "a", "max_completion_tokens": 255}, "max_completion_tokens", ">= 256"),
        ({"assistant_id": "a", "temperature": 2.1}, "temperature", "<= 2"),
        ({"assistant_id": "a", "metadata": {"a": 1}}, "metadata", "expected 'str'"),
        ({"assistant_id": "a", "metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16 pairs"),
        ({"assistant_id": "a", "metadata": {"k" * 65: ""}}, "metadata", "at most 64"),
        ({"assistant_id": "a", "metadata": {"k": "v" * 513}}, "metadata", "at most 512"),
        ({"assistant_id": "a", "tools": [{"type": "file_search"}]}, "tools[0].type", "not supported"),
        ({"assistant_id": "a", "tools": [{"type": "code_interpreter"}]}, "tools[0].type", "not supported"),
        ({"assistant_id": "a", "tools": [WEATHER] * 21}, "tools", "<= 20"),
        ({"assistant_id": "a", "tools": [{"type": "function"}]}, "tools[0].function", "Missing required"),
        ({"assistant_id": "a", "tools": [{"function": {"name": "x"}}]}, "tools[0].type", "Missing required"),
        ({"assistant_id": "a", "tools": [{**WEATHER, "x": 1}]}, "tools[0].x", "Unknown parameter"),
        (
            {"assistant_id": "a", "tools": [{"type": "function", "function": {"name": "x", "x": 1}}]},
            "tools[0].function.x",
            "Unknown parameter",
        ),
        (
            {"assistant_id": "a", "tool_choice": {"function": {"name": "x"}}},
            "tool_choice.type",
            "Missing required",
        ),
        ({"assistant_id": "a", "tool_choice": "some"}, "tool_choice", "invalid enum value"),
        ({"assistant_id": "a", "response_format": {"type": "yaml"}}, "response_format.type", "yaml"),
        ({"assistant_id": "a", "truncation_strategy": {"type": "last_messages"}}, None, "last_messages"),
        (
            {"assistant_id": "a", "additional_messages": [{"role": "tool", "content": "x"}]},
            "additional_messages[0].role",
            "tool",
        ),
        (
            {"assistant_id": "a", "additional_messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "additional_messages[0].content[0].text",
            "Missing required",
        ),
        ([], None, "expected 'object', got 'array'"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_name(
    speaker: Speaker, body: Any, param: str, text: str
) -> None:
    error = speaker.refused(400, "POST", f"/threads/{speaker.thread()}/runs", body)
    assert text in error["message"]
    assert param is None or error["param"] == param


def test_metadata_at_the_limits_is_kept(speaker: Speaker) -> None:
    metadata = {f"{i:064}": "v" * 512 for i in range(16)}
    assert speaker.ok("POST", "/threads", {"metadata": metadata})["metadata"] == metadata


@pytest.mark.parametrize("content", [b'{"a', b"\xff", b"[" * 200_000, b'{"messages": "\\ud800"}', b"nul"])
def test_a_body_that_is_not_json_is_refused(speaker: Speaker, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = speaker.refused(400, "POST", "/threads", content=content, headers=headers)
    assert error["message"]


def test_a_body_of_another_type_or_size_is_refused(speaker: Speaker) -> None:
    error = speaker.refused(415, "POST", "/threads", content=b"{}", headers={"content-type": "text/plain"})
    assert "application/json" in error["message"]
    speaker.refused(415, "POST", "/threads", content=b"{}")
    huge = b'{"messages": "' + b"x" * (8 * 1024 * 1024) + b'"}'
    headers = {"content-type": "application/json"}
    speaker.refused(413, "POST", "/threads", content=huge, headers=headers)


def test_a_request_without_the_beta_header_is_refused(speaker: Speaker) -> None:
    both = [("openai-beta", "realtime=v1"), ("openai-beta", "assistants=v2")]
    assert speaker.send("GET", "/assistants", headers=both).status_code == 200
    for method, path in (("POST", "/threads"), ("GET", "/assistants"), ("GET", "/threads/thread_X")):
        error = speaker.refused(400, method, path, headers={"openai-beta": ""})
        assert error["code"] == "invalid_beta"
        assert error["message"].startswith(
            "You must provide the 'OpenAI-Beta' header to access the Assistants API."
        )


def test_parameters_of_a_list_are_checked(speaker: Speaker) -> None:
    for limit in ("0", "101", "-1", "x", "", "1" * 5000, "²"):
        assert speaker.refused(400, "GET", "/assistants", params={"limit": limit})["param"] == "limit"
    assert speaker.refused(400, "GET", "/assistants", params={"order": "up"})["param"] == "order"
    assert speaker.refused(400, "GET", "/assistants", params={"after": "asst_X"})["param"] == "after"
    assert speaker.refused(400, "GET", "/assistants", params={"before": "asst_X"})["param"] == "before"


def test_every_answer_tells_pollers_when_to_look_again(speaker: Speaker) -> None:
    def told(response: httpx.Response) -> None:
        assert int(response.headers["openai-poll-after-ms"]) > 0

    path, (call_id,) = speaker.waiting("Weather in Oslo?", TIME, WEATHER)
    told(speaker.send("GET", path))
    told(speaker.send("POST", f"{path}/submit_tool_outputs", outputs(("call_x", "1"))))
    body = {**outputs((call_id, "1")), "stream": True}
    with speaker.http.stream("POST", f"{path}/submit_tool_outputs", json=body) as stream:
        told(stream)
        stream.read()
    told(speaker.send("GET", path))
    told(speaker.send("GET", f"{path}/steps"))


def test_an_idempotency_key_makes_one_run_however_often_it_is_sent(speaker: Speaker) -> None:
    thread_id, body = speaker.thread("Weather in Oslo?"), {"assistant_id": speaker.assistant(WEATHER)}
    where, key = f"/threads/{thread_id}/runs", {"idempotency-key": "nonce-1"}
    answers = _at_once(*[lambda: speaker.ok("POST", where, body, headers=key)["id"]] * 6)
    assert len(set(answers)) == 1
    assert len(speaker.ok("GET", where)["data"]) == 1
    (call_id,) = call_ids(speaker.until(f"{where}/{answers[0]}", "requires_action"))
    with_stream = {**body, "metadata": {"a": "b"}}
    assert "Idempotency-Key" in speaker.refused(400, "POST", where, with_stream, headers=key)["message"]
    assert call_id


def test_a_stream_asked_for_again_begins_where_the_run_is(speaker: Speaker) -> None:
    body = {
        "assistant_id": speaker.assistant(WEATHER),
        "thread": {"messages": [{"role": "user", "content": "Weather in Oslo?"}]},
    }
    first = speaker.stream("/threads/runs", body, **{"idempotency-key": "nonce-2"})
    again = speaker.stream("/threads/runs", body, **{"idempotency-key": "nonce-2"})
    assert again == first[-2:]


def _at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do several things in as many threads at once; return what each returned, in order of arrival."""
    barrier, results = threading.Barrier(len(works)), list[Any]()

    def one(work: Callable[[], Any]) -> None:
        barrier.wait()
        results.append(work())

    threads = [threading.Thread(target=one, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(works)
    return results
