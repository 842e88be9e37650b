"""Faults that a script orders: the format of its `faults`, and the messages for what is wrong with one.

Owns reading, checking, and deciding which fault a request meets. Knows neither HTTP nor runs;
`orchestrator.server.sabotage` does what is ordered here. With them the server doubles as a fault server for
tests of programs that speak this protocol:

```yaml
faults:                       # tried in order at each request; the first that fits and is due is played
  - operation: create_run     # the operation, or a list of them (default: every one)
    match: '(?i)oslo'         # searched in the texts of the request's body, one a line (default: any)
    nth: 1                    # which of the requests that fit, or a list: [1, 3] (default: each of them)
    answer: {status: 429, retry_after_s: 2}
  - {operation: submit_tool_outputs, nth: 1, drop: {after_events: 3}}
  - {operation: create_thread_and_run, nth: 1, drop: {performed: true}}
```

Operations are named like the client's methods: `create_run`, `get_run`, `submit_tool_outputs` and so on. A
fault has exactly one of:

- `answer: {status, message, code, type, retry_after_s, performed}`: an error instead of the answer, `status`
  400 to 599; all else may be left out. Nothing was done, or, with `performed: true`, everything.
- `drop: {after_events}`, `drop: {performed}` or `drop: {}`: the connection is cut. In the event stream after
  so many events (0: after the headers); or with everything done and not a word said; or before anything.
- `end: {after_events}`: the event stream ends there as if all was well, without its `done`.
- `stall: {seconds, after_events}`: silence, then the rest; before the request is looked at, or in its stream.
- `expire: {}` and `fail: {code, message}`: the run that the request names expires, or fails with that
  `last_error` (`code` as in a rule's `fail` step), before the request is looked at. For runs that are being
  created, rules have steps of the same names.

A fault with `after_events` leaves answers alone that are no stream, or a shorter one. Requests are counted
from the server's start, by fault, and a fault counts only what no earlier one has taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from orchestrator.server.matching import Pattern, PatternError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Action",
    "Answer",
    "Drop",
    "End",
    "Expire",
    "Fail",
    "Fault",
    "FaultError",
    "Faults",
    "Stall",
    "fault",
    "operation_of",
]

_COUNT: TypeAlias = Annotated[int, Meta(ge=1)]
_EVENTS: TypeAlias = Annotated[int, Meta(ge=0)]
_SECONDS: TypeAlias = Annotated[float, Meta(ge=0, le=3600)]

_SEARCHED_CHARS: Final = 4_000
"""How much of a request's texts is searched."""


class FaultError(ValueError):
    """A fault cannot be used; the text says what is wrong and what would be right."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Answer(_Spec, frozen=True, kw_only=True):
    """An error instead of the answer; see the module."""

    status: Annotated[int, Meta(ge=400, le=599)]
    message: str = "A fault of the script."
    code: str | None = None
    type: str = "server_error"
    retry_after_s: _SECONDS | None = None
    performed: bool = False


class Drop(_Spec, frozen=True, kw_only=True):
    """A connection that is cut; see the module."""

    after_events: _EVENTS | None = None
    performed: bool = False


class End(_Spec, frozen=True, kw_only=True):
    """A stream that ends too early; see the module."""

    after_events: _EVENTS


class Stall(_Spec, frozen=True, kw_only=True):
    """A silence; see the module."""

    seconds: _SECONDS
    after_events: _EVENTS | None = None


class Expire(_Spec, frozen=True, kw_only=True):
    """A run whose time is over; see the module."""


class Fail(_Spec, frozen=True, kw_only=True):
    """A run that fails; see the module."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "server_error"
    message: str


class _FaultSpec(_Spec, frozen=True, kw_only=True):
    operation: str | list[str] | None = None
    match: str | None = None
    nth: _COUNT | list[_COUNT] | None = None
    answer: Answer | None = None
    drop: Drop | None = None
    end: End | None = None
    stall: Stall | None = None
    expire: Expire | None = None
    fail: Fail | None = None


Action: TypeAlias = Answer | Drop | End | Stall | Expire | Fail

_ACTIONS: Final = ("answer", "drop", "end", "stall", "expire", "fail")

_NAMES: Final = {
    ("assistants",): {"POST": "create_assistant", "GET": "list_assistants"},
    ("assistants", "*"): {"GET": "get_assistant", "POST": "modify_assistant", "DELETE": "delete_assistant"},
    ("threads",): {"POST": "create_thread"},
    ("threads", "runs"): {"POST": "create_thread_and_run"},
    ("threads", "*"): {"GET": "get_thread", "POST": "modify_thread", "DELETE": "delete_thread"},
    ("threads", "*", "messages"): {"POST": "create_message", "GET": "list_messages"},
    ("threads", "*", "messages", "*"): {
        "GET": "get_message",
        "POST": "modify_message",
        "DELETE": "delete_message",
    },
    ("threads", "*", "runs"): {"POST": "create_run", "GET": "list_runs"},
    ("threads", "*", "runs", "*"): {"GET": "get_run", "POST": "modify_run"},
    ("threads", "*", "runs", "*", "cancel"): {"POST": "cancel_run"},
    ("threads", "*", "runs", "*", "submit_tool_outputs"): {"POST": "submit_tool_outputs"},
    ("threads", "*", "runs", "*", "steps"): {"GET": "list_run_steps"},
    ("threads", "*", "runs", "*", "steps", "*"): {"GET": "get_run_step"},
}
_OPERATIONS: Final = sorted(name for names in _NAMES.values() for name in names.values())
_ON_A_RUN: Final = {
    name for path, names in _NAMES.items() if path[2:4] == ("runs", "*") for name in names.values()
}


def operation_of(method: str, path: str) -> str | None:
    """Return the operation that a request asks for, below whatever prefix; `None` if there is no such."""
    parts = path.strip("/").split("/")
    start = next((at for at, part in enumerate(parts) if part in ("assistants", "threads")), len(parts))
    # Every second part is an id, save in the path that creates a thread with its run.
    named = [part if at % 2 == 0 else "*" for at, part in enumerate(parts[start:])]
    key = ("threads", "runs") if parts[start:] == ["threads", "runs"] else tuple(named)
    return _NAMES.get(key, {}).get(method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A checked fault.

    Attributes:
        operations: Where it may happen; all of them when empty.
        pattern: What is searched in the body's texts, or `None`.
        turns: Which of the requests that fit, from 1; all of them when empty.
        action: What happens.
    """

    operations: frozenset[str]
    pattern: Pattern | None
    turns: frozenset[int]
    action: Action

    def fits(self, operation: str, texts: str) -> bool:
        """Say whether a request is one of those it counts; as `Pattern.first`."""
        if self.operations and operation not in self.operations:
            return False
        return self.pattern is None or self.pattern.first(texts) is not None


class Faults:
    """Decides which fault a request meets; keeps the counts, so one server has one.

    Args:
        faults: In the order in which they are tried.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._counts = [0] * len(self._faults)

    @property
    def may_block(self) -> bool:
        """Whether `due` may take long: then it belongs on another thread."""
        return any(fault.pattern is not None and fault.pattern.may_block for fault in self._faults)

    def due(self, operation: str, body: bytes) -> Action | None:
        """Count a request and return what happens to it, if anything; not for two threads at once.

        Raises:
            PatternTimeoutError: A search took too long.
        """
        texts = "\n".join(_texts(body))[:_SEARCHED_CHARS]
        for number, fault in enumerate(self._faults):
            if fault.fits(operation, texts):
                self._counts[number] += 1
                if not fault.turns or self._counts[number] in fault.turns:
                    return fault.action
        return None


def fault(raw: Any) -> Fault:
    """Check one entry of a script's `faults`.

    Raises:
        FaultError: It is wrong.
    """
    try:
        spec = msgspec.convert(raw, _FaultSpec)
    except msgspec.ValidationError as error:
        raise FaultError(str(error)) from None
    actions = [action for name in _ACTIONS if (action := getattr(spec, name)) is not None]
    if len(actions) != 1:
        raise FaultError(f"give exactly one of {', '.join(_ACTIONS)}")
    operations = [spec.operation] if isinstance(spec.operation, str) else spec.operation or []
    turns = [spec.nth] if isinstance(spec.nth, int) else spec.nth or []
    _check(actions[0], operations)
    try:
        pattern = None if spec.match is None else Pattern.of(spec.match)
    except PatternError as error:
        raise FaultError(str(error)) from None
    return Fault(operations=frozenset(operations), pattern=pattern, turns=frozenset(turns), action=actions[0])


def _check(action: Action, operations: list[str]) -> None:
    for name in operations:
        if name not in _OPERATIONS:
            raise FaultError(f"no operation is called `{name}`; there are: {', '.join(_OPERATIONS)}")
    if isinstance(action, Drop) and action.performed and action.after_events is not None:
        raise FaultError("give `after_events` or `performed`: what has events was performed")
    if isinstance(action, Expire | Fail) and not (operations and _ON_A_RUN.issuperset(operations)):
        listed = ", ".join(sorted(_ON_A_RUN))
        raise FaultError(f"`expire` and `fail` need an `operation` that names a run: {listed}")


def _texts(body: bytes) -> Iterator[str]:
    """Yield every text in a JSON body, keys left out, in order."""
    try:
        waiting = [msgspec.json.decode(body or b"null")]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend(reversed(value.values()))
        elif isinstance(value, list):
            waiting.extend(reversed(value))
