"""The data path: real bytes over real sockets on loopback, through two elements with TLS between them.

Applications here are blocking sockets in threads; the elements run in the reactor of the test.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted
from cryptography.x509 import load_pem_x509_certificates
from gateways import PATIENCE, Make, _readers, both, carry_both_ways, fill, sleep
from OpenSSL import SSL
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

import scistream
from scistream.protocol.address import Address
from scistream.protocol.connect import Connect, encode_connect
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2ds.relay import pump
from scistream.s2ds.relay.tls import RECORD
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import server_name
from support.applications import MIB, NOISE, how_it_ends, push, receive_digest, receive_exactly, reset, send
from support.leased_ports import leased
from support.requirements import needs_ipv6

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


# All bytes, in order


@pytest_twisted.ensureDeferred
async def test_both_directions_at_once_deliver_every_byte(make: Make) -> None:
    stream = make()
    consumer, producer = await stream.pair()
    await carry_both_ways(consumer, producer, 64 * MIB)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    for side in (stream.prod, stream.cons):
        figures = side.figures()
        assert (figures.bytes_to_producer, figures.bytes_to_consumer) == (64 * MIB, 64 * MIB)
        assert (figures.accepted, figures.reset) == (1, 0)


@pytest_twisted.ensureDeferred
async def test_an_end_that_comes_together_with_the_last_full_record_is_passed_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "TURN_BYTES", RECORD)  # so that a turn is over with each full record
    stream = make()
    for _ in range(20):
        consumer, producer = await stream.pair()
        question = await deferToThread(send, consumer, 4 * RECORD)
        consumer.shutdown(socket.SHUT_WR)
        assert await deferToThread(receive_digest, producer) == (4 * RECORD, question)
        producer.close()
        consumer.close()


@pytest.mark.parametrize("first", ["consumer", "producer"])
@pytest_twisted.ensureDeferred
async def test_either_side_may_end_its_direction_first_and_goes_on_listening(make: Make, first: str) -> None:
    stream = make()
    consumer, producer = await stream.pair()
    early, late = (consumer, producer) if first == "consumer" else (producer, consumer)
    question = await deferToThread(send, early, MIB)
    early.shutdown(socket.SHUT_WR)
    assert await deferToThread(receive_digest, late) == (MIB, question)

    def answer() -> str:
        digest = send(late, 10 * MIB)
        late.close()
        return digest

    sent, got = await both(answer, lambda: receive_digest(early))
    assert got == (10 * MIB, sent)
    await stream.until(lambda: not stream.prod.figures().connections and not stream.cons.figures().connections)
    assert stream.prod.figures().reset == stream.cons.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_what_is_sent_and_ended_before_the_gateways_have_met_arrives(make: Make) -> None:
    stream = make()

    def ask() -> bytes:
        sock = stream.connect()
        sock.sendall(b"ping")
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(100)

    def answer() -> bytes:
        sock = stream.accept()
        assert receive_exactly(sock, 4) == b"ping"
        assert sock.recv(1) == b""
        sock.sendall(b"pong")
        sock.close()
        return b"pong"

    got, sent = await both(ask, answer)
    assert got == sent


@pytest_twisted.ensureDeferred
async def test_a_new_target_takes_new_connections_and_open_ones_stay(make: Make) -> None:
    stream = make()
    consumer, producer = await stream.pair()
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(PATIENCE)
        stream.prod.arm(stream.bundles[PROD], [Address(*other.getsockname())])
        moved = await deferToThread(stream.connect)
        accepted, _ = await deferToThread(other.accept)
        with accepted:
            accepted.sendall(b"new")
            assert await deferToThread(receive_exactly, moved, 3) == b"new"
        producer.sendall(b"old")
        assert await deferToThread(receive_exactly, consumer, 3) == b"old"


# Abnormal ends


@pytest_twisted.ensureDeferred
async def test_a_producer_that_resets_resets_the_consumer(make: Make) -> None:
    stream = make()
    consumer, producer = await stream.pair()

    def fail() -> None:
        send(producer, 4 * MIB)
        reset(producer)

    _, end = await both(fail, lambda: how_it_ends(consumer))
    assert end == "reset"
    await stream.until(lambda: stream.cons.figures().reset == stream.prod.figures().reset == 1)
    assert stream.cons.figures().connections == 0


@pytest_twisted.ensureDeferred
async def test_a_consumer_that_resets_resets_the_producer(make: Make) -> None:
    stream = make()
    consumer, producer = await stream.pair()

    def fail() -> None:
        send(consumer, 4 * MIB)
        reset(consumer)

    _, end = await both(fail, lambda: how_it_ends(producer))
    assert end == "reset"


@pytest_twisted.ensureDeferred
async def test_a_reset_is_noticed_while_the_other_side_reads_nothing(make: Make) -> None:
    stream = make()
    consumer, producer = await stream.pair()
    consumer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            consumer.send(NOISE)
            await sleep(0.01)
    reset(consumer)
    await stream.until(lambda: stream.cons.figures().reset == stream.prod.figures().reset == 1)
    assert await deferToThread(how_it_ends, producer) == "reset"


@pytest.mark.parametrize("role", [PROD, CONS])
@pytest_twisted.ensureDeferred
async def test_closing_a_stream_resets_both_sides_and_nothing_crosses_any_more(make: Make, role: Role) -> None:
    stream = make()
    consumer, producer = await stream.pair()
    pushed, end = deferToThread(push, producer), deferToThread(how_it_ends, consumer)
    side, other = (stream.prod, stream.cons) if role == PROD else (stream.cons, stream.prod)
    await stream.until(lambda: side.figures().bytes_to_consumer > MIB)
    (last,) = await side.elements.close(stream.uid, role)
    assert last.bytes_to_consumer > MIB
    assert (last.connections, last.accepted, last.reset) == (0, 1, 1)
    assert side.elements.figures(stream.uid, role) == []
    await stream.until(lambda: other.figures().reset == 1)
    stopped = other.figures()
    assert await pushed == "reset"
    assert await end == "reset"
    assert other.figures() == stopped
    assert await side.elements.close(stream.uid, role) == []


@pytest_twisted.ensureDeferred
async def test_a_connection_to_a_closed_stream_or_unarmed_channel_is_reset(make: Make) -> None:
    stream = make()
    stream.cons.elements.close(stream.uid, CONS)
    assert await deferToThread(stream.attempt) == "reset"
    stream.cons.elements.open(stream.uid, CONS, 100.0, {0: 0})
    assert await deferToThread(stream.attempt) == "reset"
    assert (stream.cons.figures().accepted, stream.cons.figures().reset) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_producer_that_does_not_listen_resets_the_consumer(make: Make) -> None:
    stream = make(dial_timeout=0.5)
    stream.app.close()
    assert await deferToThread(stream.attempt) == "reset"
    await stream.until(lambda: stream.prod.figures().reset == stream.cons.figures().reset == 1)


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_does_not_answer_resets_the_consumer_in_time(make: Make) -> None:
    stream = make(handshake_timeout=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stream.cons.arm(stream.bundles[CONS], [Address(*silent.getsockname())])
        assert await deferToThread(stream.attempt) == "reset"


@pytest_twisted.ensureDeferred
async def test_a_consumer_that_gives_up_while_the_gateways_meet_leaves_nothing(make: Make) -> None:
    stream = make()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stream.cons.arm(stream.bundles[CONS], [Address(*silent.getsockname())])
        consumer = await deferToThread(stream.connect)
        await stream.until(lambda: stream.cons.figures().connections == 1)
        reset(consumer)
        await stream.until(lambda: stream.cons.figures().connections == 0)
        assert stream.cons.figures().reset == 1


KILLED = """
import sys
from twisted.internet import reactor
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.ports import ChannelListener, ListenPorts
from scistream.tls.stream_channels import StreamSecret
from scistream.protocol.address import Address

uid, target = sys.argv[1], Address.parse(sys.argv[2])
secret = StreamSecret()
port = int(sys.argv[3])
(sock,) = ListenPorts(port, port).reserve("127.0.0.1", 1)
print(Address(*sock.getsockname()), flush=True)
print(secret.csr, end="", flush=True)
bundle = ""
while bundle.count("END CERTIFICATE") < 2:
    bundle += sys.stdin.readline()
elements = Elements(reactor, 0, 1, ElementSettings())
elements.open(uid, "PROD", 1e6, {0: 0})
elements.arm(uid, "PROD", {0: target}, secret.credentials(bundle, uid, "PROD"))
ChannelListener(reactor, sock).start(lambda sock, _peer: elements.carry(uid, "PROD", 0, sock, wan=True))
print("armed", flush=True)
reactor.run()
"""


@pytest_twisted.ensureDeferred
async def test_connections_wait_while_all_elements_have_died_although_the_gateway_has_not_been_told(make: Make) -> None:
    stream = make(elements=2, ready=0, handshake_timeout=60.0)
    await stream.ready()
    (listener,) = stream.prod.listeners
    elements = stream.prod.elements
    has_room = partial(elements.has_room, stream.uid, PROD, 0, wan=True)
    listener.start(stream.prod._acceptor(0, wan=True), has_room)
    assert has_room()
    processes = [member._process.pid for member in elements._members]  # type: ignore[attr-defined]
    for number, pid in enumerate(processes):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # the reactor does not run meanwhile
        assert has_room() == (number == 0)
    assert stream.prod.is_ready(), "this process has not been told"
    consumer, producer = await both(stream.connect, stream.accept)
    await carry_both_ways(consumer, producer, MIB)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    assert (stream.prod.reasons, stream.cons.reasons) == ([], [])


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_is_killed_resets_both_applications(make: Make) -> None:
    stream = make()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, stream.uid, str(Address(*stream.app.getsockname())), str(leased.take())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(scistream.__file__).parents[1])},
    ) as gateway:
        try:
            assert gateway.stdin is not None
            assert gateway.stdout is not None
            target = Address.parse(gateway.stdout.readline().strip())
            csr = "".join(iter(gateway.stdout.readline, "-----END CERTIFICATE REQUEST-----\n"))
            csr += "-----END CERTIFICATE REQUEST-----\n"
            bundles = issue_credentials(stream.uid, 2, 600.0, {PROD: csr, CONS: stream.cons.secret.csr})
            gateway.stdin.write(bundles[PROD])
            gateway.stdin.flush()
            assert gateway.stdout.readline() == "armed\n"
            stream.cons.arm(bundles[CONS], [target])
            quiet = await stream.pair()
            consumer, producer = await stream.pair()
            pushed = deferToThread(push, producer)
            ends = deferToThread(how_it_ends, consumer)
            await stream.until(lambda: stream.cons.figures().bytes_to_consumer > 8 * MIB)
        finally:
            os.kill(gateway.pid, signal.SIGKILL)
    assert await ends == "reset"
    assert await pushed == "reset"
    assert await both(*[lambda end=end: how_it_ends(end) for end in quiet]) == ["reset", "reset"]


# Strangers on the WAN


def knock(
    address: Address, context: SSL.Context, name: str, data: bytes = b"let me in"
) -> tuple[SSL.Connection, socket.socket]:
    """Shake hands with a WAN listener and send something; blocks."""
    sock = socket.create_connection(address, timeout=PATIENCE)
    sock.settimeout(None)
    connection = SSL.Connection(context, sock)
    connection.set_tlsext_host_name(name.encode())
    connection.set_connect_state()
    with contextlib.suppress(SSL.Error):
        connection.do_handshake()
        connection.send(data)
    return connection, sock


@pytest.mark.parametrize("who", ["the consumer", "the wrong channel", "another stream", "no certificate", "a producer"])
@pytest_twisted.ensureDeferred
async def test_only_the_consumer_of_this_channel_reaches_the_producer(make: Make, who: str) -> None:
    stream, other = make(channels=2), make()
    name = server_name(stream.uid, 1 if who == "the wrong channel" else 0)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)  # trusts anyone: it must not be this end that refuses
    if who != "no certificate":
        owner = other if who == "another stream" else stream
        side = owner.prod if who == "a producer" else owner.cons
        context.use_certificate(load_pem_x509_certificates(owner.bundles[side.role].encode())[1])
        context.use_privatekey(side.secret._key)
    _, sock = await deferToThread(knock, stream.prod.address(), context, name)
    with sock:
        if who == "the consumer":
            producer = await deferToThread(stream.accept)
            assert await deferToThread(receive_exactly, producer, 9) == b"let me in"
            return
        await stream.until(lambda: stream.prod.figures().reset == 1)
        assert await deferToThread(stream.nobody_came)
        assert stream.prod.figures().bytes_to_producer == 0


@pytest.mark.parametrize("greeting", [b"", b"GET / HTTP/1.1\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_stranger_without_tls_is_sent_away(make: Make, greeting: bytes) -> None:
    stream = make(handshake_timeout=0.3)

    def call() -> str:
        with socket.create_connection(stream.prod.address(), timeout=PATIENCE) as sock:
            sock.sendall(greeting)
            return how_it_ends(sock)

    assert await deferToThread(call) == "reset"
    assert await deferToThread(stream.nobody_came)
    await stream.until(lambda: stream.prod.figures().reset == 1)


@pytest_twisted.ensureDeferred
async def test_a_wan_connection_that_ends_without_saying_so_is_a_reset_not_an_end(make: Make) -> None:
    stream = make()
    context = stream.cons.secret.credentials(stream.bundles[CONS], stream.uid, CONS).context()
    first = encode_connect(Connect(uid=stream.uid, channel=0)) + b"let me in"
    _, sock = await deferToThread(knock, stream.prod.address(), context, server_name(stream.uid, 0), first)
    producer = await deferToThread(stream.accept)
    assert await deferToThread(receive_exactly, producer, 9) == b"let me in"
    sock.shutdown(socket.SHUT_WR)  # as anyone on the way could
    assert await deferToThread(how_it_ends, producer) == "reset"
    sock.close()


@pytest_twisted.ensureDeferred
async def test_the_consumers_gateway_tells_nothing_to_a_false_producer(make: Make) -> None:
    stream, other = make(), make()
    stream.cons.arm(stream.bundles[CONS], [other.prod.address()])
    assert await deferToThread(stream.attempt) == "reset"
    assert stream.cons.figures().bytes_to_producer == 0
    assert await deferToThread(other.nobody_came)


# Flow


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_slows_its_writer_and_nobody_else(make: Make) -> None:
    stream = make()
    for end in (stream.app, *stream.prod.sockets, *stream.cons.sockets):  # else the kernel's own buffers dwarf ours
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
    slow_consumer, slow_producer = await stream.pair()
    written = await deferToThread(fill, slow_producer, threading.Event())
    assert written < 32 * MIB
    held = [moving.held() for side in (stream.prod, stream.cons) for one in side.relays() for moving in one._pumps]
    assert 0 < sum(held) <= 2 * 262144
    consumer, producer = await stream.pair()
    began = time.monotonic()

    def talk() -> str:
        digest = send(producer, 64 * MIB)
        producer.close()
        return digest

    sent, got = await both(talk, lambda: receive_digest(consumer))
    assert got == (64 * MIB, sent)
    assert time.monotonic() - began < 10.0
    slow_producer.close()
    count, _ = await deferToThread(receive_digest, slow_consumer)
    assert count == written


@pytest_twisted.ensureDeferred
async def test_a_reader_that_rests_longer_than_a_wan_break_may_last_loses_nothing(make: Make) -> None:
    stream = make(wan_timeout=0.6)
    consumer, producer = await stream.pair()
    written = await deferToThread(fill, producer, threading.Event())
    await sleep(2.0)
    producer.close()
    count, _ = await deferToThread(receive_digest, consumer)
    assert count == written
    assert stream.cons.figures().reset == stream.prod.figures().reset == 0


@pytest_twisted.ensureDeferred
async def test_the_connections_of_a_stream_share_its_rate(make: Make) -> None:
    stream = make(channels=2, rate=80.0)
    pairs = [await stream.pair(number % 2) for number in range(4)]
    counts = [0] * len(pairs)

    def count(number: int, sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            while got := len(sock.recv(65536)):
                counts[number] += got

    running = [deferToThread(push, producer) for _, producer in pairs]
    running += [deferToThread(count, number, consumer) for number, (consumer, _) in enumerate(pairs)]
    await sleep(0.5)  # past the first burst
    for _ in range(20):  # a machine that is busy with something else moves less, and then as much at another time
        before, began = list(counts), time.monotonic()
        await sleep(2.0)
        moved = [after - start for after, start in zip(counts, before, strict=True)]
        rate = sum(moved) * 8e-6 / (time.monotonic() - began)
        assert rate < 88.0
        if rate > 72.0 and min(moved) > sum(moved) / 4 * 0.5:
            break
    else:
        raise AssertionError(f"{rate:.1f} of 80 Mbit/s, shared as {moved}: not all of it, or one of them starves")
    stream.cons.elements.close(stream.uid, CONS)
    await gatherResults(running)


# What it costs


@pytest_twisted.ensureDeferred
async def test_a_thousand_connections_leave_nothing_behind(make: Make) -> None:
    stream = make()

    def converse(count: int) -> None:
        for number in range(count):
            with socket.create_connection(stream.cons.address(), timeout=PATIENCE) as sock:
                sock.sendall(b"ping")
                if number % 4 == 3:
                    reset(sock)
                    continue
                sock.shutdown(socket.SHUT_WR)
                assert receive_exactly(sock, 4) == b"pong"
                assert sock.recv(1) == b""

    def serve() -> None:
        while True:
            try:
                sock, _ = stream.app.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(PATIENCE)
                if sock.recv(4) == b"ping":
                    sock.sendall(b"pong")
                    sock.recv(1)

    serving = deferToThread(serve)
    await deferToThread(converse, 4)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    descriptors, readers = len(os.listdir("/proc/self/fd")), len(_readers())
    await both(*[lambda: converse(250)] * 4)
    await stream.until(lambda: not stream.cons.figures().connections and not stream.prod.figures().connections)
    assert stream.cons.figures().accepted == 1004
    assert stream.cons.figures().reset == 249
    stream.app.shutdown(socket.SHUT_RDWR)
    await serving
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert len(_readers()) == readers


@pytest_twisted.ensureDeferred
async def test_idle_and_half_closed_connections_cost_no_time(make: Make) -> None:
    stream = make()
    await stream.pair()
    consumer, producer = await stream.pair()
    consumer.shutdown(socket.SHUT_WR)
    assert await deferToThread(producer.recv, 1) == b""
    other_consumer, other_producer = await stream.pair()
    other_producer.shutdown(socket.SHUT_WR)
    assert await deferToThread(other_consumer.recv, 1) == b""
    await sleep(0.1)
    before = time.process_time()
    await sleep(1.0)
    assert time.process_time() - before < 0.05
    assert all(not one._context.buffers.idle[8:] for side in (stream.prod, stream.cons) for one in side.relays())


@pytest_twisted.ensureDeferred
async def test_ipv6_targets_are_dialled(make: Make) -> None:
    needs_ipv6()
    stream = make()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as app:
        app.settimeout(PATIENCE)
        stream.prod.arm(stream.bundles[PROD], [Address(*app.getsockname()[:2])])
        consumer = await deferToThread(stream.connect)
        producer, _ = await deferToThread(app.accept)
        with producer:
            producer.sendall(b"six")
            assert await deferToThread(receive_exactly, consumer, 3) == b"six"
