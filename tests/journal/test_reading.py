"""What is asked of a journal by those who do not conduct runs: producers and people."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from desk import ACTING, ADDRESS, Desk, outcome, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from test_conducting import DONE, assert_same, execute

from orchestrator.errors import KeyReused, UnknownRun
from orchestrator.journal import Conducted, Ended, SQLJournal
from orchestrator.journal.codec import asked, decoded_finish, decoded_record, encoded_finish, encoded_record
from orchestrator.protocol.objects import FunctionCall, LastError, Message, RunStep, ToolCall, Usage
from orchestrator.runs.effects import Finish
from orchestrator.runs.record import Ending, Phase, RunRecord
from orchestrator.runs.request import RerunPolicy, RunRequest
from orchestrator.runs.result import RunResult


def test_a_run_that_is_added_waits_for_whoever_begins_it(url: str, first: Desk) -> None:
    journal = SQLJournal(url)
    run = record(deadline_at=time.monotonic() + 5)
    assert journal.add(run, ADDRESS)
    assert not journal.add(structs.replace(run, nonce="again"), ADDRESS)
    with pytest.raises(KeyReused, match="'one'"):
        journal.add(record(request=RunRequest(assistant_id="asst_2")), ADDRESS)
    assert journal.unfinished() == []
    assert [entry.state for entry in journal.runs()] == ["waiting"]
    begun = first.claim("one")
    assert isinstance(begun, Conducted)
    assert begun.first
    assert_same(begun.record, run)


def test_many_producers_may_add_the_same_run_at_once(url: str) -> None:
    SQLJournal(url).prepare()
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: SQLJournal(url).add(record(), ADDRESS), range(16)))
    assert added.count(True) == 1
    assert len(SQLJournal(url).runs()) == 1


def test_many_processes_may_make_the_tables_at_once(url: str) -> None:
    program = (
        "import sys; from orchestrator.journal import SQLJournal; print(len(SQLJournal(sys.argv[1]).runs()))"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [maker.communicate(timeout=60)[0] for maker in makers] == ["0\n"] * 4


def test_a_run_that_nobody_has_begun_is_cancelled_at_once(url: str, first: Desk) -> None:
    journal = SQLJournal(url)
    journal.add(record(), ADDRESS)
    journal.cancel("one")
    journal.cancel("one")
    ended = first.claim("one")
    assert isinstance(ended, Ended)
    assert ended.finish.result is not None
    assert (ended.finish.result.status, ended.finish.result.run_id) == ("cancelled", None)


def test_what_is_not_known_is_said_by_name(url: str) -> None:
    journal = SQLJournal(url)
    for ask in (journal.load, journal.outcome, journal.cancel, journal.show):
        with pytest.raises(UnknownRun, match="'nothing'") as caught:
            ask("nothing")
        assert caught.value.key == "nothing"


def test_the_list_says_how_each_run_stands(url: str, first: Desk) -> None:
    journal = SQLJournal(url)
    journal.add(record("waits"), ADDRESS)
    run = first.conduct(record("open"))
    first.record(structs.replace(run, **ACTING, status="requires_action"))
    first.finish(first.conduct(record("over")), DONE)
    journal.cancel("open")
    assert [entry.key for entry in journal.runs()] == ["open", "waits"]
    assert [entry.key for entry in journal.runs(limit=1)] == ["open"]
    over, opened, waits = journal.runs(ended=True)
    assert (over.state, over.held, over.owner) == ("ended", False, None)
    assert (opened.state, opened.phase, opened.status, opened.held) == (
        "open",
        "acting",
        "requires_action",
        True,
    )
    assert (opened.thread_id, opened.run_id, opened.cancel_requested) == ("thread_1", "run_1", True)
    assert (waits.state, waits.owner, waits.epoch) == ("waiting", None, 0)
    assert over.ended_at is not None
    assert waits.created_at <= opened.created_at <= over.ended_at
    assert abs(datetime.now(UTC) - over.ended_at) < timedelta(seconds=20)


def test_runs_that_ended_long_ago_are_removed_with_all_there_is_of_them(url: str, first: Desk) -> None:
    journal = SQLJournal(url)
    for key in ("old", "new"):
        run = structs.replace(first.conduct(record(key)), **ACTING, results=(outcome(),))
        first.record(structs.replace(run, phase=Phase.SUBMITTING))
        first.finish(run, DONE)
    first.conduct(record("open"))
    assert journal.prune(timedelta(hours=1)) == 0
    execute(url, "UPDATE journal_runs SET ended_at = ended_at - 7200 WHERE key = 'old'")
    execute(url, "UPDATE journal_runs SET created_at = created_at - 7200")
    assert journal.prune(3600) == 1
    assert [entry.key for entry in journal.runs(ended=True)] == ["open", "new"]
    for table in ("journal_tool_calls", "journal_submissions", "journal_events"):
        kept = execute(url, f"SELECT count(DISTINCT run) FROM {table}")
        assert kept == [(2 if table == "journal_events" else 1,)]
    assert journal.add(record("old"), ADDRESS)


# Formats

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ids = st.none() | words
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=2),
)
requests = st.builds(
    RunRequest,
    assistant_id=words,
    messages=st.lists(st.dictionaries(words, plain, max_size=2), max_size=2).map(tuple),
    options=st.dictionaries(words, plain, max_size=2),
    metadata=st.dictionaries(words, words, max_size=2),
    watch=st.sampled_from(["stream", "poll"]),
    deadline_s=st.floats(0.1, 1e6),
    rerun=st.builds(RerunPolicy, attempts=st.integers(1, 5), codes=st.frozensets(words, max_size=2)),
    unrepeatable_tools=st.frozensets(words, max_size=2),
    max_tool_rounds=st.none() | st.integers(0, 9),
)
calls = st.builds(ToolCall, id=words, function=st.builds(FunctionCall, name=words, arguments=words))
usages = st.none() | st.builds(Usage, total_tokens=st.integers(0, 2**40))
records = st.builds(
    RunRecord,
    key=words,
    nonce=words,
    request=requests,
    deadline_at=st.just(17.0),
    phase=st.sampled_from(Phase),
    thread_id=ids,
    run_id=ids,
    attempt=st.integers(1, 9),
    earlier=st.lists(words, max_size=2).map(tuple),
    carries=st.booleans(),
    blocked_by=ids,
    expires_at=st.none() | st.just(3.0),
    status=ids,
    number=st.integers(0, 2**40),
    pending=st.none() | st.integers(0, 9),
    watched=st.none() | st.integers(0, 9),
    floor=st.integers(0, 9),
    round=st.integers(0, 9),
    calls=st.lists(calls, max_size=2).map(tuple),
    awaiting=st.frozensets(words, max_size=2),
    doubtful=st.frozensets(words, max_size=2),
    interruptions=st.integers(0, 9),
    results=st.just(()),
    spent=usages,
    ambiguous=st.booleans(),
    metadata_echoed=st.booleans(),
    ending=st.none() | st.sampled_from(Ending),
    failure=st.none(),
    redacted=st.booleans(),
    digest=ids,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(run=records, offset_s=st.sampled_from([0.0, 1024.0]))
def test_whatever_is_recorded_is_read_again(run: RunRecord, offset_s: float) -> None:
    data = encoded_record(run, offset_s)
    assert decoded_record(run.key, asked(run, ADDRESS), data, (), offset_s) == run


results = st.builds(
    RunResult,
    status=words,
    thread_id=ids,
    run_id=ids,
    messages=st.lists(st.builds(Message, id=words, metadata=st.dictionaries(words, words)), max_size=2).map(
        tuple
    ),
    steps=st.lists(st.builds(RunStep, id=words, type=words), max_size=2).map(tuple),
    tool_calls=st.just((outcome(),)),
    usage=usages,
    error=st.none() | st.builds(LastError, code=words, message=words),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(result=results)
def test_whatever_comes_of_a_run_is_read_again(result: RunResult) -> None:
    finish = Finish(result=result)
    assert decoded_finish(encoded_finish(finish), result.tool_calls) == finish
