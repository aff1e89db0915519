"""Find out whether a facility answers, of which version it is, and what it warns about: for `s2uc facilities`."""

from __future__ import annotations

from msgspec import Struct

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import UNSENT, Status
from scistream.s2uc.server import Server


class FacilityCheck(Struct, frozen=True, kw_only=True):
    """What is known of a facility after it was asked.

    :ivar name: its name in s2uc.toml; None if it has none.
    :ivar address: HOST:PORT of its S2CS.
    :ivar ok: True if it answers and knows this user.
    :ivar reason: why it does not answer, a sentence for the user; empty if it does.
    :ivar version: of SciStream there; None if it does not answer, or is too old to say.
    :ivar round_trip_ms: milliseconds for a question and its answer; None if it does not answer.
    :ivar warnings: what it warns this user about, such as certificates that expire soon.
    """

    name: str | None
    address: str
    ok: bool
    reason: str = ""
    version: str | None = None
    round_trip_ms: float | None = None
    warnings: list[str] = []


async def check_facility(name: str | None, address: str, server: Server) -> FacilityCheck:
    """Ask an S2CS twice: first to be connected, then to measure the time.

    :param server: with the link to it, which is started if necessary.
    """
    if not server.dialer.running:
        server.dialer.startService()
    question = Status(uid=None, role=None, seq=UNSENT, limit=1)
    try:
        await server.ask_if_reached(question, timing.FACILITY_REACHED)
        asked_at = server.dialer.clock.seconds()
        answer = await server.ask_if_reached(question, timing.FACILITY_REACHED)
    except StreamError as error:
        return FacilityCheck(name=name, address=address, ok=False, reason=error.msg)
    took = server.dialer.clock.seconds() - asked_at
    return FacilityCheck(
        name=name,
        address=address,
        ok=True,
        version=answer.version,
        round_trip_ms=round(took * 1000, 3),
        warnings=answer.warnings or [],
    )
