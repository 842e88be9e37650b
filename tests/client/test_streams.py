"""Event streams on both clients: what they yield, how they end, and what an early end means."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from drivers import both, driven
from faulty_server import (
    DONE,
    FaultyServer,
    Step,
    chunks,
    event,
    failure,
    hang_up,
    head,
    reply,
    reset_after,
    stall,
)

from orchestrator.client import AsyncThreadsClient, endpoints
from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    APIResponseError,
    APITimeout,
    BadRequestError,
    RateLimitError,
)
from orchestrator.protocol.events import DoneEvent, ErrorEvent, MessageDeltaEvent, RunEvent, StreamEvent


def run(status: str) -> dict[str, Any]:
    return {"id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": status}


CREATED, QUEUED, COMPLETED = (
    event(f"thread.run.{name}", run(status))
    for name, status in (("created", "queued"), ("queued", "queued"), ("completed", "completed"))
)
THREAD_CREATED = event("thread.created", {"id": "thread_1", "object": "thread"})
DELTA = event(
    "thread.message.delta",
    {"id": "msg_1", "delta": {"content": [{"index": 0, "type": "text", "text": {"value": "hi"}}]}},
)
WHOLE = [CREATED, QUEUED, DELTA, COMPLETED, DONE]
STREAM_HEAD = head(200, content_type="text/event-stream", transfer_encoding="chunked")

CALL = endpoints.stream_run("thread_1", assistant_id="asst_1")


def names(events: list[StreamEvent]) -> list[str]:
    return [event.event for event in events]


def never(event: StreamEvent) -> bool:
    return False


def noted(event: StreamEvent, seen: list[StreamEvent]) -> bool:
    seen.append(event)
    return False


def partial(*parts: bytes) -> bytes:
    return STREAM_HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@both
def test_a_stream_yields_typed_events_with_their_names(kind: str) -> None:
    with FaultyServer(chunks(WHOLE)) as server, driven(kind, server.url) as driver:
        events = driver.stream("stream_run", "thread_1", assistant_id="asst_1", nonce="n1")
        request = server.received[0]
    assert names(events) == [
        "thread.run.created", "thread.run.queued", "thread.message.delta", "thread.run.completed", "done",
    ]  # fmt: skip
    assert isinstance(events[0], RunEvent)
    assert isinstance(events[2], MessageDeltaEvent)
    assert events[2].data.text == "hi"
    assert request.json["stream"] is True
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["idempotency-key"] == "n1"


@both
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_chunks_may_be_cut_anywhere(kind: str, size: int) -> None:
    whole = b"".join(WHOLE)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    with FaultyServer(chunks(parts)) as server, driven(kind, server.url) as driver:
        assert len(driver.attempt_stream(CALL, never)) == 5


@both
def test_a_stream_that_ends_anywhere_yields_the_events_that_were_whole(kind: str) -> None:
    whole = b"".join(WHOLE)
    cuts = range(0, len(whole) + 1, 17)
    with (
        FaultyServer(*(chunks([whole[:at]] if at else []) for at in cuts)) as server,
        driven(kind, server.url) as driver,
    ):
        seen = [names(driver.attempt_stream(CALL, never)) for _ in cuts]
    ends = [len(b"".join(WHOLE[:count])) for count in range(1, 6)]
    expected = [sum(end <= at for end in ends) for at in cuts]
    assert [len(one) for one in seen] == expected
    assert expected[0] == 0
    assert all(one == seen[-1][: len(one)] for one in seen)


@both
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 10_000])
def test_a_server_without_event_lines_with_any_line_ends_is_read(
    kind: str, newline: bytes, size: int
) -> None:
    payloads = [run("queued"), {"error": {"message": "busy"}}, {"message": "busy", "code": "server_error"}]
    lines = [b"\xef\xbb\xbf: hello", b""]
    for payload in payloads:
        # One payload on several data lines, as JSON may be.
        lines += [b"data: " + line for line in json.dumps(payload, indent=1).encode().split(b"\n")] + [
            b": x",
            b"",
        ]
    whole = newline.join([*lines, b"data: [DONE]", b"", b""])
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    with FaultyServer(chunks(parts)) as server, driven(kind, server.url) as driver:
        events = driver.attempt_stream(CALL, never)
    assert names(events) == ["thread.run.queued", "error", "error", "done"]
    assert all(one.data.message == "busy" for one in events if isinstance(one, ErrorEvent))


@both
def test_an_end_without_done_just_ends_the_iteration(kind: str) -> None:
    with FaultyServer(chunks([CREATED])) as server, driven(kind, server.url) as driver:
        assert names(driver.attempt_stream(CALL, never)) == ["thread.run.created"]


@both
def test_an_attempt_draws_no_conclusion_from_an_empty_stream(kind: str) -> None:
    with FaultyServer(chunks([])) as server, driven(kind, server.url) as driver:
        assert driver.attempt_stream(CALL, never) == []


@both
def test_nothing_after_done_is_yielded_or_waited_for(kind: str) -> None:
    open_end = stall(partial(CREATED, DONE))
    with FaultyServer(open_end) as server, driven(kind, server.url, stream_idle_s=15.0) as driver:
        assert names(driver.attempt_stream(CALL, never)) == ["thread.run.created", "done"]


@both
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(reset_after(partial(CREATED)), id="a reset"),
        pytest.param(chunks([CREATED], end=b"5\r\nab"), id="a chunk cut short"),
        pytest.param(chunks([CREATED], end=b"zz\r\n"), id="garbage"),
        pytest.param(chunks([CREATED], end=b""), id="no last chunk"),
    ],
)
def test_a_broken_transfer_is_a_connection_error(kind: str, fault: Step) -> None:
    with (
        FaultyServer(fault) as server,
        driven(kind, server.url) as driver,
        pytest.raises(APIConnectionError) as caught,
    ):
        driver.attempt_stream(CALL, never)
    assert caught.value.sent


@both
def test_events_before_a_cut_are_not_lost(kind: str) -> None:
    with FaultyServer(chunks([CREATED, DELTA], end=b"5\r\nab")) as server, driven(kind, server.url) as driver:
        seen: list[StreamEvent] = []
        with pytest.raises(APIConnectionError):
            driver.attempt_stream(CALL, lambda event: noted(event, seen))
    assert names(seen) == ["thread.run.created", "thread.message.delta"]


@both
def test_silence_in_a_stream_times_out(kind: str) -> None:
    with (
        FaultyServer(stall(partial(CREATED))) as server,
        driven(kind, server.url, stream_idle_s=0.2) as driver,
    ):
        with pytest.raises(APITimeout):
            driver.attempt_stream(CALL, never)
        server.wait_until(lambda server: not server._open)


@both
def test_a_server_that_cannot_stream_yields_one_event_for_the_run(kind: str) -> None:
    with FaultyServer(default=reply(run("queued"))) as server, driven(kind, server.url) as driver:
        events = driver.attempt_stream(CALL, never)
        assert driver.stream("stream_run", "thread_1", assistant_id="asst_1") == events
    assert names(events) == ["thread.run.queued"]
    assert isinstance(events[0], RunEvent)
    assert events[0].run_id == events[0].data.id == "run_1"


@both
def test_a_json_answer_of_another_shape_is_an_error(kind: str) -> None:
    with (
        FaultyServer(reply([])) as server,
        driven(kind, server.url) as driver,
        pytest.raises(APIResponseError),
    ):
        driver.attempt_stream(CALL, never)


@both
def test_a_refused_stream_is_a_status_error(kind: str) -> None:
    with FaultyServer(failure(400), failure(429)) as server, driven(kind, server.url) as driver:
        with pytest.raises(BadRequestError):
            driver.attempt_stream(CALL, never)
        with pytest.raises(RateLimitError):
            driver.attempt_stream(CALL, never)


@both
def test_an_event_that_is_too_large_is_an_error(kind: str) -> None:
    endless = chunks([b"data: " + b"x" * 2**20] + [b"x" * 2**20] * 17, end=b"")
    with (
        FaultyServer(endless) as server,
        driven(kind, server.url) as driver,
        pytest.raises(APIResponseError, match="larger than"),
    ):
        driver.attempt_stream(CALL, never)


UNDECIDED: dict[str, Step] = {
    "no event": chunks([]),
    "no run event": chunks([THREAD_CREATED]),
    "an error event": chunks([event("error", {"message": "overloaded"})]),
    "only done": chunks([DONE]),
    "half an event": chunks([CREATED[:-1]]),
    "a cut": chunks([THREAD_CREATED], end=b"5\r\nab"),
    "silence": stall(partial(THREAD_CREATED)),
    "no answer": hang_up,
    "a 500": failure(500),
}


@both
@pytest.mark.parametrize("fault", UNDECIDED.values(), ids=UNDECIDED.keys())
def test_a_stream_without_a_first_run_event_is_uncertain_and_not_repeated(kind: str, fault: Step) -> None:
    with FaultyServer(fault, default=chunks(WHOLE)) as server:
        with driven(kind, server.url, stream_idle_s=0.3) as driver, pytest.raises(AmbiguousOutcome) as caught:
            driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert len(server.received) == 1
    assert (caught.value.operation, caught.value.thread_id) == ("stream_run", "thread_1")
    if fault is UNDECIDED["an error event"]:
        assert "overloaded" in str(caught.value)


@both
def test_a_refused_stream_is_asked_for_again(kind: str) -> None:
    with (
        FaultyServer(failure(429), chunks([THREAD_CREATED, *WHOLE])) as server,
        driven(kind, server.url) as driver,
    ):
        events = driver.stream("stream_thread_and_run", assistant_id="asst_1")
        assert server.seen == ["POST /threads/runs"] * 2
    assert names(events)[:2] == ["thread.created", "thread.run.created"]
    assert isinstance(events[-1], DoneEvent)


@both
def test_a_stream_that_began_is_never_repeated(kind: str) -> None:
    with FaultyServer(chunks([CREATED], end=b"5\r\nab"), default=chunks(WHOLE)) as server:
        with driven(kind, server.url) as driver, pytest.raises(APIConnectionError):
            driver.stream("stream_tool_outputs", "thread_1", "run_1", tool_outputs=[])
        assert len(server.received) == 1


@both
def test_an_error_event_after_the_start_is_an_event(kind: str) -> None:
    parts = [CREATED, event("error", {"error": {"message": "down"}})]
    with FaultyServer(chunks(parts)) as server, driven(kind, server.url) as driver:
        last = driver.stream("stream_run", "thread_1", assistant_id="asst_1")[-1]
    assert isinstance(last, ErrorEvent)
    assert last.data.message == "down"


@both
def test_leaving_a_stream_early_closes_its_connection(kind: str) -> None:
    with FaultyServer(stall(partial(CREATED))) as server, driven(kind, server.url) as driver:
        assert len(driver.attempt_stream(CALL, lambda event: True)) == 1
        server.wait_until(lambda server: not server._open)


@both
def test_calls_and_streams_do_not_take_each_others_way(kind: str) -> None:
    with FaultyServer() as server, driven(kind, server.url) as driver:
        with pytest.raises(ValueError, match="use attempt_stream"):
            driver.attempt(CALL)
        with pytest.raises(ValueError, match="use attempt"):
            driver.attempt_stream(endpoints.create_run("thread_1", assistant_id="a"), never)
        assert server.accepted == 0


def test_a_stream_tells_the_headers_of_its_answer() -> None:
    async def main(url: str) -> tuple[str | None, float | None, str]:
        async with AsyncThreadsClient(url, api_key="k") as client, client.attempt_stream(CALL) as stream:
            return stream.request_id, stream.poll_after_s, repr(stream)

    with FaultyServer(chunks(WHOLE, x_request_id="req_1", openai_poll_after_ms="1500")) as server:
        request_id, poll_after_s, text = asyncio.run(main(server.url))
    assert (request_id, poll_after_s) == ("req_1", 1.5)
    assert "req_1" in text


def test_a_stream_left_at_done_gives_its_connection_to_the_next() -> None:
    async def main(url: str) -> None:
        async with AsyncThreadsClient(url, api_key="k") as client:
            for _ in range(3):
                async with client.attempt_stream(CALL) as stream:
                    async for one in stream:
                        if isinstance(one, DoneEvent):
                            break

    with FaultyServer(default=chunks(WHOLE)) as server:
        asyncio.run(main(server.url))
        assert (len(server.received), server.accepted) == (3, 1)
