"""Connect and ready connections: real bytes over loopback, through two gateways in the reactor of the test."""

import contextlib
import hashlib
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import serialization
from gateways import PATIENCE, Make, Stream, both, carry_both_ways, set_networks
from OpenSSL import SSL
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.connect import MAX_LINE, Connect, accepted, encode_connect, read_answer, read_connect
from scistream.protocol.messages import CONS, PROD, Error, Resp, Role
from scistream.s2ds.elements.channel import MOST_HELD
from scistream.s2ds.elements.ready import ReadyBudget
from scistream.s2ds.relay import tickets, wan
from scistream.s2ds.relay.openssl import group_of
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import server_name, verify_peer
from support.applications import MIB, how_it_ends, receive_exactly, reset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

DIALERS: list[Role] = [CONS, PROD]


def ready(stream: Stream, count: int) -> Callable[[], bool]:
    return lambda: [side.figures().ready for side in (stream.prod, stream.cons)] == [count, count]


# -- ready connections


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_ready_connections_cost_the_producer_nothing_and_count_by_themselves(make: Make, dialer: Role) -> None:
    stream = make(wan_dialer=dialer, ready=3)
    await stream.until(ready(stream, 3))
    assert await deferToThread(stream.nobody_came)
    for side in (stream.prod, stream.cons):
        figures = side.figures()
        assert (figures.connections, figures.accepted, figures.reset) == (0, 0, 0)


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_a_claimed_connection_is_replaced_and_carries_every_byte_both_ways(make: Make, dialer: Role) -> None:
    stream = make(wan_dialer=dialer, ready=2)
    await stream.until(ready(stream, 2))
    consumer, producer = await stream.pair()
    await stream.until(lambda: all(side.figures().ready >= 2 for side in (stream.prod, stream.cons)))
    await carry_both_ways(consumer, producer, 8 * MIB)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    for side in (stream.prod, stream.cons):
        assert (side.figures().accepted, side.figures().reset) == (1, 0)


@pytest.mark.parametrize("elements", [0, 2])
@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_many_connections_at_once_reach_the_producer_once_each(make: Make, dialer: Role, elements: int) -> None:
    stream = make(wan_dialer=dialer, elements=elements)
    await stream.ready()
    count = 60

    def consume(number: int) -> bytes:
        with stream.connect() as sock:
            sock.sendall(number.to_bytes(4) * 1000)
            sock.shutdown(socket.SHUT_WR)
            return hashlib.sha256(b"".join(iter(lambda: sock.recv(65536), b""))).digest()

    def produce() -> None:
        with stream.accept() as sock:
            data = b"".join(iter(lambda: sock.recv(65536), b""))
            sock.sendall(data[::-1])

    jobs: list[Callable[[], object]] = [lambda number=number: consume(number) for number in range(count)]  # type: ignore[misc]
    results = await both(*(job for pair in zip(jobs, [produce] * count, strict=True) for job in pair))
    wanted = [hashlib.sha256((number.to_bytes(4) * 1000)[::-1]).digest() for number in range(count)]
    assert results[::2] == wanted
    assert await deferToThread(stream.nobody_came)
    await stream.until(lambda: stream.prod.figures().accepted == count)


@pytest_twisted.ensureDeferred
async def test_without_ready_connections_one_is_dialled_for_each(make: Make) -> None:
    stream = make(ready=0)
    consumer, producer = await stream.pair()
    assert stream.cons.figures().ready == stream.prod.figures().ready == 0
    consumer.sendall(b"hello")
    assert await deferToThread(receive_exactly, producer, 5) == b"hello"


@pytest_twisted.ensureDeferred
async def test_a_producers_gateway_that_dials_keeps_one_ready_whatever_is_set(make: Make) -> None:
    stream = make(wan_dialer=PROD, ready=0)
    await stream.until(ready(stream, 1))
    consumer, producer = await stream.pair()
    producer.sendall(b"hello")
    assert await deferToThread(receive_exactly, consumer, 5) == b"hello"


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_new_targets_end_ready_connections_and_open_others(make: Make, dialer: Role) -> None:
    stream = make(wan_dialer=dialer, ready=2)
    await stream.until(ready(stream, 2))
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(PATIENCE)
        program = [Address(*other.getsockname())]
        if dialer == CONS:
            stream.prod.arm(stream.bundles[PROD], program)
        else:
            gateways = [Address(*sock.getsockname()) for sock in stream.cons.wan_sockets]
            stream.prod.arm(stream.bundles[PROD], program, PROD, gateways)
        consumer, (producer, _) = await both(stream.connect, other.accept)
        with producer:
            await deferToThread(producer.sendall, b"moved")
            assert await deferToThread(receive_exactly, consumer, 5) == b"moved"
    assert await deferToThread(stream.nobody_came)


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_release_ends_ready_connections_at_both_ends(make: Make, dialer: Role) -> None:
    stream = make(wan_dialer=dialer, ready=2)
    await stream.until(ready(stream, 2))
    released, other = (stream.cons, stream.prod) if dialer == CONS else (stream.prod, stream.cons)
    await released.elements.close(stream.uid, released.role)
    await stream.until(lambda: other.figures().ready == 0)


@pytest_twisted.ensureDeferred
async def test_an_element_that_dies_loses_its_ready_connections_and_its_successor_opens_others(make: Make) -> None:
    stream = make(elements=1, ready=2)
    await stream.until(ready(stream, 2))
    (member,) = stream.cons.elements._members
    member._process.signalProcess("KILL")  # type: ignore[attr-defined]
    await stream.until(lambda: stream.prod.figures().ready == 0)
    await stream.until(ready(stream, 2))
    consumer, producer = await stream.pair()
    producer.sendall(b"again")
    assert await deferToThread(receive_exactly, consumer, 5) == b"again"


@pytest_twisted.ensureDeferred
async def test_a_forbidden_network_ends_ready_connections_and_gets_no_others(make: Make) -> None:
    stream = make(ready=2)
    await stream.until(ready(stream, 2))
    set_networks(stream.cons.elements, ["192.0.2.0/24"])
    await stream.until(ready(stream, 0))
    assert await deferToThread(stream.attempt) == "reset"


@pytest_twisted.ensureDeferred
async def test_consumers_wait_for_a_producers_gateway_that_dials_late(make: Make) -> None:
    stream = make(wan_dialer=PROD, ready=2)
    await stream.until(ready(stream, 2))
    set_networks(stream.prod.elements, ["192.0.2.0/24"])
    await stream.until(ready(stream, 0))
    waiting = deferToThread(stream.connect)
    await stream.until(lambda: stream.cons.figures().connections == 1)
    set_networks(stream.prod.elements, ["127.0.0.0/8"])
    consumer, producer = await gatherResults([waiting, deferToThread(stream.accept)])
    producer.sendall(b"late")
    assert await deferToThread(receive_exactly, consumer, 4) == b"late"


@pytest_twisted.ensureDeferred
async def test_a_consumer_is_told_when_the_producers_gateway_does_not_dial(make: Make) -> None:
    stream = make(wan_dialer=PROD, ready=1, dial_timeout=0.3)
    await stream.until(ready(stream, 1))
    set_networks(stream.prod.elements, ["192.0.2.0/24"])
    await stream.until(ready(stream, 0))
    assert await deferToThread(stream.attempt) == "reset"
    await stream.until(lambda: any("opened no connection" in one or "reached" in one for one in stream.cons.reasons))


# -- refused


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_the_consumers_side_learns_that_the_program_refused(make: Make, dialer: Role) -> None:
    stream = make(wan_dialer=dialer, dial_timeout=0.3)
    host, port = stream.app.getsockname()
    stream.app.close()
    assert await deferToThread(stream.attempt) == "reset"
    reason = f"ProdApp at {host}:{port} refused the connection"
    await stream.until(lambda: reason in stream.prod.reasons and reason in stream.cons.reasons)


@pytest_twisted.ensureDeferred
async def test_a_program_that_comes_back_gets_its_connections_again(make: Make) -> None:
    stream = make(dial_timeout=0.3)
    address = stream.app.getsockname()
    stream.app.close()
    assert await deferToThread(stream.attempt) == "reset"
    stream.app = socket.create_server(address, backlog=16)
    stream._ends.append(stream.app)
    stream.app.settimeout(PATIENCE)
    consumer, producer = await stream.pair()
    consumer.sendall(b"back")
    assert await deferToThread(receive_exactly, producer, 4) == b"back"


# -- by hand: a consumer's gateway


def read_line(tls: SSL.Connection) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        found += tls.recv(1)
    return found[:-1]


class HandMade:
    """A consumer's gateway made by hand; every method blocks."""

    def __init__(self, stream: Stream, alpn: bytes = b"scistream-data/1") -> None:
        credentials = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS)
        context = credentials.context()
        if not alpn:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.use_certificate(x509.load_pem_x509_certificate(credentials.certificate.encode()))
            key = serialization.load_pem_private_key(credentials.key.encode(), None)
            context.use_privatekey(key)  # type: ignore[arg-type]
        self.sock = socket.create_connection(stream.prod.address(), timeout=PATIENCE)
        self.sock.settimeout(None)
        self.tls = SSL.Connection(context, self.sock)
        self.tls.set_tlsext_host_name(server_name(stream.uid, 0).encode())
        self.tls.set_connect_state()
        self.tls.do_handshake()

    def send(self, data: bytes) -> None:
        self.tls.sendall(data)

    def line(self) -> bytes:
        return read_line(self.tls)

    def end(self) -> str:
        """Return how the connection ends: cleanly, or by a reset."""
        try:
            while self.tls.recv(65536):
                pass
        except SSL.ZeroReturnError:
            return "clean"
        except (SSL.SysCallError, SSL.Error):
            return "reset"
        return "clean"

    def close(self) -> None:
        self.sock.close()


@pytest_twisted.ensureDeferred
async def test_bytes_behind_connect_reach_the_program_and_the_answer_comes_first(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(HandMade, stream)
    await deferToThread(peer.send, encode_connect(Connect(uid=stream.uid, channel=0)) + b"frame" * 3)
    producer = await deferToThread(stream.accept)
    assert await deferToThread(receive_exactly, producer, 15) == b"frame" * 3
    producer.sendall(b"hello")
    answer = read_answer(await deferToThread(peer.line))
    assert isinstance(answer, Resp)
    assert answer.uid == stream.uid
    assert await deferToThread(lambda: peer.tls.recv(5)) == b"hello"
    peer.close()


@pytest_twisted.ensureDeferred
async def test_connect_in_pieces_of_one_byte_is_read(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(HandMade, stream)

    def trickle() -> None:
        for byte in encode_connect(Connect(uid=stream.uid, channel=0, number=1)):
            peer.send(bytes([byte]))

    await deferToThread(trickle)
    assert isinstance(read_answer(await deferToThread(peer.line)), Resp)
    await deferToThread(stream.accept)
    peer.close()


@pytest_twisted.ensureDeferred
async def test_a_second_connect_is_data(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(HandMade, stream)
    line = encode_connect(Connect(uid=stream.uid, channel=0))
    await deferToThread(peer.send, line + line)
    producer = await deferToThread(stream.accept)
    assert await deferToThread(receive_exactly, producer, len(line)) == line
    peer.close()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("other channel", "another stream or channel"),
        ("other stream", "another stream or channel"),
        ("rubbish", "did not send Connect"),
        ("bytes before", "did not send Connect"),
        ("other command", "did not send Connect"),
        ("negative", "did not send Connect"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_anything_but_connect_of_this_channel_is_refused_and_told(make: Make, what: str, says: str) -> None:
    stream = make(channels=2, ready=0)
    line = encode_connect(Connect(uid=stream.uid, channel=0))
    sent = {
        "other channel": encode_connect(Connect(uid=stream.uid, channel=1)),
        "other stream": encode_connect(Connect(uid="0" * 8 + "-0000" * 3 + "-" + "0" * 12, channel=0)),
        "rubbish": b"GET / HTTP/1.1\r\n",
        "bytes before": b"\0" + line,
        "other command": line.replace(b"Connect", b"REL"),
        "negative": line.replace(b'"channel":0', b'"channel":-1'),
    }[what]
    peer = await deferToThread(HandMade, stream)
    await deferToThread(peer.send, sent)
    answer = read_answer(await deferToThread(peer.line))
    assert isinstance(answer, Error)
    assert answer.code == "bad-message"
    assert await deferToThread(peer.end) == "clean"
    peer.close()
    await stream.until(lambda: any(says in reason for reason in stream.prod.reasons))
    assert await deferToThread(stream.nobody_came)


@pytest_twisted.ensureDeferred
async def test_a_line_without_an_end_is_bounded(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(HandMade, stream)
    await deferToThread(peer.send, b"x" * (MAX_LINE + 1))
    assert await deferToThread(peer.end) == "reset"
    peer.close()
    await stream.until(lambda: any(f"more than {MAX_LINE} bytes" in reason for reason in stream.prod.reasons))
    assert await deferToThread(stream.nobody_came)


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_keeps_too_many_ready_is_stopped_and_told(make: Make) -> None:
    stream = make(ready=0)
    peers = [await deferToThread(HandMade, stream) for _ in range(MOST_HELD)]
    await stream.until(lambda: stream.prod.figures().ready == MOST_HELD)
    extra = await deferToThread(HandMade, stream)
    assert await deferToThread(extra.end) == "reset"
    await stream.until(lambda: any("keeps more connections ready" in reason for reason in stream.prod.reasons))
    assert stream.prod.figures().ready == MOST_HELD
    for peer in (extra, *peers):
        peer.close()
    await stream.until(lambda: stream.prod.figures().ready == 0)


@pytest_twisted.ensureDeferred
async def test_strangers_take_no_place_from_ready_connections(make: Make) -> None:
    stream = make(ready=2)
    await stream.until(ready(stream, 2))
    strangers = [socket.create_connection(stream.prod.address(), timeout=PATIENCE) for _ in range(80)]
    await stream.until(lambda: stream.prod.figures().connections >= 64)
    consumer, producer = await stream.pair()
    producer.sendall(b"first")
    assert await deferToThread(receive_exactly, consumer, 5) == b"first"
    for sock in strangers:
        reset(sock)
    await stream.until(lambda: stream.prod.figures().connections == 1)


@pytest_twisted.ensureDeferred
async def test_a_consumers_gateway_without_connect_is_met_as_before(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(HandMade, stream, b"")
    producer = await deferToThread(stream.accept)  # nothing was sent
    await deferToThread(peer.send, b"old")
    assert await deferToThread(receive_exactly, producer, 3) == b"old"
    producer.sendall(b"new")
    assert await deferToThread(lambda: peer.tls.recv(3)) == b"new"
    peer.close()


class SlowHandMade(HandMade):
    """A consumer's gateway that sends the beginning of its handshake, and the rest when it is told to."""

    def __init__(self, stream: Stream) -> None:
        credentials = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS)
        self.sock = socket.create_connection(stream.prod.address(), timeout=PATIENCE)
        self.sock.settimeout(None)
        self.tls = SSL.Connection(credentials.context(), None)
        self.tls.set_tlsext_host_name(server_name(stream.uid, 0).encode())
        self.tls.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            self.tls.do_handshake()
        self.sock.sendall(self.tls.bio_read(65536))

    def finish(self, line: bytes) -> None:
        """Complete the handshake and send a line."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except SSL.WantReadError:
                self.tls.bio_write(self.sock.recv(65536))
        self.tls.send(line)
        with contextlib.suppress(OSError):  # it may be reset already
            self.sock.sendall(self.tls.bio_read(65536))


@pytest_twisted.ensureDeferred
async def test_a_handshake_under_replaced_credentials_does_not_reach_the_new_program(make: Make) -> None:
    stream = make(ready=0)
    peer = await deferToThread(SlowHandMade, stream)
    await stream.until(lambda: stream.prod.figures().connections == 1)
    renewed = issue_credentials(stream.uid, 2, 600.0, {PROD: stream.prod.secret.csr, CONS: stream.cons.secret.csr})
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        stream.prod.arm(renewed[PROD], [Address(*other.getsockname())])
        await deferToThread(peer.finish, encode_connect(Connect(uid=stream.uid, channel=0)) + b"old")
        await stream.until(lambda: stream.prod.figures().connections != 1 or stream.prod.figures().accepted == 1)
        with pytest.raises(TimeoutError):
            await deferToThread(other.accept)
    peer.close()
    await stream.until(lambda: stream.prod.figures().connections == stream.prod.figures().ready == 0)


@pytest_twisted.ensureDeferred
async def test_two_connections_with_one_number_are_both_served_and_leave_nothing(make: Make) -> None:
    stream = make(ready=0)
    peers = [await deferToThread(HandMade, stream) for _ in range(2)]
    for peer in peers:
        await deferToThread(peer.send, encode_connect(Connect(uid=stream.uid, channel=0, number=50)))
    for _ in peers:
        await deferToThread(stream.accept)
    for peer in peers:
        peer.close()
    await stream.until(lambda: stream.prod.figures().connections == 0)


@pytest_twisted.ensureDeferred
async def test_consumers_that_wait_are_served_although_others_hold_all_ready_places(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadyBudget, "hold", lambda _self, _stream: False)
    stream = make(wan_dialer=PROD, ready=0)
    for word in (b"one", b"two"):
        consumer, producer = await stream.pair()
        producer.sendall(word)
        assert await deferToThread(receive_exactly, consumer, 3) == word


@pytest_twisted.ensureDeferred
async def test_each_channel_of_a_gateway_that_dials_has_one_ready_whatever_others_have(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scistream.s2ds.elements.element.MOST_OF_GATEWAY", 8)
    stream = make(channels=4, wan_dialer=PROD, ready=2)
    await stream.until(lambda: all(one.ready for one in stream.prod.elements.figures(stream.uid, PROD)))


@pytest.mark.parametrize("setting", ["auto", 1])
@pytest_twisted.ensureDeferred
async def test_ready_connections_that_a_burst_needed_end_and_one_stays(
    make: Make, monkeypatch: pytest.MonkeyPatch, setting: str | int
) -> None:
    stream = make(wan_dialer=PROD, ready=setting)
    await stream.until(ready(stream, 1))
    pairs = [await stream.pair() for _ in range(5)]
    assert stream.prod.figures().ready > 1
    monkeypatch.setattr(timing, "READY_IDLE", 0.1)
    idle_timer = stream.cons.channel()._idle_timer
    assert idle_timer is not None
    idle_timer.reset(0.0)  # the ten minutes are over
    await stream.until(lambda: stream.prod.figures().ready == stream.cons.figures().ready == 1)
    for consumer, producer in pairs:
        producer.sendall(b"still")
        assert await deferToThread(receive_exactly, consumer, 5) == b"still"


@pytest_twisted.ensureDeferred
async def test_no_application_notices_that_ready_connections_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "READY_IDLE", 0.01)
    monkeypatch.setattr(timing, "READY_AGAIN", 0.001)
    stream = make(wan_dialer=PROD, ready=4)

    def talk_in_turn() -> None:
        for number in range(30):
            with stream.connect() as consumer, stream.accept() as producer:
                consumer.sendall(bytes([number]))
                assert receive_exactly(producer, 1) == bytes([number])
                consumer.shutdown(socket.SHUT_WR)
                producer.shutdown(socket.SHUT_WR)
                assert consumer.recv(1) == b""

    await deferToThread(talk_in_turn)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    for side in (stream.prod, stream.cons):
        assert (side.figures().accepted, side.figures().reset) == (30, 0)


# -- by hand: a producer's gateway


class HandMadeProducer:
    """A producer's gateway made by hand, as the target of a consumer's gateway."""

    def __init__(self, stream: Stream, *, speaks_connect: bool = True) -> None:
        credentials = stream.prod.secret.credentials(stream.bundles[PROD], stream.uid, PROD)
        self.context = credentials.context()
        if not speaks_connect:
            self.context.set_alpn_select_callback(lambda _connection, _offered: SSL.NO_OVERLAPPING_PROTOCOLS)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        stream._ends.append(self.listener)
        stream.cons.arm(stream.bundles[CONS], [Address(*self.listener.getsockname())])

    def accept(self) -> SSL.Connection:
        """Accept a connection and shake hands; blocks. A handshake that the peer ends raises an error of OpenSSL."""
        self.sock = self.listener.accept()[0]
        self.sock.settimeout(None)
        tls = SSL.Connection(self.context, self.sock)
        tls.set_accept_state()
        tls.do_handshake()
        return tls


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\n", "did not answer Connect"),
        (b"x" * (MAX_LINE + 1), f"more than {MAX_LINE} bytes"),
        (b'{"cmd":"ERROR","uid":null,"code":"timeout","msg":"no \\u001b[31mluck"}\n', "no ?[31mluck"),
        (b"", "before a line"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_none_resets_the_consumer_and_is_told(make: Make, answer: bytes, says: str) -> None:
    stream = make(ready=0)
    peer = HandMadeProducer(stream)
    consumer, tls = await both(stream.connect, peer.accept)
    connect = read_connect(await deferToThread(read_line, tls))
    assert (connect.uid, connect.channel, connect.number) == (stream.uid, 0, 1)
    if answer:
        await deferToThread(tls.sendall, answer)
    else:
        tls.shutdown()
    assert await deferToThread(how_it_ends, consumer) == "reset"
    await stream.until(lambda: any(says in reason for reason in stream.cons.reasons))
    peer.sock.close()


@pytest_twisted.ensureDeferred
async def test_an_answer_that_never_comes_is_not_awaited_for_ever(make: Make) -> None:
    stream = make(ready=0, dial_timeout=0.2, wan_timeout=0.5)
    peer = HandMadeProducer(stream)
    consumer, _ = await both(stream.connect, peer.accept)
    assert await deferToThread(how_it_ends, consumer) == "reset"
    await stream.until(lambda: any("did not answer Connect" in reason for reason in stream.cons.reasons))
    peer.sock.close()


@pytest_twisted.ensureDeferred
async def test_a_producers_gateway_without_connect_gets_no_ready_connection(make: Make) -> None:
    stream = make(ready=2)
    peer = HandMadeProducer(stream, speaks_connect=False)
    with pytest.raises((SSL.Error, SSL.SysCallError)):  # a handshake that is not completed
        await deferToThread(peer.accept)
    peer.sock.close()
    dialled = deferToThread(peer.accept)
    consumer = await deferToThread(stream.connect)
    consumer.sendall(b"frame")
    try:
        tls = await dialled
    except (SSL.Error, SSL.SysCallError):  # another one that was to be ready had been under way
        peer.sock.close()
        tls = await deferToThread(peer.accept)
    assert await deferToThread(tls.recv, 5) == b"frame"
    await deferToThread(tls.sendall, b"reply")
    assert await deferToThread(receive_exactly, consumer, 5) == b"reply"
    peer.sock.close()


@pytest_twisted.ensureDeferred
async def test_a_ready_connection_that_says_something_is_dropped_and_told(make: Make) -> None:
    stream = make(ready=1)
    peer = HandMadeProducer(stream)
    tls = await deferToThread(peer.accept)
    first = peer.sock
    await stream.until(lambda: stream.cons.figures().ready == 1)
    await deferToThread(tls.sendall, accepted(stream.uid))
    await stream.until(lambda: any("before Connect" in reason for reason in stream.cons.reasons))
    first.close()


@pytest_twisted.ensureDeferred
async def test_a_ready_connection_that_ends_is_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "READY_AGAIN", 0.01)
    stream = make(ready=1)
    peer = HandMadeProducer(stream)
    for _ in range(3):
        await deferToThread(peer.accept)
        reset(peer.sock)
    tls = await deferToThread(peer.accept)
    consumer = await deferToThread(stream.connect)
    assert read_connect(await deferToThread(read_line, tls)).channel == 0
    consumer.close()
    peer.sock.close()


# -- tickets


class Shake(NamedTuple):
    """A handshake that has been verified, at one of its ends."""

    dials: bool
    resumed: bool
    group: str | None


@pytest.fixture
def shakes(monkeypatch: pytest.MonkeyPatch) -> list[Shake]:
    """Return the handshakes of all gateways in this process."""
    found: list[Shake] = []

    def note(connection: SSL.Connection, *arguments: Any, dials: bool, resumed: bool, **others: Any) -> None:
        found.append(Shake(dials, resumed, group_of(connection)))
        verify_peer(connection, *arguments, dials=dials, resumed=resumed, **others)

    monkeypatch.setattr(wan, "verify_peer", note)
    return found


async def use(stream: Stream, count: int) -> None:
    """Carry bytes over some connections, one after the other."""
    for number in range(count):
        consumer, producer = await stream.pair()
        with consumer, producer:
            await carry_both_ways(consumer, producer, 1000 * number)


def dialled(stream: Stream, dialer: Role) -> list[Address]:
    return [Address(*sock.getsockname()) for sock in stream.cons.wan_sockets] if dialer == PROD else []


def arm_again(stream: Stream, dialer: Role, *, role: Role) -> None:
    """Give a gateway its targets again, with other keys for its tickets."""
    if role == PROD:
        program = [Address(*stream.app.getsockname())]
        stream.prod.arm(stream.bundles[PROD], program, dialer, dialled(stream, dialer))
    else:
        stream.cons.arm(stream.bundles[CONS], [] if dialer == PROD else [stream.prod.address()], dialer)


@pytest.mark.parametrize("dialer", DIALERS)
@pytest.mark.parametrize("count", [0, 2])
@pytest_twisted.ensureDeferred
async def test_gateways_show_each_other_their_certificates_once(
    make: Make, dialer: Role, count: int, shakes: list[Shake]
) -> None:
    stream = make(wan_dialer=dialer, ready=count)
    await use(stream, 12)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    await stream.until(lambda: len(shakes) >= 2 * 12)
    shown = [shake.resumed for shake in shakes].count(False)
    assert all(shake.resumed for shake in shakes[-6:]), shakes
    assert 2 <= shown <= 2 * max(1, 2 * count), "both gateways, for those that were opened before the first ticket came"


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_new_credentials_end_the_tickets_of_old_ones(make: Make, dialer: Role, shakes: list[Shake]) -> None:
    stream = make(wan_dialer=dialer, ready=0)
    await use(stream, 3)
    assert shakes[-1].resumed
    arm_again(stream, dialer, role=PROD)
    del shakes[:]
    await use(stream, 1)
    assert not shakes[0].resumed


@pytest.mark.parametrize("dialer", DIALERS)
@pytest.mark.parametrize("count", [0, 2])
@pytest_twisted.ensureDeferred
async def test_a_connection_whose_ticket_is_not_accepted_is_dialled_again_with_the_best_keys(
    make: Make, dialer: Role, count: int, shakes: list[Shake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "TICKET_AGAIN", 0.0)
    stream = make(wan_dialer=dialer, ready=count)
    await use(stream, 8)
    assert shakes[-1].resumed
    best = next(shake.group for shake in shakes if not shake.resumed)
    fast = shakes[-1].group
    assert best != fast
    del shakes[:]
    arm_again(stream, dialer, role=CONS if dialer == PROD else PROD)
    await use(stream, 8)
    await stream.until(lambda: bool(shakes) and shakes[-1].resumed)
    assert {(shake.resumed, shake.group) for shake in shakes} == {(False, best), (True, fast)}
    assert stream.cons.figures().reset == 0


@pytest.mark.parametrize("dialer", DIALERS)
@pytest_twisted.ensureDeferred
async def test_where_a_handshake_with_a_ticket_fails_no_application_notices(
    make: Make, dialer: Role, shakes: list[Shake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "TICKET_AGAIN", 0.0)
    stream = make(wan_dialer=dialer, ready=0)
    await use(stream, 4)
    assert shakes[-1].resumed
    end = stream.cons if dialer == CONS else stream.prod
    monkeypatch.setattr(tickets, "_GROUPS", b"P-521")
    (other,) = [side for side in (stream.cons, stream.prod) if side is not end]
    context = other.channel()._target.tls_context
    assert Binding.lib.SSL_CTX_set1_curves_list(context._context, b"X25519:P-256")
    del shakes[:]
    await use(stream, 4)
    assert not any(shake.resumed for shake in shakes)
    assert end.figures().reset == stream.cons.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_a_relay_gives_the_ticket_of_its_connection_not_of_its_own_target(
    make: Make, shakes: list[Shake]
) -> None:
    stream = make(wan_dialer=PROD, ready=0)
    gateways = dialled(stream, PROD)
    await stream.until(ready(stream, 1))
    program = [Address(*stream.app.getsockname())]
    with socket.socket() as nowhere:
        nowhere.bind(("127.0.0.1", 0))
        stream.prod.arm(stream.bundles[PROD], program, PROD, [Address(*nowhere.getsockname())])
        await stream.until(ready(stream, 0))
        consumer = await deferToThread(stream.connect)  # its relay waits
        await stream.until(lambda: stream.cons.channel()._unserved != {})
    arm_again(stream, PROD, role=CONS)
    del shakes[:]
    stream.prod.arm(stream.bundles[PROD], program, PROD, gateways)
    producer = await deferToThread(stream.accept)
    with consumer, producer:
        await carry_both_ways(consumer, producer, 1000)
    await use(stream, 3)
    assert shakes[-1].resumed
    assert [shake.resumed for shake in shakes if shake.dials].count(False) <= 2, shakes
