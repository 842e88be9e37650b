"""The built-in model: a rule engine that stands in for a language model, deterministic and scriptable.

Owns playing a script (`orchestrator.server.script` describes its format) against a prompt. It keeps no state:
at each round it replays the rule against the calls the run has made, so that a run goes on after a restart
of the server. It executes no tools and sends nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import msgspec

from orchestrator.server.matching import Pattern, PatternTimeoutError
from orchestrator.server.models import (
    CallPiece,
    Finish,
    ModelFailedError,
    ModelOutput,
    RunExpiredError,
    TextPiece,
    within,
)
from orchestrator.server.script import CallSpec, EachSpec
from orchestrator.server.templates import fill, text_of, walk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from orchestrator.server.matching import Found
    from orchestrator.server.models import Prompt, Round
    from orchestrator.server.script import Rule, Script, StepSpec

__all__ = ["SEARCHED_CHARS", "RuleModel"]

P = ParamSpec("P")
T = TypeVar("T")

SEARCHED_CHARS: Final = 4_000
"""How much of a text a rule's regular expression sees."""

_STAND_IN: Final = "This is the rule engine of the embedded server, a stand-in for a model."


@dataclass(frozen=True, slots=True)
class _Planned:
    """A call that a rule is about to make."""

    spec: CallSpec
    arguments: str
    groups: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Made:
    """A call that was made, with what came of it."""

    planned: _Planned
    output: Any

    def lookup(self, name: str, path: list[str]) -> Any:
        """Resolve a name inside `each`: this call's groups, arguments and output."""
        if name == "output":
            return walk(self.output, path)
        if name == "arguments":
            return walk(_parsed(self.planned.arguments), path)
        return walk(self.planned.groups[name], path)


@dataclass(slots=True)
class _Play:
    """One rule being played: where it stands and what it knows."""

    rule: Rule
    text: str
    found: Found
    made: list[_Made] = field(default_factory=list)
    at: int = 0

    def steps(self) -> Iterator[StepSpec]:
        """Yield the steps from here on, moving past each."""
        while self.at < len(self.rule.steps):
            self.at += 1
            yield self.rule.steps[self.at - 1]

    def planned(self, step: StepSpec) -> list[_Planned]:
        """Expand a `call` step."""
        return [planned for spec in step.calls for planned in self._expand(spec)]

    def upcoming(self) -> list[_Planned]:
        """Move past the next step that makes calls, and return them."""
        return next((calls for step in self.steps() if (calls := self.planned(step))), [])

    def say(self, step: StepSpec) -> str:
        """Fill a `say` step."""
        return "".join(self._part(part) for part in step.parts)

    def lookup(self, name: str, path: list[str]) -> Any:
        """Resolve a name: a group of the match, `text`, `match`, or the outputs under that name."""
        if name in self.found.groups:
            return walk(self._typed(name, self.found.groups[name]), path)
        outputs = [walk(made.output, path) for made in self.made if made.planned.spec.name == name]
        if outputs:
            return outputs[0] if len(outputs) == 1 else outputs
        return walk({"text": self.text, "match": self.found.whole}[name], path)

    def _expand(self, spec: CallSpec) -> Iterator[_Planned]:
        if spec.for_each is None:
            yield self._plan(spec, {})
            return
        over = self._over() if spec.over is None else text_of(fill(spec.over, self.lookup))
        for found in Pattern.of(spec.for_each).every(over[:SEARCHED_CHARS]):
            groups = {name: self._typed(name, value) for name, value in found.groups.items()}
            yield self._plan(spec, groups)

    def _over(self) -> str:
        values = self.found.groups.values()
        return next((value for value in values if value is not None), self.found.whole)

    def _plan(self, spec: CallSpec, groups: dict[str, Any]) -> _Planned:
        def lookup(name: str, path: list[str]) -> Any:
            return walk(groups[name], path) if name in groups else self.lookup(name, path)

        arguments = spec.arguments_raw
        if arguments is None:
            arguments = msgspec.json.encode(fill(spec.arguments, lookup)).decode()
        return _Planned(spec, arguments, groups)

    def _part(self, part: str | EachSpec) -> str:
        if isinstance(part, str):
            return _joined(part, self.lookup)
        made = [made for made in self.made if made.planned.spec.name == part.each]
        return part.join.join(_joined(part.text, each.lookup, self.lookup) for each in made)

    def _typed(self, name: str, text: str | None) -> Any:
        kind = self.rule.types.get(name)
        if text is None or kind is None:
            return text
        try:
            return _TYPES[kind](text)
        except (ValueError, KeyError, RecursionError):
            return text


_TYPES: Final[dict[str, Any]] = {
    "integer": int,
    "number": float,
    "boolean": lambda text: {"true": True, "yes": True, "false": False, "no": False}[text.lower()],
    "json": msgspec.json.decode,
}


class RuleModel:
    """The built-in model.

    Args:
        script: Its rules are tried in order; without any, every answer says what this is.
    """

    def __init__(self, script: Script | None = None) -> None:
        self._rules = () if script is None else script.rules
        patterns = [pattern for rule in self._rules for pattern in rule.patterns]
        self._may_block = any(pattern.may_block for pattern in patterns)

    async def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        """Play the rule that matches, from where the run stands to its next calls or its end.

        Raises:
            ModelFailedError: A `fail` step, a call of a tool that the run does not have, or a search that
                takes too long.
            RunExpiredError: An `expire` step.
        """
        text = next((turn.text for turn in reversed(prompt.turns) if turn.role == "user"), "")
        play, queue = await self._matched(self._replay, prompt, text)
        if play is None:
            yield TextPiece(self._default(text))
            yield Finish(reason="stop")
            return
        outputs = self._call(play, list(queue), prompt) if queue else self._play(play, prompt)
        async with aclosing(within(prompt.max_completion_tokens, outputs)) as cut:
            async for output in cut:
                yield output

    async def _play(self, play: _Play, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        for step in play.steps():
            if step.think_s is not None:
                await asyncio.sleep(step.think_s)
            elif step.fail is not None:
                raise ModelFailedError(step.fail.code, step.fail.message)
            elif step.expire:
                raise RunExpiredError
            elif step.overrun:
                yield Finish(reason="length")
                return
            for piece in _pieces(play.say(step), play.rule):
                yield TextPiece(piece)
                await asyncio.sleep(play.rule.piece_s)
            if prompt.tool_choice != "none" and (calls := await self._matched(play.planned, step)):
                async with aclosing(self._call(play, calls, prompt)) as outputs:
                    async for output in outputs:
                        yield output
                return
        yield Finish(reason="stop")

    async def _call(
        self, play: _Play, calls: list[_Planned], prompt: Prompt
    ) -> AsyncGenerator[ModelOutput, None]:
        known = [tool["function"]["name"] for tool in prompt.tools]
        for index, planned in enumerate(calls if prompt.parallel_tool_calls else calls[:1]):
            if planned.spec.tool not in known:
                raise ModelFailedError(
                    "server_error",
                    f"{play.rule.name} calls the tool '{planned.spec.tool}', which this run does not have; "
                    f"it has: {', '.join(known) or 'none'}.",
                )
            yield CallPiece(index=index, name=planned.spec.tool, arguments="")
            for piece in _pieces(planned.arguments, play.rule):
                yield CallPiece(index=index, name=None, arguments=piece)
                await asyncio.sleep(play.rule.piece_s)
        yield Finish(reason="tool_calls")

    async def _matched(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Do what searches texts, on another thread if that may take long.

        Raises:
            ModelFailedError: A search took too long.
        """
        try:
            if self._may_block:
                return await asyncio.to_thread(work, *arguments, **options)
            return work(*arguments, **options)
        except PatternTimeoutError as error:
            raise ModelFailedError("server_error", f"The script's pattern {error}.") from None

    def _replay(self, prompt: Prompt, text: str) -> tuple[_Play | None, deque[_Planned]]:
        """Find the rule, at the step where the run stands, and what is left of a batch to be called."""
        play = self._begin(text)
        queue: deque[_Planned] = deque()
        for finished in prompt.rounds:
            if play is None:
                break
            for call in finished.calls:
                queue = queue or deque(play.upcoming())
                if queue:
                    play.made.append(_Made(queue.popleft(), _parsed(call.output)))
            play = play if queue else self._taken_over(play, finished, text)
        return play, queue

    def _begin(self, text: str) -> _Play | None:
        for rule in self._rules:
            found = None if rule.on_output else rule.pattern.first(text[:SEARCHED_CHARS])
            if found is not None:
                return _Play(rule, text, found)
        return None

    def _taken_over(self, play: _Play, finished: Round, text: str) -> _Play:
        outputs = "\n".join(call.output for call in finished.calls)[:SEARCHED_CHARS]
        for rule in self._rules:
            found = rule.pattern.first(outputs) if rule.on_output else None
            if found is not None:
                return _Play(rule, text, found, play.made)
        return play

    def _default(self, text: str) -> str:
        if not self._rules:
            return f"{_STAND_IN} It has no rules: start the server with --script FILE. You said: {text[:200]}"
        names = ", ".join(rule.name for rule in self._rules)
        return f"{_STAND_IN} None of its rules matches this message; it has: {names}."


def _pieces(text: str, rule: Rule) -> list[str]:
    return [text[start : start + rule.piece_chars] for start in range(0, len(text), rule.piece_chars)]


def _joined(template: str, *lookups: Any) -> str:
    """Fill a template as text; several values under one name are joined by commas."""

    def lookup(name: str, path: list[str]) -> Any:
        value = _first(lookups, name, path)
        return ", ".join(map(text_of, value)) if isinstance(value, list) else value

    return text_of(fill(template, lookup))


def _first(lookups: tuple[Any, ...], name: str, path: list[str]) -> Any:
    for resolve in lookups[:-1]:
        try:
            return resolve(name, path)
        except KeyError:
            continue
    return lookups[-1](name, path)


def _parsed(text: str) -> Any:
    """Read an output or argument string as JSON where it is JSON; else it is a text."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
