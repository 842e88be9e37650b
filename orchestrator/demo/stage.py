"""Where the demo plays: a server of its own as a process, or another one, and an assistant there.

Owns what is made for the demo and taken away again, and says what to do where a server will not have it.
Starts no run.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client import NO_RETRIES, RetryPolicy, ThreadsClient
from orchestrator.demo.tools import TOOLS
from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    AuthenticationError,
    NotFoundError,
    OrchestratorError,
    PermissionDeniedError,
)
from orchestrator.telemetry import get_logger
from orchestrator.tools import ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.demo.interruption import Interruptions

__all__ = ["DemoFailed", "Stage", "other_stage", "own_stage"]

log = get_logger(__name__)

MODEL = "gpt-4o-mini"
"""The model of an assistant that the demo creates on another server; `orchestrator serve` takes any name."""

_START_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 15.0
_FIRST_LOOK = RetryPolicy(deadline_s=30.0)
"""Somebody sits before the demo and sees nothing yet: it gives up sooner than a program ought to."""

_STOP_TIMEOUT_S = 10.0


class DemoFailed(OrchestratorError):
    """The demo cannot begin or go on; the text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A server that answers, and an assistant there that knows the demo's tools.

    Attributes:
        base_url: The server.
        api_key: Its key; `None` leaves it to the environment.
        assistant_id: The assistant.
        process: The server, where it is the demo's own.
    """

    base_url: str
    api_key: str | None
    assistant_id: str
    process: subprocess.Popen[str] | None = None

    @property
    def own(self) -> bool:
        """Whether the server is the demo's own, so that its rules give the answers."""
        return self.process is not None

    def check(self) -> None:
        """Look whether the demo's own server still runs; what becomes of another one, its runs tell.

        Raises:
            DemoFailed: It does not.
        """
        if self.process is not None and self.process.poll() is not None:
            raise DemoFailed(
                f"the demo's server ended in the middle, with code {self.process.returncode}: "
                "what it said is above; start the demo again"
            )


@contextmanager
def own_stage(interruptions: Interruptions) -> Iterator[Stage]:
    """Run `orchestrator serve` as a process on a free port, with the demo's rules and a temporary file.

    Entering blocks until it answers, leaving until it has ended and its file is gone. From here on this
    process uses no proxy: one in the environment is for other machines, and would be sent these requests.

    Raises:
        DemoFailed: It did not start.
        Interrupted: A signal came first.
    """
    os.environ["no_proxy"] = "*"
    api_key = secrets.token_urlsafe()
    with _server(api_key) as process:
        with interruptions.heeded():
            base_url = _listening_url(process)
            with ThreadsClient(base_url=base_url, api_key=api_key) as client:
                assistant_id = _created(client)
        yield Stage(base_url=base_url, api_key=api_key, assistant_id=assistant_id, process=process)


@contextmanager
def other_stage(
    interruptions: Interruptions, *, base_url: str, api_key: str | None, assistant_id: str | None
) -> Iterator[Stage]:
    """Use a server that runs already; an assistant that is created here is deleted on leaving. Blocks.

    Raises:
        DemoFailed: The server does not answer or refuses the key, or the assistant will not do.
        OrchestratorError: The server refuses in another way.
        Interrupted: A signal came first.
    """
    try:
        client = ThreadsClient(
            base_url=base_url, api_key=api_key, timeout=_ANSWER_TIMEOUT_S, retry=_FIRST_LOOK
        )
    except ValueError as error:
        raise DemoFailed(f"{error}; see --base-url, --api-key and --api-key-file") from None
    with client:
        with interruptions.heeded(), _explained(base_url, assistant_id):
            chosen = _created(client) if assistant_id is None else _looked_up(client, assistant_id)
        try:
            yield Stage(base_url=base_url, api_key=api_key, assistant_id=chosen)
        finally:
            if assistant_id is None:
                _delete(client, chosen)


def _created(client: ThreadsClient) -> str:
    assistant = client.create_assistant(
        model=MODEL,
        name="orchestrator demo",
        instructions="Answer from the tools' results only.",
        tools=ToolRegistry(TOOLS).definitions(),
    )
    return assistant.id


def _looked_up(client: ThreadsClient, assistant_id: str) -> str:
    try:
        assistant = client.get_assistant(assistant_id)
    except ValueError as error:  # it cannot be part of a path, so that no request was made
        raise DemoFailed(f"{error}: correct --assistant-id, or leave it out to have one created") from None
    known = {tool["function"]["name"] for tool in assistant.tools if tool.get("type") == "function"}
    missing = [tool.name for tool in TOOLS if tool.name not in known]
    if missing:
        raise DemoFailed(
            f"assistant {assistant_id} does not know the demo's tools {', '.join(missing)}: "
            "leave --assistant-id out to have one created"
        )
    return assistant.id


def _delete(client: ThreadsClient, assistant_id: str) -> None:
    try:
        client.delete_assistant(assistant_id, retry=NO_RETRIES, timeout=_STOP_TIMEOUT_S)
    except OrchestratorError as error:
        log.warning("demo.assistant_left", assistant_id=assistant_id, reason=str(error))


@contextmanager
def _explained(base_url: str, assistant_id: str | None) -> Iterator[None]:
    """Add what to do to the errors that a newcomer meets first."""
    try:
        yield
    except (AuthenticationError, PermissionDeniedError) as error:
        remedy = f"give the key of {base_url} as --api-key, --api-key-file or OPENAI_API_KEY"
        raise DemoFailed(f"{error}: {remedy}") from error
    except NotFoundError as error:
        remedy = f"correct --base-url {base_url}, which usually ends in /v1"
        if assistant_id is not None:
            remedy += f", or leave --assistant-id {assistant_id} out to have one created"
        raise DemoFailed(f"{error}: {remedy}") from error
    except AmbiguousOutcome as error:
        raise DemoFailed(f"{base_url}: {error}") from error
    except APIConnectionError as error:
        remedy = "correct --base-url, or start a server there with `orchestrator serve`"
        raise DemoFailed(f"{base_url} does not answer: {error}: {remedy}") from error


@contextmanager
def _server(api_key: str) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryDirectory(prefix="orchestrator-demo-") as directory:
        # -P: a module named orchestrator in the working directory is not ours.
        command = [sys.executable, "-P", "-m", "orchestrator", "serve", "--port=0", "--log-level=warning"]
        command += [f"--db={directory}/demo.sqlite", f"--script={Path(__file__).with_name('rules.yaml')}"]
        # A session of its own: Ctrl-C is the demo's, which still needs the server to cancel its runs.
        with subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "ORCHESTRATOR_API_KEY": api_key},
        ) as process:
            try:
                yield process
            finally:
                _end(process)


def _listening_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    # A server that says nothing in time is killed, which ends the wait for its line.
    patience = threading.Timer(_START_TIMEOUT_S, process.kill)
    try:
        patience.start()
        line = process.stdout.readline().strip()
    finally:
        patience.cancel()
    if not line.startswith("listening on "):
        raise DemoFailed(
            f"the demo's server did not start: it ended with code {process.wait(_STOP_TIMEOUT_S)}; "
            "what it said is above"
        )
    return line.removeprefix("listening on ")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
