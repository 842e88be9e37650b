"""A web application whose runs survive its processes: one endpoint starts a run, another relays its events.

    uvicorn --app-dir examples web_app:app --timeout-graceful-shutdown 5
    gunicorn --chdir examples web_app:app -k uvicorn.workers.UvicornWorker -w 2

with JOURNAL, ASSISTANT, OPENAI_BASE_URL and OPENAI_API_KEY in the environment. Run as a program it starts a
server and itself under uvicorn, and is its own client.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from weather import get_weather

from orchestrator import Notice, Orchestrator, RunHandle
from orchestrator.client import ThreadsClient
from orchestrator.errors import KeyReused, OrchestratorError, UnknownRun
from orchestrator.testing import running_server
from orchestrator.workers.asgi import lifespan


def make_orchestrator() -> Orchestrator:
    return Orchestrator(tools=[get_weather], journal=os.environ["JOURNAL"])


async def start(request: Request) -> Response:
    """Start a run, or find the one of this key; it survives this process once that is answered."""
    asked = await request.json()
    orchestrator: Orchestrator = request.app.state.orchestrator
    try:
        run = orchestrator.start(os.environ["ASSISTANT"], messages=asked["question"], key=asked["key"])
        await asyncio.wrap_future(run.recorded)
    except KeyReused as error:
        return JSONResponse({"error": str(error)}, status_code=409)
    return JSONResponse({"key": run.key}, status_code=202)


async def events(request: Request) -> Response:
    """Relay a run's events; where another process conducts it, only its outcome is told."""
    orchestrator: Orchestrator = request.app.state.orchestrator
    try:
        run = await asyncio.to_thread(orchestrator.attach, request.path_params["key"])
    except UnknownRun as error:
        return JSONResponse({"error": str(error)}, status_code=404)
    return StreamingResponse(relayed(run), media_type="text/event-stream")


async def relayed(run: RunHandle) -> AsyncIterator[bytes]:
    async for event in run:
        yield sse(event.event, event if isinstance(event, Notice) else event.data)
    try:
        result = await run
    except OrchestratorError as error:
        yield sse("outcome", {"error": str(error)})
    else:
        yield sse("outcome", {"status": result.status, "text": result.text})


def sse(event: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(data))


app = Starlette(
    routes=[Route("/runs", start, methods=["POST"]), Route("/runs/{key}/events", events)],
    lifespan=lifespan(make_orchestrator, drain_s=5.0),
)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        running_server(Path(__file__).with_name("weather.yaml")) as server,
    ):
        with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
            assistant = client.create_assistant(model="rules", tools=[get_weather.definition()])
        settings = {
            "JOURNAL": f"sqlite:///{directory}/runs.db",
            "ASSISTANT": assistant.id,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": server.api_key,
        }
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = [
                sys.executable,
                "-m",
                "uvicorn",
                "--app-dir",
                str(Path(__file__).parent),
                "web_app:app",
            ]
            command += ["--fd", str(listener.fileno()), "--log-level", "warning"]
            with subprocess.Popen(
                command, pass_fds=[listener.fileno()], env=os.environ | settings
            ) as application:
                try:
                    ask(f"http://127.0.0.1:{listener.getsockname()[1]}")
                finally:
                    application.terminate()
        print("the application has ended")


def ask(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        started = client.post("/runs", json={"key": "question-1", "question": "Weather in Rome?"})
        print(started.status_code, started.json())
        with client.stream("GET", "/runs/question-1/events") as response:
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name in {"tool.finished", "outcome"}:
                    print(name if name == "tool.finished" else f"{name}: {value}")


if __name__ == "__main__":
    main()
