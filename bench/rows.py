"""The rows of the result: our figure, a peer's figure, their ratio, and whether the target is met.

Computation only: no processes, no files.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """Something that is measured.

    :param name: its name in the table, such as "throughput".
    :param tolerance: a target counts as met within this fraction of it.
    """

    name: str
    unit: str
    better: Better
    tolerance: float = 0.05


Sample = Mapping[Figure, float]
"""What one run over one path has measured."""


THROUGHPUT = Figure("throughput", "Gbit/s", "higher")
CPU = Figure("CPU time", "s/GB", "lower")
P50 = Figure("round trip of 64 bytes, p50", "us", "lower")
P99 = Figure("round trip of 64 bytes, p99", "us", "lower")
CPU_TRIP = Figure("CPU time of a round trip", "us", "lower")
CONNECTS = Figure("new connections", "1/s", "higher")
CPU_CONNECT = Figure("CPU time of a new connection", "ms", "lower")
FIRST_BYTE = Figure("first byte of a new connection", "ms", "lower", tolerance=0.0)
MEMORY = Figure("memory of an idle connection", "KiB", "lower")
KERNEL = Figure("kernel memory of a connection that nobody reads", "KiB", "lower")
OFF_RATE = Figure("deviation from the rate", "%", "lower")
BURST = Figure("most that comes at once beyond the rate", "ms of the rate", "lower", tolerance=0.1)
SET_UP = Figure("set-up of a stream", "ms", "lower")


@dataclass(frozen=True)
class Row:
    """One line of the result.

    :param work: the workload and the figure.
    :param peer: the program of comparison; None if the target is for our figure itself.
    :param ours: the median of all runs; None if it could not be measured.
    :param ratio: ours / theirs, the median over pairs of runs made in turn; None without a peer.
    :param reach: the target of the ratio, or without a peer of our figure; None if there is no target.
    :param met: whether the target is met; None without a target.
    :param runs: the number of runs, or of pairs of runs.
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
        """Return the row as stored in results/latest.json."""
        return asdict(self)


def is_met(value: float, reach: float, figure: Figure) -> bool:
    """Return True if a value of a figure meets its target, within its tolerance."""
    if figure.better == "higher":
        return value >= reach * (1 - figure.tolerance)
    return value <= reach * (1 + figure.tolerance)


def pairs_of(ours: Sequence[Sample], theirs: Sequence[Sample], figure: Figure) -> list[Pair]:
    """Return the pairs of a figure in runs made one after the other."""
    return [(one[figure], other[figure]) for one, other in zip(ours, theirs, strict=True)]


def paired(path: str, figure: Figure, peer: str, pairs: Sequence[Pair], reach: float | None) -> Row:
    """Make a row that compares us with a peer.

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
        met=None if reach is None else is_met(ratio, reach, figure),
        runs=len(pairs),
        unit=figure.unit,
        better=figure.better,
    )


def absolute(path: str, figure: Figure, runs: Sequence[float], reach: float) -> Row:
    """Make a row with a target for our own figure."""
    ours = statistics.median(runs)
    met = is_met(ours, reach, figure)
    return Row(
        work_of(path, figure), None, _rounded(ours), None, None, reach, met, len(runs), figure.unit, figure.better
    )


def failed(path: str, figure: Figure, peer: str | None, reach: float | None) -> Row:
    """Make a row for a figure that could not be measured; its target, if any, is missed."""
    met = None if reach is None else False
    return Row(work_of(path, figure), peer, None, None, None, reach, met, 0, figure.unit, figure.better)


def work_of(path: str, figure: Figure) -> str:
    """Return the name of a workload and figure in the table."""
    return f"{path}: {figure.name}" if path else figure.name


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
