"""A real Prometheus scrapes both daemons of a facility, and evaluates the alert rules and the dashboard's queries."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import World, exchange

from scistream.pki.authority import issue
from scistream.s2cs import metrics as s2cs_metrics
from scistream.s2ds import metrics as s2ds_metrics
from support.applications import MIB, accept
from support.facilities import HOST, elements_of, files_of
from support.leased_ports import leased
from support.programs import Program
from support.requirements import needs
from support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "conf" / "prometheus" / "scistream-alerts.yml"
DASHBOARD = ROOT / "conf" / "grafana" / "scistream.json"
WITHOUT_VALUES = ("scistream_refusals_total",)
"""Metrics of panels that are empty as long as nothing happens."""


OF_A_BUSY_MACHINE = {"SciStreamStoreSlow", "SciStreamDown"}
"""Alerts that a healthy facility has, for a moment, where other tests keep the processors and the disk busy."""


class Prometheus:
    """A Prometheus that scrapes some daemons.

    :param targets: where they listen for HTTP.
    :param interval: between two scrapes.
    :param rules: the text of the rules.
    """

    def __init__(self, folder: Path, targets: list[str], interval: str, rules: str) -> None:
        self.address = f"{HOST}:{leased.take(1, HOST)}"
        (folder / "rules.yml").write_text(rules)
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "scrape_configs": [{"job_name": "scistream", "static_configs": [{"targets": targets}]}],
            "rule_files": ["rules.yml"],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        self.program = Program([*command, f"--web.listen-address={self.address}"], folder / "prometheus.log")
        until(self._is_ready, lambda: f"Prometheus does not start: {self.program}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **fields: str) -> Any:
        """Return the data of an answer of its API."""
        query = urllib.parse.urlencode(fields)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=PATIENCE) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the vector that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float:
        """Return the only value of an expression; NaN if it has none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else float("nan")

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs("prometheus")
    folder = tmp_path_factory.mktemp("world")
    settings = {"http": {"listen": f"{HOST}:{leased.take(1, HOST)}"}}
    gateway = {"http": {"listen": f"{HOST}:{leased.take(1, HOST)}"}}
    with World(folder, lab={"settings": settings, "gateway": gateway}) as world:
        yield world


def targets(world: World) -> list[str]:
    """Return where the daemons of the lab listen for HTTP."""
    return [
        re.findall(r'listen = "([^"]+)"', daemon.file.read_text().partition("[http]")[2])[0]
        for daemon in (world.lab.server, *world.lab.gateways)
    ]


@pytest.fixture(scope="module")
def prometheus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run a Prometheus for which every alert fires at once, so that a test need not wait for minutes."""
    at_once = re.sub(r"^ +for: .*\n", "", RULES.read_text(), flags=re.MULTILINE)
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets(world), "1s", at_once)
    try:
        until(lambda: prometheus.value("sum(up)") == 2, lambda: str(prometheus.query("up")))
        yield prometheus
    finally:
        prometheus.program.stop()


def fires(prometheus: Prometheus, *alerts: str) -> None:
    until(lambda: set(alerts) <= prometheus.firing(), lambda: f"only {prometheus.firing()} fire")


def stream_once(world: World, seed: int) -> None:
    """Set up a stream, exchange a few MiB over it, and release it."""
    with socket.create_server((HOST, 0)) as listener:
        host, port = listener.getsockname()
        with (
            world.stream([f"{host}:{port}"]) as stream,
            stream.connect() as consumer,
            accept(listener) as producer,
        ):
            exchange(consumer, producer, seed=seed)


CARRIED = 'scistream_stream_bytes_total{party="%s",role="PROD",direction="%s"}'


def test_bytes_are_counted_by_both_daemons_and_stay_counted_when_the_stream_is_over(
    world: World, prometheus: Prometheus
) -> None:
    for number in (1, 2):
        stream_once(world, seed=number)
        for party in ("s2cs", "s2ds"):
            for direction, size in (("to-producer", 3 * MIB), ("to-consumer", 2 * MIB)):
                carried = CARRIED % (party, direction)
                until(
                    lambda carried=carried, most=number * size: prometheus.value(carried) >= most,
                    lambda carried=carried: f"{carried} is {prometheus.value(carried)}",
                )
                assert prometheus.value(carried) == number * size
    assert prometheus.value('scistream_stream_connections_opened_total{party="s2ds",role="PROD"}') == 2
    assert prometheus.value("sum(scistream_streams) or vector(0)") == 0
    assert prometheus.value('scistream_setup_seconds_count{role="PROD"}') == 2
    assert prometheus.query("resets(scistream_stream_bytes_total[1h]) > 0") == []


def test_promtool_finds_nothing_wrong_with_what_the_daemons_say(world: World) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.rst").read_text()
    of_process = set(re.findall(r"``(process_\w+)``", page))
    assert len(of_process) == 6
    for target in targets(world):
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=PATIENCE) as answer:
            metrics = answer.read()
        assert of_process <= set(re.findall(r"^(process_\w+) ", metrics.decode(), re.MULTILINE))
        command = ["promtool", "check", "metrics"]
        checked = subprocess.run(command, input=metrics, capture_output=True, timeout=PATIENCE, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_every_query_of_the_dashboard_has_a_value(world: World, prometheus: Prometheus) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    concrete = [
        query.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$instance", ".*") for query in queries
    ]
    with world.request():
        for query in concrete:
            if any(name in query for name in WITHOUT_VALUES):
                prometheus.query(query)
            else:
                until(lambda query=query: bool(prometheus.query(query)), lambda query=query: f"no value: {query}")


def test_every_rule_can_be_evaluated_and_nothing_fires_in_a_healthy_facility(
    world: World, prometheus: Prometheus
) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    until(lambda: {rule["health"] for rule in rules()} == {"ok"}, lambda: str(rules()))
    assert {rule["name"] for rule in rules()} == set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert prometheus.firing() <= OF_A_BUSY_MACHINE


def test_what_goes_wrong_fires_its_alert(world: World, prometheus: Prometheus) -> None:
    (gateway,) = world.lab.gateways
    with world.request(8, "95Gbit"):  # of 100, and all ports
        fires(prometheus, "SciStreamCapacityNearlyFull", "SciStreamPortsNearlyUsed")
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        for _ in range(7):
            world.start_s2uc("request", *between).end(status=1)
        fires(prometheus, "SciStreamRefusals")
    (element,) = elements_of(gateway.pid)
    os.kill(element, signal.SIGKILL)
    fires(prometheus, "SciStreamElementsRestarting")
    soon = files_of(issue(world.lab.pki, "server", "soon", [HOST], days=1))
    for name in ("certificate", "key"):
        before = re.findall(rf'^{name} = "(.*)"', gateway.file.read_text(), re.MULTILINE)[0]
        Path(before).write_bytes(Path(soon[name]).read_bytes())
    os.kill(gateway.pid, signal.SIGHUP)
    fires(prometheus, "SciStreamCertificateExpiresSoon", "SciStreamCertificateExpiresNow")
    gateway.stop()
    fires(prometheus, "SciStreamDown", "SciStreamGatewayDown", "SciStreamNotReady")
    gateway.start()
    gateway.wait_until_ready()
    until(
        lambda: not {"SciStreamDown", "SciStreamGatewayDown", "SciStreamNotReady"} & prometheus.firing(),
        lambda: f"{prometheus.firing()} fire still",
    )


@pytest.mark.long
def test_a_minute_of_scrapes_misses_nothing_and_no_counter_falls(world: World, tmp_path: Path) -> None:
    prometheus = Prometheus(tmp_path, targets(world), "1s", RULES.read_text())
    try:
        until(lambda: prometheus.value("sum(up)") == 2, lambda: str(prometheus.query("up")))
        before = prometheus.value(CARRIED % ("s2ds", "to-producer"))
        end, seed = time.monotonic() + 60, 10
        while time.monotonic() < end:
            stream_once(world, seed := seed + 1)
        assert prometheus.value("min(min_over_time(up[1m]))") == 1
        assert prometheus.value("min(count_over_time(up[1m]))") >= 50
        assert prometheus.value("max(scrape_duration_seconds)") < 1
        counters = {kind.name for kind in (*s2cs_metrics.METRICS, *s2ds_metrics.METRICS) if kind.type == "counter"}
        for counter in counters:
            assert prometheus.query(f"resets({counter}[1m]) > 0") == [], counter
        carried, expected = CARRIED % ("s2ds", "to-producer"), before + (seed - 10) * 3 * MIB
        until(lambda: prometheus.value(carried) == expected, lambda: f"{prometheus.value(carried)}, not {expected}")
    finally:
        prometheus.program.stop()
