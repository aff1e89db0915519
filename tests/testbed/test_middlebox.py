"""The middlebox on the WAN does to connections of plain sockets what it is told to."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest
from middlebox import MULTIPATH, Middlebox, parse, reset, without_multipath
from testbed import Testbed
from testbed_addresses import Addresses

from support.applications import MIB, receive_exactly
from support.requirements import missing
from support.waiting import PATIENCE, until

IDLE = 0.4
"""Seconds after which the middlebox takes a connection for idle in these tests."""
IPPROTO_MPTCP, SOL_MPTCP, MPTCP_INFO = 262, 284, 1
FORTH_AND_BACK = (("user", "pgw"), ("pgw", "user"))
Pair = tuple[socket.socket, socket.socket]


@contextmanager
def connection(testbed: Testbed, v: Addresses, protocol: int = 0) -> Iterator[Pair]:
    """Open a connection from the user to the producer's gateway, over which data has passed."""
    with ExitStack() as opened:
        listener = opened.enter_context(closing(testbed.open_socket("pgw", like=v.pgw, protocol=protocol)))
        listener.bind((v.pgw, 0))
        listener.listen()
        user = opened.enter_context(closing(testbed.open_socket("user", like=v.pgw, protocol=protocol)))
        user.connect(listener.getsockname()[:2])
        gateway = opened.enter_context(closing(listener.accept()[0]))
        gateway.settimeout(PATIENCE)
        exchange((user, gateway))
        yield user, gateway


def exchange(pair: Pair) -> None:
    """Pass a byte in each direction."""
    for source, target in (pair, pair[::-1]):
        source.sendall(b"?")
        assert receive_exactly(target, 1) == b"?"


def keep_busy(pair: Pair, seconds: float) -> None:
    """Pass data so often that the connection is never idle."""
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        exchange(pair)
        time.sleep(IDLE / 20)


def is_silent(pair: Pair, seconds: float) -> bool:
    """Return True if nothing arrives at either end, and no end of the connection."""
    poll = select.poll()
    for sock in pair:
        poll.register(sock, select.POLLIN)
    return not poll.poll(1000 * seconds)


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_connection_that_was_idle_is_forgotten_silently_and_a_busy_one_is_not(wan: Testbed, version: str) -> None:
    v: Addresses = getattr(wan, version)
    wan.wan(("user", "pgw"), forget_idle=f"{IDLE}s")
    with connection(wan, v) as idle, connection(wan, v) as busy:
        before = wan.counters()
        keep_busy(busy, 2 * IDLE)
        for sock in idle:
            sock.sendall(b"!")
        until(
            lambda: min((wan.counters() - before).of(*way).dropped_forgotten for way in FORTH_AND_BACK) > 0,
            lambda: f"{wan.counters() - before}",
        )
        exchange(busy)
        assert is_silent(idle, IDLE), "nothing arrives, not even a reset"
        with connection(wan, v) as later:
            exchange(later)
        assert (wan.counters() - before).between("user", "pgw").resets == 0
        wan.wan(forget_idle="0")
        for sock in idle:  # TCP has sent the bytes again and again
            assert receive_exactly(sock, 1) == b"!"


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_connection_that_was_idle_is_reset_at_both_ends_and_a_busy_one_is_not(wan: Testbed, version: str) -> None:
    v: Addresses = getattr(wan, version)
    wan.wan(("user", "pgw"), reset_idle=f"{IDLE}s")
    with connection(wan, v) as idle, connection(wan, v) as busy:
        before = wan.counters()
        keep_busy(busy, 2 * IDLE)
        for sock in idle:  # which send nothing themselves
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        exchange(busy)
        assert (wan.counters() - before).of("user", "pgw").resets == 1
        assert (wan.counters() - before).of("pgw", "user").resets == 1


def test_a_connection_older_than_the_middlebox_passes_it_until_it_is_idle(wan: Testbed) -> None:
    with connection(wan, wan.v4) as pair:
        wan.wan(forget_idle=f"{IDLE}s")
        keep_busy(pair, 2 * IDLE)
        wan.wan(forget_idle="0", reset_idle=f"{IDLE}s")
        exchange(pair)
        for sock in pair:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_a_connection_that_has_ended_is_not_reset(wan: Testbed) -> None:
    wan.wan(("user", "pgw"), reset_idle=f"{IDLE}s")
    with connection(wan, wan.v4):
        before = wan.counters()
    with connection(wan, wan.v4) as busy:
        keep_busy(busy, 2 * IDLE)
        assert (wan.counters() - before).between("user", "pgw").resets == 0


def test_connections_elsewhere_on_the_wan_do_not_pass_the_middlebox(wan: Testbed) -> None:
    wan.wan(("user", "cgw"), reset_idle=f"{IDLE}s")
    with connection(wan, wan.v4) as pair:
        assert is_silent(pair, 2 * IDLE)
        exchange(pair)


def speaks_multipath(sock: socket.socket) -> bool:
    """Return False if a socket has fallen back to plain TCP."""
    try:
        sock.getsockopt(SOL_MPTCP, MPTCP_INFO, 256)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_without_its_option_multipath_tcp_falls_back_to_tcp_and_carries_all_bytes(wan: Testbed, version: str) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        missing("the kernel has no Multipath TCP")
    v: Addresses = getattr(wan, version)
    data = random.Random(1).randbytes(MIB)
    for strip in (False, True):
        wan.wan(strip_multipath=strip)
        before = wan.counters()
        with connection(wan, v, IPPROTO_MPTCP) as (user, gateway):
            assert [speaks_multipath(sock) for sock in (user, gateway)] == [not strip] * 2
            with ThreadPoolExecutor(1) as pool:
                received = pool.submit(receive_exactly, gateway, len(data))
                user.sendall(data)
                assert received.result(PATIENCE) == data
        assert ((wan.counters() - before).between("user", "pgw").stripped > 0) is strip


# Packets


def test_what_is_no_whole_tcp_segment_passes_untouched() -> None:
    chance = random.Random(2)
    good = [
        reset((b"\x0a\0\0\1", 1), (b"\x0a\0\0\2", 2), 7, 8),
        reset((bytes(15) + b"\1", 1), (bytes(15) + b"\2", 2), 7, 8),
    ]
    middlebox = Middlebox(lambda *_: pytest.fail("nothing was idle"))
    for packet in good:
        segment = parse(packet)
        assert segment is not None
        assert (segment.source[1], segment.target[1], segment.after) == (1, 2, 7)
        for count in range(len(packet)):
            assert parse(packet[:count]) is None
            assert middlebox.passes(packet[:count], 0.0, 1.0)
            assert without_multipath(packet[:count]) is None
        for _ in range(500):
            changed = bytearray(packet)
            for _ in range(3):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            changed += chance.randbytes(8)
            parse(bytes(changed))
            without_multipath(bytes(changed))
    udp = bytearray(good[0])
    udp[9] = 17
    assert parse(bytes(udp)) is None


def test_options_that_lie_about_their_length_are_left_alone() -> None:
    packet = bytearray(reset((b"\x0a\0\0\1", 1), (b"\x0a\0\0\2", 2), 7, 8)) + bytes([MULTIPATH, 9, 0, 0])
    packet[32] = 6 << 4  # one more word of options
    packet[2:4] = len(packet).to_bytes(2, "big")
    assert parse(bytes(packet)) is not None
    assert without_multipath(bytes(packet)) is None
    packet[-3] = 0
    assert without_multipath(bytes(packet)) is None
    packet[-3] = 4
    changed = without_multipath(bytes(packet))
    assert changed is not None
    assert changed[-4:] == bytes([1] * 4)
