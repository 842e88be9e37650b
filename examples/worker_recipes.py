"""Workers without a framework: a plain loop that is told to stop, and a pool of processes.

Both are given keys of runs that were written into a journal before. A key that comes twice is one run.
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from weather import get_weather

from orchestrator import Orchestrator
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server
from orchestrator.workers.process import PerProcess


def make_orchestrator() -> Orchestrator:
    return Orchestrator(tools=[get_weather], journal=os.environ["JOURNAL"])


# A plain loop


def stop(*_: object) -> None:
    raise KeyboardInterrupt  # SIGTERM leaves the loop as Ctrl-C does


def work() -> None:
    """Take keys from a queue, here the lines of stdin, until SIGTERM."""
    signal.signal(signal.SIGTERM, stop)
    with make_orchestrator() as orchestrator:
        try:
            orchestrator.resume()  # what earlier workers have left
            for key in sys.stdin:
                print(orchestrator.attach(key.strip()).result(timeout=60).text, flush=True)
        except KeyboardInterrupt:
            left = orchestrator.drain(timeout_s=10)
            print(f"told to stop: {len(left)} runs are left to others")


# A pool of processes

processes = PerProcess(make_orchestrator)


def initialize() -> None:
    atexit.register(processes.close, timeout_s=10)


def answer(key: str) -> str:
    return processes.orchestrator.attach(key).result(timeout=60).text


def work_in_a_pool(keys: list[str]) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=initialize) as pool:
        for text in pool.map(answer, keys):
            print(text)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        running_server(Path(__file__).with_name("weather.yaml")) as server,
    ):
        with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
            assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
        os.environ["JOURNAL"] = f"sqlite:///{directory}/runs.db"
        os.environ |= {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": server.api_key}
        with make_orchestrator() as producer:
            for city in ("Rome", "Oslo"):
                producer.enqueue(assistant.id, messages=f"Weather in {city}?", key=f"weather-{city}")
        command = [sys.executable, __file__, "work"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("weather-Rome\n")
            worker.stdin.flush()
            print(worker.stdout.readline(), end="")
            worker.terminate()
            print(worker.stdout.read(), end="")
        work_in_a_pool(["weather-Rome", "weather-Oslo", "weather-Oslo"])
        created = [path for method, path in server.requests if method == "POST" and path.endswith("/runs")]
        print(f"{len(created)} runs were created")


if __name__ == "__main__":
    {"": main, "work": work}["".join(sys.argv[1:])]()
