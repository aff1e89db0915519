"""The rows of the result: our figure, a peer's figure, their ratio, and whether the target is met.

Computation only: no processes, no files.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]
Pair = tuple[float, float]

TOLERANCE = 0.05
"""A target counts as met within this fraction of it."""


@dataclass(frozen=True)
class Figure:
    """Something that is measured.

    :param name: its name in the table, such as "throughput".
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


def is_met(value: float, reach: float, better: Better) -> bool:
    """Return True if a value meets its target, within the tolerance."""
    return value >= reach * (1 - TOLERANCE) if better == "higher" else value <= reach * (1 + TOLERANCE)


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
        met=None if reach is None else is_met(ratio, reach, figure.better),
        runs=len(pairs),
        unit=figure.unit,
        better=figure.better,
    )


def absolute(path: str, figure: Figure, runs: Sequence[float], reach: float) -> Row:
    """Make a row with a target for our own figure."""
    ours = statistics.median(runs)
    met = is_met(ours, reach, figure.better)
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
