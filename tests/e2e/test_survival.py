"""Any party may crash, fall silent or never come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import many_processes, World
from lanes import Job, Lanes, Task
from lives import *

CELLS = []
for side in ("producer", "consumer"):
    for step, lives in (
        (BEFORE, True),
        (RESERVING, False),
        (LISTENING, True),
        (READY, True),
        (UPDATING, False),
        (STREAMING, True),
        (RELEASING, False),
    ):
        CELLS.append(Cell(f"{side} S2CS", step, RESTART, lives))
    for step, lives in (
        (BEFORE, False),
        (RESERVING, True),
        (LISTENING, False),
        (READY, False),
        (UPDATING, False),
        (STREAMING, False),
        (RELEASING, False),
    ):
        CELLS.append(Cell(f"{side} S2DS", step, RESTART, lives))
    for step in (LISTENING, READY, UPDATING, STREAMING, RELEASING):
        CELLS.append(Cell(f"{side} appctrl", step, RESTART, step != RELEASING))
for step in (RESERVING, LISTENING, READY, UPDATING):
    CELLS.append(Cell("S2UC", step, ATTACH, step != RESERVING))
    CELLS.append(Cell("S2UC", step, RELEASE, False))
    CELLS.append(Cell("S2UC", step, NEVER, False))
CELLS.append(Cell("S2UC", STREAMING, RELEASE, True))
CELLS.append(Cell("S2UC", RELEASING, RELEASE, False))
CELLS.append(Cell("S2UC", RELEASING, NEVER, False))

WIDTH = 4
_tasks: dict[str, Task] = {}


def a_life(cell: Cell, chance=None) -> Job:
    def job(world: World) -> None:
        import time

        t = time.monotonic()
        before = world.footprint()
        lived = Life(world, cell, chance).live()
        if chance is None:
            assert lived == cell.lives, f"{lived}"
        nothing_is_left(world, before)
        print(f"{cell} {time.monotonic() - t:.2f}")

    return job


@pytest.fixture(scope="module")
def lanes(request, tmp_path_factory, linux):
    for item in request.session.items:
        if item.module is request.module:
            cell = item.callspec.params["cell"]
            _tasks[item.name] = Task(a_life(cell), {"lab": POOL, "centre": POOL})
    with many_processes(), Lanes(tmp_path_factory.mktemp("lanes"), list(_tasks.values()), WIDTH):
        yield


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_kill(cell, lanes, request) -> None:
    _tasks[request.node.name].result.result(200)
