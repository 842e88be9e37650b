"""The seam between the engine and whatever writes the answers: what a model is asked, and what it says.

Owns the `Model` protocol and the values that cross it. A model is stateless: everything it needs is in the
`Prompt`, so that a run that waited for tool outputs over a restart of the server goes on as if nothing had
happened. `orchestrator.server.rules` is the built-in model; `orchestrator.server.chat` asks any Chat
Completions endpoint.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from orchestrator.protocol.objects import JSON

__all__ = [
    "CHARS_PER_TOKEN",
    "Call",
    "CallPiece",
    "FailureCode",
    "Finish",
    "Model",
    "ModelFailedError",
    "ModelOutput",
    "Prompt",
    "Round",
    "RunExpiredError",
    "TextPiece",
    "Turn",
    "text_of",
    "tokens_in",
    "within",
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
        return text_of(self.content)

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
    """One earlier completion of this run: what it said first, its calls, and what the tools answered."""

    calls: tuple[Call, ...]
    text: str = ""


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
        max_completion_tokens: What is left of the run's limit, or `None`; the model keeps it.
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
    max_completion_tokens: int | None = None

    def tokens(self) -> int:
        """Estimate the tokens of the whole prompt."""
        said = sum(turn.tokens() for turn in self.turns)
        said += sum(tokens_in(len(finished.text)) for finished in self.rounds)
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
        reason: `"length"` when a token limit cut it off, `"content_filter"` when a filter did.
        prompt_tokens: As the model counted, or `None` to have it estimated.
        completion_tokens: As the model counted, or `None` to have it estimated.
    """

    reason: Literal["stop", "tool_calls", "length", "content_filter"]
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


class RunExpiredError(Exception):
    """The run's time is over, says the model: the run ends as `expired`. For scripts that play this."""


class Model(Protocol):
    """Writes completions: text first, then tool calls, then one `Finish`."""

    def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        """Yield one completion, on the server's loop; it must not block and may be cancelled at any await.

        Raises:
            ModelFailedError: The completion failed; what was yielded stays as it is.
            RunExpiredError: The run is to expire.
        """
        ...


def text_of(content: list[JSON]) -> str:
    """Join the text parts of a message's content."""
    return "".join(part["text"]["value"] for part in content if part["type"] == "text")


def tokens_in(characters: int) -> int:
    """Estimate the tokens of a text of this length, rounded up.

    No tokenizer is shipped; limits and usage only need a count that grows with the text and repeats.
    """
    return -(-characters // CHARS_PER_TOKEN)


async def within(
    limit: int | None, outputs: AsyncGenerator[ModelOutput, None]
) -> AsyncGenerator[ModelOutput, None]:
    """Cut a completion off where its limit is, for a model that counts no tokens of its own.

    Args:
        limit: Tokens, estimated as `tokens_in` does; `None` lets everything pass.
        outputs: The completion; closed with this generator.
    """
    left = None if limit is None else limit * CHARS_PER_TOKEN
    async with aclosing(outputs):
        async for output in outputs:
            said = _said(output)
            if left is None or len(said) <= left:
                left = None if left is None else left - len(said)
                yield output
                continue
            if left:
                yield _cut(output, left)
            yield Finish(reason="length")
            return


def _said(output: ModelOutput) -> str:
    if isinstance(output, TextPiece):
        return output.text
    return output.arguments if isinstance(output, CallPiece) else ""


def _cut(output: ModelOutput, characters: int) -> ModelOutput:
    if isinstance(output, CallPiece):
        return replace(output, arguments=output.arguments[:characters])
    return TextPiece(_said(output)[:characters])
