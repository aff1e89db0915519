"""Gather all facts, and judge them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scistream.check import certificates, clock, kernel, limits, names, network, ports, reach, store
from scistream.check.findings import Finding
from scistream.check.plan import CheckPlan
from scistream.check.running import find_daemon
from scistream.check.system import System
from scistream.tls.files import utc_now


def check(plan: CheckPlan, system: System | None = None) -> Iterator[Finding]:
    """Yield all findings about this machine and a configuration.

    :param system: /proc and /sys; None: those of this machine.
    """
    system = system or System()
    daemon = find_daemon(system, plan)
    peer = reach.ask_peer(plan.peer) if plan.peer is not None else None
    if peer is not None and peer.connection is not None and plan.rtt is None:
        plan = replace(plan, rtt=peer.connection.rtt)
    yield from kernel.findings(kernel.gather(system, plan), plan)
    yield from limits.findings(limits.gather(system, daemon), plan)
    facts = network.gather(system, plan)
    yield from network.findings(facts, plan)
    paths = network.gather_paths(plan)
    if paths is not None:
        yield from network.path_findings(paths, plan, is_running=daemon is not None)
    yield from ports.findings(ports.gather(system, plan, daemon.pid if daemon is not None else None), plan)
    for name in names.gather(plan):
        yield names.findings(name)
    yield from clock.findings(clock.gather())
    for certificate in certificates.gather(plan):
        yield from certificates.findings(certificate, utc_now())
    yield from store.findings(plan)
    for gateway in reach.ask_gateways(plan):
        yield reach.gateway_findings(gateway)
    if peer is not None:
        local = peer.connection.local if peer.connection is not None else ""
        interface = (facts.interfaces or {}).get(local)
        yield from reach.peer_findings(peer, interface.mtu if interface is not None else None)
