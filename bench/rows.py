"""The rows of the result: figures of ours beside a peer's, the ratio, and whether it reaches what it should.

Pure: no process, no file.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]
Pair = tuple[float, float]

TOLERANCE = 0.05
"""A row is met if it is within so much of what it should reach."""


@dataclass(frozen=True)
class Figure:
    """What is measured.

    :param name: for people, as "throughput".
    """

    name: str
    unit: str
    better: Better


THROUGHPUT = Figure("throughput", "Gbit/s", "higher")
CPU = Figure("CPU time", "s/GB", "lower")
P50 = Figure("round trip of 64 bytes, p50", "us", "lower")
P99 = Figure("round trip of 64 bytes, p99", "us", "lower")
CONNECTS = Figure("new connections", "1/s", "higher")
MEMORY = Figure("memory of an idle connection", "KiB", "lower")
KERNEL = Figure("kernel memory of a connection that nobody reads", "KiB", "lower")
SET_UP = Figure("set-up of a stream", "ms", "lower")


@dataclass(frozen=True)
class Row:
    """One line of the result.

    :param work: what was done, and which figure this is.
    :param peer: who ours is compared with; None where the figure itself is to reach something.
    :param ours: median of all runs; None if it could not be measured.
    :param ratio: ours / theirs, the median over pairs of runs made in turn; None without a peer.
    :param reach: the ratio, or without a peer the figure, that is to be reached; None for a row to look at only.
    :param met: None where there is nothing to reach.
    :param runs: how many runs, or pairs of runs, it comes from.
    """

    work: str
    peer: str | None
    ours: float | None
    theirs: float | None
    ratio: float | None
    reach: float | None
    met: bool | None
    runs: int
    unit: str
    better: Better

    def as_json(self) -> dict[str, Any]:
        """For results/latest.json."""
        return asdict(self)


def is_met(value: float, reach: float, better: Better) -> bool:
    """Whether a value is as good as it should be, within the tolerance."""
    return value >= reach * (1 - TOLERANCE) if better == "higher" else value <= reach * (1 + TOLERANCE)


def paired(path: str, figure: Figure, peer: str, pairs: Sequence[Pair], reach: float | None) -> Row:
    """Ours beside a peer.

    :param pairs: (ours, theirs) of runs made one after the other.
    """
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return Row(
        work=work_of(path, figure),
        peer=peer,
        ours=_rounded(statistics.median(ours for ours, _ in pairs)),
        theirs=_rounded(statistics.median(theirs for _, theirs in pairs)),
        ratio=round(ratio, 3),
        reach=reach,
        met=None if reach is None else is_met(ratio, reach, figure.better),
        runs=len(pairs),
        unit=figure.unit,
        better=figure.better,
    )


def absolute(path: str, figure: Figure, runs: Sequence[float], reach: float) -> Row:
    """A figure of ours that is to reach something by itself."""
    ours = statistics.median(runs)
    met = is_met(ours, reach, figure.better)
    return Row(
        work_of(path, figure), None, _rounded(ours), None, None, reach, met, len(runs), figure.unit, figure.better
    )


def failed(path: str, figure: Figure, peer: str | None, reach: float | None) -> Row:
    """What could not be measured: missed, if there is something to reach."""
    met = None if reach is None else False
    return Row(work_of(path, figure), peer, None, None, None, reach, met, 0, figure.unit, figure.better)


def work_of(path: str, figure: Figure) -> str:
    """What a row calls its work."""
    return f"{path}: {figure.name}" if path else figure.name


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
