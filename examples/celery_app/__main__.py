"""A server, Redis, two workers of which one is killed, and the questions that are answered all the same."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server

RULES = Path(__file__).parent.with_name("weather.yaml")
WORKER = ("-m", "celery", "-A", "celery_app.tasks", "worker", "-P", "threads", "-c", "2", "--without-mingle")


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def redis(directory: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "")
    with running("redis-server", *options):
        yield f"redis://127.0.0.1:{port}/0"


def worker(name: str) -> tuple[str, ...]:
    return (sys.executable, *WORKER, "-n", f"{name}@example")


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.05)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        running_server(RULES) as server,
        redis(directory) as broker,
    ):
        with ThreadsClient(server.base_url, api_key=server.api_key) as client:
            function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
            assistant = client.create_assistant(
                model="rules", tools=[{"type": "function", "function": function}]
            )
        os.environ |= {
            "BROKER": broker,
            "JOURNAL": f"sqlite:///{directory}/runs.db",
            "ASSISTANT": assistant.id,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": server.api_key,
        }
        # Not before the environment is there, which the application is made from.
        from celery_app.shop import ask
        from orchestrator.workers.celery import cancel, run_assistant

        with running(*worker("first")) as first:
            print(ask("Weather in Rome?", key="question-1"))
            print(ask("Weather in Rome?", key="question-1"), "(the same run)")
            thinking = run_assistant.delay(assistant.id, key="question-2", messages="Think about Rome")
            wait_until(lambda: thinking.state == "PROGRESS" and thinking.info["status"] == "in_progress")
            run_id = thinking.info["run_id"]
            print(f"question-2 is {thinking.info['status']}; its worker is killed")
            first.send_signal(signal.SIGKILL)
        with running(*worker("second")):
            print(ask("Weather in Oslo?"))
            cancel(thinking)
            outcome = thinking.get(timeout=60)
            print(f"question-2 is {outcome['status']}, by the second worker")
            print("it is the same run" if outcome["run_id"] == run_id else "it is another run")


if __name__ == "__main__":
    main()
