"""What a Chat Completions endpoint sends, in the words of the faulty server of the client's tests."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from faulty_server import FaultyServer, chunks

from orchestrator.client.retry import RetryPolicy
from orchestrator.server.chat import Bounds, ChatModel, Endpoint
from orchestrator.testing import running_server
from server.speaker import Speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faulty_server import Step

KEY = "sk-upstream-secret"
DONE = b"data: [DONE]\n\n"
QUICK = RetryPolicy(base_s=0.01, cap_s=0.02)
WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Whole."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 2},
}


def data(payload: Any) -> bytes:
    """One event of a stream."""
    return b"data: %s\n\n" % json.dumps(payload).encode()


def delta(finish: str | None = None, **fields: Any) -> bytes:
    """One chunk of a completion."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return data({"object": "chat.completion.chunk", "choices": [choice]})


def text(*pieces: str) -> list[bytes]:
    return [delta(content=piece) for piece in pieces]


def call(index: int | None, name: str | None = None, arguments: Any = "", **fields: Any) -> bytes:
    """One fragment of a tool call."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    fragment = {"function": function, **fields}
    if index is not None:
        fragment["index"] = index
    return delta(tool_calls=[fragment])


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    return data(
        {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}
    )


def completion(*parts: bytes, finish: str | None = "stop") -> Step:
    """A stream that ends in good order."""
    return chunks([*parts, delta(finish), DONE])


HELLO = completion(*text("Hello", ", you."), usage(7, 3))


@contextmanager
def asking(
    *script: Step, model: str | None = None, bounds: Bounds | None = None, **options: Any
) -> Iterator[tuple[Speaker, FaultyServer]]:
    """A client of our server in front of an endpoint that plays a script."""
    with FaultyServer(*script) as endpoint:
        chat = ChatModel(Endpoint.of(endpoint.url, KEY), name=model, bounds=bounds, policy=QUICK)
        with running_server(model=chat, **options) as server:
            speaker = Speaker(server)
            with speaker.http:
                yield speaker, endpoint


def said_in(speaker: Speaker, path: str) -> list[str]:
    """Every text of a run's thread, oldest first."""
    thread = path.partition("/runs")[0]
    messages = speaker.ok("GET", f"{thread}/messages?order=asc")["data"]
    return [part["text"]["value"] for message in messages for part in message["content"]]
