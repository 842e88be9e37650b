"""What is sent how often: each fault, for operations that may be repeated and for those that may not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from drivers import KEY, QUICK, both, driven
from faulty_server import (
    FaultyServer,
    Step,
    chunks,
    drip,
    failure,
    hang_up,
    head,
    raw,
    refused_url,
    reply,
    reset_after,
    reset_unread,
    stall,
)

from orchestrator.client import NO_RETRIES, RetryPolicy, when_status
from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeout,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
)
from orchestrator.protocol.objects import Deleted
from orchestrator.telemetry.logs import Event

RUN = {"id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": "queued"}
THREAD = {"id": "thread_1", "object": "thread"}

UNCERTAIN: dict[str, Step] = {
    "500": failure(500),
    "503 with every hint to repeat": failure(503, {"retry-after": "0", "x-should-retry": "true"}),
    "408": failure(408),
    "409": failure(409),
    "closed without an answer": hang_up,
    "reset before the request was read": reset_unread,
    "reset after the request was read": reset_after(),
    "reset within the headers": reset_after(b"HTTP/1.1 200 OK\r\nContent-"),
    "cut within the body": raw(head(200, content_length="100") + b'{"id": "run_1"'),
    "cut within the chunks": chunks([b'{"id": '], content_type="application/json", end=b"5\r\nab"),
    "garbage instead of HTTP": raw(b"220 mail.example ESMTP\r\n\r\n"),
    "garbage instead of chunks": chunks([], content_type="application/json", end=b"zz\r\n"),
    "garbage instead of JSON": reply(b"<html>gateway</html>"),
    "JSON of another shape": reply([1, 2]),
    "broken compression": reply(b"not gzip", headers={"content-encoding": "gzip"}),
    "stalled without an answer": stall(),
    "dripping without an end": drip(head(200, content_length="99999") + b"{"),
    "stalled within the body": stall(head(200, content_length="100") + b"{"),
}

QUICK_S = 0.6
"""What a caller waits for who is to see a fault that only time ends."""

ENDED_BY_TIME = {"stalled without an answer", "dripping without an end", "stalled within the body"}


def patience(fault: Step) -> float:
    """How long a caller waits: for the others as long as a busy machine may take."""
    return QUICK_S if any(UNCERTAIN[name] is fault for name in ENDED_BY_TIME) else 10.0


faults = pytest.mark.parametrize("fault", UNCERTAIN.values(), ids=UNCERTAIN.keys())


def events(caplog: pytest.LogCaptureFixture) -> list[Event]:
    return [record.msg for record in caplog.records if isinstance(record.msg, Event)]


def sent(server: FaultyServer) -> int:
    return len(server.received) + server.unread


@both
@faults
def test_a_create_whose_outcome_is_uncertain_is_sent_once_and_named(kind: str, fault: Step) -> None:
    with (
        FaultyServer(fault, default=reply(RUN)) as server,
        driven(kind, server.url, timeout=patience(fault)) as driver,
    ):
        with pytest.raises(AmbiguousOutcome) as caught:
            driver.call("create_run", "thread_1", assistant_id="asst_1")
        assert sent(server) == 1
    error = caught.value
    assert (error.operation, error.thread_id, error.nonce) == ("create_run", "thread_1", None)
    assert isinstance(error.__cause__, APIError)
    assert "thread_1" in str(error)


@both
@faults
def test_a_retrieve_is_sent_again_after_the_same_faults(kind: str, fault: Step) -> None:
    with (
        FaultyServer(fault, default=reply(RUN)) as server,
        driven(kind, server.url, timeout=patience(fault)) as driver,
    ):
        assert driver.call("get_run", "thread_1", "run_1").id == "run_1"
        assert sent(server) == 2


@both
@pytest.mark.parametrize(
    ("name", "ids", "fields"),
    [
        ("create_message", ("thread_1",), {"role": "user", "content": "hi"}),
        ("create_thread", (), {"messages": [{"role": "user", "content": "hi"}]}),
        ("create_thread_and_run", (), {"assistant_id": "asst_1"}),
        ("create_assistant", (), {"model": "gpt-4o"}),
    ],
)
def test_nothing_else_that_does_work_is_sent_twice(
    kind: str, name: str, ids: tuple[str, ...], fields: dict[str, Any]
) -> None:
    with FaultyServer(hang_up, default=reply(RUN)) as server, driven(kind, server.url) as driver:
        with pytest.raises(AmbiguousOutcome, match=name):
            driver.call(name, *ids, **fields)
        assert sent(server) == 1


@both
@pytest.mark.parametrize(
    ("name", "ids", "fields"),
    [
        ("create_thread", (), {}),
        ("modify_thread", ("thread_1",), {"metadata": None}),
        ("modify_run", ("thread_1", "run_1"), {"metadata": {"a": "b"}}),
        ("modify_message", ("thread_1", "msg_1"), {"metadata": {}}),
        ("modify_assistant", ("asst_1",), {"name": None}),
        ("cancel_run", ("thread_1", "run_1"), {}),
        ("delete_thread", ("thread_1",), {}),
    ],
)
def test_what_does_no_harm_twice_is_sent_again(
    kind: str, name: str, ids: tuple[str, ...], fields: dict[str, Any]
) -> None:
    with FaultyServer(reset_after(), failure(500), default=reply(THREAD)) as server:
        with driven(kind, server.url) as driver:
            assert driver.call(name, *ids, **fields).id == "thread_1"
        assert sent(server) == 3


@both
def test_a_create_is_repeated_when_it_was_refused(kind: str) -> None:
    with FaultyServer(failure(429), failure(429), reply(RUN)) as server, driven(kind, server.url) as driver:
        assert driver.call("create_run", "thread_1", assistant_id="asst_1").id == "run_1"
        assert server.seen == ["POST /threads/thread_1/runs"] * 3


@both
def test_a_create_is_repeated_when_nobody_listened(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "orchestrator")
    with (
        driven(kind, refused_url()) as driver,
        pytest.raises(APIConnectionError) as caught,
    ):
        driver.call("create_run", "thread_1", assistant_id="asst_1")
    assert not caught.value.sent
    assert [entry["attempt"] for entry in events(caplog) if entry["event"] == "request.retried"] == [1, 2, 3]


@both
def test_a_create_that_was_refused_and_then_went_unanswered_is_uncertain(kind: str) -> None:
    with FaultyServer(failure(429), hang_up) as server, driven(kind, server.url) as driver:
        with pytest.raises(AmbiguousOutcome):
            driver.call("create_run", "thread_1", assistant_id="asst_1")
        assert sent(server) == 2


@both
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, APIStatusError),
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
    ],
)
def test_a_decision_of_the_server_is_final(kind: str, status: int, error: type[APIStatusError]) -> None:
    step = failure(status, {"x-request-id": "req_7", "location": "http://elsewhere.example/"})
    with FaultyServer(step) as server, driven(kind, server.url) as driver:
        with pytest.raises(error) as caught:
            driver.call("get_thread", "thread_1")
        assert sent(server) == 1
    assert (caught.value.status, caught.value.request_id) == (status, "req_7")
    assert (caught.value.method, caught.value.path) == ("GET", "/threads/thread_1")
    if status == 302:
        assert "http://elsewhere.example/" in str(caught.value)


@both
def test_hints_decide_when_and_the_policy_how_often(kind: str) -> None:
    script = [failure(429, {"retry-after-ms": "1500"}), failure(503, {"retry-after": "3"}), failure(500)]
    with FaultyServer(*script, default=failure(502)) as server, driven(kind, server.url) as driver:
        with pytest.raises(InternalServerError):
            driver.call("get_thread", "thread_1")
        assert sent(server) == 4
        assert driver.slept == [1.5, 3.0, 0.0]


@both
def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(kind: str) -> None:
    with FaultyServer(failure(429, {"retry-after": "3600"})) as server, driven(kind, server.url) as driver:
        with pytest.raises(RateLimitError):
            driver.call("get_thread", "thread_1")
        assert (sent(server), driver.slept) == (1, [])


@both
def test_a_wait_past_the_deadline_is_not_begun(kind: str) -> None:
    policy = RetryPolicy(deadline_s=5.0)
    with FaultyServer(failure(429, {"retry-after": "6"})) as server, driven(kind, server.url) as driver:
        with pytest.raises(RateLimitError):
            driver.call("get_thread", "thread_1", retry=policy)
        assert (sent(server), driver.slept) == (1, [])


@both
def test_an_attempt_gets_no_more_time_than_the_deadline_leaves(kind: str) -> None:
    policy = RetryPolicy(deadline_s=0.3)
    with FaultyServer(default=stall()) as server, driven(kind, server.url, timeout=15.0) as driver:
        begun = time.monotonic()
        with pytest.raises(APITimeout) as caught:
            driver.call("get_thread", "thread_1", retry=policy)
        assert time.monotonic() - begun < 10.0
        assert sent(server) == 1
    assert caught.value.sent


@both
def test_the_policy_of_one_call_stands_over_the_clients(kind: str) -> None:
    with FaultyServer(default=failure(500)) as server, driven(kind, server.url) as driver:
        with pytest.raises(InternalServerError):
            driver.call("get_thread", "thread_1", retry=NO_RETRIES)
        assert sent(server) == 1


@both
def test_a_condition_of_the_users_forbids_further_attempts(kind: str) -> None:
    policy = RetryPolicy(base_s=0.0, when=~when_status(500))
    with FaultyServer(failure(502), failure(500)) as server, driven(kind, server.url) as driver:
        with pytest.raises(InternalServerError):
            driver.call("get_thread", "thread_1", retry=policy)
        assert sent(server) == 2


@both
def test_a_delete_that_was_done_before_its_answer_was_lost_has_succeeded(kind: str) -> None:
    with FaultyServer(hang_up, failure(404)) as server, driven(kind, server.url) as driver:
        assert driver.call("delete_thread", "thread_1") == Deleted(id="thread_1", object="thread.deleted")
        assert sent(server) == 2


@both
@pytest.mark.parametrize("first", [[], [failure(429)]], ids=["at once", "after a refusal"])
def test_a_delete_of_what_never_was_is_not_found(kind: str, first: list[Step]) -> None:
    with (
        FaultyServer(*first, failure(404)) as server,
        driven(kind, server.url) as driver,
        pytest.raises(NotFoundError),
    ):
        driver.call("delete_thread", "thread_1")


@both
def test_every_failed_attempt_is_logged_once_without_secrets(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchestrator")
    script = [failure(429, {"x-request-id": "req_1"}), hang_up]
    with FaultyServer(*script, default=reply(THREAD)) as server, driven(kind, server.url) as driver:
        driver.call("get_thread", "thread_1")
    logs = events(caplog)
    lines = [(e["operation"], e["attempt"], e["reason"], e["status"], e["request_id"]) for e in logs]
    assert lines == [
        ("get_thread", 1, "RateLimitError", 429, "req_1"),
        ("get_thread", 2, "APIConnectionError", None, None),
    ]
    assert KEY not in str(logs)


@both
def test_an_attempt_is_one_request_whatever_comes(kind: str) -> None:
    from orchestrator.client import endpoints

    with FaultyServer(failure(500), hang_up, reply(RUN)) as server, driven(kind, server.url) as driver:
        with pytest.raises(InternalServerError):
            driver.attempt(endpoints.get_run("thread_1", "run_1"))
        with pytest.raises(APIConnectionError) as caught:
            driver.attempt(endpoints.get_run("thread_1", "run_1"))
        assert caught.value.sent
        assert driver.attempt(endpoints.get_run("thread_1", "run_1")).value.id == "run_1"
        assert sent(server) == 3


@both
def test_an_answer_tells_what_came_with_its_value(kind: str) -> None:
    from orchestrator.client import endpoints

    headers = {"X-Request-Id": "req_9", "OpenAI-Poll-After-Ms": "250"}
    with FaultyServer(reply(RUN, headers=headers)) as server, driven(kind, server.url) as driver:
        answer = driver.attempt(endpoints.get_run("thread_1", "run_1"))
    assert (answer.status, answer.request_id, answer.poll_after_s) == (200, "req_9", 0.25)
    assert answer.headers["openai-poll-after-ms"] == "250"


@both
@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}', "m", "c"),
        (b'{"error": {"code": 429, "message": "azure"}}', "azure", "429"),
        (b'{"message": "flat", "code": "c"}', "flat", "c"),
        (b'{"error": "text"}', "text", None),
        (b'{"detail": "fast"}', "fast", None),
        (b"<html>Bad gateway</html>", "Bad Gateway", None),
        (b"\xff\xfe", "Bad Gateway", None),
        (b"", "Bad Gateway", None),
    ],
)
def test_error_bodies_of_every_kind_are_read(kind: str, body: bytes, message: str, code: str | None) -> None:
    with (
        FaultyServer(reply(body, 502)) as server,
        driven(kind, server.url, retry=NO_RETRIES) as driver,
        pytest.raises(InternalServerError) as caught,
    ):
        driver.call("get_thread", "thread_1")
    assert (caught.value.message, caught.value.code) == (message, code)
    assert caught.value.body == body.decode("utf-8", "replace")


@both
def test_an_endless_error_body_is_not_read_to_its_end(kind: str) -> None:
    endless = raw(head(500, content_length="999999999") + b"x" * 200_000)
    with (
        FaultyServer(endless) as server,
        driven(kind, server.url, retry=NO_RETRIES) as driver,
        pytest.raises(InternalServerError) as caught,
    ):
        driver.call("get_thread", "thread_1")
    assert caught.value.body == "x" * 65536


@both
def test_an_answer_that_unpacks_to_too_much_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    from orchestrator.client import answers

    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 100_000)
    bomb = gzip.compress(b" " * 10_000_000)
    with (
        FaultyServer(default=reply(bomb, headers={"content-encoding": "gzip"})) as server,
        driven(kind, server.url, retry=NO_RETRIES) as driver,
        pytest.raises(APIResponseError, match="larger"),
    ):
        driver.call("get_thread", "thread_1")


@both
def test_a_nonce_travels_in_the_metadata_and_as_a_header(kind: str) -> None:
    with FaultyServer(default=reply(RUN)) as server, driven(kind, server.url) as driver:
        driver.call("create_run", "thread_1", assistant_id="a", metadata={"mine": "1"}, nonce="n1")
        driver.call("create_run", "thread_1", assistant_id="a")
        first, second = server.received
    assert first.json["metadata"] == {"mine": "1", NONCE_KEY: "n1"}
    assert first.headers["idempotency-key"] == "n1"
    assert "metadata" not in second.json
    assert "idempotency-key" not in second.headers


@both
def test_cookies_are_not_kept(kind: str) -> None:
    with FaultyServer(default=reply(THREAD, headers={"set-cookie": "a=b; Path=/"})) as server:
        with driven(kind, server.url) as driver:
            driver.call("get_thread", "thread_1")
            driver.call("get_thread", "thread_1")
        assert not any("cookie" in one.headers for one in server.received)


def test_threads_share_one_blocking_client() -> None:
    with FaultyServer(default=reply(THREAD)) as server, driven("sync", server.url, retry=QUICK) as driver:
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda: ids.append(driver.call("get_thread", "thread_1").id))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ids == ["thread_1"] * 8


@both
@pytest.mark.parametrize("cut", [raw, reset_after], ids=["closed", "reset"])
def test_a_refusal_whose_text_is_cut_off_is_still_one(kind: str, cut: Callable[[bytes], Step]) -> None:
    def refusal(status: int) -> Step:
        return cut(head(status, content_type="application/json", content_length="500") + b'{"error": {')

    with FaultyServer(refusal(429), refusal(400)) as server, driven(kind, server.url) as driver:
        with pytest.raises(BadRequestError):
            driver.call("create_run", "thread_1", assistant_id="asst_1")
        assert sent(server) == 2
