"""Streaming: one sequence of events for a whole run, on the program's own event loop."""

import asyncio
from pathlib import Path

from weather import get_weather

from orchestrator import Notice, Orchestrator
from orchestrator.client import AsyncThreadsClient
from orchestrator.protocol.events import MessageDeltaEvent, RunEvent
from orchestrator.testing import RunningServer, running_server


async def main(server: RunningServer) -> None:
    """Ask one question and print what happens while it is answered."""
    async with AsyncThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = await client.create_assistant(model="rules", tools=[get_weather.definition()])
    async with Orchestrator(
        base_url=server.base_url, api_key=server.api_key, tools=[get_weather]
    ) as orchestrator:
        run = orchestrator.start(assistant.id, messages="Weather in Tokyo and Nairobi?")
        async for event in run:
            match event:
                case RunEvent(data=data):
                    print(f"[{data.status}]")
                case Notice(event="tool.finished", name=name):
                    print(f"  {name} answered")
                case MessageDeltaEvent(data=data):
                    print(f"  {data.text!r}")
        print((await run).text)


with running_server(Path(__file__).with_name("weather.yaml")) as running:
    asyncio.run(main(running))
