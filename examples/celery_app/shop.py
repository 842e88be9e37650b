"""Whoever has questions: sends tasks and needs no connection to the server."""

import os
import sys

import celery_app.tasks  # noqa: F401 - makes it the current application, as a Django project's own package does
from orchestrator.workers.celery import RunTaskError, cancel, run_assistant

PATIENCE_S = 60.0


def ask(question: str, *, key: str | None = None) -> str:
    """Have a question answered; with the same key, whoever asks again gets the same answer."""
    result = run_assistant.delay(os.environ["ASSISTANT"], key=key, messages=question)
    try:
        outcome = result.get(timeout=PATIENCE_S)
    except RunTaskError as error:
        return f"no answer: {error.kind}"
    except KeyboardInterrupt:
        cancel(result)
        raise
    return outcome["text"] if outcome["status"] == "completed" else f"no answer: {outcome['status']}"


if __name__ == "__main__":
    print(ask(" ".join(sys.argv[1:])))
