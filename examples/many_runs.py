"""Many runs at once: 100 start together, one is cancelled, the others are taken as they complete."""

from collections import Counter
from concurrent.futures import as_completed
from pathlib import Path

from weather import get_weather

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server

CITIES = ("Oslo", "Rome", "Tokyo", "Nairobi", "Sydney", "Lima", "Cairo", "Chicago")

with running_server(Path(__file__).with_name("weather.yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
    with Orchestrator(base_url=server.base_url, api_key=server.api_key, tools=[get_weather]) as orchestrator:
        slow = orchestrator.start(assistant.id, messages="Think about rain.", key="slow")
        handles = [
            orchestrator.start(assistant.id, messages=f"Weather in {here} and {there}?")
            for index in range(99)
            for here, there in [(CITIES[index % 8], CITIES[(index + 3) % 8])]
        ]
        print(f"{1 + len(handles)} runs are started")
        slow.cancel()
        statuses: Counter[str] = Counter()
        for future in as_completed([handle.future for handle in [slow, *handles]]):
            statuses[future.result().status] += 1
        print(dict(sorted(statuses.items())))
        print(handles[0].result().text)
