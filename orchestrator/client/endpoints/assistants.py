"""The operations on assistants; `orchestrator.client.endpoints` says what all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from msgspec import UNSET, UnsetType

from orchestrator.client.call import Call, CallOptions, Metadata, body, checked, path, query
from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.objects import Assistant, Deleted, Page

_ASSISTANT = Decoder(Assistant).decode
_ASSISTANTS = Decoder(Page[Assistant]).decode
_DELETED = Decoder(Deleted).decode


def create_assistant(
    *,
    model: str,
    name: str | UnsetType | None = UNSET,
    description: str | UnsetType | None = UNSET,
    instructions: str | UnsetType | None = UNSET,
    tools: Sequence[Mapping[str, Any]] | UnsetType = UNSET,
    tool_resources: Mapping[str, Any] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    temperature: float | UnsetType | None = UNSET,
    top_p: float | UnsetType | None = UNSET,
    reasoning_effort: str | UnsetType | None = UNSET,
    response_format: str | Mapping[str, Any] | UnsetType | None = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Assistant]:
    """Create an assistant. Not repeatable: a second request makes a second assistant.

    Args:
        model: The model it speaks with.
        name: At most 256 characters.
        description: At most 512 characters.
        instructions: The system prompt, at most 256,000 characters.
        tools: Tool definitions as the wire has them, at most 128.
        tool_resources: What its tools work on.
        metadata: Up to 16 pairs of your own.
        temperature: 0 to 2.
        top_p: 0 to 1.
        reasoning_effort: For models that reason, such as `"low"`.
        response_format: `"auto"` or a format definition.
        **options: See `CallOptions`.
    """
    return Call(
        operation="create_assistant",
        method="POST",
        path="/assistants",
        decode=_ASSISTANT,
        body=body(
            model=model,
            name=name,
            description=description,
            instructions=instructions,
            tools=tools,
            tool_resources=tool_resources,
            metadata=metadata,
            temperature=temperature,
            top_p=top_p,
            reasoning_effort=reasoning_effort,
            response_format=response_format,
        ),
        options=checked("create_assistant", options),
    )


def get_assistant(assistant_id: str, **options: Unpack[CallOptions]) -> Call[Assistant]:
    """Retrieve an assistant. Repeatable."""
    return Call(
        operation="get_assistant",
        method="GET",
        path=path("/assistants/{assistant_id}", assistant_id=assistant_id),
        decode=_ASSISTANT,
        repeatable=True,
        options=checked("get_assistant", options),
    )


def modify_assistant(
    assistant_id: str,
    *,
    model: str | UnsetType = UNSET,
    name: str | UnsetType | None = UNSET,
    description: str | UnsetType | None = UNSET,
    instructions: str | UnsetType | None = UNSET,
    tools: Sequence[Mapping[str, Any]] | UnsetType = UNSET,
    tool_resources: Mapping[str, Any] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    temperature: float | UnsetType | None = UNSET,
    top_p: float | UnsetType | None = UNSET,
    reasoning_effort: str | UnsetType | None = UNSET,
    response_format: str | Mapping[str, Any] | UnsetType | None = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Assistant]:
    """Change fields of an assistant; what is left `UNSET` stays, `None` clears. Repeatable.

    Args:
        assistant_id: The assistant.
        model: As in `create_assistant`, like all that follow.
        name: Its name.
        description: Its description.
        instructions: The system prompt.
        tools: All its tools; there is no way to add one.
        tool_resources: What its tools work on.
        metadata: All its pairs.
        temperature: 0 to 2.
        top_p: 0 to 1.
        reasoning_effort: For models that reason.
        response_format: `"auto"` or a format definition.
        **options: See `CallOptions`.
    """
    return Call(
        operation="modify_assistant",
        method="POST",
        path=path("/assistants/{assistant_id}", assistant_id=assistant_id),
        decode=_ASSISTANT,
        body=body(
            model=model,
            name=name,
            description=description,
            instructions=instructions,
            tools=tools,
            tool_resources=tool_resources,
            metadata=metadata,
            temperature=temperature,
            top_p=top_p,
            reasoning_effort=reasoning_effort,
            response_format=response_format,
        ),
        repeatable=True,
        options=checked("modify_assistant", options),
    )


def delete_assistant(assistant_id: str, **options: Unpack[CallOptions]) -> Call[Deleted]:
    """Delete an assistant. Repeatable: a retry that finds nothing has succeeded."""
    return Call(
        operation="delete_assistant",
        method="DELETE",
        path=path("/assistants/{assistant_id}", assistant_id=assistant_id),
        decode=_DELETED,
        repeatable=True,
        if_gone=Deleted(id=assistant_id, object="assistant.deleted"),
        options=checked("delete_assistant", options),
    )


def list_assistants(
    *,
    limit: int | UnsetType = UNSET,
    order: Literal["asc", "desc"] | UnsetType = UNSET,
    after: str | UnsetType = UNSET,
    before: str | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Page[Assistant]]:
    """List assistants, one page. Repeatable.

    Args:
        limit: Objects per page, 1 to 100; the server's default is 20.
        order: By creation time; the server's default is `"desc"`.
        after: The id that the page begins after.
        before: The id that the page ends before.
        **options: See `CallOptions`.
    """
    return Call(
        operation="list_assistants",
        method="GET",
        path="/assistants",
        decode=_ASSISTANTS,
        query=query(limit=limit, order=order, after=after, before=before),
        repeatable=True,
        options=checked("list_assistants", options),
    )
