"""Tests that run side by side each get their result, even if their worlds or threads fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lanes
import pytest
from lanes import Lanes, Task


class FakeWorld:
    """A world without processes.

    :param ends: what its end raises.
    """

    def __init__(self, _folder: Path, ends: str = "") -> None:
        self._ends = ends

    def __enter__(self) -> FakeWorld:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends:
            raise OSError(self._ends)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lanes]:
    monkeypatch.setattr(lanes, "World", FakeWorld)
    return lambda **tasks: Lanes(tmp_path, tasks)


def fails(_world: Any) -> None:
    raise ValueError("the job is wrong")


def test_a_job_whose_world_cannot_end_has_its_result_and_the_next_one_runs(run: Callable[..., Lanes]) -> None:
    tasks = {"broken": Task(fails, {"ends": "it will not end"}), "sound": Task(lambda _world: None, {})}
    with run(**tasks) as these:
        with pytest.raises(ValueError, match="the job is wrong"):
            these.wait_for("broken")
        these.wait_for("sound")


def test_a_job_that_hangs_is_given_up_and_the_place_is_named(
    run: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def waits_for_what_never_comes(_world: Any) -> None:
        over.wait(60)

    monkeypatch.setattr(lanes, "LONGEST_JOB", 0.3)
    with run(hangs=Task(waits_for_what_never_comes, {})) as these:
        with pytest.raises(AssertionError, match="waits_for_what_never_comes"):
            these.wait_for("hangs")
        over.set()


def test_a_job_that_no_thread_is_left_for_is_no_wait_without_end(run: Callable[..., Lanes]) -> None:
    these = run(lost=Task(lambda _world: None, {}))  # its threads are never started
    with pytest.raises(AssertionError, match="have all ended before this one"):
        these.wait_for("lost")
