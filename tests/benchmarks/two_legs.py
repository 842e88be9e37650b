"""A server of runs with two legs that costs next to nothing, in a process of its own.

`with two_legs(tick_s) as base_url:` starts it and ends it. Every run asks for two tool calls, `double` and
`square`, waits for their outputs, and writes a message: 46 events and some 27 KB when it is streamed. Each
event is written by itself, one for each tick and run, as a model writes, and no run keeps step with others; a
polled run is as far as a streamed one would be. Everything is rendered beforehand; only ids and the nonce are
put in.

`GET /stub/report` tells what it was asked for and what CPU time it took, `GET /stub/ended` when each run was
over, by `time.monotonic()`, which on Linux all processes share. Imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from stub_server import serve, serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

EVENTS: Final = 46
POLL_MS: Final = 500
"""How soon the server wants to be asked again; everybody who polls does as it says."""

_RUN_ID, _THREAD_ID, _NONCE = "RUN-ID", "THREAD-ID", "THE-NONCE"
_ARGUMENTS: Final = {"double": 7, "square": 8}
_FUNCTIONS: Final = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Work out the {name} of a number, however large, and answer with digits only.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer", "description": "What to work with."}},
                "required": ["number"],
            },
        },
    }
    for name in _ARGUMENTS
]
_CALLS: Final = [
    {
        "id": f"call_{index}",
        "type": "function",
        "function": {"name": name, "arguments": f'{{"number": {given}}}'},
    }
    for index, (name, given) in enumerate(_ARGUMENTS.items())
]
_WORDS: Final = [f"word {number} and " for number in range(24)]
_BASE: Final = {
    "id": _RUN_ID,
    "object": "thread.run",
    "created_at": 1_700_000_000,
    "assistant_id": "asst_1",
    "thread_id": _THREAD_ID,
    "started_at": 1_700_000_001,
    "expires_at": None,
    "cancelled_at": None,
    "failed_at": None,
    "completed_at": None,
    "required_action": None,
    "last_error": None,
    "incomplete_details": None,
    "model": "rules",
    "instructions": "You are a careful clerk who reckons with the tools and says what comes of it. " * 13,
    "tools": _FUNCTIONS,
    "metadata": {"orchestrator_nonce": _NONCE},
    "usage": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_prompt_tokens": None,
    "max_completion_tokens": None,
    "truncation_strategy": {"type": "auto", "last_messages": None},
    "response_format": "auto",
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
_REQUIRED: Final = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": _CALLS}}
_USAGE: Final = {"prompt_tokens": 300, "completion_tokens": 60, "total_tokens": 360}


def _run(status: str) -> dict[str, Any]:
    asked = {"required_action": _REQUIRED} if status == "requires_action" else {}
    return _BASE | {"status": status} | asked | ({"usage": _USAGE} if status == "completed" else {})


def _step(kind: str, status: str) -> dict[str, Any]:
    made = (
        {"tool_calls": _CALLS}
        if kind == "tool_calls"
        else {"message_creation": {"message_id": f"msg_{_RUN_ID}"}}
    )
    return {
        "id": f"step_{kind}_{_RUN_ID}",
        "object": "thread.run.step",
        "created_at": 1_700_000_002,
        "run_id": _RUN_ID,
        "assistant_id": "asst_1",
        "thread_id": _THREAD_ID,
        "type": kind,
        "status": status,
        "step_details": {"type": kind} | made,
        "last_error": None,
        "usage": _USAGE if status == "completed" else None,
    }


def _message(status: str) -> dict[str, Any]:
    text = {"type": "text", "text": {"value": "".join(_WORDS), "annotations": []}}
    return {
        "id": f"msg_{_RUN_ID}",
        "object": "thread.message",
        "created_at": 1_700_000_003,
        "assistant_id": "asst_1",
        "thread_id": _THREAD_ID,
        "run_id": _RUN_ID,
        "role": "assistant",
        "status": status,
        "content": [text] if status == "completed" else [],
        "attachments": [],
        "metadata": {},
    }


def _shown(name: str, payload: dict[str, Any]) -> bytes:
    return f"event: thread.{name}\ndata: {json.dumps(payload)}\n\n".encode()


def _of_run(status: str, name: str | None = None) -> bytes:
    return _shown(f"run.{name or status}", _run(status))


def _of_step(kind: str, status: str, name: str | None = None) -> bytes:
    return _shown(f"run.step.{name or status}", _step(kind, status))


def _of_delta(kind: str, id_: str, delta: dict[str, Any]) -> bytes:
    return _shown(f"{kind}.delta", {"id": id_, "object": f"thread.{kind}.delta", "delta": delta})


def _call_delta(index: int) -> bytes:
    piece = {"index": index} | _CALLS[index]
    details = {"step_details": {"type": "tool_calls", "tool_calls": [piece]}}
    return _of_delta("run.step", f"step_tool_calls_{_RUN_ID}", details)


def _word_delta(word: str) -> bytes:
    part = {"index": 0, "type": "text", "text": {"value": word, "annotations": []}}
    return _of_delta("message", f"msg_{_RUN_ID}", {"content": [part]})


_DONE: Final = b"event: done\ndata: [DONE]\n\n"
LEGS: Final = (
    [
        _of_run("queued", "created"),
        _of_run("queued"),
        _of_run("in_progress"),
        _of_step("tool_calls", "in_progress", "created"),
        _of_step("tool_calls", "in_progress"),
        _call_delta(0),
        _call_delta(1),
        _of_run("requires_action"),
        _DONE,
    ],
    [
        _of_step("tool_calls", "completed"),
        _of_run("queued"),
        _of_run("in_progress"),
        _of_step("message_creation", "in_progress", "created"),
        _of_step("message_creation", "in_progress"),
        _shown("message.created", _message("in_progress")),
        _shown("message.in_progress", _message("in_progress")),
        *map(_word_delta, _WORDS),
        _shown("message.completed", _message("completed")),
        _of_step("message_creation", "completed"),
        _of_step("message_creation", "completed"),
        _of_step("message_creation", "completed"),
        _of_run("completed"),
        _DONE,
    ],
)
"""The events of each leg."""

_PHASES: Final = 32
"""Into how many parts a tick is divided: a stream that began in one of them goes on in it."""

_OVER: Final = len(LEGS[1]) - 2
"""Which event of the last leg says that the run is over; only the end of the stream follows."""

_STATES: Final = {
    status: json.dumps(_run(status)).encode()
    for status in ("queued", "in_progress", "requires_action", "completed", "cancelled")
}
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"x-request-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ASSISTANT: Final = {
    "id": "asst_1",
    "object": "assistant",
    "created_at": 1_700_000_000,
    "model": "rules",
    "name": None,
    "tools": _FUNCTIONS,
}
_WRITTEN: Final = json.dumps(_message("completed")).encode()
_SENT_NONCE: Final = re.compile(rb'"orchestrator_nonce": ?"([^"]+)"')


class _Life:
    """One run."""

    __slots__ = ("began", "id", "leg", "nonce", "thread")

    def __init__(self, id_: bytes, thread: bytes, nonce: bytes) -> None:
        self.id, self.thread, self.nonce = id_, thread, nonce
        self.leg = 0
        self.began = time.monotonic()

    def fill(self, template: bytes) -> bytes:
        filled = template.replace(b"RUN-ID", self.id).replace(b"THREAD-ID", self.thread)
        return filled.replace(b"THE-NONCE", self.nonce)


class _World:
    def __init__(self, tick_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.tick_s = tick_s
        self.lives: dict[bytes, _Life] = {}
        self.on_thread: dict[bytes, _Life] = {}
        self.ended: dict[str, float] = {}
        self.requests = self.creates = self.submissions = self.open = 0
        self.phases: list[list[tuple[asyncio.Transport, _Life, int]]] = [[] for _ in range(_PHASES)]
        self.phase = 0
        self.due = self.loop.time()
        self.tick()

    def tick(self) -> None:
        """Give those streams that are due in this part of the tick their next event."""
        self.due += self.tick_s / _PHASES
        self.loop.call_at(self.due, self.tick)
        self.phase = (self.phase + 1) % _PHASES
        streaming, self.phases[self.phase] = self.phases[self.phase], []
        for transport, life, index in streaming:
            if transport.is_closing():
                continue
            event = life.fill(LEGS[life.leg][index])
            is_last = index + 1 == len(LEGS[life.leg])
            if life.leg == 1 and index == _OVER:
                self.ended[life.id.decode()] = time.monotonic()
            transport.write(b"%x\r\n%s\r\n%s" % (len(event), event, b"0\r\n\r\n" if is_last else b""))
            if is_last:
                self.open -= 1
            else:
                self.phases[self.phase].append((transport, life, index + 1))

    def stream(self, transport: asyncio.Transport, life: _Life) -> None:
        transport.write(_HEAD)
        self.open += 1
        self.phases[self.phase].append((transport, life, 0))

    def status(self, life: _Life) -> str:
        """How far a polled run is: as far as a streamed one."""
        leg_s = len(LEGS[life.leg]) * self.tick_s
        if time.monotonic() < life.began + leg_s:
            return "in_progress"
        if life.leg == 1:
            self.ended.setdefault(life.id.decode(), life.began + leg_s)
        return "completed" if life.leg == 1 else "requires_action"

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "creates": self.creates,
            "submissions": self.submissions,
            "open_streams": self.open,
            "cpu_s": time.process_time(),
        }


class _Connection(asyncio.Protocol):
    world: _World

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._target = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No more than an interface: the transports of other loops do not inherit from it.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        target, body = self._target.partition(b"?")[0], self._body
        self._target = self._body = b""
        self.world.requests += 1
        # Some peers put more before the protocol's own paths.
        parts = re.sub(rb"^.*?/(?=threads|assistants|stub)", b"", target).split(b"/")
        self._route(parts, body)

    def _route(self, parts: list[bytes], body: bytes) -> None:
        world = self.world
        match parts:
            case [b"threads", thread, b"runs"]:
                world.creates += 1
                nonce = _SENT_NONCE.search(body)
                life = _Life(b"run_%d" % world.creates, thread, nonce[1] if nonce else b"")
                world.lives[life.id] = world.on_thread[thread] = life
                self._begin(life, body, "queued")
            case [b"threads", _, b"runs", run, b"submit_tool_outputs"]:
                world.submissions += 1
                life = world.lives[run]
                life.leg, life.began = 1, time.monotonic()
                self._begin(life, body, "queued")
            case [b"threads", _, b"runs", run]:
                self._show(world.lives[run], world.status(world.lives[run]))
            case [b"threads", _, b"runs", run, b"cancel"]:
                self._show(world.lives[run], "cancelled")
            case [b"threads", thread, b"messages"]:
                self._list(b"[%s]" % world.on_thread[thread].fill(_WRITTEN))
            case [b"threads", *_]:
                self._list(b"[]")
            case [b"assistants", *_]:
                self._answer(json.dumps(_ASSISTANT).encode())
            case [b"stub", b"report"]:
                self._answer(json.dumps(world.report()).encode())
            case _:
                self._answer(json.dumps(world.ended).encode())

    def _begin(self, life: _Life, body: bytes, status: str) -> None:
        if re.search(rb'"stream": ?true', body):
            self.world.stream(self._transport, life)
        else:
            self._show(life, status)

    def _show(self, life: _Life, status: str) -> None:
        self._answer(life.fill(_STATES[status]))

    def _list(self, items: bytes) -> None:
        self._answer(
            b'{"object": "list", "data": %s, "first_id": null, "last_id": null, "has_more": false}' % items
        )

    def _answer(self, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n"
            b"openai-poll-after-ms: %d\r\ncontent-length: %d\r\n\r\n%s" % (POLL_MS, len(body), body)
        )


def two_legs(tick_s: float) -> AbstractContextManager[str]:
    """Run this server with a tick of so many seconds; yields its base URL."""
    return serving(__file__, str(tick_s))


async def _serve() -> None:
    _Connection.world = _World(float(sys.argv[1]))
    await serve(_Connection)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
