"""`scistream check` in network namespaces that have the faults that it names: it finds each, and its remedies work.

Two namespaces, joined by a veth pair, are a gateway and another host. Without a fault, nothing is found.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import netns
import pytest

from scistream import timing
from scistream.check import kernel, names, network, ports, reach
from scistream.check.findings import Finding
from scistream.check.plan import CheckPlan, settings_of
from scistream.check.system import System
from scistream.protocol.address import Address
from scistream.s2ds.settings import S2DSConfig
from support.requirements import missing, needs_mptcp, needs_root

HERE, THERE = "192.0.2.1", "192.0.2.2"
SECOND = "192.0.2.11"
RATE, RTT = 1000.0, 0.05
SUFFICIENT = 64 * 2**20


@dataclass(frozen=True)
class Host:
    """A gateway in a namespace, with the settings that it should have."""

    namespace: str
    other: str
    folder: Path

    def run(self, command: str, *, there: bool = False) -> None:
        where = ["ip", "netns", "exec", self.other if there else self.namespace]
        done = subprocess.run([*where, "sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def plan(self, text: str = "", **more: object) -> CheckPlan:
        """Return a plan with the configuration of a gateway at `HERE`, without certificates, and further settings."""
        own = "insecure = true\n" + (text or "") + f'\n[lan]\nbind = "{HERE}"\n'
        if "[wan]" not in text:
            own += f'[wan]\nbind = "{HERE}"\n'
        file = self.folder / "s2ds.toml"
        networks = 'app_networks = ["0.0.0.0/0"]\nwan_networks = ["0.0.0.0/0"]\n'
        top, section, rest = own.partition("[")
        file.write_text(top + networks + section + rest)
        config = settings_of(file)
        assert isinstance(config, S2DSConfig)
        return CheckPlan(file, gateway=config, **{"rate": RATE, "rtt": RTT, **more})  # type: ignore[arg-type]

    def look(self, plan: CheckPlan) -> dict[str, Finding]:
        """Return what is found about kernel, network, ports and names: each WARN and FAIL by its name."""
        with netns.inside(self.namespace):
            system = System()
            network_facts = network.gather(system, plan)
            found = [
                *kernel.findings(kernel.gather(system, plan), plan),
                *network.findings(network_facts, plan),
                *ports.findings(ports.gather(system, plan, None), plan),
                *map(names.findings, names.gather(plan)),
            ]
            paths = network.gather_paths(plan)
            if paths is not None:
                found += network.path_findings(paths, plan, is_running=True)
            if plan.peer is not None:
                peer = reach.ask_peer(plan.peer)
                mtu = (network_facts.interfaces or {})[HERE].mtu
                found += reach.peer_findings(peer, mtu)
        return {one.name: one for one in found if one.verdict in ("WARN", "FAIL")}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    needs_root("network namespaces need root")
    lack = netns.missing()
    if lack is not None:
        missing(lack)
    here, there = f"check{os.getpid()}a", f"check{os.getpid()}b"
    try:
        netns.ip(f"netns add {here}", f"netns add {there}")
        netns.ip("link set lo up", f"link add eth0 type veth peer name eth0 netns {there}", namespace=here)
        netns.ip(f"address add {HERE}/24 dev eth0", "link set eth0 up", namespace=here)
        netns.ip("link set lo up", f"address add {THERE}/24 dev eth0", "link set eth0 up", namespace=there)
        made = Host(here, there, tmp_path_factory.mktemp("check"))
        made.run(
            f'sysctl -qw net.ipv4.tcp_rmem="4096 131072 {SUFFICIENT}" net.ipv4.tcp_wmem="4096 65536 {SUFFICIENT}" '
            "net.ipv4.tcp_slow_start_after_idle=0 net.core.somaxconn=4096"
        )
        yield made
    finally:
        netns.remove([here, there])


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for peers that say nothing."""
    monkeypatch.setattr(timing, "CHECK_CONNECT", 0.5)


def machine_itself(found: dict[str, Finding]) -> dict[str, Finding]:
    """Return the findings without those of the machine on which the test runs."""
    return {
        name: one for name, one in found.items() if name not in ("kernel.congestion-wan", "kernel.requested-buffers")
    }


@contextmanager
def setting(host: Host, name: str, value: str) -> Iterator[None]:
    """Give a setting of the kernel another value meanwhile."""
    with netns.inside(host.namespace):
        before = System().sysctl(name)
    host.run(f'sysctl -qw {name}="{value}"')
    try:
        yield
    finally:
        host.run(f'sysctl -qw {name}="{before}"')


def test_nothing_is_found_in_a_good_gateway(host: Host) -> None:
    assert machine_itself(host.look(host.plan())) == {}


SETTINGS = [
    ("kernel.receive-buffers", "net.ipv4.tcp_rmem", "4096 131072 6291456"),
    ("kernel.send-buffers", "net.ipv4.tcp_wmem", "4096 16384 4194304"),
    ("kernel.window-scaling", "net.ipv4.tcp_window_scaling", "0"),
    ("kernel.sack", "net.ipv4.tcp_sack", "0"),
    ("kernel.timestamps", "net.ipv4.tcp_timestamps", "0"),
    ("kernel.moderate-rcvbuf", "net.ipv4.tcp_moderate_rcvbuf", "0"),
    ("kernel.slow-start-after-idle", "net.ipv4.tcp_slow_start_after_idle", "1"),
    ("kernel.accept-queue", "net.core.somaxconn", "128"),
    ("ports.outgoing-ports", "net.ipv4.ip_local_port_range", "5000 60999"),
]


@pytest.mark.parametrize(("finding", "name", "value"), SETTINGS, ids=[name for name, _, _ in SETTINGS])
def test_a_wrong_setting_of_the_kernel_is_found_and_the_remedy_removes_it(
    host: Host, finding: str, name: str, value: str
) -> None:
    reserved = "net.ipv4.ip_local_reserved_ports"
    with setting(host, reserved, "4000"), setting(host, name, value):
        found = machine_itself(host.look(host.plan()))
        assert finding in found
        assert name in found[finding].why
        others = {"ports.outgoing-listen"} if "port_range" in name else set()
        assert set(found) <= {finding, *others}
        for one in found.values():
            host.run(one.remedy)
        assert finding not in host.look(host.plan())


def test_the_remedy_for_ports_keeps_those_that_are_reserved_already(host: Host) -> None:
    with (
        setting(host, "net.ipv4.ip_local_reserved_ports", "4000,5150-5160"),
        setting(host, "net.ipv4.ip_local_port_range", "5110 60999"),
    ):
        remedy = host.look(host.plan())["ports.outgoing-ports"].remedy
    assert remedy.endswith('="4000,5150-5160,5110-5149,5161-5200"')


@contextmanager
def listeners(namespace: str, *addresses: tuple[str, int]) -> Iterator[None]:
    with ExitStack() as stack:
        with netns.inside(namespace):
            for address in addresses:
                stack.enter_context(socket.create_server(address))
        yield


def test_a_port_of_streams_on_which_another_program_listens_is_found_with_the_program(host: Host) -> None:
    with listeners(host.namespace, (HERE, 5107)):
        found = host.look(host.plan())
    assert machine_itself(found).keys() == {f"ports.ports-at-{HERE}"}
    one = found[f"ports.ports-at-{HERE}"]
    assert one.verdict == "WARN"
    assert f"5107 by {Path('/proc/self/comm').read_text().strip()} ({os.getpid()})" in one.why


def test_it_fails_if_no_port_is_left_for_streams_or_for_the_controller(host: Host) -> None:
    plan = host.plan('ports = "5107-5108"')
    with listeners(host.namespace, ("0.0.0.0", 5107), (HERE, 5108), ("127.0.0.1", 5001)):
        found = machine_itself(host.look(plan))
    assert {name: one.verdict for name, one in found.items()} == {
        f"ports.ports-at-{HERE}": "FAIL",
        "ports.listen": "FAIL",
    }


def test_a_listener_at_another_address_of_this_machine_is_not_in_the_way(host: Host) -> None:
    with listeners(host.namespace, ("127.0.0.1", 5107)):
        assert machine_itself(host.look(host.plan())) == {}


def test_a_port_that_needs_a_privilege_is_found(host: Host) -> None:
    with setting(host, "net.ipv4.ip_unprivileged_port_start", "5150"):
        found = machine_itself(host.look(host.plan()))
        assert {name: one.verdict for name, one in found.items()} == {
            "ports.permission-ports": "FAIL",
            "ports.permission-listen": "WARN",
        }
        for one in found.values():
            host.run(one.remedy.partition(",")[0])
    assert machine_itself(host.look(host.plan())) == {}


def test_an_address_that_this_machine_does_not_have_is_found(host: Host) -> None:
    plan = host.plan(f'[wan]\nbind = "{SECOND}"')
    found = machine_itself(host.look(plan))
    assert {name: one.verdict for name, one in found.items()} == {"network.wan.bind": "FAIL"}
    assert SECOND in found["network.wan.bind"].why


def test_large_packets_without_a_search_for_the_mtu_of_the_path_are_found(host: Host) -> None:
    netns.ip("link set eth0 mtu 9000", namespace=host.namespace)
    try:
        found = machine_itself(host.look(host.plan()))
        assert set(found) == {"network.eth0-mtu"}
        with setting(host, "net.ipv4.tcp_mtu_probing", "0"):
            host.run(found["network.eth0-mtu"].remedy)
            assert machine_itself(host.look(host.plan())) == {}
    finally:
        netns.ip("link set eth0 mtu 1500", namespace=host.namespace)


# -- a peer


def test_a_peer_that_cannot_be_reached_is_found(host: Host) -> None:
    found = machine_itself(host.look(host.plan(peer=Address(THERE, 7))))
    assert {name: one.verdict for name, one in found.items()} == {"reach.peer": "FAIL"}
    assert "the connection was refused" in found["reach.peer"].why


def test_a_peer_without_a_fault_gives_no_finding(host: Host) -> None:
    with listeners(host.other, (THERE, 7007)):
        assert machine_itself(host.look(host.plan(peer=Address(THERE, 7007)))) == {}


def test_a_path_that_carries_smaller_packets_than_the_interface_is_found(host: Host) -> None:
    host.run(f"ip route add {THERE}/32 dev eth0 mtu lock 1280")
    try:
        with listeners(host.other, (THERE, 7007)):
            found = machine_itself(host.look(host.plan(peer=Address(THERE, 7007))))
    finally:
        host.run(f"ip route delete {THERE}/32")
    assert set(found) == {"reach.path-mtu"}
    assert "packets of at most 1280 bytes, but the interface has an MTU of 1500" in found["reach.path-mtu"].why


def test_a_peer_that_allows_small_segments_only_is_found(host: Host) -> None:
    host.run(f"ip route add {HERE}/32 dev eth0 advmss 536", there=True)
    try:
        with listeners(host.other, (THERE, 7007)):
            found = machine_itself(host.look(host.plan(peer=Address(THERE, 7007))))
    finally:
        host.run(f"ip route delete {HERE}/32", there=True)
    assert set(found) == {"reach.path-mtu"}
    assert "segments of 524 bytes" in found["reach.path-mtu"].why


# -- several paths


@pytest.fixture
def two_paths(host: Host) -> Iterator[str]:
    """Give the settings of a gateway with two paths, whose addresses are here and known to the kernel."""
    needs_mptcp()
    netns.ip(f"address add {SECOND}/24 dev eth0", namespace=host.namespace)
    host.run("ip mptcp endpoint flush && ip mptcp limits set add_addr_accepted 8 subflows 8")
    for address in (HERE, SECOND):
        host.run(f"ip mptcp endpoint add {address} signal subflow")
    yield f'[wan]\nbind = "{HERE}"\npaths = ["{HERE}", "{SECOND}"]'
    host.run("ip mptcp endpoint flush")
    netns.ip(f"address delete {SECOND}/24 dev eth0", namespace=host.namespace)


def test_a_path_of_which_the_kernel_was_not_told_is_found_and_the_remedy_tells_it(host: Host, two_paths: str) -> None:
    assert machine_itself(host.look(host.plan(two_paths))) == {}
    host.run("ip mptcp endpoint flush")
    found = machine_itself(host.look(host.plan(two_paths)))
    assert set(found) == {"network.multipath"}
    host.run(found["network.multipath"].remedy)
    assert machine_itself(host.look(host.plan(two_paths))) == {}


@pytest.mark.parametrize(("multipath", "verdict"), [("auto", "WARN"), ("yes", "FAIL")])
def test_it_is_found_if_multipath_tcp_is_switched_off(host: Host, two_paths: str, multipath: str, verdict: str) -> None:
    plan = host.plan(f'{two_paths}\nmultipath = "{multipath}"')
    with setting(host, "net.mptcp.enabled", "0"):
        found = machine_itself(host.look(plan))
        assert {name: one.verdict for name, one in found.items()} == {"network.multipath": verdict}
        assert "sysctl -w net.mptcp.enabled=1" in found["network.multipath"].remedy


def test_an_address_of_a_path_that_is_not_here_is_found(host: Host, two_paths: str) -> None:
    plan = host.plan(two_paths.removesuffix("]") + ', "192.0.2.12"]')
    found = machine_itself(host.look(plan))
    assert found["network.wan.paths"].verdict == "FAIL"
    assert "192.0.2.12" in found["network.wan.paths"].why


# -- names


def test_a_name_without_an_address_that_is_announced_is_found(host: Host) -> None:
    plan = host.plan(f'[wan]\nbind = "{HERE}"\nadvertise = "gateway.invalid"')
    found = machine_itself(host.look(plan))
    assert set(found) == {"names.wan.advertise"}
    assert "gateway.invalid" in found["names.wan.advertise"].why


# -- the command


def test_the_command_finds_nothing_wrong_with_a_good_gateway_and_says_so_with_its_status(host: Host) -> None:
    host.plan()
    command = [str(Path(sys.executable).parent / "scistream"), "check", "--config", str(host.folder / "s2ds.toml")]
    command = ["ip", "netns", "exec", host.namespace, *command, "--rate", "1Gbit", "--rtt", "50ms", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    result = json.loads(done.stdout)
    bad = {one["name"] for one in result["findings"] if one["verdict"] in ("WARN", "FAIL")}
    of_machine = {"clock.synchronised", "kernel.congestion-wan", "kernel.requested-buffers", "limits.open-files"}
    assert bad <= of_machine
    assert result["counts"]["OK"] > 15
    assert done.returncode == 0
