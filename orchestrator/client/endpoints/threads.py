"""The operations on threads and their messages; `orchestrator.client.endpoints` says what all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from msgspec import UNSET, UnsetType

from orchestrator.client.call import Call, CallOptions, Metadata, body, checked, path, query, with_nonce
from orchestrator.client.reconciliation import Created
from orchestrator.protocol.decoding import Decoder
from orchestrator.protocol.objects import Deleted, Message, Page, Thread

_THREAD = Decoder(Thread).decode
_MESSAGE = Decoder(Message).decode
_MESSAGES = Decoder(Page[Message]).decode
_DELETED = Decoder(Deleted).decode


def create_thread(
    *,
    messages: Sequence[Mapping[str, Any]] | UnsetType = UNSET,
    tool_resources: Mapping[str, Any] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Thread]:
    """Create a thread.

    Repeatable only without messages: what a lost answer leaves behind is then an empty thread, no work.

    Args:
        messages: The first messages, as the wire has them.
        tool_resources: What the assistant's tools work on in this thread.
        metadata: Up to 16 pairs of your own.
        **options: See `CallOptions`.
    """
    return Call(
        operation="create_thread",
        method="POST",
        path="/threads",
        decode=_THREAD,
        body=body(messages=messages, tool_resources=tool_resources, metadata=metadata),
        repeatable=not messages,
        options=checked("create_thread", options),
    )


def get_thread(thread_id: str, **options: Unpack[CallOptions]) -> Call[Thread]:
    """Retrieve a thread. Repeatable."""
    return Call(
        operation="get_thread",
        method="GET",
        path=path("/threads/{thread_id}", thread_id=thread_id),
        decode=_THREAD,
        repeatable=True,
        thread_id=thread_id,
        options=checked("get_thread", options),
    )


def modify_thread(
    thread_id: str,
    *,
    tool_resources: Mapping[str, Any] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Thread]:
    """Change fields of a thread; what is left `UNSET` stays, `None` clears. Repeatable.

    Args:
        thread_id: The thread.
        tool_resources: What the assistant's tools work on in this thread.
        metadata: All its pairs.
        **options: See `CallOptions`.
    """
    return Call(
        operation="modify_thread",
        method="POST",
        path=path("/threads/{thread_id}", thread_id=thread_id),
        decode=_THREAD,
        body=body(tool_resources=tool_resources, metadata=metadata),
        repeatable=True,
        thread_id=thread_id,
        options=checked("modify_thread", options),
    )


def delete_thread(thread_id: str, **options: Unpack[CallOptions]) -> Call[Deleted]:
    """Delete a thread. Repeatable: a retry that finds nothing has succeeded."""
    return Call(
        operation="delete_thread",
        method="DELETE",
        path=path("/threads/{thread_id}", thread_id=thread_id),
        decode=_DELETED,
        repeatable=True,
        thread_id=thread_id,
        if_gone=Deleted(id=thread_id, object="thread.deleted"),
        options=checked("delete_thread", options),
    )


def create_message(
    thread_id: str,
    *,
    role: Literal["user", "assistant"],
    content: str | Sequence[Mapping[str, Any]],
    attachments: Sequence[Mapping[str, Any]] | UnsetType | None = UNSET,
    metadata: Metadata = UNSET,
    nonce: str | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Message]:
    """Add a message to a thread. Not repeatable: a second request makes a second message.

    Args:
        thread_id: The thread; the server refuses while a run is active on it.
        role: Who speaks.
        content: Text, or content parts as the wire has them.
        attachments: Files, and the tools they are for.
        metadata: Up to 16 pairs of your own, 15 with a nonce.
        nonce: Marks the message in its metadata, so that a lost answer is settled by listing the thread's
            messages.
        **options: See `CallOptions`.
    """
    options = checked("create_message", options)
    return Call(
        operation="create_message",
        method="POST",
        path=path("/threads/{thread_id}/messages", thread_id=thread_id),
        decode=_MESSAGE,
        body=body(role=role, content=content, attachments=attachments, metadata=with_nonce(metadata, nonce)),
        thread_id=thread_id,
        nonce=None if isinstance(nonce, UnsetType) else nonce,
        reconciler=None
        if isinstance(nonce, UnsetType)
        else Created(listing=list_messages(thread_id, limit=100, order="desc", **options), nonce=nonce),
        options=options,
    )


def get_message(thread_id: str, message_id: str, **options: Unpack[CallOptions]) -> Call[Message]:
    """Retrieve a message. Repeatable."""
    return Call(
        operation="get_message",
        method="GET",
        path=path("/threads/{thread_id}/messages/{message_id}", thread_id=thread_id, message_id=message_id),
        decode=_MESSAGE,
        repeatable=True,
        thread_id=thread_id,
        options=checked("get_message", options),
    )


def modify_message(
    thread_id: str,
    message_id: str,
    *,
    metadata: Metadata = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Message]:
    """Change a message's metadata; nothing else of it can change. Repeatable.

    Args:
        thread_id: The thread.
        message_id: The message.
        metadata: All its pairs; `None` clears them.
        **options: See `CallOptions`.
    """
    return Call(
        operation="modify_message",
        method="POST",
        path=path("/threads/{thread_id}/messages/{message_id}", thread_id=thread_id, message_id=message_id),
        decode=_MESSAGE,
        body=body(metadata=metadata),
        repeatable=True,
        thread_id=thread_id,
        options=checked("modify_message", options),
    )


def delete_message(thread_id: str, message_id: str, **options: Unpack[CallOptions]) -> Call[Deleted]:
    """Delete a message. Repeatable: a retry that finds nothing has succeeded."""
    return Call(
        operation="delete_message",
        method="DELETE",
        path=path("/threads/{thread_id}/messages/{message_id}", thread_id=thread_id, message_id=message_id),
        decode=_DELETED,
        repeatable=True,
        thread_id=thread_id,
        if_gone=Deleted(id=message_id, object="thread.message.deleted"),
        options=checked("delete_message", options),
    )


def list_messages(
    thread_id: str,
    *,
    limit: int | UnsetType = UNSET,
    order: Literal["asc", "desc"] | UnsetType = UNSET,
    after: str | UnsetType = UNSET,
    before: str | UnsetType = UNSET,
    run_id: str | UnsetType = UNSET,
    **options: Unpack[CallOptions],
) -> Call[Page[Message]]:
    """List a thread's messages, one page. Repeatable.

    Args:
        thread_id: The thread.
        limit: Objects per page, 1 to 100; the server's default is 20.
        order: By creation time; the server's default is `"desc"`.
        after: The id that the page begins after.
        before: The id that the page ends before.
        run_id: Only what this run wrote.
        **options: See `CallOptions`.
    """
    return Call(
        operation="list_messages",
        method="GET",
        path=path("/threads/{thread_id}/messages", thread_id=thread_id),
        decode=_MESSAGES,
        query=query(limit=limit, order=order, after=after, before=before, run_id=run_id),
        repeatable=True,
        thread_id=thread_id,
        options=checked("list_messages", options),
    )
