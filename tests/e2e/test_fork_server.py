"""Children of the tests: whoever waits for one learns of its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from support.fork_server import Child
from support.waiting import PATIENCE

THREADS = 4
ROUNDS = 300


@pytest.fixture
def quickly_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("quickly_switching")
def test_all_threads_that_wait_for_one_child_learn_of_its_end() -> None:
    for _ in range(ROUNDS):
        with subprocess.Popen(["sleep", "0.002"]) as process, contextlib.ExitStack() as opened:
            child = Child(process.pid, opened.enter_context(open(os.devnull)), process.wait)
            ends: list[int] = []
            threads = [
                threading.Thread(target=lambda child=child, ends=ends: ends.append(child.wait(PATIENCE)))
                for _ in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for end in [end for _ in range(3) for end in os.pipe()]:  # which may get the numbers of closed descriptors
                opened.callback(os.close, end)
            for thread in threads:
                thread.join(2 * PATIENCE)
            assert ends == [0] * THREADS
