"""The checks that need no namespace, given facts and folders like /proc and /sys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from scistream.check import clock, kernel, limits, names, network, ports
from scistream.check.clock import ClockFacts
from scistream.check.findings import Finding
from scistream.check.kernel import KernelFacts
from scistream.check.limits import LimitFacts
from scistream.check.names import NameFacts
from scistream.check.network import Interface, NetworkFacts
from scistream.check.plan import CheckPlan
from scistream.check.ports import PortFacts, TcpSocket
from scistream.check.running import RunningDaemon, find_daemon, most_tasks
from scistream.check.system import System
from scistream.http.settings import GatewayHttpSettings
from scistream.s2cs.settings import GatewaySettings, S2CSConfig, ServerLimits
from scistream.s2ds.settings import GatewayLimits, LegSettings, S2DSConfig, WanSettings

GATEWAY = CheckPlan(Path("s2ds.toml"), gateway=S2DSConfig(insecure=True, elements=4))
SERVER = CheckPlan(
    Path("s2cs.toml"), server=S2CSConfig(insecure=True, gateways=[GatewaySettings(name="a", address="b:1")])
)
CONGESTION = "net.ipv4.tcp_{}_congestion_control"


def tree(root: Path, files: Mapping[str, str], links: Mapping[str, str] | None = None) -> System:
    """Return a system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return System(root)


def verdicts(found: list[Finding]) -> dict[str, str]:
    return {one.name: one.verdict for one in found}


# -- congestion control


def of_kernel(available: str, allowed: str | None, current: str = "cubic") -> KernelFacts:
    values = {"net.ipv4.tcp_congestion_control": current, CONGESTION.format("available"): available}
    if allowed is not None:
        values[CONGESTION.format("allowed")] = allowed
    return KernelFacts(values, "6.1.0", {"bbr": allowed is None, "cubic": True})


def on_wan(congestion: str) -> CheckPlan:
    return CheckPlan(Path("s2ds.toml"), gateway=S2DSConfig(insecure=True, wan=WanSettings(congestion=congestion)))


def of_wan(facts: KernelFacts, plan: CheckPlan) -> Finding:
    return next(one for one in kernel.congestion(facts, plan) if one.name == "kernel.congestion-wan")


def test_auto_that_cannot_choose_bbr_is_a_warning_with_the_commands_that_allow_it() -> None:
    found = of_wan(of_kernel("reno cubic", "reno cubic"), on_wan("auto"))
    assert (found.verdict, "cubic" in found.why) == ("WARN", True)
    assert found.remedy == ('modprobe tcp_bbr && sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr"')
    found = of_wan(of_kernel("reno cubic bbr", "reno cubic"), on_wan("auto"))
    assert found.remedy == 'sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr"'


@pytest.mark.parametrize(
    ("facts", "setting", "chosen"),
    [
        (of_kernel("reno cubic bbr", "reno bbr"), "auto", "bbr, chosen by auto"),
        (of_kernel("reno cubic bbr", None), "auto", "bbr, chosen by auto"),
        (of_kernel("reno cubic bbr", "reno", "bbr"), "auto", "bbr, chosen by auto"),
        (of_kernel("reno cubic", "reno cubic"), "", "the system's, cubic"),
        (of_kernel("reno cubic", "reno cubic"), "cubic", "cubic, as set"),
    ],
)
def test_what_auto_chooses_is_said(facts: KernelFacts, setting: str, chosen: str) -> None:
    found = of_wan(facts, on_wan(setting))
    assert (found.verdict, found.why) == ("OK", chosen)


def test_a_congestion_control_that_is_set_and_may_not_be_chosen_fails() -> None:
    found = of_wan(of_kernel("reno cubic", "reno cubic"), on_wan("dctcp"))
    assert found.verdict == "FAIL"
    assert "does not start" in found.why


def test_a_control_server_has_no_congestion_control_to_choose() -> None:
    assert list(kernel.congestion(of_kernel("reno", "reno"), SERVER)) == []


# -- buffers and releases


def kernel_finding(name: str, values: Mapping[str, str], plan: CheckPlan, release: str = "6.1.0") -> Finding:
    (found,) = (one for one in kernel.findings(KernelFacts(values, release, {}), plan) if one.name == f"kernel.{name}")
    return found


FAST_AND_FAR = CheckPlan(rate=100_000.0, rtt=0.2)


def test_a_rate_beyond_the_largest_window_takes_several_connections() -> None:
    found = kernel_finding("send-buffers", {"net.ipv4.tcp_wmem": "4096 16384 4194304"}, FAST_AND_FAR)
    assert found.remedy == 'sysctl -w net.ipv4.tcp_wmem="4096 16384 1073741824", and 3 connections or more'


def test_small_requested_buffers_matter_over_a_long_path_only() -> None:
    values = {"net.core.rmem_max": "212992"}
    assert kernel_finding("requested-buffers", values, CheckPlan()).verdict == "OK"
    found = kernel_finding("requested-buffers", values, FAST_AND_FAR)
    assert (found.verdict, found.remedy) == ("WARN", "sysctl -w net.core.rmem_max=2097152")
    assert kernel_finding("requested-buffers", {"net.core.rmem_max": "4194304"}, FAST_AND_FAR).verdict == "OK"


def test_what_cannot_be_read_is_said_and_is_no_fault() -> None:
    for name in ("receive-buffers", "send-buffers", "requested-buffers", "accept-queue"):
        found = kernel_finding(name, {}, FAST_AND_FAR)
        assert found.verdict == "UNSEEN"
        assert found.why.startswith("not visible to this user: ")


TWO_PATHS = CheckPlan(Path("f"), gateway=S2DSConfig(insecure=True, wan=WanSettings(paths=["192.0.2.1", "192.0.2.2"])))


@pytest.mark.parametrize(
    ("release", "plan", "verdict", "part"),
    [
        ("5.4.0-150-generic", TWO_PATHS, "WARN", "several paths"),
        ("5.10.0-28-amd64", GATEWAY, "WARN", "receive buffers cannot begin small"),
        ("6.1.0-18-amd64", GATEWAY, "OK", "6.1.0-18-amd64"),
        ("6.1.0-18-amd64", TWO_PATHS, "WARN", "no figures of single paths"),
        ("6.12.5", TWO_PATHS, "OK", "6.12.5"),
        ("6.17.0", GATEWAY, "OK", "enlarge receive buffers that overflow"),
        ("unknown", GATEWAY, "UNSEEN", "unknown"),
    ],
)
def test_what_a_release_of_the_kernel_lacks_is_said(release: str, plan: CheckPlan, verdict: str, part: str) -> None:
    found = kernel_finding("release", {}, plan, release)
    assert found.verdict == verdict
    assert part in found.why


# -- ports


LOOPBACK = ip_address("127.0.0.1")


def ports_faults(plan: CheckPlan = GATEWAY, **facts: object) -> dict[str, str]:
    made = PortFacts((32768, 60999), [], 1024, **{"listening": [], **facts})  # type: ignore[arg-type]
    return {one.name: one.verdict for one in ports.findings(made, plan) if one.verdict != "OK"}


CONTROL = TcpSocket(LOOPBACK, 5001, 77)


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({}, {}),
        ({"listening": None}, {"ports.listen": "UNSEEN", "ports.ports-at-127.0.0.1": "UNSEEN"}),
        ({"listening": [CONTROL]}, {"ports.listen": "UNSEEN"}),
        ({"listening": [CONTROL], "owners": {77: ["nginx (5)"]}}, {"ports.listen": "FAIL"}),
        ({"listening": [CONTROL], "owners": {77: ["systemd (1)"]}}, {}),
        ({"listening": [CONTROL], "owners": {77: ["systemd (1)", "twistd (9)"]}, "daemon": 9, "connected": {"a"}}, {}),
        ({"listening": [CONTROL], "daemon": 9}, {"reach.controller": "WARN"}),
        ({"listening": [CONTROL], "daemon": 9, "connected": frozenset({"192.0.2.7"})}, {}),
        (
            {"listening": [CONTROL], "owners": {77: ["nginx (5)"]}, "daemon": 9, "connected": {"a"}},
            {"ports.listen": "FAIL"},
        ),
    ],
)
def test_who_listens_on_the_control_port_decides(facts: dict[str, object], found: dict[str, str]) -> None:
    assert ports_faults(**facts) == found


def test_the_sockets_of_both_families_are_read_with_their_owners(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rest = "00000000:00000000 00:00000000 00000000     0        0"
    system = tree(
        tmp_path,
        {
            "proc/thread-self/net/tcp": f"{head} 0: 0100007F:1389 00000000:0000 0A {rest} 77 1\n"
            f" 1: 0100007F:1389 070200C0:9C40 01 {rest} 78 1\n 2: 0100007F:0016 00000000:0000 0A {rest} 79 1\n",
            "proc/thread-self/net/tcp6": f"{head} 0: {'0' * 32}:13EC {'0' * 32}:0000 0A {rest} 80 1\n",
            "proc/9/comm": "twistd\n",
            "proc/sys/net/ipv4/ip_local_reserved_ports": "\n",
        },
        {"proc/9/fd/3": "socket:[77]", "proc/9/fd/4": "/dev/null"},
    )
    facts = ports.gather(system, GATEWAY, 9)
    assert facts.owners == {77: ["twistd (9)"]}
    assert facts.connected == {"192.0.2.7"}
    assert {(str(one.host), one.port) for one in facts.listening or ()} == {
        ("127.0.0.1", 5001),
        ("127.0.0.1", 22),
        ("::", 5100),
    }


def test_the_port_of_http_is_looked_at_too() -> None:
    plan = CheckPlan(Path("f"), gateway=S2DSConfig(insecure=True, http=GatewayHttpSettings(listen="127.0.0.1:80")))
    socket_of_web = TcpSocket(LOOPBACK, 80, 5)
    found = ports_faults(plan, listening=[socket_of_web], owners={5: ["nginx (5)"]})
    assert found == {"ports.http-listen": "FAIL", "ports.permission-http-listen": "WARN"}


# -- limits


def of_limits(**changes: object) -> LimitFacts:
    facts = {"files": 1_048_576, "system_files": (1000, 100_000), "pipe_pages": 16384, "largest_pipe": 1_048_576}
    return LimitFacts(**{**facts, **changes})  # type: ignore[arg-type]


def faults(facts: LimitFacts, plan: CheckPlan) -> dict[str, Finding]:
    return {one.name: one for one in limits.findings(facts, plan) if one.verdict in ("WARN", "FAIL")}


def test_good_limits_give_no_finding() -> None:
    assert faults(of_limits(), GATEWAY) == {}
    assert faults(of_limits(), SERVER) == {}


DAEMON = RunningDaemon(17, 1024, "/system.slice/s2ds.service")
MANY = CheckPlan(Path("f"), gateway=S2DSConfig(insecure=True, elements=1, limits=GatewayLimits(connections=5000)))


@pytest.mark.parametrize(
    ("changes", "plan", "name", "remedy"),
    [
        ({"files": 1024}, GATEWAY, "limits.open-files", "LimitNOFILE=1048576"),
        ({"files": 1024}, SERVER, "limits.open-files", "LimitNOFILE=1048576"),
        ({"files": 8192}, MANY, "limits.open-files", "LimitNOFILE="),
        ({"files": 1024, "daemon": DAEMON}, GATEWAY, "limits.open-files", "systemctl edit s2ds.service"),
        ({"system_files": (90_000, 100_000)}, GATEWAY, "limits.open-files-of-all", "sysctl -w fs.file-max=200000"),
        ({"pipe_pages": 64}, GATEWAY, "limits.pipes", "sysctl -w fs.pipe-user-pages-soft=16384"),
        ({"largest_pipe": 4096}, GATEWAY, "limits.pipes", "sysctl -w fs.pipe-max-size=1048576"),
        ({"daemon": DAEMON, "tasks": 4}, GATEWAY, "limits.tasks", "TasksMax=512"),
    ],
)
def test_a_limit_that_is_too_low_is_found_with_the_remedy(
    changes: dict[str, object], plan: CheckPlan, name: str, remedy: str
) -> None:
    found = faults(of_limits(**changes), plan)
    assert set(found) == {name}
    assert remedy in found[name].remedy


def test_no_limit_of_pipes_is_no_fault() -> None:
    assert faults(of_limits(pipe_pages=0), GATEWAY) == {}


def test_a_daemon_is_found_by_its_configuration_with_its_limits_and_its_unit(tmp_path: Path) -> None:
    file = tmp_path / "s2ds.toml"
    file.write_text("")
    plan = CheckPlan(file, gateway=GATEWAY.gateway)
    other = f"twistd\0-n\0s2ds\0--config\0{tmp_path}/another.toml\0"
    ours = f"python3\0/usr/bin/twistd\0-n\0s2ds\0--config={file}\0"
    system = tree(
        tmp_path / "root",
        {
            "proc/11/cmdline": other,
            "proc/12/cmdline": f"less\0{file}\0",
            "proc/13/cmdline": ours,
            "proc/13/limits": "Limit   Soft Limit  Hard Limit  Units\nMax open files    1024    524288    files\n",
            "proc/13/cgroup": "0::/system.slice/s2ds.service\n",
            "sys/fs/cgroup/system.slice/s2ds.service/pids.max": "512\n",
        },
    )
    found = find_daemon(system, plan)
    assert found == RunningDaemon(13, 524288, "/system.slice/s2ds.service")
    assert found.unit == "s2ds.service"
    assert most_tasks(system, found) == 512
    assert find_daemon(system, CheckPlan()) is None


def test_a_relative_file_of_a_daemon_counts_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "s2cs.toml"
    file.write_text("")
    plan = CheckPlan(file, server=SERVER.server)
    line = "twistd\0s2cs\0-c\0s2cs.toml\0"
    elsewhere = tree(tmp_path / "a", {"proc/5/cmdline": line}, {"proc/5/cwd": str(tmp_path / "elsewhere")})
    assert find_daemon(elsewhere, plan) is None
    there = tree(tmp_path / "b", {"proc/5/cmdline": line}, {"proc/5/cwd": str(tmp_path)})
    assert find_daemon(there, plan) is not None
    hidden = tree(tmp_path / "c", {"proc/5/cmdline": line})
    assert find_daemon(hidden, plan) is not None


# -- interfaces

PCI = "sys/devices/pci0000:00/0000:00:03.0"


def nic(root: Path, interrupts: str, affinity: Mapping[int, str], **files: str) -> Interface:
    """Return an interface of a device in a folder like /sys."""
    here = "sys/class/net/eth0"
    content = {
        f"{here}/speed": "100000",
        f"{here}/duplex": "full",
        f"{here}/queues/rx-0/rps_cpus": "0",
        f"{here}/queues/rx-1/rps_cpus": "0",
        f"{PCI}/numa_node": "1",
        "sys/devices/system/node/node0/cpulist": "0-3",
        "sys/devices/system/node/node1/cpulist": "4-7",
        "proc/interrupts": interrupts,
        **{f"proc/irq/{number}/effective_affinity_list": cpus for number, cpus in affinity.items()},
        **{f"{PCI}/msi_irqs/{number}": "msix" for number in affinity},
        **{name.replace("__", "/"): text for name, text in files.items()},
    }
    links = {f"{here}/device": f"../../../devices/{PCI.removeprefix('sys/devices/')}"}
    system = tree(root, content, {**links, f"{PCI}/driver": "../../../bus/pci/drivers/mlx5_core"})
    return network.hardware(system, "eth0", 9000)


INTERRUPTS = """           CPU0       CPU1
 30:       9000       1000  PCI-MSIX-0000:00:03.0   0-edge      eth0-0
 31:      50000          0  PCI-MSIX-0000:00:03.0   1-edge      eth0-1
 32:          3          0  PCI-MSIX-0000:00:03.0   2-edge      eth0-async
NMI:          0          0   Non-maskable interrupts
"""


def nic_faults(each: Interface, cpus: frozenset[int], capacity: str = "100Gbit") -> dict[str, Finding]:
    plan = CheckPlan(Path("f"), gateway=S2DSConfig(insecure=True, capacity=capacity))
    facts = NetworkFacts({}, {"192.0.2.1": each}, 1, cpus)
    return {one.name: one for one in network.interface_findings(each, facts, plan) if one.verdict in ("WARN", "FAIL")}


ALL = frozenset(range(8))


def test_what_sys_and_proc_tell_of_an_interface_is_read(tmp_path: Path) -> None:
    each = nic(tmp_path, INTERRUPTS, {30: "0", 31: "2-3", 32: "1"})
    assert each == Interface(
        "eth0", 9000, True, 100_000, "full", "mlx5_core", 1, frozenset({4, 5, 6, 7}), 2,
        {30: frozenset({0}), 31: frozenset({2, 3})},
    )  # fmt: skip
    assert nic_faults(each, ALL) == {}


def test_interrupts_that_all_reach_one_processor_are_found(tmp_path: Path) -> None:
    found = nic_faults(nic(tmp_path, INTERRUPTS, {30: "2", 31: "2", 32: "1"}), ALL)
    assert set(found) == {"nic.eth0-interrupts"}
    assert "processor 2 handles all 2 busy interrupts" in found["nic.eth0-interrupts"].why
    assert "irqbalance" in found["nic.eth0-interrupts"].remedy


def test_an_interface_slower_than_the_capacity_is_found(tmp_path: Path) -> None:
    found = nic_faults(nic(tmp_path, INTERRUPTS, {30: "0", 31: "1"}, sys__class__net__eth0__speed="10000"), ALL)
    assert set(found) == {"nic.eth0"}
    assert found["nic.eth0"].remedy == 'set capacity = "10Gbit" in s2ds.toml'


def test_half_duplex_is_found(tmp_path: Path) -> None:
    found = nic_faults(nic(tmp_path, INTERRUPTS, {30: "0", 31: "1"}, sys__class__net__eth0__duplex="half"), ALL)
    assert set(found) == {"nic.eth0"}
    assert "half duplex" in found["nic.eth0"].why


def test_processes_that_may_not_run_beside_the_interface_are_found(tmp_path: Path) -> None:
    found = nic_faults(nic(tmp_path, INTERRUPTS, {30: "0", 31: "1"}), frozenset({0, 1}))
    assert set(found) == {"nic.eth0-numa"}
    assert "CPUAffinity=4,5,6,7" in found["nic.eth0-numa"].remedy


def test_a_fast_interface_with_one_queue_is_found() -> None:
    each = Interface("eth0", 1500, True, 100_000, "full", "virtio_net", queues=1)
    found = nic_faults(each, ALL)
    assert found["nic.eth0-interrupts"].remedy == "ethtool -L eth0 combined 8"


def test_an_interface_whose_sys_folder_is_of_another_namespace_is_said_to_be_unseen() -> None:
    facts = NetworkFacts({}, {"192.0.2.1": Interface("eth0", 1500)}, 1, ALL)
    assert verdicts(list(network.findings(facts, CheckPlan())))["nic.eth0"] == "UNSEEN"
    assert verdicts(list(network.findings(NetworkFacts({}, None, 1, ALL), CheckPlan()))) == {
        "network.interfaces": "UNSEEN"
    }


def test_only_interfaces_of_the_configuration_are_looked_at() -> None:
    here = {
        "192.0.2.1": Interface("eth0", 1500),
        "198.51.100.1": Interface("eth1", 1500),
        "2001:db8::1": Interface("eth2", 1500),
        "fe80::1%eth1": Interface("eth1", 1500),
        "127.0.0.1": Interface("lo", 65536),
    }
    facts = NetworkFacts({}, here, 1, ALL)

    def used(lan: str, wan: str, advertise: str = "") -> list[str]:
        sides = LegSettings(bind=lan), WanSettings(bind=wan, advertise=advertise)
        plan = CheckPlan(Path("f"), gateway=S2DSConfig(insecure=True, lan=sides[0], wan=sides[1]))
        return [each.name for each in network.interfaces_used(facts, plan)]

    assert used("127.0.0.1", "192.0.2.1") == ["eth0"]
    assert used("198.51.100.1", "2001:db8:0::1") == ["eth1", "eth2"]
    assert used("127.0.0.1", "0.0.0.0", "gateway.example") == ["eth0", "eth1"]
    assert [each.name for each in network.interfaces_used(facts, CheckPlan())] == ["eth0", "eth1", "eth2"]


def test_a_list_of_processors_is_parsed() -> None:
    assert network.parse_cpus("0-2,8") == {0, 1, 2, 8}
    assert network.parse_cpus("") == frozenset()


def test_this_machine_can_be_looked_at() -> None:
    found = network.interfaces(System())
    assert found is not None
    assert found["127.0.0.1"].name == "lo"
    assert found["127.0.0.1"].mtu > 1000
    assert kernel.gather(System(), CheckPlan()).release == os.uname().release


# -- clock and names


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (ClockFacts(True, 0.002), "OK"),
        (ClockFacts(True, 2.0), "WARN"),
        (ClockFacts(False, 16.0), "WARN"),
        (None, "UNSEEN"),
    ],
)
def test_a_clock_that_nothing_keeps_right_is_found(facts: ClockFacts | None, verdict: str) -> None:
    (found,) = clock.findings(facts)
    assert found.verdict == verdict
    assert ("timedatectl set-ntp true" in found.remedy) is (verdict == "WARN")


def test_the_kernel_tells_of_its_clock() -> None:
    facts = clock.gather()
    assert facts is None or 0 <= facts.most_wrong < 3600


@pytest.mark.parametrize(
    ("facts", "verdict", "part"),
    [
        (NameFacts("listen", "gw.example", frozenset({"192.0.2.1"})), "OK", "192.0.2.1"),
        (NameFacts("listen", "gw.example", frozenset()), "FAIL", "without an address"),
        (NameFacts("listen", "gw.example", None), "UNSEEN", "does not answer"),
        (NameFacts("listen", "192.0.2.1", frozenset({"192.0.2.1"})), "OK", "no name"),
        (NameFacts("listen", "192.0.2.1", frozenset({"192.0.2.1"}), "gw", frozenset({"192.0.2.1"})), "OK", "gw"),
        (
            NameFacts("listen", "192.0.2.1", frozenset({"192.0.2.1"}), "gw", frozenset({"192.0.2.9"})),
            "WARN",
            "192.0.2.9",
        ),
    ],
)
def test_names_that_lead_nowhere_or_elsewhere_are_found(facts: NameFacts, verdict: str, part: str) -> None:
    found = names.findings(facts)
    assert found.verdict == verdict
    assert part in found.why


def test_only_hosts_that_are_announced_are_asked_for() -> None:
    gateways = [GatewaySettings(name="dtn1", address="localhost:5001")]
    assert names.gather(CheckPlan(Path("f"), server=S2CSConfig(insecure=True, gateways=gateways))) == []


def test_the_limits_of_a_server_follow_its_links() -> None:
    few = S2CSConfig(insecure=True, gateways=[GatewaySettings(name="a", address="b:1")], limits=ServerLimits(links=512))
    assert faults(of_limits(files=1024), CheckPlan(Path("f"), server=few)) == {}
