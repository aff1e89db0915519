"""What gateways can do to connect to those of the other side: accept connections, dial, or both. No I/O.

The facility of each side reports this in ``wan``, and the user's client chooses the side that dials from both reports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from scistream.protocol.messages import CONS, Role

ACCEPT = "accept"
DIAL = "dial"


def needed(role: Role, wan_dialer: Role) -> str:
    """Return what the gateways of a side must be able to do.

    :param wan_dialer: the side whose gateways dial the others.
    """
    return DIAL if role == wan_dialer else ACCEPT


def abilities(role: Role, reported: Collection[str] | None) -> frozenset[str]:
    """Return what the gateways of a side can do.

    :param reported: their report; None from an older version, in which the consumer's gateways always dial.
    """
    return frozenset(reported) if reported is not None else frozenset({needed(role, CONS)})


def common(role: Role, reports: Iterable[Collection[str] | None]) -> list[str]:
    """Return what all gateways of a side can do, which is what a stream that is spread over them can do."""
    sets = [abilities(role, reported) for reported in reports]
    return sorted(frozenset.intersection(*sets)) if sets else []
