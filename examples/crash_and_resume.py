"""A process that is killed in the middle of its run's tool calls, and another one that goes on with the run.

The first process makes three calls at once. One has its outcome in the journal, two are under way when the
process is killed. The second process makes the one again that may be repeated, and tells the model of the
other that nobody knows what became of it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

from weather import get_weather

from orchestrator import Orchestrator, tool
from orchestrator.client import ThreadsClient
from orchestrator.journal import SQLJournal
from orchestrator.testing import running_server

RULES = [
    {
        "match": "(?i)plan a trip to (?P<city>[A-Z][a-z]+)",
        "steps": [
            {
                "call": [
                    {"tool": "get_weather", "arguments": {"city": "{city}"}},
                    {"tool": "find_flight", "arguments": {"city": "{city}"}},
                    {"tool": "book_hotel", "arguments": {"city": "{city}"}},
                ]
            },
            {"say": "The trip to {city} is planned; please check the hotel."},
        ],
    }
]
JOURNAL = os.environ.get("JOURNAL", "")
CRASHES = sys.argv[1:] == ["crash"]


@tool(idempotent=True)
def find_flight(city: str) -> str:
    """Find a flight. It changes nothing, so that it may be called again."""
    print(f"  find_flight({city}) is called", flush=True)
    if CRASHES:
        time.sleep(60)
    return "09:40"


@tool
def book_hotel(city: str) -> str:
    """Book a hotel room, which must not be done twice."""
    print(f"  book_hotel({city}) is called", flush=True)
    if CRASHES:
        journal = SQLJournal(JOURNAL)
        while not any(call.state == "finished" for call in journal.show("trip-1").calls):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return "room 12"


def make_orchestrator() -> Orchestrator:
    journal = SQLJournal(JOURNAL, lease_s=2.0)
    return Orchestrator(tools=[get_weather, find_flight, book_hotel], journal=journal)


def conduct() -> None:
    with make_orchestrator() as orchestrator:
        run = orchestrator.start(os.environ["ASSISTANT"], messages="Plan a trip to Rome.", key="trip-1")
        run.result(timeout=60)


def resume() -> None:
    with make_orchestrator() as orchestrator:
        result = orchestrator.attach("trip-1").result(timeout=60).raise_for_status()
    for call in result.tool_calls:
        print(f"{call.name}: {call.error or call.output}")
    print(result.text)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, running_server(RULES) as server:
        with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
            tools = [tool.definition() for tool in (get_weather, find_flight, book_hotel)]
            assistant = client.create_assistant(model="rules", tools=tools)
        settings = {
            "JOURNAL": f"sqlite:///{directory}/runs.db",
            "ASSISTANT": assistant.id,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": server.api_key,
        }
        for act in ("crash", "resume"):
            print(f"{act}:", flush=True)
            ended = subprocess.run([sys.executable, __file__, act], env=os.environ | settings, check=False)
            if ended.returncode < 0:
                print(f"  the process ends with {signal.Signals(-ended.returncode).name}")
        made = [path.rpartition("/")[2] for method, path in server.requests if method == "POST"]
        print(f"{made.count('runs')} run, {made.count('submit_tool_outputs')} submission")


if __name__ == "__main__":
    {"": main, "crash": conduct, "resume": resume}["".join(sys.argv[1:])]()
