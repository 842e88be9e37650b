r"""Script files of the rule engine: their format, and the messages for what is wrong with one.

Owns reading and checking. Knows nothing of runs; `orchestrator.server.rules` plays what is read here.

A script is YAML (read by `yaml.safe_load`) or a Python file, which is **executed** and defines `rules`,
`faults` or both:

```yaml
piece_chars: 24          # how much text or argument goes into one streamed piece (default 24)
piece_s: 0               # seconds after each piece (default 0)
rules:                   # the first rule that matches plays its steps
  - name: weather        # optional, for messages
    match: '(?i)weather in (?P<cities>.+)\?'      # searched in the last user message
    steps:
      - think_s: 0.05                             # wait
      - call:                                     # one call or a list: a list is sent as one batch
          - tool: get_weather
            for_each: '(?P<city>[A-Z]\w+)'        # one call per occurrence
            arguments: {city: '{city}', unit: c}
      - say: 'Here it is: {get_weather}'
faults: []               # what requests meet on purpose: `orchestrator.server.faults`
```

- A rule has `match` or `match_output`: a regular expression (`re.search`) on the last user message, or
  on the outputs of the batch that was just answered, joined by line breaks; such a rule takes over from
  the one that made the calls. At most the first 4,000 characters are searched, for a second at the most; a
  search that takes longer fails the run (`orchestrator.server.matching`).
- A rule may have `piece_chars` and `piece_s` of its own, and `types: {n: integer}`, which turns a named
  group into `integer`, `number`, `boolean` or `json` where it can be.
- `steps` are played in order; each has one key. After a `call` the rule waits for the outputs and goes
  on with the next step, so that several calls are several rounds. Without `parallel_tool_calls` a batch
  is sent one call at a time; with `tool_choice: none` calls are skipped.
    - `think_s: SECONDS`
    - `call: {tool, arguments, arguments_raw, for_each, over, as}`, or a list of them. `arguments` is any
      JSON object, its strings are templates; `arguments_raw` is sent as it is (invalid JSON, if you
      like). `for_each` is searched repeatedly in the text that the template `over` gives; without `over`
      that is the first named group of `match`, or the whole match. `as` is the name under which
      templates find the output (default: the tool's name).
    - `say: TEMPLATE`, or a list of templates and of `{each: NAME, text: TEMPLATE, join: TEXT}`, which
      says `text` once per call made under that name: there `{output}` and `{arguments.x}` are that
      call's own, and so are the groups of its `for_each`.
    - `fail: {code, message}`: the run fails; `code` is `server_error` (the default),
      `rate_limit_exceeded` or `invalid_prompt`.
    - `overrun: true`: the model stops as if it had reached its token limit; the run ends incomplete.
    - `expire: true`: the run's time is over; it ends expired.
- Templates (`orchestrator.server.templates`) know the named groups, `text` (the last user message),
  `match` (what matched), and every output by its tool's or `as` name: `{get_time}` is the output itself,
  and `{get_time.zone.offset}` looks into it when it is JSON. Several calls under one name give a list of
  their values. In a text a list is joined by `, `.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from orchestrator.server.faults import Fault, FaultError, fault
from orchestrator.server.matching import Pattern, PatternError
from orchestrator.server.templates import names_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


__all__ = ["CallSpec", "EachSpec", "Rule", "Script", "ScriptError", "StepSpec", "build", "load"]

Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=3600)]


class ScriptError(Exception):
    """A script cannot be used; the text names the file, the rule and what is wrong."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class CallSpec(_Spec, frozen=True, kw_only=True, rename={"alias": "as"}):
    """One entry of a `call` step; see the module."""

    tool: str
    arguments: dict[str, Any] = {}
    arguments_raw: str | None = None
    for_each: str | None = None
    over: str | None = None
    alias: str | None = None

    @property
    def name(self) -> str:
        """The name under which templates find the output."""
        return self.alias or self.tool


class EachSpec(_Spec, frozen=True, kw_only=True):
    """A part of a `say` step that is repeated for each call made under a name."""

    each: str
    text: str
    join: str = ", "


class FailSpec(_Spec, frozen=True, kw_only=True):
    """A `fail` step."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "server_error"
    message: str


class StepSpec(_Spec, frozen=True, kw_only=True):
    """One step: exactly one of the fields is set."""

    think_s: Seconds | None = None
    call: CallSpec | list[CallSpec] | None = None
    say: str | list[str | EachSpec] | None = None
    fail: FailSpec | None = None
    overrun: Literal[True] | None = None
    expire: Literal[True] | None = None

    @property
    def calls(self) -> list[CallSpec]:
        """The calls of a `call` step; else nothing."""
        return [self.call] if isinstance(self.call, CallSpec) else list(self.call or ())

    @property
    def parts(self) -> list[str | EachSpec]:
        """The parts of a `say` step; else nothing."""
        return [self.say] if isinstance(self.say, str) else list(self.say or ())


class _RuleSpec(_Spec, frozen=True, kw_only=True):
    name: str | None = None
    match: str | None = None
    match_output: str | None = None
    types: dict[str, Literal["integer", "number", "boolean", "json"]] = {}
    piece_chars: Annotated[int, Meta(ge=1)] | None = None
    piece_s: Seconds | None = None
    steps: Annotated[list[StepSpec], Meta(min_length=1)]


class _ScriptSpec(_Spec, frozen=True, kw_only=True):
    rules: list[Any] = []
    faults: list[Any] = []
    piece_chars: Annotated[int, Meta(ge=1)] = 24
    piece_s: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A checked rule.

    Attributes:
        name: Its name, or its number in the script.
        pattern: What is searched for.
        on_output: Whether that is searched in tool outputs instead of the last user message.
        types: JSON types of named groups.
        piece_chars: Characters per streamed piece.
        piece_s: Seconds between pieces.
        steps: What is played.
    """

    name: str
    pattern: Pattern
    on_output: bool
    types: dict[str, str]
    piece_chars: int
    piece_s: float
    steps: tuple[StepSpec, ...]

    @property
    def patterns(self) -> list[Pattern]:
        """Every pattern in it."""
        calls = [call for step in self.steps for call in step.calls]
        return [self.pattern, *(Pattern.of(call.for_each) for call in calls if call.for_each is not None)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A checked script.

    Attributes:
        rules: What the rule engine plays, in the order in which they are tried.
        faults: What requests meet on purpose, in the same order.
    """

    rules: tuple[Rule, ...] = ()
    faults: tuple[Fault, ...] = ()


_OWN_NAMES: Final = {"text", "match"}


def load(path: Path) -> Script:
    """Read a script file; a `.py` file is executed. Blocks.

    Raises:
        ScriptError: The file cannot be read, or a rule is wrong.
    """
    try:
        raw = _python(path) if path.suffix == ".py" else parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ScriptError(f"cannot read the script {path}: {reason}") from None
    return build(raw, str(path))


def parse(text: str, source: str) -> Any:
    """Parse YAML text.

    Raises:
        ScriptError: It is not YAML; the text names `source` and the line.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScriptError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ScriptError(f"{source} is nested too deeply") from None


def _python(path: Path) -> Any:
    import runpy

    path.stat()
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ScriptError(f"{path} failed when it was executed: {type(error).__name__}: {error}") from error
    whole = {name: names[name] for name in ("rules", "faults") if name in names}
    if not whole:
        raise ScriptError(f"{path} does not define `rules` or `faults`")
    return whole


def build(raw: Any, source: str = "script") -> Script:
    """Check a script that was read already.

    Args:
        raw: `{"rules": [...], "faults": [...], ...}`, or just the list of rules; `None` is an empty script.
        source: How messages name it.

    Raises:
        ScriptError: A rule is wrong.
    """
    raw = _plain(raw, source)
    whole = {"rules": raw} if isinstance(raw, list) else raw or {}
    try:
        script = msgspec.convert(whole, _ScriptSpec)
    except msgspec.ValidationError as error:
        raise ScriptError(f"{source}: {error}") from None
    return Script(
        rules=tuple(_rule(raw, number, script, source) for number, raw in enumerate(script.rules, start=1)),
        faults=tuple(_fault(raw, number, source) for number, raw in enumerate(script.faults, start=1)),
    )


def _plain(raw: Any, source: str) -> Any:
    """Return a script as the JSON it stands for.

    YAML reads the two halves of an escaped emoji, as JSON writes it, as two characters that no text can
    carry; JSON's own reader joins them.
    """
    try:
        plain = json.loads(json.dumps(msgspec.to_builtins(raw, str_keys=True)))
        msgspec.json.encode(plain)
    except RecursionError:
        raise ScriptError(f"{source} is nested too deeply, or a part of it contains itself") from None
    except (TypeError, ValueError) as error:
        raise ScriptError(f"{source} holds what JSON cannot: {error}") from None
    return plain


def _rule(raw: Any, number: int, script: _ScriptSpec, source: str) -> Rule:
    name = raw.get("name") if isinstance(raw, dict) else None
    where = f"{source}: rule {number}" + (f" ({name})" if name else "")
    try:
        spec = msgspec.convert(raw, _RuleSpec)
    except msgspec.ValidationError as error:
        raise ScriptError(f"{where}: {error}") from None
    if (spec.match is None) == (spec.match_output is None):
        raise ScriptError(f"{where}: give either `match` or `match_output`")
    pattern = _pattern(spec.match or spec.match_output or "", where)
    _check_names(spec, pattern, where)
    return Rule(
        name=spec.name or f"rule {number}",
        pattern=pattern,
        on_output=spec.match is None,
        types=dict(spec.types),
        piece_chars=spec.piece_chars or script.piece_chars,
        piece_s=script.piece_s if spec.piece_s is None else spec.piece_s,
        steps=tuple(spec.steps),
    )


def _fault(raw: Any, number: int, source: str) -> Fault:
    try:
        return fault(raw)
    except FaultError as error:
        raise ScriptError(f"{source}: fault {number}: {error}") from None


def _pattern(text: str, where: str) -> Pattern:
    try:
        return Pattern.of(text)
    except PatternError as error:
        raise ScriptError(f"{where}: {error}") from None


def _check_names(spec: _RuleSpec, pattern: Pattern, where: str) -> None:
    """See that every step does one thing and every template names something that can exist by then."""
    known = {*_OWN_NAMES, *pattern.names}
    called: set[str] = set()
    for number, step in enumerate(spec.steps, start=1):
        at = f"{where}, step {number}"
        if sum(getattr(step, field) is not None for field in step.__struct_fields__) != 1:
            raise ScriptError(f"{at}: give exactly one of {', '.join(step.__struct_fields__)}")
        # A rule on outputs follows another one, whose calls it may name too.
        visible = None if spec.match is None else known | called
        for call in step.calls:
            _check_call(call, visible, at)
        called.update(call.name for call in step.calls)
        for part in step.parts:
            _check_part(part, visible, called, at)


def _check_call(call: CallSpec, visible: set[str] | None, at: str) -> None:
    groups = _pattern(call.for_each, at).names if call.for_each is not None else set()
    if call.over is not None and call.for_each is None:
        raise ScriptError(f"{at}: `over` needs `for_each`")
    if call.arguments and call.arguments_raw is not None:
        raise ScriptError(f"{at}: give `arguments` or `arguments_raw`, not both")
    _check_template(call.over, visible, at)
    _check_template(call.arguments, visible, at, groups)


def _check_part(part: str | EachSpec, visible: set[str] | None, called: set[str], at: str) -> None:
    if isinstance(part, str):
        _check_template(part, visible, at)
    elif visible is not None and part.each not in called:
        raise ScriptError(f"{at}: `each: {part.each}` names no earlier call; there are: {_listing(called)}")


def _check_template(template: Any, visible: set[str] | None, at: str, groups: Iterable[str] = ()) -> None:
    if visible is None:
        return
    for name in names_in(template):
        if name not in visible and name not in groups:
            names: Sequence[str] = sorted({*visible, *groups})
            raise ScriptError(f"{at}: nothing is called `{name}` here; there are: {_listing(names)}")


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
