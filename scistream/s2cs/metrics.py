"""The metrics of an S2CS: what they are, and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from scistream.http.metrics import BOTH, MetricKind, Value, common_values
from scistream.links.tls_links import HANDSHAKE_FAILURES
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import CONS, PROD, Cause, ChannelFigures, Role
from scistream.s2cs.counts import OTHER_CAUSE
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.policy.authorizer import identity_of
from scistream.tls.reloadable import verified_path

if TYPE_CHECKING:
    from scistream.s2cs.service import ControlServer

ROLES: tuple[Role, ...] = (CONS, PROD)
BYTES_PER_MBIT = 125_000

METRICS = (
    *BOTH,
    MetricKind(
        "scistream_setup_seconds",
        "histogram",
        "Time from the request of a stream until it streams for the first time, by side.",
        ("role",),
    ),
    MetricKind("scistream_refusals_total", "counter", "Commands that were answered with an error, by code.", ("code",)),
    MetricKind("scistream_gateway_up", "gauge", "1 if the gateway is connected and answers.", ("gateway",)),
    MetricKind("scistream_gateway_draining", "gauge", "1 if the gateway gets no new streams.", ("gateway",)),
    MetricKind(
        "scistream_gateway_capacity_bytes_per_second",
        "gauge",
        "The rate that the gateway can reserve, in each direction.",
        ("gateway",),
    ),
    MetricKind(
        "scistream_gateway_reserved_bytes_per_second",
        "gauge",
        "The rate that streams have reserved on the gateway.",
        ("gateway",),
    ),
    MetricKind("scistream_gateway_ports", "gauge", "The ports from which the gateway chooses.", ("gateway",)),
    MetricKind("scistream_gateway_ports_used", "gauge", "Those of them that streams have.", ("gateway",)),
    MetricKind(
        "scistream_gateway_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the certificate expires that the gateway has shown, in seconds since the epoch.",
        ("gateway",),
    ),
    MetricKind(
        "scistream_store_seconds",
        "histogram",
        "Time to read a record from the store, or to write one or a booking of usage.",
        ("operation",),
    ),
    MetricKind("scistream_store_failing", "gauge", "1 if the store cannot be read, or the last write has failed."),
    MetricKind("scistream_audit_failing", "gauge", "1 if the audit trail cannot be written."),
    MetricKind(
        "scistream_stream_info",
        "gauge",
        "1 for each live stream; only with stream_labels.",
        ("uid", "role", "owner", "label", "state"),
    ),
    MetricKind(
        "scistream_one_stream_bytes_total",
        "counter",
        "Application bytes that a live stream has carried; only with stream_labels.",
        ("uid", "role", "direction"),
    ),
)


def values(server: ControlServer, problems: Sequence[str]) -> Iterator[Value]:
    """Yield the values of the metrics of an S2CS.

    :param problems: why it is not ready.
    """
    yield from common_values(problems, server.all_credentials(), is_draining=server.is_draining)
    yield from _streams(server)
    yield from _counts(server)
    for gateway in server.gateways.values():
        yield from _gateway(server, gateway)
    for operation, durations in server.store.durations.items():
        yield Value("scistream_store_seconds", durations, (operation,))
    yield Value("scistream_store_failing", server.store.problem() is not None)
    yield Value("scistream_audit_failing", server.audit.is_failing)
    if server.config.http.stream_labels:
        yield from _each_stream(server)


def _streams(server: ControlServer) -> Iterator[Value]:
    states = Counter((stream.record.state, stream.record.role) for stream in server.streams.values())
    for labels, count in states.items():
        yield Value("scistream_streams", count, labels)
    figures = _figures(server)
    for role in ROLES:
        carried = server.ledger.carried[role]
        yield Value("scistream_stream_bytes_total", carried.bytes_to_consumer, ("to-consumer", role))
        yield Value("scistream_stream_bytes_total", carried.bytes_to_producer, ("to-producer", role))
        yield Value("scistream_stream_connections_opened_total", carried.connections, (role,))
        yield Value("scistream_stream_connections_open", sum(one.connections for one in figures[role]), (role,))


def _figures(server: ControlServer) -> dict[Role, list[ChannelFigures]]:
    """Return the last figures of all channels, by side."""
    found: dict[Role, list[ChannelFigures]] = {role: [] for role in ROLES}
    for gateway in server.gateways.values():
        for (_, role), figures in gateway.figures.items():
            found[role] += figures
    return found


def _counts(server: ControlServer) -> Iterator[Value]:
    counts = server.counts
    for cause in (*get_args(Cause), OTHER_CAUSE):
        for role in ROLES:
            yield Value("scistream_stream_resets_total", counts.resets[cause, role], (cause, role))
    for code in get_args(ErrorCode):  # also those that are 0, since a rate needs a value before the first event
        yield Value("scistream_refusals_total", counts.refusals[code], (code,))
    for role in ROLES:
        yield Value("scistream_setup_seconds", counts.setup[role], (role,))
    for reason in HANDSHAKE_FAILURES:
        yield Value("scistream_handshake_failures_total", counts.handshakes[reason], (reason,))
    yield Value("scistream_links", server.admission_controller.links)
    yield Value("scistream_links_refused_total", server.admission_controller.refused)


def _gateway(server: ControlServer, gateway: GatewayLink) -> Iterator[Value]:
    labels = (gateway.name,)
    yield Value("scistream_gateway_up", gateway.answers, labels)
    yield Value("scistream_gateway_draining", gateway.is_drained, labels)
    room = gateway.room
    if room is not None:
        uses = server.streams.use_of_gateway(gateway.name), gateway.unknown_use
        reserved = sum(use.rate for use in uses)
        yield Value("scistream_gateway_capacity_bytes_per_second", room.rate * BYTES_PER_MBIT, labels)
        yield Value("scistream_gateway_reserved_bytes_per_second", reserved * BYTES_PER_MBIT, labels)
        yield Value("scistream_gateway_ports", room.ports, labels)
        yield Value("scistream_gateway_ports_used", sum(use.ports_of(room) for use in uses), labels)
    path = verified_path(gateway.dialer.link) if server.all_credentials() else ()
    if path:
        end = path[0].not_valid_after_utc.timestamp()
        yield Value("scistream_gateway_certificate_expiry_timestamp_seconds", end, labels)


def _each_stream(server: ControlServer) -> Iterator[Value]:
    for stream in server.streams.values():
        record = stream.record
        total = server.ledger.total(record)
        label = record.request.label if record.request is not None else None
        owner = identity_of(record.owner).name
        yield Value("scistream_stream_info", 1, (record.uid, record.role, owner, label or "", record.state))
        for direction, count in (("to-consumer", total.bytes_to_consumer), ("to-producer", total.bytes_to_producer)):
            yield Value("scistream_one_stream_bytes_total", count, (record.uid, record.role, direction))
