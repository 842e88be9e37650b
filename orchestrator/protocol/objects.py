"""What the server answers, as frozen msgspec Structs.

Owns the shapes of the protocol's objects and the meaning of a run's status. Knows nothing of HTTP.

Reading is lenient, because servers differ and recordings are old: an unknown field is ignored, a missing
one has a default, a status nobody knows stays a plain string, and timestamps may be floats. Tool
definitions, tool resources and response formats stay plain JSON: nothing here needs to look inside.
"""

from __future__ import annotations

from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

__all__ = [
    "ACTIVE_STATUSES",
    "JSON",
    "TERMINAL_STATUSES",
    "Assistant",
    "Deleted",
    "FunctionCall",
    "IncompleteDetails",
    "LastError",
    "Message",
    "MessageContent",
    "Page",
    "RequiredAction",
    "Run",
    "RunStep",
    "StepDetails",
    "SubmitToolOutputs",
    "TextContent",
    "Thread",
    "Timestamp",
    "ToolCall",
    "ToolOutput",
    "Usage",
]

JSON: TypeAlias = dict[str, Any]
"""A JSON object."""

Timestamp: TypeAlias = int | float
"""Seconds since the Unix epoch, by the server's clock."""

ACTIVE_STATUSES: Final = frozenset({"queued", "in_progress", "requires_action", "cancelling"})
"""Statuses in which a run holds its thread."""

TERMINAL_STATUSES: Final = frozenset({"completed", "failed", "cancelled", "expired", "incomplete"})
"""Statuses that a run never leaves. Any other status, unknown ones too, means: look again."""


class _Object(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A read-only object of the protocol.

    JSON refers to nothing above it, so the cyclic collector need not look at these: thousands of runs hold
    hundreds of them each, and looking at all of them again and again took more time than everything else.
    """


class FunctionCall(_Object, frozen=True):
    """The function that a model asks for.

    Attributes:
        name: The function's name.
        arguments: A JSON document as a string. It comes from a model and may be invalid JSON.
        output: The submitted output; `None` until then, and in a run's required action.
    """

    name: str = ""
    arguments: str = ""
    output: str | None = None


class ToolCall(_Object, frozen=True):
    """One call of a batch. Ids are unique within a round only: some servers use them again later."""

    id: str
    type: str = "function"
    function: FunctionCall = FunctionCall()


class SubmitToolOutputs(_Object, frozen=True):
    """The calls that wait for their outputs."""

    tool_calls: tuple[ToolCall, ...] = ()


class RequiredAction(_Object, frozen=True):
    """What a run in `requires_action` waits for."""

    type: str = "submit_tool_outputs"
    submit_tool_outputs: SubmitToolOutputs = SubmitToolOutputs()


class ToolOutput(_Object, frozen=True):
    """The output of one call, as it is submitted."""

    tool_call_id: str
    output: str


class LastError(_Object, frozen=True):
    """Why a run or step failed: `server_error`, `rate_limit_exceeded`, `invalid_prompt`, or another code."""

    code: str = ""
    message: str = ""


class IncompleteDetails(_Object, frozen=True):
    """Why a run or message is incomplete."""

    reason: str | None = None


class Usage(_Object, frozen=True):
    """Tokens spent."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Assistant(_Object, frozen=True):
    """An assistant: a model, its instructions and the functions it may ask for."""

    id: str
    object: str = "assistant"
    created_at: Timestamp = 0
    name: str | None = None
    description: str | None = None
    model: str = ""
    instructions: str | None = None
    tools: list[JSON] = []
    tool_resources: JSON | None = None
    metadata: dict[str, str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    response_format: str | JSON | None = None
    reasoning_effort: str | None = None


class Thread(_Object, frozen=True):
    """A conversation."""

    id: str
    object: str = "thread"
    created_at: Timestamp = 0
    tool_resources: JSON | None = None
    metadata: dict[str, str] | None = None


class TextContent(_Object, frozen=True):
    """A piece of text and the citations in it."""

    value: str = ""
    annotations: list[JSON] = []


class MessageContent(_Object, frozen=True, omit_defaults=True):
    """One part of a message: the field named by `type` is set, the others are absent."""

    type: str = ""
    text: TextContent | None = None
    refusal: str | None = None
    image_file: JSON | None = None
    image_url: JSON | None = None


class Message(_Object, frozen=True):
    """A message of a thread."""

    id: str
    object: str = "thread.message"
    created_at: Timestamp = 0
    thread_id: str = ""
    status: str | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: Timestamp | None = None
    incomplete_at: Timestamp | None = None
    role: str = "assistant"
    content: list[MessageContent] = []
    assistant_id: str | None = None
    run_id: str | None = None
    attachments: list[JSON] | None = None
    metadata: dict[str, str] | None = None

    @property
    def text(self) -> str:
        """The text parts, joined; refusals and images are left out."""
        return "".join(part.text.value for part in self.content if part.text is not None)


class Run(_Object, frozen=True):
    """A run: one execution of an assistant on a thread."""

    id: str
    object: str = "thread.run"
    created_at: Timestamp = 0
    thread_id: str = ""
    assistant_id: str | None = None
    status: str = ""
    required_action: RequiredAction | None = None
    last_error: LastError | None = None
    expires_at: Timestamp | None = None
    started_at: Timestamp | None = None
    cancelled_at: Timestamp | None = None
    failed_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str | None = None
    instructions: str | None = None
    tools: list[JSON] = []
    metadata: dict[str, str] | None = None
    usage: Usage | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    truncation_strategy: JSON | None = None
    tool_choice: str | JSON | None = None
    parallel_tool_calls: bool = True
    response_format: str | JSON | None = None
    reasoning_effort: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether this is a verdict: a status that the run never leaves."""
        return self.status in TERMINAL_STATUSES

    @property
    def required_calls(self) -> tuple[ToolCall, ...]:
        """The calls this run waits for; empty unless it is in `requires_action`."""
        if self.status != "requires_action" or self.required_action is None:
            return ()
        return self.required_action.submit_tool_outputs.tool_calls


class StepDetails(_Object, frozen=True, omit_defaults=True):
    """What a step did: wrote a message, or called tools."""

    type: str = ""
    message_creation: JSON | None = None
    tool_calls: list[JSON] | None = None


class RunStep(_Object, frozen=True):
    """One step of a run."""

    id: str
    object: str = "thread.run.step"
    created_at: Timestamp = 0
    assistant_id: str | None = None
    thread_id: str = ""
    run_id: str = ""
    type: str = ""
    status: str = ""
    step_details: StepDetails | None = None
    last_error: LastError | None = None
    expired_at: Timestamp | None = None
    cancelled_at: Timestamp | None = None
    failed_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    metadata: dict[str, str] | None = None
    usage: Usage | None = None


class Deleted(_Object, frozen=True):
    """The receipt of a deletion."""

    id: str
    object: str = ""
    deleted: bool = True


T = TypeVar("T")


class Page(_Object, Generic[T], frozen=True):
    """One page of a list; `has_more` says whether another follows `last_id`."""

    data: list[T]
    object: str = "list"
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
