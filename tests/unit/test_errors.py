"""The exception tree: what each error carries, and that it crosses process boundaries."""

from __future__ import annotations

import copy
import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import APIConnectionError, OrchestratorError, RunLost, status_error

SAMPLES: list[OrchestratorError] = [
    status_error(429)(
        "slow down",
        method="POST",
        path="/threads",
        status=429,
        headers={"retry-after": "1"},
        body="{}",
        request_id="req_1",
        code="rate_limit_exceeded",
    ),
    APIConnectionError("refused", method="GET", path="/threads/thread_1", sent=False),
    RunLost("run run_1 is lost", thread_id="thread_1", run_id="run_1", status="queued"),
    errors.ThreadBusy("busy", thread_id="thread_1", run_id="run_1"),
    errors.AmbiguousOutcome("perhaps", operation="create_run", thread_id="thread_1", nonce="n"),
    errors.ToolError("for the model"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_copy_and_a_pickle_whole(error: OrchestratorError) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_an_api_error_names_the_request_and_its_id() -> None:
    assert str(SAMPLES[0]) == "HTTP 429: slow down (POST /threads, request req_1)"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, errors.APIStatusError),
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (408, errors.RequestTimeoutError),
        (409, errors.ConflictError),
        (418, errors.APIStatusError),
        (422, errors.UnprocessableEntityError),
        (429, errors.RateLimitError),
        (500, errors.InternalServerError),
        (503, errors.InternalServerError),
    ],
)
def test_each_status_has_its_class(status: int, kind: type[errors.APIStatusError]) -> None:
    assert status_error(status) is kind


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__ is not None
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert {name for name in classes if name not in errors.__doc__} == set()
