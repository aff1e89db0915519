"""The ports of a daemon: whether it may listen there, who does so, and whether outgoing connections use them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.check.system import NET, System
from scistream.protocol.address import Address, IPAddress
from scistream.protocol.port_ranges import in_words
from scistream.shared_settings import numeric_address, parse_port_ranges, parse_ports

_LISTENING, _ESTABLISHED = "0A", "01"
_SYSTEMD = "systemd (1)"
"""The process that may listen for the daemon (socket activation)."""
_MOST_NAMED = 5
_RESERVED = "net.ipv4.ip_local_reserved_ports"
_EPHEMERAL = "net.ipv4.ip_local_port_range"

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class TcpSocket:
    """A socket that listens or is connected, by its address here.

    :ivar inode: its number, by which the process that has it is found.
    """

    host: IPAddress
    port: int
    inode: int
    is_listening: bool = True


@dataclass(frozen=True)
class PortFacts:
    """What is known about the ports of this machine.

    :ivar ephemeral: the ports of outgoing connections, first and last; None if not visible.
    :ivar first_free: the first port on which processes without privileges may listen.
    :ivar connected: the remote addresses of the connections to `listen`.
    :ivar owners: the processes of a socket as text, by the number of the socket; only of those that could be seen.
    :ivar daemon: the process of the daemon that runs with this configuration, if there is one.
    """

    ephemeral: tuple[int, int] | None
    reserved: Ranges
    first_free: int
    listening: list[TcpSocket] | None
    owners: Mapping[int, Sequence[str]] = field(default_factory=dict)
    daemon: int | None = None
    connected: frozenset[str] = frozenset()


def gather(system: System, plan: CheckPlan, daemon: int | None) -> PortFacts:
    """Read which ports are in use."""
    ephemeral = system.sysctl_numbers(_EPHEMERAL)
    text = system.sysctl(_RESERVED)
    sockets = _sockets(system)
    listening = None if sockets is None else [one for one, _ in sockets if one.is_listening]
    wanted = {one.inode for one in listening or () if any(_meets(one, *each) for each in _places(plan))}
    return PortFacts(
        (ephemeral[0], ephemeral[1]) if len(ephemeral) == 2 else None,
        parse_port_ranges(text) if text else [],
        (system.sysctl_numbers("net.ipv4.ip_unprivileged_port_start") or [1024])[0],
        listening,
        _owners(system, wanted) if wanted else {},
        daemon,
        frozenset(str(remote) for one, remote in sockets or () if not one.is_listening and _is_control(one, plan)),
    )


def _is_control(one: TcpSocket, plan: CheckPlan) -> bool:
    """Return True if a connection is one to the control port of the configuration."""
    config = plan.server or plan.gateway
    return config is not None and one.port == Address.parse(config.listen).port


def _sockets(system: System) -> list[tuple[TcpSocket, IPAddress]] | None:
    """Return the sockets that listen or are connected, each with its remote host; None if they are not visible."""
    found, is_visible = [], False
    for name in ("tcp", "tcp6"):
        text = system.text(f"{NET}/{name}")
        is_visible = is_visible or text is not None
        for line in (text or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] in (_LISTENING, _ESTABLISHED):
                host, _, port = words[1].partition(":")
                one = TcpSocket(_address(host), int(port, 16), int(words[9]), words[3] == _LISTENING)
                found.append((one, _address(words[2].partition(":")[0])))
    return found if is_visible else None


def _address(text: str) -> IPAddress:
    """Return an address as the kernel prints it: words of 32 bits in the byte order of the machine."""
    packed = b"".join(struct.pack("=I", int(text[place : place + 8], 16)) for place in range(0, len(text), 8))
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _owners(system: System, inodes: set[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for pid in filter(str.isdigit, system.names("proc")):
        for descriptor in system.names(f"proc/{pid}/fd"):
            link = system.link(f"proc/{pid}/fd/{descriptor}") or ""
            inode = int(link[8:-1]) if link.startswith("socket:[") else -1
            if inode in inodes:
                found.setdefault(inode, []).append(f"{system.text(f'proc/{pid}/comm') or 'a process'} ({pid})")
    return found


def _places(plan: CheckPlan) -> Iterator[tuple[str, str, Ranges]]:
    """Yield the setting, the host and the ports of each listener."""
    config = plan.server or plan.gateway
    if config is not None:
        listen = Address.parse(config.listen)
        yield "listen", listen.host, [(listen.port, listen.port)]
        http = config.http.address
        if http is not None:
            yield "http-listen", http.host, [(http.port, http.port)]
    if plan.gateway is not None:
        for host in dict.fromkeys((plan.gateway.lan.bind, plan.gateway.wan.bind)):
            yield "ports", host, _stream_ports(plan)


def _stream_ports(plan: CheckPlan) -> Ranges:
    assert plan.gateway is not None, "only gateways have such ports"
    return list(dict.fromkeys([parse_ports(plan.gateway.ports), *plan.gateway.chosen_ranges]))


def _meets(one: TcpSocket, _setting: str, host: str, ranges: Ranges) -> bool:
    """Return True if a socket is in the way of a listener."""
    address = numeric_address(host)
    same = address is None or one.host == address or (one.host.is_unspecified or address.is_unspecified)
    if address is not None and address.version != one.host.version and not one.host.is_unspecified:
        same = False
    return same and any(first <= one.port <= last for first, last in ranges)


def findings(facts: PortFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about the ports of the configuration."""
    for setting, host, ranges in _places(plan):
        yield _listeners(facts, setting, host, ranges)
        if setting == "ports" and host != (plan.gateway.lan.bind if plan.gateway else None):
            continue  # the same ports as at the other address
        yield _permission(facts, setting, ranges)
        yield _ephemeral(facts, setting, ranges)
    if plan.gateway is not None and facts.daemon is not None and facts.listening is not None:
        yield _controller(facts)


def _permission(facts: PortFacts, setting: str, ranges: Ranges) -> Finding:
    name = f"ports.permission-{setting}"
    low = [first for first, _ in ranges if first < facts.first_free]
    if not low:
        return ok(name, f"no privilege is needed to listen on {in_words(ranges)}")
    why = f"port {low[0]} is below {facts.first_free}, so that a process without privileges cannot listen on it"
    if facts.daemon is not None:
        return ok(name, f"{why}, but the daemon runs")
    verdict = warn if setting != "ports" else fail  # systemd can open the control port (socket activation)
    return verdict(name, why, f"sysctl -w net.ipv4.ip_unprivileged_port_start={low[0]}, or choose higher ports")


def _listeners(facts: PortFacts, setting: str, host: str, ranges: Ranges) -> Finding:
    name = f"ports.{setting}" if setting != "ports" else f"ports.{setting}-at-{host}"
    if facts.listening is None:
        return unseen(name, "which ports are in use")
    taken = [one for one in facts.listening if _meets(one, setting, host, ranges)]
    ours = f" ({facts.daemon})" if facts.daemon is not None else ", for which systemd listens"
    strangers = [
        one for one in taken if not _is_ours(one, facts) and (facts.daemon is None or one.inode in facts.owners)
    ]
    what = f"{in_words(ranges)} at {host}"
    if not taken:
        return ok(name, f"nobody listens on {what}")
    if not strangers:
        return ok(name, f"{len(taken)} listeners on {what}, of the daemon{ours} as far as is visible")
    named = ", ".join(
        f"{one.port} by {' and '.join(facts.owners.get(one.inode, ['a process that is not visible to this user']))}"
        for one in strangers[:_MOST_NAMED]
    )
    are_visible = all(one.inode in facts.owners for one in strangers)
    total = sum(last - first + 1 for first, last in ranges)
    if setting != "ports" and not are_visible:
        return unseen(name, f"who listens on {what}, whether the daemon or another program")
    if setting != "ports" or (are_visible and len({one.port for one in strangers}) >= total):
        return fail(name, f"other programs listen on all of {what}: {named}", "stop them, or choose other ports")
    why = f"other programs listen on {len(strangers)} of {what}: {named}; streams get the other ports"
    return warn(name, why, "stop them, or choose other ports")


def _is_ours(one: TcpSocket, facts: PortFacts) -> bool:
    """Return True if the daemon has a socket, or systemd, which has opened it for the daemon."""
    owners = facts.owners.get(one.inode, ())
    return any(owner == _SYSTEMD or owner.endswith(f"({facts.daemon})") for owner in owners)


def _controller(facts: PortFacts) -> Finding:
    """Judge whether the S2CS is connected to a gateway that runs. It connects to the gateway, not the reverse."""
    name = "reach.controller"
    if facts.connected:
        return ok(name, f"an S2CS is connected, from {', '.join(sorted(facts.connected))}")
    remedy = "on the machine of the S2CS: scistream check --config s2cs.toml"
    return warn(name, "the gateway runs, but no S2CS is connected to it, so that it gets no streams", remedy)


def _ephemeral(facts: PortFacts, setting: str, ranges: Ranges) -> Finding:
    name = f"ports.outgoing-{setting}"
    if facts.ephemeral is None:
        return unseen(name, _EPHEMERAL)
    low, high = facts.ephemeral
    shared = [*_without(((max(first, low), min(last, high)) for first, last in ranges), facts.reserved)]
    if not shared:
        return ok(name, f"outgoing connections do not use {in_words(ranges)} ({_EPHEMERAL} is {low} {high})")
    why = (
        f"the kernel gives {in_words(shared)} to outgoing connections ({_EPHEMERAL} is {low} {high}), so that a "
        "listener may find its port in use"
    )
    reserve = ",".join(f"{first}-{last}" if first < last else str(first) for first, last in [*facts.reserved, *shared])
    return warn(name, why, f'sysctl -w {_RESERVED}="{reserve}"')


def _without(ranges: Iterable[tuple[int, int]], removed: Ranges) -> Iterator[tuple[int, int]]:
    """Yield the parts of ranges that are in none of `removed`."""
    for first, last in ranges:
        at = first
        for start, end in sorted(removed):
            if start > last or end < at:
                continue
            if at < start:
                yield at, start - 1
            at = max(at, end + 1)
        if at <= last:
            yield at, last
