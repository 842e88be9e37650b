r"""Regular expressions whose matching is bounded in time.

Owns the patterns of scripts. `re` cannot be timed out, and a pattern such as `(a+)+b` takes longer than the
universe on forty characters; the texts come from whoever may send messages. So a search runs here only when
the most it can cost, by the pattern's repeats and the text's length, is some tenths of a second; else it runs
in a process of its own, which is killed when its time is over. Either way `re` itself decides what matches.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["Found", "Pattern", "PatternError", "PatternTimeoutError"]

_STEPS: Final = 2.0e7
"""How much a search may cost on this thread; `re` takes some 10^8 such steps a second."""

_PATIENCE_S: Final = 1.0
"""How long a search may take in a process of its own, its start included."""

_CHILD: Final = """
import json, re, sys
pattern, text, every = json.load(sys.stdin)
found = re.finditer(pattern, text) if every else filter(None, [re.search(pattern, text)])
json.dump([[one[0], one.groupdict()] for one in found], sys.stdout)
"""


class PatternError(ValueError):
    """The text is not a regular expression."""


class PatternTimeoutError(Exception):
    """A search took too long; the text names the pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One match.

    Attributes:
        whole: What matched.
        groups: The named groups; `None` for one that took no part.
    """

    whole: str
    groups: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled regular expression; made by `of`.

    Attributes:
        text: As it was written.
    """

    text: str
    _cost: _Cost = field(repr=False)
    _compiled: re.Pattern[str] = field(repr=False)

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(text: str) -> Pattern:
        """Compile a pattern.

        Raises:
            PatternError: It is not a regular expression.
        """
        try:
            compiled = re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"`{text}` is not a regular expression: {error}") from None
        return Pattern(text, _cost(text), compiled)

    @property
    def names(self) -> set[str]:
        """The names of the groups."""
        return set(self._compiled.groupindex)

    @property
    def may_block(self) -> bool:
        """Whether a search may start a process and wait for it: then it belongs on another thread."""
        return self._cost.power > 1 or self._cost.choices > 8

    def first(self, text: str) -> Found | None:
        """Search a text; blocks, for a second at the most.

        Raises:
            PatternTimeoutError: It took too long.
        """
        if self._is_cheap(text):
            found = self._compiled.search(text)
            return None if found is None else Found(whole=found[0], groups=found.groupdict())
        return next(iter(self._elsewhere(text, every=False)), None)

    def every(self, text: str) -> list[Found]:
        """Find all matches that do not overlap; as `first`."""
        if self._is_cheap(text):
            found = self._compiled.finditer(text)
            return [Found(whole=one[0], groups=one.groupdict()) for one in found]
        return self._elsewhere(text, every=True)

    def _is_cheap(self, text: str) -> bool:
        return self._cost.steps(len(text)) <= math.log(_STEPS)

    def _elsewhere(self, text: str, *, every: bool) -> list[Found]:
        # Surrogates pass through JSON's escapes, whatever the locale's encoding is.
        question = json.dumps([self.text, text, every])
        # A fresh interpreter takes some 20 ms, which only patterns and texts out of the ordinary have to pay.
        command = [sys.executable, "-I", "-S", "-c", _CHILD]
        try:
            done = subprocess.run(  # noqa: S603 - our own program, its data comes through a pipe
                command, input=question.encode(), capture_output=True, timeout=_PATIENCE_S, check=True
            )
        except subprocess.TimeoutExpired:
            raise PatternTimeoutError(f"`{self.text}` takes too long on this text") from None
        return [Found(whole=whole, groups=groups) for whole, groups in json.loads(done.stdout)]


class _Cost(NamedTuple):
    """The most that an attempt at one place costs: the text's length to a power, times two to another."""

    power: float = 0.0
    choices: float = 0.0

    def plus(self, power: float = 0.0, choices: float = 0.0) -> _Cost:
        return _Cost(self.power + power, self.choices + choices)

    def steps(self, size: int) -> float:
        """Return the logarithm of the steps for a text, over all places in it."""
        return (1 + self.power) * math.log(max(2, size)) + self.choices * math.log(2)


_VARIABLE: Final = re.compile(r"(?:[*+?]|\{(?P<least>\d*)(?P<comma>,?)\d*\})[+?]?")
_VERBOSE: Final = re.compile(r"\(\?[a-zA-Z]*x")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_OPENING: Final = re.compile(r"\((?:\?(?:P?<\w+>|P=\w+|[:=!>]|<[=!]|\(\w+\)|[aiLmsux-]+:?))?")


def _cost(text: str) -> _Cost:
    """Estimate what a pattern costs, never too low.

    A variable repeat of one character adds a power, an alternative or an optional part doubles the cost, and
    a variable repeat of a group with either of them inside is beyond all bounds.
    """
    if _VERBOSE.search(text):
        return _Cost(math.inf)  # comments may hold anything
    open_groups, at = [_Cost()], 0
    while at < len(text):
        inner = _Cost()
        if text[at] == "\\":
            at += 2
        elif text[at] == "[":
            found = _CLASS.match(text, at)
            at = found.end() if found else len(text)
        elif text[at] == "(":
            opening = _OPENING.match(text, at)
            open_groups.append(_Cost())
            at = at + 1 if opening is None else opening.end()
            continue
        elif text[at] == "|":
            open_groups[-1] = open_groups[-1].plus(choices=1)
            at += 1
            continue
        else:
            if text[at] == ")" and len(open_groups) > 1:
                inner = open_groups.pop()
            at += 1
        repeat = _VARIABLE.match(text, at)
        if repeat is not None:
            at = repeat.end()
            inner = _repeated(inner, repeat)
        open_groups[-1] = open_groups[-1].plus(*inner)
    return open_groups[0] if len(open_groups) == 1 else _Cost(math.inf)


def _repeated(inner: _Cost, repeat: re.Match[str]) -> _Cost:
    if repeat[0][0] == "?":
        return inner.plus(choices=1)
    if repeat["least"] and not repeat["comma"]:
        times = int(repeat["least"])  # exactly so many
        return _Cost(inner.power * times, inner.choices * times)
    if inner != _Cost():
        return _Cost(math.inf)
    return inner.plus(power=1)
