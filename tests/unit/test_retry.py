"""The retry policy: a table of failures, and when the next attempt comes."""

import time
from email.utils import formatdate

import pytest

from orchestrator.client.retry import (
    ALWAYS,
    NO_RETRIES,
    RetryPolicy,
    Verdict,
    delay_s,
    judge,
    retry_after_s,
    when_error,
    when_status,
)
from orchestrator.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeout,
    status_error,
)

AGAIN, AMBIGUOUS, FINAL = Verdict.AGAIN, Verdict.AMBIGUOUS, Verdict.FINAL


def status(code: int, **headers: str) -> APIStatusError:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(code)("no", method="POST", path="/threads", status=code, headers=names)


def connection(*, sent: bool) -> APIConnectionError:
    return APIConnectionError("no", method="POST", path="/threads", sent=sent)


TABLE: list[tuple[APIError, Verdict, Verdict]] = [
    # failure, repeatable, not repeatable
    (connection(sent=False), AGAIN, AGAIN),
    (connection(sent=True), AGAIN, AMBIGUOUS),
    (APITimeout("no", method="GET", path="/", sent=True), AGAIN, AMBIGUOUS),
    (APITimeout("no", method="GET", path="/", sent=False), AGAIN, AGAIN),
    (APIResponseError("no", method="GET", path="/"), AGAIN, AMBIGUOUS),
    (status(429), AGAIN, AGAIN),
    (status(429, x_should_retry="false"), FINAL, FINAL),
    (status(408), AGAIN, AMBIGUOUS),
    (status(409), AGAIN, AMBIGUOUS),
    (status(500), AGAIN, AMBIGUOUS),
    (status(503, retry_after="1", x_should_retry="true"), AGAIN, AMBIGUOUS),
    (status(503, x_should_retry="false"), FINAL, AMBIGUOUS),
    (status(301), FINAL, FINAL),
    (status(400), FINAL, FINAL),
    (status(400, x_should_retry="true"), FINAL, FINAL),
    (status(401), FINAL, FINAL),
    (status(403), FINAL, FINAL),
    (status(404), FINAL, FINAL),
    (status(422), FINAL, FINAL),
]


@pytest.mark.parametrize(("error", "repeatable", "unrepeatable"), TABLE, ids=lambda value: str(value)[:40])
def test_each_failure_allows_what_the_table_says(
    error: APIError, repeatable: Verdict, unrepeatable: Verdict
) -> None:
    assert (judge(error, repeatable=True), judge(error, repeatable=False)) == (repeatable, unrepeatable)


def test_the_backoff_doubles_up_to_its_cap_and_jitter_takes_all_of_it() -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=3.0)

    def delay(failures: int, jitter: float) -> float:
        return delay_s(policy, failures=failures, error=status(500), jitter=jitter, unix_now=0)

    assert [delay(n, 1.0) for n in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert delay(3, 0.0) == 0.0


def test_a_hint_is_a_floor_and_one_past_the_cap_is_never_waited_for() -> None:
    policy = RetryPolicy(base_s=0.5, retry_after_cap_s=10)

    def delay(error: APIError, jitter: float = 0.0) -> float:
        return delay_s(policy, failures=1, error=error, jitter=jitter, unix_now=0)

    assert delay(status(429, retry_after="7")) == 7.0
    assert delay(status(429, retry_after="7"), jitter=1.0) == 7.5
    assert delay(status(429, retry_after="10.5")) == float("inf")
    assert delay(connection(sent=False), jitter=1.0) == 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": formatdate(1_000_005, usegmt=True)}, 5.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
    ],
)
def test_hints_are_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, 1_000_000.0) == seconds


@pytest.mark.parametrize("field", ["base_s", "cap_s", "retry_after_cap_s", "deadline_s", "settle_s"])
def test_a_policy_refuses_negative_times(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: -1.0})  # type: ignore[arg-type]  # every one of these fields is a float


def test_a_policy_has_at_least_one_attempt() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy(attempts=0)
    assert NO_RETRIES.attempts == 1


def test_the_thousandth_failure_in_a_row_has_a_backoff_too() -> None:
    policy = RetryPolicy(cap_s=8.0)
    assert delay_s(policy, failures=5000, error=connection(sent=True), jitter=0.5, unix_now=0.0) == 4.0


@pytest.mark.parametrize("zone", ["America/New_York", "UTC"])
def test_a_date_without_a_zone_is_utc_wherever_we_are(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after_s({"retry-after": "Sun Nov  6 08:49:37 1994"}, 784111770.0) == 7.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_conditions_combine_and_forbid_but_never_allow() -> None:
    limited, cut = status(429), connection(sent=True)
    condition = when_status(429, 503) | when_error(APITimeout)
    assert condition(limited)
    assert not condition(cut)
    assert (~condition)(cut)
    assert not (condition & ~when_status(429))(limited)
    assert ALWAYS(cut)
