"""One facility as a probe sees it: what is asked of its S2CS, and what that says of it. Used by probe.py alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cryptography import x509
from msgspec import Struct
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong

from scistream import timing
from scistream.links.outbox import UNSENT
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import Command, Rel, Req, Resp, Role, Status
from scistream.s2uc.stream import SIDE
from scistream.tls.files import CertificateFiles

TRIPS = 3
SOON = 7
"""Certificates that end in fewer days than this are worth a word."""
SHOWN = 4


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `ok` is None where it could not be tried; `text` says what to do, too."""

    name: Literal["certificate", "reach", "grant", "wan", "release"]
    ok: bool | None
    text: str
    role: Role | None = None

    def __str__(self) -> str:
        return f"{_WORDS[self.ok]:<8}{printable(self.text)}"


_WORDS: dict[bool | None, str] = {True: "ok", False: "FAILED", None: "-"}


class Side:
    """One facility.

    :ivar granted: what it has answered to REQ; `asked`: whether there may be anything to release.
    :param request: its side of the stream.
    """

    def __init__(
        self, reactor: Any, role: Role, address: Address, trust: CertificateFiles | None, request: Req
    ) -> None:
        self.role: Role = role
        self.granted: Resp | None = None
        self.asked = False
        self.dialer = dialer(reactor, address, f"the S2CS at {address}", trust)
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self._reactor = reactor
        self._plain = trust is None
        self._request = request
        self._name = f"{SIDE[role]}'s S2CS {address}"
        self._word: Deferred[str] | None = None
        self._reached = False

    @property
    def listeners(self) -> list[str]:
        """What it has reserved, in the order of the channels."""
        return list(self.granted.listeners or []) if self.granted is not None else []

    @property
    def csr(self) -> str:
        """The certificate requests of its gateways."""
        return (self.granted.csr or "") if self.granted is not None else ""

    # -- the steps

    async def reach(self) -> Check:
        """Name, TCP, TLS, certificate, and an answer to Status."""
        started = self._reactor.seconds()
        self._word = Deferred()
        self.dialer.startService()
        try:
            reason = await self._word.addTimeout(timing.PROBE_REACH, self._reactor)
        except TookTooLong:
            reason = f"it has said nothing for {timing.PROBE_REACH:g} s: its operator has to look at it"
        finally:
            self._word = None
        if reason:
            return self._reach_failed(reason)
        took = self._reactor.seconds() - started
        certificate = self._certificate()
        try:
            trips = [await self._trip() for _ in range(TRIPS)]
        except StreamError as error:
            return self._reach_failed(error.msg)
        self._reached = True
        text = f"{self._name}: reached in {took * 1e3:.0f} ms, {certificate}, Status comes back in {_ms(median(trips))}"
        return Check(name="reach", role=self.role, ok=True, text=text)

    def _reach_failed(self, why: str) -> Check:
        return Check(name="reach", role=self.role, ok=False, text=f"{self._name}: {why}")

    async def _trip(self) -> float:
        """Ask for a stream that is not there, of which the S2CS knows the answer by itself."""
        sent = self._reactor.seconds()
        try:
            await self.ask(Status(uid=self._request.uid, role=self.role, seq=UNSENT), timing.PROBE_STATUS)
        except StreamError as error:
            if error.code != "unknown-uid":
                raise
        return float(self._reactor.seconds() - sent)

    def _certificate(self) -> str:
        if self._plain or self.dialer.link is None:
            return "plain TCP"
        connection: SSL.Connection = self.dialer.link.transport.getHandle()
        left = _days_left(connection.get_verified_chain(as_cryptography=True) or [])
        if left < SOON:
            return f"its certificate is good for {left} more days only (its operator has to renew it)"
        return f"its certificate is good for {left} more days"

    async def reserve(self) -> Check:
        """Ask for its side of the stream."""
        facility = f"{SIDE[self.role]}'s facility"
        if not self._reached:
            why = "not asked for a stream, since its S2CS is out of reach"
            return Check(name="grant", role=self.role, ok=None, text=f"{facility}: {why}")
        self.asked = True
        try:
            answer = await self.ask(self._request, timing.PROBE_GRANT)
        except StreamError as error:
            why = f"refuses the stream ({error.code}): {error.msg}"
            if error.code == "bad-message" and "protocol" in error.msg:
                why = "its S2CS knows no probes: its operator has to install the current version"
            return Check(name="grant", role=self.role, ok=False, text=f"{facility}: {why}")
        self.granted = answer
        count = len(self.listeners)
        channels = f"{count} channels" if count > 1 else "1 channel"
        where = ", ".join(self.listeners[:SHOWN]) + (", ..." if count > SHOWN else "")
        text = f"{facility}: grants {channels} at {self._request.rate:g} Mbit/s, on {where}"
        return Check(name="grant", role=self.role, ok=True, text=text)

    async def release(self) -> str:
        """Release what may have been reserved; why it could not be, or nothing."""
        command = Rel(uid=self._request.uid, role=self.role, seq=UNSENT)
        try:
            await self.ask(command, timing.PROBE_RELEASE)
        except StreamError as error:
            if error.code != "unknown-uid":
                return f"{SIDE[self.role]} side: {error.msg}"
        return ""

    async def ask(self, command: Command, seconds: float) -> Resp:
        """The final answer to a command.

        :raises StreamError: its refusal, or `timeout` after so many seconds, even if it says that it works on it.
        """
        try:
            return await self.dialer.ask(command, None).addTimeout(seconds, self._reactor)
        except TookTooLong:
            reason = self.dialer.outbox.reason
            name = str(command.__struct_config__.tag)
            msg = f"{self.dialer.peer_name} did not carry out {name} within {seconds:g} s"
            raise StreamError("timeout", f"{msg}: {reason}" if reason else msg) from None

    # -- from the link

    def _up(self) -> None:
        self._say("")

    def _down(self, reason: str, permanent: bool) -> None:
        if self._word is not None:
            self._say(reason)
        elif permanent:
            self.dialer.outbox.close(StreamError("not-authenticated", reason))

    def _say(self, word: str) -> None:
        waiting, self._word = self._word, None
        if waiting is not None:
            waiting.callback(word)


def own_certificate(path: Path) -> Check:
    """How long the user's own certificate is good for; the file has been read before."""
    left = _days_left(x509.load_pem_x509_certificates(path.read_bytes()))
    if left < 0:
        text = f"your certificate {path}: has expired; have it renewed by your facility"
    else:
        text = f"your certificate {path}: is good for {left} more days" + (" only" if left < SOON else "")
    return Check(name="certificate", ok=left >= 0, text=text)


def _days_left(chain: Iterable[x509.Certificate]) -> int:
    """Whole days until the first of them expires; negative if one has."""
    first = min((certificate.not_valid_after_utc for certificate in chain), default=datetime.now(UTC))
    return (first - datetime.now(UTC)).days


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
