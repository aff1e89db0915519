"""The HTTP proxy of [wan]: how its address is written, and what a gateway makes of its answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise
from select import EPOLLIN
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from scistream.protocol.address import Address
from scistream.s2ds.relay.poller import ENDING
from scistream.s2ds.relay.proxy import MAX_ANSWER, MAX_STATUS, Tunnel
from scistream.s2ds.settings import WanSettings, parse_proxy

TARGET = Address("192.0.2.7", 5101)


# -- its address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128),
        ("HTTP://proxy.example:3128/", "proxy.example", 3128),
        ("http://192.0.2.1:80", "192.0.2.1", 80),
        ("http://[2001:db8::1]:3128", "2001:db8::1", 3128),
        ("http://[2001:DB8:0::1]:3128/", "2001:db8::1", 3128),
        ("http://[fe80::1%eth0]:3128", "fe80::1%eth0", 3128),
    ],
)
def test_a_proxy_is_written_as_an_address_of_the_web(text: str, host: str, port: int) -> None:
    assert parse_proxy(text) == Address(host, port)
    assert list(WanSettings(proxy=text).problems()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("proxy.example:3128", "it has no http://"),
        ("https://proxy.example:3128", "it speaks 'https', but gateways use plain HTTP with a proxy"),
        ("socks5://proxy.example:1080", "it speaks 'socks5', but gateways use plain HTTP with a proxy"),
        ("http://proxy.example", "has no port"),
        ("http://", "has no port"),
        ("http://:3128", "neither a host name nor an IP address"),
        ("http://proxy.example:0", "a port is a number from 1 to 65535"),
        ("http://proxy.example:3128/path", "has the invalid port '3128/path'"),
        ("http://proxy.example:3128?query", "has the invalid port '3128?query'"),
        ("http://proxy.example:3128#here", "has the invalid port '3128#here'"),
        ("http://2001:db8::1:3128", "has an IPv6 address without brackets"),
        ("http://[2001:db8::1:3128", "has an IPv6 address without brackets"),
        ("http://[proxy.example]:3128", "does not have an IPv6 address between its brackets"),
        ("http://192.0.2.300:3128", "is not a valid IPv4 address"),
        ("http://pro xy:3128", "neither a host name nor an IP address"),
        ("http://proxy\n.example:3128", "neither a host name nor an IP address"),
        ("http://proxy.example:3128\r\nX: y", "has the invalid port"),
    ],
)
def test_another_form_is_refused_with_its_value_the_reason_and_the_remedy(text: str, reason: str) -> None:
    (problem,) = WanSettings(proxy=text).problems()
    assert problem.keys == ("proxy",)
    assert problem.why.startswith(f"{text!r} is not the address of an HTTP proxy (")
    assert reason in problem.why
    assert problem.why.endswith("): write http://HOST:PORT")


@pytest.mark.parametrize("text", ["http://ada:s3cret@proxy.example:3128", "http://s3cret@proxy.example:3128"])
def test_a_password_is_refused_and_not_told(text: str) -> None:
    (problem,) = WanSettings(proxy=text).problems()
    assert "has a user name or a password, which gateways do not send to a proxy" in problem.why
    assert "let the proxy admit this gateway by its address" in problem.why
    assert "s3cret" not in problem.why


# -- its answers


class Conversation:
    """A tunnel and the socket of the proxy at its other end, without a reactor: `say` lets what arrives be seen."""

    def __init__(self) -> None:
        ours, self.proxy = socket.socketpair()
        ours.setblocking(False)
        self.sock = ours
        self.clock = Clock()
        self.watched: list[Any] = []
        poller = SimpleNamespace(add=self.watched.append, remove=self.watched.remove)
        context: Any = SimpleNamespace(poller=poller, reactor=self.clock)
        self.tunnel = Tunnel(context, ours, TARGET, "the proxy", 5.0)
        self.asked = self.proxy.recv(4096)
        self.ends: list[str] = []
        self.tunnel.opened.addCallbacks(
            lambda _: self.ends.append("opened"), lambda failure: self.ends.append(failure.getErrorMessage())
        )

    def say(self, data: bytes, mask: int = EPOLLIN) -> None:
        if data:
            self.proxy.sendall(data)
        self.tunnel.event(mask)

    def close(self) -> None:
        self.proxy.close()
        self.sock.close()


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    conversation = Conversation()
    yield conversation
    conversation.close()


OK = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 us\r\n\r\n"


def test_the_request_names_the_other_gateway_and_nothing_else(conversation: Conversation) -> None:
    assert conversation.asked == b"CONNECT 192.0.2.7:5101 HTTP/1.1\r\nHost: 192.0.2.7:5101\r\n\r\n"


@given(st.binary(max_size=200), st.lists(st.integers(1, len(OK)), max_size=6), st.sampled_from([b"\r\n", b"\n"]))
def test_what_follows_the_answer_is_left_for_tls_however_it_is_cut_into_segments(
    more: bytes, cuts: list[int], ending: bytes
) -> None:
    conversation = Conversation()
    whole = OK.replace(b"\r\n", ending) + more
    at = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    for begin, end in pairwise(at):
        assert conversation.ends in ([], ["opened"])
        conversation.say(whole[begin:end])
    assert conversation.ends == ["opened"]
    assert not conversation.watched
    assert not conversation.clock.getDelayedCalls()
    conversation.proxy.close()
    left = b"".join(iter(lambda: conversation.sock.recv(4096), b""))
    assert left == more
    conversation.close()


def answer_of(length: int) -> bytes:
    begin, end = b"HTTP/1.1 200 OK\r\nX: ", b"\r\n\r\n"
    return begin + b"y" * (length - len(begin) - len(end)) + end


def test_an_answer_may_have_so_many_bytes_and_not_one_more() -> None:
    for length, told in (
        (MAX_ANSWER, "opened"),
        (MAX_ANSWER + 1, f"the proxy sent an answer of more than {MAX_ANSWER} bytes"),
    ):
        conversation = Conversation()
        conversation.say(answer_of(length))
        assert conversation.ends == [told]
        conversation.close()


def test_an_answer_without_an_end_is_not_awaited_for_longer_than_its_bound_and_time(conversation: Conversation) -> None:
    conversation.say(answer_of(MAX_ANSWER)[:-1])
    assert conversation.ends == []
    conversation.clock.advance(5.0)
    assert conversation.ends == ["the proxy did not answer within 5 s"]
    assert conversation.sock.fileno() == -1
    assert not conversation.watched


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", 'refused: "HTTP/1.1 403 Forbidden"'),
        (b"HTTP/1.0 407 Who?\r\nProxy-Authenticate: Basic\r\n\r\n", 'refused: "HTTP/1.0 407 Who?"'),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 'refused: "HTTP/1.1 100 Continue"'),
        (b"HTTP/1.1 503 \xff\x1b[31m\r\n\r\n", 'refused: "HTTP/1.1 503 '),
        (b"HTTP/2 200\r\n\r\n", 'did not answer in HTTP: "HTTP/2 200"'),
        (b"HTTP/1.1 2000 OK\r\n\r\n", 'did not answer in HTTP: "HTTP/1.1 2000 OK"'),
        (b"\r\n\r\n", 'did not answer in HTTP: ""'),
        (b"HTTP/1.1 500 " + b"x" * 4000 + b"\r\n\r\n", 'refused: "HTTP/1.1 500 ' + "x" * (MAX_STATUS - 13) + '"'),
    ],
)
def test_an_answer_that_does_not_connect_is_told_by_its_first_line(
    conversation: Conversation, answer: bytes, told: str
) -> None:
    conversation.say(answer)
    (said,) = conversation.ends
    assert said.startswith(f"the proxy {told}")
    assert said.isprintable()
    assert conversation.sock.fileno() == -1


def test_a_proxy_that_closes_within_its_answer_is_told(conversation: Conversation) -> None:
    conversation.proxy.sendall(OK[:-1])
    conversation.proxy.close()
    conversation.say(b"", EPOLLIN | ENDING)
    assert conversation.ends == ["the proxy closed the connection before it answered"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "the proxy reset the connection before it answered"),
        (OK[:-1], "the proxy reset the connection before it answered"),
        (b"HTTP/1.1 403 No\r\n\r\n", 'the proxy refused: "HTTP/1.1 403 No"'),
    ],
)
def test_an_answer_is_told_although_a_reset_follows_it(answer: bytes, told: str) -> None:
    conversation = Conversation()
    conversation.sock.send(b"a byte that is never read, so that the end is a reset")
    conversation.proxy.sendall(answer)
    conversation.proxy.close()
    conversation.say(b"", EPOLLIN | ENDING)
    assert conversation.ends == [told]
    conversation.close()


def test_an_answer_counts_although_the_proxy_closes_right_behind_it(conversation: Conversation) -> None:
    conversation.proxy.sendall(OK + b"!")
    conversation.proxy.close()
    conversation.say(b"", EPOLLIN | ENDING)
    assert conversation.ends == ["opened"]
    assert conversation.sock.recv(10) == b"!"


def test_a_tunnel_that_is_no_longer_wanted_closes_its_connection(conversation: Conversation) -> None:
    conversation.tunnel.opened.cancel()
    assert conversation.sock.fileno() == -1
    assert not conversation.watched
    assert not conversation.clock.getDelayedCalls()
