"""`scistream check` beside running daemons: what an S2CS would see of its gateways, and what it says of the daemons."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

import scistream.cli
from scistream.check import reach
from scistream.check.plan import CheckPlan
from scistream.pki.authority import init_authority, issue
from scistream.protocol.address import Address
from scistream.tls.files import utc_now
from support.facilities import Facility, end, files_of, loopback, start
from support.programs import executed_programs

OF_MACHINE = {"clock.synchronised", "limits.open-files", "kernel.congestion-wan"}
"""Findings that the machine on which the tests run may give."""


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """Start a facility whose processes show their command lines."""
    folder = tmp_path_factory.mktemp("facility")
    users = init_authority(folder / "users", "The users").certificate
    facility = Facility(folder, "lab", users, loopback(), gateway={"elements": 0})
    with executed_programs():
        try:
            start(facility)
            yield facility
        finally:
            end(facility)


def check(file: Path, status: int = 0) -> dict[str, dict[str, str]]:
    """Return the findings of the command by their names."""
    done = CliRunner().invoke(scistream.cli.main, ["check", "--config", str(file), "--json"])
    assert done.exit_code == status, done.output
    return {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def bad(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, one in found.items() if one["verdict"] in ("WARN", "FAIL")} - OF_MACHINE


def changed(facility: Facility, **settings: Any) -> Path:
    """Return another configuration file of the control server, with other settings."""
    file = facility.folder / "other.toml"
    file.write_text(tomli_w.dumps({**tomllib.loads(facility.server.file.read_text()), **settings}))
    return file


def test_nothing_is_wrong_beside_a_running_server_and_its_link_stays(facility: Facility) -> None:
    found = check(facility.server.file)
    assert bad(found) == set()
    gateway = facility.gateways[0]
    assert "accepts this S2CS" in found[f"reach.gateway-{gateway.name}"]["why"]
    assert str(facility.server.pid) in found["limits.daemon"]["why"]
    assert "of the daemon" in found["ports.listen"]["why"]
    assert "is sound" in found["store.records"]["why"]
    assert "is not connected" not in facility.server.words()
    assert facility.server.words().count(f"gateway {gateway.name} is connected") == 1


def test_nothing_is_wrong_beside_a_running_gateway(facility: Facility) -> None:
    found = check(facility.gateways[0].file)
    assert bad(found) == set()
    assert str(facility.gateways[0].pid) in found["limits.daemon"]["why"]


def test_a_gateway_of_another_controller_is_found(facility: Facility) -> None:
    other = files_of(issue(facility.pki, "controller", "other"))
    controller = {**other, "authorities": [str(facility.authority)]}
    found = check(changed(facility, controller=controller), status=1)
    name = f"reach.gateway-{facility.gateways[0].name}"
    assert found[name]["verdict"] == "FAIL"
    assert "scistream:controller:other is not the controller of this gateway" in found[name]["why"]


def test_a_gateway_with_a_certificate_of_another_authority_is_found(facility: Facility, tmp_path: Path) -> None:
    settings = tomllib.loads(facility.server.file.read_text())["controller"]
    other = str(init_authority(tmp_path / "other", "Another").certificate)
    found = check(changed(facility, controller={**settings, "authorities": [other]}), status=1)
    name = f"reach.gateway-{facility.gateways[0].name}"
    assert found[name]["verdict"] == "FAIL"
    assert "its authority is not in `authorities`" in found[name]["why"]


def test_a_gateway_that_does_not_listen_or_is_no_gateway_is_found(facility: Facility) -> None:
    gateways = [
        {"name": "gone", "address": "127.0.0.1:1"},
        {"name": "server", "address": facility.s2cs.replace("127.0.0.1", "localhost")},
    ]
    found = check(changed(facility, gateways=gateways, listen="127.0.0.1:2"), status=1)
    assert "127.0.0.1:1 cannot be reached" in found["reach.gateway-gone"]["why"]
    assert "port 1 in its firewall" in found["reach.gateway-gone"]["remedy"]
    assert found["reach.gateway-server"]["verdict"] == "FAIL"


def test_a_peer_that_is_a_control_server_is_recognised(facility: Facility) -> None:
    facts = reach.ask_peer(facility.server.address)
    assert facts.speaks == "scistream/1"
    assert "127.0.0.1" in facts.names
    verdicts = {one.name: one.verdict for one in reach.peer_findings(facts, None)}
    assert verdicts == {"reach.peer": "OK", "reach.path-mtu": "OK", "clock.peer": "UNSEEN"}


class Clock(BaseHTTPRequestHandler):
    """A web server whose clock is wrong."""

    def __init__(self, ahead: timedelta, *arguments: Any) -> None:
        self._ahead = ahead
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.wfile.write(b"HTTP/1.1 404 Not Found\r\nServer: test\r\n")
        self.wfile.write(f"Date: {format_datetime(utc_now() + self._ahead, usegmt=True)}\r\n\r\n".encode())

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.mark.parametrize(
    ("ahead", "verdict", "part"), [(90, "WARN", "90 s ahead"), (-90, "WARN", "behind"), (0, "OK", "")]
)
def test_the_clock_of_a_peer_is_compared_with_this_one(ahead: int, verdict: str, part: str) -> None:
    with HTTPServer(("127.0.0.1", 0), partial(Clock, timedelta(seconds=ahead))) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            facts = reach.ask_peer(Address("127.0.0.1", server.server_port))
        finally:
            server.shutdown()
            serving.join(10)
    assert facts.speaks == "HTTP"
    found = {one.name: one for one in reach.peer_findings(facts, None)}
    assert found["clock.peer"].verdict == verdict
    assert part in found["clock.peer"].why


def test_without_a_configuration_no_gateway_is_asked() -> None:
    assert reach.ask_gateways(CheckPlan()) == []
