"""Attackers over IPv6 that try to exhaust a server: the addresses of a /64 count as one, IPv4 addresses one by one.

The S2CS listens on all addresses of both kinds. An IPv4 address comes to it mapped into IPv6, and counts alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from attackers import attempted, closed, connection, half_open, is_shut_out
from harness import World
from raw_peers import RawLink

from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from support.facilities import HOST
from support.requirements import needs_ipv6
from support.waiting import until

MOST_LINKS, MOST_FAILURES = 6, 3
SIX = "::1"


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a world whose producer's facility is on IPv6, and whose S2CS there accepts IPv4 on the same port."""
    needs_ipv6()
    limits = {"links_per_address": MOST_LINKS, "failures": MOST_FAILURES, "longest_refusal": "8s"}
    world = World(tmp_path_factory.mktemp("world"), lab={"host": SIX, "settings": {"limits": limits}})
    settings = world.lab.server.file
    mine, both = f'listen = "{world.lab.server.address}"', f'listen = "[::]:{world.lab.server.address.port}"'
    assert mine in settings.read_text()
    settings.write_text(settings.read_text().replace(mine, both))
    with world:
        yield world


@pytest.fixture
def six(world: World) -> Address:
    """Where one comes in by IPv6."""
    return world.lab.server.address


@pytest.fixture
def four(world: World) -> Address:
    """Return the same listener's address in IPv4."""
    return Address(HOST, world.lab.server.address.port)


def is_served(world: World) -> bool:
    """Return True if a user with a certificate gets her answer over IPv6."""
    issued = Issued(world.folder / "users" / "ada.pem", world.folder / "users" / "ada.key")
    try:
        with RawLink(world.lab.server.address, world.lab.authority, issued, source=SIX) as link:
            link.say("Status", uid=None, role=None, seq=1)
            answer = link.hear()
    except OSError:
        return False
    return answer is not None and answer["cmd"] == "RESP"


def test_links_of_a_64_are_bounded_and_an_ipv4_address_at_the_same_listener_has_its_own(
    world: World, six: Address, four: Address, nothing_left: None
) -> None:
    server = world.lab.server
    with half_open(six, [SIX], MOST_LINKS) as sockets:
        assert is_shut_out(six, SIX)
        assert not closed(sockets)
        assert not is_shut_out(four, HOST)
        with half_open(four, [HOST], MOST_LINKS):
            assert is_shut_out(four, HOST)
    words = server.words()
    assert "refused a link from ::/64; 1 so far" in words
    assert f"refused a link from {HOST}; 1 so far" in words
    assert f"it already has {MOST_LINKS} links (limit `links_per_address`)" in words


def test_rubbish_shuts_a_64_out_and_no_ipv4_address_and_both_are_let_in_again(
    world: World, six: Address, four: Address, nothing_left: None
) -> None:
    server = world.lab.server

    def throw() -> bool:
        with connection(six, SIX) as sock:
            attempted(lambda: sock.sendall(b"GET / HTTP/1.1\r\n\r\n"))
            attempted(lambda: sock.recv(100))
        return is_shut_out(six, SIX)

    until(throw, server.words)
    assert not is_shut_out(four, HOST)
    assert "refuses links from ::/64" in server.words()
    until(lambda: is_served(world), server.words)


def test_links_of_a_64_are_still_served_over_ipv6_when_ipv4_is_at_its_limit(
    world: World, four: Address, nothing_left: None
) -> None:
    with half_open(four, [HOST], MOST_LINKS):
        assert is_shut_out(four, HOST)
        assert is_served(world)


def test_the_listener_is_one_for_both(six: Address, four: Address) -> None:
    """The control: without limits in the way either kind is answered."""
    for address, kind in ((six, socket.AF_INET6), (four, socket.AF_INET)):
        with connection(address, address.host) as sock:
            assert sock.family == kind
        assert not is_shut_out(address, address.host)
