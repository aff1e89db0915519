"""A TLS leg over a real connection: what arrived before a reset can be read, whatever was to be written meanwhile."""

from __future__ import annotations

import hashlib
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from uuid import uuid4

import pytest
from twisted.internet.task import Clock

from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.leg import EOF, WANT, ConnectionBrokenError
from scistream.s2ds.relay.tcp_info import bytes_to_send
from scistream.s2ds.relay.tls import TlsLeg
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret, server_name
from support.applications import MIB, NOISE, reset
from support.waiting import until

SIZES = [1, 20_000, 60_000]
"""Bytes that fit into a receive buffer, so that all of them have arrived before the reset."""


class Nothing:
    """Takes the place of a poller, a detector of dead peers, and an owner."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


@pytest.fixture(scope="module")
def contexts() -> tuple[Any, Any]:
    uid = str(uuid4())
    secrets = {role: StreamSecret() for role in (PROD, CONS)}
    bundles = issue_credentials(uid, 1, 600.0, {role: secret.csr for role, secret in secrets.items()})
    server, client = (secrets[role].credentials(bundles[role], uid, role).context() for role in (PROD, CONS))
    return server, client


@pytest.fixture
def legs(contexts: tuple[Any, Any]) -> Iterator[tuple[TlsLeg, TlsLeg]]:
    nothing: Any = Nothing()
    with ExitStack() as opened:
        listener = opened.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        ends = [socket.create_connection(listener.getsockname(), timeout=10.0), listener.accept()[0]]
        made = []
        for sock, context, name in ((ends[1], contexts[0], None), (ends[0], contexts[1], server_name("u", 0))):
            sock.setblocking(False)
            opened.enter_context(closing(sock))
            made.append(TlsLeg(nothing, sock, nothing, nothing, "the other gateway", context, name))
        done: list[None] = []
        for leg in made:
            leg.handshake(Clock(), 10.0).addCallback(done.append)

        def advance() -> bool:
            for leg in made:
                if leg.reader is not None:
                    leg.readable = leg.writable = True
                    leg.reader.advance()
            return len(done) == len(made)

        until(advance, lambda: "no handshake")
        yield made[0], made[1]


def everything(leg: TlsLeg) -> bytes:
    """Return what a leg reads until it has broken."""
    buffer, data = Buffers(65536).borrow(), b""
    while True:
        try:
            count = leg.read_into(buffer, buffer.view.nbytes)
        except ConnectionBrokenError:
            return data
        assert count not in (WANT, EOF), "the end is a clean one"
        data += bytes(buffer.view[:count])


DOINGS: dict[str, Callable[[TlsLeg], object]] = {
    "write": lambda leg: leg.write(Buffers(100).borrow(), 0, 100),
    "bulk": lambda leg: leg.write(Buffers(MIB).borrow(), 0, MIB),
    "line": lambda leg: leg.write_line(b"an answer"),
    "end": lambda leg: leg.finish_writing(),
}


class Waiting:
    """A reader whose sink takes nothing."""

    waits = True

    def advance(self) -> None:
        """Do nothing."""


def reset_after(far: TlsLeg, near: TlsLeg, size: int) -> None:
    """Let one leg send some bytes and reset the connection, until the other has both."""
    sent = Buffers(size).borrow()
    sent.view[:] = NOISE[:size]
    done = 0
    while done < size:
        done += far.write(sent, done, size)
    until(lambda: not bytes_to_send(far.sock), lambda: "not all bytes have arrived")
    reset(far.sock)
    poll = select.poll()
    poll.register(near.sock, select.POLLERR)
    assert poll.poll(10_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("doing", list(DOINGS))
def test_what_came_before_a_reset_can_be_read_after_an_attempt_to_write(
    legs: tuple[TlsLeg, TlsLeg], size: int, doing: str
) -> None:
    near, far = legs
    reset_after(far, near, size)
    with pytest.raises(ConnectionBrokenError, match="reset the connection") as broken:
        DOINGS[doing](near)
    assert broken.value.leg is near
    assert everything(near) == NOISE[:size]


def test_a_leg_is_empty_only_when_all_that_arrived_was_read(legs: tuple[TlsLeg, TlsLeg]) -> None:
    near, far = legs
    buffer = Buffers(65536).borrow()

    def arrive(*sizes: int) -> None:
        for size in sizes:
            assert far.write(buffer, 0, size) == size
        until(lambda: not bytes_to_send(far.sock), lambda: "not all bytes have arrived")
        near.event(select.EPOLLIN)

    def read(room: int) -> tuple[int, bool]:
        near.looks_empty = False
        return near.read_into(buffer, room), near.looks_empty

    arrive(64)
    assert read(65536) == (64, True)
    assert near.is_empty()
    assert not near.readable
    arrive(64, 100)
    assert read(65536) == (64, True)
    assert not near.is_empty()
    assert near.readable
    assert near.read_into(buffer, 65536) == 100
    arrive(64)
    assert read(60) == (60, False)
    assert near.read_into(buffer, 65536) == 4
    arrive(64)
    assert read(64) == (64, False)
    assert near.read_into(buffer, 65536) == WANT
    arrive(64)
    assert far.finish_writing()
    until(lambda: not bytes_to_send(far.sock), lambda: "the end has not arrived")
    assert read(65536) == (64, True)
    assert not near.is_empty()
    assert near.read_into(buffer, 65536) == EOF
    near.is_ending, near.is_first = True, True
    assert not near.is_empty()


@pytest.mark.parametrize("doing", list(DOINGS))
def test_what_waits_to_be_read_is_not_lost_when_a_reset_comes_during_a_write(
    legs: tuple[TlsLeg, TlsLeg], doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = legs
    near.reader = Waiting()
    reset_after(far, near, 60_000)
    monkeypatch.setattr(TlsLeg, "_check_reset", lambda _leg: None)  # as if the reset had come a moment later
    with pytest.raises(ConnectionBrokenError, match="reset the connection") as broken:
        DOINGS[doing](near)
    assert broken.value.leg is near
    assert everything(near) == NOISE[:60_000]


@pytest.mark.parametrize("ways", ["AAAA", "AD", "DA", "ADDA"])
def test_bytes_arrive_whether_more_wait_to_be_read_or_not(legs: tuple[TlsLeg, TlsLeg], ways: str) -> None:
    """A is a write while bytes wait to be read, D one while none do; the socket is full now and then."""
    near, far = legs
    near.reader = Waiting()
    size = 8 * MIB
    sent, heard = Buffers(size).borrow(), Buffers(MIB).borrow()
    data = (NOISE * (size // len(NOISE) + 1))[:size]
    sent.view[:] = data
    done, got, turn, full = 0, hashlib.sha256(), 0, 0
    ended = False
    while True:
        near.readable = ways[turn % len(ways)] == "A"
        turn += 1
        if done < size:
            taken = near.write(sent, done, min(size, done + MIB // 2))
            done += taken
            full += not taken
            if taken:
                continue
        elif not ended:
            ended = near.finish_writing()
        count = far.read_into(heard, MIB)
        if count == EOF:
            break
        got.update(heard.view[: max(0, count)])
    assert full > 2, "the socket has never been full"
    assert got.digest() == hashlib.sha256(data).digest()
