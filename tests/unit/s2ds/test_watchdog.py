"""An element that is late with an answer: busy, or dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from scistream import timing
from scistream.s2ds.elements.commands import ElementCommand, Ping
from scistream.s2ds.elements.process import CommandLink, processor_time
from support.waiting import until

DEADLINE = 20.0


@pytest.fixture
def busy() -> Iterator[int]:
    """Run a process that only computes."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield process.pid
        process.kill()


def work(pid: int) -> None:
    """Wait until it has used some time."""
    before = processor_time(pid)
    until(lambda: processor_time(pid) > before, lambda: f"process {pid} uses no time of any processor")


def asked(pid: int) -> tuple[Clock, list[tuple[ElementCommand, float]]]:
    """Somebody waits for an answer of that process."""
    clock = Clock()
    stuck: list[tuple[ElementCommand, float]] = []
    link = CommandLink(
        clock,
        0,
        partial(processor_time, pid),
        lambda *late: stuck.append(late),
        lambda _resets: None,
        lambda _request: None,
        lambda _paths: None,
    )
    link.makeConnection(StringTransport())
    link.ask(Ping(), timing.ELEMENT_ANSWER).addErrback(lambda _: None)
    return clock, stuck


def test_one_that_is_busy_has_more_time_and_not_for_ever(busy: int) -> None:
    clock, stuck = asked(busy)
    while clock.seconds() + timing.ELEMENT_ANSWER < timing.ELEMENT_BUSY:
        work(busy)
        clock.advance(timing.ELEMENT_ANSWER)
        assert stuck == []
    work(busy)
    clock.advance(timing.ELEMENT_ANSWER)
    assert stuck == [(Ping(), timing.ELEMENT_BUSY)]


def test_one_that_does_nothing_is_dead(busy: int) -> None:
    work(busy)
    os.kill(busy, signal.SIGSTOP)
    os.waitid(os.P_PID, busy, os.WSTOPPED | os.WNOWAIT)
    clock, stuck = asked(busy)
    clock.advance(timing.ELEMENT_ANSWER)
    assert stuck == [(Ping(), timing.ELEMENT_ANSWER)]


def test_one_that_is_gone_uses_no_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(DEADLINE)
    assert processor_time(process.pid) == 0.0
