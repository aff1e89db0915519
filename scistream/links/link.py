"""The Twisted protocol of control links: messages, one JSON object per line, and the limits on them.

`Link` is used at both ends. It enforces time limits, answers lines that are not valid messages, closes the link on
abuse, and passes valid messages to its `LinkOwner`. Protocol section 3 describes the framing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IReactorTime,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import logs, timing
from scistream.links.backpressure import MAX_UNREAD, LineSplitter, ReadThrottle
from scistream.protocol.address import Address
from scistream.protocol.codec import MAX_FIRST_LINE, MAX_LINE, decode, encode, is_answer
from scistream.protocol.errors import BadMessageError, ErrorCode, StreamError
from scistream.protocol.messages import MAX_TEXT, Answer, Command, Error, Message, ProdLstn, Resp

MAX_BAD_LINES = 8


CredentialExpiry = Callable[[SSL.Connection], tuple[float, str]]
"""Returns the seconds until the credentials of a connection's peer expire, and the sentence to send and log then."""


class LinkOwner(Protocol):
    """Gets the events and messages of a link."""

    def link_up(self, link: Link) -> None:
        """Handle a link that can send messages: TLS, if any, is established and the peer's certificate checked."""

    def link_down(self, link: Link, reason: Failure) -> None:
        """Handle the end of a link. Called once, also for a link that never came up."""

    def message_received(self, link: Link, message: Message) -> None:
        """Handle a valid message that is not an answer."""

    def answer_received(self, link: Link, answer: Answer) -> None:
        """Handle an answer, or the ERROR without `seq` of a stream that failed."""


class LinkAdmission(Protocol):
    """Counts an accepted link at its listener, and limits what the peer may send."""

    def opened(self, abort: Callable[[str], None]) -> None:
        """Keep `abort`, which closes the link at once, for a reason."""

    def mark_proven(self, identity: str | None) -> bool:
        """Record that the peer is authenticated; return False if its identity has too many links."""

    def failed(self, why: str) -> None:
        """Record a failure of the peer."""

    def line_received(self) -> float:
        """Count a line; return how many seconds to wait before reading the next."""

    def note(self, what: str, detail: str, reason: str) -> None:
        """Log an event; see `Link.note`."""

    def closed(self) -> None:
        """Stop counting the link."""


class _Unlimited:
    """The admission of links that this process opened: nothing is counted or limited."""

    _log = Logger()

    def opened(self, abort: Callable[[str], None]) -> None:
        """Do nothing."""

    def mark_proven(self, identity: str | None) -> bool:
        """Return True."""
        return True

    def failed(self, why: str) -> None:
        """Do nothing."""

    def line_received(self) -> float:
        """Return 0: read the next line at once."""
        return 0.0

    def note(self, what: str, detail: str, reason: str) -> None:
        """Log every event."""
        self._log.warn("{what}: {detail}", what=what, detail=detail)

    def closed(self) -> None:
        """Do nothing."""


_log = Logger()

UNLIMITED: LinkAdmission = _Unlimited()


@implementer(IHandshakeListener)
class Link(LineOnlyReceiver):
    """One end of a control link.

    :param owner: gets its events and messages.
    :param clock: for the time limits.
    :param authenticate: called with the TLS connection after its handshake. It returns the peer (None: a peer without
        a certificate) or raises to refuse it. None: the transport is plain TCP, and the peer is `plain_peer`.
    :param accepted: whether the peer connected to us. A peer without a certificate is then anonymous until the owner
        calls `mark_proven`; until then its lines must be short, and one time limit covers all of them.
    :param admission: counts the link at the listener that accepted it.
    :param expiry: tells when the peer's credentials expire; the link is closed then. Called after the handshake and
        again once a day.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE
    transport: Any

    def __init__(
        self,
        owner: LinkOwner,
        clock: IReactorTime,
        authenticate: Callable[[SSL.Connection], Any] | None,
        plain_peer: Any = None,
        *,
        accepted: bool,
        admission: LinkAdmission = UNLIMITED,
        expiry: CredentialExpiry | None = None,
    ) -> None:
        self.owner = owner
        self.clock = clock
        self.peer: Any = plain_peer
        self.is_up = False
        self.refusal: Exception | None = None
        self._authenticate = authenticate
        self._accepted = accepted
        self._admission = admission
        self._timer: IDelayedCall | None = None
        self._pause: IDelayedCall | None = None
        self._expiry = expiry
        self._expiry_check: IDelayedCall | None = None
        self._throttle: ReadThrottle | None = None
        self._lines = LineSplitter()
        self.is_anonymous = False
        self._has_spoken = False
        self._bad_lines = 0
        self.on_bad_line: Callable[[str | None, str, bool], None] = _ignore_bad_line
        """Called for each line that is not a valid message, with its uid, what is wrong, and whether the link is closed
        because of it. Set by the owner."""
        self.last_seq = 0

    # -- from the transport

    def connectionMade(self) -> None:
        """Begin the handshake, or come up at once without TLS."""
        if not self._accepted and self.transport.getHost() == self.transport.getPeer():
            # A TCP self-connection: nothing listens there, and the kernel chose that same port for this end.
            self.refusal = ConnectionRefusedError()
            self.transport.abortConnection()
            return
        if ITCPTransport.providedBy(self.transport):  # else a short line waits until the last one is acknowledged
            self.transport.setTcpNoDelay(True)
        self._start_timer(timing.HANDSHAKE, "no TLS handshake")
        self._admission.opened(self._cut_off)
        if self._authenticate is None:
            self._come_up()

    def handshakeCompleted(self) -> None:
        """Authenticate the peer, and come up if it is accepted."""
        assert self._authenticate is not None
        try:
            self.peer = self._authenticate(self.transport.getHandle())
        except Exception as problem:  # a peer that cannot be authenticated for any reason is refused
            self.refusal = problem
            self.note("refused a peer", str(problem), _beginning(str(problem)))
            self._admission.failed(f"a peer was refused: {problem}")
            self.transport.abortConnection()
            return
        self._come_up()
        self._check_expiry()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Tell the owner that the link is down."""
        self._stop_timer()
        self._cancel_pause()
        if self._expiry_check is not None and self._expiry_check.active():
            self._expiry_check.cancel()
        if not self.is_up and isinstance(reason.value, SSL.Error) and not isinstance(reason.value, SSL.SysCallError):
            self._admission.failed("a TLS handshake failed")
        self.is_up = False
        self._admission.closed()
        if self.refusal is not None:
            reason = Failure(self.refusal)
        self.owner.link_down(self, reason)

    def dataReceived(self, data: bytes) -> None:
        """Handle the lines one by one, and none while the peer does not read: each may have a long answer."""
        if self.transport.disconnecting:  # TLS goes on reading until the peer has closed as well
            return
        self._lines.add(data)
        while self._lines.complete:
            if self.transport.disconnecting or self._is_full:
                return
            line = self._lines.complete.popleft()
            if len(line) > self.MAX_LENGTH:
                self.lineLengthExceeded(line)
                return
            self.lineReceived(line)
        if len(self._lines.partial) > self.MAX_LENGTH and not self.transport.disconnecting:
            self.lineLengthExceeded(bytes(self._lines.partial))

    def lineReceived(self, line: bytes) -> None:
        """Decode a line and pass it to the owner."""
        if not self.is_up:
            return
        self._has_spoken = True
        self._pause_reading(self._admission.line_received())
        try:
            message = decode(line)
        except BadMessageError as bad:
            self._bad_line(line, bad)
            return
        if logs.shows_debug:
            self._log_message("received", message)
        if isinstance(message, Resp | Error):
            self.owner.answer_received(self, message)
        else:
            self.owner.message_received(self, message)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that is too long, and close the link."""
        self.note("closed a link because of a line that is too long", f"over {self.MAX_LENGTH} bytes")
        self._admission.failed(f"a line of over {self.MAX_LENGTH} bytes")
        msg = f"a line has at most {self.MAX_LENGTH} bytes"
        self.on_bad_line(None, msg, True)
        self.send(Error(uid=None, code="bad-message", msg=msg))
        self.close()

    # -- for the owner

    @property
    def next_bad_line_closes(self) -> bool:
        """True if the next bad line closes the link."""
        return self._bad_lines + 1 >= MAX_BAD_LINES

    @property
    def address(self) -> str:
        """The peer's address as text, for logs."""
        peer = self.transport.getPeer()
        return str(Address(peer.host, peer.port)) if hasattr(peer, "host") else str(peer)

    @property
    def host(self) -> str:
        """The host of the peer's address."""
        return str(getattr(self.transport.getPeer(), "host", ""))

    def mark_proven(self, identity: str | None) -> None:
        """Record that the peer is authenticated: it may be silent and send long lines from now on.

        :param identity: the name under which the links of one identity are counted; None if the peer has no name. If
            the identity has too many links, this one is closed.
        """
        if self.is_anonymous:
            self.is_anonymous = False
            self.MAX_LENGTH = MAX_LINE
            self._stop_timer()
        if not self._admission.mark_proven(identity):
            self.note("closed a link of an identity that has too many", str(identity))
            msg = f"{identity} has too many links here: close some of them (limit `links_per_identity`)"
            self.send(Error(uid=None, code="no-capacity", msg=msg))
            self.close()

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log an event of this peer. A listener counts repeated events and logs the count.

        :param what: the event; like `reason` it has the same wording each time.
        :param detail: details of this event.
        :param reason: why it happened. Each reason is counted separately, and its first event is logged at once.
        """
        self._admission.note(what, f"{detail} (from {self.address})", reason)

    def record_failure(self, why: str) -> None:
        """Count a failure against the peer's address."""
        self._admission.failed(why)

    def count_bad_line(self, why: str) -> None:
        """Count a line that is not valid on this link, and close the link if there were too many."""
        self._admission.failed(why)
        self._bad_lines += 1
        if self._bad_lines >= MAX_BAD_LINES:
            self.note("closed a link because of bad lines", f"{self._bad_lines} of them")
            self.close()

    def send(self, message: Message) -> None:
        """Write a message. If the link is down the message is dropped, since the peer will ask again."""
        if not self.is_up:
            return
        if isinstance(message, Resp | Error) and len(message.msg) > MAX_TEXT:
            message = msgspec.structs.replace(message, msg=message.msg[:MAX_TEXT])
        try:
            line = encode(message)
        except StreamError as error:
            self.note("an answer could not be sent", error.msg)
            if isinstance(message, Resp):
                self.send(
                    Error(uid=message.uid, seq=message.seq, code="gateway-failed", msg=f"the answer: {error.msg}")
                )
            return
        if logs.shows_debug:
            self._log_message("sends", message)
        self.transport.write(line)
        self._count_unread(len(line))

    def send_command(self, command: Command) -> int:
        """Give a command the next `seq` of this link, write it, and return that `seq`."""
        self.last_seq += 1
        self.send(msgspec.structs.replace(command, seq=self.last_seq))
        return self.last_seq

    def answer(self, command: Command, state: str, msg: str, **fields: Any) -> None:
        """Answer a command from this link with a RESP."""
        self.send(Resp(uid=command.uid, seq=command.seq, state=state, msg=msg, **fields))

    def refuse(self, command: Command | ProdLstn, code: ErrorCode, msg: str) -> None:
        """Answer a command from this link with an ERROR."""
        self.send(Error(uid=command.uid, seq=getattr(command, "seq", None), code=code, msg=msg))

    def close(self) -> None:
        """Write all pending data, then close.

        Input is ignored from now on, and the connection is aborted if the peer neither reads nor closes in time.
        """
        if self.is_up:
            self._stop_timer()
            self._cancel_pause()
            self._start_timer(timing.CLOSE, "no end of the connection")
            if self._accepted:
                self.transport.unregisterProducer()  # TLS would wait for the producer
        self.is_up = False
        if self.transport is not None:
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, without writing pending data."""
        if self.transport is not None:
            self.transport.abortConnection()

    # -- inside

    def _come_up(self) -> None:
        self._stop_timer()
        self.is_up = True
        if self._accepted:
            self._throttle = ReadThrottle(self.transport, self._read_on)
            self.transport.registerProducer(self._throttle, True)
        if self._accepted and self.peer is None:
            self.is_anonymous = True
            self.MAX_LENGTH = MAX_FIRST_LINE
            self._start_timer(timing.FIRST_LINE, "no line")
        self.owner.link_up(self)

    def _log_message(self, what: str, message: Message) -> None:
        """Log that a message passed, without what it says: it may have secrets."""
        _log.debug(
            "peer={peer} {what} {cmd} uid={uid} seq={seq}",
            peer=self.address,
            what=what,
            cmd=str(message.__struct_config__.tag),
            uid=message.uid,
            role=getattr(message, "role", None),
            seq=getattr(message, "seq", None),
        )

    def _check_expiry(self) -> None:
        """Close the link if the peer's credentials have expired.

        Certificates expire by the wall clock, which may be set, so no single timer is trusted for it.
        """
        if self._expiry is None:
            return
        seconds, why = self._expiry(self.transport.getHandle())
        if seconds == math.inf:
            return
        if seconds > 0:
            self._expiry_check = self.clock.callLater(min(seconds, timing.LONGEST_TIMER), self._check_expiry)
        elif self.is_up:
            self.note("closed a link whose certificate has expired", why)
            self.send(Error(uid=None, code="not-authenticated", msg=why))
            self.close()

    def _bad_line(self, line: bytes, bad: BadMessageError) -> None:
        self.note("bad message", bad.msg, bad.code)
        self.on_bad_line(bad.uid, bad.msg, self.next_bad_line_closes)
        if not is_answer(line):
            self.send(Error(uid=bad.uid, seq=bad.seq, code=bad.code, msg=bad.msg))
        self.count_bad_line("a bad line")

    @property
    def _is_full(self) -> bool:
        return self._throttle is not None and self._throttle.is_full

    def _read_on(self) -> None:
        """Handle the lines that were left when the peer stopped reading."""
        if self.is_up:
            self.dataReceived(b"")

    def _count_unread(self, count: int) -> None:
        if self._throttle is None:
            return
        self._throttle.wrote(count)
        if self._throttle.unread > MAX_UNREAD:
            why = f"it does not read: {self._throttle.unread} bytes are waiting"
            self.note("closed a link whose peer does not read", why)
            self.is_up = False
            self._cancel_pause()
            self._cut_off(why)

    def _pause_reading(self, seconds: float) -> None:
        """Read nothing for `seconds`; data that has been read already is still handled."""
        if seconds <= 0 or self._throttle is None:
            return
        if self._pause is not None:
            self._pause.reset(seconds)
            return
        self._throttle.pause()
        self._pause = self.clock.callLater(seconds, self._resume_reading)

    def _resume_reading(self) -> None:
        self._pause = None
        if self._throttle is not None:
            self._throttle.resume()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._resume_reading()

    def _start_timer(self, seconds: float, what: str) -> None:
        self._timer = self.clock.callLater(seconds, self._timed_out, what, seconds)

    def _stop_timer(self) -> None:
        limit, self._timer = self._timer, None
        if limit is not None and limit.active():
            limit.cancel()

    def _timed_out(self, what: str, seconds: float) -> None:
        self._timer = None
        if self.is_anonymous and self._has_spoken and self.is_up:
            what = "no authentication"
        self.note("closed a link that timed out", f"{what} in {seconds:g} s", what)
        self._admission.failed(f"{what} in {seconds:g} s")
        self._cut_off(f"{what} in {seconds:g} s")

    def _cut_off(self, why: str) -> None:
        self.refusal = StreamError("timeout", why)
        self.transport.abortConnection()


def _beginning(sentence: str) -> str:
    """Return the first words of a sentence, which are the same for all peers."""
    return re.split("[,:(]", sentence, maxsplit=1)[0]


def _ignore_bad_line(_uid: str | None, _why: str, _closed: bool) -> None:
    """Do nothing, where the owner has set no callback."""
