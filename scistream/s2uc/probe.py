"""A look at two facilities before they are needed: may a stream be had, and what passes between their gateways?

`Probing` goes step by step and says of each what it has found, a `Check`. It asks both sides for a stream of one
minute under the protocol "probe", in which the gateways send each other test data, and always releases it. It speaks
for itself, and not by the machine of a stream, because it wants the answer of either side also where the other has
refused. `Client.probe` is the way to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from scistream import timing
from scistream.links.outbox import UNSENT
from scistream.protocol.address import Address
from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.join_string import hash_app_key, new_app_key
from scistream.protocol.messages import CONS, PROBE_LIFE, PROD, Hello, ProbeResult, Req, Role, Status, UpdateTargets
from scistream.s2uc.connection_map import connection_map
from scistream.s2uc.probe_side import Check, Side, own_certificate
from scistream.s2uc.stream import SIDE, check_sides
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.files import CertificateFiles

MUCH_LESS = 0.9
NO_PROGRAM = "127.0.0.1:9"
"""In place of a ProdApp's address: under a probe nothing is dialled there."""


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
    :param trust_at: who vouches for the S2CS at an address; None dials plain TCP.
    :param rate: Mbit/s, reserved on both sides; `seconds`: of test data, each way.
    :param listen_ports: the ports that listeners of a side shall have, one for each channel.
    :param tell: called with each check as soon as it is made.
    :raises ValueError: if a wish is out of the range that the protocol allows.
    :raises CertificateError: if the files of what it gives are not usable.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: dict[Role, Address],
        trust_at: Callable[[Address], CertificateFiles | None],
        *,
        num_conn: int,
        rate: float,
        seconds: float,
        listen_ports: Mapping[Role, Sequence[int]],
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
        trusts = {role: trust_at(address) for role, address in addresses.items()}
        trust = trusts[PROD]
        self._certificate = trust.certificate if trust is not None else None
        check_sides(listen_ports)
        requests = {role: self._request(role, num_conn, listen_ports.get(role)) for role in addresses}
        self._sides = {
            role: Side(reactor, role, address, trusts[role], requests[role]) for role, address in addresses.items()
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
        )
        try:
            decode(encode(request))
        except BadMessageError as bad:
            raise ValueError(bad.msg) from None
        return request

    async def run(self) -> Report:
        """Take all steps, as far as they can be taken. Cancelling it releases, too."""
        sides = list(self._sides.values())
        try:
            if self._certificate is not None:
                self._note(own_certificate(self._certificate))
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
        await prod.ask(hello, timing.PROBE_UPDATE)
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
            await side.ask(update, timing.PROBE_UPDATE)

    async def _measured(self) -> ProbeResult:
        """What the consumer's gateways have found, once they have."""
        deadline = self._reactor.seconds() + 2 * self._seconds + timing.PROBE_BESIDE_DATA
        look = Status(uid=self.uid, role=CONS, seq=UNSENT)
        while self._reactor.seconds() < deadline:
            answer = await self._sides[CONS].ask(look, timing.PROBE_STATUS)
            for found in answer.streams or []:
                if found.probe is not None and found.probe.state != "running":
                    return found.probe
                if found.state != "Streaming":
                    why = found.last_error.msg if found.last_error is not None else f"the stream is {found.state}"
                    raise StreamError("gateway-failed", f"consumer side: {why}")
            await deferLater(self._reactor, timing.PROBE_LOOK)
        raise StreamError("timeout", "the consumer's gateways have not come to an end of their measurement")

    def _in_words(self, found: ProbeResult) -> str:
        least = min(found.mbit_to_consumer, found.mbit_to_producer)
        moved = f"{found.bytes / 1e9:.2f} GB" if found.bytes >= 1e9 else f"{found.bytes / 1e6:.1f} MB"
        words = (
            f"connected in {found.connect_ms:.1f} ms, round trip {found.rtt_ms:.1f} ms, "
            f"{_mbit(found.mbit_to_consumer)} to the consumer, {_mbit(found.mbit_to_producer)} to the producer, "
            f"all of the {moved} right"
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
        reasons = await gatherResults([Deferred.fromCoroutine(side.release()) for side in held], consumeErrors=True)
        still = [reason for reason in reasons if reason]
        if still:
            ends = f"by itself it ends within {PROBE_LIFE:g} s of its beginning"
            return Check(name="release", ok=False, text=f"release: {'; '.join(still)}; {ends}")
        return Check(name="release", ok=True, text="released: nothing of the probe is left at either facility")


def _mbit(rate: float) -> str:
    return f"{rate:,.0f} Mbit/s" if rate >= 10 else f"{rate:.2g} Mbit/s"
