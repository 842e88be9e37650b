"""openai-python drives the server unchanged: its helpers, event handlers, pages and exception classes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler
from typing_extensions import override

from orchestrator.testing import running_server
from server.conftest import SCRIPT
from server.speaker import WEATHER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.speaker import Speaker

# openai-python calls the whole protocol deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:(deprecated|The Assistants API is):DeprecationWarning")

HELLO = "Hello, how are you today, dear reader of streams?"
OUTPUTS = {"Oslo": '{"celsius": 5}', "Rome": '{"celsius": 21}'}
SAID = "It is Oslo 5 and Rome 21"
ASKED: Any = {"role": "user", "content": "Weather in Oslo and Rome?"}
POLL_MS = 20


@pytest.fixture(params=["openai", "azure"])
def client(request: pytest.FixtureRequest, speaker: Speaker) -> Iterator[openai.OpenAI]:
    """Both of its blocking clients: Azure's has another path, query and header."""
    server = speaker.server
    made = (
        openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0)
        if request.param == "openai"
        else openai.AzureOpenAI(
            azure_endpoint=server.base_url.removesuffix("/v1"),
            api_key=server.api_key,
            api_version="2024-05-01-preview",
            max_retries=0,
        )
    )
    with made:
        yield made


def _assistant(client: openai.OpenAI, *tools: Any) -> str:
    return client.beta.assistants.create(model="rules", tools=tools).id


def _outputs(run: Any) -> list[Any]:
    """Answer every call of a run that waits."""
    return [
        {
            "tool_call_id": call.id,
            "output": next(text for city, text in OUTPUTS.items() if city in call.function.arguments),
        }
        for call in run.required_action.submit_tool_outputs.tool_calls
    ]


def _newest(client: openai.OpenAI, thread_id: str) -> str:
    message = client.beta.threads.messages.list(thread_id, limit=1).data[0]
    assert message.content[0].type == "text"
    return message.content[0].text.value


def test_its_polling_helpers_carry_a_tool_round_to_the_end(client: openai.OpenAI) -> None:
    runs = client.beta.threads.runs
    thread = client.beta.threads.create(messages=[ASKED])
    run = runs.create_and_poll(
        thread_id=thread.id, assistant_id=_assistant(client, WEATHER), poll_interval_ms=POLL_MS
    )
    assert run.status == "requires_action"
    run = runs.submit_tool_outputs_and_poll(
        thread_id=thread.id, run_id=run.id, tool_outputs=_outputs(run), poll_interval_ms=POLL_MS
    )
    assert run.status == "completed"
    assert run.usage is not None
    assert run.usage.total_tokens > 0
    assert _newest(client, thread.id) == SAID


def test_without_an_interval_of_its_own_it_polls_as_the_server_tells_it(client: openai.OpenAI) -> None:
    raw = client.beta.threads.with_raw_response.create()
    assert 0 < int(raw.headers["openai-poll-after-ms"]) <= 1000
    run = client.beta.threads.create_and_run_poll(
        assistant_id=_assistant(client), thread={"messages": [{"role": "user", "content": "hello"}]}
    )
    assert run.status == "completed"
    assert _newest(client, run.thread_id) == HELLO


class Handler(AssistantEventHandler):
    """Writes down what its hooks are told, and submits outputs from within one, as its documentation does."""

    def __init__(self, client: openai.OpenAI, seen: list[Any]) -> None:
        super().__init__()
        self._client = client
        self.seen = seen

    @override
    def on_event(self, event: Any) -> None:
        self.seen.append(event.event)
        if event.event == "thread.run.requires_action":
            handler = Handler(self._client, self.seen)
            with self._client.beta.threads.runs.submit_tool_outputs_stream(
                thread_id=event.data.thread_id,
                run_id=event.data.id,
                tool_outputs=_outputs(event.data),
                event_handler=handler,
            ) as stream:
                stream.until_done()

    @override
    def on_tool_call_done(self, tool_call: Any) -> None:
        self.seen.append(("call", tool_call.function.name, tool_call.function.arguments))

    @override
    def on_text_done(self, text: Any) -> None:
        self.seen.append(("text", text.value))

    @override
    def on_message_done(self, message: Any) -> None:
        self.seen.append(("message", message.status))

    @override
    def on_run_step_done(self, run_step: Any) -> None:
        self.seen.append(("step", run_step.type, run_step.status))

    @override
    def on_exception(self, exception: Exception) -> None:
        self.seen.append(exception)


def test_its_event_handler_sees_a_whole_run_over_both_streams(client: openai.OpenAI) -> None:
    seen: list[Any] = []
    thread = client.beta.threads.create(messages=[ASKED])
    with client.beta.threads.runs.stream(
        thread_id=thread.id,
        assistant_id=_assistant(client, WEATHER),
        event_handler=Handler(client, seen),
    ) as stream:
        stream.until_done()
    names = [name for name in seen if isinstance(name, str) and not name.endswith("delta")]
    assert names == [
        *("thread.run.created", "thread.run.queued", "thread.run.in_progress"),
        *("thread.run.step.created", "thread.run.step.in_progress", "thread.run.requires_action"),
        *("thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"),
        *("thread.run.step.created", "thread.run.step.in_progress"),
        *("thread.message.created", "thread.message.in_progress", "thread.message.completed"),
        *("thread.run.step.completed", "thread.run.completed"),
    ]
    told = [what for what in seen if not isinstance(what, str)]
    assert ("call", "get_weather", '{"city":"Oslo","unit":"c"}') in told
    assert ("step", "tool_calls", "completed") in told
    assert {("text", SAID), ("message", "completed"), ("step", "message_creation", "completed")} <= set(told)
    assert not [what for what in told if isinstance(what, Exception)]


def test_its_streams_accumulate_the_final_objects(client: openai.OpenAI) -> None:
    with client.beta.threads.create_and_run_stream(
        assistant_id=_assistant(client), thread={"messages": [{"role": "user", "content": "hello"}]}
    ) as stream:
        assert "".join(stream.text_deltas) == HELLO
        (message,) = stream.get_final_messages()
        run = stream.get_final_run()
        (step,) = stream.get_final_run_steps()
    assert message.content[0].text.value == HELLO  # type: ignore[union-attr]
    stored = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
    assert run.to_dict() == stored.to_dict()
    (stored_step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    assert step.id == stored_step.id
    assert message.to_dict() == client.beta.threads.messages.list(run.thread_id).data[0].to_dict()


def test_its_lists_page_themselves_in_both_directions(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": str(number)} for number in range(7)]
    thread = client.beta.threads.create(messages=messages)

    def texts(**query: Any) -> list[str]:
        pages = client.beta.threads.messages.list(thread.id, **query)
        return [message.content[0].text.value for message in pages]  # type: ignore[union-attr]

    assert texts(limit=2) == list("6543210")
    assert texts(limit=3, order="asc") == list("0123456")
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id,
        assistant_id=_assistant(client),
        additional_messages=[{"role": "user", "content": "hello"}],
        poll_interval_ms=POLL_MS,
    )
    assert texts(run_id=run.id) == [HELLO]
    assert [one.id for one in client.beta.threads.runs.list(thread.id)] == [run.id]
    page = client.beta.threads.messages.list(thread.id, limit=2)
    assert page.has_next_page()
    assert len(page.get_next_page().data) == 2


def test_it_cancels_a_run_that_it_streams(client: openai.OpenAI) -> None:
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
    names: list[str] = []
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=_assistant(client)) as stream:
        for event in stream:
            names.append(event.event)
            if event.event == "thread.message.delta":
                assert stream.current_run is not None
                run = client.beta.threads.runs.cancel(stream.current_run.id, thread_id=thread.id)
                assert run.status == "cancelling"
    assert names[-3:] == ["thread.run.step.cancelled", "thread.run.cancelling", "thread.run.cancelled"]
    with pytest.raises(openai.BadRequestError, match="Cannot cancel run with status 'cancelled'"):
        client.beta.threads.runs.cancel(run.id, thread_id=thread.id)


def test_a_failed_run_is_told_by_its_last_error(client: openai.OpenAI) -> None:
    run = client.beta.threads.create_and_run_poll(
        assistant_id=_assistant(client),
        thread={"messages": [{"role": "user", "content": "fail as asked"}]},
        poll_interval_ms=POLL_MS,
    )
    assert run.status == "failed"
    assert run.last_error is not None
    assert (run.last_error.code, run.last_error.message) == ("rate_limit_exceeded", "too much, {how}")


def test_refusals_are_its_own_exceptions_with_their_details(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="No thread found with id 'thread_X'") as missing:
        client.beta.threads.retrieve("thread_X")
    assert missing.value.request_id
    assert missing.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match=">= 256") as refused:
        client.beta.threads.runs.create(
            client.beta.threads.create().id, assistant_id="asst_X", max_prompt_tokens=255
        )
    assert refused.value.param == "max_prompt_tokens"
    with pytest.raises(openai.BadRequestError) as refused:
        client.beta.assistants.create(model="rules", tools=[{"type": "code_interpreter"}])
    assert refused.value.param == "tools[0].type"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="wrong").beta.threads.create()
    assert stranger.value.code == "invalid_api_key"


def test_a_locked_thread_is_refused_once_and_not_retried(speaker: Speaker) -> None:
    server = speaker.server
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key) as client:
        thread = client.beta.threads.create(messages=[ASKED])
        run = client.beta.threads.runs.create(thread.id, assistant_id=_assistant(client, WEATHER))
        before = len(server.requests)
        with pytest.raises(openai.BadRequestError, match=f"while a run {run.id} is active"):
            client.beta.threads.messages.create(thread.id, role="user", content="me too")
        with pytest.raises(openai.BadRequestError, match="already has an active run"):
            client.beta.threads.runs.create(thread.id, assistant_id=run.assistant_id)
        assert [path for _, path in server.requests[before:]] == [
            f"/v1/threads/{thread.id}/messages",
            f"/v1/threads/{thread.id}/runs",
        ]


class AsyncHandler(AsyncAssistantEventHandler):
    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    @override
    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.said += delta.value


def test_its_asynchronous_client_streams_submits_and_pages(speaker: Speaker) -> None:
    async def main() -> tuple[str, list[str]]:
        server = speaker.server
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.api_key) as client:
            threads = client.beta.threads
            assistant = await client.beta.assistants.create(model="rules", tools=[WEATHER])  # type: ignore[list-item]
            thread = await threads.create(messages=[ASKED])
            async with threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
                await stream.until_done()
                run = await stream.get_final_run()
            assert run.status == "requires_action"
            handler = AsyncHandler()
            async with threads.runs.submit_tool_outputs_stream(
                thread_id=thread.id, run_id=run.id, tool_outputs=_outputs(run), event_handler=handler
            ) as submitted:
                await submitted.until_done()
            return handler.said, [one.role async for one in threads.messages.list(thread.id, limit=1)]

    assert asyncio.run(main()) == (SAID, ["assistant", "user"])


def test_a_server_that_stops_raises_in_its_stream_instead_of_ending_it_quietly() -> None:
    reading, failures = threading.Event(), list[openai.APIError]()

    def read(client: openai.OpenAI, thread_id: str, assistant_id: str) -> None:
        with client.beta.threads.runs.stream(thread_id=thread_id, assistant_id=assistant_id) as stream:
            try:
                for event in stream:
                    if event.event == "thread.message.delta":
                        reading.set()
            except openai.APIError as error:
                failures.append(error)
            assert stream.current_run is not None
            assert stream.current_run.status == "in_progress"

    with running_server(SCRIPT) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0)
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        reader = threading.Thread(target=read, args=(client, thread.id, _assistant(client)))
        reader.start()
        assert reading.wait(20)
    reader.join(20)
    client.close()
    (failure,) = failures
    assert (failure.message, failure.type) == ("The server is shutting down.", "server_error")
