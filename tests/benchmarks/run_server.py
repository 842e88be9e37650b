"""A server of whole lives of runs that costs next to nothing, in a process of its own.

`with run_server() as base_url:` starts it and ends it. It speaks as much of the protocol as an orchestrator
needs to see runs through, streamed or polled, and does with each what the metadata of its create says:

    rounds, calls   so many rounds of so many tool calls each (0, 1), of
    tools           these tools by turns ("double,square"), of
    number          this number plus the round's; then a message of all outputs in order
    think_ms        this long before each round, and before the message (0)
    gate            before the first move it waits for `POST /stub/gates/{name}`
    until           "cancelled": it makes no move at all

`GET /stub/report` counts what was asked of it, `GET /stub/cancels` tells by run when the bytes of its first
cancel arrived, by `time.monotonic()`, which on Linux all processes share; `GET /stub/looks` when each run was
looked at, by the same clock, and begins anew. `POST /stub/settle` with the ids of
runs tells what became of each and forgets it, so that a server may be used for long. Imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from stub_server import RUN, serve, serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

CANCELLING_S = 0.01
TOOLS = ("double", "square")
_NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
_DEFINITIONS = [{"type": "function", "function": {"name": name, "parameters": _NUMBER}} for name in TOOLS]
NONCE = "orchestrator_nonce"
_VARYING = ("id", "thread_id", "status", "metadata")
_SAME = json.dumps({name: value for name, value in RUN.items() if name not in _VARYING})[1:].encode()
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DONE = b"event: done\ndata: [DONE]\n\n"
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found"}


def calls_of(number: int, round_: int, calls: int, tools: Sequence[str] = TOOLS) -> list[tuple[str, int]]:
    """The tool calls of one round: which tool, of which number."""
    return [(tools[index % len(tools)], number + round_) for index in range(calls)]


def _event(name: str, payload: bytes) -> bytes:
    return b"event: thread.%s\ndata: %s\n\n" % (name.encode(), payload)


class _Run:
    """One run, and the stream that shows it, if any."""

    __slots__ = (
        "calls",
        "id",
        "metadata",
        "outputs",
        "plan",
        "round",
        "status",
        "stream",
        "thread_id",
        "tools",
    )

    def __init__(self, run_id: str, thread_id: str, metadata: dict[str, str]) -> None:
        self.id = run_id
        self.thread_id = thread_id
        self.metadata = metadata
        self.plan = {name: int(metadata.get(name, 0)) for name in ("rounds", "number", "think_ms")}
        self.plan["calls"] = int(metadata.get("calls", 1))
        self.tools = metadata.get("tools", ",".join(TOOLS)).split(",")
        self.status = "queued"
        self.round = 0
        self.calls: list[dict[str, Any]] = []
        self.outputs: list[str] = []
        self.stream: _Connection | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "cancelled")

    def shown(self) -> bytes:
        head: dict[str, Any] = {name: getattr(self, name) for name in _VARYING}
        if self.status == "requires_action":
            asked = {"tool_calls": self.calls}
            head["required_action"] = {"type": "submit_tool_outputs", "submit_tool_outputs": asked}
        return json.dumps(head)[:-1].encode() + b", " + _SAME

    def become(self, status: str) -> bytes:
        """Change the status; the event of it."""
        self.status = status
        return _event(f"run.{status}", self.shown())

    def message(self, status: str, text: str) -> dict[str, Any]:
        content = [{"type": "text", "text": {"value": text, "annotations": []}}] if text else []
        return {
            "id": f"msg_{self.id}",
            "object": "thread.message",
            "created_at": RUN["created_at"],
            "thread_id": self.thread_id,
            "run_id": self.id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def show(self, *events: bytes, last: bool = False) -> None:
        """Put events on the stream, if one is open."""
        if self.stream is None:
            return
        self.stream.send_events(events, last=last)
        if last:
            self.stream = None


class _World:
    """All threads and runs, and the counters."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.runs: dict[str, _Run] = {}
        self.made = 0
        self.active: dict[str, _Run] = {}
        self.on_thread: defaultdict[str, list[_Run]] = defaultdict(list)
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.assistants = 0
        self.threads = 0
        self.connections = 0
        self.open_streams = 0
        self.gates: defaultdict[str, list[_Run] | None] = defaultdict(list)
        self.creates: Counter[str] = Counter()
        self.submissions: Counter[tuple[str, int]] = Counter()
        self.partial_submissions = 0
        self.refused: Counter[str] = Counter()
        self.cancels: dict[str, float] = {}
        self.looks: defaultdict[str, list[float]] = defaultdict(list)

    def report(self) -> dict[str, Any]:
        return {
            "connections": self.connections,
            "assistants": self.assistants,
            "threads": self.threads,
            "runs": len(self.runs),
            "active": len(self.active),
            "open_streams": self.open_streams,
            "nonces": len(self.creates),
            "creates": self.creates.total(),
            "submitted_rounds": len(self.submissions),
            "submissions": self.submissions.total(),
            "partial_submissions": self.partial_submissions,
            "refused": self.refused,
        }

    def settle(self, run_id: str) -> dict[str, Any] | None:
        """Tell what became of a run that is over, and forget it and its thread; `None` if there is none."""
        run = self.runs.get(run_id)
        if run is None or not run.is_over:
            return None
        del self.runs[run_id]
        self.on_thread[run.thread_id].remove(run)
        if not self.on_thread[run.thread_id]:
            del self.on_thread[run.thread_id]
        self.messages.pop(run_id, None)
        self.cancels.pop(run_id, None)
        self.looks.pop(run_id, None)
        rounds = [self.submissions.pop((run_id, number + 1), 0) for number in range(run.round)]
        return {
            "status": run.status,
            "creates": self.creates.pop(run.metadata.get(NONCE, ""), 0),
            "submissions": rounds,
            "text": " ".join(run.outputs),
        }

    def create(self, thread_id: str, body: dict[str, Any], stream: _Connection | None) -> _Run:
        metadata = body.get("metadata") or {}
        self.creates[metadata.get(NONCE, "")] += 1
        self.made += 1
        run_id = f"run_{self.made}"
        run = self.runs[run_id] = self.active[thread_id] = _Run(run_id, thread_id, metadata)
        self.on_thread[thread_id].append(run)
        run.stream = stream
        run.show(_event("run.created", run.shown()), run.become("queued"), run.become("in_progress"))
        if metadata.get("until") == "cancelled":
            return run
        waiting = self.gates[metadata["gate"]] if "gate" in metadata else None
        if waiting is None:
            self.think(run)
        else:
            waiting.append(run)
        return run

    def open_gate(self, name: str) -> None:
        for run in self.gates[name] or ():
            self.think(run)
        self.gates[name] = None

    def think(self, run: _Run) -> None:
        if run.plan["think_ms"]:
            self.loop.call_later(run.plan["think_ms"] / 1000, self.move, run)
        else:
            self.loop.call_soon(self.move, run)

    def move(self, run: _Run) -> None:
        if run.status != "in_progress":
            return
        if run.round == run.plan["rounds"]:
            self.complete(run)
            return
        run.round += 1
        asked = calls_of(run.plan["number"], run.round, run.plan["calls"], run.tools)
        run.calls = [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps({"number": number})},
            }
            for index, (name, number) in enumerate(asked)
        ]
        run.show(run.become("requires_action"), _DONE, last=True)

    def complete(self, run: _Run) -> None:
        text = " ".join(run.outputs) or "well"
        message = run.message("completed", text)
        delta = {"content": [{"index": 0, "type": "text", "text": {"value": text}}]}
        events = {
            "message.created": run.message("in_progress", ""),
            "message.delta": {"id": message["id"], "object": "thread.message.delta", "delta": delta},
            "message.completed": message,
        }
        self.messages[run.id] = [message]
        shown = [_event(name, json.dumps(payload).encode()) for name, payload in events.items()]
        self.end(run, "completed", *shown)

    def end(self, run: _Run, status: str, *events: bytes) -> None:
        del self.active[run.thread_id]
        run.show(*events, run.become(status), _DONE, last=True)

    def submit(self, run: _Run, outputs: list[dict[str, str]], stream: _Connection | None) -> None:
        run.outputs += [output["output"] for output in outputs]
        run.stream = stream
        run.show(run.become("queued"), run.become("in_progress"))
        self.think(run)

    def cancel(self, run: _Run) -> None:
        run.show(run.become("cancelling"))
        self.loop.call_later(CANCELLING_S, self.end, run, "cancelled")


class _Connection(asyncio.Protocol):
    world: _World

    def __init__(self) -> None:
        self._buffer = b""
        self._streams = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.world.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's own name
        self.world.open_streams -= self._streams
        self._streams = False

    def data_received(self, data: bytes) -> None:
        arrived_at = time.monotonic()
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            request_line, *lines = head.split(b"\r\n")
            lengths = (line for line in lines if line.lower().startswith(b"content-length:"))
            length = int(next(lengths, b":0").split(b":")[1])
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            method, target, _ = request_line.decode().split(" ")
            parts = target.partition("?")[0].removeprefix("/v1/").strip("/").split("/")
            self._route(method, parts, json.loads(rest[:length] or b"{}"), arrived_at)

    def _route(self, method: str, parts: list[str], body: dict[str, Any], arrived_at: float) -> None:
        world = self.world
        match method, *parts:
            case "GET", "assistants", assistant_id:
                world.assistants += 1
                self._answer({"id": assistant_id, "object": "assistant", "tools": _DEFINITIONS})
            case "POST", "threads":
                world.threads += 1
                metadata = body.get("metadata") or {}
                self._answer({"id": f"thread_{world.threads}", "object": "thread", "metadata": metadata})
            case "POST", "threads", thread_id, "runs":
                self._create(thread_id, body)
            case "GET", "threads", thread_id, "runs":
                self._answer_list(run.shown() for run in reversed(world.on_thread[thread_id]))
            case "GET", "threads", thread_id, "messages":
                runs = world.on_thread[thread_id]
                messages = [message for run in runs for message in world.messages.get(run.id, ())]
                self._answer_list(json.dumps(message).encode() for message in messages)
            case "GET", "threads", _, "runs", _, "steps":
                self._answer_list(())
            case _, "threads", _, "runs", run_id, *action if run_id in world.runs:
                self._ask(world.runs[run_id], "/".join(action), body, arrived_at)
            case "GET", "stub", "report":
                self._answer(world.report())
            case "GET", "stub", "cancels":
                self._answer(world.cancels)
            case "GET", "stub", "looks":
                self._answer(world.looks)
                world.looks.clear()
            case "POST", "stub", "settle":
                self._answer({run_id: world.settle(run_id) for run_id in body["runs"]})
            case "POST", "stub", "gates", name:
                world.open_gate(name)
                self._answer({})
            case _:
                self._refuse(404, f"there is no {'/'.join(parts)}")

    def _create(self, thread_id: str, body: dict[str, Any]) -> None:
        holder = self.world.active.get(thread_id)
        if holder is not None:
            self._refuse(400, f"Thread {thread_id} already has an active run {holder.id}.")
            return
        stream = self._opened() if body.get("stream") else None
        run = self.world.create(thread_id, body, stream)
        if stream is None:
            self._answer_bytes(200, run.shown())

    def _ask(self, run: _Run, action: str, body: dict[str, Any], arrived_at: float) -> None:
        if action == "":
            self.world.looks[run.id].append(arrived_at)
            self._answer_bytes(200, run.shown())
        elif action == "cancel":
            self.world.cancels.setdefault(run.id, arrived_at)
            if run.is_over or run.status == "cancelling":
                self._refuse(400, f"Cannot cancel run with status '{run.status}'.")
            else:
                self.world.cancel(run)
                self._answer_bytes(200, run.shown())
        else:
            self._submit(run, body)

    def _submit(self, run: _Run, body: dict[str, Any]) -> None:
        outputs = body["tool_outputs"]
        self.world.submissions[run.id, run.round] += 1
        given = {output["tool_call_id"] for output in outputs}
        asked = {call["id"] for call in run.calls}
        if run.status != "requires_action":
            self._refuse(400, f'Runs in status "{run.status}" do not accept tool outputs.')
        elif given != asked:
            self.world.partial_submissions += 1
            self._refuse(400, f"Expected tool outputs for call_ids {sorted(asked)}, got {sorted(given)}")
        else:
            stream = self._opened() if body.get("stream") else None
            self.world.submit(run, outputs, stream)
            if stream is None:
                self._answer_bytes(200, run.shown())

    def _opened(self) -> _Connection:
        self._streams = True
        self.world.open_streams += 1
        self._transport.write(_STREAM)
        return self

    def send_events(self, events: Iterable[bytes], *, last: bool) -> None:
        data = b"".join(events)
        end = b"0\r\n\r\n" if last else b""
        self._transport.write(b"%x\r\n%s\r\n%s" % (len(data), data, end))
        if last and self._streams:
            self._streams = False
            self.world.open_streams -= 1

    def _answer(self, body: object) -> None:
        self._answer_bytes(200, json.dumps(body).encode())

    def _answer_list(self, items: Iterable[bytes]) -> None:
        self._answer_bytes(200, b'{"object": "list", "data": [%s], "has_more": false}' % b", ".join(items))

    def _refuse(self, status: int, message: str) -> None:
        self.world.refused[message[:40]] += 1
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._answer_bytes(status, json.dumps({"error": error}).encode())

    def _answer_bytes(self, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (status, _REASONS[status], len(body)) + body)


def run_server() -> AbstractContextManager[str]:
    """Run this server; yields its base URL. See `stub_server.serving`."""
    return serving(__file__)


async def _serve() -> None:
    # A collection that stops this process for long would be taken for latency of whom it measures.
    gc.disable()
    _Connection.world = _World()
    await serve(_Connection)


if __name__ == "__main__":
    asyncio.run(_serve())
