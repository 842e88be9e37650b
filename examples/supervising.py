"""A chat whose second message interrupts the first, an actor that watches, and what runs wait for."""

from pathlib import Path

import pykka
from weather import get_weather

from orchestrator import Completed, Failed, Orchestrator, Stopped
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server


class Reception(pykka.ThreadingActor):
    """Is told once how each run that it watches ended."""

    def on_receive(self, message: Completed | Failed | Stopped) -> None:
        match message:
            case Completed(key=key, result=result):
                print(f"{key}: {result.status} {result.text}".rstrip())
            case Failed(key=key, cause=cause):
                print(f"{key} failed: {cause}")
            case Stopped(key=key):
                print(f"{key} was let go of")


reception = Reception.start()
with running_server(Path(__file__).with_name("weather.yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
        thread = client.create_thread()
    with Orchestrator(
        base_url=server.base_url, api_key=server.api_key, tools=[get_weather], on_busy_thread="interrupt"
    ) as orchestrator:
        first = orchestrator.start(assistant.id, thread_id=thread.id, messages="Think about it.", key="first")
        first.watch(reception)
        next(event for event in first.events() if event.event == "thread.run.in_progress")
        for run in orchestrator.runs():
            print(f"{run.key} is {run.phase} and waits for the {run.waits_for}")

        second = orchestrator.start(
            assistant.id,
            thread_id=thread.id,
            messages="Never mind. Weather in Rome?",
            key="second",
            max_tool_rounds=5,
            on_stall="cancel",
        )
        second.watch(reception)
        second.result(timeout=60).raise_for_status()
reception.stop()
