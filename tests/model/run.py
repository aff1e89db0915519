"""Explore the whole protocol within wide bounds, then check that planted faults are found.

Progress goes to standard error; the last line, on standard output, is one JSON object. The exit status is 1 if a
promise is broken, or if a planted fault does harm by itself or is not found by the promise that it breaks, and 2 if the
exploration could not be completed. About ten minutes on two cores; with `--wide`, which tries any two faults of the
network together, an hour more.

The bounds: in a life of a stream, any fault of the network, and any two of those that find most; any fault of a party;
any two messages that all others overtake and a party that crashes and comes back soon. In the other scenarios any fault
of the network, and any of a party. What a fault is, and where it is tried, is in model_faults.py; which states count as
one, in model_fingerprint.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from model_explorer import Counts, Seen, WorkerDiedError, explore, story
from model_faults import CRASH, NETWORK, SOON, Bounds
from model_mutations import MUTATIONS
from model_planted import harm_by_itself, search
from model_world import SCENARIOS

WIDEST = ("life", Bounds(2, 0, NETWORK))
BOUNDS: tuple[tuple[str, Bounds], ...] = (
    ("life", Bounds(1, 0, NETWORK)),
    ("life", Bounds(2, 0, frozenset({"lose", "last", "break"}))),
    ("life", Bounds(0, 1, CRASH)),
    ("life", Bounds(2, 1, frozenset({"last", "crash"}), (SOON,))),
    ("new targets", Bounds(1, 0, NETWORK)),
    ("new targets", Bounds(0, 1, CRASH)),
    ("user returns", Bounds(1, 0, NETWORK)),
    ("user returns", Bounds(0, 1, CRASH)),
    ("pool", Bounds(1, 0, NETWORK)),
    ("pool", Bounds(0, 1, CRASH)),
    ("producer dials", Bounds(1, 0, NETWORK)),
    ("producer dials", Bounds(0, 1, CRASH)),
)


def main(*, wide: bool) -> int:
    """Explore everything, and return the exit status."""
    try:
        return _main(wide=wide)
    except WorkerDiedError as died:
        _say(str(died))
        return 2


def _main(*, wide: bool) -> int:
    workers = max(1, min(2, os.cpu_count() or 1))
    began = time.monotonic()
    total = Counts()
    seen = {name: Seen(1 << 24, workers) for name in SCENARIOS}
    for name, bounds in (WIDEST, *BOUNDS) if wide else BOUNDS:
        total.add(explore(SCENARIOS[name], bounds, workers=workers, seen=seen[name], tell=_say))
    for violation in sorted(total.violations, key=lambda one: one.length)[:3]:
        _say(story(violation))
    found = [name for name in MUTATIONS if _is_found(name)]
    seconds = time.monotonic() - began
    _say(f"{total.states} states in {total.runs} runs, {seconds:.0f} s")
    result = {
        "states": total.states,
        "transitions": total.transitions,
        "depth": total.depth,
        "violations": len(total.violations),
        "planted": len(MUTATIONS),
        "found": len(found),
    }
    print(json.dumps(result))
    return 0 if not total.violations and len(found) == len(MUTATIONS) else 1


def _is_found(name: str) -> bool:
    mutation = MUTATIONS[name]
    harm = harm_by_itself(mutation)
    if harm:
        _say(f"planted: {name}: does harm although nothing goes wrong: {harm[0].what}")
        return False
    found = search(mutation)
    right = next((one.what for one in found if one.promise == mutation.breaks), None)
    wrong = next((one.what for one in found if not one.promise), None)
    if wrong is not None:
        _say(f"planted: {name}: found by no promise: {wrong}")
    else:
        _say(f"planted: {name}: " + (f"found: {right}" if right is not None else "NOT FOUND"))
    return right is not None and wrong is None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument(
        "--wide", action="store_true", help="try any two faults of the network together: an hour more"
    )
    sys.exit(main(wide=arguments.parse_args().wide))
