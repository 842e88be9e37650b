"""What is sent how often: every fault, on every operation and stream, observed on real sockets.

`python tests/client/fault_table.py` prints the table that is observed now, as Markdown; `test_fault_table.py`
holds it to what is promised. Owns the faults, the operations and the observing; the promises are the test's.

Each cell is one call against a server that shows the fault once, or always, and is well otherwise: how many
requests the call sent, and what the caller got.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from drivers import KEY, driven
from faulty_server import (
    DONE,
    FaultyServer,
    Step,
    chunks,
    drip,
    event,
    failure,
    hang_up,
    head,
    raw,
    refused_url,
    reply,
    reset_after,
    reset_unread,
    stall,
)

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import AmbiguousOutcome, APIError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from drivers import Driver
    from faulty_server import Peer

Meaning: TypeAlias = Literal[
    "never sent", "refused", "final", "uncertain", "uncertain, not again", "begun", "ok"
]
"""What a fault says about the request:

- *never sent*: no byte of it left.
- *refused*: the server says that it did nothing.
- *final*: the server decided, and would decide the same again.
- *uncertain*: it may have taken effect.
- *uncertain, not again*: the same, and the server asks for no further request.
- *begun*: the stream had shown its run before it broke.
- *ok*: an end of a stream that is no error.
"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: What happens.
        step: What the server does; `None` when nobody listens.
        meaning: What that says about the request.
        error: What a caller gets who meets it until the attempts are used up.
        is_timed: Whether it ends by the caller's timeout.
    """

    name: str
    step: Step | None
    meaning: Meaning
    error: str
    is_timed: bool = False


UNCERTAIN: dict[str, tuple[str, Step]] = {
    "500": ("InternalServerError", failure(500)),
    "503 with every hint to repeat": (
        "InternalServerError",
        failure(503, {"retry-after": "0", "x-should-retry": "true"}),
    ),
    "408": ("RequestTimeoutError", failure(408)),
    "409": ("ConflictError", failure(409)),
    "closed without an answer": ("APIConnectionError", hang_up),
    "reset before the request was read": ("APIConnectionError", reset_unread),
    "reset after the request was read": ("APIConnectionError", reset_after()),
    "reset within the headers": ("APIConnectionError", reset_after(b"HTTP/1.1 200 OK\r\nContent-")),
    "cut within the body": ("APIConnectionError", raw(head(200, content_length="100") + b'{"id": "run_1"')),
    "cut within the chunks": (
        "APIConnectionError",
        chunks([b'{"id": '], content_type="application/json", end=b"5\r\nab"),
    ),
    "garbage instead of HTTP": ("APIConnectionError", raw(b"220 mail.example ESMTP\r\n\r\n")),
    "garbage instead of chunks": (
        "APIConnectionError",
        chunks([], content_type="application/json", end=b"zz\r\n"),
    ),
    "garbage instead of JSON": ("APIResponseError", reply(b"<html>gateway</html>")),
    "JSON of another shape": ("APIResponseError", reply([1, 2])),
    "broken compression": ("APIResponseError", reply(b"not gzip", headers={"content-encoding": "gzip"})),
}

STALLS: dict[str, Step] = {
    "stalled without an answer": stall(),
    "stalled within the body": stall(head(200, content_length="100") + b"{"),
    "dripping without an end": drip(head(200, content_length="99999") + b"{", every_s=0.01),
}

DECISIONS = {
    302: "APIStatusError",
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
}

NEVER_AGAIN = {"x-should-retry": "false"}

FAULTS: list[Fault] = [
    Fault(name="nobody listens", step=None, meaning="never sent", error="APIConnectionError"),
    Fault(name="429", step=failure(429), meaning="refused", error="RateLimitError"),
    Fault(
        name="429 with a hint when",
        step=failure(429, {"retry-after-ms": "1"}),
        meaning="refused",
        error="RateLimitError",
    ),
    Fault(
        name="429 with the hint not to repeat",
        step=failure(429, NEVER_AGAIN),
        meaning="final",
        error="RateLimitError",
    ),
    *(
        Fault(name=str(status), step=failure(status), meaning="final", error=error)
        for status, error in DECISIONS.items()
    ),
    *(
        Fault(name=name, step=step, meaning="uncertain", error=error)
        for name, (error, step) in UNCERTAIN.items()
    ),
    Fault(
        name="503 with the hint not to repeat",
        step=failure(503, NEVER_AGAIN),
        meaning="uncertain, not again",
        error="InternalServerError",
    ),
    *(
        Fault(name=name, step=step, meaning="uncertain", error="APITimeout", is_timed=True)
        for name, step in STALLS.items()
    ),
]
"""What can happen to any request."""

RUN = {
    "id": "run_1",
    "object": "thread.run",
    "thread_id": "thread_1",
    "status": "queued",
    "metadata": {NONCE_KEY: "n1"},
}
CREATED = event("thread.run.created", RUN)
THREAD_CREATED = event("thread.created", {"id": "thread_1", "object": "thread"})
ERROR = event("error", {"message": "overloaded"})
STREAM_HEAD = head(200, content_type="text/event-stream", transfer_encoding="chunked")

STREAM_FAULTS: list[Fault] = [
    *(
        Fault(name=name, step=step, meaning="uncertain", error="APIResponseError")
        for name, step in {
            "a stream without an event": chunks([]),
            "a stream without a run event": chunks([THREAD_CREATED]),
            "a stream of nothing but done": chunks([DONE]),
            "a stream cut within its first run event": chunks([CREATED[:-1]]),
            "an error event before the first run event": chunks([THREAD_CREATED, ERROR]),
        }.items()
    ),
    Fault(
        name="a cut before the first run event",
        step=chunks([THREAD_CREATED], end=b"5\r\nab"),
        meaning="uncertain",
        error="APIConnectionError",
    ),
    Fault(
        name="silence before the first run event",
        step=stall(STREAM_HEAD + b"%x\r\n%s\r\n" % (len(THREAD_CREATED), THREAD_CREATED)),
        meaning="uncertain",
        error="APITimeout",
        is_timed=True,
    ),
    Fault(
        name="a cut after the first run event",
        step=chunks([CREATED], end=b"5\r\nab"),
        meaning="begun",
        error="APIConnectionError",
    ),
    Fault(
        name="a reset after the first run event",
        step=reset_after(STREAM_HEAD + b"%x\r\n%s\r\n" % (len(CREATED), CREATED)),
        meaning="begun",
        error="APIConnectionError",
    ),
    Fault(
        name="an error event after the first run event", step=chunks([CREATED, ERROR]), meaning="ok", error=""
    ),
    Fault(name="an end without done", step=chunks([CREATED]), meaning="ok", error=""),
]
"""What can happen to a stream besides."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation, called in one way.

    Attributes:
        name: The operation's name.
        ids: Its positional arguments.
        fields: Its others.
        variant: How this call differs from others of the operation, if it does.
    """

    name: str
    ids: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".strip()

    @property
    def streams(self) -> bool:
        return self.name.startswith("stream_")

    @property
    def faults(self) -> list[Fault]:
        return [*FAULTS, *STREAM_FAULTS] if self.streams else FAULTS

    @property
    def answer(self) -> Step:
        """What a server says that is well: something that every operation, and every look, can read."""
        return well


def well(peer: Peer) -> bool:
    """Answer with a stream where one is wanted, else with a run that is a list of itself as well."""
    if peer.read().headers["accept"] != "text/event-stream":
        data, kind = json.dumps({**RUN, "data": [RUN]}).encode(), "application/json"
    else:
        data, kind = CREATED + DONE, "text/event-stream"
    peer.send(head(200, content_type=kind, content_length=str(len(data))) + data)
    return True


HELLO = {"role": "user", "content": "hello"}

REPEATABLE: list[Operation] = [
    Operation(name="get_assistant", ids=("asst_1",)),
    Operation(name="modify_assistant", ids=("asst_1",), fields={"name": None}),
    Operation(name="delete_assistant", ids=("asst_1",)),
    Operation(name="list_assistants"),
    Operation(name="create_thread", variant="without messages"),
    Operation(name="get_thread", ids=("thread_1",)),
    Operation(name="modify_thread", ids=("thread_1",), fields={"metadata": {"a": "b"}}),
    Operation(name="delete_thread", ids=("thread_1",)),
    Operation(name="get_message", ids=("thread_1", "msg_1")),
    Operation(name="modify_message", ids=("thread_1", "msg_1"), fields={"metadata": None}),
    Operation(name="delete_message", ids=("thread_1", "msg_1")),
    Operation(name="list_messages", ids=("thread_1",)),
    Operation(name="get_run", ids=("thread_1", "run_1")),
    Operation(name="modify_run", ids=("thread_1", "run_1"), fields={"metadata": {}}),
    Operation(name="list_runs", ids=("thread_1",)),
    Operation(name="get_run_step", ids=("thread_1", "run_1", "step_1")),
    Operation(name="list_run_steps", ids=("thread_1", "run_1")),
]
"""Doing it twice equals doing it once."""

UNREPEATABLE: list[Operation] = [
    Operation(name="create_assistant", fields={"model": "m"}),
    Operation(name="create_thread", fields={"messages": [HELLO]}, variant="with messages"),
    Operation(name="create_message", ids=("thread_1",), fields=HELLO, variant="without nonce"),
    Operation(name="create_run", ids=("thread_1",), fields={"assistant_id": "a"}, variant="without nonce"),
    Operation(name="create_thread_and_run", fields={"assistant_id": "a"}),
    Operation(name="stream_run", ids=("thread_1",), fields={"assistant_id": "a"}, variant="without nonce"),
    Operation(name="stream_thread_and_run", fields={"assistant_id": "a"}),
]
"""Doing it twice does the work twice, and nothing tells afterwards whether it was done."""

OUTPUTS = [{"tool_call_id": "call_1", "output": "5"}]

RECONCILABLE: list[Operation] = [
    Operation(
        name="create_message", ids=("thread_1",), fields={**HELLO, "nonce": "n1"}, variant="with nonce"
    ),
    Operation(
        name="create_run",
        ids=("thread_1",),
        fields={"assistant_id": "a", "nonce": "n1"},
        variant="with nonce",
    ),
    Operation(
        name="stream_run",
        ids=("thread_1",),
        fields={"assistant_id": "a", "nonce": "n1"},
        variant="with nonce",
    ),
    Operation(name="submit_tool_outputs", ids=("thread_1", "run_1"), fields={"tool_outputs": OUTPUTS}),
    Operation(name="stream_tool_outputs", ids=("thread_1", "run_1"), fields={"tool_outputs": OUTPUTS}),
    Operation(name="cancel_run", ids=("thread_1", "run_1")),
]
"""A look at the server tells whether it was done; here it always was, or the run has moved on meanwhile."""


class Outcome(NamedTuple):
    """What one call came to: how many requests reached the server, looks included, and what came of it."""

    sent: int
    got: str

    def __str__(self) -> str:
        return f"{self.sent}, {self.got}"


ANSWER = "answer"
"""What a caller gets who notices nothing."""


def observed(
    kind: str, operation: Operation, faults: Iterable[Fault], *, always: bool, timeout_s: float
) -> dict[str, Outcome]:
    """Call an operation once per fault; return what came of each, by the fault's name.

    Args:
        kind: The client's kind, `"async"` or `"sync"`.
        operation: What is called.
        faults: What goes wrong.
        always: Whether the fault meets every request, or only the first.
        timeout_s: The timeout of calls that meet a timed fault.
    """
    with FaultyServer() as server, driven(kind, server.url) as driver:
        outcomes = {}
        for fault in faults:
            script = [] if always or fault.step is None else [fault.step]
            default = fault.step if always and fault.step is not None else operation.answer
            server.play(*script, default=default)
            options: dict[str, Any] = {"timeout": timeout_s} if fault.is_timed else {}
            if fault.step is None:
                options = {"base_url": refused_url(), "api_key": KEY}
            got = _got(driver, operation, options)
            outcomes[fault.name] = Outcome(len(server.received) + server.unread, got)
    return outcomes


def _got(driver: Driver, operation: Operation, options: dict[str, Any]) -> str:
    send: Callable[..., Any] = driver.stream if operation.streams else driver.call
    try:
        send(operation.name, *operation.ids, **operation.fields, **options)
    except (APIError, AmbiguousOutcome) as error:
        return type(error).__name__
    return ANSWER


def columns() -> dict[tuple[str, ...], list[str]]:
    """Observe everything; return the operations that behave alike, by what they do with each fault."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for operation in (*REPEATABLE, *RECONCILABLE, *UNREPEATABLE):
        seen = [
            observed(kind, operation, operation.faults, always=False, timeout_s=0.1)
            for kind in ("async", "sync")
        ]
        assert seen[0] == seen[1], f"the clients differ on {operation}: {seen}"
        cells = [str(seen[0].get(fault.name, "")) for fault in (*FAULTS, *STREAM_FAULTS)]
        alike.setdefault(tuple(cells), []).append(str(operation))
    return alike


def main() -> None:
    """Print the operations that behave alike, and for each group what every fault leads to."""
    alike = columns()
    for number, operations in enumerate(alike.values(), 1):
        print(f"- **{number}**: {', '.join(operations)}")
    numbers = " | ".join(str(number) for number in range(1, len(alike) + 1))
    print(f"\n| a fault, shown once: requests sent, what the caller got | {numbers} |")
    print(f"|---|{'---|' * len(alike)}")
    for row, fault in enumerate((*FAULTS, *STREAM_FAULTS)):
        print(f"| {fault.name} | {' | '.join(cells[row] for cells in alike)} |")


if __name__ == "__main__":
    main()
