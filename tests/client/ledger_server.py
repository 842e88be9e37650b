"""A small server of the protocol that keeps a ledger of effects, whatever became of their answers.

It serves real sockets through `FaultyServer`. A request names its plan in a header; the plan says which fault
each of its requests meets, in order. What a request did is in the ledger even where its connection died
first: that is what a test compares with what the client was told.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from faulty_server import DONE, event, head

from orchestrator.client.retry import NONCE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from faulty_server import Peer, Received

PLAN = "x-plan"

FAULTS = (
    "refused with 429",
    "500 before",
    "500 after",
    "503 with hints before",
    "503 with hints after",
    "hang up before",
    "hang up after",
    "reset before",
    "reset after",
    "stall before",
    "stall after",
    "cut answer",
    "garbage",
    "late",
)
"""What may happen to one request; "before" and "after" say whether it takes effect. A "late" one takes effect
some time after its connection was reset. A test may also ask for "twice": a lost request arrives after all,
right before the one that repeats it."""


@dataclass
class Plan:
    """What one call meets.

    Attributes:
        faults: One for each request, in order; afterwards there are none.
        late_s: When a late request takes effect, in seconds after its connection died.
        metadata: Whether the server keeps metadata.
        rounds: How many rounds of tool calls a run asks for; all of them use the same call ids.
    """

    faults: deque[str]
    late_s: float = 0.01
    metadata: bool = True
    rounds: int = 1
    late: list[threading.Timer] = field(default_factory=list)


class Ledger:
    """The state of the server. Each thread belongs to the one plan of its name.

    Attributes:
        next_id: The id of the call that a run asks for next.
    """

    def __init__(self) -> None:
        self.shows_outputs = True
        self.lists_oldest_only = False
        self.plans: dict[str, Plan] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.steps: dict[str, list[dict[str, Any]]] = {}
        self.requests: dict[str, list[str]] = {}
        self.next_id = "call_0"
        self._lock = threading.Lock()
        self._ids = itertools.count(1)

    def plan(self, thread_id: str, plan: Plan, *, tool_run: bool = False) -> None:
        """Add a thread and what its calls meet, with a run that asks for tools if wanted."""
        with self._lock:
            self.plans[thread_id] = plan
            self.runs[thread_id] = []
            self.messages[thread_id] = []
            self.requests[thread_id] = []
            if tool_run:
                run = self._run(thread_id, {})
                self._ask(run)

    def settle(self, thread_id: str) -> None:
        """Wait until nothing late is outstanding."""
        for timer in self.plans[thread_id].late:
            timer.join()

    def marked(self, thread_id: str, nonce: str) -> list[str]:
        """The ids of what was created with a nonce."""
        made = [*self.runs[thread_id], *self.messages[thread_id]]
        return [one["id"] for one in made if one["_nonce"] == nonce]

    def accepted(self, thread_id: str) -> list[str]:
        """The rounds whose outputs were taken, each once for every time."""
        return [taken for run in self.runs[thread_id] for taken in run["_accepted"]]

    def step(self, peer: Peer) -> bool:
        """Serve one request; the default step of a `FaultyServer`."""
        received = peer.read()
        plan = self.plans[received.headers[PLAN]]
        with self._lock:
            fault = plan.faults.popleft() if plan.faults else "none"
            self.requests[received.headers[PLAN]].append(f"{received.method} {fault}")
        return self._serve(peer, received, plan, fault)

    def _serve(self, peer: Peer, received: Received, plan: Plan, fault: str) -> bool:
        def act() -> tuple[int, Any]:
            with self._lock:
                return self._act(received, plan)

        match fault:
            case "none":
                return _send(peer, received, *act())
            case "twice":
                act()
                return _send(peer, received, *act())
            case "503 not again":
                return _send(peer, received, 503, _error("no"), {"x-should-retry": "false"})
            case "503 in three seconds":
                return _send(peer, received, 503, _error("later"), {"retry-after": "3"})
            case "refused with 429":
                return _send(peer, received, 429, _error("slow down"), {"retry-after-ms": "1"})
            case "late":
                timer = threading.Timer(plan.late_s, act)
                plan.late.append(timer)
                timer.start()
                peer.reset()
                return False
        if fault.endswith("after") or fault in ("cut answer", "garbage"):
            act()
        match fault.removesuffix(" before").removesuffix(" after"):
            case "500":
                return _send(peer, received, 500, _error("oops"))
            case "503 with hints":
                return _send(
                    peer, received, 503, _error("later"), {"x-should-retry": "true", "retry-after-ms": "1"}
                )
            case "reset":
                peer.reset()
            case "stall":
                peer.wait_for_hang_up()
            case "cut answer":
                peer.send(
                    head(200, {"content-type": "application/json", "content-length": "500"}) + b'{"id": "'
                )
            case "garbage":
                peer.send(b"220 mail.example ESMTP\r\n\r\n")
        return False

    def _act(self, received: Received, plan: Plan) -> tuple[int, Any]:
        path = received.target.partition("?")[0].removeprefix("/v1/threads/").split("/")
        match received.method, path:
            case "GET", [thread_id, ("runs" | "messages") as kind]:
                items = getattr(self, kind)[thread_id]
                if self.lists_oldest_only:
                    return 200, _page(items[:1]) | {"has_more": len(items) > 1}
                return 200, _page(reversed(items))
            case "GET", [thread_id, "runs", run_id, "steps"]:
                return 200, _page(reversed(self.steps[run_id]))
            case "GET", [thread_id, "runs", run_id]:
                return 200, self._find(thread_id, run_id)
            case "POST", [thread_id, ("runs" | "messages") as kind]:
                return self._create(thread_id, kind, received.json, plan)
            case "POST", [thread_id, "runs", run_id, "submit_tool_outputs"]:
                return self._submit(self._find(thread_id, run_id), received.json, plan)
            case "POST", [thread_id, "runs", run_id, "cancel"]:
                return self._cancel(self._find(thread_id, run_id))
        raise AssertionError(f"no such request: {received.method} {received.target}")

    def _create(self, thread_id: str, kind: str, body: Any, plan: Plan) -> tuple[int, Any]:
        nonce = (body.get("metadata") or {}).get(NONCE_KEY)
        metadata = body.get("metadata") if plan.metadata else None
        if kind == "messages":
            made: dict[str, Any] = {
                "id": f"msg_{next(self._ids)}",
                "object": "thread.message",
                "thread_id": thread_id,
            }
            made |= {"role": "user", "content": [], "metadata": metadata, "_nonce": nonce}
            self.messages[thread_id].append(made)
            return 200, made
        return 200, self._run(thread_id, {"metadata": metadata, "_nonce": nonce})

    def _run(self, thread_id: str, fields: dict[str, Any]) -> dict[str, Any]:
        run: dict[str, Any] = {
            "id": f"run_{next(self._ids)}",
            "object": "thread.run",
            "thread_id": thread_id,
            "status": "queued",
        }
        run |= {"metadata": None, "_nonce": None, "_accepted": [], **fields}
        self.runs[thread_id].append(run)
        self.steps[str(run["id"])] = []
        return run

    def _ask(self, run: dict[str, Any]) -> None:
        call = {
            "id": self.next_id,
            "type": "function",
            "function": {"name": "f", "arguments": "{}", "output": None},
        }
        steps = self.steps[run["id"]]
        details = {"type": "tool_calls", "tool_calls": [call]}
        steps.append({"id": f"step_{len(steps)}", "status": "in_progress", "step_details": details})
        run["status"] = "requires_action"
        run["required_action"] = {"submit_tool_outputs": {"tool_calls": [call]}}

    def _submit(self, run: dict[str, Any], body: Any, plan: Plan) -> tuple[int, Any]:
        if run["status"] != "requires_action":
            return 400, _error(f'Runs in status "{run["status"]}" do not accept tool outputs.')
        step = self.steps[run["id"]][-1]
        if self.shows_outputs:
            step["step_details"]["tool_calls"][0]["function"]["output"] = body["tool_outputs"][0]["output"]
        step["status"] = "completed"
        run["_accepted"].append(step["id"])
        run["status"], run["required_action"] = "queued", None
        answer = dict(run)
        if len(self.steps[run["id"]]) < plan.rounds:
            self._ask(run)
        return 200, answer

    def _cancel(self, run: dict[str, Any]) -> tuple[int, Any]:
        if run["status"] in ("cancelling", "cancelled"):
            return 400, _error(f"Cannot cancel run with status '{run['status']}'.")
        run["status"] = "cancelling"
        return 200, run

    def _find(self, thread_id: str, run_id: str) -> dict[str, Any]:
        return next(run for run in self.runs[thread_id] if run["id"] == run_id)


def _send(
    peer: Peer, received: Received, status: int, body: Any, headers: dict[str, str] | None = None
) -> bool:
    if status == 200 and received.body and json.loads(received.body).get("stream"):
        data = event(f"thread.run.{body['status']}", body) + DONE
        kind = "text/event-stream"
    else:
        data, kind = json.dumps(body).encode(), "application/json"
    fields = {"content-type": kind, "content-length": str(len(data)), **(headers or {})}
    peer.send(head(status, fields) + data)
    return True


def _page(items: Iterable[Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(items), "has_more": False}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
