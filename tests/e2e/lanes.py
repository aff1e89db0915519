"""Run the tests of a file side by side, because most of their time is waiting for time limits of the protocol.

A test that is marked by `beside` is a job. It runs in one of a few threads, in a world of its own, or in one that
earlier jobs with the same wishes have left as they found it; what pytest calls in its place only waits for the result.
"""

from __future__ import annotations

import inspect
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import World

WIDTH = 5
LONGEST_JOB = 900.0
"""Seconds after which a job that runs is given up; what it waits for has shorter limits of its own."""
LONGEST_END = 120.0
"""Seconds that the worlds have to end once no job is left."""
_LOOK_AGAIN = 0.2


@dataclass(eq=False)
class Task:
    """A job and, later, its result."""

    job: Callable[[World], None]
    wishes: Mapping[str, Any]
    result: Future[None] = field(default_factory=Future)
    started: float | None = None
    """When a thread took it up, on the monotonic clock."""
    thread: threading.Thread | None = None


def beside(**wishes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a test run side by side with the others of its file, which needs a fixture `lanes`.

    The test takes `world` and the arguments of its parameters.

    :param wishes: how its world differs from the usual, as `World` takes it.
    """

    def decorate(job: Callable[..., None]) -> Callable[..., None]:
        def test(request: pytest.FixtureRequest, lanes: Lanes, **_: Any) -> None:
            lanes.wait_for(request.node.nodeid)

        names = ["request", "lanes", *list(inspect.signature(job).parameters)[1:]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        test.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        test.__name__, test.__doc__, test.__module__ = job.__name__, job.__doc__, job.__module__
        test.job, test.wishes = job, wishes  # type: ignore[attr-defined]
        return test

    return decorate


@contextmanager
def lanes_of(request: pytest.FixtureRequest, folder: Path) -> Iterator[Lanes]:
    """Start all jobs of a file that pytest is to run, in the order of the file."""
    tasks: dict[str, Task] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item.function, "job"):
            tasks[item.nodeid] = _task(item)
    with Lanes(folder, tasks) as lanes:
        yield lanes


def _task(item: pytest.Function) -> Task:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return Task(lambda world: item.function.job(world, **given), item.function.wishes)


class Lanes:
    """The threads. Use it as a context manager; at its end all worlds are left, and what they complain of is raised.

    :param folder: for all files.
    :param tasks: by the names of their tests; started in this order.
    """

    def __init__(self, folder: Path, tasks: Mapping[str, Task]) -> None:
        self._folder = folder
        self._tasks = tasks
        self._waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks.values():
            self._waiting.put(task)
        self._worlds = 0
        self._naming = threading.Lock()
        self._complaints: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(WIDTH, len(tasks)))]

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        deadline = time.monotonic() + LONGEST_END
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a world did not end within {LONGEST_END:g} s; it is here:\n{_where(thread)}"
        for complaint in self._complaints:
            raise complaint

    def wait_for(self, name: str) -> None:
        """Wait for the end of a test's job, and raise what it has raised.

        :raises AssertionError: if it runs for too long, or no thread is left to run it; it says where the job is.
        """
        task = self._tasks[name]
        while not task.result.done():
            with suppress(TimeoutError):
                return task.result.result(_LOOK_AGAIN)
            if task.started is None:
                is_lost = not any(thread.is_alive() for thread in self._threads) and not task.result.done()
                assert not is_lost, "the threads that run jobs have all ended before this one"
            else:
                assert time.monotonic() - task.started < LONGEST_JOB, (
                    f"the job runs for more than {LONGEST_JOB:g} s; it is here:\n{_where(task.thread)}"
                )
        return task.result.result(0)

    def new_folder(self) -> Path:
        """Make a folder for a world."""
        with self._naming:
            self._worlds += 1
            folder = self._folder / f"world-{self._worlds}"
        folder.mkdir()
        return folder

    def _run(self) -> None:
        lane = _Lane(self)
        while not self._is_over.is_set():
            try:
                task = self._waiting.get_nowait()
            except queue.Empty:
                break
            task.started, task.thread = time.monotonic(), threading.current_thread()
            try:
                task.job(lane.world(task.wishes))
            except BaseException as problem:
                task.result.set_exception(problem)  # first: whatever becomes of the world, the test has its result
                lane.give_up()
            else:
                task.result.set_result(None)
        try:
            lane.leave()
        except BaseException as problem:
            self._complaints.append(problem)


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
            world = World(self._lanes.new_folder(), **wishes)
            self._world = world.__enter__()
        return self._world

    def leave(self) -> None:
        """End the world that is there; it complains if something in it is not as it should be."""
        world, self._world = self._world, None
        if world is not None:
            world.__exit__(None, None, None)

    def give_up(self) -> None:
        """End the world in which something went wrong: what else is wrong in it does not matter."""
        with suppress(Exception):
            self.leave()


def _where(thread: threading.Thread | None) -> str:
    """Return the stack of a thread, as text."""
    frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
    return "".join(traceback.format_stack(frame)) if frame is not None else "(its thread has ended)"
