"""The seam between the engine and whatever writes the answers: what a model is asked, and what it says.

Owns the `Model` protocol and the values that cross it. A model is stateless: everything it needs is in the
`Prompt`, so that a run that waited for tool outputs over a restart of the server goes on as if nothing had
happened. `orchestrator.server.rules` is the built-in model; one that speaks to a Chat Completions endpoint
fits the same seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from orchestrator.protocol.objects import JSON

__all__ = [
    "CHARS_PER_TOKEN",
    "Call",
    "CallPiece",
    "Finish",
    "Model",
    "ModelFailedError",
    "ModelOutput",
    "Prompt",
    "Round",
    "TextPiece",
    "Turn",
    "tokens_in",
]

CHARS_PER_TOKEN: Final = 4
"""How many characters count as one token."""

FailureCode: TypeAlias = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of the thread.

    Attributes:
        role: `"user"` or `"assistant"`.
        content: The message's parts, as the protocol shows them.
    """

    role: str
    content: list[JSON]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part["text"]["value"] for part in self.content if part["type"] == "text")

    def tokens(self) -> int:
        """Estimate the tokens of the text."""
        return tokens_in(len(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A finished tool call of this run; `arguments` is what the model wrote, perhaps invalid JSON."""

    id: str
    name: str
    arguments: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The calls of one earlier completion of this run, with what the tools answered."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Everything a model is asked with.

    Attributes:
        model: The model's name, as the run has it.
        instructions: The run's instructions, perhaps `""`.
        turns: The thread's messages before this run, oldest first, after truncation.
        rounds: This run's own completions so far, each with its tools' outputs.
        tools: The run's tool definitions.
        tool_choice: `"auto"`, `"none"`, `"required"` or a named choice.
        parallel_tool_calls: Whether one completion may hold more than one call.
        response_format: As the run has it.
        temperature: As the run has it.
        top_p: As the run has it.
        reasoning_effort: As the run has it, or `None`.
    """

    model: str
    instructions: str
    turns: tuple[Turn, ...]
    rounds: tuple[Round, ...]
    tools: tuple[JSON, ...]
    tool_choice: str | JSON
    parallel_tool_calls: bool
    response_format: str | JSON | None
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None = None

    def tokens(self) -> int:
        """Estimate the tokens of the whole prompt."""
        said = sum(turn.tokens() for turn in self.turns)
        calls = (call for finished in self.rounds for call in finished.calls)
        called = sum(tokens_in(len(call.arguments) + len(call.output)) for call in calls)
        return tokens_in(len(self.instructions)) + said + called


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of the answer's text.

    Raises:
        UnicodeEncodeError: The text holds half of a surrogate pair, which no event and no row can carry.
    """

    text: str

    def __post_init__(self) -> None:
        self.text.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """The next piece of a tool call.

    Attributes:
        index: Which call of this completion, from 0; calls begin in order.
        name: The function, with the first piece of a call; else `None`.
        arguments: The next piece of the argument string, perhaps `""`.

    Raises:
        UnicodeEncodeError: As for `TextPiece`.
    """

    index: int
    name: str | None
    arguments: str

    def __post_init__(self) -> None:
        (self.name or "").encode()
        self.arguments.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a completion; the last thing a model says.

    Attributes:
        reason: `"length"` when a token limit cut it off.
        prompt_tokens: As the model counted, or `None` to have it estimated.
        completion_tokens: As the model counted, or `None` to have it estimated.
    """

    reason: Literal["stop", "tool_calls", "length"]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


ModelOutput: TypeAlias = TextPiece | CallPiece | Finish


class ModelFailedError(Exception):
    """The completion failed; the run ends as `failed` with this as its `last_error`.

    Attributes:
        code: One of the protocol's codes for a failed run.
        message: For the run's owner.

    Raises:
        UnicodeEncodeError: As for `TextPiece`.
    """

    def __init__(self, code: FailureCode, message: str) -> None:
        message.encode()
        self.code: FailureCode = code
        self.message = message
        super().__init__(message)


class Model(Protocol):
    """Writes completions: text first, then tool calls, then one `Finish`."""

    def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        """Yield one completion, on the server's loop; it must not block and may be cancelled at any await.

        Raises:
            ModelFailedError: The completion failed; what was yielded stays as it is.
        """
        ...


def tokens_in(characters: int) -> int:
    """Estimate the tokens of a text of this length, rounded up.

    No tokenizer is shipped; limits and usage only need a count that grows with the text and repeats.
    """
    return -(-characters // CHARS_PER_TOKEN)
