"""How well a stream keeps its rate, and how much of it comes at once, through two gateways with TLS between them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from bench import measure
from bench.paths import FLOOD, Environment, gateways_for
from bench.profiles import Profile, Tell
from bench.rows import BURST, OFF_RATE, Row, Sample, absolute, failed

RATES = (1, 50, 500, 2000)
"""Mbit/s."""
CONNECTIONS = (1, 8)
SECONDS = 10
"""The longest run."""
RUNS = 3
"""The most runs of each kind."""


@dataclass(frozen=True)
class Rates:
    """Streams of several rates, from a producer that sends without end."""

    key: str = "rates"
    about: str = "how well a stream keeps its rate, over 1 and 8 connections"
    reach_percent: float = 5.0
    reach_ms: float = 50.0

    def programs(self, _profile: Profile) -> set[str]:
        """Return the third-party programs that it needs: the applications of the benchmark start together."""
        return {"iperf3"}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result."""
        samples: dict[tuple[int, int], list[Sample]] = {kind: [] for kind in product(RATES, CONNECTIONS)}
        runs, seconds = min(RUNS, profile.rounds), min(SECONDS, 2 * profile.seconds)
        for rate in RATES:
            tell(f"starting gateways for {rate} Mbit/s")
            (route,) = await gateways_for(environment, FLOOD, rate=rate)
            try:
                for turn, many in product(range(runs), CONNECTIONS):
                    tell(f"{_called(rate, many)}, run {turn + 1} of {runs}")
                    samples[rate, many].append(await measure.rate(environment, route, many, rate, seconds))
            finally:
                await route.close()
        return [
            row
            for kind, found in samples.items()
            for row in (
                absolute(_called(*kind), OFF_RATE, [one[OFF_RATE] for one in found], self.reach_percent),
                absolute(_called(*kind), BURST, [one[BURST] for one in found], self.reach_ms),
            )
        ]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            row
            for kind in product(RATES, CONNECTIONS)
            for row in (
                failed(_called(*kind), OFF_RATE, None, self.reach_percent),
                failed(_called(*kind), BURST, None, self.reach_ms),
            )
        ]


def _called(rate: int, connections: int) -> str:
    return f"a stream of {rate} Mbit/s, {connections} connection" + "s" * (connections > 1)
