"""The metrics of both daemons: their names and labels, their values, and the rules and the dashboard that use them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.web.test.requesthelper import DummyRequest

from scistream import timing
from scistream.durations import Durations
from scistream.http.metrics import BOTH, DaemonCollector, MetricKind, MetricsResource, Value
from scistream.s2cs import http as s2cs_http
from scistream.s2cs import metrics as s2cs_metrics
from scistream.s2cs.service import ControlServer
from scistream.s2ds import http as s2ds_http
from scistream.s2ds import metrics as s2ds_metrics
from scistream.s2ds.service import DataServer
from support.memory_facilities import Facility, World
from support.requirements import needs

ROOT = Path(__file__).parents[3]
RULES = ROOT / "conf" / "prometheus" / "scistream-alerts.yml"
DASHBOARD = ROOT / "conf" / "grafana" / "scistream.json"
EVERY_METRIC = {kind.name: kind for kind in (*s2cs_metrics.METRICS, *s2ds_metrics.METRICS)}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def page(server: ControlServer | DataServer) -> str:
    """Return the metrics of a server in the text format."""
    registry = CollectorRegistry()
    if isinstance(server, ControlServer):
        values: Callable[[], Any] = lambda: s2cs_metrics.values(server, s2cs_http.unready(server))  # noqa: E731
        registry.register(DaemonCollector("s2cs", s2cs_metrics.METRICS, values))
    else:
        values = lambda: s2ds_metrics.values(server, s2ds_http.unready(server))  # noqa: E731
        registry.register(DaemonCollector("s2ds", s2ds_metrics.METRICS, values))
    return generate_latest(registry).decode()


def samples(server: ControlServer | DataServer) -> Samples:
    """Return the values of the metrics of a server, by name and labels without the party."""
    return {
        (sample.name, tuple(sorted((name, value) for name, value in sample.labels.items() if name != "party"))): (
            sample.value
        )
        for family in text_string_to_metric_families(page(server))
        for sample in family.samples
    }


def value(server: ControlServer | DataServer, name: str, **labels: str) -> float:
    return samples(server)[name, tuple(sorted(labels.items()))]


def with_stream_labels(facility: Facility) -> None:
    for server in (facility.control, *facility.gateways):
        http = msgspec.structs.replace(server.config.http, stream_labels=True)
        server.reload(msgspec.structs.replace(server.config, http=http))


# -- names


def listed(title: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return the rows of a table of the reference page."""
    text = (ROOT / "docs" / "reference" / "metrics.rst").read_text()
    section = re.split(r"\n[^\n]+\n-{4,}\n", text.partition(f"\n{title}\n")[2].partition("\n")[2])[0]
    rows = re.findall(r"   \* - ``(\w+)``\n     - (\w+)\n     - (.*)\n     - (.*)", section)
    return [(name, type_, tuple(re.findall(r"``(\w+)``", labels)), help_) for name, type_, labels, help_ in rows]


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("Metrics of both daemons", BOTH),
        ("Metrics of an S2CS", [kind for kind in s2cs_metrics.METRICS if kind not in BOTH]),
        ("Metrics of a gateway", [kind for kind in s2ds_metrics.METRICS if kind not in BOTH]),
    ],
)
def test_the_reference_page_lists_every_metric_with_its_type_and_labels(
    title: str, kinds: Sequence[MetricKind]
) -> None:
    assert listed(title) == [(kind.name, kind.type, kind.labels, kind.help) for kind in kinds]


def test_the_values_have_exactly_the_metrics_that_are_declared(world: World) -> None:
    world.stream()
    for server in (world.prod.control, world.prod.gateways[0]):
        declared = s2cs_metrics.METRICS if isinstance(server, ControlServer) else s2ds_metrics.METRICS
        found = {family.name for family in text_string_to_metric_families(page(server))}
        assert found == {kind.name.removesuffix("_total") for kind in declared}


def test_no_series_names_a_stream_unless_that_is_asked_for(world: World) -> None:
    stream = world.stream(label="run 17")
    for server in (world.prod.control, world.prod.gateways[0]):
        assert stream.uid not in page(server)
        assert "run 17" not in page(server)
    with_stream_labels(world.prod)
    uid = stream.uid
    assert (
        value(world.prod.gateways[0], "scistream_one_stream_bytes_total", uid=uid, role="PROD", direction="to-consumer")
        == 0
    )
    control = page(world.prod.control)
    assert f'label="run 17",owner="insecure:loopback",party="s2cs",role="PROD",state="Streaming",uid="{uid}"' in control


def test_the_number_of_series_does_not_depend_on_the_number_of_streams(world: World) -> None:
    world.stream()
    before = [len(samples(server)) for server in (world.prod.control, world.prod.gateways[0])]
    for _ in range(2):
        world.stream()
    assert [len(samples(server)) for server in (world.prod.control, world.prod.gateways[0])] == before


# -- values


def test_a_stream_is_seen_in_the_metrics_of_both_sides_and_gone_afterwards(world: World) -> None:
    stream = world.stream(rate=100.0)
    for facility, role in ((world.prod, "PROD"), (world.cons, "CONS")):
        assert value(facility.control, "scistream_streams", state="Streaming", role=role) == 1
        assert value(facility.gateways[0], "scistream_streams", state="Forwarding", role=role) == 1
        assert value(facility.control, "scistream_setup_seconds_count", role=role) == 1
        assert value(facility.control, "scistream_gateway_up", gateway=facility.control.config.gateways[0].name) == 1
        assert value(facility.gateways[0], "scistream_reserved_bytes_per_second") == 100 * 125_000
        assert value(facility.gateways[0], "scistream_ports_used") == 1
        assert (
            value(facility.control, "scistream_gateway_ports_used", gateway=facility.control.config.gateways[0].name)
            == 1
        )
    world.result(stream.release().deferred)
    for facility in (world.prod, world.cons):
        assert ("scistream_streams", (("role", "PROD"), ("state", "Streaming"))) not in samples(facility.control)
        assert value(facility.gateways[0], "scistream_reserved_bytes_per_second") == 0
        assert value(facility.gateways[0], "scistream_ports_used") == 0


def test_a_refusal_is_counted_by_its_code(world: World) -> None:
    assert value(world.prod.control, "scistream_refusals_total", code="no-capacity") == 0
    world.refusal(world.ask(rate=50_000.0))
    refused = [value(one.control, "scistream_refusals_total", code="no-capacity") for one in (world.prod, world.cons)]
    assert max(refused) == 1


def test_a_draining_daemon_says_so_and_is_not_ready(world: World) -> None:
    world.stream()  # which the shutdown waits for
    world.network.run(1.0)
    for server in (world.prod.control, world.prod.gateways[0]):
        assert (value(server, "scistream_ready"), value(server, "scistream_draining")) == (1, 0)
        server.reload(msgspec.structs.replace(server.config, shutdown_grace="1h"))
        server.shut_down()
        assert (value(server, "scistream_ready"), value(server, "scistream_draining")) == (0, 1)


def test_a_gateway_that_has_gone_is_down_and_its_s2cs_not_ready(world: World) -> None:
    name = world.prod.control.config.gateways[0].name
    world.prod.gateways[0].stopService()
    world.network.run(1.0)
    assert value(world.prod.control, "scistream_gateway_up", gateway=name) == 0
    assert value(world.prod.control, "scistream_ready") == 0


def test_a_store_that_cannot_be_written_is_failing_until_it_can(world: World) -> None:
    control = world.prod.control
    world.network.run(1.0)
    control.store._db.execute("PRAGMA query_only = ON")  # as if the disk had become read-only
    world.refusal(world.ask())
    assert value(control, "scistream_store_failing") == 1
    (reason,) = s2cs_http.unready(control)
    assert reason.startswith("the store ")
    assert "cannot be written: attempt to write a readonly database" in reason
    control.store._db.execute("PRAGMA query_only = OFF")
    world.stream()
    assert value(control, "scistream_store_failing") == 0
    assert s2cs_http.unready(control) == []
    assert value(control, "scistream_store_seconds_count", operation="write") > 0


def test_an_audit_trail_that_cannot_be_written_is_failing_until_it_can(world: World) -> None:
    control = world.prod.control
    world.network.run(1.0)
    assert control.audit._sink is not None
    file = Path(control.audit._sink.name)
    file.unlink()
    file.mkdir()  # where the trail should be
    world.refusal(world.ask())
    assert value(control, "scistream_audit_failing") == 1
    assert s2cs_http.unready(control) == ["the audit trail cannot be written, so new streams are refused"]
    file.rmdir()
    control.audit.flush()
    assert (value(control, "scistream_audit_failing"), s2cs_http.unready(control)) == (0, [])


def test_durations_are_counted_up_to_each_bound_and_in_all() -> None:
    durations = Durations([0.1, 1.0])
    for seconds in (0.05, 0.1, 0.5, 7.0):
        durations.add(seconds)
    assert (durations.cumulative, durations.sum) == ([2, 3, 4], 7.65)
    with pytest.raises(ZeroDivisionError), durations.of_block():
        1 / 0  # noqa: B018
    assert durations.cumulative[-1] == 5


# -- the resource


class Counting:
    """A collector's values, and how often they were read."""

    def __init__(self) -> None:
        self.reads = 0

    def values(self) -> list[Value]:
        self.reads += 1
        return [Value("reads", self.reads)]


def test_a_page_is_used_again_within_a_second_whatever_readers_accept() -> None:
    clock, counting = Clock(), Counting()
    collector = DaemonCollector("s2cs", [MetricKind("reads", "gauge", "How often.")], counting.values)
    resource = MetricsResource(clock, collector)
    accepted = ["", "text/plain;version=9.9.9;escaping=x", "application/openmetrics-text; version=junk", "*/*", "a,b;c"]
    for accept in accepted * 20:
        request = DummyRequest([b"metrics"])
        request.requestHeaders.setRawHeaders("accept", [accept])
        assert b'reads{party="s2cs"}' in resource.render_GET(request)
    assert counting.reads == 2
    clock.advance(timing.METRICS_FRESH)
    assert b'reads{party="s2cs"} 3.0' in resource.render_GET(DummyRequest([b"metrics"]))


# -- the rules and the dashboard


def used_in(text: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bscistream_\w+", text)}


def queries() -> list[str]:
    """Return the expressions of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_rules_and_the_dashboard_use_metrics_that_exist() -> None:
    assert len(queries()) > 25
    for text in (RULES.read_text(), *queries()):
        assert used_in(text) <= set(EVERY_METRIC), text


def test_the_dashboard_shows_every_metric_but_those_of_single_streams() -> None:
    hidden = {"scistream_one_stream_bytes_total", "scistream_stream_info", "scistream_elements"}
    shown = set().union(*map(used_in, queries())) | {"scistream_build_info"}
    assert set(EVERY_METRIC) - hidden == shown


DAY = 86400
CASES: dict[str, tuple[str, str, str]] = {
    "SciStreamDown": ('up{job="scistream"}', "0x20", "1x20"),
    "SciStreamNotReady": ("scistream_ready", "0x20", "0 1 0 0 1 0 1x14"),
    "SciStreamGatewayDown": ('scistream_gateway_up{gateway="dtn1"}', "0x20", "1x20"),
    "SciStreamStoreFailing": ("scistream_store_failing", "1x20", "0x20"),
    "SciStreamAuditFailing": ("scistream_audit_failing", "1x20", "0x20"),
    "SciStreamCapacityNearlyFull": ("scistream_reserved_bytes_per_second", "95x20", "85x20"),
    "SciStreamPortsNearlyUsed": ("scistream_ports_used", "95x20", "85x20"),
    "SciStreamCertificateExpiresSoon": (
        'scistream_certificate_expiry_timestamp_seconds{certificate="server",kind="certificate"}',
        f"{13 * DAY}x20",
        f"{15 * DAY}x20",
    ),
    "SciStreamCertificateExpiresNow": (
        'scistream_certificate_expiry_timestamp_seconds{certificate="server",kind="certificate"}',
        f"{DAY}x20",
        f"{3 * DAY}x20",
    ),
    "SciStreamResetsRising": (
        'scistream_stream_resets_total{party="s2ds",reason="wan",role="PROD"}',
        "0+30x20",
        "0+1x20",
    ),
    "SciStreamElementsRestarting": ("scistream_element_restarts_total", "0x17 1x3", "5x20"),
    "SciStreamElementsMissing": ("scistream_elements_ready", "1x20", "2x20"),
    "SciStreamRefusals": ('scistream_refusals_total{code="no-ports"}', "0+1x20", "0+0.1x20"),
    "SciStreamHandshakeFailures": ('scistream_handshake_failures_total{reason="tls"}', "0+120x20", "0+6x20"),
    "SciStreamDescriptorsNearlyUsed": ('process_open_fds{job="scistream"}', "900x20", "500x20"),
    "SciStreamStoreSlow": ('scistream_store_seconds_bucket{operation="write",le="0.1"}', "0x20", "0+10x20"),
}
"""For each alert a series, its values in each minute if the alert must fire after 20 of them, and if it must not."""
BESIDE = {
    "scistream_draining": "0x20",
    "scistream_capacity_bytes_per_second": "100x20",
    "scistream_ports": "100x20",
    "scistream_elements": "2x20",
    'process_max_fds{job="scistream"}': "1024x20",
    'scistream_store_seconds_bucket{operation="write",le="0.5"}': "0+10x20",
    'scistream_store_seconds_bucket{operation="write",le="+Inf"}': "0+10x20",
}
"""Series that are there in each case."""


def at(series: str, instance: str) -> str:
    """Return a series with the label `instance`."""
    name, brace, labels = series.partition("{")
    return f'{name}{{instance="{instance}",{labels if brace else "}"}'


def test_each_alert_fires_for_what_it_is_about_and_not_otherwise(tmp_path: Path) -> None:
    needs("promtool")
    assert set(re.findall(r"- alert: (\w+)", RULES.read_text())) == set(CASES)
    series, expected = [], []
    for alert, (about, firing, quiet) in CASES.items():
        for kind, values in (("fires", firing), ("is-quiet", quiet)):
            instance = f"{alert}-{kind}"
            given = {**BESIDE, about: values}
            series += [{"series": at(one, instance), "values": given[one]} for one in given]
            query = f'count(ALERTS{{alertname="{alert}",instance="{instance}",alertstate="firing"}}) or vector(0)'
            samples_ = [{"labels": "{}", "value": int(kind == "fires")}]
            expected.append({"expr": query, "eval_time": "20m", "exp_samples": samples_})
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]
    file = tmp_path / "alerts_test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(file)]):
        ended = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_draining_daemon_that_is_not_ready_causes_no_alert() -> None:
    assert "scistream_ready == 0 and scistream_draining == 0" in RULES.read_text()


def test_promtool_finds_nothing_wrong_with_the_metrics(world: World) -> None:
    needs("promtool")
    world.stream()
    with_stream_labels(world.prod)
    for server in (world.prod.control, world.prod.gateways[0]):
        text = page(server)
        ended = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
