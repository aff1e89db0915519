"""Test whether two facilities can set up a stream, and how fast their gateways can send each other data.

`Client.probe` runs a `Probing`. It requests a stream of one minute under the protocol "probe", in which the gateways
send each other test data, reports each step as a `Check`, and always releases the stream. It does not use the machine
of a stream, since it reports the answer of each side even if the other has refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.join_string import hash_app_key, new_app_key
from scistream.protocol.messages import (
    CONS,
    PROBE_LIFE,
    PROD,
    UNSENT,
    Hello,
    ProbeResult,
    Req,
    Role,
    Status,
    UpdateTargets,
)
from scistream.s2uc.connection_map import connection_map
from scistream.s2uc.probe_side import Check, Side, own_certificate
from scistream.s2uc.stream import SIDE, check_sides
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.s2uc.wan_dialer import choose_dialer, wan_targets
from scistream.tls.files import CertificateFiles

LOW_RATE = 0.9
"""A measured rate below this share of the requested rate gets advice."""
UNUSED_LISTENER = "127.0.0.1:9"
"""ProdApp's listener in the Hello of a probe. Gateways do not connect to it."""


class Report(Struct, frozen=True, kw_only=True):
    """The results of a probe.

    :ivar uid: the uid of the stream that was reserved for it.
    :ivar checks: the result of each step, in order.
    :ivar probe: what the gateways have measured; None if it did not come to that.
    """

    uid: str
    checks: list[Check]
    probe: ProbeResult | None

    @property
    def ok(self) -> bool:
        """True if every check was tried and succeeded: such a stream can be set up."""
        return all(check.ok for check in self.checks)


class Probing:
    """One probe.

    :param addresses: the address of the S2CS of each side.
    :param certificates_for: returns the user's certificate with the authorities for an S2CS, or None for plain TCP.
    :param num_conn: number of channels.
    :param rate: rate to reserve at both sides, in Mbit/s.
    :param seconds: how long test data flows in each direction.
    :param listen_ports: the ports for the listeners of a side, one for each channel.
    :param wan_dialer: the side whose gateways dial; None for the one that a stream would choose.
    :param tell: called with each check as soon as its result is known.
    :raises ValueError: if a value is out of the range that the protocol allows.
    :raises CertificateError: if a certificate file cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: dict[Role, Address],
        certificates_for: Callable[[Address], CertificateFiles | None],
        *,
        num_conn: int,
        rate: float,
        seconds: float,
        listen_ports: Mapping[Role, Sequence[int]],
        wan_dialer: Role | None,
        tell: Callable[[Check], None],
    ) -> None:
        self.uid = str(uuid.uuid4())
        self._reactor = reactor
        self._tell = tell
        self._rate = rate
        self._seconds = seconds
        self._app_key = new_app_key()
        self._wanted_dialer = wan_dialer
        self._sites = {role: str(address) for role, address in addresses.items()}
        self._checks: list[Check] = []
        self._result: ProbeResult | None = None
        self._dialer: Role = CONS
        files = {role: certificates_for(address) for role, address in addresses.items()}
        own = files[PROD]
        self._certificate = own.certificate if own is not None else None
        check_sides(listen_ports)
        requests = {role: self._request(role, num_conn, listen_ports.get(role)) for role in addresses}
        self._sides = {
            role: Side(reactor, role, address, files[role], requests[role]) for role, address in addresses.items()
        }

    def _request(self, role: Role, num_conn: int, listen_ports: Sequence[int] | None) -> Req:
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
            listen_ports=None if listen_ports is None else list(listen_ports),
            wan_dialer=self._wanted_dialer,
        )
        try:
            decode(encode(request))
        except BadMessageError as bad:
            raise ValueError(bad.msg) from None
        return request

    async def run(self) -> Report:
        """Take every step that is possible, and return the report. Cancelling it releases the stream, too."""
        sides = list(self._sides.values())
        try:
            if self._certificate is not None:
                self._note(own_certificate(self._certificate))
            await self._note_each(side.reach() for side in sides)
            await self._note_each(side.reserve() for side in sides)
            self._note(await self._measure())
        finally:
            self._note(await self._release())
            await gatherResults([side.dialer.stopService() for side in sides])
        return Report(uid=self.uid, checks=self._checks, probe=self._result)

    def _note(self, check: Check) -> None:
        self._checks.append(check)
        self._tell(check)

    async def _note_each(self, steps: Iterable[Coroutine[Any, Any, Check]]) -> None:
        """Take a step at both sides at the same time."""
        for check in await gatherResults([Deferred.fromCoroutine(step) for step in steps], consumeErrors=True):
            self._note(check)

    # -- between the gateways

    async def _measure(self) -> Check:
        missing = [SIDE[role] for role, side in self._sides.items() if side.granted is None]
        if missing:
            reason = f"not tried, since the {' and the '.join(missing)}'s facility has granted nothing"
            return Check(name="wan", ok=None, text=f"between the gateways: {reason}")
        try:
            await self._provision()
            self._result = await self._gateways_result()
        except StreamError as error:
            return Check(name="wan", ok=False, text=f"between the gateways: {error.msg}")
        if self._result.state == "failed":
            text = f"between the gateways: {self._result.reason}{await self._dialer_says()}"
            return Check(name="wan", ok=False, text=text)
        return Check(name="wan", ok=True, text=f"between the gateways: {self._describe(self._result)}")

    async def _provision(self) -> None:
        """Say Hello in place of a ProdApp, then set the targets at both sides as for any stream."""
        prod, cons = self._sides[PROD], self._sides[CONS]
        hello = Hello(uid=self.uid, role=PROD, seq=UNSENT, app_key=self._app_key, listeners=[UNUSED_LISTENER])
        await prod.ask(hello, timing.PROBE_UPDATE)
        maps = connection_map(prod.listeners, cons.listeners, [UNUSED_LISTENER])
        keys = issue_credentials(self.uid, 1, PROBE_LIFE, {PROD: prod.csr, CONS: cons.csr})
        dialer = self._dialer = choose_dialer({PROD: prod.wan, CONS: cons.wan}, self._sites, self._wanted_dialer)
        targets = None
        for side in (cons, prod) if dialer == PROD else (prod, cons):
            update = UpdateTargets(
                uid=self.uid,
                role=side.role,
                seq=UNSENT,
                generation=1,
                connection_map=maps[side.role],
                data_conn_key=keys[side.role],
                wan_dialer=dialer,
                wan_targets=targets,
            )
            answer = await side.ask(update, timing.PROBE_UPDATE)
            if dialer == PROD and side is cons:
                targets = wan_targets(prod.listeners, answer.wan_listeners)

    async def _gateways_result(self) -> ProbeResult:
        """Wait until the consumer's gateways have finished, and return what they have measured.

        :raises StreamError: if they do not finish in time, or the stream ends first.
        """
        deadline = self._reactor.seconds() + 2 * self._seconds + timing.PROBE_BESIDE_DATA
        look = Status(uid=self.uid, role=CONS, seq=UNSENT)
        while self._reactor.seconds() < deadline:
            answer = await self._sides[CONS].ask(look, timing.PROBE_STATUS)
            for found in answer.streams or []:
                if found.probe is not None and found.probe.state != "running":
                    return found.probe
                if found.state != "Streaming":
                    reason = found.last_error.msg if found.last_error is not None else f"the stream is {found.state}"
                    raise StreamError("gateway-failed", f"consumer side: {reason}")
            await deferLater(self._reactor, timing.PROBE_POLL)
        raise StreamError("timeout", "the consumer's gateways have not finished their measurement in time")

    async def _dialer_says(self) -> str:
        """Return why connections of the producer's gateways fail, as a further sentence; nothing if they do not dial.

        The consumer's gateways, which measure, cannot know.
        """
        if self._dialer != PROD:
            return ""
        try:
            answer = await self._sides[PROD].ask(Status(uid=self.uid, role=PROD, seq=UNSENT), timing.PROBE_STATUS)
        except StreamError:
            return ""
        reasons = [reset for found in answer.streams or [] for reset in found.resets if reset.cause == "wan"]
        return f". The producer's gateway says: {reasons[-1].reason}" if reasons else ""

    def _describe(self, result: ProbeResult) -> str:
        slower = min(result.mbit_to_consumer, result.mbit_to_producer)
        moved = f"{result.bytes / 1e9:.2f} GB" if result.bytes >= 1e9 else f"{result.bytes / 1e6:.1f} MB"
        sentence = (
            f"connected in {result.connect_ms:.1f} ms, round trip {result.rtt_ms:.1f} ms, "
            f"{_mbit(result.mbit_to_consumer)} to the consumer, {_mbit(result.mbit_to_producer)} to the producer, "
            f"all {moved} arrived intact"
        )
        if slower < LOW_RATE * self._rate:
            sentence += (
                f". That is {slower / self._rate:.0%} of the requested rate: more channels, or larger TCP buffers on "
                "the gateways, may help"
            )
        return sentence

    # -- the end

    async def _release(self) -> Check:
        sides = [side for side in self._sides.values() if side.asked]
        if not sides:
            return Check(name="release", ok=None, text="release: nothing was reserved")
        results = await gatherResults([Deferred.fromCoroutine(side.release()) for side in sides], consumeErrors=True)
        failures = [failure for failure in results if failure]
        if failures:
            end = f"the stream of the probe expires {PROBE_LIFE:g} s after its request"
            return Check(name="release", ok=False, text=f"release: {'; '.join(failures)}; {end}")
        return Check(name="release", ok=True, text="released: nothing of the probe is left at either facility")


def _mbit(rate: float) -> str:
    return f"{rate:,.0f} Mbit/s" if rate >= 10 else f"{rate:.2g} Mbit/s"
