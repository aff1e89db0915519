"""The metrics of a gateway: what they are, and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from scistream.http.metrics import BOTH, MetricKind, Value, common_values
from scistream.links.tls_links import HANDSHAKE_FAILURES
from scistream.protocol.messages import CONS, PROD, Cause, Role

if TYPE_CHECKING:
    from scistream.s2ds.service import DataServer

ROLES: tuple[Role, ...] = (CONS, PROD)
BYTES_PER_MBIT = 125_000

METRICS = (
    *BOTH,
    MetricKind("scistream_controller_up", "gauge", "1 if the controller is connected."),
    MetricKind("scistream_elements", "gauge", "The elements of the gateway."),
    MetricKind("scistream_elements_ready", "gauge", "The elements that take connections."),
    MetricKind("scistream_element_restarts_total", "counter", "Elements that have died and were started again."),
    MetricKind("scistream_capacity_bytes_per_second", "gauge", "The rate that streams can reserve, in each direction."),
    MetricKind("scistream_reserved_bytes_per_second", "gauge", "The rate that streams have reserved."),
    MetricKind("scistream_ports", "gauge", "The ports from which the gateway chooses."),
    MetricKind("scistream_ports_used", "gauge", "Those of them that streams have."),
    MetricKind(
        "scistream_ready_connections",
        "gauge",
        "Connections between gateways that no application uses yet, by side.",
        ("role",),
    ),
    MetricKind(
        "scistream_waiting_bytes", "gauge", "Bytes that wait in the gateway and its sockets, by side.", ("role",)
    ),
    MetricKind(
        "scistream_wan_retransmitted_segments_total",
        "counter",
        "TCP segments that were sent again to other gateways, by side.",
        ("role",),
    ),
    MetricKind(
        "scistream_one_stream_bytes_total",
        "counter",
        "Application bytes that a live stream has carried; only with stream_labels.",
        ("uid", "role", "direction"),
    ),
)


def values(server: DataServer, problems: Sequence[str]) -> Iterator[Value]:
    """Yield the values of the metrics of a gateway.

    :param problems: why it is not ready.
    """
    yield from common_values(problems, server.all_credentials(), is_draining=server.is_draining)
    yield from _streams(server)
    for cause in get_args(Cause):
        for role in ROLES:
            yield Value("scistream_stream_resets_total", server.resets[cause, role], (cause, role))
    for reason in HANDSHAKE_FAILURES:
        yield Value("scistream_handshake_failures_total", server.handshakes[reason], (reason,))
    yield Value("scistream_links", server.admission_controller.links)
    yield Value("scistream_links_refused_total", server.admission_controller.refused)
    yield Value("scistream_controller_up", server.is_controlled)
    yield Value("scistream_elements", server.elements.count)
    yield Value("scistream_elements_ready", server.elements.ready_count())
    yield Value("scistream_element_restarts_total", server.elements.restarts)
    capacity, ports = server.capacity, server.ports
    yield Value("scistream_capacity_bytes_per_second", capacity.total * BYTES_PER_MBIT)
    yield Value("scistream_reserved_bytes_per_second", capacity.reserved * BYTES_PER_MBIT)
    in_all = ports.last - ports.first + 1
    yield Value("scistream_ports", in_all)
    yield Value("scistream_ports_used", in_all - ports.free)
    if server.config.http.stream_labels:
        yield from _each_stream(server)


def _streams(server: DataServer) -> Iterator[Value]:
    for labels, count in Counter((stream.state, stream.key[1]) for stream in server.live_streams()).items():
        yield Value("scistream_streams", count, labels)
    for role in ROLES:
        totals = server.elements.totals(role)
        yield Value("scistream_stream_bytes_total", totals.bytes_to_consumer, ("to-consumer", role))
        yield Value("scistream_stream_bytes_total", totals.bytes_to_producer, ("to-producer", role))
        yield Value("scistream_stream_connections_opened_total", totals.accepted, (role,))
        yield Value("scistream_stream_connections_open", totals.connections, (role,))
        yield Value("scistream_ready_connections", totals.ready, (role,))
        yield Value("scistream_waiting_bytes", totals.waiting, (role,))
        yield Value("scistream_wan_retransmitted_segments_total", totals.retransmits, (role,))


def _each_stream(server: DataServer) -> Iterator[Value]:
    for stream in server.live_streams():
        figures = server.elements.figures(*stream.key)
        to_consumer = sum(one.bytes_to_consumer for one in figures)
        to_producer = sum(one.bytes_to_producer for one in figures)
        for direction, count in (("to-consumer", to_consumer), ("to-producer", to_producer)):
            yield Value("scistream_one_stream_bytes_total", count, (*stream.key, direction))
