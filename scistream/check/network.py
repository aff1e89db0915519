"""The addresses that a configuration binds, their interfaces, and the paths of a gateway over the WAN."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.check.system import System
from scistream.protocol.address import Address
from scistream.reactors import bind_problem
from scistream.s2ds.paths import NetlinkKernel
from scistream.s2ds.relay import mptcp
from scistream.s2ds.settings import MOST_PATHS
from scistream.shared_settings import numeric_address
from scistream.units import format_rate, parse_rate

_GET_MTU = 0x8921  # SIOCGIFMTU
_ETHERNET = 1500
_CLASS = "sys/class/net"
_BUSY_IRQ = 1000
_FAST = 10_000
_BOND = "bonding_masters"


@dataclass(frozen=True)
class Interface:
    """A network interface, as far as it is visible.

    :ivar speed: in Mbit/s; None if the driver does not tell it.
    :ivar node: the NUMA node of its bus; None if the machine has only one, or it is not visible.
    :ivar queues: its receive queues; 0 if not visible.
    :ivar irq_cpus: the processors that handle each of its busy interrupts; empty if not visible.
    """

    name: str
    mtu: int
    is_visible: bool = False
    speed: int | None = None
    duplex: str = ""
    driver: str = ""
    node: int | None = None
    node_cpus: frozenset[int] = frozenset()
    queues: int = 0
    irq_cpus: Mapping[int, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkFacts:
    """The network settings and interfaces of this machine.

    :ivar here: whether this machine has an address that the configuration binds, by the address.
    :ivar interfaces: by the addresses that they have; None if they cannot be listed.
    :ivar probing: net.ipv4.tcp_mtu_probing.
    :ivar cpus: the processors that a process started here may use.
    """

    here: Mapping[str, bool]
    interfaces: Mapping[str, Interface] | None
    probing: int | None
    cpus: frozenset[int]


def gather(system: System, plan: CheckPlan) -> NetworkFacts:
    """Look at the addresses and interfaces of this machine."""
    here = {host: _is_here(host) for _, host in bound_hosts(plan) if numeric_address(host) is not None}
    probing = system.sysctl_numbers("net.ipv4.tcp_mtu_probing")
    cpus = frozenset(os.sched_getaffinity(0))
    return NetworkFacts(here, interfaces(system), probing[0] if probing else None, cpus)


def bound_hosts(plan: CheckPlan) -> list[tuple[str, str]]:
    """Return the setting and the host of each address that the configuration binds."""
    config = plan.server or plan.gateway
    found = [("listen", Address.parse(config.listen).host)] if config is not None else []
    if config is not None and config.http.address is not None:
        found.append(("http.listen", config.http.address.host))
    if plan.gateway is not None:
        found += [("lan.bind", plan.gateway.lan.bind), ("wan.bind", plan.gateway.wan.bind)]
        found += [("wan.paths", path) for path in plan.gateway.wan.paths]
    return found


def _is_here(host: str) -> bool:
    problem = bind_problem(Address(host, 0))
    return problem is None


def interfaces(system: System) -> dict[str, Interface] | None:
    """Return the interface of each address of this machine; None if they cannot be listed."""
    try:
        from pyroute2 import IPRoute  # slow to import

        with IPRoute() as link:
            found = [(message["index"], dict(message["attrs"])) for message in link.get_addr()]
        names = dict(socket.if_nameindex())
    except Exception:  # whatever the library raises: this is one of many checks
        return None
    by_index = {index: interface(system, name) for index, name in names.items()}
    return {
        str(attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")): by_index[index]
        for index, attributes in found
        if index in by_index
    }


def interface(system: System, name: str) -> Interface:
    """Return what is visible of an interface."""
    folder = f"{_CLASS}/{name}"
    mtu = _mtu(name)
    try:
        is_visible = system.number(f"{folder}/ifindex") == socket.if_nametoindex(name)
    except OSError:
        is_visible = False
    if not is_visible:  # /sys is that of another network namespace
        return Interface(name, mtu)
    return hardware(system, name, mtu)


def hardware(system: System, name: str, mtu: int) -> Interface:
    """Return what /sys and /proc tell of an interface."""
    folder = f"{_CLASS}/{name}"
    speed = system.number(f"{folder}/speed")
    node = system.number(f"{folder}/device/numa_node")
    nodes = [entry for entry in system.names("sys/devices/system/node") if entry.removeprefix("node").isdigit()]
    if node is not None and (node < 0 or len(nodes) < 2):
        node = None
    node_cpus = parse_cpus(system.text(f"sys/devices/system/node/node{node}/cpulist") or "")
    return Interface(
        name,
        mtu,
        is_visible=True,
        speed=speed if speed is not None and speed > 0 else None,
        duplex=system.text(f"{folder}/duplex") or "",
        driver=system.link(f"{folder}/device/driver") or "",
        node=node,
        node_cpus=node_cpus,
        queues=len([entry for entry in system.names(f"{folder}/queues") if entry.startswith("rx-")]),
        irq_cpus=_irq_cpus(system, folder),
    )


def _mtu(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _GET_MTU, struct.pack("16s16x", name.encode()))
        except OSError:
            return 0
    return int(struct.unpack_from("@i", answer, 16)[0])


def _irq_cpus(system: System, folder: str) -> dict[int, frozenset[int]]:
    """Return which processors handle the interrupts of a device that have come more than a few times."""
    numbers = system.names(f"{folder}/device/msi_irqs") or system.names(f"{folder}/device/../msi_irqs")
    counts = _interrupts(system)
    found = {}
    for number in sorted(int(text) for text in numbers if text.isdigit()):
        if counts.get(number, 0) >= _BUSY_IRQ:
            where = system.text(f"proc/irq/{number}/effective_affinity_list")
            cpus = parse_cpus(where or system.text(f"proc/irq/{number}/smp_affinity_list") or "")
            if cpus:
                found[number] = cpus
    return found


def _interrupts(system: System) -> dict[int, int]:
    """Return how often each interrupt has come, from /proc/interrupts."""
    found = {}
    for line in (system.text("proc/interrupts") or "").splitlines():
        number, colon, rest = line.strip().partition(":")
        if colon and number.isdigit():
            counts = []
            for word in rest.split():
                if not word.isdigit():
                    break
                counts.append(int(word))
            found[int(number)] = sum(counts)
    return found


def parse_cpus(text: str) -> frozenset[int]:
    """Return the processors of a list such as ``0-3,8``."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (not dash or last.isdigit()):
            found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def findings(facts: NetworkFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about the addresses of the configuration and their interfaces."""
    for setting, host in bound_hosts(plan):
        if host in facts.here and not facts.here[host]:
            why = f"this machine does not have the address {host}"
            yield fail(f"network.{setting}", why, "write one of its addresses (ip address), or wait until it is there")
    if facts.interfaces is None:
        yield unseen("network.interfaces", "the addresses of the interfaces")
        return
    for each in interfaces_used(facts, plan):
        yield from interface_findings(each, facts, plan)


def interfaces_used(facts: NetworkFacts, plan: CheckPlan) -> list[Interface]:
    """Return the interfaces of the addresses that streams use; all but loopback if the configuration names none."""
    assert facts.interfaces is not None, "they were listed"
    hosts = [plan.gateway.lan.bind, plan.gateway.wan.bind, *plan.gateway.wan.paths] if plan.gateway is not None else []
    chosen: dict[str, Interface] = {}
    for address, each in facts.interfaces.items():
        named = any(_is_for(host, address) for host in hosts) if plan.gateway or plan.server else True
        if named and not ip_address(address.partition("%")[0]).is_loopback:
            chosen[each.name] = each
    return [chosen[name] for name in sorted(chosen)]


def _is_for(host: str, address: str) -> bool:
    bound, own = numeric_address(host), ip_address(address.partition("%")[0])
    if bound is not None and bound.is_unspecified:
        return bound.version == own.version
    return bound == own


def interface_findings(each: Interface, facts: NetworkFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about one interface."""
    yield _packets(each, facts)
    if not each.is_visible:
        yield unseen(f"nic.{each.name}", "its driver, speed and interrupts, which /sys shows of another network")
        return
    yield from _link(each, plan)
    yield from _interrupt_spread(each, facts)
    if each.node is None:
        return
    name = f"nic.{each.name}-numa"
    if facts.cpus & each.node_cpus:
        yield ok(name, f"it is at NUMA node {each.node}, and processes started here may run there")
        return
    cpus = ",".join(map(str, sorted(each.node_cpus)))
    why = f"it is at NUMA node {each.node}, but processes started here may run on none of its processors ({cpus})"
    yield warn(name, why, f"systemctl edit s2ds, with CPUAffinity={cpus} below [Service]")


def _packets(each: Interface, facts: NetworkFacts) -> Finding:
    name = f"network.{each.name}-mtu"
    if each.mtu <= _ETHERNET or facts.probing is None or facts.probing > 0:
        return ok(name, f"MTU {each.mtu}")
    why = (
        f"MTU {each.mtu}, but net.ipv4.tcp_mtu_probing is 0: a connection stands still if its path carries less and a "
        "firewall drops the messages that say so"
    )
    return warn(name, why, "sysctl -w net.ipv4.tcp_mtu_probing=1")


def _link(each: Interface, plan: CheckPlan) -> Iterator[Finding]:
    name = f"nic.{each.name}"
    driver = f"driver {each.driver}" if each.driver else "no driver of its own"
    if each.duplex == "half":
        why = f"{driver}, at half duplex, so that data and acknowledgements collide"
        yield warn(name, why, f"ethtool -s {each.name} autoneg on")
        return
    speed = f"{format_rate(float(each.speed))}/s" if each.speed else "a speed that it does not tell"
    capacity = parse_rate(plan.gateway.capacity) if plan.gateway is not None else None
    if capacity is not None and each.speed and each.speed < capacity:
        why = f"{driver}, {speed}, less than the `capacity` of this gateway, {format_rate(capacity)}"
        yield warn(name, why, f'set capacity = "{format_rate(float(each.speed))}" in s2ds.toml')
    else:
        yield ok(name, f"{driver}, {speed}")


def _interrupt_spread(each: Interface, facts: NetworkFacts) -> Iterator[Finding]:
    name = f"nic.{each.name}-interrupts"
    busy = frozenset().union(*each.irq_cpus.values())
    if len(each.irq_cpus) > 1 and len(busy) == 1 and len(facts.cpus) > 1:
        why = f"processor {min(busy)} handles all {len(each.irq_cpus)} busy interrupts of it"
        yield warn(name, why, "apt-get install irqbalance && systemctl enable --now irqbalance")
    elif each.driver and each.queues == 1 and (each.speed or 0) >= _FAST and len(facts.cpus) > 1:
        why = "it has one receive queue, so that one processor handles all packets"
        yield warn(name, why, f"ethtool -L {each.name} combined {min(len(facts.cpus), 8)}")
    elif each.irq_cpus:
        cpus = ", ".join(map(str, sorted(busy)))
        yield ok(name, f"processors {cpus} handle its {len(each.irq_cpus)} busy interrupts")


@dataclass(frozen=True)
class PathFacts:
    """The state of Multipath TCP in the kernel.

    :ivar lack: why this process cannot have it, with the remedy; None if it can.
    :ivar told: the addresses that the kernel was told; None if it does not show them to this user.
    """

    lack: str | None
    told: frozenset[str] | None


def gather_paths(plan: CheckPlan) -> PathFacts | None:
    """Ask the kernel, if the gateway is to use several paths."""
    if not _wants_paths(plan):
        return None
    lack = mptcp.lack()
    if lack is not None:
        return PathFacts(lack, None)
    try:
        return PathFacts(None, frozenset(NetlinkKernel().endpoints()))
    except Exception:  # whatever the library raises: it may not be asked
        return PathFacts(None, None)


def _wants_paths(plan: CheckPlan) -> bool:
    wan = plan.gateway.wan if plan.gateway is not None else None
    return wan is not None and (wan.multipath == "yes" or (wan.multipath == "auto" and len(wan.paths) > 1))


def path_findings(facts: PathFacts, plan: CheckPlan, *, is_running: bool) -> Iterator[Finding]:
    """Yield what is found about several paths over the WAN.

    :param is_running: whether the gateway runs, so that it has told the kernel its addresses if it may.
    """
    assert plan.gateway is not None, "only a gateway has paths"
    wan, name = plan.gateway.wan, "network.multipath"
    if facts.lack is not None:
        why, _, remedy = facts.lack.partition(": ")
        verdict, loss = (fail, "does not start") if wan.multipath == "yes" else (warn, "uses one path")
        yield verdict(name, f"{why}, so that the gateway {loss}", remedy or 'or write multipath = "no"')
        return
    if facts.told is None:
        yield unseen(name, "the addresses that the kernel knows as paths (ip mptcp endpoint show)")
        return
    missing = [path for path in wan.paths if path not in facts.told]
    if missing and is_running:
        limits = f"ip mptcp limits set add_addr_accepted {MOST_PATHS} subflows {MOST_PATHS}"
        remedy = " && ".join([limits, *(f"ip mptcp endpoint add {path} signal subflow" for path in missing)])
        yield warn(name, f"the kernel was not told {', '.join(missing)}, so that streams do not use it", remedy)
    elif missing:
        why = f"Multipath TCP is on; the gateway tells the kernel {', '.join(missing)} if it has CAP_NET_ADMIN"
        yield ok(name, why)
    else:
        yield ok(name, "Multipath TCP is on, and the kernel knows all paths")
