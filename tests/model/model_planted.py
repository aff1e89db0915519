"""The search for planted faults."""

from __future__ import annotations

from model_explorer import Violation, explore
from model_faults import Bounds
from model_mutations import Mutation
from model_world import SCENARIOS


def harm_by_itself(mutation: Mutation) -> list[Violation]:
    """Return what a planted fault breaks when nothing goes wrong."""
    return explore(SCENARIOS[mutation.scenario], Bounds(0, 0), workers=1, prepare=mutation.plant).violations


def search(mutation: Mutation, workers: int = 2) -> list[Violation]:
    """Return the violations that are met until a planted fault breaks its promise, the shortest run first."""
    counts = explore(
        SCENARIOS[mutation.scenario],
        mutation.bounds,
        workers=workers,
        prepare=mutation.plant,
        stop_at=mutation.breaks,
    )
    return sorted(counts.violations, key=lambda violation: violation.length)
