"""``/metrics`` for Prometheus: what a daemon knows anyway, read when it is asked.

Each daemon declares its metrics in a table, and yields their values from its live objects; nothing is counted twice.
The values of metrics without a label `uid` are bounded by the configuration and by sets in the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from scistream import __version__, timing
from scistream.durations import Durations
from scistream.http.resources import TextResource, answer
from scistream.tls.files import LoadedCertificates
from scistream.tls.reloadable import ReloadableCredentials


class MetricKind(NamedTuple):
    """A metric that a daemon has.

    :ivar name: with ``_total`` if it is a counter.
    :ivar help: one sentence.
    :ivar labels: besides `party`, which each metric has.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


class Value(NamedTuple):
    """One value of a metric.

    :ivar labels: the values of its labels, in the order of `MetricKind.labels`.
    """

    name: str
    value: float | Durations
    labels: Sequence[str] = ()


BOTH = (
    MetricKind("scistream_build_info", "gauge", "1; the label is the version of SciStream.", ("version",)),
    MetricKind("scistream_ready", "gauge", "1 if the daemon can take new streams, as in /health/ready."),
    MetricKind("scistream_draining", "gauge", "1 if the daemon takes no new streams because it is to be stopped."),
    MetricKind("scistream_streams", "gauge", "Live streams, by state and side.", ("state", "role")),
    MetricKind(
        "scistream_stream_bytes_total",
        "counter",
        "Application bytes that streams have carried, by direction and side.",
        ("direction", "role"),
    ),
    MetricKind(
        "scistream_stream_connections_opened_total",
        "counter",
        "Connections of applications that were accepted or opened, by side.",
        ("role",),
    ),
    MetricKind("scistream_stream_connections_open", "gauge", "Connections that are open now, by side.", ("role",)),
    MetricKind(
        "scistream_stream_resets_total",
        "counter",
        "Connections that were reset, by cause and side.",
        ("reason", "role"),
    ),
    MetricKind(
        "scistream_handshake_failures_total",
        "counter",
        "Control links that were not authenticated, by reason.",
        ("reason",),
    ),
    MetricKind("scistream_links", "gauge", "Control links that are open at the listener."),
    MetricKind("scistream_links_refused_total", "counter", "Control links refused at once because of a limit."),
    MetricKind(
        "scistream_certificate_expiry_timestamp_seconds",
        "gauge",
        "When a certificate, an authority or a CRL expires, in seconds since the epoch.",
        ("certificate", "kind"),
    ),
)
"""The metrics that both daemons have."""


class DaemonCollector(Collector):
    """Collects the metrics of a daemon for prometheus_client.

    :param party: the value of the label `party`: "s2cs" or "s2ds".
    :param kinds: the metrics.
    :param values: yields their values.
    """

    def __init__(self, party: str, kinds: Iterable[MetricKind], values: Callable[[], Iterable[Value]]) -> None:
        self._party = party
        self._kinds = list(kinds)
        self._values = values

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, which the registry checks for names that are there twice."""
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values."""
        families = self._families()
        for name, value, labels in self._values():
            family = families[name]
            everything = [*labels, self._party]
            if isinstance(family, HistogramMetricFamily):
                assert isinstance(value, Durations), f"{name} is a histogram"
                bounds = [*(f"{bound:g}" for bound in value.bounds), "+Inf"]
                buckets = list(zip(bounds, map(float, value.cumulative), strict=True))
                family.add_metric(everything, buckets=buckets, sum_value=value.sum)
            else:
                assert not isinstance(value, Durations), f"{name} is not a histogram"
                family.add_metric(everything, value)
        yield from families.values()

    def _families(self) -> dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        return {
            kind.name: _FAMILIES[kind.type](kind.name, kind.help, labels=[*kind.labels, "party"])
            for kind in self._kinds
        }


_FAMILIES: Mapping[str, type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class MetricsResource(TextResource):
    """The metrics of a daemon and of its process, in the format that the reader accepts.

    A page is used again for `timing.METRICS_FRESH`, so that readers cannot keep the daemon busy.

    :param clock: an `IReactorTime`.
    """

    isLeaf = True

    def __init__(self, clock: IReactorTime, collector: DaemonCollector) -> None:
        super().__init__()
        self._clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._pages: dict[str, tuple[float, bytes]] = {}

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        accepted = ",".join(request.requestHeaders.getRawHeaders("accept") or [])
        encode, content_type = choose_encoder(_OPENMETRICS if "application/openmetrics-text" in accepted else "")
        now = self._clock.seconds()
        self._pages = {kind: page for kind, page in self._pages.items() if now - page[0] < timing.METRICS_FRESH}
        if content_type not in self._pages:
            self._pages[content_type] = now, encode(self._registry)
        return answer(request, self._pages[content_type][1], content_type)


def common_values(
    problems: Sequence[str], credentials: Mapping[str, ReloadableCredentials], *, is_draining: bool
) -> Iterator[Value]:
    """Yield values that both daemons have.

    :param problems: why the daemon is not ready.
    :param credentials: its certificates, by their names.
    """
    yield Value("scistream_build_info", 1, (__version__,))
    yield Value("scistream_ready", not problems)
    yield Value("scistream_draining", is_draining)
    for name, one in credentials.items():
        for kind, end in first_ends(one.material).items():
            yield Value("scistream_certificate_expiry_timestamp_seconds", end, (name, kind))


def first_ends(material: LoadedCertificates) -> dict[str, float]:
    """Return when the first certificate of the chain, the first authority and the first CRL expire.

    :returns: seconds since the epoch, by kind: "certificate", "authority", "crl".
    """
    ends = {
        "certificate": [held.certificate.not_valid_after_utc for held in material.chain],
        "authority": [held.certificate.not_valid_after_utc for held in material.authorities],
        "crl": [held.crl.next_update_utc for held in material.crls if held.crl.next_update_utc is not None],
    }
    return {kind: min(times).timestamp() for kind, times in ends.items() if times}
