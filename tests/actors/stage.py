"""What the tests of supervision and of the façade share: a real server, and a look at what is left."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from pykka import ActorRegistry

from orchestrator import Orchestrator, Timing
from orchestrator.client import RetryPolicy, ThreadsClient
from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.testing import running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.protocol.objects import Run
    from orchestrator.testing import RunningServer

PATIENCE_S = 20.0
"""How long a test waits for what must come; never reached when all is well."""

QUICK = Timing(
    retry=RetryPolicy(base_s=0.01, cap_s=0.05, settle_s=0.05),
    cancel_timeout_s=10.0,
    poll_min_s=0.02,
    poll_max_s=0.1,
)
"""The default patience, with short pauses."""

TOOLS = ("fetch", "other", "third")

RULES: list[dict[str, Any]] = [
    {"match": "^hello", "steps": [{"say": "hello to you"}]},
    {"match": "^fetch", "steps": [{"call": {"tool": "fetch"}}, {"say": "got {fetch}"}]},
    {
        "match": "^each (?P<words>.+)",
        "steps": [
            {"call": {"tool": "fetch", "for_each": r"(?P<word>\w+)", "arguments": {"word": "{word}"}}},
            {"say": "got {fetch}"},
        ],
    },
    {
        "match": "^twice",
        "steps": [
            {"call": {"tool": "fetch", "arguments": {"word": "one"}}},
            {"call": {"tool": "other", "arguments": {"word": "two"}}},
            {"say": "got {fetch} and {other}"},
        ],
    },
    {"match": "^all", "steps": [{"call": [{"tool": name} for name in TOOLS]}, {"say": "all done"}]},
    {
        "match": "^garbled",
        "steps": [{"call": {"tool": "fetch", "arguments_raw": '{"word": '}}, {"say": "so be it"}],
    },
    {"match": "^fail", "steps": [{"fail": {"code": "server_error", "message": "the model broke"}}]},
    {"match": "^dawdle", "steps": [{"think_s": 60}, {"say": "at last"}]},
    {"match": "^long", "piece_chars": 1, "piece_s": 0.4, "steps": [{"say": "x" * 150}]},
]


def definition(name: str) -> dict[str, Any]:
    """A function tool as an assistant defines it."""
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
    }


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A server, one assistant that knows `TOOLS`, and a client of the test's own."""

    server: RunningServer
    client: ThreadsClient
    assistant: str

    def orchestrator(self, **options: Any) -> Orchestrator:
        settings: dict[str, Any] = {"timing": QUICK}
        if "client" not in options:
            settings |= {"base_url": self.server.base_url, "api_key": self.server.api_key}
        return Orchestrator(**(settings | options))

    def thread(self) -> str:
        return self.client.create_thread().id

    def run(self, thread_id: str | None, run_id: str | None) -> Run:
        assert thread_id is not None
        assert run_id is not None
        return self.client.get_run(thread_id, run_id)

    def run_id(self, text: str, thread_id: str) -> str:
        """Start a run behind the orchestrator's back."""
        messages = [{"role": "user", "content": text}]
        return self.client.create_run(thread_id, assistant_id=self.assistant, additional_messages=messages).id

    def runs(self, thread_id: str | None) -> list[Run]:
        assert thread_id is not None
        return self.client.list_runs(thread_id).data

    def requests(self, thread_id: str | None, method: str = "") -> list[str]:
        """What was asked of one thread and of its runs, in short, the test's own requests included."""
        prefix = f"/v1/threads/{thread_id}"
        return [
            f"{verb} {path.removeprefix(prefix)}"
            for verb, path in list(self.server.requests)
            if path.startswith(prefix) and verb.startswith(method)
        ]


@contextmanager
def staged(rules: list[dict[str, Any]] | None = None, **options: Any) -> Iterator[Stage]:
    with running_server(RULES if rules is None else rules, **options) as server:
        client = ThreadsClient(server.base_url, api_key=server.api_key)
        with client:
            tools = [definition(name) for name in TOOLS]
            assistant = client.create_assistant(model="rules", tools=tools).id
            yield Stage(server=server, client=client, assistant=assistant)


class Gate:
    """A tool that waits: it says when it was reached, and goes on when it is opened."""

    def __init__(self, *, opened: bool = False) -> None:
        self.reached = threading.Semaphore(0)
        self.open = threading.Event()
        self.calls = 0
        if opened:
            self.open.set()

    def fetch(self, word: str = "") -> str:
        """Wait for the gate."""
        self.calls += 1
        self.reached.release()
        assert self.open.wait(PATIENCE_S)
        return word or "it"

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE_S)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what no event announces, by looking again and again."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S * 200)):
        if holds():
            return
        pause.wait(0.005)
    raise TimeoutError(f"{holds} never came true")


def our_threads() -> list[str]:
    """The threads of orchestrators in this process; the server's own are not among them."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("orchestrator-") and not thread.name.startswith("orchestrator-server")
    ]


def connections_to(base_url: str) -> list[Any]:
    """This process's open sockets on the client's side of a server."""
    port = urlsplit(base_url).port
    return [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    ]


def assert_nothing_left(base_url: str, *, ours: int = 0) -> None:
    """Fail unless everything that orchestrators made is gone.

    Args:
        base_url: The server they talked to.
        ours: How many connections to it belong to the test itself.
    """
    assert our_threads() == []
    assert ActorRegistry.get_all() == []
    assert len(connections_to(base_url)) <= ours


def active_runs(stage: Stage, *thread_ids: str | None) -> list[str]:
    """The runs on these threads that are not over."""
    return [
        run.id for thread_id in thread_ids for run in stage.runs(thread_id) if run.status in ACTIVE_STATUSES
    ]
