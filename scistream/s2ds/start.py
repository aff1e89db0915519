"""What the machine of a gateway has to have for its settings to be right, looked at before the gateway starts."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from twisted.logger import Logger

from scistream.config import SettingProblem, unless
from scistream.protocol.address import Address
from scistream.reactors import bind_problem, check_bindable, explain_bind
from scistream.s2ds.settings import LegSettings, S2DSConfig
from scistream.shared_settings import parse_ports

_MOST_NAMED = 10

_log = Logger()


def machine_problems(config: S2DSConfig) -> Iterator[SettingProblem]:
    """What this machine has not, and the settings ask for. Ports that others have are named in the log."""
    yield from unless(lambda text: check_bindable(Address.parse(text)), config.listen, "listen")
    sides = [("lan", config.lan)] + ([("wan", config.wan)] if config.wan.bind != config.lan.bind else [])
    for side, leg in sides:
        problems = [*unless(lambda host: check_bindable(Address(host, 0)), leg.bind, f"{side}.bind")]
        yield from problems
        if not problems:
            yield from unless(lambda leg: _check_ports(leg, config.ports), leg, "ports", f"{side}.bind")


def _check_ports(leg: LegSettings, text: str) -> None:
    """:raises ValueError: if no port of the range can be had on this side."""
    first, last = parse_ports(text)
    taken = []
    for port in range(first, last + 1):
        problem = bind_problem(Address(leg.bind, port))
        if problem is not None and problem.errno != errno.EADDRINUSE:
            raise ValueError(f"{text!r}: {explain_bind(Address(leg.bind, port), problem)}")
        if problem is not None:
            taken.append(port)
    if len(taken) > last - first:
        raise ValueError(f"{text!r}: other programs listen on all of them at {leg.bind}: choose a range that is free")
    if taken:
        _log.warn(
            "other programs listen on {count} of the ports {ports} at {host}, such as {some}: streams get the others",
            count=len(taken),
            ports=text,
            host=leg.bind,
            some=", ".join(map(str, taken[:_MOST_NAMED])),
        )
