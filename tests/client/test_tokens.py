"""Tokens of a provider: asked for once, renewed once when they are refused, and shown nowhere."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from drivers import QUICK, both, driven
from faulty_server import (
    DONE,
    PATIENCE_S,
    FaultyServer,
    Peer,
    Step,
    chunks,
    event,
    failure,
    hang_up,
    held,
    refused_url,
    reply,
)

from orchestrator.client import NO_RETRIES, AsyncThreadsClient, ThreadsClient, endpoints
from orchestrator.errors import APIConnectionError, APITimeout, AuthenticationError, OrchestratorError

THREAD = {"id": "thread_1", "object": "thread"}
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})


class Provider:
    """Gives `token-1`, `token-2`, and so on; remembers on which threads it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.threads: list[int] = []

    def __call__(self) -> str:
        self.asked += 1
        self.threads.append(threading.get_ident())
        return f"token-{self.asked}"


class AsyncProvider(Provider):
    async def __call__(self) -> str:  # type: ignore[override]  # what is given, not how
        await asyncio.sleep(0)
        return super().__call__()


def accepting(*tokens: str, step: Step = reply(THREAD)) -> Step:  # noqa: B008 - a step has no state
    """Answer those who bring one of these tokens, and refuse all others."""

    def check(peer: Peer) -> bool:
        received = peer.read()
        if received.headers.get("authorization", "").removeprefix("Bearer ") in tokens:
            return step(Answered(peer))  # type: ignore[arg-type]  # as much of a peer as a step needs
        return failure(401)(Answered(peer))  # type: ignore[arg-type]  # the same

    return check


class Answered:
    """A peer whose request was read already."""

    def __init__(self, peer: Peer) -> None:
        self.send = peer.send

    def read(self) -> None:
        pass


def sent_tokens(server: FaultyServer) -> list[str]:
    return [one.headers["authorization"].removeprefix("Bearer ") for one in server.received]


providers = pytest.mark.parametrize(
    ("kind", "make"),
    [("sync", Provider), ("async", Provider), ("async", AsyncProvider)],
    ids=["blocking", "asynchronous", "asynchronous and awaited"],
)


@providers
def test_a_token_is_asked_for_when_it_is_needed_and_kept(kind: str, make: type[Provider]) -> None:
    provider = make()
    with FaultyServer(default=reply(THREAD)) as server, driven(kind, server.url, api_key=provider) as driver:
        assert provider.asked == 0
        for _ in range(3):
            driver.call("get_thread", "thread_1")
        driver.client = (client := driver.client).with_options(organization="org-1")
        driver.call("get_thread", "thread_1")
        driver.client = client
    assert sent_tokens(server) == ["token-1"] * 4


@providers
def test_a_refused_token_is_renewed_once_and_the_request_sent_again(kind: str, make: type[Provider]) -> None:
    with FaultyServer(default=accepting("token-2")) as server:
        with driven(kind, server.url, api_key=make()) as driver:
            assert driver.call("create_run", "thread_1", assistant_id="asst_1").id == "thread_1"
            driver.call("get_thread", "thread_1")
            assert driver.slept == []
        assert sent_tokens(server) == ["token-1", "token-2", "token-2"]
        assert server.received[0].body == server.received[1].body


@providers
def test_a_second_refusal_is_raised(kind: str, make: type[Provider]) -> None:
    with FaultyServer(default=failure(401)) as server, driven(kind, server.url, api_key=make()) as driver:
        with pytest.raises(AuthenticationError):
            driver.call("get_thread", "thread_1")
        assert sent_tokens(server) == ["token-1", "token-2"]
        with pytest.raises(AuthenticationError):
            driver.call("get_thread", "thread_1")
        assert sent_tokens(server)[2:] == ["token-2", "token-3"]


@providers
def test_one_attempt_renews_a_token_too(kind: str, make: type[Provider]) -> None:
    with FaultyServer(default=accepting("token-2")) as server:
        with driven(kind, server.url, api_key=make()) as driver:
            assert driver.attempt(endpoints.get_thread("thread_1")).value.id == "thread_1"
        assert sent_tokens(server) == ["token-1", "token-2"]


@providers
def test_streams_renew_a_token_too(kind: str, make: type[Provider]) -> None:
    stream = accepting("token-2", step=chunks([CREATED, DONE]))
    with FaultyServer(default=stream) as server, driven(kind, server.url, api_key=make()) as driver:
        events = driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert [one.event for one in events] == ["thread.run.created", "done"]
        call = endpoints.stream_run("thread_1", assistant_id="asst_1")
        assert len(driver.attempt_stream(call, until=lambda _: False)) == 2
        assert sent_tokens(server) == ["token-1", "token-2", "token-2"]


@both
def test_a_key_that_is_refused_is_not_sent_again(kind: str) -> None:
    with FaultyServer(default=failure(401)) as server, driven(kind, server.url) as driver:
        with pytest.raises(AuthenticationError):
            driver.call("get_thread", "thread_1")
        assert len(server.received) == 1


@both
def test_what_goes_wrong_after_a_renewal_is_retried_by_the_policy(kind: str) -> None:
    provider = Provider()
    with (
        FaultyServer(failure(401), hang_up, default=accepting("token-2")) as server,
        driven(kind, server.url, api_key=provider) as driver,
    ):
        driver.call("get_thread", "thread_1")
        assert sent_tokens(server) == ["token-1", "token-2", "token-2"]


def refused_together(number: int, *tokens: str) -> Step:
    """Answer as `accepting`, but keep refusals back until so many are due."""
    barrier, check = threading.Barrier(number), accepting(*tokens)

    def step(peer: Peer) -> bool:
        class Late(Answered):
            def __init__(self) -> None:
                self.read = peer.read  # type: ignore[method-assign, assignment]  # the peer's own
                self.send = self.late

            def late(self, data: bytes) -> None:
                if b" 401 " in data[:16]:
                    barrier.wait(PATIENCE_S)
                peer.send(data)

        return check(Late())  # type: ignore[arg-type]  # as much of a peer as a step needs

    return step


MANY = 6


def test_many_refused_at_once_ask_once_asynchronously() -> None:
    async def main(url: str) -> None:
        client = AsyncThreadsClient(url, api_key=provider, retry=NO_RETRIES)
        async with client:
            await asyncio.gather(*(client.get_thread("thread_1") for _ in range(MANY)))

    provider = AsyncProvider()
    with FaultyServer(default=refused_together(MANY, "token-2")) as server:
        asyncio.run(main(server.url))
        assert sorted(sent_tokens(server)) == ["token-1"] * MANY + ["token-2"] * MANY
    assert provider.asked == 2


def test_many_refused_at_once_ask_once_in_threads() -> None:
    provider = Provider()
    with (
        FaultyServer(default=refused_together(MANY, "token-2")) as server,
        ThreadsClient(server.url, api_key=provider, retry=NO_RETRIES) as client,
    ):
        threads = [threading.Thread(target=client.get_thread, args=("thread_1",)) for _ in range(MANY)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sent_tokens(server)) == ["token-1"] * MANY + ["token-2"] * MANY
    assert provider.asked == 2


def test_a_blocking_provider_never_blocks_the_loop() -> None:
    gate = threading.Event()

    def provider() -> str:
        assert threading.current_thread() is not threading.main_thread()
        assert gate.wait(PATIENCE_S)
        return "token-1"

    async def main(url: str) -> None:
        async with AsyncThreadsClient(url, api_key=provider) as client:
            call = asyncio.create_task(client.get_thread("thread_1"))
            await asyncio.sleep(0.01)
            gate.set()  # reached, because the loop turns
            assert (await call).id == "thread_1"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with FaultyServer(default=reply(THREAD)) as server:
        asyncio.run(main(server.url))


def test_a_plain_function_may_return_what_is_to_be_awaited() -> None:
    def provider() -> Awaitable[str]:
        return AsyncProvider()()

    with FaultyServer(default=reply(THREAD)) as server:
        with driven("async", server.url, api_key=provider) as driver:
            driver.call("get_thread", "thread_1")
        assert sent_tokens(server) == ["token-1"]


async def _coroutine_function() -> str:
    return "token"


@pytest.mark.parametrize(
    "provider",
    [_coroutine_function, AsyncProvider(), AsyncProvider().__call__, functools.partial(_coroutine_function)],
    ids=["function", "object", "method", "partial"],
)
def test_the_blocking_client_refuses_to_await(provider: Callable[[], Awaitable[str]]) -> None:
    with pytest.raises(TypeError, match="ThreadsClient cannot await api_key"):
        ThreadsClient("http://127.0.0.1/", api_key=provider)
    with ThreadsClient("http://127.0.0.1/") as client:
        with pytest.raises(TypeError, match="ThreadsClient cannot await api_key"):
            client.with_options(api_key=provider)
        with pytest.raises(TypeError, match="ThreadsClient cannot await api_key"):
            client.get_thread("thread_1", api_key=provider)


@both
@pytest.mark.parametrize("given", [None, 3, "", "top secret\n", b"bytes"], ids=repr)
def test_what_is_no_token_is_not_sent(kind: str, given: Any) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url, api_key=lambda: given, retry=NO_RETRIES) as driver:
            with pytest.raises(APIConnectionError, match="the token provider failed: ValueError") as caught:
                driver.call("get_thread", "thread_1")
            assert not caught.value.sent
            assert "top" not in "".join(traceback.format_exception(caught.value))
        assert server.accepted == 0


def test_what_would_have_to_be_awaited_is_no_token_for_the_blocking_client() -> None:
    def provider() -> Awaitable[str]:
        return _coroutine_function()

    with (
        driven("sync", "http://127.0.0.1/", api_key=provider) as driver,
        pytest.raises(APIConnectionError, match="the token provider failed: TypeError"),
    ):
        driver.call("get_thread", "thread_1")


@both
def test_a_provider_that_fails_sent_nothing_and_is_asked_again(kind: str) -> None:
    asked: list[int] = []

    def provider() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise LookupError("the vault is sealed")
        return "token-3"

    with FaultyServer(default=reply(THREAD)) as server, driven(kind, server.url, api_key=provider) as driver:
        assert driver.call("create_run", "thread_1", assistant_id="asst_1").id == "thread_1"
        assert len(driver.slept) == 2
        assert sent_tokens(server) == ["token-3"]


@both
def test_a_provider_that_fails_is_named_without_its_own_words(kind: str) -> None:
    def provider() -> str:
        raise LookupError("sealed with hunter2")

    with driven(kind, "http://127.0.0.1/", api_key=provider, retry=NO_RETRIES) as driver:
        with pytest.raises(APIConnectionError) as caught:
            driver.call("get_thread", "thread_1")
        assert not caught.value.sent
        assert str(caught.value) == (
            "nothing was sent (the token provider failed: LookupError) (GET /threads/thread_1)"
        )
        assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.alone
def test_a_provider_that_never_answers_costs_no_more_than_its_share_and_leaves_no_task() -> None:
    async def provider() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with AsyncThreadsClient("http://127.0.0.1/", api_key=provider, retry=NO_RETRIES) as client:
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(APITimeout, match="took too long") as caught:
                    await client.get_thread("thread_1", timeout=0.5)
                assert not caught.value.sent
                assert time.monotonic() - begun < 0.4
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_plain_function_that_never_returns_does_not_keep_the_process_alive() -> None:
    program = """
import asyncio, threading
from orchestrator.client import NO_RETRIES, AsyncThreadsClient
from orchestrator.errors import APITimeout

async def main():
    async with AsyncThreadsClient("http://127.0.0.1/", api_key=threading.Event().wait) as client:
        try:
            await client.get_thread("thread_1", timeout=0.5, retry=NO_RETRIES)
        except APITimeout:
            print("left")

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert ended.stdout == "left\n"


def test_a_provider_that_is_slower_than_an_attempt_is_asked_once() -> None:
    gate, asked = threading.Event(), []

    def slow() -> str:
        asked.append(1)
        gate.wait(PATIENCE_S)
        return "token-1"

    async def story() -> None:
        with FaultyServer(default=accepting("token-1")) as server:
            async with AsyncThreadsClient(server.url, api_key=slow, timeout=0.5, retry=NO_RETRIES) as client:
                for _ in range(2):
                    with pytest.raises(APITimeout):
                        await client.get_thread("thread_1")
                gate.set()
                assert (await client.get_thread("thread_1", timeout=PATIENCE_S)).id == "thread_1"

    asyncio.run(story())
    assert len(asked) == 1


def test_cancelling_one_who_waits_for_a_token_harms_no_other() -> None:
    gate = asyncio.Event()
    asked: list[int] = []

    async def provider() -> str:
        asked.append(1)
        await gate.wait()
        return "token-1"

    async def main(url: str) -> None:
        async with AsyncThreadsClient(url, api_key=provider) as client:
            first, second = (asyncio.create_task(client.get_thread("thread_1")) for _ in range(2))
            await asyncio.sleep(0.01)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            gate.set()
            assert (await second).id == "thread_1"
        assert len(asked) == 1

    with FaultyServer(default=reply(THREAD)) as server:
        asyncio.run(main(server.url))


@both
def test_a_blocking_provider_that_comes_too_late_has_sent_nothing(kind: str) -> None:
    def provider() -> str:
        time.sleep(0.3)  # a provider's own pace, which is what the test is about
        return "token-1"

    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url, api_key=provider, retry=NO_RETRIES, timeout=0.2) as driver:
            with pytest.raises(APITimeout) as caught:
                driver.call("create_run", "thread_1", assistant_id="asst_1")
            assert not caught.value.sent
        assert server.accepted == 0


@both
def test_a_provider_may_be_given_to_one_call_or_to_a_run_of_them(kind: str) -> None:
    provider = Provider()
    with FaultyServer(default=accepting("token-2", "token-3")) as server:
        with driven(kind, server.url) as driver:
            driver.call("get_thread", "thread_1", api_key=provider)
            driver.client = (client := driver.client).with_options(api_key=provider)
            driver.call("get_thread", "thread_1")
            driver.call("get_thread", "thread_1")
            driver.client = client
        assert sent_tokens(server) == ["token-1", "token-2", "token-3", "token-3"]


@both
def test_a_header_of_the_users_own_stands_over_the_provider(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server:
        with driven(kind, server.url, api_key=Provider(), headers={"Authorization": "Own x"}) as driver:
            driver.call("get_thread", "thread_1")
        assert server.received[0].headers["authorization"] == "Own x"


@both
def test_a_token_goes_to_no_other_server(kind: str) -> None:
    with FaultyServer(default=reply(THREAD)) as server, FaultyServer(default=reply(THREAD)) as other:
        with (
            driven(kind, server.url, api_key=Provider()) as driver,
            pytest.raises(ValueError, match="pass the api_key for it too"),
        ):
            driver.call("get_thread", "thread_1", base_url=other.url)
        assert other.received == []


@both
def test_no_token_shows_anywhere(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    script = [failure(401), hang_up, failure(400)]
    with (
        FaultyServer(*script, default=failure(401)) as server,
        driven(kind, server.url, api_key=Provider(), retry=QUICK) as driver,
    ):
        for options in ({}, {}, {"base_url": refused_url(), "api_key": Provider()}):
            with pytest.raises(OrchestratorError) as caught:
                driver.call("get_thread", "thread_1", **options)
            told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            shown += ["".join(told.format()), repr(vars(caught.value))]
            shown.append(repr(pickle.dumps(caught.value)))
        shown += [repr(driver.client), str(vars(driver.client)), repr(driver.client._settings)]
        shown.append(repr(driver.client._settings.request(endpoints.get_run("t", "r"))))
        assert "token-" in str(sent_tokens(server))
    for text in (*shown, caplog.text):
        assert "token-1" not in text
        assert "token-2" not in text


@both
def test_no_report_with_locals_shows_a_token_that_was_being_written(kind: str) -> None:
    gate = threading.Event()
    large = {"x-large": "x" * 8_000_000}  # more than the sockets of both sides hold
    with FaultyServer(held(gate, hang_up)) as server:
        with driven(kind, server.url, api_key=Provider(), retry=NO_RETRIES, timeout=0.5) as driver:
            with pytest.raises(APITimeout) as caught:
                driver.call("get_thread", "thread_1", headers=large)
            told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert "token-1" not in "".join(told.format())
        gate.set()


@pytest.mark.parametrize("client", [ThreadsClient, AsyncThreadsClient])
def test_a_client_is_not_pickled(client: type) -> None:
    for key in ("sk-secret", Provider()):
        with pytest.raises(TypeError, match="are not pickled"):
            pickle.dumps(client("http://127.0.0.1/", api_key=key))
