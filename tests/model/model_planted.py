"""How planted faults are looked for."""

from __future__ import annotations

from model_explorer import Violation, explore
from model_faults import Bounds
from model_mutations import Mutation
from model_world import SCENARIOS


def harm_by_itself(mutation: Mutation) -> list[Violation]:
    """What is broken by a planted fault when nothing goes wrong."""
    return explore(SCENARIOS[mutation.scenario], Bounds(0, 0), workers=1, prepare=mutation.plant).violations


def search(mutation: Mutation, workers: int = 2) -> Violation | None:
    """The shortest of the runs found first in which a planted fault does harm."""
    counts = explore(
        SCENARIOS[mutation.scenario], mutation.bounds, workers=workers, prepare=mutation.plant, stop_early=True
    )
    return min(counts.violations, key=lambda violation: violation.length, default=None)
