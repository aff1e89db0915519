"""The kernel's settings of TCP: buffers, congestion control, queues, and what its version means for a gateway."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.check.system import System
from scistream.links.tls_links import BACKLOG
from scistream.s2ds.relay.leg import FIRST_LARGE_BUFFER, MEDIUM_RECEIVE_BUFFER
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT
from scistream.s2ds.start import LAN_CONGESTION, WAN_CONGESTION
from scistream.s2ds.tcp_bounds import ENOUGH, MOST_WINDOW, USABLE_PART
from scistream.units import format_rate, spoken_size

_MIB = 1024 * 1024
_EXAMPLE_RTT = 0.1
_ROOM_FOR_OVERFLOW = 2 * FIRST_LARGE_BUFFER
_SWITCHES = {
    "tcp_window_scaling": (fail, "a connection has at most 64 KiB in flight"),
    "tcp_sack": (warn, "one lost packet makes TCP repeat all that came after it"),
    "tcp_timestamps": (
        warn,
        "round-trip times are measured rarely, and old packets can pass for new ones above 1 Gbit/s",
    ),
    "tcp_moderate_rcvbuf": (warn, "receive buffers do not grow with the path"),
}
"""Settings of net.ipv4 that are on by default, and what is lost without them."""
_RELEASES = (
    ((5, 6), "streams cannot use several paths (Multipath TCP)", True),
    ((5, 15), "connections that nobody reads take more memory, since receive buffers cannot begin small", False),
    ((6, 5), "s2uc status shows no figures of single paths of a connection", True),
)
"""For each Linux release: what older kernels lack, and True if only gateways with several paths need it."""
_OVERFLOWS_SINCE = (6, 17)
"""The first release that may ignore all that comes from a peer while a receive buffer is full; see `relay/leg.py`."""


@dataclass(frozen=True)
class KernelFacts:
    """The settings of the kernel.

    :ivar values: of the settings that could be read, with single spaces between numbers, by their names.
    :ivar release: of the kernel, such as ``6.1.0-18-amd64``.
    :ivar choosable: whether this process may choose a congestion control, by its name.
    """

    values: Mapping[str, str]
    release: str
    choosable: Mapping[str, bool]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a setting; empty if it could not be read."""
        return [int(word) for word in self.values.get(name, "").split() if word.isdigit()]


_READ = (
    *("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "net.core.rmem_max", "net.core.wmem_max", "net.core.somaxconn"),
    *("net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control"),
    *("net.ipv4.tcp_congestion_control", "net.ipv4.tcp_slow_start_after_idle"),
    *(f"net.ipv4.{name}" for name in _SWITCHES),
)


def gather(system: System, plan: CheckPlan) -> KernelFacts:
    """Read the settings of the kernel."""
    values = {name: value for name in _READ if (value := system.sysctl(name)) is not None}
    named = {WAN_CONGESTION, LAN_CONGESTION, *(name for _, name, _ in _sides(plan) if name != "auto")} - {""}
    return KernelFacts(values, os.uname().release, {name: _may_choose(name) for name in sorted(named)})


def _may_choose(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


def findings(facts: KernelFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about the kernel."""
    yield _buffers(facts, plan, "receive", "net.ipv4.tcp_rmem", USABLE_PART)
    yield _buffers(facts, plan, "send", "net.ipv4.tcp_wmem", 1)
    yield _requested(facts, plan)
    yield from _switches(facts)
    yield from _idle(facts, plan)
    yield from congestion(facts, plan)
    yield _queue(facts)
    yield from _release(facts, plan)


def _buffers(facts: KernelFacts, plan: CheckPlan, way: str, setting: str, part: int) -> Finding:
    """Compare the largest buffer of a connection with what is on its way in a round trip.

    :param part: the kernel lets one byte of so many of the buffer carry data.
    """
    name = f"kernel.{way}-buffers"
    sizes = facts.numbers(setting)
    if len(sizes) != 3:
        return unseen(name, setting)
    window = sizes[2] // part
    rtt = plan.rtt or _EXAMPLE_RTT
    bound = window / rtt / BYTES_PER_MBIT
    seen = f"{setting} lets one connection {way} at most {_rate(bound)} over {rtt * 1000:.3g} ms"
    if plan.rate is None or plan.rtt is None:
        return ok(name, f"{seen}; give --rate and --rtt to compare")
    if bound >= plan.rate * ENOUGH:
        return ok(name, f"{seen}, which suffices for {format_rate(plan.rate)}")
    needed = -int(-plan.rate * BYTES_PER_MBIT * rtt * part // _MIB) * _MIB
    size = min(needed, MOST_WINDOW)
    remedy = f'sysctl -w {setting}="{sizes[0]} {sizes[1]} {size}"'
    if needed > size:
        remedy += f", and {-int(-needed // size)} connections or more"
    return warn(name, f"{seen}, less than {format_rate(plan.rate)}", remedy)


def _rate(mbit: float) -> str:
    return f"{mbit / 1000:.3g} Gbit/s" if mbit >= 1000 else f"{mbit:.3g} Mbit/s"


def _requested(facts: KernelFacts, plan: CheckPlan) -> Finding:
    """Check the buffers that gateways ask for. They ask for receive buffers only."""
    name, setting = "kernel.requested-buffers", "net.core.rmem_max"
    sizes = facts.numbers(setting)
    if not sizes:
        return unseen(name, f"{setting}")
    if sizes[0] >= FIRST_LARGE_BUFFER:
        return ok(
            name, f"{setting} allows {spoken_size(sizes[0])} (net.core.wmem_max is not used: gateways ask for none)"
        )
    size = spoken_size(sizes[0])
    if not plan.is_distant:
        return ok(name, f"{setting} allows {size}, which suffices unless the WAN is long; give --rtt to compare")
    why = (
        f"{setting} allows {size}, but new connections over a long path begin with "
        f"{spoken_size(MEDIUM_RECEIVE_BUFFER)} to {spoken_size(FIRST_LARGE_BUFFER)}, and gain speed slowly with less"
    )
    return warn(name, why, f"sysctl -w {setting}={_ROOM_FOR_OVERFLOW}")


def _switches(facts: KernelFacts) -> Iterator[Finding]:
    off = False
    for setting, (verdict, loss) in _SWITCHES.items():
        if facts.values.get(f"net.ipv4.{setting}") == "0":
            off = True
            yield verdict(
                f"kernel.{setting.removeprefix('tcp_').replace('_', '-')}",
                f"net.ipv4.{setting} is 0, so that {loss}",
                f"sysctl -w net.ipv4.{setting}=1",
            )
    if not off:
        yield ok("kernel.tcp", "window scaling, selective acknowledgements, timestamps and growing buffers are on")


def _idle(facts: KernelFacts, plan: CheckPlan) -> Iterator[Finding]:
    setting = "net.ipv4.tcp_slow_start_after_idle"
    if facts.values.get(setting) == "1" and plan.is_distant:
        why = f"{setting} is 1, so that a connection that has paused begins at a low rate again"
        yield warn("kernel.slow-start-after-idle", why, f"sysctl -w {setting}=0")


def _sides(plan: CheckPlan) -> list[tuple[str, str, str]]:
    """Return the key, the value and what "auto" prefers, for the congestion control of each side."""
    gateway = plan.gateway
    if gateway is None and plan.server is not None:  # which carries no data
        return []
    wan, lan = (gateway.wan.congestion, gateway.lan.congestion) if gateway else ("auto", "auto")
    return [("wan", wan, WAN_CONGESTION), ("lan", lan, LAN_CONGESTION)]


def congestion(facts: KernelFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield which congestion control the connections of each side will have."""
    system = facts.values.get("net.ipv4.tcp_congestion_control", "unknown")
    allowed = facts.values.get("net.ipv4.tcp_allowed_congestion_control")
    available = facts.values.get("net.ipv4.tcp_available_congestion_control")
    for side, setting, suited in _sides(plan):
        name = f"kernel.congestion-{side}"
        wanted = suited if setting == "auto" else setting
        if not wanted:
            yield ok(name, f"the system's, {system}")
            continue
        may = wanted in allowed.split() if allowed is not None else facts.choosable.get(wanted, False)
        if may or wanted == system:
            yield ok(name, f"{wanted}, {'chosen by auto' if setting == 'auto' else 'as set'}")
            continue
        remedy = ""
        if available is None or wanted not in available.split():
            remedy = f"modprobe tcp_{wanted} && "
        allow = " ".join(dict.fromkeys([*(allowed or "reno").split(), wanted]))
        remedy += f'sysctl -w net.ipv4.tcp_allowed_congestion_control="{allow}"'
        if setting != "auto":
            why = f"{side}.congestion is {wanted!r}, which a process without privileges may not choose here"
            yield fail(name, f"{why}, so that the gateway does not start", remedy)
        elif side == "wan":
            why = f"auto chooses the system's, {system}, since {wanted} may not be chosen"
            yield warn(name, f"{why}; over long paths with a little loss it carries less", remedy)
        else:
            yield ok(name, f"auto chooses the system's, {system}, since {wanted} may not be chosen")


def _queue(facts: KernelFacts) -> Finding:
    setting = "net.core.somaxconn"
    value = facts.numbers(setting)
    if not value:
        return unseen("kernel.accept-queue", setting)
    if value[0] >= BACKLOG:
        return ok("kernel.accept-queue", f"{setting} is {value[0]}; listeners ask for {BACKLOG}")
    why = f"{setting} is {value[0]}, but listeners ask for {BACKLOG}: connections of a burst are delayed by 1 s or more"
    return warn("kernel.accept-queue", why, f"sysctl -w {setting}=4096")


def _release(facts: KernelFacts, plan: CheckPlan) -> Iterator[Finding]:
    name = "kernel.release"
    match = re.match(r"(\d+)\.(\d+)", facts.release)
    if match is None:
        yield unseen(name, f"what release {facts.release!r} is")
        return
    release = int(match[1]), int(match[2])
    has_paths = plan.gateway is not None and len(plan.gateway.wan.paths) > 1
    lacking = [(since, loss) for since, loss, of_paths in _RELEASES if release < since and (has_paths or not of_paths)]
    if lacking:
        why = f"Linux {facts.release}: {'; '.join(loss for _, loss in lacking)}"
        newest = ".".join(map(str, lacking[-1][0]))
        yield warn(name, why, f"use Linux {newest} or later")
    elif release >= _OVERFLOWS_SINCE:
        yield ok(name, f"Linux {facts.release}; gateways enlarge receive buffers that overflow, as it needs")
    else:
        yield ok(name, f"Linux {facts.release}")
