"""The workloads: what is measured, compared with which peers, and the targets."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import measure, setup_time
from bench.beside import Beside
from bench.multipath import Multipath
from bench.paths import (
    BULK,
    FLOOD,
    MANY,
    OURS,
    PAIRS,
    PLAIN,
    PROGRAMS,
    TRIPS,
    Builder,
    Environment,
    Route,
    gateways_for,
    plain_hop,
)
from bench.profiles import FULL, Profile, Tell, Work
from bench.rates import Rates
from bench.rows import (
    CONNECTS,
    CPU,
    CPU_CONNECT,
    CPU_TRIP,
    KERNEL,
    MEMORY,
    P50,
    P99,
    SET_UP,
    THROUGHPUT,
    Figure,
    Row,
    Sample,
    absolute,
    failed,
    paired,
    pairs_of,
)
from bench.wan import Wan


@dataclass(frozen=True)
class Comparison:
    """A comparison of our path with those of peers, measured in turn.

    :param paths: builders in the order of their turns, ours first.
    :param application: the application at the end of the paths.
    :param run: measures one run over one path.
    :param figures: the figures, and the target of each compared with each peer.
    """

    key: str
    path: str
    about: str
    application: str
    paths: Mapping[str, Builder]
    run: Callable[[Profile, Environment, Route], Awaitable[Sample]]
    figures: Mapping[Figure, Mapping[str, float]]

    def contestants(self, profile: Profile) -> list[str]:
        """Return the names of the paths to measure, ours first."""
        needed = {OURS, *(peer for reach in self.figures.values() for peer in reach)}
        return [name for name in self.paths if profile.all_peers or name in needed]

    def programs(self, profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3"} | {PROGRAMS[name] for name in self.contestants(profile) if name in PROGRAMS}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        ours, *others = self.contestants(profile)
        samples = await self._samples(environment, [ours, *others], profile, tell)
        return [
            paired(self.path, figure, peer, pairs_of(samples[ours], samples[peer], figure), reach.get(peer))
            for figure, reach in self.figures.items()
            for peer in others
            if figure in samples[peer][0]
        ]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            failed(self.path, figure, peer, wanted)
            for figure, reach in self.figures.items()
            for peer, wanted in reach.items()
        ]

    async def _samples(
        self, environment: Environment, names: Sequence[str], profile: Profile, tell: Tell
    ) -> dict[str, list[Sample]]:
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        routes: list[Route] = []
        try:
            for name in names:
                tell(f"starting {name}")
                routes.append(await self.paths[name](environment, self.application))
            for turn in range(profile.rounds):
                for route in routes:
                    tell(f"{route.name}, run {turn + 1} of {profile.rounds}")
                    samples[route.name].append(await self.run(profile, environment, route))
        finally:
            for route in routes:
                await route.close()
        return samples


@dataclass(frozen=True)
class Memory:
    """The memory of idle connections at a gateway that has just been started."""

    key: str
    path: str
    about: str
    build: Builder
    reach: float

    def programs(self, _profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3"}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        tell("starting")
        many = min(profile.idle, connections_allowed())
        route = await self.build(environment, MANY)
        try:
            tell(f"{many} connections, held for {profile.held:g} s")
            sample = await measure.memory(environment, route, many, profile.held)
        finally:
            await route.close()
        return [absolute(self.path, MEMORY, [sample[MEMORY]], self.reach)]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [failed(self.path, MEMORY, None, self.reach)]


def connections_allowed() -> int:
    """Return how many connections a process may carry, with two descriptors for each."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500) // 2


ALONE = "alone"
FIRST_READ = 2 * 2**20
"""Bytes that a consumer reads before it stops, so that the buffers of its connection have grown."""


@dataclass(frozen=True)
class Stalled:
    """A stream alone, and beside unread connections of another stream at the same gateways, in turn."""

    key: str = "stalled"
    about: str = "bulk data beside unread connections of another stream"
    reach: float = 0.8
    reach_kib: float = 3072.0

    def programs(self, _profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3", "ss"}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        tell("starting")
        route, other = await gateways_for(environment, BULK, FLOOD)
        samples: dict[tuple[int, int], list[tuple[Sample, Sample]]] = {kind: [] for kind in self._kinds(profile)}
        try:
            for turn in range(profile.rounds):
                for (many, read), found in samples.items():
                    tell(f"alone, and beside {self._called(many, read)}, run {turn + 1} of {profile.rounds}")
                    alone = await measure.throughput(environment, route, 1, profile.seconds)
                    found.append(
                        (await measure.beside_stalled(environment, route, other, many, read, profile.seconds), alone)
                    )
        finally:
            await route.close()
        rows = []
        for (many, read), found in samples.items():
            path = f"beside {self._called(many, read)}"
            pairs = [(beside[THROUGHPUT], alone[THROUGHPUT]) for beside, alone in found]
            rows.append(paired(path, THROUGHPUT, ALONE, pairs, self.reach))
            rows.append(absolute(path, KERNEL, [beside[KERNEL] for beside, _ in found], self.reach_kib))
        return rows

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            row
            for many, read in self._kinds(FULL)
            for row in (
                failed(f"beside {self._called(many, read)}", THROUGHPUT, ALONE, self.reach),
                failed(f"beside {self._called(many, read)}", KERNEL, None, self.reach_kib),
            )
        ]

    @staticmethod
    def _kinds(profile: Profile) -> list[tuple[int, int]]:
        return [(many, read) for many in profile.stalled for read in (0, FIRST_READ)]

    @staticmethod
    def _called(many: int, read: int) -> str:
        return f"{many} connections " + (f"read no further than {read // 2**20} MiB" if read else "never read")


@dataclass(frozen=True)
class SetUp:
    """The time that it takes to set up a stream.

    :param streams: how many streams to set up.
    :param half_open: the number of unfinished handshakes meanwhile.
    """

    streams: int
    half_open: int
    key: str = "setup"
    about: str = "the time that it takes to set up a stream"

    def programs(self, _profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return set()

    async def rows(self, environment: Environment, _profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        tell(f"{self.streams} streams, one after the other")
        taken = await setup_time.measure(environment.reactor, self.streams, self.half_open)
        return [absolute(self._path, SET_UP, taken, self._reach)]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [failed(self._path, SET_UP, None, self._reach)]

    @property
    def _path(self) -> str:
        beside = f" beside {self.half_open} half-open handshakes" if self.half_open else ""
        return f"two facilities{beside}"

    @property
    def _reach(self) -> float:
        return setup_time.REACH_BESIDE_MS if self.half_open else setup_time.REACH_MS


def _bulk(connections: int) -> Callable[[Profile, Environment, Route], Awaitable[Sample]]:
    return lambda profile, environment, route: measure.throughput(environment, route, connections, profile.seconds)


def _trips(profile: Profile, environment: Environment, route: Route) -> Awaitable[Sample]:
    return measure.trips(environment, route, profile.trips)


def _connects(profile: Profile, environment: Environment, route: Route) -> Awaitable[Sample]:
    return measure.connects(environment, route, profile.seconds)


_BULK_PLAIN = {THROUGHPUT: {"HAProxy": 1.0, "nginx": 1.0}, CPU: {"HAProxy": 1.0, "nginx": 1.0}}
_BULK_TLS = {THROUGHPUT: {"stunnel": 1.25, "nginx": 1.0}, CPU: {"stunnel": 1.0, "nginx": 1.0}}


def all_works(streams: int, half_open: int) -> list[Work]:
    """Return all workloads, in the order in which they are measured."""
    hop, gateways = "one hop plain", "two gateways TLS"
    return [
        Comparison("plain-1", f"{hop}, 1 connection", "bulk data, the relay alone", BULK, PLAIN, _bulk(1), _BULK_PLAIN),
        Comparison(
            "plain-8", f"{hop}, 8 connections", "the same over 8 connections", BULK, PLAIN, _bulk(8), _BULK_PLAIN
        ),
        Comparison(
            "tls-1", f"{gateways}, 1 connection", "bulk data, installed daemons", BULK, PAIRS, _bulk(1), _BULK_TLS
        ),
        Comparison(
            "tls-8", f"{gateways}, 8 connections", "the same over 8 connections", BULK, PAIRS, _bulk(8), _BULK_TLS
        ),
        Comparison(
            "trips-plain",
            hop,
            "small messages, the relay alone",
            TRIPS,
            PLAIN,
            _trips,
            {P50: {"HAProxy": 1.5}, P99: {}, CPU_TRIP: {}},
        ),
        Comparison(
            "trips-tls",
            gateways,
            "small messages, installed daemons",
            TRIPS,
            PAIRS,
            _trips,
            {P50: {"stunnel": 1.25}, P99: {"stunnel": 1.3}, CPU_TRIP: {}},
        ),
        Comparison(
            "connects",
            gateways,
            "new connections, 8 at a time",
            MANY,
            PAIRS,
            _connects,
            {CONNECTS: {"stunnel": 1.5}, CPU_CONNECT: {}},
        ),
        Beside(),
        Memory("memory-plain", hop, "idle connections, the relay alone", plain_hop, 24.0),
        Memory("memory-tls", gateways, "idle connections, installed daemons", PAIRS[OURS], 80.0),
        Stalled(),
        Rates(),
        Multipath(),
        SetUp(streams, half_open),
        Wan(),
    ]
