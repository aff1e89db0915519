"""Who is let in at the WAN listener of a producer's gateway, and whom a consumer's gateway believes.

The test is the user and the other gateway (`manual_stream`), so it can sign certificates that nobody else would.

When a peer is refused, the application behind never sees a connection, or a byte. Resumed sessions are in
`test_openssl_client`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta

import pytest
from cryptography import x509
from harness import World
from manual_stream import CONS, PROD, HandMade, context, nobody_waits, trusting
from OpenSSL import SSL
from raw_peers import CLIENT, HOUR, SERVER, Chain, Signer, dial_wan, self_signed

from scistream.tls.stream_channels import consumer_name, producer_name, server_name
from support.applications import accept, address_of, connect, listen, listeners, receive_exactly
from support.facilities import HOST

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two facilities whose gateways keep no connections ready, which the gateways of the test do not expect."""
    gateway = {"wan": {"bind": HOST, "ready": 0}}
    with World(tmp_path_factory.mktemp("world"), lab={"gateway": gateway}, centre={"gateway": gateway}) as made:
        yield made


# -- the producer's gateway


def wan_name(stream: HandMade, channel: int = 0) -> bytes:
    return server_name(stream.uid, channel).encode()


def reaches(stream: HandMade, detector: socket.socket, made: SSL.Context, name: bytes | None = None) -> bool:
    """Return True if a WAN connection under this context comes through to the application, which then ends it."""

    def serve() -> None:
        with suppress(OSError):
            accept(detector).close()

    detector.settimeout(20.0)
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    ended = dial_wan(stream.address(), made, wan_name(stream) if name is None else name)
    server.join(20.0)
    return ended == "closed"


def is_let_in(stream: HandMade, detector: socket.socket) -> bool:
    """Check that a gateway with the right credentials is let in, as the control."""
    return reaches(stream, detector, context(stream.of_other_side()))


def is_refused(stream: HandMade, detector: socket.socket, made: SSL.Context, name: bytes | None = None) -> bool:
    """Return True if a WAN connection ends and the application notices nothing."""
    ended = dial_wan(stream.address(), made, wan_name(stream) if name is None else name)
    return ended != "closed" and nobody_waits(detector)


def nothing(stream: HandMade) -> None:
    return None


def another_streams(stream: HandMade) -> Chain:
    return stream.of_other_side(Signer())


def expired(stream: HandMade) -> Chain:
    return stream.of_other_side(begins=-2 * HOUR, ends=-timedelta(minutes=1))


def not_yet_valid(stream: HandMade) -> Chain:
    return stream.of_other_side(begins=HOUR, ends=2 * HOUR)


def of_another_uid(stream: HandMade) -> Chain:
    return stream.of_other_side(name=stream.of_other_side_name.replace(stream.uid[:8], "0" * 8))


def of_any_uid(stream: HandMade) -> Chain:
    return stream.of_other_side(name="*.scistream")


def signed_by_itself(stream: HandMade) -> Chain:
    return self_signed([x509.DNSName(stream.of_other_side_name)], CLIENT if stream.role == PROD else SERVER)


def signed_by_a_leaf(stream: HandMade) -> Chain:
    leaf = stream.of_other_side()
    forged = stream.of_other_side(Signer(leaf.certificates[0], leaf.key))
    return Chain((*forged.certificates, leaf.certificates[1]), forged.key)


def beside_the_authority_that_did_not_sign_it(stream: HandMade) -> Chain:
    other = another_streams(stream)
    return Chain((*other.certificates, stream.authority.certificate), other.key)


def of_our_own_side(stream: HandMade) -> Chain:
    own, usage = (producer_name(stream.uid), SERVER) if stream.role == PROD else (consumer_name(stream.uid), CLIENT)
    return stream.authority.sign([x509.DNSName(own)], usage)


def for_the_wrong_use(stream: HandMade) -> Chain:
    return stream.authority.sign([x509.DNSName(stream.of_other_side_name)], SERVER if stream.role == PROD else CLIENT)


WRONG = [
    nothing,
    another_streams,
    expired,
    not_yet_valid,
    of_another_uid,
    of_any_uid,
    signed_by_itself,
    signed_by_a_leaf,
    beside_the_authority_that_did_not_sign_it,
    of_our_own_side,
    for_the_wrong_use,
]


@contextmanager
def producer(world: World, num_conn: int = 1) -> Iterator[tuple[HandMade, list[socket.socket]]]:
    with (
        listeners(num_conn) as detectors,
        HandMade(world, PROD, [address_of(each) for each in detectors], num_conn) as stream,
    ):
        yield stream, detectors


@pytest.mark.parametrize("make", WRONG)
def test_a_gateway_with_a_wrong_certificate_reaches_no_application(
    world: World, make: Callable[[HandMade], Chain | None]
) -> None:
    with producer(world) as (stream, (detector,)):
        assert is_refused(stream, detector, context(make(stream)))
        assert is_let_in(stream, detector)


def test_an_older_tls_reaches_no_application(world: World) -> None:
    with producer(world) as (stream, (detector,)):
        assert is_refused(stream, detector, context(stream.of_other_side(), newest=SSL.TLS1_2_VERSION))
        assert is_let_in(stream, detector)


def test_the_right_certificate_for_another_channel_or_for_none_reaches_no_application(world: World) -> None:
    with producer(world, 2) as (stream, (first, second)):
        right = context(stream.of_other_side())
        for name in (wan_name(stream, 1), b"", consumer_name(stream.uid).encode(), b"localhost"):
            assert is_refused(stream, first, right, name)
            assert nobody_waits(second)
        assert is_let_in(stream, first)


def test_another_streams_whole_credentials_reach_no_application_by_either_name(world: World) -> None:
    with producer(world) as (stream, (detector,)), producer(world) as (other, (others,)):
        theirs = context(other.of_other_side())
        for name in (wan_name(stream), wan_name(other)):
            assert is_refused(stream, detector, theirs, name)
        assert reaches(other, others, theirs)
        assert is_let_in(stream, detector)


def test_the_credentials_of_an_old_generation_reach_no_application(world: World) -> None:
    with producer(world) as (stream, (detector,)):
        old = context(stream.of_other_side())
        assert reaches(stream, detector, old)
        stream.update()
        assert is_refused(stream, detector, old)
        assert is_let_in(stream, detector)


def test_after_its_release_a_stream_s_port_is_closed(world: World) -> None:
    with producer(world) as (stream, (detector,)):
        right = context(stream.of_other_side())
        assert reaches(stream, detector, right)
        stream.release()
        with pytest.raises(ConnectionRefusedError):
            dial_wan(stream.address(), right, wan_name(stream))
        assert nobody_waits(detector)


# -- the consumer's gateway


@contextmanager
def fake_gateway(world: World) -> Iterator[tuple[HandMade, socket.socket]]:
    """Set up a consumer's side whose other gateway is the test."""
    with listen() as wan, HandMade(world, CONS, [address_of(wan)]) as stream:
        yield stream, wan


def hears(stream: HandMade, wan: socket.socket, made: SSL.Context) -> bytes:
    """Return what the fake gateway receives of a consumer's data; if nothing, check that the consumer is reset."""
    with connect(stream.listeners[0]) as analysis, accept(wan) as sock:
        analysis.sendall(b"secret of the consumer")
        connection = SSL.Connection(made, sock)
        connection.set_accept_state()
        sock.settimeout(None)
        try:
            connection.do_handshake()
            return connection.recv(22)
        except SSL.Error:
            sock.close()
            assert _is_reset(analysis)
            return b""


def _is_reset(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b"no end may come"
    except ConnectionResetError:
        return True


def is_believed(stream: HandMade, wan: socket.socket) -> bool:
    """Check that a gateway with the right credentials is believed, as the control."""
    right = trusting(context(stream.of_other_side(), server=True), stream.authority.certificate)
    return hears(stream, wan, right) == b"secret of the consumer"


@pytest.mark.parametrize("make", WRONG)
def test_a_producers_gateway_with_a_wrong_certificate_receives_nothing(
    world: World, make: Callable[[HandMade], Chain | None]
) -> None:
    with fake_gateway(world) as (stream, wan):
        assert hears(stream, wan, context(make(stream), server=True)) == b""
        assert is_believed(stream, wan)


def test_a_producers_gateway_of_another_channel_or_an_older_tls_receives_nothing(world: World) -> None:
    with fake_gateway(world) as (stream, wan):
        other = stream.of_other_side(name=server_name(stream.uid, 1))
        assert hears(stream, wan, context(other, server=True)) == b""
        old = context(stream.of_other_side(), server=True, newest=SSL.TLS1_2_VERSION)
        assert hears(stream, wan, old) == b""
        exact = context(stream.of_other_side(name=server_name(stream.uid, 0)), server=True)
        assert hears(stream, wan, exact) == b"secret of the consumer"


def test_a_producers_gateway_with_the_credentials_of_an_old_generation_receives_nothing(world: World) -> None:
    with fake_gateway(world) as (stream, wan):
        old = context(stream.of_other_side(), server=True)
        assert hears(stream, wan, old) == b"secret of the consumer"
        stream.update()
        assert hears(stream, wan, old) == b""
        assert is_believed(stream, wan)


def test_a_consumers_gateway_shows_its_own_certificate_and_never_resumes(world: World) -> None:
    with fake_gateway(world) as (stream, wan), ExitStack() as opened:
        right = trusting(context(stream.of_other_side(), server=True), stream.authority.certificate)
        right.set_session_id(b"fake")
        right.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
        whole: list[int] = []
        right.set_verify(SSL.VERIFY_PEER, lambda _c, _x, _e, depth, ok: whole.append(depth) or bool(ok))  # type: ignore[func-returns-value]
        for _ in range(2):
            whole.clear()
            analysis = opened.enter_context(connect(stream.listeners[0]))
            sock = opened.enter_context(accept(wan))
            connection = SSL.Connection(right, sock)
            connection.set_accept_state()
            sock.settimeout(None)
            connection.do_handshake()
            assert 0 in whole, "a resumed session shows no certificate anew"
            assert connection.get_servername() == server_name(stream.uid, 0).encode()
            shown = connection.get_peer_certificate(as_cryptography=True)
            assert shown is not None
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == [consumer_name(stream.uid)]
            connection.sendall(b"data")
            assert receive_exactly(analysis, 4) == b"data"


def test_after_its_release_a_consumers_port_is_closed_and_nobody_is_dialled(world: World) -> None:
    with fake_gateway(world) as (stream, wan):
        assert is_believed(stream, wan)
        stream.release()
        with pytest.raises(ConnectionRefusedError):
            connect(stream.listeners[0])
        assert nobody_waits(wan)
