"""The paths over the WAN that all gateways of a stream report, as one list of bounded length."""

from __future__ import annotations

from collections.abc import Iterable

from scistream.protocol.messages import MAX_PATHS, PathFigures


def one_list(reported: Iterable[PathFigures]) -> list[PathFigures]:
    """Return the paths, those that are up first, in at most `MAX_PATHS` entries; the last may be all others."""
    paths = sorted(reported, key=lambda one: (not one.local, not one.up))
    if len(paths) <= MAX_PATHS:
        return paths
    return [*paths[: MAX_PATHS - 1], _together(paths[MAX_PATHS - 1 :])]


def _together(paths: list[PathFigures]) -> PathFigures:
    connections = sum(one.connections for one in paths)
    rtt = sum(one.rtt_ms * one.connections for one in paths)
    return PathFigures(
        local="",
        remote="",
        up=any(one.up for one in paths),
        connections=connections,
        rtt_ms=round(rtt / connections, 3) if connections else 0.0,
        bytes_to_consumer=sum(one.bytes_to_consumer for one in paths),
        bytes_to_producer=sum(one.bytes_to_producer for one in paths),
        retransmits=sum(one.retransmits for one in paths),
        failures=sum(one.failures for one in paths),
        seconds=min(one.seconds for one in paths),
    )
