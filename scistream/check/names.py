"""The names under which others reach this machine, and the names of its addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from scistream import timing
from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.protocol.address import Address
from scistream.shared_settings import numeric_address

Result = TypeVar("Result")


@dataclass(frozen=True)
class NameFacts:
    """The answers of the name service about a host that is announced to others.

    :ivar key: the setting that has it.
    :ivar addresses: of the name, or the address itself; None if the name service does not answer.
    :ivar name: of the address; empty if it has none.
    :ivar back: the addresses of that name.
    """

    key: str
    host: str
    addresses: frozenset[str] | None
    name: str = ""
    back: frozenset[str] = frozenset()


def gather(plan: CheckPlan) -> list[NameFacts]:
    """Ask the name service for each host that the configuration announces, except for loopback."""
    hosts: dict[str, str] = {}
    if plan.server is not None:
        hosts.setdefault(Address.parse(plan.server.listen).host, "listen")
        for gateway in plan.server.gateways:
            hosts.setdefault(Address.parse(gateway.address).host, f"gateways.{gateway.name}")
    if plan.gateway is not None:
        hosts.setdefault(plan.gateway.wan.advertised, "wan.advertise" if plan.gateway.wan.advertise else "wan.bind")
        hosts.setdefault(plan.gateway.lan.advertised, "lan.advertise" if plan.gateway.lan.advertise else "lan.bind")
    return [_ask(key, host) for host, key in hosts.items() if not _is_own(host)]


def _is_own(host: str) -> bool:
    address = numeric_address(host)
    return host == "localhost" or (address is not None and (address.is_loopback or address.is_unspecified))


def _ask(key: str, host: str) -> NameFacts:
    if numeric_address(host) is None:
        return NameFacts(key, host, within(lambda: _addresses(host), None))
    name = within(lambda: _name(host), "")
    back = within(lambda: _addresses(name), None) if name else None
    return NameFacts(key, host, frozenset({host}), name, back or frozenset())


def _addresses(name: str) -> frozenset[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(each[4][0]) for each in found)


def _name(address: str) -> str:
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return ""


def within(ask: Callable[[], Result], otherwise: Result) -> Result:
    """Return an answer of the name service, which cannot be interrupted, or `otherwise` if it takes too long."""
    answers: SimpleQueue[Result] = SimpleQueue()
    threading.Thread(target=lambda: answers.put(ask()), daemon=True).start()
    try:
        return answers.get(timeout=timing.CHECK_LOOKUP)
    except Empty:
        return otherwise


def findings(facts: NameFacts) -> Finding:
    """Judge one host that is announced to others."""
    name = f"names.{facts.key}"
    if facts.addresses is None:
        return unseen(name, f"the addresses of {facts.host}, since the name service does not answer")
    if not facts.addresses:
        remedy = f"add it to DNS or to /etc/hosts, or write a numeric address; test with: getent hosts {facts.host}"
        return fail(name, f"{facts.host} is a name without an address here", remedy)
    if numeric_address(facts.host) is None:
        return ok(name, f"{facts.host} has the address {', '.join(sorted(facts.addresses))}")
    if not facts.name:
        return ok(name, f"{facts.host} has no name, and needs none")
    if facts.host in facts.back:
        return ok(name, f"{facts.host} is named {facts.name}, which has this address")
    others = ", ".join(sorted(facts.back)) or "none"
    why = f"{facts.host} is named {facts.name}, but the addresses of {facts.name} are others: {others}"
    return warn(name, why, f"correct DNS or /etc/hosts; test with: getent hosts {facts.host} {facts.name}")
