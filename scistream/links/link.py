"""Bytes to messages and back, one JSON object a line, and the limits that stand on a link.

`decode` and `encode` are the codec. `Link` is the Twisted protocol of both ends: it keeps the time
limits, answers what is no message, closes on abuse, and hands valid messages to its `LinkOwner`. Framing is in protocol
section 3.
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

from scistream import timing
from scistream.links.backpressure import MAX_UNREAD, LineSplitter, ReadThrottle
from scistream.protocol.address import Address
from scistream.protocol.codec import MAX_FIRST_LINE, MAX_LINE, decode, encode, is_answer
from scistream.protocol.errors import BadMessageError, ErrorCode, StreamError
from scistream.protocol.messages import MAX_TEXT, Answer, Command, Error, Message, ProdLstn, Resp

MAX_BAD_LINES = 8


Lasts = Callable[[SSL.Connection], tuple[float, str]]
"""Tells how many seconds what the peer of a connection has proved itself with still lasts, and what to say then."""


class LinkOwner(Protocol):
    """Who a link works for."""

    def link_up(self, link: Link) -> None:
        """The peer is authenticated as far as it will be; messages may go out."""

    def link_down(self, link: Link, reason: Failure) -> None:
        """The link is gone. Called once, also for a link that never came up."""

    def message_received(self, link: Link, message: Message) -> None:
        """A valid message that is no answer came in."""

    def answer_received(self, link: Link, answer: Answer) -> None:
        """An answer, or the unasked ERROR of a stream that failed, came in."""


class LinkAdmission(Protocol):
    """The record of an accepted link at its listener, which is told of the link's events and bounds what it sends."""

    def arrived(self, cut: Callable[[str], None]) -> None:
        """The link is there; `cut` ends it at once, for a reason."""

    def proven(self, who: str | None) -> bool:
        """Its owner knows who is there (None: somebody without a name of his own); False if he has too many links."""

    def failed(self, why: str) -> None:
        """The peer did what it should not."""

    def line(self) -> float:
        """The peer has said a line; seconds to wait before the next is read."""

    def note(self, what: str, detail: str, reason: str) -> None:
        """Something that the log should say: see `Link.note`."""

    def over(self) -> None:
        """The link is gone."""


class _NoListener:
    """The admission of links that this process dialled: nothing bounds them."""

    _log = Logger()

    def arrived(self, cut: Callable[[str], None]) -> None:
        """Nobody counts it."""

    def proven(self, who: str | None) -> bool:
        return True

    def failed(self, why: str) -> None:
        """Nobody holds it against the peer."""

    def line(self) -> float:
        return 0.0

    def note(self, what: str, detail: str, reason: str) -> None:
        self._log.warn("{what}: {detail}", what=what, detail=detail)

    def over(self) -> None:
        """Nobody has counted it."""


NO_LISTENER: LinkAdmission = _NoListener()


@implementer(IHandshakeListener)
class Link(LineOnlyReceiver):
    """One end of one control link.

    :param owner: who gets its messages.
    :param clock: for the time limits.
    :param authenticate: called with the TLS connection after its handshake; it returns who the peer is
        (None: nobody that a certificate names) or raises to refuse it. Without it the transport is plain
        TCP, and the peer is `plain_peer`.
    :param accepted: whether the peer dialled; a peer without a certificate is then a stranger until its owner calls
        `prove`, which must be soon: lines are short, and there is one time limit for all of them.
    :param admission: the record of the link at the listener that accepted it.
    :param lasts: seconds until what the peer has proved itself with ends, and a sentence for then; the link ends with
        it. Asked after the handshake, and again once a day.
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
        admission: LinkAdmission = NO_LISTENER,
        lasts: Lasts | None = None,
    ) -> None:
        self.owner = owner
        self.clock = clock
        self.peer: Any = plain_peer
        self.is_up = False
        self.refusal: Exception | None = None
        self._authenticate = authenticate
        self._accepted = accepted
        self._admission = admission
        self._limit: IDelayedCall | None = None
        self._rest: IDelayedCall | None = None
        self._lasts = lasts
        self._end: IDelayedCall | None = None
        self._brake: ReadThrottle | None = None
        self._lines = LineSplitter()
        self.is_stranger = False
        self._has_spoken = False
        self._bad_lines = 0
        self.on_bad_line: Callable[[str | None, str, bool], None] = _nobody
        """Hears of each line that is no message: the uid in it, what is wrong, and whether the link is closed for it.
        To be set by the owner."""
        self.last_seq = 0

    # -- from the transport

    def connectionMade(self) -> None:
        if not self._accepted and self.transport.getHost() == self.transport.getPeer():
            # Nobody listens there: the kernel took that very port for this end, and the two have met.
            self.refusal = ConnectionRefusedError()
            self.transport.abortConnection()
            return
        if ITCPTransport.providedBy(self.transport):  # or a short line waits until the far end confirms the last one
            self.transport.setTcpNoDelay(True)
        self._start_limit(timing.HANDSHAKE, "no TLS handshake")
        self._admission.arrived(self._cut_off)
        if self._authenticate is None:
            self._come_up()

    def handshakeCompleted(self) -> None:
        assert self._authenticate is not None
        try:
            self.peer = self._authenticate(self.transport.getHandle())
        except Exception as problem:  # whatever stops us from knowing the peer: it stays outside
            self.refusal = problem
            self.note("refused a peer", str(problem), _beginning(str(problem)))
            self._admission.failed(f"a peer was refused: {problem}")
            self.transport.abortConnection()
            return
        self._come_up()
        self._look_at_end()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._stop_limit()
        self._stop_rest()
        if self._end is not None and self._end.active():
            self._end.cancel()
        if not self.is_up and isinstance(reason.value, SSL.Error) and not isinstance(reason.value, SSL.SysCallError):
            self._admission.failed("a TLS handshake failed")
        self.is_up = False
        self._admission.over()
        if self.refusal is not None:
            reason = Failure(self.refusal)
        self.owner.link_down(self, reason)

    def dataReceived(self, data: bytes) -> None:
        """Take the lines one by one, and none while the peer does not read: each may be answered at length."""
        if self.transport.disconnecting:  # TLS goes on reading until the peer has closed, too
            return
        self._lines.add(data)
        while self._lines.whole:
            if self.transport.disconnecting or self._is_full:
                return
            line = self._lines.whole.popleft()
            if len(line) > self.MAX_LENGTH:
                self.lineLengthExceeded(line)
                return
            self.lineReceived(line)
        if len(self._lines.rest) > self.MAX_LENGTH and not self.transport.disconnecting:
            self.lineLengthExceeded(bytes(self._lines.rest))

    def lineReceived(self, line: bytes) -> None:
        if not self.is_up:
            return
        self._has_spoken = True
        self._slow_down(self._admission.line())
        try:
            message = decode(line)
        except BadMessageError as bad:
            self._bad_line(line, bad)
            return
        if isinstance(message, Resp | Error):
            self.owner.answer_received(self, message)
        else:
            self.owner.message_received(self, message)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.note("closed a link for a line that is too long", f"over {self.MAX_LENGTH} bytes")
        self._admission.failed(f"a line of over {self.MAX_LENGTH} bytes")
        msg = f"a line has at most {self.MAX_LENGTH} bytes"
        self.on_bad_line(None, msg, True)
        self.send(Error(uid=None, code="bad-message", msg=msg))
        self.close()

    # -- for the owner

    @property
    def has_timed_out(self) -> bool:
        """Whether the next bad line is the last one."""
        return self._bad_lines + 1 >= MAX_BAD_LINES

    @property
    def address(self) -> str:
        """The peer's address, for logs."""
        peer = self.transport.getPeer()
        return str(Address(peer.host, peer.port)) if hasattr(peer, "host") else str(peer)

    @property
    def host(self) -> str:
        """The host of the peer's address."""
        return str(getattr(self.transport.getPeer(), "host", ""))

    def prove(self, who: str | None) -> None:
        """It is known who is there: from now on the link may be silent, and say long lines.

        :param who: the name under which the links of one identity are counted; None if nobody has a name of his own
            here. If that one has too many links this one is closed.
        """
        if self.is_stranger:
            self.is_stranger = False
            self.MAX_LENGTH = MAX_LINE
            self._stop_limit()
        if not self._admission.proven(who):
            self.note("closed a link of one who has too many", str(who))
            msg = f"{who} has as many links here as one identity may have: close some of them (`links_per_identity`)"
            self.send(Error(uid=None, code="no-capacity", msg=msg))
            self.close()

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log what this peer has done. A listener counts such events and logs the count.

        :param what: in the same words each time.
        :param detail: what was special this time.
        :param reason: why, in the same words each time: what has another reason is counted apart, and told at once.
        """
        self._admission.note(what, f"{detail} (from {self.address})", reason)

    def distrust(self, why: str) -> None:
        """Hold it against the peer's address."""
        self._admission.failed(why)

    def misused(self, why: str) -> None:
        """What was said is not for this link: it counts as a bad line."""
        self._admission.failed(why)
        self._bad_lines += 1
        if self._bad_lines >= MAX_BAD_LINES:
            self.note("closed a link for bad lines", f"{self._bad_lines} of them")
            self.close()

    def send(self, message: Message) -> None:
        """Write a message; a link that is down drops it, since its peer will ask again."""
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
        self.transport.write(line)
        self._count_unread(len(line))

    def send_command(self, command: Command) -> int:
        """Number a command, write it, and give its number."""
        self.last_seq += 1
        self.send(msgspec.structs.replace(command, seq=self.last_seq))
        return self.last_seq

    def answer(self, command: Command, state: str, msg: str, **fields: Any) -> None:
        """Answer a command that came in on this link."""
        self.send(Resp(uid=command.uid, seq=command.seq, state=state, msg=msg, **fields))

    def refuse(self, command: Command | ProdLstn, code: ErrorCode, msg: str) -> None:
        """Answer a command that came in on this link with an ERROR."""
        self.send(Error(uid=command.uid, seq=getattr(command, "seq", None), code=code, msg=msg))

    def close(self) -> None:
        """Write what is waiting to be written, then close. Nothing that comes in after this counts, and a peer
        that neither reads nor closes is cut off."""
        if self.is_up:
            self._stop_limit()
            self._stop_rest()
            self._start_limit(timing.CLOSE, "no end of the connection")
            if self._accepted:
                self.transport.unregisterProducer()  # TLS would wait for it
        self.is_up = False
        if self.transport is not None:
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abortConnection()

    # -- inside

    def _come_up(self) -> None:
        self._stop_limit()
        self.is_up = True
        if self._accepted:
            self._brake = ReadThrottle(self.transport, self._read_on)
            self.transport.registerProducer(self._brake, True)
        if self._accepted and self.peer is None:
            self.is_stranger = True
            self.MAX_LENGTH = MAX_FIRST_LINE
            self._start_limit(timing.FIRST_LINE, "no line")
        self.owner.link_up(self)

    def _look_at_end(self) -> None:
        """End with what the peer has proved itself with. The wall clock says when; no timer follows it."""
        if self._lasts is None:
            return
        seconds, why = self._lasts(self.transport.getHandle())
        if seconds == math.inf:
            return
        if seconds > 0:
            self._end = self.clock.callLater(min(seconds, timing.LONGEST_TIMER), self._look_at_end)
        elif self.is_up:
            self.note("closed a link that was made with a certificate which has ended", why)
            self.send(Error(uid=None, code="not-authenticated", msg=why))
            self.close()

    def _bad_line(self, line: bytes, bad: BadMessageError) -> None:
        self.note("bad message", bad.msg, bad.code)
        self.on_bad_line(bad.uid, bad.msg, self.has_timed_out)
        if not is_answer(line):
            self.send(Error(uid=bad.uid, seq=bad.seq, code=bad.code, msg=bad.msg))
        self.misused("a bad line")

    @property
    def _is_full(self) -> bool:
        return self._brake is not None and self._brake.is_full

    def _read_on(self) -> None:
        """Take the lines that were left when the peer did not read."""
        if self.is_up:
            self.dataReceived(b"")

    def _count_unread(self, count: int) -> None:
        if self._brake is None:
            return
        self._brake.wrote(count)
        if self._brake.unread > MAX_UNREAD:
            why = f"it does not read what is said to it, and {self._brake.unread} bytes wait"
            self.note("closed a link of one who does not read", why)
            self.is_up = False
            self._stop_rest()
            self._cut_off(why)

    def _slow_down(self, seconds: float) -> None:
        """Read nothing for so long; what has been read already goes on."""
        if seconds <= 0 or self._brake is None:
            return
        if self._rest is not None:
            self._rest.reset(seconds)
            return
        self._brake.rest()
        self._rest = self.clock.callLater(seconds, self._rested)

    def _rested(self) -> None:
        self._rest = None
        if self._brake is not None:
            self._brake.go_on()

    def _stop_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rested()

    def _start_limit(self, seconds: float, what: str) -> None:
        self._limit = self.clock.callLater(seconds, self._too_slow, what, seconds)

    def _stop_limit(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None and limit.active():
            limit.cancel()

    def _too_slow(self, what: str, seconds: float) -> None:
        self._limit = None
        if self.is_stranger and self._has_spoken and self.is_up:
            what = "nothing that lets it in"
        self.note("closed a link that was too slow", f"{what} in {seconds:g} s", what)
        self._admission.failed(f"{what} in {seconds:g} s")
        self._cut_off(f"{what} in {seconds:g} s")

    def _cut_off(self, why: str) -> None:
        self.refusal = StreamError("timeout", why)
        self.transport.abortConnection()


def _beginning(sentence: str) -> str:
    """The first words of a sentence, in which nothing is different for each peer."""
    return re.split("[,:(]", sentence, maxsplit=1)[0]


def _nobody(_uid: str | None, _why: str, _closed: bool) -> None:
    """Nobody asked to hear of it."""
