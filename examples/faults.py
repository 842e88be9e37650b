"""A fault server for tests: it refuses a run, makes one and says nothing, and cuts a stream in the middle."""

from pathlib import Path

from weather import get_weather

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server

with running_server(Path(__file__).with_suffix(".yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
        thread = client.create_thread()
        with Orchestrator(
            base_url=server.base_url, api_key=server.api_key, tools=[get_weather]
        ) as orchestrator:
            run = orchestrator.start(assistant.id, thread_id=thread.id, messages="Weather in Rome?")
            result = run.result(timeout=60)
        runs = client.list_runs(thread.id).data
    sent = [path.rpartition("/")[2] for method, path in server.requests if method == "POST"]
    print(result.text)
    print(f"{sent.count('runs')} requests for a run, {len(runs)} run")
    print(f"{sent.count('submit_tool_outputs')} submission, {len(result.tool_calls)} tool call")
