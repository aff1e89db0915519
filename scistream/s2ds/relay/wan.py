"""A connection to the other gateway of a stream, from its beginning until a relay takes it.

Either gateway may have dialled. Once the other one is verified, the connection is *ready*: it carries nothing until
Connect, which the consumer's gateway sends and the producer's gateway waits for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address, address_group
from scistream.protocol.connect import MAX_LINE, Connect, read_connect, refused
from scistream.protocol.errors import BadMessageError, ErrorCode
from scistream.protocol.messages import PROD, Cause
from scistream.s2ds.relay.context import ChannelTarget, ConnectionEnding, RelayContext
from scistream.s2ds.relay.dialling import dial_target
from scistream.s2ds.relay.handshake import OldGatewayError, SlowHandshakeError
from scistream.s2ds.relay.leg import EOF, WANT, ConnectionBrokenError, Leg, explain, prepare, set_keepalive
from scistream.s2ds.relay.mptcp import is_multipath, plain_address
from scistream.s2ds.relay.openssl import is_resumed
from scistream.s2ds.relay.plain import PlainLeg
from scistream.s2ds.relay.tcp_info import tcp_info
from scistream.s2ds.relay.tickets import KeptTickets, keep_ticket
from scistream.s2ds.relay.tls import TlsLeg
from scistream.tls.files import CertificateError
from scistream.tls.stream_channels import server_name, speaks_connect, verify_peer

OUTSIDE = "the address of the other gateway is outside the networks that this gateway may use (wan_networks)"

MOST_DISCARDED = 1024 * 1024
"""The bytes of an application that are discarded after Connect was refused, before the connection is closed anyway."""
MOST_FAREWELLS = 64
"""The connections of an element that were answered with an ERROR and are not closed yet; the oldest is closed early."""


class WanOwner(Protocol):
    """The owner of a connection that no relay has taken."""

    def wan_opened(self, wan: WanConnection) -> None:
        """Note that the other gateway is verified."""

    def wan_connects(self, wan: WanConnection, connect: Connect) -> None:
        """Note that Connect has arrived, for the right channel."""

    def wan_ended(self, wan: WanConnection, ending: ConnectionEnding) -> None:
        """Note that the connection is over."""


class WanConnection:
    """A connection to the other gateway. Call `accept` or `dial` once.

    :ivar is_verified: True once the certificate of the other gateway is verified.
    :ivar speaks_connect: True if the connection begins with Connect.
    :ivar is_dialled: True if this gateway has dialled.
    :ivar seconds_to_open: how long the handshake took, with the dial.
    :ivar has_misbehaved: True if it ended because the other gateway broke the rules of Connect.
    :ivar source: the address or network of a peer that has dialled.
    :ivar lacks_connect: True if it ended since the other gateway does not know Connect.
    :ivar address: where the other gateway is: of a peer that has dialled, or where it is dialled, which may be a name
        if a proxy looks it up. None until it is known.
    """

    __slots__ = (
        "__weakref__",
        "_broken",
        "_context",
        "_is_claimed",
        "_is_probed_early",
        "_leg",
        "_opening",
        "_owner",
        "_sock",
        "_target",
        "address",
        "has_misbehaved",
        "is_dialled",
        "is_verified",
        "lacks_connect",
        "opened_at",
        "over",
        "seconds_to_open",
        "source",
        "speaks_connect",
    )

    log = Logger()

    def __init__(self, context: RelayContext, target: ChannelTarget, owner: WanOwner) -> None:
        self._context = context
        self._target = target
        self._owner = owner
        self._sock: socket.socket | None = None
        self._leg: Leg | None = None
        self._opening: Deferred[None] | None = None
        self._is_claimed = False  # Connect has come
        self._is_probed_early = False
        self._broken: ConnectionBrokenError | None = None  # after Connect, before a relay has taken the connection
        self.is_verified = self.speaks_connect = self.is_dialled = self.has_misbehaved = self.over = False
        self.opened_at = self.seconds_to_open = 0.0
        self.source = ""
        self.address: Address | None = None
        self.lacks_connect = False

    @property
    def target(self) -> ChannelTarget:
        """The target, with the credentials under which the other gateway is verified."""
        return self._target

    def accept(self, sock: socket.socket) -> None:
        """Verify the gateway that has dialled this one. The connection owns the socket."""
        self._sock = sock
        self.address = _address_of(sock)
        self.source = address_group(self.address.host) if self.address is not None else ""
        self._start(self._accept(sock))

    def dial(self, on_sent: Callable[[], None], *, must_speak_connect: bool) -> None:
        """Dial the other gateway and verify it.

        :param on_sent: called when a connection request has been sent.
        :param must_speak_connect: end the connection, before the other gateway acts on it, if it does not know Connect.
        """
        self.is_dialled = True
        self._start(self._dial(on_sent, must_speak_connect))

    def wait_for_connect(self) -> None:
        """At the producer's gateway: read Connect, which may be there already."""
        self._wait(self._read_connect)

    def wait_to_be_claimed(self) -> None:
        """At the consumer's gateway: hold the connection, on which nothing may arrive."""
        self._wait(self._check_silent)

    def note_ready(self) -> None:
        """Let TCP find out early that the peer is dead, since nothing is sent on a ready connection."""
        assert self._leg is not None
        set_keepalive(self._leg.sock, timing.READY_SILENCE, is_watched=True)
        if is_multipath(self._leg.sock):
            self._context.dead_peers.end_sooner(self._leg, timing.READY_SILENCE)
        self._is_probed_early = True

    def is_alive(self) -> bool:
        """Return False if the other gateway has ended the connection, or does not answer TCP."""
        assert self._leg is not None
        try:
            if not self._leg.sock.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        info = tcp_info(self._leg.sock)  # TCP does not probe while the last bytes are not acknowledged
        return info.probes < 2 and info.retransmits < 2  # the answer to one may be on its way

    def is_inside(self, allowed: Callable[[Address], bool]) -> bool:
        """Return whether the address of the other gateway is allowed, or not known yet."""
        return self.address is None or allowed(self.address)

    def rtt(self) -> float:
        """Return the smoothed round-trip time in seconds."""
        return tcp_info(self._leg.sock).rtt if self._leg is not None and not self.over else 0.0

    def has_received(self) -> bool:
        """Return True if any byte has arrived."""
        return self._sock is not None and tcp_info(self._sock).received > 0

    def take(self, owner: Any) -> Leg:
        """Give the leg to a relay, which owns it from now on."""
        leg, self._leg = self._leg, None
        assert leg is not None
        self.over, self._sock = True, None
        leg.adopt(owner)
        broken, self._broken = self._broken, None
        if broken is not None:
            leg.tell_broken(broken)
        elif self._is_probed_early or is_multipath(leg.sock):
            set_keepalive(leg.sock, self._context.wan_timeout, is_watched=True)
            self._context.dead_peers.end_sooner(leg, None)
        return leg

    def reset(self, reason: str, cause: Cause) -> None:
        """Reset the connection. Idempotent."""
        if self.is_dialled or self.is_verified or cause == "gateway":
            self._end(ConnectionEnding(False, reason, cause))
        else:
            self._end(ConnectionEnding(False, reason, "stranger"))

    def abort(self) -> None:
        """Reset the connection without telling its owner. Idempotent."""
        self.over = True
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.abort()
        elif self._sock is not None:
            self._sock.close()
        self._sock = None

    # -- LegOwner, PumpEnd

    def broke(self, broken: ConnectionBrokenError) -> None:
        """End the connection, whose leg has ended, after what has arrived before."""
        leg = self._leg
        if not self.over and leg is not None and leg.reader is not None:
            leg.readable = True
            leg.reader.advance()
        if not self.over and self._is_claimed:
            self._broken = broken  # the relay delivers what came before
        elif not self.over:
            if leg is self._leg:  # otherwise its handshake with a ticket has failed, and another is under way
                self.reset(str(broken), broken.cause)
        elif leg is not None:
            leg.tell_broken(broken)  # Connect was there, so the leg has another owner now

    # -- opening

    def _start(self, opening: Any) -> None:
        self.opened_at = self._context.reactor.seconds()
        started = Deferred.fromCoroutine(opening)
        if not started.called:
            self._opening = started
        started.addCallback(self._opened).addErrback(self._not_opened)

    async def _accept(self, sock: socket.socket) -> None:
        prepare(sock, self._context.wan_timeout, self._context.wan_congestion)
        await self._shake_hands(sock, None, must_speak_connect=False)

    async def _dial(self, on_sent: Callable[[], None], must_speak_connect: bool) -> None:
        target = self._target

        def sent(address: Address) -> None:
            self.address = address
            on_sent()

        server = "CONS" if target.role == PROD else PROD
        name = server_name(target.uid, target.channel, server)
        self._sock = sock = await dial_target(self._context, target, sent, wan=True)
        try:
            await self._shake_hands(sock, name, must_speak_connect=must_speak_connect, may_use_ticket=True)
        except _TicketFailedError:
            leg, self._leg, self._sock = self._leg, None, None
            assert leg is not None
            leg.abort()
            self._sock = sock = await dial_target(self._context, target, sent, wan=True)
            await self._shake_hands(sock, name, must_speak_connect=must_speak_connect)

    async def _shake_hands(
        self, sock: socket.socket, name: str | None, *, must_speak_connect: bool, may_use_ticket: bool = False
    ) -> None:
        target, context = self._target, self._context
        if target.tls_context is None:
            self._leg = PlainLeg(context.poller, sock, context.dead_peers, self, target.gateway, wan=True)
            self.is_verified = True
            return
        self._leg = leg = TlsLeg(
            context.poller, sock, context.dead_peers, self, target.gateway, target.tls_context, name
        )
        leg.must_speak_connect = must_speak_connect
        if may_use_ticket and isinstance(target.tickets, KeptTickets) and target.tickets.use(leg.connection):
            await self._handshake_with_ticket(leg, target.tickets)
        else:
            await leg.handshake(context.reactor, context.handshake_timeout)
        resumed = target.tickets is not None and is_resumed(leg.connection)
        verify_peer(leg.connection, target.uid, target.channel, target.role, dials=name is not None, resumed=resumed)
        self.is_verified = True
        self.speaks_connect = speaks_connect(leg.connection)

    async def _handshake_with_ticket(self, leg: TlsLeg, kept: KeptTickets) -> None:
        leg.must_accept_ticket = True
        try:
            await leg.handshake(self._context.reactor, self._context.handshake_timeout)
        except ConnectionBrokenError as broken:
            kept.forget(leg.connection)
            if isinstance(broken, SlowHandshakeError):
                raise
            raise _TicketFailedError from None

    def _opened(self, _result: None) -> None:
        self._opening = None
        self.seconds_to_open = self._context.reactor.seconds() - self.opened_at
        if not self.over:
            self._owner.wan_opened(self)

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        if self.over or failure.check(CancelledError):
            return
        wrong = failure.value
        self.lacks_connect = isinstance(wrong, OldGatewayError)
        if isinstance(wrong, ConnectionBrokenError | CertificateError):
            self.reset(str(wrong), wrong.cause if isinstance(wrong, ConnectionBrokenError) else "wan")
        elif isinstance(wrong, OSError):
            self.reset(explain(wrong), "gateway")
        else:
            self.log.failure("Failed to open a connection to another gateway", failure=failure)
            self.reset(f"the gateway failed with {type(wrong).__name__}", "gateway")

    # -- ready

    def _wait(self, read: Callable[[TlsLeg], None]) -> None:
        leg = self._leg
        assert isinstance(leg, TlsLeg)
        leg.reader = _Reader(self, leg, read)
        leg.reader.advance()

    def _check_silent(self, leg: TlsLeg) -> None:
        if leg.read_line(MAX_LINE) is not None:
            raise ConnectionBrokenError(f"{leg.peer_name} sent something before Connect", "far-side", leg)

    def _read_connect(self, leg: TlsLeg) -> None:
        line = leg.read_line(MAX_LINE)
        if line is None:
            return
        target = self._target
        try:
            connect = read_connect(line)
        except BadMessageError as wrong:
            self.refuse("bad-message", f"{leg.peer_name} did not send Connect first: {wrong.msg}", "far-side")
            return
        if (connect.uid, connect.channel) != (target.uid, target.channel):
            reason = f"{leg.peer_name} sent Connect for another stream or channel"
            self.refuse("bad-message", reason, "far-side")
            return
        leg.reader, self._is_claimed = None, True
        keep_ticket(target.tickets, leg.connection, connect.ticket)
        self._owner.wan_connects(self, connect)

    def refuse(self, code: ErrorCode, reason: str, cause: Cause) -> None:
        """Answer Connect with an ERROR, and end the connection."""
        leg, self._leg = self._leg, None
        assert leg is not None
        self._sock, self.has_misbehaved = None, cause == "far-side"
        refuse_connect(self._context, leg, self._target.uid, code, reason)
        self._end(ConnectionEnding(False, reason, cause))

    def _end(self, ending: ConnectionEnding) -> None:
        if not self.over:
            self.abort()
            self._owner.wan_ended(self, ending)


class _TicketFailedError(Exception):
    """A handshake with a ticket has failed; one with certificates may do."""


class _Reader:
    """The reader of a leg that is not taken yet."""

    waits = False

    def __init__(self, wan: WanConnection, leg: TlsLeg, read: Callable[[TlsLeg], None]) -> None:
        self._wan = wan
        self._leg = leg
        self._read = read

    def advance(self) -> None:
        """Read what has arrived."""
        wan = self._wan
        if wan.over:
            return
        try:
            self._read(self._leg)
        except ConnectionBrokenError as broken:
            wan.has_misbehaved = not self._leg.is_ending
            wan.reset(str(broken), broken.cause)
        except Exception as fault:
            wan.log.failure("Failed to read from another gateway")
            wan.reset(f"the gateway failed with {type(fault).__name__}", "gateway")


def refuse_connect(context: RelayContext, leg: Leg, uid: str, code: ErrorCode, reason: str) -> None:
    """Answer Connect with an ERROR, and close the leg once the other gateway has had time to read the answer."""
    assert isinstance(leg, TlsLeg)
    farewell = _Farewell(context, leg)
    if len(context.farewells) > MOST_FAREWELLS:
        next(iter(context.farewells)).end()
    leg.adopt(farewell)
    leg.reader = farewell
    try:
        leg.write_line(refused(uid, code, reason))
        leg.finish_writing()
    except ConnectionBrokenError:
        farewell.end()
        return
    farewell.advance()


class _Farewell:
    """The end of a connection that was answered with an ERROR: a close with unread bytes could destroy the answer."""

    waits = False

    def __init__(self, context: RelayContext, leg: TlsLeg) -> None:
        self._context = context
        self._buffers = context.buffers
        context.farewells[self] = None
        self._leg: TlsLeg | None = leg
        self._left = MOST_DISCARDED
        self._timer = context.reactor.callLater(timing.FAREWELL, self.end)

    def advance(self) -> None:
        """Discard what arrives, until the other gateway ends the connection."""
        buffer = self._buffers.borrow()
        try:
            while self._leg is not None:
                count = self._leg.read_into(buffer, self._buffers.size)
                if count == WANT:
                    return
                self._left -= max(count, self._leg.read_cost)
                if count == EOF or self._left <= 0:
                    self.end()
        except ConnectionBrokenError:
            self.end()
        finally:
            self._buffers.give_back(buffer)

    def broke(self, _broken: ConnectionBrokenError) -> None:
        """Close the leg."""
        self.end()

    def reset(self, _reason: str, _cause: Cause) -> None:
        """Close the leg."""
        self.end()

    def end(self) -> None:
        """Close the leg. Idempotent."""
        leg, self._leg = self._leg, None
        if leg is not None:
            if self._timer.active():
                self._timer.cancel()
            del self._context.farewells[self]
            leg.close()


def _address_of(sock: socket.socket) -> Address | None:
    """Return the address of the peer; None if the connection is over."""
    try:
        host, port, *_ = sock.getpeername()
    except OSError:
        return None
    return Address(plain_address(host), port)
