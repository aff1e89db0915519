"""The HTTP listener in virtual time: which requests are answered, with which headers, and what a peer may take up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from scistream import timing
from scistream.http.listener import BOUNDS, _Listener
from scistream.http.resources import TextResource, make_root
from scistream.http.site import MAX_HEADER_BYTES, STRICT_HEADERS, names_this_machine
from scistream.protocol.address import Address

HOST = "Host: localhost:9500\r\n"
LIVE = f"GET /health/live HTTP/1.1\r\n{HOST}\r\n"


class Wire(StringTransport):
    """The transport of one connection, which the test reads."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    @property
    def is_closed(self) -> bool:
        return self.aborted or self.disconnecting

    def response(self) -> tuple[int, dict[str, str], str]:
        """Return the status, the headers and the body of the only response."""
        head, _, body = self.value().decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


class Endless(TextResource):
    """A resource whose response does not end."""

    isLeaf = True

    def render_GET(self, request: Request) -> int:
        return NOT_DONE_YET


class Faulty(TextResource):
    """A resource with a bug."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        raise ValueError("a secret")


class Rig:
    """A listener on loopback, and its clock."""

    def __init__(self, unready: Callable[[], list[str]] = list) -> None:
        self.clock = Clock()
        root = make_root(unready)
        root.putChild(b"endless", Endless())
        root.putChild(b"faulty", Faulty())
        self.listener = _Listener(self.clock, Address("127.0.0.1", 9500), None, root, lambda _: False, "")

    def connect(self, host: str = "127.0.0.1") -> tuple[Callable[[bytes], None], Wire] | None:
        """Return a function that sends bytes on a new connection and its transport; None if it is refused."""
        channel = self.listener._factory.buildProtocol(IPv4Address("TCP", host, 4000))
        if channel is None:
            return None
        wire = Wire()
        wire.hangs_up = lambda: channel.connectionLost(Failure(ConnectionDone()))  # type: ignore[attr-defined]
        channel.makeConnection(wire)
        return channel.dataReceived, wire

    def ask(self, *parts: str) -> Wire:
        """Send a request in these parts, and return the transport."""
        connected = self.connect()
        assert connected is not None
        send, wire = connected
        for part in parts:
            if not wire.is_closed:
                send(part.encode("latin-1"))
        return wire


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- health


def test_a_daemon_that_answers_is_live(rig: Rig) -> None:
    status, headers, body = rig.ask(LIVE).response()
    assert (status, body) == (200, "live\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


def test_why_a_daemon_is_not_ready_is_said_as_text_and_as_json() -> None:
    rig = Rig(lambda: ["no gateway answers: dtn1", "it is draining"])
    status, _, body = rig.ask(f"GET /health/ready HTTP/1.1\r\n{HOST}\r\n").response()
    assert (status, body) == (503, "not ready: no gateway answers: dtn1\nnot ready: it is draining\n")
    asked = f"GET /health/ready HTTP/1.1\r\n{HOST}Accept: application/json\r\n\r\n"
    status, headers, body = rig.ask(asked).response()
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body) == {"ready": False, "reasons": ["no gateway answers: dtn1", "it is draining"]}
    assert json.loads(Rig().ask(asked).response()[2]) == {"ready": True, "reasons": []}


def test_head_is_answered_without_a_body(rig: Rig) -> None:
    status, headers, body = rig.ask(LIVE.replace("GET", "HEAD")).response()
    assert (status, headers["Content-Length"], body) == (200, "5", "")


# -- headers


@pytest.mark.parametrize(
    "request_",
    [
        LIVE,
        LIVE.replace("GET", "DELETE"),
        LIVE.replace("/health/live", "/not/here"),
        LIVE.replace("localhost", "evil.example"),
        LIVE.replace("/health/live", "/faulty"),
        f"POST / HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_response_has_the_strict_headers_and_tells_no_version(rig: Rig, request_: str) -> None:
    wire = rig.ask(request_)
    _, headers, _ = wire.response()
    assert {name.decode(): value.decode() for name, value in STRICT_HEADERS.items()}.items() <= headers.items()
    assert not re.search(r"^server:|twisted|python|a secret", wire.value().decode(), re.IGNORECASE | re.MULTILINE)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:9500", "127.0.0.2", "[::1]", "[::1]:9500"])
def test_names_and_addresses_of_loopback_may_be_the_host(rig: Rig, host: str) -> None:
    assert rig.ask(LIVE.replace("localhost:9500", host)).response()[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil.example:80", "192.0.2.1", "[2001:db8::1]", "localhost:", ""),
        *("localhost@evil.example", "127.0.0.1.evil.example", "[::1", "::1", "localhost:9500\r\nHost: evil.example"),
    ],
)
def test_another_host_is_refused_and_so_are_two(rig: Rig, host: str) -> None:
    wire = rig.ask(LIVE.replace("localhost:9500", host))
    status, _, body = wire.response()
    assert (status, "use http://localhost" in body, wire.disconnecting) == (421, True, True)


def test_a_request_without_a_host_is_refused(rig: Rig) -> None:
    assert rig.ask("GET /health/live HTTP/1.0\r\n\r\n").response()[0] == 421


@given(st.text())
def test_any_text_is_a_host_or_not(text: str) -> None:
    assert isinstance(names_this_machine(text), bool)


# -- requests


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "X"])
@pytest.mark.parametrize("body", ["\r\n", "Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc"])
def test_other_methods_are_refused_with_those_that_are_allowed(rig: Rig, method: str, body: str) -> None:
    wire = rig.ask(f"{method} /health/live HTTP/1.1\r\n{HOST}{body}")
    status, headers, _ = wire.response()
    assert (status, headers["Allow"], wire.disconnecting) == (405, "GET, HEAD", True)


@pytest.mark.parametrize("length", ["Content-Length: 1", "Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_before_it_arrives(rig: Rig, length: str) -> None:
    wire = rig.ask(f"GET /health/live HTTP/1.1\r\n{HOST}Expect: 100-continue\r\n{length}\r\n\r\n")
    assert (wire.response()[0], wire.disconnecting) == (413, True)


def test_headers_that_are_too_large_end_the_connection(rig: Rig) -> None:
    lines = [f"X-{number}: {'x' * 1000}\r\n" for number in range(MAX_HEADER_BYTES // 1000 + 1)]
    wire = rig.ask(f"GET /health/live HTTP/1.1\r\n{HOST}", *lines, "\r\n")
    assert (wire.response()[0], wire.is_closed) == (400, True)


def test_too_many_headers_end_the_connection(rig: Rig) -> None:
    wire = rig.ask(f"GET /health/live HTTP/1.1\r\n{HOST}", *[f"X-{number}: x\r\n" for number in range(200)], "\r\n")
    assert (wire.response()[0], wire.is_closed) == (400, True)


def test_several_requests_on_a_connection_are_answered_in_their_order(rig: Rig) -> None:
    wire = rig.ask(LIVE + LIVE.replace("/health/live", "/x") + LIVE)
    assert re.findall(rb"HTTP/1.1 (\d+)", wire.value()) == [b"200", b"404", b"200"]
    assert not wire.is_closed


def test_too_many_requests_on_a_connection_are_refused(rig: Rig) -> None:
    wire = rig.ask(*[LIVE] * 1000)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", wire.value())
    assert statuses.count(b"200") == BOUNDS.commands_per_second * timing.COMMAND_BURST
    assert statuses[-1] == b"429"
    assert wire.disconnecting


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_raise_an_exception(chunks: list[bytes]) -> None:
    rig = Rig()
    wire = rig.ask(*(chunk.decode("latin-1") for chunk in chunks))
    rig.clock.advance(timing.HTTP_REQUEST + timing.CLOSE)
    assert wire.is_closed


# -- time


def test_a_connection_without_a_request_is_closed(rig: Rig) -> None:
    wire = rig.ask()
    rig.clock.advance(timing.HTTP_REQUEST - 0.1)
    assert not wire.is_closed
    rig.clock.advance(0.2)
    assert wire.disconnecting


def test_a_request_that_comes_byte_by_byte_is_not_waited_for(rig: Rig) -> None:
    connected = rig.connect()
    assert connected is not None
    send, wire = connected
    for byte in LIVE.encode():
        if not wire.is_closed:
            send(bytes([byte]))
            rig.clock.advance(timing.HTTP_REQUEST / len(LIVE) * 1.1)
    assert wire.disconnecting
    assert b"200" not in wire.value()


def test_a_connection_is_kept_between_two_scrapes_and_then_closed(rig: Rig) -> None:
    wire = rig.ask(LIVE)
    rig.clock.advance(60.0)
    assert not wire.is_closed
    rig.clock.advance(timing.HTTP_IDLE - 60.0)
    assert wire.disconnecting


def test_a_response_that_goes_on_is_not_cut_off(rig: Rig) -> None:
    wire = rig.ask(LIVE.replace("/health/live", "/endless"))
    rig.clock.advance(10 * timing.HTTP_IDLE)
    assert not wire.is_closed


def test_a_peer_that_does_not_read_the_end_is_cut_off(rig: Rig) -> None:
    wire = rig.ask(LIVE.replace("HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: close\r\n"))
    assert (wire.disconnecting, wire.aborted) == (True, False)
    rig.clock.advance(timing.CLOSE)
    assert wire.aborted


# -- numbers


def test_there_are_no_more_connections_than_allowed_and_a_closed_one_makes_room(rig: Rig) -> None:
    wires = []
    for _ in range(BOUNDS.links):
        wires.append(rig.ask(LIVE.replace("/health/live", "/endless")))
    assert rig.connect() is None
    wires[0].hangs_up()  # type: ignore[attr-defined]
    assert rig.ask(LIVE).response()[0] == 200


def test_silent_connections_give_way_to_one_with_a_request(rig: Rig) -> None:
    silent = [connected[1] for _ in range(BOUNDS.links) if (connected := rig.connect()) is not None]
    assert 0 < len(silent) <= BOUNDS.unproven
    rig.clock.advance(timing.UNPROVEN_GRACE)
    assert rig.ask(LIVE).response()[0] == 200
    assert [wire.aborted for wire in silent].count(True) == 1


def test_users_of_this_machine_cannot_lock_each_other_out_by_failures(rig: Rig) -> None:
    for _ in range(10 * BOUNDS.failures):
        rig.ask("rubbish\r\n").hangs_up()  # type: ignore[attr-defined]
    assert rig.ask(LIVE).response()[0] == 200
