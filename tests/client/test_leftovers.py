"""What follows a complete answer is no answer: a connection that holds such bytes is not used again."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
import trustme
from drivers import both, driven
from faulty_server import DONE, PATIENCE_S, FaultyServer, Peer, Step, event, head, reply
from middlemen import tls_front

OURS = {"id": "thread_ours", "object": "thread"}
THEIRS = b'{"id": "thread_theirs", "object": "thread"}'
ANSWER = head(200, content_type="application/json", content_length=str(len(THEIRS))) + THEIRS
CREATED = event("thread.run.created", {"id": "run_1", "object": "thread.run", "status": "queued"})


def followed_by(body: bytes, headers: dict[str, str], rest: bytes) -> Step:
    def step(peer: Peer) -> bool:
        peer.read()
        peer.send(head(200, {"content-type": "application/json", **headers}) + body + rest)
        return True

    return step


LENGTH = {"content-length": str(len(THEIRS))}
CHUNKED = {"transfer-encoding": "chunked"}
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(THEIRS), THEIRS)
LEFTOVERS = {
    "another answer": followed_by(THEIRS, LENGTH, ANSWER),
    "half an answer": followed_by(THEIRS, LENGTH, ANSWER[:20]),
    "a byte": followed_by(THEIRS, LENGTH, b"x"),
    "a line end": followed_by(THEIRS, LENGTH, b"\r\n"),
    "another answer after chunks": followed_by(IN_CHUNKS, CHUNKED, ANSWER),
    "a byte after chunks": followed_by(IN_CHUNKS, CHUNKED, b"x"),
    "a lot": followed_by(THEIRS, LENGTH, ANSWER * 2000),
}
leftovers = pytest.mark.parametrize("step", LEFTOVERS.values(), ids=LEFTOVERS.keys())


def two_calls(kind: str, url: str, **settings: Any) -> list[str]:
    with driven(kind, url, **settings) as driver:
        return [driver.call("get_thread", "thread_1").id for _ in range(2)]


@both
@leftovers
def test_bytes_after_an_answer_are_not_taken_for_the_next_one(kind: str, step: Step) -> None:
    with FaultyServer(step, default=reply(OURS)) as server:
        assert two_calls(kind, server.url) == ["thread_theirs", "thread_ours"]
        assert server.accepted == 2
        assert len(server.received) == 2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())


@both
@leftovers
def test_neither_are_they_under_tls(
    kind: str, step: Step, certified: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    with FaultyServer(step, default=reply(OURS)) as server, tls_front(server.url, certified) as port:
        ids = two_calls(kind, f"https://127.0.0.1:{port}/v1", verify=trusting)
        assert ids == ["thread_theirs", "thread_ours"]
        assert server.accepted == 2


def in_records(context: ssl.SSLContext, *records: bytes) -> Step:
    """Answer over TLS, with a record for each part, all in one write to the socket."""

    def step(peer: Peer) -> bool:
        sock, incoming, outgoing = peer._sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        received = b""
        while b"\r\n\r\n" not in received:
            try:
                tls.do_handshake()
                received += tls.read()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                data = sock.recv(65536)
                if not data:
                    return False
                incoming.write(data)
        for record in records:
            tls.write(record)
        sock.sendall(outgoing.read())
        peer.server.note_unread()
        return True

    return step


@both
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_record_after_the_answers_own_is_not_taken_for_the_next_answer(
    kind: str, version: ssl.TLSVersion, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certified.minimum_version = certified.maximum_version = version
    authority.issue_cert("127.0.0.1").configure_cert(certified)
    ours = ANSWER.replace(b"theirs", b"ours!!")
    with FaultyServer(in_records(certified, ANSWER, ANSWER), default=in_records(certified, ours)) as server:
        ids = two_calls(kind, server.url.replace("http:", "https:"), verify=trusting)
        assert ids == ["thread_theirs", "thread_ours!!"]
        assert server.accepted == 2


@both
def test_bytes_that_come_while_a_connection_is_idle_are_not_taken_for_an_answer(kind: str) -> None:
    gate = threading.Event()

    def late(peer: Peer) -> bool:
        peer.read()
        peer.send(ANSWER)
        assert gate.wait(PATIENCE_S)
        peer.send(ANSWER)
        peer.server.note_unread()
        return True

    with FaultyServer(late, default=reply(OURS)) as server, driven(kind, server.url) as driver:
        driver.call("get_thread", "thread_1")
        gate.set()
        server.wait_until(lambda server: server.unread == 1)
        assert driver.call("get_thread", "thread_1").id == "thread_ours"
        assert server.accepted == 2


@both
def test_an_answer_and_nothing_more_leaves_its_connection_to_the_next(kind: str) -> None:
    script = [
        followed_by(THEIRS, LENGTH, b""),
        followed_by(IN_CHUNKS, CHUNKED, b""),
        reply(OURS),
    ]
    with FaultyServer(*script, default=reply(OURS)) as server, driven(kind, server.url) as driver:
        for _ in range(4):
            driver.call("get_thread", "thread_1")
        assert server.accepted == 1


@both
def test_bytes_after_a_stream_are_not_taken_for_an_answer(kind: str) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (CREATED, DONE)) + b"0\r\n\r\n"
    step = followed_by(body, {**CHUNKED, "content-type": "text/event-stream"}, ANSWER)
    with FaultyServer(step, default=reply(OURS)) as server, driven(kind, server.url) as driver:
        events = driver.stream("stream_run", "thread_1", assistant_id="asst_1")
        assert [one.event for one in events] == ["thread.run.created", "done"]
        assert driver.call("get_thread", "thread_1").id == "thread_ours"
