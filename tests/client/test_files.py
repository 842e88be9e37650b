"""A process that may not have as many files open as it wants connections is told so, and what to do.

The limit is the process's own, so everything here happens in processes of its own, against a server in this
one.
"""

from __future__ import annotations

import errno
import inspect
import socket
from itertools import pairwise

import httpcore
import httpx
import pytest
from drivers import both
from faulty_server import FaultyServer, reply
from limited import told_by

from orchestrator.client import AsyncThreadsClient, ThreadsClient
from orchestrator.client.files import USUAL_CONNECTIONS
from orchestrator.client.transport import api_error
from orchestrator.errors import APIConnectionError, OutOfFiles

THREAD = {"id": "thread_1", "object": "thread"}

PLANNED = """
from orchestrator import Orchestrator
from orchestrator.client import AsyncThreadsClient, ThreadsClient

limit(int(sys.argv[2]))
{"orchestrator": lambda runs: Orchestrator(base_url=base_url, api_key="k", max_concurrent_runs=runs),
 "async": lambda runs: AsyncThreadsClient(base_url, api_key="k", max_connections=runs),
 "sync": lambda runs: ThreadsClient(base_url, api_key="k", max_connections=runs),
}[sys.argv[3]](int(sys.argv[4]))
print(json.dumps(kept.events))
"""


@pytest.mark.parametrize("who", ["orchestrator", "async", "sync"])
def test_who_plans_more_connections_than_there_may_be_files_is_warned_at_once(who: str) -> None:
    (warning,) = told_by(PLANNED, "http://127.0.0.1:1/v1", "1024", who, "5000")

    assert warning["event"] == "client.few_files"
    assert warning["limit"] == 1024
    assert warning["connections"] == 5000 + 1250 + 500
    assert 0 < warning["open"] < 100
    needed = warning["open"] + warning["connections"]
    assert f"`ulimit -n {needed}`" in warning["remedy"]
    assert "resource.setrlimit(resource.RLIMIT_NOFILE" in warning["remedy"]


@pytest.mark.parametrize(
    ("files", "runs"),
    [pytest.param("7000", "5000", id="enough"), pytest.param("256", "1000", id="the usual number")],
)
def test_who_has_files_enough_or_plans_nothing_special_is_not_warned(files: str, runs: str) -> None:
    assert told_by(PLANNED, "http://127.0.0.1:1/v1", files, "orchestrator", runs) == []


def test_the_usual_number_is_what_clients_allow_that_were_told_nothing() -> None:
    for client in (AsyncThreadsClient, ThreadsClient):
        assert inspect.signature(client).parameters["max_connections"].default == USUAL_CONNECTIONS


CLIENT = """
import asyncio
from orchestrator.client import NO_RETRIES, AsyncThreadsClient, RetryPolicy, ThreadsClient
from orchestrator.errors import OutOfFiles

async def main():
    # The loop and the certificates need files of their own: both are there before none is left.
    async with AsyncThreadsClient(base_url, api_key="k", sleep=freed) as client:
        await client.get_thread("thread_1", retry=NO_RETRIES)
        taken.extend(use_up(0))
        try:
            await client.create_thread(base_url=sys.argv[3], api_key="k", retry=NO_RETRIES)
        except OutOfFiles as error:
            told.update(message=str(error), sent=error.sent)
        await client.create_thread(base_url=sys.argv[3], api_key="k")

def blocking():
    with ThreadsClient(base_url, api_key="k", sleep=lambda seconds: give_back()) as client:
        client.get_thread("thread_1", retry=NO_RETRIES)
        taken.extend(use_up(0))
        try:
            client.create_thread(base_url=sys.argv[3], api_key="k", retry=NO_RETRIES)
        except OutOfFiles as error:
            told.update(message=str(error), sent=error.sent)
        client.create_thread(base_url=sys.argv[3], api_key="k")

async def freed(seconds):
    give_back()

def give_back():
    for file in taken:
        os.close(file)
    taken.clear()

limit(100)
taken, told = [], {}
asyncio.run(main()) if sys.argv[2] == "async" else blocking()
told["events"] = [event for event in kept.events if event["event"] == "request.retried"]
print(json.dumps(told))
"""


@both
def test_a_request_that_finds_no_file_was_not_sent_and_is_tried_again(kind: str) -> None:
    with FaultyServer(reply(THREAD)) as first, FaultyServer(reply(THREAD)) as second:
        # By name: resolving needs files, too, and fails in its own words.
        by_name = second.url.replace("127.0.0.1", "localhost")
        told = told_by(CLIENT, first.url, kind, by_name)

        assert second.seen == ["POST /threads"]
    assert told["sent"] is False
    assert "nothing was sent: this process has all 100 files open that it may have" in told["message"]
    for word in ("RLIMIT_NOFILE", "ulimit -n", "resource.setrlimit", "POST /threads"):
        assert word in told["message"]
    assert [event["reason"] for event in told["events"]] == ["OutOfFiles"]


NAMED = """
from orchestrator.client import NO_RETRIES, ThreadsClient
from orchestrator.errors import APIConnectionError

limit(100)
with ThreadsClient(base_url, api_key="k", retry=NO_RETRIES) as client:
    client.get_thread("thread_1")
    taken = use_up(0)
    try:
        client.create_thread(base_url="http://nowhere.invalid/v1", api_key="k")
    except APIConnectionError as error:
        told = [type(error).__name__, repr(error.__cause__)]
for file in taken:
    os.close(file)
print(json.dumps(told))
"""


def test_a_name_that_cannot_be_resolved_without_files_is_not_taken_for_an_unknown_one() -> None:
    with FaultyServer(reply(THREAD)) as server:
        kind, cause = told_by(NAMED, server.url)

    assert "Too many open files" not in cause
    assert kind == "OutOfFiles"


def chained(*errors: BaseException) -> Exception:
    """What httpx raises that could not connect, for reasons of which each came of the next."""
    raised: list[BaseException] = [httpx.ConnectError("no"), httpcore.ConnectError("no"), *errors]
    for error, cause in pairwise(raised):
        error.__cause__ = cause
    assert isinstance(raised[0], Exception)
    return raised[0]


def test_each_address_of_a_host_may_have_been_tried_in_vain() -> None:
    tried = ExceptionGroup("all", [OSError(errno.ECONNREFUSED, "no"), OSError(errno.EMFILE, "no")])

    error = api_error(chained(OSError("all failed"), tried), method="GET", path="/threads")

    assert isinstance(error, OutOfFiles)


def test_a_machine_without_files_is_said_to_be_one() -> None:
    error = api_error(chained(OSError(errno.ENFILE, "no")), method="GET", path="/threads")

    assert isinstance(error, OutOfFiles)
    assert "fs.file-max" in str(error)


@pytest.mark.parametrize(
    "cause",
    [OSError(errno.ECONNREFUSED, "no"), socket.gaierror(socket.EAI_NONAME, "no such name")],
    ids=["refused", "unknown"],
)
def test_a_server_that_is_not_there_is_no_lack_of_files(cause: OSError) -> None:
    error = api_error(chained(cause), method="GET", path="/threads")

    assert type(error) is APIConnectionError
    assert not error.sent
