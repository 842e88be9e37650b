"""What deltas accumulate to is what a GET then returns, against the embedded server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers import both, driven

from orchestrator.protocol.events import MessageDeltaEvent, MessageEvent, RunStepDeltaEvent
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from orchestrator.protocol.events import StreamEvent

CALL = {"tool": "weather", "for_each": r"(?P<city>[A-Z]\w+)", "arguments": {"city": "{city}"}}
RULES = [
    {
        "name": "weather",
        "match": "(?i)weather in (?P<cities>.+)",
        "steps": [
            {"call": [CALL]},
            {
                "say": [
                    "It is ",
                    {"each": "weather", "text": "{city} → {output}", "join": " und "},
                    ", so früh.",
                ]
            },
        ],
    }
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def folded(snapshots: Snapshots, events: list[StreamEvent]) -> int:
    """Fold in everything but the whole message at its end; say how many deltas there were."""
    deltas = 0
    for event in events:
        if not (isinstance(event, MessageEvent) and event.event == "thread.message.completed"):
            snapshots.add(event)
        deltas += isinstance(event, MessageDeltaEvent | RunStepDeltaEvent)
    return deltas


@both
def test_deltas_accumulate_to_what_a_get_returns(kind: str) -> None:
    snapshots = Snapshots()
    with running_server(RULES) as server, driven(kind, server.base_url, api_key=server.api_key) as driver:
        assistant = driver.call("create_assistant", model="rules", tools=[TOOL]).id
        thread = driver.call("create_thread").id
        asked = {"role": "user", "content": "Weather in Oslo, Rome, Bergen"}
        events = driver.stream("stream_run", thread, assistant_id=assistant, additional_messages=[asked])
        assert folded(snapshots, events) >= 3

        run = driver.call("list_runs", thread).data[0]
        (step,) = driver.call("list_run_steps", thread, run.id).data
        assert snapshots.steps == {step.id: step}

        outputs = [{"tool_call_id": call.id, "output": "mild"} for call in run.required_calls]
        events = driver.stream("stream_tool_outputs", thread, run.id, tool_outputs=outputs)
        assert folded(snapshots, events) >= 1
        steps = driver.call("list_run_steps", thread, run.id, order="asc").data
        assert list(snapshots.steps.values()) == steps
        (message,) = driver.call("list_messages", thread, run_id=run.id).data
        assert snapshots.messages[message.id].content == message.content
        assert message.text == "It is Oslo → mild und Rome → mild und Bergen → mild, so früh."
