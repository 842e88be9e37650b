"""A prompt as a Chat Completions request.

Owns the translation of the protocol's words into the endpoint's. Pure: it sends nothing and knows no server.

What equals the default of both sides is left out (`temperature` and `top_p` of 1, `parallel_tool_calls`,
`tool_choice` and `response_format` as `auto`), because many endpoints refuse parameters that they do not
know, whatever their value.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from orchestrator.server.models import ModelFailedError

if TYPE_CHECKING:
    from orchestrator.protocol.objects import JSON
    from orchestrator.server.models import Prompt, Round, Turn

__all__ = ["adapted", "optional_in", "question"]

_ID_CHARS: Final = 9
"""Mistral's models take call ids of exactly nine letters or digits; all others take any."""


def question(prompt: Prompt, *, model: str | None = None) -> JSON:
    """Build the body of a streaming request.

    Args:
        prompt: What is asked.
        model: The name to ask for, instead of the run's.

    Raises:
        ModelFailedError: `invalid_prompt`: a message holds an image file, which only its owner could send.
    """
    body: JSON = {
        "model": model or prompt.model,
        "messages": list(_messages(prompt)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompt.tools:
        body["tools"] = list(prompt.tools)
        body |= _choice(prompt)
    for name, value in (("temperature", prompt.temperature), ("top_p", prompt.top_p)):
        if value is not None and value != 1:
            body[name] = value
    if prompt.reasoning_effort is not None:
        body["reasoning_effort"] = prompt.reasoning_effort
    if prompt.max_completion_tokens is not None:
        body["max_completion_tokens"] = prompt.max_completion_tokens
    if isinstance(prompt.response_format, dict) and prompt.response_format["type"] != "text":
        body["response_format"] = prompt.response_format
    return body


def _choice(prompt: Prompt) -> JSON:
    chosen: JSON = {}
    # The protocol wants a call before the run answers; asked for again and again, there would be no answer.
    forced_before = prompt.tool_choice != "none" and prompt.rounds
    if prompt.tool_choice != "auto" and not forced_before:
        chosen["tool_choice"] = prompt.tool_choice
    if not prompt.parallel_tool_calls:
        chosen["parallel_tool_calls"] = False
    return chosen


def _messages(prompt: Prompt) -> list[JSON]:
    messages: list[JSON] = []
    if prompt.instructions:
        messages.append({"role": "system", "content": prompt.instructions})
    messages += [
        {"role": turn.role, "content": content} for turn in prompt.turns if (content := _content(turn))
    ]
    for finished in prompt.rounds:
        messages += _round(finished)
    return messages


def _content(turn: Turn) -> str | list[JSON]:
    if all(part["type"] == "text" for part in turn.content):
        return turn.text
    return [_part(part) for part in turn.content]


def _part(part: JSON) -> JSON:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]["value"]}
    if part["type"] == "image_url":
        return {"type": "image_url", "image_url": part["image_url"]}
    raise ModelFailedError(
        "invalid_prompt",
        f"A message holds a part of type '{part['type']}', which cannot be sent to this server's model: "
        "send images as 'image_url'.",
    )


def _round(finished: Round) -> list[JSON]:
    calls: list[Any] = [
        {
            "id": call.id[-_ID_CHARS:],
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in finished.calls
    ]
    answers = [
        {"role": "tool", "tool_call_id": call.id[-_ID_CHARS:], "content": call.output}
        for call in finished.calls
    ]
    return [{"role": "assistant", "content": finished.text or None, "tool_calls": calls}, *answers]


_OPTIONAL: Final = {
    "stream_options": re.compile(rb"stream_options|include_usage"),
    "stream": re.compile(rb"\bstream(?:ing)?\b"),
    "max_completion_tokens": re.compile(rb"max_completion_tokens"),
    "parallel_tool_calls": re.compile(rb"parallel_tool_calls"),
    "reasoning_effort": re.compile(rb"reasoning_effort"),
}
"""What the exchange can do without, and how an endpoint that does not know it calls it."""


def optional_in(refusal: bytes, body: JSON) -> set[str]:
    """Return the first optional parameter of a request that its refusal names, if any."""
    named = (name for name, words in _OPTIONAL.items() if name in body and words.search(refusal))
    return set(islice(named, 1))


def adapted(body: JSON, unknown: set[str]) -> JSON:
    """Return a request without the parameters that its endpoint does not know."""
    if not unknown:
        return body
    kept = {name: value for name, value in body.items() if name not in unknown}
    if "max_completion_tokens" in unknown and "max_completion_tokens" in body:
        kept["max_tokens"] = body["max_completion_tokens"]  # its older name
    if "stream" in unknown:
        kept.pop("stream_options", None)
    return kept
