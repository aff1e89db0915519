"""A look at two facilities before they are needed: may a stream be had, and what passes between their gateways?

`Probing` goes step by step and says of each what it has found, a `Check`. It asks both sides for a stream of one
minute under the protocol "probe", in which the gateways send each other test data, and always releases it. It speaks
for itself, and not by the machine of a stream, because it wants the answer of either side also where the other has
refused. `Client.probe` is the way to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cryptography import x509
from msgspec import Struct
from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from scistream.s2uc.connection_map import connection_map
from scistream.s2uc.credentials import issue_credentials
from scistream.security.control import Trust, dialer
from scistream.wire.address import Address
from scistream.wire.errors import BadMessage, StreamError
from scistream.wire.join import hash_app_key, new_app_key
from scistream.wire.line import decode, encode
from scistream.wire.link import UNSENT
from scistream.wire.messages import (
    CONS,
    PROBE_LIFE,
    PROD,
    Command,
    Hello,
    ProbeResult,
    Rel,
    Req,
    Resp,
    Role,
    Status,
    UpdateTargets,
)

REACH_SECONDS = 15.0
STATUS_SECONDS = 10.0
GRANT_SECONDS = 30.0
UPDATE_SECONDS = 25.0
RELEASE_SECONDS = 30.0
BESIDE_DATA = 40.0
"""What a probe takes at most beside the seconds of its test data."""
LOOK_AGAIN = 0.25
TRIPS = 3
SOON = 7
"""Certificates that end in fewer days than this are worth a word."""
MUCH_LESS = 0.9
SHOWN = 4
NO_PROGRAM = "127.0.0.1:9"
"""In place of a ProdApp's address: under a probe nothing is dialled there."""

SIDE: dict[Role, str] = {PROD: "producer", CONS: "consumer"}


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `ok` is None where it could not be tried; `text` says what to do, too."""

    name: Literal["certificate", "reach", "grant", "wan", "release"]
    ok: bool | None
    text: str
    role: Role | None = None

    def __str__(self) -> str:
        return f"{_WORDS[self.ok]:<8}{self.text}"


_WORDS: dict[bool | None, str] = {True: "ok", False: "FAILED", None: "-"}


class Report(Struct, frozen=True, kw_only=True):
    """All that a probe has found; `probe` is what the gateways have measured, if it came to that."""

    uid: str
    checks: list[Check]
    probe: ProbeResult | None

    @property
    def ok(self) -> bool:
        """Whether a stream like this can be had: all was tried, and nothing failed."""
        return all(check.ok for check in self.checks)


class Probing:
    """One probe.

    :param addresses: of the S2CS of each side.
    :param trust: None dials plain TCP.
    :param rate: Mbit/s, reserved on both sides; `seconds`: of test data, each way.
    :param tell: called with each check as soon as it is made.
    :raises ValueError: if a wish is out of the range that the protocol allows.
    :raises CertificateProblem: if the files of `trust` are not usable.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: dict[Role, Address],
        trust: Trust | None,
        *,
        num_conn: int,
        rate: float,
        seconds: float,
        tell: Callable[[Check], None],
    ) -> None:
        self.uid = str(uuid.uuid4())
        self._reactor = reactor
        self._tell = tell
        self._rate = rate
        self._seconds = seconds
        self._app_key = new_app_key()
        self._checks: list[Check] = []
        self._result: ProbeResult | None = None
        self._certificate = trust.certificate if trust is not None else None
        requests = {role: self._request(role, num_conn) for role in addresses}
        self._sides = {
            role: _Side(reactor, role, address, trust, requests[role]) for role, address in addresses.items()
        }

    def _request(self, role: Role, num_conn: int) -> Req:
        request = Req(
            uid=self.uid,
            role=role,
            seq=1,
            num_conn=num_conn,
            rate=self._rate,
            app_key_hash=hash_app_key(self._app_key),
            expires=PROBE_LIFE,
            protocol="probe",
            probe_seconds=self._seconds,
            label="s2uc probe",
        )
        try:
            decode(encode(request))
        except BadMessage as bad:
            raise ValueError(bad.msg) from None
        return request

    async def run(self) -> Report:
        """Take all steps, as far as they can be taken. Cancelling it releases, too."""
        sides = list(self._sides.values())
        try:
            if self._certificate is not None:
                self._note(_own_certificate(self._certificate))
            await self._of_each(side.reach() for side in sides)
            await self._of_each(side.reserve() for side in sides)
            self._note(await self._between())
        finally:
            self._note(await self._release())
            await gatherResults([side.dialer.stopService() for side in sides])
        return Report(uid=self.uid, checks=self._checks, probe=self._result)

    def _note(self, check: Check) -> None:
        self._checks.append(check)
        self._tell(check)

    async def _of_each(self, steps: Iterable[Coroutine[Any, Any, Check]]) -> None:
        """A step of both sides, at once."""
        for check in await gatherResults([Deferred.fromCoroutine(step) for step in steps], consumeErrors=True):
            self._note(check)

    # -- between the gateways

    async def _between(self) -> Check:
        missing = [SIDE[role] for role, side in self._sides.items() if side.granted is None]
        if missing:
            why = f"not tried, since the {' and the '.join(missing)}'s facility has granted nothing"
            return Check(name="wan", ok=None, text=f"between the gateways: {why}")
        try:
            await self._provision()
            self._result = await self._measured()
        except StreamError as error:
            return Check(name="wan", ok=False, text=f"between the gateways: {error.msg}")
        if self._result.state == "failed":
            return Check(name="wan", ok=False, text=f"between the gateways: {self._result.reason}")
        return Check(name="wan", ok=True, text=f"between the gateways: {self._in_words(self._result)}")

    async def _provision(self) -> None:
        """What a ProdApp and the client do for any stream."""
        prod, cons = self._sides[PROD], self._sides[CONS]
        hello = Hello(uid=self.uid, role=PROD, seq=UNSENT, app_key=self._app_key, listeners=[NO_PROGRAM])
        await prod.ask(hello, UPDATE_SECONDS)
        maps = connection_map(prod.listeners, cons.listeners, [NO_PROGRAM])
        keys = issue_credentials(self.uid, 1, PROBE_LIFE, {PROD: prod.csr, CONS: cons.csr})
        for side in (prod, cons):
            update = UpdateTargets(
                uid=self.uid,
                role=side.role,
                seq=UNSENT,
                generation=1,
                connection_map=maps[side.role],
                data_conn_key=keys[side.role],
            )
            await side.ask(update, UPDATE_SECONDS)

    async def _measured(self) -> ProbeResult:
        """What the consumer's gateways have found, once they have."""
        deadline = self._reactor.seconds() + 2 * self._seconds + BESIDE_DATA
        look = Status(uid=self.uid, role=CONS, seq=UNSENT)
        while self._reactor.seconds() < deadline:
            answer = await self._sides[CONS].ask(look, STATUS_SECONDS)
            for found in answer.streams or []:
                if found.probe is not None and found.probe.state != "running":
                    return found.probe
                if found.state != "Streaming":
                    why = found.last_error.msg if found.last_error is not None else f"the stream is {found.state}"
                    raise StreamError("gateway-failed", f"consumer side: {why}")
            await deferLater(self._reactor, LOOK_AGAIN)
        raise StreamError("timeout", "the consumer's gateways have not come to an end of their measurement")

    def _in_words(self, found: ProbeResult) -> str:
        least = min(found.mbit_to_consumer, found.mbit_to_producer)
        words = (
            f"connected in {found.connect_ms:.1f} ms, round trip {found.rtt_ms:.1f} ms, {found.mbit_to_consumer:,.0f} "
            f"Mbit/s to the consumer, {found.mbit_to_producer:,.0f} Mbit/s to the producer, all of the "
            f"{found.bytes / 1e9:.2f} GB right"
        )
        if least < MUCH_LESS * self._rate:
            words += (
                f". That is {least / self._rate:.0%} of the rate asked for: more channels may help, and larger TCP "
                "buffers on the gateways"
            )
        return words

    # -- the end

    async def _release(self) -> Check:
        held = [side for side in self._sides.values() if side.asked]
        if not held:
            return Check(name="release", ok=None, text="release: nothing was reserved")
        troubles = await gatherResults([Deferred.fromCoroutine(side.release()) for side in held], consumeErrors=True)
        still = [trouble for trouble in troubles if trouble]
        if still:
            ends = f"by itself it ends within {PROBE_LIFE:g} s of its beginning"
            return Check(name="release", ok=False, text=f"release: {'; '.join(still)}; {ends}")
        return Check(name="release", ok=True, text="released: nothing of the probe is left at either facility")


class _Side:
    """One facility."""

    def __init__(self, reactor: Any, role: Role, address: Address, trust: Trust | None, request: Req) -> None:
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
            trouble = await self._word.addTimeout(REACH_SECONDS, self._reactor)
        except TimeoutError:
            trouble = f"it has said nothing for {REACH_SECONDS:g} s: its operator has to look at it"
        finally:
            self._word = None
        if trouble:
            return self._reach_failed(trouble)
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
            await self.ask(Status(uid=self._request.uid, role=self.role, seq=UNSENT), STATUS_SECONDS)
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
            answer = await self.ask(self._request, GRANT_SECONDS)
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
            await self.ask(command, RELEASE_SECONDS)
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
        except TimeoutError:
            trouble = self.dialer.outbox.trouble
            name = str(command.__struct_config__.tag)
            msg = f"{self.dialer.peer_name} did not carry out {name} within {seconds:g} s"
            raise StreamError("timeout", f"{msg}: {trouble}" if trouble else msg) from None

    # -- from the link

    def _up(self) -> None:
        self._say("")

    def _down(self, trouble: str, hopeless: bool) -> None:
        if self._word is not None:
            self._say(trouble)
        elif hopeless:
            self.dialer.outbox.close(StreamError("not-authenticated", trouble))

    def _say(self, word: str) -> None:
        waiting, self._word = self._word, None
        if waiting is not None:
            waiting.callback(word)


def _own_certificate(path: Path) -> Check:
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
