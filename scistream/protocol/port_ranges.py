"""Ports that a stream asks for by number: ranges of ports, and the messages that refuse a port.

An S2CS refuses ports that it knows its gateways will not grant; an S2DS refuses all others that it cannot grant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Ranges = Sequence[tuple[int, int]]
"""Ranges of ports, both ends included."""


def is_in(port: int, ranges: Ranges) -> bool:
    """Return True if one of `ranges` contains `port`."""
    return any(first <= port <= last for first, last in ranges)


def in_words(ranges: Iterable[tuple[int, int]]) -> str:
    """Format ranges as people write them: ``5075, 5100-5200``."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def repeated(ports: Sequence[int]) -> int | None:
    """Return the first port that occurs twice, or None."""
    seen: set[int] = set()
    for port in ports:
        if port in seen:
            return port
        seen.add(port)
    return None


def not_to_choose(port: int, ranges: Ranges) -> str:
    """Return the message of a gateway that does not let streams choose this port."""
    if not ranges:
        return f"port {port} was requested, but this gateway lets streams choose no port: do not ask for one"
    return (
        f"port {port} was requested, but this gateway lets streams choose {in_words(ranges)} only: choose one of "
        "these, or ask its operator to add the port to `chosen_ports`"
    )


def already_lent(port: int) -> str:
    """Return the message of a gateway on which another stream has this port."""
    return f"port {port} was requested, but another stream has it: choose another port, or wait until that stream ends"
