"""Runs the tests of a file beside each other: most of their time goes into waiting for time limits of the protocol.

A test of such a file only waits for the result of its job. The jobs run in a few threads, each in a world that is made
for it, or that earlier jobs with the same wishes have left as they found it.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import World

Job = Callable[[World], None]


@dataclass(eq=False)
class Task:
    """A job, the wishes for its world, and, in time, its result."""

    job: Job
    wishes: Mapping[str, Any]
    result: Future[None] = field(default_factory=Future)


class Lanes:
    """The threads. Use it as a context manager; at its end all worlds are left, and what they complain of is raised.

    :param folder: for all files.
    :param tasks: carried out in this order.
    """

    def __init__(self, folder: Path, tasks: Sequence[Task], width: int) -> None:
        self._folder = folder
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            self._tasks.put(task)
        self._worlds = 0
        self._naming = threading.Lock()
        self._complaints: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(min(width, len(tasks)))]

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for complaint in self._complaints:
            raise complaint

    def _run(self) -> None:
        lane = _Lane(self)
        while not self._stop.is_set():
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            try:
                task.job(lane.world(task.wishes))
            except BaseException as problem:
                lane.give_up()
                task.result.set_exception(problem)
            else:
                task.result.set_result(None)
        try:
            lane.leave()
        except BaseException as problem:
            self._complaints.append(problem)

    def new_folder(self) -> Path:
        """A folder for a world."""
        with self._naming:
            self._worlds += 1
            folder = self._folder / f"world-{self._worlds}"
        folder.mkdir()
        return folder


class _Lane:
    """The world of one thread."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._wishes = ""
        self._world: World | None = None

    def world(self, wishes: Mapping[str, Any]) -> World:
        """One of these wishes."""
        named = json.dumps(wishes)
        if self._world is None or self._wishes != named:
            self.leave()
            self._wishes = named
            self._world = World(self._lanes.new_folder(), **wishes)
            self._world.__enter__()
        return self._world

    def leave(self) -> None:
        """End the world that is there; it complains if something in it is not as it should be."""
        world, self._world = self._world, None
        if world is not None:
            world.__exit__(None, None, None)

    def give_up(self) -> None:
        """End the world in which something went wrong: what else is wrong in it does not matter."""
        try:
            self.leave()
        except AssertionError:
            return
