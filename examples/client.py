"""The client alone: one conversation with a tool call, operation by operation."""

import json
from pathlib import Path

from weather import get_weather

from orchestrator.client import ThreadsClient
from orchestrator.protocol.events import MessageDeltaEvent, RunEvent, StreamEvent
from orchestrator.protocol.objects import ToolCall, ToolOutput
from orchestrator.testing import running_server


def show(event: StreamEvent) -> None:
    """Print what an event says; told each of them, beside the code that iterates."""
    match event:
        case RunEvent(data=run):
            print(f"[{run.status}]")
        case MessageDeltaEvent(data=delta):
            print(f"  {delta.text!r}")


def answer(call: ToolCall) -> ToolOutput:
    """Do what the model asked for."""
    arguments = json.loads(call.function.arguments)
    return ToolOutput(tool_call_id=call.id, output=json.dumps(get_weather(**arguments)))


with (
    running_server(Path(__file__).with_name("weather.yaml")) as server,
    ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client,
):
    assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
    thread = client.create_thread(metadata={"customer": "7"})
    client.create_message(thread.id, role="user", content="Weather in Rome?", nonce="question-1")

    with client.stream_run(thread.id, assistant_id=assistant.id, nonce="run-1", stream_to=show) as stream:
        *_, run = [event.data for event in stream if isinstance(event, RunEvent)]
    outputs = [answer(call) for call in run.required_calls]
    with client.stream_tool_outputs(thread.id, run.id, tool_outputs=outputs, stream_to=show):
        pass  # leaving the block reads what is left, and tells it

    for message in client.iter_messages(thread.id, order="asc"):
        print(f"{message.role}: {message.text}")
    for step in client.iter_run_steps(thread.id, run.id, order="asc"):
        print(f"{step.type} {step.status}")
    print("deleted" if client.delete_thread(thread.id).deleted else "kept")
