"""Creating, reading, changing, deleting and listing what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.speaker import WEATHER, Speaker, outputs

if TYPE_CHECKING:
    from server.speaker import JSON


def test_an_assistant_keeps_what_it_is_given_until_it_is_changed_or_deleted(speaker: Speaker) -> None:
    fields = {
        "name": "n",
        "instructions": "be kind",
        "tools": [WEATHER],
        "metadata": {"a": "b"},
        "top_p": 0.5,
    }
    path = "/assistants/" + speaker.assistant(**fields)
    assert fields.items() <= speaker.ok("GET", path).items()
    changed = speaker.ok("POST", path, {"name": None, "metadata": None})
    assert (changed["name"], changed["metadata"], changed["instructions"]) == (None, {}, "be kind")
    assert speaker.ok("GET", path) == changed
    assert speaker.ok("DELETE", path)["deleted"] is True
    speaker.refused(404, "GET", path)
    speaker.refused(404, "DELETE", path)


def test_deleting_a_thread_takes_its_messages_and_runs_with_it(speaker: Speaker) -> None:
    path = speaker.run("hello")
    speaker.until(path, "completed")
    thread = path.split("/runs")[0]
    (message, _) = speaker.ok("GET", f"{thread}/messages")["data"]
    assert speaker.ok("POST", thread, {"metadata": {"x": "y"}})["metadata"] == {"x": "y"}
    assert speaker.ok("DELETE", thread)["object"] == "thread.deleted"
    for gone in (thread, path, f"{thread}/messages", f"{thread}/messages/{message['id']}", f"{path}/steps"):
        speaker.refused(404, "GET", gone)


def test_messages_can_be_annotated_and_deleted(speaker: Speaker) -> None:
    where = f"/threads/{speaker.thread()}/messages"
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
    ]
    message = speaker.ok("POST", where, {"role": "assistant", "content": parts})
    assert message["content"] == [{"type": "text", "text": {"value": "look", "annotations": []}}, parts[1]]
    one = f"{where}/{message['id']}"
    assert speaker.ok("POST", one, {"metadata": {"k": "v"}})["metadata"] == {"k": "v"}
    assert speaker.ok("GET", one)["metadata"] == {"k": "v"}
    assert speaker.ok("DELETE", one)["object"] == "thread.message.deleted"
    speaker.refused(404, "GET", one)


def test_a_run_is_made_of_its_assistant_and_what_the_request_overrides(speaker: Speaker) -> None:
    assistant_id = speaker.assistant(WEATHER, instructions="be kind", temperature=0.25)
    thread_id = speaker.thread()
    body = {
        "assistant_id": assistant_id,
        "additional_instructions": "and brief",
        "additional_messages": [{"role": "user", "content": "hello"}],
        "model": "other",
        "metadata": {"k": "v"},
    }
    run = speaker.ok("POST", f"/threads/{thread_id}/runs", body)
    assert (run["instructions"], run["model"], run["temperature"]) == ("be kind\nand brief", "other", 0.25)
    assert run["tools"] == [WEATHER]
    assert run["expires_at"] == run["created_at"] + 600
    path = f"/threads/{thread_id}/runs/{run['id']}"
    speaker.until(path, "completed")
    texts = [
        m["content"][0]["text"]["value"] for m in speaker.ok("GET", f"/threads/{thread_id}/messages")["data"]
    ]
    assert texts == ["Hello, how are you today, dear reader of streams?", "hello"]


def test_a_run_without_instructions_has_an_empty_string_for_them(speaker: Speaker) -> None:
    assert speaker.ok("GET", speaker.run("hello"))["instructions"] == ""


def test_metadata_of_a_run_can_be_changed_while_it_waits_and_when_it_is_over(speaker: Speaker) -> None:
    path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER, metadata={"a": "b"})
    assert speaker.ok("POST", path, {})["metadata"] == {"a": "b"}
    assert speaker.ok("POST", path, {"metadata": {"c": "d"}})["status"] == "requires_action"
    speaker.ok("POST", f"{path}/submit_tool_outputs", outputs((call_id, "1")))
    assert speaker.until(path, "completed")["metadata"] == {"c": "d"}
    assert speaker.ok("POST", path, {"metadata": {"e": "f"}})["status"] == "completed"
    assert speaker.ok("GET", path)["metadata"] == {"e": "f"}


def test_only_the_newest_messages_reach_the_model_when_the_run_says_so(speaker: Speaker) -> None:
    thread_id = speaker.thread("hello", "filler one", "filler two")
    body = {
        "assistant_id": speaker.assistant(),
        "truncation_strategy": {"type": "last_messages", "last_messages": 1},
    }
    events = speaker.stream(f"/threads/{thread_id}/runs", body)
    assert events[-2][1]["usage"]["prompt_tokens"] == 3


def test_pages_follow_each_other_in_both_orders_and_directions(speaker: Speaker) -> None:
    where = f"/threads/{speaker.thread(*'abcde')}/messages"

    def page(**query: str | int) -> tuple[str, bool]:
        body = speaker.ok("GET", where, params=query)
        ids = [message["id"] for message in body["data"]]
        assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else ("", ""))
        return "".join(message["content"][0]["text"]["value"] for message in body["data"]), body["has_more"]

    every = speaker.ok("GET", where, params={"order": "asc"})["data"]
    a, b, c, d, e = (message["id"] for message in every)
    assert page() == ("edcba", False)
    assert page(limit=2) == ("ed", True)
    assert page(limit=2, after=d) == ("cb", True)
    assert page(limit=2, after=b) == ("a", False)
    assert page(limit=2, after=a) == ("", False)
    assert page(limit=2, before=b) == ("dc", True)
    assert page(limit=2, before=d) == ("e", False)
    assert page(order="asc", limit=2, after=b) == ("cd", True)
    assert page(order="asc", limit=2, before=d) == ("bc", True)
    assert page(order="asc", after=a, before=e) == ("bcd", False)
    assert page(after=e, before=c) == ("d", False)
    assert page(limit=5) == ("edcba", False)


def test_lists_show_twenty_unless_told_otherwise(speaker: Speaker) -> None:
    where = f"/threads/{speaker.thread(*'abcdefghijklmnopqrstuvwxyz')}/messages"
    body = speaker.ok("GET", where)
    assert (len(body["data"]), body["has_more"]) == (20, True)
    assert len(speaker.ok("GET", where, params={"limit": 100})["data"]) == 26


def test_a_cursor_of_another_list_is_refused(speaker: Speaker) -> None:
    one, other = speaker.thread("a"), speaker.thread("b")
    (message,) = speaker.ok("GET", f"/threads/{one}/messages")["data"]
    error = speaker.refused(400, "GET", f"/threads/{other}/messages", params={"after": message["id"]})
    assert error["param"] == "after"


def test_steps_can_be_listed_and_read(speaker: Speaker) -> None:
    path, (call_id,) = speaker.waiting("Weather in Oslo?", WEATHER)
    (step,) = speaker.ok("GET", f"{path}/steps")["data"]
    assert step["status"] == "in_progress"
    assert step["step_details"]["tool_calls"][0]["function"]["output"] is None
    speaker.ok("POST", f"{path}/submit_tool_outputs", outputs((call_id, "{}")))
    speaker.until(path, "completed")
    wrote, called = speaker.ok("GET", f"{path}/steps")["data"]
    assert called["id"] == step["id"]
    assert speaker.ok("GET", f"{path}/steps/{wrote['id']}") == wrote
    assert [s["type"] for s in (called, wrote)] == ["tool_calls", "message_creation"]


def test_include_names_what_can_be_included_and_nothing_else(speaker: Speaker) -> None:
    path = speaker.run("hello")
    speaker.until(path, "completed")
    (step,) = speaker.ok("GET", f"{path}/steps")["data"]
    known = {"include[]": "step_details.tool_calls[*].file_search.results[*].content"}
    assert speaker.ok("GET", f"{path}/steps", params=known)["data"] == [step]
    assert speaker.ok("GET", f"{path}/steps/{step['id']}", params=known) == step
    body = {"assistant_id": step["assistant_id"]}
    runs = path.rpartition("/")[0]
    wrong = {"include[]": "everything"}
    for method, where, sent in (
        ("GET", f"{path}/steps", None),
        ("GET", f"{path}/steps/{step['id']}", None),
        ("POST", runs, body),
    ):
        assert speaker.refused(400, method, where, sent, params=wrong)["param"] == "include[]"
    speaker.ok("POST", runs, body, params=known)


def test_a_chosen_function_must_be_one_of_the_runs_own(speaker: Speaker) -> None:
    def choose(name: str) -> JSON:
        return {"tool_choice": {"type": "function", "function": {"name": name}}}

    thread_id = speaker.thread("hello")
    body = {"assistant_id": speaker.assistant(WEATHER)}
    for where in (f"/threads/{thread_id}/runs", "/threads/runs"):
        error = speaker.refused(400, "POST", where, {**body, **choose("get_time")})
        assert error["message"] == "Invalid 'tool_choice': this run has no function 'get_time'."
    speaker.refused(400, "POST", f"/threads/{thread_id}/runs", {**body, **choose("get_weather"), "tools": []})
    run = speaker.ok("POST", f"/threads/{thread_id}/runs", {**body, **choose("get_weather")})
    assert run["tool_choice"] == choose("get_weather")["tool_choice"]


@pytest.mark.parametrize("kind", ["code_interpreter", "file_search"])
def test_hosted_tools_are_refused_wherever_they_can_be_asked_for(speaker: Speaker, kind: str) -> None:
    asking = {"assistant_id": speaker.assistant()}
    places: list[tuple[str, JSON]]
    unsupported = f"Tool type '{kind}' is not supported by this server."
    places = [
        ("/assistants", {"model": "m", "tools": [WEATHER, {"type": kind}]}),
        ("/threads/runs", {**asking, "tools": [WEATHER, {"type": kind}]}),
    ]
    for where, body in places:
        error = speaker.refused(400, "POST", where, body)
        assert (error["message"], error["param"]) == (unsupported, "tools[1].type")
    error = speaker.refused(400, "POST", "/threads/runs", {**asking, "tool_choice": {"type": kind}})
    assert (error["message"], error["param"]) == (unsupported, "tool_choice.type")
    files = {"code_interpreter": {"file_ids": ["file_1"]}, "file_search": {"vector_store_ids": ["vs_1"]}}
    places = [
        ("/threads", {"tool_resources": {kind: files[kind]}}),
        ("/assistants", {"model": "m", "tool_resources": {kind: files[kind]}}),
        ("/threads/runs", {**asking, "tool_resources": {kind: files[kind]}}),
        ("/threads/runs", {**asking, "thread": {"tool_resources": {kind: files[kind]}}}),
    ]
    for where, body in places:
        assert "does not support" in speaker.refused(400, "POST", where, body)["message"]
    attached = {"role": "user", "content": "x", "attachments": [{"file_id": "f", "tools": [{"type": kind}]}]}
    assert "file storage" in speaker.refused(400, "POST", "/threads", {"messages": [attached]})["message"]
    assert speaker.ok("POST", "/threads", {"tool_resources": {kind: {}}})["tool_resources"] == {kind: {}}


def test_automatic_truncation_drops_the_middle_until_the_prompt_fits(speaker: Speaker) -> None:
    def prompt_tokens(**options: object) -> object:
        # 100 tokens each; the model is asked with the last.
        thread_id = speaker.thread(*["filler, " * 50] * 4, "hello " + "x" * 394)
        body = {"assistant_id": speaker.assistant(), **options}
        run = speaker.stream(f"/threads/{thread_id}/runs", body)[-2][1]
        return run["usage"]["prompt_tokens"] if run["status"] == "completed" else run["incomplete_details"]

    assert prompt_tokens() == 500
    assert prompt_tokens(max_prompt_tokens=500) == 500
    assert prompt_tokens(max_prompt_tokens=499) == 400
    assert prompt_tokens(max_prompt_tokens=256) == 200
    assert prompt_tokens(truncation_strategy={"type": "auto", "last_messages": 1}) == 500
    newest = {"type": "last_messages", "last_messages": 3}
    assert prompt_tokens(truncation_strategy=newest) == 300
    assert prompt_tokens(truncation_strategy=newest, max_prompt_tokens=256) == {"reason": "max_prompt_tokens"}


def test_a_run_has_all_the_tools_of_its_assistant_even_more_than_it_could_be_given(speaker: Speaker) -> None:
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(128)]
    body = {"assistant_id": speaker.assistant(*tools)}
    assert len(speaker.ok("POST", "/threads/runs", body)["tools"]) == 128
    speaker.refused(400, "POST", "/threads/runs", {**body, "tools": tools[:21]})
    speaker.refused(400, "POST", "/assistants", {"model": "m", "tools": [*tools, WEATHER]})


def test_the_reasoning_effort_is_the_runs_or_else_the_assistants(speaker: Speaker) -> None:
    body = {"assistant_id": speaker.assistant(reasoning_effort="low")}
    where = f"/threads/{speaker.thread()}/runs"
    run = speaker.ok("POST", where, {**body, "reasoning_effort": "high"})
    assert run["reasoning_effort"] == "high"
    speaker.until(f"{where}/{run['id']}", "completed")
    assert speaker.ok("POST", where, body)["reasoning_effort"] == "low"
