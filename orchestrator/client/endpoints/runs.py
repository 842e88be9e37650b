"""The operations on runs and their steps; `orchestrator.client.endpoints` says what all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from msgspec import UNSET, UnsetType

from orchestrator.client.call import (
    Call,
    CallOptions,
    Metadata,
    body,
    checked,
    path,
    query,
    with_nonce,
)
from orchestrator.client.reconciliation import Cancelled, Created, Submitted
from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.objects import Page, Run, RunStep, ToolOutput

_RUN = Decoder(Run).decode
_RUNS = Decoder(Page[Run]).decode
_STEP = Decoder(RunStep).decode
_STEPS = Decoder(Page[RunStep]).decode


def create_run(
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
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Create a run. Not repeatable: a second request may do, and bill, the work twice.

    Args:
        thread_id: The thread; the server refuses while another run is active on it.
        assistant_id: The assistant to run.
        model: Instead of the assistant's.
        reasoning_effort: For models that reason, such as `"low"`.
        instructions: Instead of the assistant's.
        additional_instructions: Appended to the assistant's.
        additional_messages: Added to the thread before the run starts, as the wire has them.
        tools: Instead of the assistant's, as the wire has them.
        metadata: Up to 16 pairs of your own, 15 with a nonce.
        temperature: 0 to 2.
        top_p: 0 to 1.
        max_prompt_tokens: At least 256, over the whole run.
        max_completion_tokens: At least 256, over the whole run.
        truncation_strategy: How much of the thread the model sees.
        tool_choice: `"none"`, `"auto"`, `"required"`, or one tool.
        parallel_tool_calls: Whether one batch may hold several calls.
        response_format: `"auto"` or a format definition.
        include: Further fields of the steps to answer with.
        nonce: Marks the run in its metadata, so that a lost answer is settled by listing the thread's runs;
            also sent as `Idempotency-Key`, which this project's server honours.
        **options: See `CallOptions`.
    """
    options = checked("create_run", options, streamed_by="stream_run")
    return Call(
        operation="create_run",
        method="POST",
        path=path("/threads/{thread_id}/runs", thread_id=thread_id),
        decode=_RUN,
        query=query(include=include),
        body=body(
            assistant_id=assistant_id,
            model=model,
            reasoning_effort=reasoning_effort,
            instructions=instructions,
            additional_instructions=additional_instructions,
            additional_messages=additional_messages,
            tools=tools,
            metadata=with_nonce(metadata, nonce),
            temperature=temperature,
            top_p=top_p,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            truncation_strategy=truncation_strategy,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
        ),
        thread_id=thread_id,
        nonce=None if isinstance(nonce, UnsetType) else nonce,
        reconciler=None
        if isinstance(nonce, UnsetType)
        else Created(listing=list_runs(thread_id, limit=100, order="desc", **options), nonce=nonce),
        options=options,
    )


def create_thread_and_run(
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
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Create a thread and a run on it. Not repeatable, and a lost answer cannot be looked up.

    `create_thread` without messages and then `create_run` with `additional_messages` and a nonce do the
    same, and can.

    Args:
        assistant_id: The assistant to run.
        thread: The thread, with `messages`, `tool_resources` and `metadata` of its own.
        model: Instead of the assistant's.
        instructions: Instead of the assistant's.
        tools: Instead of the assistant's, as the wire has them.
        tool_resources: What the tools work on.
        metadata: Up to 16 pairs of your own, on the run.
        temperature: 0 to 2.
        top_p: 0 to 1.
        max_prompt_tokens: At least 256, over the whole run.
        max_completion_tokens: At least 256, over the whole run.
        truncation_strategy: How much of the thread the model sees.
        tool_choice: `"none"`, `"auto"`, `"required"`, or one tool.
        parallel_tool_calls: Whether one batch may hold several calls.
        response_format: `"auto"` or a format definition.
        **options: See `CallOptions`.
    """
    return Call(
        operation="create_thread_and_run",
        method="POST",
        path="/threads/runs",
        decode=_RUN,
        body=body(
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
        ),
        options=checked("create_thread_and_run", options, streamed_by="stream_thread_and_run"),
    )


def get_run(thread_id: str, run_id: str, **options: Unpack[CallOptions]) -> Call[Run]:
    """Retrieve a run. Repeatable."""
    return Call(
        operation="get_run",
        method="GET",
        path=path("/threads/{thread_id}/runs/{run_id}", thread_id=thread_id, run_id=run_id),
        decode=_RUN,
        repeatable=True,
        thread_id=thread_id,
        options=checked("get_run", options),
    )


def modify_run(
    thread_id: str,
    run_id: str,
    *,
    metadata: Metadata = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Change a run's metadata; nothing else of it can change. Repeatable.

    Args:
        thread_id: The thread.
        run_id: The run.
        metadata: All its pairs; `None` clears them.
        **options: See `CallOptions`.
    """
    return Call(
        operation="modify_run",
        method="POST",
        path=path("/threads/{thread_id}/runs/{run_id}", thread_id=thread_id, run_id=run_id),
        decode=_RUN,
        body=body(metadata=metadata),
        repeatable=True,
        thread_id=thread_id,
        options=checked("modify_run", options),
    )


def cancel_run(thread_id: str, run_id: str, **options: Unpack[CallOptions]) -> Call[Run]:
    """Ask for a run to be cancelled; the answer is usually a run that is still `cancelling`.

    Repeatable: cancelling twice cancels once, and the server answers 400 when there is nothing to cancel.
    """
    options = checked("cancel_run", options)
    return Call(
        operation="cancel_run",
        method="POST",
        path=path("/threads/{thread_id}/runs/{run_id}/cancel", thread_id=thread_id, run_id=run_id),
        decode=_RUN,
        repeatable=True,
        lane="cancel",
        thread_id=thread_id,
        reconciler=Cancelled(retrieval=get_run(thread_id, run_id, **options)),
        options=options,
    )


def list_runs(
    thread_id: str,
    *,
    limit: int | UnsetType = UNSET,
    order: Literal["asc", "desc"] | UnsetType = UNSET,
    after: str | UnsetType = UNSET,
    before: str | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Page[Run]]:
    """List a thread's runs, one page. Repeatable.

    Args:
        thread_id: The thread.
        limit: Objects per page, 1 to 100; the server's default is 20.
        order: By creation time; the server's default is `"desc"`.
        after: The id that the page begins after.
        before: The id that the page ends before.
        **options: See `CallOptions`.
    """
    return Call(
        operation="list_runs",
        method="GET",
        path=path("/threads/{thread_id}/runs", thread_id=thread_id),
        decode=_RUNS,
        query=query(limit=limit, order=order, after=after, before=before),
        repeatable=True,
        thread_id=thread_id,
        options=checked("list_runs", options),
    )


def submit_tool_outputs(
    thread_id: str,
    run_id: str,
    *,
    tool_outputs: Sequence[ToolOutput | Mapping[str, str]],
    **options: Unpack[CallOptions],
) -> Call[Run]:
    """Submit the outputs of all the calls that a run waits for.

    Not repeatable, but a lost answer is settled: the run and its steps are looked at, and only one that still
    waits for the same calls of the same step is sent its outputs again.

    Args:
        thread_id: The thread.
        run_id: The run, in `requires_action`.
        tool_outputs: One for every required call, as `ToolOutput` or as the wire has them.
        **options: See `CallOptions`.
    """
    options = checked("submit_tool_outputs", options, streamed_by="stream_tool_outputs")
    return Call(
        operation="submit_tool_outputs",
        method="POST",
        path=path(
            "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs", thread_id=thread_id, run_id=run_id
        ),
        decode=_RUN,
        body=body(tool_outputs=tool_outputs),
        thread_id=thread_id,
        reconciler=Submitted(
            retrieval=get_run(thread_id, run_id, **options),
            listing=list_run_steps(thread_id, run_id, limit=100, order="desc", **options),
            outputs=dict(map(_pair, tool_outputs)),
        ),
        options=options,
    )


def get_run_step(
    thread_id: str,
    run_id: str,
    step_id: str,
    *,
    include: Sequence[str] | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[RunStep]:
    """Retrieve a run step. Repeatable.

    Args:
        thread_id: The thread.
        run_id: The run.
        step_id: The step.
        include: Further fields to answer with.
        **options: See `CallOptions`.
    """
    return Call(
        operation="get_run_step",
        method="GET",
        path=path(
            "/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
            thread_id=thread_id,
            run_id=run_id,
            step_id=step_id,
        ),
        decode=_STEP,
        query=query(include=include),
        repeatable=True,
        thread_id=thread_id,
        options=checked("get_run_step", options),
    )


def list_run_steps(
    thread_id: str,
    run_id: str,
    *,
    limit: int | UnsetType = UNSET,
    order: Literal["asc", "desc"] | UnsetType = UNSET,
    after: str | UnsetType = UNSET,
    before: str | UnsetType = UNSET,
    include: Sequence[str] | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Page[RunStep]]:
    """List a run's steps, one page. Repeatable.

    Args:
        thread_id: The thread.
        run_id: The run.
        limit: Objects per page, 1 to 100; the server's default is 20.
        order: By creation time; the server's default is `"desc"`.
        after: The id that the page begins after.
        before: The id that the page ends before.
        include: Further fields to answer with.
        **options: See `CallOptions`.
    """
    return Call(
        operation="list_run_steps",
        method="GET",
        path=path("/threads/{thread_id}/runs/{run_id}/steps", thread_id=thread_id, run_id=run_id),
        decode=_STEPS,
        query=query(limit=limit, order=order, after=after, before=before, include=include),
        repeatable=True,
        thread_id=thread_id,
        options=checked("list_run_steps", options),
    )


def _pair(output: ToolOutput | Mapping[str, str]) -> tuple[str, str]:
    if isinstance(output, ToolOutput):
        return output.tool_call_id, output.output
    return output.get("tool_call_id", ""), output.get("output", "")
