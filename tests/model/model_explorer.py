"""The explorer: every run of a scenario with a bounded number of faults, each run to its end.

A run is named by its faults and the steps at which they happen; between them things happen in the order of
`World.next`. A run is repeated from the beginning to get to its last fault, and goes on from there: in each state that
was not seen before all further faults are tried, as far as the bounds allow, and where it comes to a state that
another run has been in with as much left to go wrong, it need not go on. States are compared by their fingerprints.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_faults import CRASH, Bounds, Fault, do, fault_words, happen, inside, possible, words
from model_invariants import PROMISES, at_rest, at_the_end, in_every_state
from model_stand_ins import installed
from model_world import SCENARIOS, USER, Scenario, Stores, World, folder_for_stores, stores

Faults = tuple[tuple[int, Fault], ...]

MOST_STEPS = 4000
RUNS_BETWEEN_COLLECTIONS = 50
"""A worker collects garbage after so many runs: a collection takes as long as half a run."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Task:
    """A run that remains to be made.

    :param before: the fingerprint of the state in which its last fault happens.
    """

    path: Faults
    before: int | None = None


@dataclass(frozen=True)
class Violation:
    """Something that must not happen, and the run in which it does."""

    scenario: str
    path: Faults
    steps: int
    what: str

    @property
    def promise(self) -> str:
        """The letter of the promise that it breaks; "" if the code has failed in another way, as by an exception."""
        letter = self.what.partition(": ")[0]
        return letter if letter in PROMISES else ""

    @property
    def length(self) -> tuple[int, int]:
        """The shortest is the one with the fewest faults, then with the fewest steps."""
        return len(self.path), self.steps


@dataclass
class Counts:
    """How much was explored."""

    states: int = 0
    transitions: int = 0
    runs: int = 0
    depth: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Both together."""
        self.states += other.states
        self.transitions += other.transitions
        self.runs += other.runs
        self.depth = max(self.depth, other.depth)
        self.violations += other.violations


class Seen:
    """The states that runs have been in, shared by all workers: a hash table in shared memory.

    Two workers that add at the same moment may lose an entry; a state is then explored twice.
    """

    def __init__(self, slots: int = 1 << 24, workers: int = 2) -> None:
        self._slots = slots
        self._memory = mmap.mmap(-1, 8 * (2 * slots + workers))
        self._words = memoryview(self._memory).cast("Q")
        self._workers = workers

    def running(self, worker: int, run: int) -> None:
        """Note the run that a worker begins."""
        self._words[2 * self._slots + worker] = run

    def _in_progress_elsewhere(self, run: int, worker: int) -> bool:
        return any(self._words[2 * self._slots + other] == run for other in range(self._workers) if other != worker)

    def add(self, key: int, run: int) -> int:
        """Note that a run has been here; 0 if it is the first, otherwise the run that was."""
        words, slots = self._words, self._slots
        key = (key & _MASK) or 1
        at = key % slots
        for _ in range(slots // 2):
            there = words[2 * at]
            if there == 0:
                words[2 * at] = key
                words[2 * at + 1] = run
                return 0
            if there == key:
                return words[2 * at + 1]
            at = (at + 1) % slots
        raise MemoryError(f"there are more states than {slots} slots can hold")

    def find(self, key: int) -> int:
        """Return the run that has been here; 0 if none."""
        words, slots = self._words, self._slots
        key = (key & _MASK) or 1
        at = key % slots
        while (there := words[2 * at]) != 0:
            if there == key:
                return words[2 * at + 1]
            at = (at + 1) % slots
        return 0

    def settled(self, earlier: int, run: int, worker: int) -> bool:
        """Return True if `run` may rely on an earlier run through the same state, which must not rely on later runs."""
        return earlier < run or not self._in_progress_elsewhere(earlier, worker)


class Explorer:
    """Makes the runs of one scenario within bounds, in one process.

    :param seen: what was seen already, maybe by others too.
    :param worker: which of them this is.
    """

    def __init__(self, scenario: Scenario, bounds: Bounds, files: Stores, seen: Seen, worker: int = 0) -> None:
        self.scenario = scenario
        self.bounds = bounds
        self.counts = Counts()
        self._files = files
        self._seen = seen
        self._worker = worker
        self._salt = hash(bounds)

    def left(self, path: Faults) -> tuple[int, int]:
        """How much more may go wrong: faults of the network, and of parties."""
        crashes = sum(fault[0] in CRASH for _, fault in path)
        return self.bounds.network - (len(path) - crashes), self.bounds.crashes - crashes

    def run(self, task: Task, number: int) -> list[Task]:
        """Make one run to its end or to where another has been; gives the runs that branch off from it."""
        self._seen.running(self._worker, number)
        self.counts.runs += 1
        branches: list[Task] = []
        world = World(self.scenario, self._files, crashes=self.bounds.crashes > 0)
        faults = dict(task.path)
        last = task.path[-1][0] if task.path else -1
        left = self.left(task.path)
        own: set[int] = set()
        for step in range(MOST_STEPS):
            event = world.next()
            here = None
            if step == last and task.before is not None and world.painter.fingerprint() != task.before:
                raise RuntimeError(f"a run did not go as it went before: {task}")
            if step > last:
                here = world.painter.fingerprint()
                world.broken.extend(_needless(world, task.path))
                if here in own:
                    here = None
                elif self._was_here(here, left, number):
                    if not world.broken:
                        break
                else:
                    own.add(here)
                world.broken.extend(in_every_state(world))
                if event is None:
                    world.broken.extend(at_the_end(world))
                elif event[0] == "rest":
                    world.broken.extend(at_rest(world))
                if self._is_broken(world, task.path, step):
                    break
            if event is None:
                break
            if here is not None and left != (0, 0):
                for fault in possible(world, event, self.bounds):
                    if left[fault[0] in CRASH]:
                        branches.append(Task((*task.path, (step, fault)), here))
            fault = faults.get(step)
            if fault is not None:
                do(world, event, fault)
            else:
                happen(world, event)
                if here is not None and left[1]:
                    for fault in inside(world, event, self.bounds):
                        branches.append(Task((*task.path, (step, fault)), here))
            if step >= last:
                self.counts.transitions += 1
                if world.broken and self._is_broken(world, task.path, step):
                    break
        else:
            self._broken(f"it never ends: {MOST_STEPS} steps", task.path, MOST_STEPS)
        self.counts.depth = max(self.counts.depth, step)
        return branches

    def _was_here(self, state: int, left: tuple[int, int], number: int) -> bool:
        seen = self._seen
        if not seen.add(hash((state, "any")), number):
            self.counts.states += 1
        for network in range(left[0], self.bounds.network + 1):
            for crashes in range(left[1], self.bounds.crashes + 1):
                if (network, crashes) != left:
                    earlier = seen.find(hash((state, self._salt, network, crashes)))
                    if earlier and seen.settled(earlier, number, self._worker):
                        return True
        earlier = seen.add(hash((state, self._salt, *left)), number)
        return bool(earlier) and seen.settled(earlier, number, self._worker)

    def _is_broken(self, world: World, path: Faults, step: int) -> bool:
        for what in dict.fromkeys(world.broken):
            self._broken(what, path, step)
        return bool(world.broken)

    def _broken(self, what: str, path: Faults, step: int) -> None:
        self.counts.violations.append(Violation(self.scenario.name, path, step, what))


_HARMLESS = frozenset({"lose", "repeat", "again late", "last", "break", "break half"})


def _needless(world: World, path: Faults) -> Iterator[str]:
    """Say that a stream has ended for nothing.

    What is lost, repeated, overtaken or broken on the way ends no stream: there is always another try. Nor does a
    user's client end one if it goes when both sides have reserved, and comes back.

    Two things are another matter: an S2CS that has just lost its gateways takes no new stream, and a client cannot
    tell an old ProdLstn that comes late from a new one.
    """
    user = world.user
    error = user.core.error if user is not None else None
    if error is None or world.network.now > SOON_ENOUGH:
        return
    late = any(fault[0] == "again late" for _, fault in path)
    if "no gateway of this facility can be reached" in error.msg or (error.code == "target-refused" and late):
        return
    may_return = bool(world.joins) and not world.has_released
    if all(fault[0] in _HARMLESS or (fault[:2] == ("crash", USER) and may_return) for _, fault in path):
        yield f"A: the stream ended for nothing: {error}"


SOON_ENOUGH = 300.0
"""Before this time no stream's time is over."""


# -- in one process or in two


class WorkerDiedError(Exception):
    """A process that made runs is gone, so it is not known what its runs would have found."""


def explore(
    scenario: Scenario,
    bounds: Bounds,
    *,
    workers: int = 2,
    seen: Seen | None = None,
    stop_at: str | None = None,
    prepare: Callable[[], Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Explore a scenario.

    :param workers: processes that share the work.
    :param seen: what was seen of this scenario within other bounds: such states are not counted again.
    :param stop_at: stop where this promise is broken first, whatever else is; without it when all runs are made that
        have as many faults as the first in which anything is.
    :param prepare: called first, in each process, with everything installed: to plant a fault in the code.
    :param tell: gets a line from time to time.
    :raises WorkerDiedError: if a process is gone before its runs are made.
    """
    seen = seen or Seen(1 << 20, workers)
    total = Counts()
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    numbers = context.Value("q", -1)
    over = context.RawValue("b", 0)
    with (
        folder_for_stores() as folder,
        _pool(workers, context, (scenario, bounds, seen, numbers, over, folder, prepare)) as pool,
    ):
        level, faults = [Task(())], 0
        while level and not (total.violations if stop_at is None else _breaks(total, stop_at)):
            following: list[Task] = []
            size = max(1, min(100, len(level) // (8 * workers)))
            chunks = [(faults, first, level[first : first + size]) for first in range(0, len(level), size)]
            at_work = [pool.submit(_work, chunk) for chunk in chunks]
            for done, future in enumerate(as_completed(at_work), 1):
                try:
                    branches, counts = future.result(timeout=0)
                except BrokenProcessPool:
                    raise WorkerDiedError(
                        f"the exploration of '{scenario.name}' within {bounds} is not complete: one of its {workers} "
                        "processes was killed, maybe for want of memory (see the log of the kernel): run it again with "
                        "more memory or narrower bounds"
                    ) from None
                following += branches
                total.add(counts)
                for violation in counts.violations:
                    tell(f"VIOLATION after {len(violation.path)} faults and {violation.steps} steps: {violation.what}")
                if done % (len(chunks) // 10 + 1) == 0:
                    rate = total.states / (time.monotonic() - began)
                    tell(
                        f"{scenario.name}, {bounds}: {faults} faults, {done * size} of {len(level)} runs; "
                        f"{total.states} states, {total.transitions} transitions, {rate:.0f} states/s"
                    )
                if _breaks(total, stop_at):
                    over.value = True
                    break
            level, faults = following, faults + 1
    return total


@contextmanager
def _pool(workers: int, context: Any, begin: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, context, _begin, begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _breaks(counts: Counts, promise: str | None) -> bool:
    return any(violation.promise == promise for violation in counts.violations)


_explorer: Explorer
_over: Any
_kept = ExitStack()


def _begin(
    scenario: Scenario,
    bounds: Bounds,
    seen: Seen,
    numbers: Any,
    over: Any,
    folder: Path,
    prepare: Callable[[], Any] | None,
) -> None:
    """Start a worker. What it opens goes with its process.

    :param over: becomes true when no more runs are needed.
    """
    global _explorer, _over
    _over = over
    signal.set_wakeup_fd(-1)  # a reactor in the process that it was forked from has handlers of its own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with numbers.get_lock():
        numbers.value += 1
        worker = numbers.value
    _kept.enter_context(installed())
    if prepare is not None:
        prepare()
    mine = folder / str(worker)
    mine.mkdir()
    _explorer = Explorer(scenario, bounds, Stores(mine), seen, worker)
    gc.collect()
    gc.freeze()
    gc.disable()


def _work(chunk: tuple[int, int, list[Task]]) -> tuple[list[Task], Counts]:
    depth, first, tasks = chunk
    explorer = _explorer
    explorer.counts = Counts()
    branches: list[Task] = []
    for index, task in enumerate(tasks):
        if _over.value:
            break
        number = (depth << 56) | ((first + index + 1) << 24)
        for count, branch in enumerate(_run(task, number)):
            if depth and explorer.left(branch.path) == (0, 0):
                _run(branch, number + count + 1)
            else:
                branches.append(branch)
    return branches, explorer.counts


def _run(task: Task, number: int) -> list[Task]:
    if _explorer.counts.runs % RUNS_BETWEEN_COLLECTIONS == 0:
        gc.collect()
    return _explorer.run(task, number)


# -- in words


def story(violation: Violation, prepare: Callable[[], Any] | None = None) -> str:
    """Return the trace of a violation for a person: each step, each fault, and the states that machines entered."""
    lines = [f"In the scenario '{violation.scenario}', {len(violation.path)} fault(s), {violation.steps} steps:"]
    with installed(), stores() as files:
        if prepare is not None:
            prepare()
        world = World(SCENARIOS[violation.scenario], files, crashes=True)
        faults = dict(violation.path)
        for step in range(violation.steps + 1):
            event = world.next()
            if event is None:
                break
            fault = faults.get(step)
            told = f"FAULT: {fault_words(world, event, fault)}" if fault is not None else words(world, event)
            world.news.clear()
            if fault is not None:
                do(world, event, fault)
            else:
                happen(world, event)
            entered = f"   [{'; '.join(world.news)}]" if world.news else ""
            lines.append(f"{step:5d}  {world.network.now:7.2f} s  {told}{entered}")
    lines.append(f"       VIOLATION: {violation.what}")
    return os.linesep.join(lines)
