"""Small messages of one stream while bulk data of another one flows through the same gateways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench import measure
from bench.paths import BULK, OURS, PROGRAMS, SHARED_PAIRS, TRIPS, Environment, Route, SharedBuilder
from bench.profiles import Profile, Tell
from bench.rows import P50, P99, THROUGHPUT, Figure, Row, Sample, failed, paired, pairs_of

_FIGURES: Mapping[Figure, Mapping[str, float]] = {
    P50: {"stunnel": 1.25},
    P99: {"stunnel": 1.3},
    THROUGHPUT: {},
}


@dataclass(frozen=True)
class Beside:
    """Round trips beside bulk data over 1 connection, and over 8, through our gateways and through those of peers."""

    key: str = "beside"
    about: str = "small messages beside bulk data"
    paths: Mapping[str, SharedBuilder] = field(default_factory=lambda: SHARED_PAIRS)
    connections: tuple[int, ...] = (1, 8)

    def contestants(self, profile: Profile) -> list[str]:
        """Return the names of the paths to measure, ours first."""
        needed = {OURS, *(peer for reach in _FIGURES.values() for peer in reach)}
        return [name for name in self.paths if profile.all_peers or name in needed]

    def programs(self, profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3"} | {PROGRAMS[name] for name in self.contestants(profile) if name in PROGRAMS}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        names = self.contestants(profile)
        samples: dict[tuple[int, str], list[Sample]] = {(many, name): [] for many in self.connections for name in names}
        routes: dict[str, tuple[Route, Route]] = {}
        try:
            for name in names:
                tell(f"starting {name}")
                trips, bulk = await self.paths[name](environment, TRIPS, BULK)
                routes[name] = trips, bulk
            for turn in range(profile.rounds):
                for (many, name), found in samples.items():
                    tell(f"{name} beside {many} connections, run {turn + 1} of {profile.rounds}")
                    found.append(await measure.trips_beside(environment, *routes[name], many, profile.seconds))
        finally:
            for trips, _ in routes.values():
                await trips.close()
        return [
            paired(
                self._path(many),
                figure,
                peer,
                pairs_of(samples[many, OURS], samples[many, peer], figure),
                reach.get(peer),
            )
            for many in self.connections
            for figure, reach in _FIGURES.items()
            for peer in names[1:]
        ]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            failed(self._path(many), figure, peer, wanted)
            for many in self.connections
            for figure, reach in _FIGURES.items()
            for peer, wanted in reach.items()
        ]

    @staticmethod
    def _path(many: int) -> str:
        return f"two gateways TLS, messages beside bulk data over {many} connection{'s' if many > 1 else ''}"
