"""A client that believes nothing: every answer and every event must fit the specification."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx

from server.conformance import ERROR, answer_schema, check, check_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.testing import RunningServer

JSON: TypeAlias = dict[str, Any]
Event: TypeAlias = tuple[str, Any]

WEATHER: JSON = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
TIME: JSON = {"type": "function", "function": {"name": "get_time"}}


class Speaker:
    """Speaks the protocol with a running server and validates whatever comes back."""

    def __init__(self, server: RunningServer, **headers: str) -> None:
        given = {"openai-beta": "assistants=v2"}
        if server.api_key:
            given["authorization"] = f"Bearer {server.api_key}"
        given |= headers
        self.server = server
        self.http = httpx.Client(base_url=server.base_url, headers=given, timeout=20, trust_env=False)

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """Send one request; the answer has an id and fits the schema of its operation, or the error's."""
        if body is not None:
            options["json"] = body
        response = self.http.request(method, path, **options)
        self._check(method, path, response)
        return response

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> JSON:
        """Send one request that must succeed; return its object."""
        response = self.send(method, path, body, **options)
        assert response.status_code == 200, response.text
        result: JSON = response.json()
        return result

    def refused(self, status: int, method: str, path: str, body: Any = None, **options: Any) -> JSON:
        """Send one request that must be refused; return the error object."""
        response = self.send(method, path, body, **options)
        assert response.status_code == status, response.text
        result: JSON = response.json()["error"]
        return result

    @contextmanager
    def streaming(self, path: str, body: JSON, **headers: str) -> Iterator[Iterator[Event]]:
        """Open a stream; events are validated as they are read."""
        with self.http.stream("POST", path, json={**body, "stream": True}, headers=headers) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-request-id"].startswith("req_")
            yield _events(response)

    def stream(self, path: str, body: JSON, **headers: str) -> list[Event]:
        """Read a stream to its end, which must be `done`."""
        with self.streaming(path, body, **headers) as events:
            result = list(events)
        assert result[-1] == ("done", "[DONE]")
        return result

    def assistant(self, *tools: JSON, **fields: Any) -> str:
        """Create an assistant; return its id."""
        return str(self.ok("POST", "/assistants", {"model": "rules", "tools": list(tools), **fields})["id"])

    def thread(self, *texts: str) -> str:
        """Create a thread with user messages; return its id."""
        messages = [{"role": "user", "content": text} for text in texts]
        return str(self.ok("POST", "/threads", {"messages": messages})["id"])

    def run(self, text: str, *tools: JSON, **fields: Any) -> str:
        """Create all it takes to run on one message; return the run's path."""
        thread_id = self.thread(text)
        body = {"assistant_id": self.assistant(*tools), **fields}
        run = self.ok("POST", f"/threads/{thread_id}/runs", body)
        return f"/threads/{thread_id}/runs/{run['id']}"

    def until(self, path: str, *statuses: str) -> JSON:
        """Poll a run until it has one of the statuses."""
        while (run := self.ok("GET", path))["status"] not in statuses:
            assert run["status"] in ("queued", "in_progress", "cancelling", "requires_action"), run
        return run

    def waiting(self, text: str, *tools: JSON, **fields: Any) -> tuple[str, list[str]]:
        """Run until tool outputs are wanted; return the run's path and the call ids."""
        path = self.run(text, *tools, **fields)
        return path, call_ids(self.until(path, "requires_action"))

    def _check(self, method: str, path: str, response: httpx.Response) -> None:
        assert response.headers["x-request-id"].startswith("req_")
        assert not [name for name in response.headers if name.startswith("access-control")]
        if response.status_code >= 400:
            check(response.json(), ERROR)
            return
        pointer = answer_schema(method, path.split("?", maxsplit=1)[0])
        if not response.headers["content-type"].startswith("text/event-stream"):
            check(response.json(), pointer)


def _events(response: httpx.Response) -> Iterator[Event]:
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, check_event(name, value)
        else:
            assert line == ""


def call_ids(run: JSON) -> list[str]:
    """Return the ids of the calls that a run waits for."""
    return [call["id"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]


def outputs(*pairs: tuple[str, str]) -> JSON:
    """Build the body of a submission."""
    return {"tool_outputs": [{"tool_call_id": call_id, "output": text} for call_id, text in pairs]}


def names(events: list[Event]) -> list[str]:
    """Return the names of events, without the protocol's prefix; repeated deltas count once."""
    short = [name.removeprefix("thread.") for name, _ in events]
    return [
        name for index, name in enumerate(short) if not (name.endswith("delta") and short[index - 1] == name)
    ]
