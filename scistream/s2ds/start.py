"""What the machine of a gateway has to have for its settings to be right, looked at before the gateway starts."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from twisted.logger import Logger

from scistream.accepting import bind_problem, check_bindable, explain_bind
from scistream.config import Leg, S2DSConfig, parse_ports
from scistream.toml_file import Problem, unless
from scistream.wire.address import Address

_MOST_NAMED = 10

_log = Logger()


def machine_problems(config: S2DSConfig) -> Iterator[Problem]:
    """What this machine has not, and the settings ask for. Ports that others have are named in the log."""
    yield from unless(lambda text: check_bindable(Address.parse(text)), config.listen, "listen")
    sides = [("lan", config.lan)] + ([("wan", config.wan)] if config.wan.bind != config.lan.bind else [])
    for side, leg in sides:
        problems = [*unless(lambda host: check_bindable(Address(host, 0)), leg.bind, f"{side}.bind")]
        yield from problems
        if not problems:
            yield from unless(lambda leg: _check_ports(leg, config.ports), leg, "ports", f"{side}.bind")


def _check_ports(leg: Leg, text: str) -> None:
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
