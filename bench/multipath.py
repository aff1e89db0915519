"""What Multipath TCP costs a stream that has only one path, beside plain TCP: two gateways with TLS between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import measure
from bench.errors import BenchError, SkippedError
from bench.paths import BULK, Environment, Route, gateways_for
from bench.profiles import Profile, Tell
from bench.rows import CPU, THROUGHPUT, Figure, Row, Sample, failed, paired, pairs_of
from scistream.s2ds.relay import mptcp

PATH = "two gateways, TLS, Multipath TCP over one path"
PLAIN = "plain TCP"
CONNECTIONS = (1, 8)
_REACH: Mapping[Figure, float] = {THROUGHPUT: 0.8, CPU: 1.25}
_COUNTERS = Path("/proc/net/netstat")


@dataclass(frozen=True)
class Multipath:
    """Bulk data through the same two gateways, with `multipath` set to "yes" and to "no", in turn."""

    key: str = "multipath"
    about: str = "what Multipath TCP costs over one path, beside plain TCP"

    def programs(self, _profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3"}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result.

        :raises SkippedError: if this system has no Multipath TCP.
        """
        lack = mptcp.lack()
        if lack is not None:
            raise SkippedError(lack)
        samples: dict[tuple[str, int], list[Sample]] = {}
        routes: dict[str, Route] = {}
        try:
            for name, setting in (("yes", "yes"), (PLAIN, "no")):
                tell(f'starting gateways with multipath = "{setting}"')
                (routes[name],) = await gateways_for(environment, BULK, wan={"multipath": setting})
            for turn in range(profile.rounds):
                for many in CONNECTIONS:
                    for name, route in routes.items():
                        tell(f"{name}, {_called(many)}, run {turn + 1} of {profile.rounds}")
                        before = _accepted()
                        found = await measure.throughput(environment, route, many, profile.seconds)
                        if name != PLAIN and _accepted() == before:
                            raise BenchError("the gateways did not use Multipath TCP", route.tails())
                        samples.setdefault((name, many), []).append(found)
        finally:
            for route in routes.values():
                await route.close()
        return [
            paired(
                f"{PATH}, {_called(many)}",
                figure,
                PLAIN,
                pairs_of(samples["yes", many], samples[PLAIN, many], figure),
                reach,
            )
            for many in CONNECTIONS
            for figure, reach in _REACH.items()
        ]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            failed(f"{PATH}, {_called(many)}", figure, PLAIN, reach)
            for many in CONNECTIONS
            for figure, reach in _REACH.items()
        ]


def _called(connections: int) -> str:
    return f"{connections} connection" + "s" * (connections > 1)


def _accepted() -> int:
    """Return how many connections of Multipath TCP were accepted on this system."""
    names, values = (line.split() for line in _COUNTERS.read_text().splitlines() if line.startswith("MPTcpExt:"))
    return int(values[names.index("MPCapableACKRX")])
