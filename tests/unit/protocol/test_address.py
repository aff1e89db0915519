"""Parsing and formatting of addresses and networks."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scistream.protocol.address import Address, inside, parse_network, peer_address
from support.message_strategies import LONGEST_HOST, addresses, networks


@given(text=addresses)
def test_an_address_is_read_and_written_the_same_way(text: str) -> None:
    address = Address.parse(text)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("10.0.0.7:65535", "10.0.0.7", 65535),
        ("[::1]:5000", "::1", 5000),
        ("[2001:DB8:0:0::1]:80", "2001:db8::1", 80),
        ("dtn1.lab.example:5100", "dtn1.lab.example", 5100),
        ("dtn_1:5100", "dtn_1", 5100),
        (f"{LONGEST_HOST}:5100", LONGEST_HOST, 5100),
    ],
)
def test_an_address_has_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert str(Address("::1", 5000)) == "[::1]:5000"
    assert str(Address("10.0.0.7", 5000)) == "10.0.0.7:5000"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no port"),
        ("host", "no port"),
        ("host:", "a port is a number"),
        ("host:0", "a port is a number from 1 to 65535"),
        ("host:65536", "a port is a number from 1 to 65535"),
        ("host:-1", "a port is a number"),
        ("host:+80", "a port is a number"),
        ("host: 80", "a port is a number"),
        ("host:8_0", "a port is a number"),
        ("host:080000", "a port is a number"),
        ("host:٨٠", "a port is a number"),
        ("host:²", "a port is a number"),
        ("::1:80", "without brackets"),
        ("[::1:80", "without brackets"),
        ("[127.0.0.1]:80", "does not have an IPv6 address between its brackets"),
        ("[]:80", "does not have an IPv6 address between its brackets"),
        (":80", "neither a host name nor an IP address"),
        ("-lab:80", "neither a host name nor an IP address"),
        ("a..b:80", "neither a host name nor an IP address"),
        ("a b:80", "neither a host name nor an IP address"),
        ("lab\n:80", "neither a host name nor an IP address"),
        ("läb:80", "neither a host name nor an IP address"),
        ("a" * 64 + ":80", "neither a host name nor an IP address"),
        (LONGEST_HOST + "b:80", "neither a host name nor an IP address"),
        ("[fe80::1%eth0\n2026-01-01 granted]:80", "not an interface name"),
        ("[::1%\x1b[2J]:80", "not an interface name"),
        ("256.0.0.1:80", "is not a valid IPv4 address"),
        ("127.1:80", "is not a valid IPv4 address"),
        ("010.0.0.1:80", "is not a valid IPv4 address"),
        ("1:80", "is not a valid IPv4 address"),
    ],
)
def test_what_is_no_address_is_refused_with_the_text_and_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        Address.parse(text)
    assert repr(text) in str(refused.value)


@given(text=st.text() | st.text("0123456789abcdef:.[]%-", max_size=30))
@example("[::1%\x00]:1")
@example("\ud800:1")
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert 1 <= address.port <= 65535
    assert str(address).isprintable(), "it is written into logs"
    assert Address.parse(str(address)) == address


def test_a_name_is_not_numeric() -> None:
    assert Address.parse("dtn1.lab.example:1").numeric is None
    assert Address.parse("10.0.0.7:1").numeric == ip_address("10.0.0.7")
    assert Address.parse("[::1]:1").numeric == ip_address("::1")


@given(text=networks)
def test_a_network_may_have_host_bits(text: str) -> None:
    assert parse_network(text) == ip_network(text, strict=False)


@pytest.mark.parametrize("text", ["", "lab", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0.0/8/8", "10.0.0"])
def test_what_is_no_network_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network") as refused:
        parse_network(text)
    assert repr(text) in str(refused.value)


def test_an_address_is_inside_only_networks_of_its_own_version() -> None:
    loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert inside(ip_address("127.8.9.10"), loopback)
    assert inside(ip_address("::1"), loopback)
    assert not inside(ip_address("128.0.0.1"), loopback)
    assert not inside(ip_address("::2"), loopback)
    assert not inside(ip_address("127.0.0.1"), (ip_network("::/0"),))
    assert not inside(ip_address("::1"), (ip_network("0.0.0.0/0"),))
    assert not inside(ip_address("127.0.0.1"), ())


def test_an_ipv4_address_mapped_into_ipv6_counts_as_ipv4() -> None:
    assert inside(ip_address("::ffff:127.0.0.1"), (ip_network("127.0.0.0/8"),))
    assert not inside(ip_address("::ffff:127.0.0.1"), (ip_network("::/0"),))


def test_the_address_of_a_peer_has_no_zone() -> None:
    assert peer_address("fe80::1%eth0") == ip_address("fe80::1")
    assert peer_address("192.0.2.7") == ip_address("192.0.2.7")
