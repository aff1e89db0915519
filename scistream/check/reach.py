"""Connect to a gateway or a peer, and see what that shows: round-trip time, segments, TLS, certificate, clock.

These are the only connections that `scistream check` makes. No stream is touched: a gateway is asked for its Status.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from OpenSSL import SSL

from scistream import timing
from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.names import within
from scistream.check.plan import CheckPlan
from scistream.protocol.address import Address
from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import Error, GatewayCapacity, Resp, Status
from scistream.shared_settings import trust_of
from scistream.tls.certificate_names import names_of
from scistream.tls.contexts import ALPN, pinned_client_context
from scistream.tls.explain import explain
from scistream.tls.files import CertificateError
from scistream.tls.reloadable import controller_credentials
from scistream.tls.verify import verify_server
from scistream.units import format_rate

_TCP_INFO = struct.Struct("@8B24I")  # struct tcp_info as far as tcpi_total_retrans
_SEGMENT, _PATH_MTU, _RTT = 10, 21, 23
_HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}
_SMALL_SEGMENT = 1000
_MOST_AT_ONCE = 8
_MOST_ANSWER = 2**20
_HTTP = b"http/1.1"


@dataclass(frozen=True)
class ConnectionFacts:
    """What a new TCP connection shows.

    :ivar local: its numeric address here.
    :ivar rtt: its round-trip time in seconds.
    :ivar segment: the most bytes in a segment that it sends.
    :ivar path_mtu: the largest packet of the path, as far as the kernel knows.
    :ivar headers: the bytes of the headers of IP and TCP in a packet, without options.
    """

    local: str
    rtt: float
    segment: int
    path_mtu: int
    headers: int = 40


@dataclass(frozen=True)
class GatewayFacts:
    """What an S2CS sees of one of its gateways.

    :ivar problem: why it cannot be used: a sentence; empty if it can.
    :ivar room: its capacity, if it has answered.
    """

    name: str
    address: Address
    connection: ConnectionFacts | None = None
    problem: str = ""
    room: GatewayCapacity | None = None


@dataclass(frozen=True)
class PeerFacts:
    """What is seen of the host that the user names.

    :ivar problem: why it cannot be connected to: a sentence; empty if it can.
    :ivar speaks: what it speaks: "scistream/1", "HTTP", or empty if that is not known.
    :ivar ahead: by how many seconds its clock is ahead of this one; None if it does not tell the time.
    """

    address: Address
    connection: ConnectionFacts | None = None
    problem: str = ""
    speaks: str = ""
    names: str = ""
    ahead: float | None = None


def ask_gateways(plan: CheckPlan) -> list[GatewayFacts]:
    """Connect to each gateway of an S2CS as the S2CS does, several at once."""
    if plan.server is None:
        return []
    named = [(gateway.name, Address.parse(gateway.address)) for gateway in plan.server.gateways]
    try:
        context = _controller_context(plan)
    except CertificateError:  # reported with the certificates
        return []
    with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        return list(pool.map(lambda each: _ask_gateway(each[0], each[1], context), named))


def _controller_context(plan: CheckPlan) -> SSL.Context | None:
    assert plan.server is not None, "only an S2CS has gateways"
    assert plan.file is not None, "a configuration comes from a file"
    if plan.server.insecure or plan.server.controller is None:
        return None
    return controller_credentials(trust_of(plan.server.controller, plan.file)).context


def _ask_gateway(name: str, address: Address, context: SSL.Context | None) -> GatewayFacts:
    connection = None
    try:
        with _connect(address) as sock:
            connection = _facts_of(sock)
            stream = _Stream(sock) if context is None else _TlsStream(sock, context, address.host, ALPN)
            if isinstance(stream, _TlsStream):
                verify_server(stream.connection, address.host)
            stream.send(encode(Status(uid=None, role=None, seq=1, limit=1)))
            answer = decode(stream.receive_line())
    except (OSError, SSL.Error, CertificateError, StreamError) as problem:
        return GatewayFacts(name, address, connection, explain(problem))
    if isinstance(answer, Error):
        return GatewayFacts(name, address, connection, f"it refuses this S2CS ({answer.code}): {printable(answer.msg)}")
    room = answer.room if isinstance(answer, Resp) else None
    return GatewayFacts(name, address, connection, "" if room else "it does not answer as a gateway", room)


def ask_peer(address: Address) -> PeerFacts:
    """Connect to a host, and find out what it speaks, and what its clock shows."""
    try:
        with _connect(address) as sock:
            connection = _facts_of(sock)
    except OSError as problem:
        return PeerFacts(address, problem=explain(problem))
    facts = _ask_with_tls(address, connection)
    return facts or _ask_for_time(address, connection) or PeerFacts(address, connection)


def _ask_with_tls(address: Address, connection: ConnectionFacts) -> PeerFacts | None:
    with suppress(OSError, SSL.Error, ValueError), _connect(address) as sock:
        stream = _TlsStream(sock, pinned_client_context(), address.host, ALPN, _HTTP)
        found = stream.connection.get_peer_certificate(as_cryptography=True)
        names = printable(", ".join(names_of(found))) if found is not None else ""
        if stream.connection.get_alpn_proto_negotiated() == ALPN:
            return PeerFacts(address, connection, speaks=ALPN.decode(), names=names)
        return PeerFacts(address, connection, speaks="TLS", names=names, ahead=_time_of(stream, address))
    return None


def _ask_for_time(address: Address, connection: ConnectionFacts) -> PeerFacts | None:
    with suppress(OSError, ValueError), _connect(address) as sock:
        ahead = _time_of(_Stream(sock), address)
        return PeerFacts(address, connection, speaks="HTTP" if ahead is not None else "", ahead=ahead)
    return None


def _time_of(stream: _Stream, address: Address) -> float | None:
    """Return by how many seconds the clock of a web server is ahead; None if it does not tell the time."""
    started = time.time()
    stream.send(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii", "replace"))
    while line := stream.receive_line():
        key, _, value = line.decode("latin-1").partition(":")
        if key.strip().lower() == "date":
            shown = parsedate_to_datetime(value.strip()).timestamp()
            return shown + 0.5 - (started + time.time()) / 2  # the header has whole seconds, rounded down
    return None


def _connect(address: Address) -> socket.socket:
    """Connect to one of the addresses of a host.

    :raises OSError: if none of them can be reached, or its name cannot be resolved in time.
    """
    host, port = address
    late: list[tuple[int, Any]] | OSError = TimeoutError("the name service does not answer")
    found = within(lambda: _resolve(host, port), late)
    if isinstance(found, OSError):
        raise found
    problem: OSError = OSError(f"{host} has no address")
    for family, name in found:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timing.CHECK_CONNECT)
        try:
            sock.connect(name)
        except OSError as refused:
            sock.close()
            problem = TimeoutError("it does not answer") if isinstance(refused, TimeoutError) else refused
        else:
            return sock
    raise problem


def _resolve(host: str, port: int) -> list[tuple[int, Any]] | OSError:
    try:
        return [(each[0], each[4]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as problem:
        return problem


def _facts_of(sock: socket.socket) -> ConnectionFacts:
    info = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    headers = _HEADERS.get(sock.family, 40)
    return ConnectionFacts(sock.getsockname()[0], info[_RTT] / 1e6, info[_SEGMENT], info[_PATH_MTU], headers)


class _Stream:
    """Lines over a connection, all of them within one limit of time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._until = time.monotonic() + timing.CHECK_CONNECT
        self._left = b""

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive_line(self) -> bytes:
        """Return the next line without its LF; what there was if the connection ends before.

        :raises OSError: if it takes too long or is too long.
        """
        while b"\n" not in self._left:
            data = self.receive()
            if not data or len(self._left) > _MOST_ANSWER:
                break
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line.removesuffix(b"\r")

    def receive(self) -> bytes:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it does not answer in time")
        self._sock.settimeout(left)
        try:
            return self._sock.recv(65536)
        except TimeoutError:
            raise TimeoutError("it does not answer in time") from None


class _TlsStream(_Stream):
    """The same through TLS. The handshake is over when it is made.

    :raises SSL.Error: if the handshake fails.
    """

    def __init__(self, sock: socket.socket, context: SSL.Context, host: str, *protocols: bytes) -> None:
        super().__init__(sock)
        self.connection = SSL.Connection(context, None)
        self.connection.set_connect_state()
        self.connection.set_alpn_protos(list(protocols))
        if Address(host, 1).numeric is None:
            self.connection.set_tlsext_host_name(host.rstrip(".").encode("idna"))
        self._run(self.connection.do_handshake)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self._flush()

    def receive(self) -> bytes:
        found: list[bytes] = []
        try:
            self._run(lambda: found.append(self.connection.recv(65536)))
        except SSL.ZeroReturnError:
            return b""
        return found[0]

    def _run(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except SSL.WantReadError:
                self._flush()
                data = super().receive()
                if not data:
                    raise SSL.SysCallError(-1, "Unexpected EOF") from None
                self.connection.bio_write(data)
            else:
                self._flush()
                return

    def _flush(self) -> None:
        with suppress(SSL.WantReadError):
            while True:
                self._sock.sendall(self.connection.bio_read(65536))


def gateway_findings(facts: GatewayFacts) -> Finding:
    """Judge whether an S2CS can use a gateway."""
    name = f"reach.gateway-{facts.name}"
    if facts.problem and facts.connection is None:
        remedy = f"start it there (twistd s2ds), and open port {facts.address.port} in its firewall for this host"
        return fail(name, f"{facts.address} cannot be reached: {_short(facts.problem)}", remedy)
    if facts.problem:
        return fail(name, f"{facts.address} cannot be used: {facts.problem.rstrip('.')}", "see the log of the gateway")
    assert facts.room is not None, "a gateway without a problem has answered"
    assert facts.connection is not None, "a gateway that has answered was connected to"
    old = "" if facts.room.wan is not None else ", of an older version"
    why = (
        f"{facts.address} accepts this S2CS{old}, with {facts.room.ports} ports and {format_rate(facts.room.rate)}, "
        f"over {facts.connection.rtt * 1000:.3g} ms"
    )
    return ok(name, why)


def _short(problem: str) -> str:
    """Return the reason for which there is no connection, without the advice that is meant for users."""
    reason = problem.partition(": ")[0].rstrip(".")
    return reason[:1].lower() + reason[1:]


def peer_findings(facts: PeerFacts, interface_mtu: int | None) -> Iterator[Finding]:
    """Yield what is found about the host that the user names.

    :param interface_mtu: of the interface of the connection; None if it is not known.
    """
    name = "reach.peer"
    if facts.connection is None:
        remedy = "check the address, the firewalls of both sites, and whether a program listens there"
        yield fail(name, f"{facts.address} cannot be reached: {_short(facts.problem)}", remedy)
        return
    speaks = f", and speaks {facts.speaks}" if facts.speaks else ""
    names = f" with a certificate for {facts.names}" if facts.names else ""
    yield ok(name, f"{facts.address} is {facts.connection.rtt * 1000:.3g} ms away{speaks}{names}")
    yield from path_findings(facts.connection, interface_mtu)
    if facts.ahead is None:
        yield unseen("clock.peer", f"the clock of {facts.address}, which does not tell the time as a web server does")
    elif abs(facts.ahead) > timing.CHECK_CLOCK:
        way = "ahead of" if facts.ahead > 0 else "behind"
        why = f"the clock of {facts.address} is {abs(facts.ahead):.0f} s {way} this one"
        yield warn("clock.peer", why, "timedatectl set-ntp true, on the machine whose clock is wrong")
    else:
        yield ok("clock.peer", f"the clock of {facts.address} agrees with this one within {timing.CHECK_CLOCK:g} s")


def path_findings(facts: ConnectionFacts, interface_mtu: int | None) -> Iterator[Finding]:
    """Yield what is found about the packets of a connection."""
    name = "reach.path-mtu"
    seen = f"segments of {facts.segment} bytes, packets of at most {facts.path_mtu} bytes"
    if interface_mtu is not None and facts.path_mtu < interface_mtu:
        why = f"{seen}, but the interface has an MTU of {interface_mtu}: the path carries less"
        remedy = "ip link set dev INTERFACE mtu N, with the MTU of the path, or sysctl -w net.ipv4.tcp_mtu_probing=1"
        yield warn(name, why, remedy)
    elif facts.segment < _SMALL_SEGMENT:
        why = f"{seen}: the far end or a middlebox allows small segments only, which cost processor time"
        yield warn(name, why, "check the MTU of the far end (ip link), and of tunnels on the path")
    else:
        yield ok(name, seen)
