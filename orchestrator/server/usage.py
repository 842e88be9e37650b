"""What a run uses: tokens counted, limits kept, and each token accounted for in one step.

Owns the arithmetic on a run's `usage` and its two limits. Knows nothing of events or of time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.server import objects
from orchestrator.server.models import tokens_in

if TYPE_CHECKING:
    from orchestrator.protocol.objects import JSON
    from orchestrator.server.models import Finish, Prompt

__all__ = ["Meter", "TokenLimitError"]


class TokenLimitError(Exception):
    """The run has used up `max_prompt_tokens` or `max_completion_tokens`.

    Attributes:
        reason: The limit's name, as `incomplete_details` wants it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Meter:
    """Counts one run's tokens, and writes them into its `usage` as each completion ends.

    Args:
        run: The run object.
    """

    def __init__(self, run: JSON) -> None:
        self._run = run
        self._said = 0
        self._prompt_tokens = 0
        self._accounted = objects.usage()

    def begin(self, prompt_tokens: int) -> None:
        """Begin to count a completion.

        Raises:
            TokenLimitError: The prompt does not fit into what is left of `max_prompt_tokens`, or nothing is
                left of `max_completion_tokens`.
        """
        if self.completion_tokens_left() == 0:
            raise TokenLimitError("max_completion_tokens")
        limit = self._run["max_prompt_tokens"]
        if limit is not None and self._spent("prompt_tokens") + prompt_tokens > limit:
            raise TokenLimitError("max_prompt_tokens")
        self._prompt_tokens = prompt_tokens

    def fit(self, prompt: Prompt) -> Prompt:
        """Drop messages from the middle until the prompt fits what is left of `max_prompt_tokens`.

        That is what the truncation strategy `auto` promises. The first message and the last stay, so that a
        prompt may be too long all the same.
        """
        limit = self._run["max_prompt_tokens"]
        if limit is None or self._run["truncation_strategy"]["type"] != "auto":
            return prompt
        excess = self._spent("prompt_tokens") + prompt.tokens() - limit
        dropped = 0
        for turn in prompt.turns[1:-1]:
            if excess <= 0:
                break
            excess -= turn.tokens()
            dropped += 1
        return replace(prompt, turns=prompt.turns[:1] + prompt.turns[1 + dropped :])

    def completion_tokens_left(self) -> int | None:
        """Return what the next completion may say, over all of the run's; `None` without a limit."""
        limit = self._run["max_completion_tokens"]
        return None if limit is None else max(0, limit - self._spent("completion_tokens"))

    def take(self, text: str) -> None:
        """Count a piece as said."""
        self._said += len(text)

    def finish(self, finish: Finish) -> dict[str, int]:
        """Add the completion to the run's usage and return it; the model's own counts win."""
        prompt, completion = finish.prompt_tokens, finish.completion_tokens
        usage = objects.usage(
            self._prompt_tokens if prompt is None else prompt,
            tokens_in(self._said) if completion is None else completion,
        )
        self._add(usage)
        return usage

    def cut_off(self) -> None:
        """Add a completion that never finished; a run that ends has its usage, be it zero."""
        self._add(objects.usage(self._prompt_tokens, tokens_in(self._said)))

    def account(self, step: JSON) -> None:
        """Note that a step has ended and carries its own usage."""
        for what, tokens in (step["usage"] or {}).items():
            self._accounted[what] += tokens

    def unaccounted(self) -> dict[str, int]:
        """Return what the run has used and no ended step carries: it belongs to the step that ends next."""
        prompt, completion = (
            self._spent(what) - self._accounted[what] for what in ("prompt_tokens", "completion_tokens")
        )
        return objects.usage(prompt, completion)

    def _add(self, usage: dict[str, int]) -> None:
        self._run["usage"] = objects.usage(
            self._spent("prompt_tokens") + usage["prompt_tokens"],
            self._spent("completion_tokens") + usage["completion_tokens"],
        )
        self._said = self._prompt_tokens = 0

    def _spent(self, what: str) -> int:
        return 0 if self._run["usage"] is None else int(self._run["usage"][what])
