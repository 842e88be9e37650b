"""Constructors of everything the server answers: complete by the schema, or not built at all.

Owns the shapes as they leave the server: plain JSON objects with every field the specification requires
(`instructions` of a run is `""`, never null; lists carry ids even when empty). Objects are mutable dicts
on purpose: `orchestrator.server.active` changes them in place and encodes them at each event. Knows no
HTTP, no storage and no clock.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.protocol.objects import JSON

__all__ = [
    "assistant",
    "call_detail",
    "calls_step",
    "deleted",
    "message",
    "message_step",
    "mint",
    "page",
    "run",
    "text_part",
    "thread",
    "usage",
]


def mint(prefix: str) -> str:
    """Return a new random id such as `run_0f…`: 96 bits, not guessable, never repeated."""
    return f"{prefix}_{secrets.token_hex(12)}"


def assistant(*, created_at: int, fields: JSON) -> JSON:
    """Build an assistant.

    Args:
        created_at: Unix seconds.
        fields: The validated request: any field of the assistant that was given.
    """
    return {
        "id": mint("asst"),
        "object": "assistant",
        "created_at": created_at,
        "name": None,
        "description": None,
        "instructions": None,
        "tools": [],
        "tool_resources": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "response_format": "auto",
        **fields,
    }


def thread(*, created_at: int, tool_resources: JSON | None, metadata: dict[str, str]) -> JSON:
    """Build a thread."""
    return {
        "id": mint("thread"),
        "object": "thread",
        "created_at": created_at,
        "tool_resources": tool_resources,
        "metadata": metadata,
    }


def text_part(value: str) -> JSON:
    """Build a text part of a message's content."""
    return {"type": "text", "text": {"value": value, "annotations": []}}


def message(
    *,
    created_at: int,
    thread_id: str,
    role: str,
    content: list[JSON],
    metadata: dict[str, str],
    assistant_id: str | None = None,
    run_id: str | None = None,
) -> JSON:
    """Build a message: complete when a user sent it, `in_progress` when a run writes it."""
    return {
        "id": mint("msg"),
        "object": "thread.message",
        "created_at": created_at,
        "thread_id": thread_id,
        "status": "completed" if run_id is None else "in_progress",
        "incomplete_details": None,
        "completed_at": created_at if run_id is None else None,
        "incomplete_at": None,
        "role": role,
        "content": content,
        "assistant_id": assistant_id,
        "run_id": run_id,
        "attachments": [],
        "metadata": metadata,
    }


def run(
    *, run_id: str, created_at: int, expires_at: int, thread_id: str, assistant: JSON, fields: JSON
) -> JSON:
    """Build a queued run.

    Args:
        run_id: Minted by the caller, who locked the thread under it.
        created_at: Unix seconds.
        expires_at: Unix seconds.
        thread_id: The thread.
        assistant: The assistant; what the request does not say is taken from it.
        fields: The validated request; null means: as the assistant has it, or the default.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    instructions = given.get("instructions", assistant["instructions"])
    effort = given.get("reasoning_effort", assistant.get("reasoning_effort"))
    extra = given.get("additional_instructions")
    return {
        "id": run_id,
        "object": "thread.run",
        "created_at": created_at,
        "thread_id": thread_id,
        "assistant_id": assistant["id"],
        "status": "queued",
        "required_action": None,
        "last_error": None,
        "expires_at": expires_at,
        "started_at": None,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "incomplete_details": None,
        "model": given.get("model", assistant["model"]),
        "instructions": "\n".join(part for part in (instructions, extra) if part),
        "tools": given.get("tools", assistant["tools"]),
        "metadata": given.get("metadata", {}),
        "usage": None,
        "temperature": given.get("temperature", assistant["temperature"]),
        "top_p": given.get("top_p", assistant["top_p"]),
        "max_prompt_tokens": given.get("max_prompt_tokens"),
        "max_completion_tokens": given.get("max_completion_tokens"),
        "truncation_strategy": given.get("truncation_strategy", {"type": "auto", "last_messages": None}),
        "tool_choice": given.get("tool_choice", "auto"),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "response_format": given.get("response_format", assistant["response_format"]),
        # The specification lets a run be asked for with it, and not show it: it is shown where it was given.
        **({} if effort is None else {"reasoning_effort": effort}),
    }


def message_step(run: JSON, *, created_at: int, message_id: str) -> JSON:
    """Build the step in which a run writes a message."""
    details = {"type": "message_creation", "message_creation": {"message_id": message_id}}
    return _step(run, created_at=created_at, details=details)


def calls_step(run: JSON, *, created_at: int) -> JSON:
    """Build the step in which a run calls tools; the calls are added as the model names them."""
    return _step(run, created_at=created_at, details={"type": "tool_calls", "tool_calls": []})


def _step(run: JSON, *, created_at: int, details: JSON) -> JSON:
    return {
        "id": mint("step"),
        "object": "thread.run.step",
        "created_at": created_at,
        "assistant_id": run["assistant_id"],
        "thread_id": run["thread_id"],
        "run_id": run["id"],
        "type": details["type"],
        "status": "in_progress",
        "step_details": details,
        "last_error": None,
        "expired_at": None,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "metadata": {},
        "usage": None,
    }


def call_detail(name: str) -> JSON:
    """Build a function call as a step shows it; the id is the server's own, unique for ever."""
    return {
        "id": mint("call"),
        "type": "function",
        "function": {"name": name, "arguments": "", "output": None},
    }


def usage(prompt_tokens: int = 0, completion_tokens: int = 0) -> dict[str, int]:
    """Build the token counts of a step or run."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def page(data: Sequence[JSON], *, has_more: bool) -> JSON:
    """Build a page of a list; an empty one has `""` for its ids, because the schema wants strings."""
    first: Any = data[0]["id"] if data else ""
    last: Any = data[-1]["id"] if data else ""
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def deleted(object_id: str, kind: str) -> JSON:
    """Build the receipt of a deletion; `kind` is such as `"thread.deleted"`."""
    return {"id": object_id, "object": kind, "deleted": True}
