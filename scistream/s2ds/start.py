"""Checks, before a gateway starts, that its machine has the addresses and ports that the settings name."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from twisted.logger import Logger

from scistream.config import ConfigError, SettingProblem, unless
from scistream.protocol.address import Address
from scistream.reactors import NO_SOCKETS, bind_problem, check_bindable, explain_bind
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.ports import Paths
from scistream.s2ds.relay.leg import congestion_control
from scistream.s2ds.settings import LegSettings, S2DSConfig, parse_proxy
from scistream.shared_settings import parse_ports
from scistream.systemd.sockets import InheritedSockets
from scistream.units import parse_seconds

_MOST_NAMED = 10

_log = Logger()


LAN_CONGESTION = "cubic"
"""The congestion control for a LAN. Pacing, as in bbr, costs a timer for each burst and gains nothing there."""
WAN_CONGESTION = "bbr"
"""The congestion control for a WAN: over 100 ms, others lose most of the rate with one lost packet in a thousand."""


def element_settings(config: S2DSConfig, paths: Paths) -> ElementSettings:
    """Return the settings of the elements of a gateway.

    :param paths: how the connections of the WAN use the paths of this gateway.
    :raises ConfigError: if a setting names something that this system does not have.
    """
    return ElementSettings(
        wan_timeout=parse_seconds(config.wan_timeout),
        wan_cipher=config.wan_cipher,
        wan_networks=list(config.wan_networks),
        ready="auto" if isinstance(config.wan.ready, str) else config.wan.ready,
        control=Address.parse(config.listen).port,
        lent=[parse_ports(config.ports), *config.chosen_ranges],
        lan_congestion=_congestion("lan", config.lan.congestion, LAN_CONGESTION),
        multipath=paths.multipath,
        mixed_paths=paths.mixed,
        proxy=str(parse_proxy(config.wan.proxy)) if config.wan.proxy else "",
        wan_congestion=_congestion("wan", config.wan.congestion, WAN_CONGESTION),
    )


def _congestion(key: str, setting: str, suited: str) -> str:
    try:
        return congestion_control(setting, suited)
    except ValueError as wrong:
        raise ConfigError(f"{key}.congestion: {wrong}") from None


def machine_problems(
    config: S2DSConfig, inherited: InheritedSockets = NO_SOCKETS, *, may_run: bool = False
) -> Iterator[SettingProblem]:
    """Yield the settings whose addresses or ports this machine does not have.

    Log a warning if other programs listen on some of the ports.

    :param inherited: sockets on which this process listens already.
    :param may_run: this gateway may be running, so that its addresses and ports are in use.
    """

    def check(text: str) -> None:
        check_bindable(Address.parse(text), inherited, may_be_used=may_run)

    yield from unless(check, config.listen, "listen")
    if config.http.listen:
        yield from unless(check, config.http.listen, "http.listen")
    sides = [("lan", config.lan)] + ([("wan", config.wan)] if config.wan.bind != config.lan.bind else [])
    for side, leg in sides:
        problems = [*unless(lambda host: check_bindable(Address(host, 0)), leg.bind, f"{side}.bind")]
        yield from problems
        if not problems:
            yield from unless(
                lambda leg: _check_ports(leg, config.ports, may_run=may_run), leg, "ports", f"{side}.bind"
            )


def _check_ports(leg: LegSettings, text: str, *, may_run: bool) -> None:
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
    if may_run:
        return
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
