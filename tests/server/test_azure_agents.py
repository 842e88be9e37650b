"""azure-ai-agents drives the server unchanged: its own helpers, handlers, pages and exceptions.

It speaks Azure's dialect: a project's path, `api-version`, the `api-key` header, and no beta header. Its
bearer tokens need TLS, which is not ours to give: the key goes by azure-core's own policy for keys.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from azure.ai.agents import AgentsClient
from azure.ai.agents.aio import AgentsClient as AsyncAgentsClient
from azure.ai.agents.models import (
    AgentEventHandler,
    AgentThreadCreationOptions,
    AsyncAgentEventHandler,
    CodeInterpreterTool,
    FunctionTool,
    ListSortOrder,
    MessageRole,
    RequiredFunctionToolCall,
    RunStatus,
    SubmitToolOutputsAction,
    ThreadMessageOptions,
    ToolOutput,
    ToolSet,
)
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.policies import AzureKeyCredentialPolicy
from azure.core.pipeline.transport import AsyncioRequestsTransport

from orchestrator.testing import running_server
from server.conftest import SCRIPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.testing import RunningServer
    from server.speaker import Speaker

SAID = "It is Oslo 5 and Rome 21"
ASKED = "Weather in Oslo and Rome?"
HELLO = "Hello, how are you today, dear reader of streams?"
CELSIUS = {"Oslo": 5, "Rome": 21}


def get_weather(city: str, unit: str = "c") -> str:
    """Tell the weather.

    :param city: City name.
    :param unit: Temperature unit.
    """
    return json.dumps({"celsius": CELSIUS[city], "unit": unit})


class NoToken:
    """The constructor wants a token credential; the policy beside it never asks."""

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        raise AssertionError(scopes)


def _options(server: RunningServer, key: str | None = None) -> dict[str, Any]:
    return {
        "endpoint": server.base_url.removesuffix("/v1") + "/api/projects/tests",
        "credential": NoToken(),
        "authentication_policy": AzureKeyCredentialPolicy(
            AzureKeyCredential(key or server.api_key), "api-key"
        ),
        "retry_total": 0,
    }


@pytest.fixture
def client(speaker: Speaker) -> Iterator[AgentsClient]:
    with AgentsClient(**_options(speaker.server)) as made:
        yield made


@pytest.fixture
def agent_id(client: AgentsClient) -> str:
    toolset = ToolSet()
    toolset.add(FunctionTool({get_weather}))
    return client.create_agent(model="rules", name="Anna", toolset=toolset).id


def test_its_polling_helper_calls_the_functions_and_carries_a_run_to_the_end(
    client: AgentsClient, agent_id: str
) -> None:
    client.enable_auto_function_calls({get_weather})
    thread = client.threads.create()
    client.messages.create(thread_id=thread.id, role="user", content=ASKED)
    run = client.runs.create_and_process(thread_id=thread.id, agent_id=agent_id, polling_interval=0)
    assert run.status == RunStatus.COMPLETED
    assert run.usage.total_tokens > 0
    text = client.messages.get_last_message_text_by_role(thread_id=thread.id, role=MessageRole.AGENT)
    assert text is not None
    assert text.text.value == SAID
    steps = list(client.run_steps.list(thread_id=thread.id, run_id=run.id))
    assert [step.type for step in steps] == ["message_creation", "tool_calls"]
    assert client.run_steps.get(thread_id=thread.id, run_id=run.id, step_id=steps[0].id).id == steps[0].id


def test_it_polls_and_submits_by_hand(client: AgentsClient, agent_id: str) -> None:
    run = client.create_thread_and_run(
        agent_id=agent_id, thread=AgentThreadCreationOptions(messages=[_asking(ASKED)])
    )
    while run.status in (RunStatus.QUEUED, RunStatus.IN_PROGRESS):
        run = client.runs.get(thread_id=run.thread_id, run_id=run.id)
    assert isinstance(run.required_action, SubmitToolOutputsAction)
    calls = run.required_action.submit_tool_outputs.tool_calls
    outputs = [
        ToolOutput(tool_call_id=call.id, output=get_weather(**json.loads(call.function.arguments)))
        for call in calls
        if isinstance(call, RequiredFunctionToolCall)
    ]
    with pytest.raises(HttpResponseError, match="Expected tool outputs for call_ids"):
        client.runs.submit_tool_outputs(thread_id=run.thread_id, run_id=run.id, tool_outputs=outputs[:1])
    run = client.runs.submit_tool_outputs(thread_id=run.thread_id, run_id=run.id, tool_outputs=outputs)
    while run.status in (RunStatus.QUEUED, RunStatus.IN_PROGRESS):
        run = client.runs.get(thread_id=run.thread_id, run_id=run.id)
    assert run.status == RunStatus.COMPLETED


def _asking(text: str) -> ThreadMessageOptions:
    return ThreadMessageOptions(role="user", content=text)


class Handler(AgentEventHandler[None]):
    """Writes down what its hooks are told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.said = ""

    def on_message_delta(self, delta: Any) -> None:
        self.said += delta.text

    def on_thread_run(self, run: Any) -> None:
        self.told.append(f"run {run.status}")

    def on_run_step(self, step: Any) -> None:
        self.told.append(f"{step.type} {step.status}")

    def on_thread_message(self, message: Any) -> None:
        self.told.append(f"message {message.status}")

    def on_error(self, data: str) -> None:
        self.told.append(("error", data))

    def on_done(self) -> None:
        self.told.append("done")

    def on_unhandled_event(self, event_type: str, event_data: Any) -> None:
        self.told.append(("unhandled", event_type, event_data))


def _plain(told: list[Any]) -> list[Any]:
    """Names of the enumerations' members are written differently from one Python to the next."""
    return [
        " ".join(part.rpartition(".")[2].lower() for part in what.split()) if isinstance(what, str) else what
        for what in told
    ]


def test_its_event_handler_sees_both_streams_and_submits_between_them(
    client: AgentsClient, agent_id: str
) -> None:
    client.enable_auto_function_calls({get_weather})
    thread = client.threads.create(messages=[_asking(ASKED)])
    handler = Handler()
    with client.runs.stream(thread_id=thread.id, agent_id=agent_id, event_handler=handler) as stream:
        stream.until_done()
    assert handler.said == SAID
    # It submits when it reads `requires_action`, and reads the second stream behind the end of the first.
    assert _plain(handler.told) == [
        *("run queued", "run queued", "run in_progress"),
        *("tool_calls in_progress", "tool_calls in_progress", "run requires_action", "done"),
        *("tool_calls completed", "run queued", "run in_progress"),
        *("message_creation in_progress", "message_creation in_progress"),
        *("message in_progress", "message in_progress", "message completed"),
        *("message_creation completed", "run completed", "done"),
    ]


def test_its_lists_page_themselves(client: AgentsClient) -> None:
    thread = client.threads.create()
    for number in range(5):
        client.messages.create(thread_id=thread.id, role="user", content=str(number))

    def texts(**query: Any) -> list[str]:
        found = client.messages.list(thread_id=thread.id, **query)
        return [message.text_messages[0].text.value for message in found]

    assert texts(limit=2) == list("43210")
    assert texts(limit=2, order=ListSortOrder.ASCENDING) == list("01234")
    made = {client.create_agent(model="rules").id for _ in range(3)}
    assert made <= {agent.id for agent in client.list_agents(limit=2)}


def test_it_changes_and_deletes_what_it_made(client: AgentsClient, agent_id: str) -> None:
    assert client.update_agent(agent_id, name="Berta", metadata={"a": "b"}).name == "Berta"
    assert client.get_agent(agent_id).metadata == {"a": "b"}
    thread = client.threads.create()
    assert client.threads.update(thread.id, metadata={"c": "d"}).metadata == {"c": "d"}
    message = client.messages.create(thread_id=thread.id, role="user", content="hello")
    assert client.messages.update(thread.id, message.id, metadata={"e": "f"}).metadata == {"e": "f"}
    client.threads.delete(thread.id)
    client.delete_agent(agent_id)
    with pytest.raises(ResourceNotFoundError, match=f"No assistant found with id '{agent_id}'"):
        client.get_agent(agent_id)


def test_it_cancels_a_run(client: AgentsClient, agent_id: str) -> None:
    thread = client.threads.create(messages=[_asking("think")])
    run = client.runs.create(thread_id=thread.id, agent_id=agent_id)
    with pytest.raises(HttpResponseError, match=f"while a run {run.id} is active"):
        client.messages.create(thread_id=thread.id, role="user", content="me too")
    run = client.runs.cancel(thread_id=thread.id, run_id=run.id)
    while run.status == RunStatus.CANCELLING:
        run = client.runs.get(thread_id=thread.id, run_id=run.id)
    assert run.status == RunStatus.CANCELLED
    with pytest.raises(HttpResponseError, match="Cannot cancel run with status 'cancelled'"):
        client.runs.cancel(thread_id=thread.id, run_id=run.id)


def test_refusals_are_its_own_exceptions(client: AgentsClient, speaker: Speaker) -> None:
    with pytest.raises(ResourceNotFoundError) as missing:
        client.threads.get("thread_X")
    assert missing.value.status_code == 404
    assert "No thread found with id 'thread_X'." in str(missing.value)
    with pytest.raises(HttpResponseError, match="'code_interpreter' is not supported") as refused:
        client.create_agent(model="rules", tools=CodeInterpreterTool().definitions)
    assert refused.value.status_code == 400
    with (
        AgentsClient(**_options(speaker.server, "wrong")) as stranger,
        pytest.raises(ClientAuthenticationError, match="Incorrect API key"),
    ):
        stranger.threads.create()


class AsyncHandler(AsyncAgentEventHandler[None]):
    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    async def on_message_delta(self, delta: Any) -> None:
        self.said += delta.text


def test_its_asynchronous_client_streams_and_calls_functions(speaker: Speaker) -> None:
    async def main() -> str:
        async with AsyncAgentsClient(
            **_options(speaker.server), transport=AsyncioRequestsTransport()
        ) as client:
            client.enable_auto_function_calls({get_weather})
            agent = await client.create_agent(model="rules", tools=FunctionTool({get_weather}).definitions)
            thread = await client.threads.create(messages=[_asking(ASKED)])
            handler = AsyncHandler()
            async with await client.runs.stream(
                thread_id=thread.id, agent_id=agent.id, event_handler=handler
            ) as stream:
                await stream.until_done()
            return handler.said

    assert asyncio.run(main()) == SAID


def test_a_server_that_stops_is_told_to_its_handler() -> None:
    reading = threading.Event()

    class Watching(Handler):
        def on_message_delta(self, delta: Any) -> None:
            super().on_message_delta(delta)
            reading.set()

    def read(client: AgentsClient, thread_id: str, agent_id: str) -> None:
        with client.runs.stream(thread_id=thread_id, agent_id=agent_id, event_handler=handler) as stream:
            stream.until_done()

    handler = Watching()
    with running_server(SCRIPT) as server:
        client = AgentsClient(**_options(server))
        agent = client.create_agent(model="rules")
        thread = client.threads.create(messages=[_asking("slow")])
        reader = threading.Thread(target=read, args=(client, thread.id, agent.id))
        reader.start()
        assert reading.wait(20)
    reader.join(20)
    client.close()
    (kind, said) = handler.told[-1]
    assert kind == "error"
    assert "The server is shutting down." in said
