"""Who may use a client: one loop, one process, no thread that runs a loop; and what closing it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from drivers import KEY, driven
from faulty_server import DONE, PATIENCE_S, FaultyServer, Peer, event, head, held, reply, stall

from orchestrator.client import AsyncThreadsClient, ThreadsClient
from orchestrator.errors import APIConnectionError

THREAD = {"id": "thread_1", "object": "thread"}
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})
OPEN_STREAM = head(200, {"content-type": "text/event-stream"}) + CREATED


def test_a_blocking_client_refuses_to_block_an_event_loop() -> None:
    async def use(client: ThreadsClient) -> None:
        with pytest.raises(RuntimeError, match="use AsyncThreadsClient and await"):
            client.get_thread("thread_1")
        with (
            pytest.raises(RuntimeError, match="use AsyncThreadsClient and await"),
            client.stream_run("thread_1", assistant_id="asst_1"),
        ):
            pass
        assert (await asyncio.to_thread(client.get_thread, "thread_1")).id == "thread_1"

    with FaultyServer(default=reply(THREAD)) as server, ThreadsClient(server.url, api_key=KEY) as client:
        asyncio.run(use(client))
        assert len(server.received) == 1


def test_of_two_loops_that_come_at_once_one_gets_the_client() -> None:
    outcomes: list[str] = []

    def run(client: AsyncThreadsClient, together: threading.Barrier) -> None:
        async def use() -> None:
            together.wait(PATIENCE_S)
            try:
                outcomes.append((await client.get_thread("thread_1")).id)
                together.wait(PATIENCE_S)
                await client.aclose()
            except RuntimeError as error:
                outcomes.append(str(error))
                together.wait(PATIENCE_S)

        asyncio.run(use())

    with FaultyServer(default=reply(THREAD)) as server:
        client, together = AsyncThreadsClient(server.url, api_key=KEY), threading.Barrier(2)
        threads = [threading.Thread(target=run, args=(client, together)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.accepted == 1
    assert len(outcomes) == 2
    assert "thread_1" in outcomes
    assert any("another event loop" in outcome for outcome in outcomes)


FIRST_USE = """
import os, signal, sys, threading, time
from orchestrator.client import ThreadsClient

# First, or a fork may copy the lock of a module that the other thread is importing.
with ThreadsClient(sys.argv[1], api_key=sys.argv[2]) as client:
    client.get_thread("thread_1")
codes = set()
for step in range(8):
    client = ThreadsClient(sys.argv[1], api_key=sys.argv[2])
    user = threading.Thread(target=client.get_thread, args=("thread_1",))
    user.start()
    time.sleep(step * 0.004)  # another moment of the first use each time
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            client.get_thread("thread_1")
        except Exception:
            pass  # whichever it is, it came back
        os._exit(0)
    user.join()
    client.close()
    codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


def test_a_fork_in_the_middle_of_the_first_use_does_not_hang_the_child() -> None:
    # A process of its own, and not measured: a fork may copy a lock of coverage's own as held.
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    with FaultyServer(default=reply(THREAD)) as server:
        told = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FIRST_USE, server.url, KEY],
            capture_output=True,
            text=True,
            env=environ,
            timeout=100,
            check=False,
        )
    assert (told.stdout, told.stderr) == ("{0}\n", "")


def test_closing_that_is_cancelled_closes_every_connection() -> None:
    many, gate = 20, threading.Event()

    async def main(server: FaultyServer) -> None:
        client = AsyncThreadsClient(server.url, api_key=KEY)
        tasks = [asyncio.create_task(client.get_thread("thread_1")) for _ in range(many)]
        await asyncio.to_thread(server.wait_until, lambda server: server.accepted == many)
        gate.set()
        await asyncio.gather(*tasks)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 0)

    with FaultyServer(default=held(gate, reply(THREAD))) as server:
        asyncio.run(main(server))


def test_threads_that_come_at_once_share_one_blocking_client() -> None:
    many = 6
    with FaultyServer(default=reply(THREAD)) as server, driven("sync", server.url) as driver:
        together = threading.Barrier(many)

        def use() -> None:
            together.wait(PATIENCE_S)
            driver.call("get_thread", "thread_1")

        threads = [threading.Thread(target=use) for _ in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.received) == many
        driver.client.close()
        server.wait_until(lambda server: server.open_connections == 0)


@pytest.mark.parametrize("_", range(20))
def test_closing_wakes_a_thread_that_reads_a_stream_and_does_not_seem_its_end(_: int) -> None:
    """Which of shutdown and close the thread meets is a matter of microseconds: hence several times."""
    ended: list[BaseException | None] = []
    reading = threading.Event()

    def read(client: ThreadsClient) -> None:
        try:
            with client.stream_run("thread_1", assistant_id="asst_1") as stream:
                for _ in stream:
                    reading.set()
        except APIConnectionError as error:
            ended.append(error)
        else:
            ended.append(None)

    with FaultyServer(stall(OPEN_STREAM)) as server:
        client = ThreadsClient(server.url, api_key=KEY, stream_idle_s=PATIENCE_S)
        reader = threading.Thread(target=read, args=(client,))
        reader.start()
        assert reading.wait(PATIENCE_S)
        client.close()
        reader.join(PATIENCE_S / 4)
        assert not reader.is_alive()
        assert isinstance(ended[0], APIConnectionError)


def test_a_forked_child_that_leaves_a_stream_does_not_end_its_parents() -> None:
    gate = threading.Event()

    def finish(peer: Peer) -> bool:
        peer.read()
        peer.send(OPEN_STREAM)
        assert gate.wait(PATIENCE_S)
        peer.send(DONE)
        return False

    with (
        FaultyServer(finish) as server,
        ThreadsClient(server.url, api_key=KEY) as client,
        client.stream_run("thread_1", assistant_id="asst_1") as stream,
    ):
        events = iter(stream)
        names = [next(events).event]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
            child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE_S))
            stream.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        gate.set()
        names += [one.event for one in events]
    assert names == ["thread.run.created", "done"]
