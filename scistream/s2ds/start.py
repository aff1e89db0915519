"""Checks, before a gateway starts, that its machine has the addresses and ports that the settings name."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from twisted.logger import Logger

from scistream.config import SettingProblem, unless
from scistream.protocol.address import Address
from scistream.reactors import NO_SOCKETS, bind_problem, check_bindable, explain_bind
from scistream.s2ds.settings import LegSettings, S2DSConfig
from scistream.shared_settings import parse_ports
from scistream.systemd.sockets import InheritedSockets

_MOST_NAMED = 10

_log = Logger()


def machine_problems(config: S2DSConfig, inherited: InheritedSockets = NO_SOCKETS) -> Iterator[SettingProblem]:
    """Yield the settings whose addresses or ports this machine does not have.

    Log a warning if other programs listen on some of the ports.

    :param inherited: sockets on which this process listens already.
    """
    yield from unless(lambda text: check_bindable(Address.parse(text), inherited), config.listen, "listen")
    if config.http.listen:
        yield from unless(
            lambda text: check_bindable(Address.parse(text), inherited), config.http.listen, "http.listen"
        )
    sides = [("lan", config.lan)] + ([("wan", config.wan)] if config.wan.bind != config.lan.bind else [])
    for side, leg in sides:
        problems = [*unless(lambda host: check_bindable(Address(host, 0)), leg.bind, f"{side}.bind")]
        yield from problems
        if not problems:
            yield from unless(lambda leg: _check_ports(leg, config.ports), leg, "ports", f"{side}.bind")


def _check_ports(leg: LegSettings, text: str) -> None:
    """Check that a port of the range can be bound on this side, and log those in use.

    :raises ValueError: if none can.
    """
    first, last = parse_ports(text)
    taken = []
    for port in range(first, last + 1):
        problem = bind_problem(Address(leg.bind, port))
        if problem is not None and problem.errno != errno.EADDRINUSE:
            raise ValueError(f"{text!r}: {explain_bind(Address(leg.bind, port), problem)}")
        if problem is not None:
            taken.append(port)
    if len(taken) > last - first:
        raise ValueError(f"{text!r}: other programs use all these ports at {leg.bind}: choose a free range")
    if taken:
        _log.warn(
            "other programs use {count} of the ports {ports} at {host}, such as {some}: streams get the other ports",
            count=len(taken),
            ports=text,
            host=leg.bind,
            some=", ".join(map(str, taken[:_MOST_NAMED])),
        )
