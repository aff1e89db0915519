"""What every workload is given, and what it has to provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from bench.paths import Environment
from bench.rows import Row


@dataclass(frozen=True)
class Profile:
    """The size of a benchmark run.

    :param rounds: the number of runs of each path, of which the median is taken.
    :param seconds: the duration of one run of bulk data, or of new connections.
    :param trips: the number of round trips in one run.
    :param idle: the number of idle connections.
    :param held: how many seconds they are held.
    :param stalled: numbers of connections that nobody reads; each is measured.
    :param all_peers: whether to include peers without a target.
    :param losses: the losses of the WAN; each is measured.
    :param first_bytes: the number of connections whose first byte is awaited, one a second.
    :param wan_rounds: the number of runs of bulk data over the WAN.
    :param wan_seconds: the duration of each.
    """

    rounds: int
    seconds: int
    trips: int
    idle: int
    held: float
    stalled: tuple[int, ...]
    all_peers: bool
    losses: tuple[str, ...]
    first_bytes: int
    wan_rounds: int
    wan_seconds: int

    def with_rounds(self, rounds: int) -> Profile:
        """Return the same profile with another number of runs."""
        return replace(self, rounds=rounds, wan_rounds=min(rounds, self.wan_rounds))


FULL = Profile(
    rounds=9,
    seconds=2,
    trips=5000,
    idle=5000,
    held=60.0,
    stalled=(300, 500),
    all_peers=True,
    losses=("0", "0.05%", "0.5%"),
    first_bytes=100,
    wan_rounds=3,
    wan_seconds=10,
)
QUICK = Profile(
    rounds=5,
    seconds=1,
    trips=2000,
    idle=1000,
    held=5.0,
    stalled=(300,),
    all_peers=False,
    losses=("0.05%",),
    first_bytes=10,
    wan_rounds=2,
    wan_seconds=5,
)

Tell = Callable[[str], None]


class Work(Protocol):
    """A workload."""

    @property
    def key(self) -> str:
        """Its name for --only."""
        ...

    @property
    def about(self) -> str:
        """A short description."""
        ...

    def programs(self, profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        ...

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result.

        :raises SkippedError: if this machine, or this user, cannot.
        """
        ...

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        ...
