"""The steps of a probe at one facility: reach its S2CS, reserve, release. Used by probe.py."""

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
from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from scistream import timing
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import UNSENT, Command, Rel, Req, Resp, Role, Status
from scistream.s2uc.stream import SIDE
from scistream.tls.files import CertificateFiles

ROUND_TRIPS = 3
"""Status is asked so often; the report gives the median time."""
EXPIRY_WARNING_DAYS = 7
"""Point out certificates that expire within this many days."""
MAX_LISTENERS_SHOWN = 4


class Check(Struct, frozen=True, kw_only=True):
    """The result of one step of a probe.

    :ivar name: which step.
    :ivar ok: True if it succeeded, False if it failed, None if it could not be tried.
    :ivar text: what was found and, after a failure, what to do.
    :ivar role: the side it was about; None if it was about both, or about the user.
    """

    name: Literal["certificate", "reach", "grant", "wan", "release"]
    ok: bool | None
    text: str
    role: Role | None = None

    def __str__(self) -> str:
        return f"{_RESULTS[self.ok]:<8}{printable(self.text)}"


_RESULTS: dict[bool | None, str] = {True: "ok", False: "FAILED", None: "-"}


class Side:
    """One side of a probe.

    :param certificates: the user's certificate with the authorities for this facility; None for plain TCP.
    :param request: the REQ to send.
    :ivar granted: the answer to REQ; None until the facility has granted it.
    :ivar asked: True if REQ was sent, so that the facility may have something to release.
    """

    def __init__(
        self, reactor: Any, role: Role, address: Address, certificates: CertificateFiles | None, request: Req
    ) -> None:
        self.role: Role = role
        self.granted: Resp | None = None
        self.asked = False
        self.dialer = dialer(reactor, address, f"the S2CS at {address}", certificates)
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self._reactor = reactor
        self._plain = certificates is None
        self._request = request
        self._name = f"{SIDE[role]}'s S2CS {address}"
        self._link_result: Deferred[str] | None = None
        """Fires with the reason why there is no link, or with an empty string once there is one."""
        self._reached = False

    @property
    def listeners(self) -> list[str]:
        """The listeners that the facility has reserved, one for each channel, in order."""
        return list(self.granted.listeners or []) if self.granted is not None else []

    @property
    def csr(self) -> str:
        """The certificate requests of the gateways: a PEM bundle, empty before they have reserved."""
        return (self.granted.csr or "") if self.granted is not None else ""

    @property
    def wan(self) -> list[str] | None:
        """What the gateways can do to connect to those of the other side, as in RESP."""
        return self.granted.wan if self.granted is not None else None

    # -- the steps

    async def reach(self) -> Check:
        """Connect to the S2CS, check its certificate, and measure how fast it answers Status."""
        started = self._reactor.seconds()
        self._link_result = Deferred()
        self.dialer.startService()
        try:
            reason = await self._link_result.addTimeout(timing.PROBE_REACH, self._reactor)
        except DeferredTimeoutError:
            reason = f"no answer for {timing.PROBE_REACH:g} s: ask its operator to check it"
        finally:
            self._link_result = None
        if reason:
            return self._reach_failed(reason)
        took = self._reactor.seconds() - started
        certificate = self._certificate()
        try:
            trips = [await self._round_trip() for _ in range(ROUND_TRIPS)]
        except StreamError as error:
            return self._reach_failed(error.msg)
        self._reached = True
        text = f"{self._name}: reached in {took * 1e3:.0f} ms, {certificate}, answers Status in {_ms(median(trips))}"
        return Check(name="reach", role=self.role, ok=True, text=text)

    def _reach_failed(self, reason: str) -> Check:
        return Check(name="reach", role=self.role, ok=False, text=f"{self._name}: {reason}")

    async def _round_trip(self) -> float:
        """Return how long a Status takes, in seconds. It names an unknown stream, so that no gateway has to answer."""
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
        if left < EXPIRY_WARNING_DAYS:
            return f"its certificate expires in {left} days (ask its operator to renew it)"
        return f"its certificate is valid for {left} more days"

    async def reserve(self) -> Check:
        """Request this side of the stream."""
        facility = f"{SIDE[self.role]}'s facility"
        if not self._reached:
            reason = "not asked for a stream, since its S2CS cannot be reached"
            return Check(name="grant", role=self.role, ok=None, text=f"{facility}: {reason}")
        self.asked = True
        try:
            answer = await self.ask(self._request, timing.PROBE_GRANT)
        except StreamError as error:
            reason = f"refuses the stream ({error.code}): {error.msg}"
            if error.code == "bad-message" and "protocol" in error.msg:
                reason = "its S2CS does not support probes: ask its operator to install the current version"
            return Check(name="grant", role=self.role, ok=False, text=f"{facility}: {reason}")
        self.granted = answer
        count = len(self.listeners)
        channels = f"{count} channels" if count > 1 else "1 channel"
        where = ", ".join(self.listeners[:MAX_LISTENERS_SHOWN]) + (", ..." if count > MAX_LISTENERS_SHOWN else "")
        text = f"{facility}: grants {channels} at {self._request.rate:g} Mbit/s, on {where}"
        return Check(name="grant", role=self.role, ok=True, text=text)

    async def release(self) -> str:
        """Release this side. Return an empty string, or a sentence that says why it could not be released."""
        command = Rel(uid=self._request.uid, role=self.role, seq=UNSENT)
        try:
            await self.ask(command, timing.PROBE_RELEASE)
        except StreamError as error:
            if error.code != "unknown-uid":
                return f"{SIDE[self.role]} side: {error.msg}"
        return ""

    async def ask(self, command: Command, seconds: float) -> Resp:
        """Send a command and return its final answer.

        :param seconds: the time for the final answer; answers that report progress do not extend it.
        :raises StreamError: if the S2CS refuses; `timeout`, if there is no final answer in time.
        """
        try:
            return await self.dialer.ask(command, None).addTimeout(seconds, self._reactor)
        except DeferredTimeoutError:
            reason = self.dialer.outbox.reason
            name = str(command.__struct_config__.tag)
            msg = f"{self.dialer.peer_name} did not carry out {name} within {seconds:g} s"
            raise StreamError("timeout", f"{msg}: {reason}" if reason else msg) from None

    # -- from the link

    def _up(self) -> None:
        self._report_link("")

    def _down(self, reason: str, permanent: bool) -> None:
        if self._link_result is not None:
            self._report_link(reason)
        elif permanent:
            self.dialer.outbox.close(StreamError("not-authenticated", reason))

    def _report_link(self, reason: str) -> None:
        waiting, self._link_result = self._link_result, None
        if waiting is not None:
            waiting.callback(reason)


def own_certificate(path: Path) -> Check:
    """Check when the user's own certificate expires. The file is known to be readable."""
    left = _days_left(x509.load_pem_x509_certificates(path.read_bytes()))
    if left < 0:
        text = f"your certificate {path}: has expired; ask your facility to renew it"
    elif left < EXPIRY_WARNING_DAYS:
        text = f"your certificate {path}: expires in {left} days; ask your facility to renew it"
    else:
        text = f"your certificate {path}: valid for {left} more days"
    return Check(name="certificate", ok=left >= 0, text=text)


def _days_left(chain: Iterable[x509.Certificate]) -> int:
    """Return the whole days until the first certificate expires; negative if one has expired."""
    first = min((certificate.not_valid_after_utc for certificate in chain), default=datetime.now(UTC))
    return (first - datetime.now(UTC)).days


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
