"""What the machine of a stream at an S2CS does at REQ, and while gateways reserve. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_TEXT, PROD, Req, Resp
from scistream.s2cs.machine_core import STORE_FULL, Core, Reservation, Stream, gateway_error
from scistream.s2cs.record import Record, reservation_for, same_request, wrong_port
from scistream.state_machines import Caller

_NO_NEW_STREAM = StreamError("no-capacity", f"{STORE_FULL}, so it accepts no new streams: tell its operator")


def begin(stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
    """Write the record of a new stream, and ask the gateways of the plan to reserve."""
    record = core.record
    record.request = request
    record.owner = owner
    record.plan = {gateway: list(channels) for gateway, channels in plan.items()}
    if not core.save():
        core.unwritten = True
        record.plan = {}
        stream._fail(_NO_NEW_STREAM)
        return
    core.effects.start_timers(record)
    core.ask_all((gateway, reservation_for(record, request, channels)) for gateway, channels in plan.items())


def repeat_while_reserving(
    stream: Stream,
    core: Core,
    reservation: Reservation,
    caller: Caller,
    request: Req,
    owner: str,
    plan: Mapping[str, list[int]],
) -> None:
    """Answer a repeated REQ with the current state, and once more when all gateways have reserved."""
    if _is_request_of(core.record, request, owner):
        reservation.waiting_callers.append(caller)
    _answer_req_again(core, caller, request, owner)


def repeat(stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
    """Answer a repeated REQ with the current state, and repeat ProdLstn if ProdApp has said Hello."""
    record = core.record
    _answer_req_again(core, caller, request, owner)
    if record.role == PROD and record.greeted and _is_request_of(record, request, owner):
        core.tell_producer_listeners()


def _answer_req_again(core: Core, caller: Caller, request: Req, owner: str) -> None:
    record = core.record
    if _is_request_of(record, request, owner):
        core.answer_with_state(caller, f"stream is {record.state}")
    else:
        core.refuse(caller, "uid-in-use", f"stream {record.uid} already exists with other fields: choose another uid")


def _is_request_of(record: Record, request: Req, owner: str) -> bool:
    """Return True if this is a repetition of the owner's request for the stream."""
    return owner == record.owner and same_request(request, record.request)


def refuse(stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
    """Refuse a REQ for a stream that is over."""
    if owner != core.record.owner:
        core.refuse(caller, "uid-in-use", f"stream {core.record.uid} is not yours: choose another uid")
        return
    core.refuse_wrong_state(caller, "a REQ")


def gateway_reserved(stream: Stream, core: Core, reservation: Reservation, gateway: str, answer: Resp) -> None:
    """Note the listeners that a gateway has reserved, or end the stream if they do not fit the request."""
    record = core.record
    channels = record.plan.get(gateway, [])
    listeners = answer.listeners or []
    if gateway not in reservation.pending_gateways:
        return
    if len(listeners) != len(channels) or not answer.csr or not answer.boot:
        msg = f"gateway {gateway} granted {len(listeners)} listeners for {len(channels)} channels"
        stream._fail(StreamError("gateway-failed", msg))
        return
    assert record.request is not None
    wrong = wrong_port(record.request, channels, listeners)
    if wrong is not None:
        stream._fail(StreamError("gateway-failed", f"gateway {gateway} {wrong}: tell its operator"))
        return
    record.listeners.update(zip(channels, listeners, strict=True))
    record.csr[gateway] = answer.csr
    record.boots[gateway] = answer.boot
    record.wan[gateway] = answer.wan
    reservation.pending_gateways.discard(gateway)
    if not reservation.pending_gateways:
        stream._reserved()


def listen(stream: Stream, core: Core, reservation: Reservation) -> None:
    """Answer the REQ, because all gateways have reserved."""
    if not core.save():
        stream._fail(_NO_NEW_STREAM, reservation.waiting_callers)
        return
    for caller in reservation.waiting_callers:
        core.answer_with_state(caller, f"reserved {len(core.record.listeners)} listeners")
    if core.record.greeted:
        stream._hello_counts(None)
    if reservation.hello_is_overdue:
        stream.hello_timeout()


def gateway_refused(stream: Stream, core: Core, reservation: Reservation, gateway: str, error: StreamError) -> None:
    """Ask another gateway if one cannot grant its ports and there is a spare. Otherwise end the stream."""
    if gateway not in reservation.pending_gateways:
        return
    reservation.refusals[gateway] = error
    if error.code == "no-ports" and core.spares.get(gateway):
        _ask_spare(stream, core, reservation, gateway)
    else:
        reasons = [gateway_error(name, refusal).msg for name, refusal in reservation.refusals.items()]
        stream._fail(StreamError(gateway_error(gateway, error).code, "; ".join(reasons)[:MAX_TEXT]))


def _ask_spare(stream: Stream, core: Core, reservation: Reservation, gateway: str) -> None:
    """Ask another gateway for the ports that this one could not grant."""
    record = core.record
    assert record.request is not None
    spare, *others = core.spares.pop(gateway)
    core.spares = {name: [one for one in left if one != spare] for name, left in core.spares.items()}
    core.spares[spare] = others
    channels = record.plan[spare] = record.plan.pop(gateway)
    reservation.pending_gateways = (reservation.pending_gateways - {gateway}) | {spare}
    if core.save():  # before the gateway is asked, so that it reserves nothing of which there is no record
        core.effects.ask(spare, reservation_for(record, record.request, channels))
    else:
        stream._fail(_NO_NEW_STREAM)
