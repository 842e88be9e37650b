"""One run that is not over: its objects, their transitions, and the events each transition says.

Owns the order of events (PROTOCOL.md, "Server-sent events") and every change of a run's, step's or message's
status. All of it is synchronous: a transition happens whole, between two turns of the loop. Knows no tasks,
timers or locks; `orchestrator.server.engine` decides what happens when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from orchestrator.protocol.objects import TERMINAL_STATUSES
from orchestrator.server import objects
from orchestrator.server.models import Call, Prompt, Round, text_of
from orchestrator.server.sse import DONE, Subscription, encode
from orchestrator.server.usage import Meter, TokenLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.models import CallPiece, Finish, Turn
    from orchestrator.server.schema import Kind

__all__ = ["ActiveRun", "ContentFilteredError", "Ending"]

Ending: TypeAlias = Literal["completed", "failed", "cancelled", "expired", "incomplete"]

_MESSAGE_REASON: Final[dict[Ending, str]] = {
    "cancelled": "run_cancelled",
    "expired": "run_expired",
    "failed": "run_failed",
    "incomplete": "max_tokens",
}
"""Why a message stays incomplete, by how its run ended."""

_STEP_STATUS: Final[dict[Ending, str]] = {
    "cancelled": "cancelled",
    "expired": "expired",
    "failed": "failed",
    # The protocol has no incomplete step; one that was cut off did not complete.
    "incomplete": "failed",
}
"""How an open step ends, by how its run ended."""


class ContentFilteredError(Exception):
    """A content filter stopped the model in its answer."""


class ActiveRun:
    """A run that holds its thread; lives on the server's loop.

    Args:
        run: The run object; changed in place from here on.
        turns: The thread's messages before the run, truncated as it asked.
        save: Stores an object, soon and in order.
        clock: Unix seconds.

    Attributes:
        run: The run object.
        subscriptions: The streams that are open on the current leg.
    """

    def __init__(
        self,
        run: JSON,
        *,
        turns: tuple[Turn, ...],
        save: Callable[[Kind, JSON], None],
        clock: Callable[[], float],
    ) -> None:
        self.run = run
        self.subscriptions: list[Subscription] = []
        self._turns = turns
        self._save = save
        self._clock = clock
        self._rounds: list[Round] = []
        self._said = ""
        self._step: JSON | None = None
        self._message: JSON | None = None
        self._meter = Meter(run)
        self._verdict = b""

    @property
    def status(self) -> str:
        """The run's status."""
        status: str = self.run["status"]
        return status

    @property
    def call_ids(self) -> list[str]:
        """The ids of the calls whose outputs the run waits for."""
        action = self.run["required_action"]
        return [] if action is None else [call["id"] for call in action["submit_tool_outputs"]["tool_calls"]]

    def resume(self, steps: list[JSON], messages: list[JSON]) -> None:
        """Take up what a stored run has done, for a restart of the server.

        Args:
            steps: Its steps, oldest first.
            messages: The thread's messages.
        """
        texts = {message["id"]: text_of(message["content"]) for message in messages}
        for step in steps:
            self._meter.account(step)
            if step["type"] == "message_creation":
                self._said = texts.get(step["step_details"]["message_creation"]["message_id"], "")
            elif step["status"] == "completed":
                self._end_round(step)
        self._step = next((step for step in steps if step["status"] == "in_progress"), None)

    def resume_message(self, message: JSON) -> None:
        """Take up a stored message that was being written."""
        self._message = message

    def prompt(self) -> Prompt:
        """Return what the model is asked with next."""
        run = self.run
        prompt = Prompt(
            model=run["model"],
            instructions=run["instructions"],
            turns=self._turns,
            rounds=tuple(self._rounds),
            tools=tuple(run["tools"]),
            tool_choice=run["tool_choice"],
            parallel_tool_calls=run["parallel_tool_calls"],
            response_format=run["response_format"],
            temperature=run["temperature"],
            top_p=run["top_p"],
            reasoning_effort=run.get("reasoning_effort"),
            max_completion_tokens=self._meter.completion_tokens_left(),
        )
        return self._meter.fit(prompt)

    def announce(self) -> None:
        """Store the run and say that it was created and is queued."""
        self._publish("thread.run.created", self.run)
        self._put_run("queued")

    def begin(self, prompt: Prompt) -> None:
        """Move to `in_progress`: a completion starts.

        Raises:
            TokenLimitError: The prompt does not fit the run's limit, or nothing more may be said.
        """
        self.run["started_at"] = self.run["started_at"] or self._now()
        self._put_run("in_progress")
        self._meter.begin(prompt.tokens())

    def add_text(self, text: str) -> None:
        """Append a piece of text to the message, which opens with the first."""
        self._meter.take(text)
        if text:
            self._said += text
            self._append(self._message or self._open_message(), text)

    def add_call(self, piece: CallPiece) -> None:
        """Append a piece of a tool call; the message before the first call is closed."""
        if self._message is not None:
            self._close_message(objects.usage())
        step = self._step or self._open_step(objects.calls_step(self.run, created_at=self._now()))
        calls = step["step_details"]["tool_calls"]
        if piece.index == len(calls):
            calls.append(objects.call_detail(piece.name or ""))
            self._publish_call(step, {"index": piece.index, **calls[-1]})
        self._meter.take(piece.arguments)
        if piece.arguments:
            calls[piece.index]["function"]["arguments"] += piece.arguments
            fragment = {
                "index": piece.index,
                "type": "function",
                "function": {"arguments": piece.arguments},
            }
            self._publish_call(step, fragment)

    def finish(self, finish: Finish) -> bool:
        """Close the completion: wait for tool outputs (True) or leave the run to be completed (False).

        Raises:
            TokenLimitError: The model stopped at a limit.
            ContentFilteredError: A content filter stopped the model.
        """
        usage = self._meter.finish(finish)
        if finish.reason == "length":
            raise TokenLimitError("max_completion_tokens")
        if finish.reason == "content_filter":
            raise ContentFilteredError
        if self._message is not None:
            self._close_message(usage)
        if self._step is None:
            return False
        self._require_action(self._step)
        return True

    def accept(self, outputs: Mapping[str, str]) -> None:
        """Take the outputs of the whole batch, by call id; the run is queued again.

        Streams that were subscribed for the next leg are told.
        """
        step = self._step
        assert step is not None
        for call in step["step_details"]["tool_calls"]:
            call["function"]["output"] = outputs[call["id"]]
        step["usage"] = self._meter.unaccounted()
        self._end_step(step, "completed")
        self._end_round(step)
        self.run["required_action"] = None
        self._put_run("queued")

    def begin_cancelling(self) -> None:
        """Move to `cancelling`; its event comes with the end, after those of the open message and step."""
        self.run["status"] = "cancelling"
        self.run["required_action"] = None
        self._save("runs", self.run)

    def end(
        self,
        ending: Ending,
        *,
        error: JSON | None = None,
        reason: str | None = None,
        message_reason: str | None = None,
    ) -> None:
        """Move to a terminal status, closing what is open.

        Args:
            ending: The status.
            error: `last_error`, for a failed run.
            reason: The limit that was reached, for an incomplete run.
            message_reason: Why the open message stays incomplete, where the ending alone does not say it.
        """
        if self._message is not None:
            self._cut_message(self._message, message_reason or _MESSAGE_REASON[ending])
        if self._step is not None:
            self._step["last_error"] = _step_error(error)
            self._end_step(self._step, _STEP_STATUS[ending])
        if self.status == "cancelling":
            self._publish("thread.run.cancelling", self.run)
        self._meter.cut_off()
        run = self.run
        run["last_error"] = error
        run["required_action"] = None
        if reason is not None:
            run["incomplete_details"] = {"reason": reason}
        if ending == "completed":
            run["expires_at"] = None
        if f"{ending}_at" in run:
            run[f"{ending}_at"] = self._now()
        self._put_run(ending)

    def detach_streams(self) -> tuple[list[Subscription], bytes]:
        """Hand over the streams of the leg that ends here, and the events that close them.

        The last run event is held back until now, so that it can be made durable before it is seen.
        """
        streams, self.subscriptions = self.subscriptions, []
        return streams, self._verdict + DONE

    def _end_round(self, step: JSON) -> None:
        calls = step["step_details"]["tool_calls"]
        answered = tuple(Call(id=call["id"], **call["function"]) for call in calls)
        self._rounds.append(Round(calls=answered, text=self._said))
        self._said = ""

    def _require_action(self, step: JSON) -> None:
        self._save("steps", step)
        calls = [_without_output(call) for call in step["step_details"]["tool_calls"]]
        self.run["required_action"] = {
            "type": "submit_tool_outputs",
            "submit_tool_outputs": {"tool_calls": calls},
        }
        self._put_run("requires_action")

    def _open_message(self) -> JSON:
        run = self.run
        message = objects.message(
            created_at=self._now(),
            thread_id=run["thread_id"],
            role="assistant",
            content=[],
            metadata={},
            assistant_id=run["assistant_id"],
            run_id=run["id"],
        )
        step = objects.message_step(run, created_at=self._now(), message_id=message["id"])
        self._open_step(step)
        self._message = message
        self._save("messages", message)
        self._publish("thread.message.created", message)
        self._publish("thread.message.in_progress", message)
        return message

    def _append(self, message: JSON, text: str) -> None:
        content = message["content"]
        if content:
            content[0]["text"]["value"] += text
        else:
            content.append(objects.text_part(text))
        fragment = {"index": 0, "type": "text", "text": {"value": text, "annotations": []}}
        self._publish(
            "thread.message.delta",
            {"id": message["id"], "object": "thread.message.delta", "delta": {"content": [fragment]}},
        )

    def _close_message(self, usage: dict[str, int]) -> None:
        message, step = self._message, self._step
        assert message is not None
        assert step is not None
        message |= {"status": "completed", "completed_at": self._now()}
        self._save("messages", message)
        self._publish("thread.message.completed", message)
        self._message = None
        step["usage"] = usage
        self._end_step(step, "completed")

    def _cut_message(self, message: JSON, reason: str) -> None:
        message |= {
            "status": "incomplete",
            "incomplete_at": self._now(),
            "incomplete_details": {"reason": reason},
        }
        self._save("messages", message)
        self._publish("thread.message.incomplete", message)
        self._message = None

    def _open_step(self, step: JSON) -> JSON:
        self._step = step
        self._save("steps", step)
        self._publish("thread.run.step.created", step)
        self._publish("thread.run.step.in_progress", step)
        return step

    def _end_step(self, step: JSON, status: str) -> None:
        step["status"] = status
        step[f"{status}_at"] = self._now()
        self._meter.account(step)
        self._save("steps", step)
        self._publish(f"thread.run.step.{status}", step)
        self._step = None

    def _publish_call(self, step: JSON, fragment: JSON) -> None:
        delta = {"step_details": {"type": "tool_calls", "tool_calls": [fragment]}}
        self._publish(
            "thread.run.step.delta", {"id": step["id"], "object": "thread.run.step.delta", "delta": delta}
        )

    def _put_run(self, status: str) -> None:
        self.run["status"] = status
        self._save("runs", self.run)
        if status == "requires_action" or status in TERMINAL_STATUSES:
            self._verdict = encode(f"thread.run.{status}", self.run) if self.subscriptions else b""
        else:
            self._publish(f"thread.run.{status}", self.run)

    def _publish(self, event: str, payload: Any) -> None:
        if not self.subscriptions:
            return
        chunk = encode(event, payload)
        for subscription in self.subscriptions:
            subscription.send(chunk)

    def _now(self) -> int:
        return int(self._clock())


def _without_output(call: JSON) -> JSON:
    function = {key: value for key, value in call["function"].items() if key != "output"}
    return {**call, "function": function}


def _step_error(error: JSON | None) -> JSON | None:
    """A step knows fewer codes than a run: a refused prompt is a server error there."""
    if error is None or error["code"] != "invalid_prompt":
        return error
    return {**error, "code": "server_error"}
