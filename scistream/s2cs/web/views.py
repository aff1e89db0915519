"""What the JSON API says about streams, gateways and the server: pure functions of what the S2CS knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scistream.paging import page_key
from scistream.protocol.messages import CONS, PROD, BrokenChannel, GatewayCapacity, StreamStatus
from scistream.s2cs.audit.events import BadLineEvent, EndEvent, LinkRefusedEvent, RefusedEvent
from scistream.s2cs.audit.trail import split_owner
from scistream.s2cs.in_use import GatewayUse
from scistream.s2cs.record import Record
from scistream.s2cs.store.ledger import Total
from scistream.s2cs.web.api_types import (
    ChannelView,
    EndView,
    GatewayView,
    RateHistory,
    RefusalView,
    StreamDetail,
    StreamView,
)
from scistream.s2cs.web.history import Rates

MOST_PROBLEMS = 8
"""Problems of one stream in a list."""


@dataclass(frozen=True, kw_only=True)
class KnownStream:
    """What an S2CS knows about one side of a stream.

    :param pending: the gateways whose answer the stream waits for.
    :param to_wall: the seconds to add to the clock of `rates` for seconds since the epoch.
    """

    record: Record
    status: StreamStatus
    total: Total
    rates: Rates | None
    pending: Collection[str]
    application_linked: bool
    owner_linked: bool
    to_wall: float


def stream_view(stream: KnownStream) -> StreamView:
    """Return a stream for a list."""
    record, status, rates = stream.record, stream.status, stream.rates
    owner, issuer = split_owner(record.owner)
    return StreamView(
        key=page_key(record.key),
        uid=record.uid,
        role=record.role,
        owner=owner,
        issuer=issuer,
        label=status.label,
        protocol=record.request.protocol if record.request is not None else "tcp",
        state=record.state,
        state_since=record.state_since or None,
        waits_for=waits_for(record, stream.pending, status.silent),
        requested_at=_time(record.expires_at - record.life),
        expires_at=_time(record.expires_at),
        started_at=record.started_at or None,
        released_at=record.released_at or None,
        channels=record.request.num_conn if record.request is not None else 0,
        reserved_mbit=status.rate,
        gateways=status.gateways,
        connections=sum(one.connections for one in status.figures),
        connections_total=stream.total.connections,
        bytes_to_consumer=stream.total.bytes_to_consumer,
        bytes_to_producer=stream.total.bytes_to_producer,
        mbit_to_consumer=round(rates.to_consumer, 3) if rates is not None else None,
        mbit_to_producer=round(rates.to_producer, 3) if rates is not None else None,
        rates_at=round(rates.at + stream.to_wall, 2) if rates is not None else None,
        resets=stream.total.reset,
        last_reset=status.resets[0].reason if status.resets else None,
        problems=problems(status)[:MOST_PROBLEMS],
    )


def stream_detail(stream: KnownStream, history: RateHistory) -> StreamDetail:
    """Return everything about a stream."""
    record, status = stream.record, stream.status
    return StreamDetail(
        stream=stream_view(stream),
        channels=_channels(record, status),
        application=record.app_listeners,
        application_linked=stream.application_linked,
        owner_linked=stream.owner_linked,
        hello_by=_time(record.hello_by),
        generation=record.generation,
        wan_dialer=status.wan_dialer,
        wrong_hellos=status.wrong_hellos,
        silent=status.silent,
        notices=status.notices,
        resets=status.resets,
        paths=status.paths,
        last_error=status.last_error,
        probe=status.probe,
        history=history,
    )


def waits_for(record: Record, pending: Collection[str], silent: Mapping[str, float]) -> str:
    """Return what is missing before this side of a stream continues, to complete "waiting for ..."; empty: nothing."""
    state, is_probe = record.state, record.request is not None and record.request.protocol == "probe"
    if state == "Reserving":
        return f"{_gateways(pending)} to reserve ports"
    if state == "Updating":
        return f"{_gateways(pending)} to set targets"
    if state == "Releasing":
        return f"{_gateways(pending)} to confirm the release"
    if state in ("Listening", "Ready", "Streaming") and silent:
        return f"{_gateways(silent)} to answer"
    if state == "Listening":
        if is_probe:
            return "the user's client to start the probe"
        return "the producer's program" if record.role == PROD else "the consumer's program"
    if state == "Ready":
        if record.role == PROD:
            return "the user's client to connect both sides"
        return "the producer's program, at the other side"
    if state == "Streaming" and record.role == CONS and not record.greeted and not is_probe:
        return "the consumer's program"
    return ""


def problems(status: StreamStatus) -> list[str]:
    """Return what is wrong with a stream now, a sentence each, the most important first."""
    found = [f"gateway {name} has not answered for {_whole(seconds)} s" for name, seconds in status.silent.items()]
    found += [f"channel {one.channel} is broken: {one.reason}" for one in status.broken]
    if status.last_error is not None:
        found.append(f"{status.last_error.code}: {status.last_error.msg}")
    return found + status.notices


def _channels(record: Record, status: StreamStatus) -> list[ChannelView]:
    figures = {one.channel: one for one in status.figures}
    broken: dict[int, BrokenChannel] = {one.channel: one for one in reversed(status.broken)}
    views = []
    for channel, gateway in sorted((channel, name) for name, held in record.plan.items() for channel in held):
        listener = record.listeners.get(channel)
        outage = broken.get(channel)
        views.append(
            ChannelView(
                channel=channel,
                gateway=gateway,
                listener=listener,
                target=record.connection_map.get(listener) if listener is not None else None,
                wan_listener=record.wan_listeners.get(channel),
                figures=figures.get(channel),
                broken_seconds=outage.seconds if outage is not None else None,
                broken_reason=outage.reason if outage is not None else None,
            )
        )
    return views


def gateway_view(
    name: str,
    address: str,
    *,
    state: Literal["linked", "silent", "down"],
    since: float | None,
    draining: bool,
    room: GatewayCapacity | None,
    uses: Iterable[GatewayUse],
    streams: int,
    certificate_ends: float | None,
    unknown_streams: int,
) -> GatewayView:
    """Return a gateway of the pool.

    :param room: its capacity, if that is known.
    :param uses: what streams use of it.
    """
    used = list(uses)
    return GatewayView(
        name=name,
        address=address,
        state=state,
        since=_time(since) if since is not None else None,
        draining=draining,
        streams=streams,
        mbit_total=room.rate if room is not None else None,
        mbit_used=sum(use.rate for use in used),
        ports_total=room.ports if room is not None else None,
        ports_used=sum(use.ports_of(room) if room is not None else use.lent.total() for use in used),
        elements=room.elements if room is not None else None,
        elements_ready=room.elements_ready if room is not None else None,
        certificate_ends=certificate_ends,
        unknown_streams=unknown_streams,
    )


def end_view(number: int, event: EndEvent) -> EndView:
    """Return the end of a stream."""
    return EndView(
        number=number,
        time=event.time,
        uid=event.uid,
        role=event.role,
        owner=event.identity,
        label=event.label,
        duration=event.duration,
        bytes_to_consumer=event.bytes_to_consumer,
        bytes_to_producer=event.bytes_to_producer,
        complete=event.complete,
        code=event.code,
        reason=event.reason,
    )


def refusal_view(number: int, event: RefusedEvent | BadLineEvent | LinkRefusedEvent) -> RefusalView:
    """Return a refusal."""
    has_sender = isinstance(event, RefusedEvent | BadLineEvent)
    what = event.cmd if isinstance(event, RefusedEvent) else "line" if has_sender else "connection"
    return RefusalView(
        number=number,
        time=event.time,
        what=what,
        address=event.address,
        identity=event.identity if not isinstance(event, LinkRefusedEvent) else None,
        uid=event.uid if not isinstance(event, LinkRefusedEvent) else None,
        code=event.code if isinstance(event, RefusedEvent) else None,
        reason=event.reason,
        repeated=event.repeated,
    )


def _gateways(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"gateway{'s' if len(listed) > 1 else ''} {', '.join(listed)}" if listed else "the gateways"


def _time(seconds: float) -> float:
    return round(seconds, 1)


def _whole(seconds: float) -> int:
    return round(seconds)
