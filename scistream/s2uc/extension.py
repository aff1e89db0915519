"""Let a stream end later, at both sides or at neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, MAX_LIFE, PROD, UNSENT, Extend, Resp, Role, StreamStatus
from scistream.s2uc.server import Server

_SIDE: dict[Role, str] = {PROD: "producer", CONS: "consumer"}


async def extend_both(
    reactor: Any, servers: Mapping[Role, Server], uid: str, sides: Mapping[Role, StreamStatus], by: float
) -> float:
    """Let a stream end `by` seconds after the earlier of its ends at both sides.

    If a side refuses or does not answer, the other is put back.

    :param sides: what both sides have just reported.
    :returns: seconds until the stream ends.
    :raises StreamError: why a side has not accepted, and what became of the other; `bad-message`, if `by` is wrong;
        `wrong-state`, if the stream is over at a side.
    """
    for role in servers:
        if role not in sides:
            raise StreamError("unknown-uid", f"the {_SIDE[role]} side does not know stream {uid}")
        if sides[role].state in ("Releasing", "Released"):
            raise StreamError("wrong-state", f"the {_SIDE[role]} side is {sides[role].state}: it cannot be extended")
    began = reactor.seconds()
    left = {role: sides[role].seconds_left for role in servers}
    seconds = min(left.values()) + by
    if not (by > 0 and seconds <= MAX_LIFE):
        raise StreamError("bad-message", f"{by!r}: extend by more than 0 s, to at most {MAX_LIFE:.0f} s from now")
    refusals = await _ask(servers, uid, dict.fromkeys(servers, seconds))
    if not refusals:
        return seconds - float(reactor.seconds() - began)
    role, refusal = next(iter(refusals.items()))
    error = f"{_SIDE[role]} side: {refusal.msg}"
    # A side that has not answered in time may have accepted, so it is put back like one that has.
    accepted = [one for one in servers if one not in refusals or refusals[one].code == "timeout"]
    passed = reactor.seconds() - began
    back = {one: max(left[one] - passed, timing.LEAST_PUT_BACK) for one in accepted}
    for one, problem in (await _ask(servers, uid, back)).items():
        error += f"; the {_SIDE[one]} side has not confirmed that it ends as before ({problem.msg})"
    raise StreamError(refusal.code, f"{error}; the stream ends as before")


async def _ask(servers: Mapping[Role, Server], uid: str, seconds: Mapping[Role, float]) -> dict[Role, StreamError]:
    """Send Extend to sides. Return the error of each that has not accepted."""
    asked: list[Deferred[Resp]] = [
        servers[role].ask_if_reached(Extend(uid=uid, role=role, seq=UNSENT, expires=expires), timing.FACILITY_ANSWER)
        for role, expires in seconds.items()
    ]
    refusals: dict[Role, StreamError] = {}
    for role, (_, result) in zip(seconds, await DeferredList(asked, consumeErrors=True), strict=True):
        if isinstance(result, Failure):
            result.trap(StreamError, CancelledError)
            refusals[role] = _reason(cast(StreamError | CancelledError, result.value))
    return refusals


def _reason(error: StreamError | CancelledError) -> StreamError:
    if isinstance(error, CancelledError):
        return StreamError("timeout", "the command was cancelled")
    if error.code == "bad-message":
        return StreamError(error.code, "its facility runs an older version of SciStream, which cannot extend a stream")
    return error
