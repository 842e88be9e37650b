from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from orchestrator import Orchestrator, tool
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server


@tool
def get_time(zone: str) -> str:
    """Time of day in a time zone, such as Europe/Oslo."""
    return datetime.now(ZoneInfo(zone)).strftime("%H:%M")


with running_server(Path(__file__).with_suffix(".yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[get_time.definition()])
    with Orchestrator(base_url=server.base_url, api_key=server.api_key, tools=[get_time]) as orchestrator:
        run = orchestrator.start(assistant.id, messages="What time is it in Europe/Oslo and Asia/Tokyo?")
        print(run.result(timeout=60).raise_for_status().text)
