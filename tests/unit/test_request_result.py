"""What is asked for and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle_story import RUN, THREAD, message

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import RunFailed
from orchestrator.protocol.objects import LastError
from orchestrator.runs.request import RunRequest, normalized_messages
from orchestrator.runs.result import RunResult


def test_fifteen_pairs_of_metadata_fit_beside_the_nonce_and_a_sixteenth_is_refused() -> None:
    pairs = {f"key{index}": "value" for index in range(16)}
    with pytest.raises(ValueError, match="16 pairs; at most 15"):
        RunRequest(assistant_id="asst_1", metadata=pairs)
    pairs.popitem()
    assert len(RunRequest(assistant_id="asst_1", metadata=pairs).metadata) == 15


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"metadata": {NONCE_KEY: "x"}}, "reserved"),
        ({"deadline_s": 0}, "positive"),
        ({"deadline_s": float("nan")}, "positive"),
        ({"watch": "guess"}, "watch must be one of 'stream', 'poll', got 'guess'"),
        ({"on_deadline": "hope"}, "on_deadline must be one of"),
        ({"on_busy_thread": "push"}, "on_busy_thread must be one of 'enqueue', 'reject', 'interrupt'"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_before_anything_is_sent(
    wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        RunRequest(assistant_id="asst_1", **wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"assistant_id": None}, "assistant_id must be a str, got NoneType"),
        ({"metadata": {"tries": 3}}, "metadata keys and values are strings; 'tries' has 3"),
        ({"deadline_s": "3"}, "deadline_s must be a number of seconds, got '3'"),
    ],
)
def test_an_argument_of_another_type_is_named_before_anything_is_sent(
    wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        RunRequest(**{"assistant_id": "asst_1", **wrong})


def test_a_run_that_was_never_created_says_so_instead_of_naming_none() -> None:
    with pytest.raises(RunFailed, match="had not been created on the server, ended as cancelled"):
        RunResult(status="cancelled", thread_id=None, run_id=None).raise_for_status()


def test_messages_may_be_a_text_a_mapping_or_several_of_either() -> None:
    user = {"role": "user", "content": "hi"}
    assert normalized_messages(None) == ()
    assert normalized_messages("hi") == (user,)
    assert normalized_messages(user) == (user,)
    assert normalized_messages(message for message in ("hi", user)) == (user, user)


def test_a_message_is_copied_so_that_a_later_change_does_not_reach_the_request() -> None:
    mine = {"role": "user", "content": "hi"}
    (taken,) = normalized_messages(mine)
    mine["content"] = "changed"
    assert taken["content"] == "hi"


def test_a_message_that_is_none_names_its_place() -> None:
    with pytest.raises(TypeError, match=r"messages\[1\] must be a str or a mapping, got int"):
        normalized_messages(["hi", 5])  # type: ignore[list-item]  # the mistake is the point
    with pytest.raises(ValueError, match=r"messages\[0\] lacks role and content"):
        normalized_messages({"text": "hi"})


def test_the_text_of_a_result_is_that_of_the_last_message_that_has_any() -> None:
    messages = (message("msg_1", "first"), message("msg_2", "second"), message("msg_3", ""))
    assert RunResult(status="completed", thread_id=THREAD, run_id=RUN, messages=messages).text == "second"
    assert RunResult(status="completed", thread_id=THREAD, run_id=RUN).text == ""


def test_a_result_that_is_not_completed_raises_with_the_ids_and_the_reason() -> None:
    completed = RunResult(status="completed", thread_id=THREAD, run_id=RUN)
    assert completed.raise_for_status() is completed
    error = LastError(code="rate_limit_exceeded", message="slow down")
    failed = RunResult(status="failed", thread_id=THREAD, run_id=RUN, error=error)
    with pytest.raises(RunFailed, match="rate_limit_exceeded: slow down") as caught:
        failed.raise_for_status()
    assert (caught.value.run_id, caught.value.thread_id, caught.value.status) == (RUN, THREAD, "failed")
