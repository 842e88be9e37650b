"""The operations that answer with an event stream.

Each takes what the operation without a stream takes, and `stream_to`: a callable or a Pykka actor that is
told every event, in order, beside whoever iterates. A callable is called on the thread, or the loop, that
reads the stream, so that a slow one slows the stream down; an actor is told and not waited for. Whatever
one raises is logged, and it is told no more; the stream goes on. Nothing is read behind the caller's back:
leaving the `with` block normally reads what is left, so that no event is missed; leaving it on an exception,
or after closing the stream, does not.

The parameters are written out again because no type can add a keyword to another function's; what they mean
is said in `orchestrator.client.endpoints.runs`, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from msgspec import UNSET, UnsetType

from orchestrator.client.call import Call, CallOptions, Metadata, streaming
from orchestrator.client.consumer import StreamTo
from orchestrator.client.endpoints.runs import create_run, create_thread_and_run, submit_tool_outputs
from orchestrator.protocol.objects import Run, ToolOutput


def stream_run(
    thread_id: str,
    *,
    assistant_id: str,
    model: str | UnsetType | None = UNSET,
    reasoning_effort: str | UnsetType | None = UNSET,
    instructions: str | UnsetType | None = UNSET,
    additional_instructions: str | UnsetType | None = UNSET,
    additional_messages: Sequence[Mapping[str, Any]] | UnsetType | None = UNSET,
    tools: Sequence[Mapping[str, Any]] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    temperature: float | UnsetType | None = UNSET,
    top_p: float | UnsetType | None = UNSET,
    max_prompt_tokens: int | UnsetType | None = UNSET,
    max_completion_tokens: int | UnsetType | None = UNSET,
    truncation_strategy: Mapping[str, Any] | UnsetType = UNSET,
    tool_choice: str | Mapping[str, Any] | UnsetType = UNSET,
    parallel_tool_calls: bool | UnsetType = UNSET,
    response_format: str | Mapping[str, Any] | UnsetType | None = UNSET,
    include: Sequence[str] | UnsetType = UNSET,
    nonce: str | UnsetType = UNSET,
    stream_to: StreamTo | None = None,
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Create a run, answered by the events of its first round.

    Takes what `create_run` takes. Retried only until its first run event has come.
    `stream_to` is told every event; `orchestrator.client.endpoints.streams` says how.
    """
    call = create_run(
        thread_id,
        assistant_id=assistant_id,
        model=model,
        reasoning_effort=reasoning_effort,
        instructions=instructions,
        additional_instructions=additional_instructions,
        additional_messages=additional_messages,
        tools=tools,
        metadata=metadata,
        temperature=temperature,
        top_p=top_p,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        truncation_strategy=truncation_strategy,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        response_format=response_format,
        include=include,
        nonce=nonce,
        **options,
    )
    return streaming(call, "stream_run", stream_to)


def stream_thread_and_run(
    *,
    assistant_id: str,
    thread: Mapping[str, Any] | UnsetType = UNSET,
    model: str | UnsetType | None = UNSET,
    instructions: str | UnsetType | None = UNSET,
    tools: Sequence[Mapping[str, Any]] | UnsetType | None = UNSET,
    tool_resources: Mapping[str, Any] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    temperature: float | UnsetType | None = UNSET,
    top_p: float | UnsetType | None = UNSET,
    max_prompt_tokens: int | UnsetType | None = UNSET,
    max_completion_tokens: int | UnsetType | None = UNSET,
    truncation_strategy: Mapping[str, Any] | UnsetType = UNSET,
    tool_choice: str | Mapping[str, Any] | UnsetType = UNSET,
    parallel_tool_calls: bool | UnsetType = UNSET,
    response_format: str | Mapping[str, Any] | UnsetType | None = UNSET,
    stream_to: StreamTo | None = None,
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Create a thread and a run on it, answered by the events of its first round.

    Takes what `create_thread_and_run` takes. Retried only until its first run event has come.
    `stream_to` is told every event; `orchestrator.client.endpoints.streams` says how.
    """
    call = create_thread_and_run(
        assistant_id=assistant_id,
        thread=thread,
        model=model,
        instructions=instructions,
        tools=tools,
        tool_resources=tool_resources,
        metadata=metadata,
        temperature=temperature,
        top_p=top_p,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        truncation_strategy=truncation_strategy,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        response_format=response_format,
        **options,
    )
    return streaming(call, "stream_thread_and_run", stream_to)


def stream_tool_outputs(
    thread_id: str,
    run_id: str,
    *,
    tool_outputs: Sequence[ToolOutput | Mapping[str, str]],
    stream_to: StreamTo | None = None,
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Submit the outputs of all the calls, answered by the events of the next round.

    Takes what `submit_tool_outputs` takes. Retried only until its first run event has come.
    `stream_to` is told every event; `orchestrator.client.endpoints.streams` says how.
    """
    call = submit_tool_outputs(
        thread_id,
        run_id,
        tool_outputs=tool_outputs,
        **options,
    )
    return streaming(call, "stream_tool_outputs", stream_to)
