"""Ports that a stream asks for by number: ranges of them as text, and the sentences with which one is refused.

An S2CS refuses with them what it knows to be in vain, and an S2DS what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Ranges = Sequence[tuple[int, int]]
"""Ranges of ports, both ends included."""


def is_in(port: int, ranges: Ranges) -> bool:
    """Whether one of the ranges has the port."""
    return any(first <= port <= last for first, last in ranges)


def in_words(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges as people write them: ``5075, 5100-5200``."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def repeated(ports: Sequence[int]) -> int | None:
    """The first port that is named twice, if there is one."""
    seen: set[int] = set()
    for port in ports:
        if port in seen:
            return port
        seen.add(port)
    return None


def not_to_choose(port: int, ranges: Ranges) -> str:
    """The sentence of a gateway that does not let streams choose a port."""
    if not ranges:
        return f"port {port} was asked for, and no port of this gateway may be chosen: ask for none"
    return (
        f"port {port} was asked for, and of this gateway's ports {in_words(ranges)} may be chosen: choose one of them, "
        "or have its operator add the port to `chosen_ports`"
    )


def already_lent(port: int) -> str:
    """The sentence of a gateway whose port another stream has."""
    return f"port {port} was asked for, and another stream has it: choose another port, or wait until that stream ends"
