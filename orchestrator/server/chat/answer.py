"""What a Chat Completions endpoint says, piece by piece, as the server's own model outputs.

Owns the meaning of chunks, streamed or whole, and every tolerance: call ids that repeat or are missing,
indexes that are missing or always 0, names that come late or again, arguments as objects, characters cut in
two, absent usage. Pure: it is fed decoded events, and knows no sockets and no time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from orchestrator.server.models import CallPiece, Finish, ModelFailedError, TextPiece

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.server.models import ModelOutput

__all__ = ["Answer", "UnreadableAnswerError"]


class UnreadableAnswerError(Exception):
    """The answer is not JSON, or of another shape, or too large; the text goes on "The answer …"."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_REASONS: Final[dict[str, Literal["length", "content_filter"]]] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
"""Every other reason means that the model came to its end."""


class _Joiner:
    """Joins characters that were cut in two between pieces; a half that stays alone is replaced."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def feed(self, piece: str) -> str:
        text, self._half = self._half + piece, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(slots=True)
class _Growing:
    """A tool call that is being written; it is said once its name is known, if it is wanted."""

    key: int | None
    id: str | None
    wanted: bool
    name: str | None = None
    arguments: str = ""
    index: int | None = None
    joiner: _Joiner = field(default_factory=_Joiner)

    def is_whole(self) -> bool:
        """Say whether the arguments are an object already, which nothing can go on."""
        try:
            return isinstance(msgspec.json.decode(self.arguments), dict)
        except (msgspec.DecodeError, RecursionError):
            return False


class Answer:
    """One completion as it comes in.

    Args:
        parallel: Whether more than one call is wanted; without it, what follows the first is dropped.
        max_chars: The most characters of text and arguments; more is an error.

    Attributes:
        finished: Whether the endpoint has said why it ended; only usage may follow.
    """

    def __init__(self, *, parallel: bool, max_chars: int) -> None:
        self.finished = False
        self._parallel = parallel
        self._left = max_chars
        self._text = _Joiner()
        self._calls: list[_Growing] = []
        self._said = 0
        self._reason: str | None = None
        self._usage: Any = None

    def feed(self, data: bytes) -> Iterator[ModelOutput]:
        """Take in one chunk, or a whole answer, and yield what it says.

        Raises:
            UnreadableAnswerError: It cannot be understood, or the answer has grown too large.
            ModelFailedError: The endpoint reports an error.
        """
        chunk = _decoded(data)
        if chunk.error:
            raise ModelFailedError(*_reported(chunk.error))
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.index:
                continue  # a second answer that nobody asked for
            yield from self._take(choice.delta or choice.message or _Delta())
            if choice.finish_reason is not None:
                self.finished = True
                self._reason = choice.finish_reason

    def end(self) -> Iterator[ModelOutput]:
        """Yield what is left once the answer is complete: at the least its `Finish`.

        Raises:
            UnreadableAnswerError: A call has no name.
            ModelFailedError: The endpoint gave an error as the reason for the end.
        """
        if self._reason == "error":
            raise ModelFailedError("server_error", "The model's server reported an error.")
        reason = _REASONS.get(self._reason or "")
        if reason is None:
            if any(call.wanted and call.index is None for call in self._calls):
                raise UnreadableAnswerError("called a tool without naming it")
            for call in self._calls:
                if not call.arguments and call.index is not None:
                    yield CallPiece(index=call.index, name=None, arguments="{}")
        yield Finish(
            reason=reason or ("tool_calls" if self._calls else "stop"),
            prompt_tokens=_tokens(self._usage, "prompt_tokens"),
            completion_tokens=_tokens(self._usage, "completion_tokens"),
        )

    def _take(self, delta: _Delta) -> Iterator[ModelOutput]:
        text = self._text.feed(_plain(delta.content) + (delta.refusal or ""))
        # The protocol's order is a message, then calls: a text behind a call has no place in it.
        if text and not self._calls:
            self._count(text)
            yield TextPiece(text)
        for fragment in delta.tool_calls or ():
            yield from self._grow(fragment)

    def _grow(self, fragment: _Call) -> Iterator[ModelOutput]:
        function = fragment.function or _Function()
        piece = function.arguments
        piece = json.dumps(piece) if isinstance(piece, dict) else piece or ""
        call = self._growing(fragment, function.name, piece)
        call.name = call.name or function.name
        piece = call.joiner.feed(piece)
        self._count(piece)
        call.arguments += piece
        if not call.wanted:
            return
        if call.index is not None:
            yield CallPiece(index=call.index, name=None, arguments=piece)
        elif call.name:
            call.index, self._said = self._said, self._said + 1
            yield CallPiece(index=call.index, name=call.name, arguments=call.arguments)

    def _growing(self, fragment: _Call, name: str | None, arguments: str) -> _Growing:
        """Find the call that a fragment goes on, or begin one."""
        same = [call for call in self._calls if call.key == fragment.index]
        if fragment.index is None:
            # Without an index, an id says which; without an id, what has a name begins a call.
            same = [call for call in self._calls if fragment.id and call.id == fragment.id]
            if not same and not name:
                same = self._calls[-1:]
        if same and not _begins(same[-1], fragment, name, arguments):
            return same[-1]
        wanted = self._parallel or not self._calls
        self._calls.append(_Growing(fragment.index, fragment.id or None, wanted))
        return self._calls[-1]

    def _count(self, text: str) -> None:
        self._left -= len(text)
        if self._left < 0:
            raise UnreadableAnswerError("is larger than this server takes")


def _begins(call: _Growing, fragment: _Call, name: str | None, arguments: str) -> bool:
    """Say whether a fragment under the index or id of a call begins another: ids and indexes repeat."""
    if not name:
        return False
    if fragment.id and call.id and fragment.id != call.id:
        return True
    return bool(call.name) and arguments.lstrip().startswith("{") and call.is_whole()


def _decoded(data: bytes) -> _Chunk:
    try:
        try:
            return msgspec.json.decode(data, type=_Chunk)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # An emoji cut in two is not JSON to msgspec; Python's own reader lets the halves pass.
            return msgspec.convert(json.loads(data), _Chunk)
    except (ValueError, RecursionError):
        raise UnreadableAnswerError("cannot be understood") from None


def _plain(content: str | list[Any] | None) -> str:
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content or () if isinstance(part, dict)]
    return "".join(text for text in parts if isinstance(text, str))


def _tokens(usage: Any, name: str) -> int | None:
    """Read a count that is worth believing; endpoints leave it out, or say -1."""
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 <= tokens < 2**53 else None


def _reported(error: Any) -> tuple[Literal["server_error", "rate_limit_exceeded"], str]:
    """Return code and message for an error in a stream whose status was 200."""
    detail = error if isinstance(error, dict) else {}
    marks = {str(detail.get(name)) for name in ("code", "type", "status")}
    if marks & {"429", "rate_limit_exceeded", "rate_limit_error"}:
        return "rate_limit_exceeded", "The model's server reported a rate limit in its answer."
    return "server_error", "The model's server reported an error in its answer."
