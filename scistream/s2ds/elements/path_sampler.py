"""The paths over which the connections of one channel at one element go, as sampled. Only with Multipath TCP.

A `PathSampler` belongs to an `ElementChannel`. What a peer may add without limit, paths to and from further addresses,
is counted together beyond `MOST_PATHS_SAMPLED`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from scistream.protocol.messages import StreamKey
from scistream.s2ds.elements.commands import PathSample, PathsReport
from scistream.s2ds.relay.tcp_info import PathInfo

MOST_PATHS_SAMPLED = 16
"""The number of pairs of addresses of one channel in a report; all others count as one pair of empty addresses."""

_Counts = tuple[int, int, int]
_Seen = dict[tuple[str, str, tuple[int, int]], _Counts]
"""By addresses and ports, what a path of one connection had acknowledged, received and retransmitted at last."""


@dataclass
class _Sum:
    up: float = 0.0
    rtt: float = 0.0
    sent: int = 0
    received: int = 0
    retransmits: int = 0


class PathSampler:
    """The paths of one channel at one element. Each sample calls `look` for its connections, and then `report`.

    :param key: the uid and role of the stream.
    """

    def __init__(self, key: StreamKey, channel: int, element: int) -> None:
        self._key = key
        self._channel = channel
        self._element = element
        self._seen: dict[Hashable, _Seen] = {}
        """By connection. Only connections with several paths, or that may have several, are in it."""
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._settled = 0.0
        self._has_told = False

    def look(self, connection: Hashable, paths: Iterable[PathInfo], share: float = 1.0) -> None:
        """Count the paths of a connection in the current sample.

        :param share: how many connections this one stands for.
        """
        known = self._seen.get(connection)
        seen = self._add(known or {}, paths)
        if not seen and known is None:
            return
        self._seen[connection] = seen
        if known is not None:  # a new connection may not have opened its further paths yet
            self._settled += share
        for path in paths:
            if path.is_up and path.local:
                total = self._sum(path)
                total.up += share
                total.rtt += path.info.rtt * share

    def ended(self, connection: Hashable, paths: Iterable[PathInfo]) -> None:
        """Count what the paths of a connection have carried since the last sample, and forget it."""
        self._add(self._seen.pop(connection, {}), paths)

    def report(self) -> PathsReport | None:
        """Return what was counted since the last report, and begin anew; None if there is nothing to tell."""
        sums, self._sums = self._sums, {}
        settled, self._settled = self._settled, 0.0
        if not sums and not self._seen and not self._has_told:
            return None
        self._has_told = bool(self._seen)
        uid, role = self._key
        return PathsReport(
            uid=uid,
            role=role,
            channel=self._channel,
            element=self._element,
            settled=round(settled),
            paths=[
                PathSample(
                    local=local,
                    remote=remote,
                    up=round(one.up),
                    rtt=one.rtt / one.up if one.up else 0.0,
                    sent=one.sent,
                    received=one.received,
                    retransmits=one.retransmits,
                )
                for (local, remote), one in sums.items()
            ],
        )

    def _add(self, known: _Seen, paths: Iterable[PathInfo]) -> _Seen:
        """Add what paths have carried since they were last seen, and return what they have carried in all."""
        seen: _Seen = {}
        for path in paths:
            if not path.local:
                continue
            key = path.local, path.remote, path.ports
            info = path.info
            now = seen[key] = info.acknowledged, info.received, info.total_retrans
            before = known.get(key, (0, 0, 0))
            if now != before:
                total = self._sum(path)
                total.sent += max(0, now[0] - before[0])
                total.received += max(0, now[1] - before[1])
                total.retransmits += max(0, now[2] - before[2])
        return seen

    def _sum(self, path: PathInfo) -> _Sum:
        pair = path.local, path.remote
        if pair not in self._sums and len(self._sums) >= MOST_PATHS_SAMPLED:
            pair = "", ""
        return self._sums.setdefault(pair, _Sum())
