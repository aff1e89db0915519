"""A daemon that is told to stop while it starts ends with status 0, as it does later."""

from __future__ import annotations

import subprocess
import sys

import pytest

STOPPED_AT = """
import os, signal
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from scistream.twistd import _stop_at_signals
{when}
_stop_at_signals(reactor, lambda: succeed(None))
reactor.run()
print(reactor._exitSignal)
"""
"""twistd ends by the signal that the reactor has caught itself, if there is one."""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("phase", ["before", "during", "after"])
def test_a_signal_at_any_moment_of_the_start_ends_a_daemon_without_a_fault(phase: str, number: str) -> None:
    when = f"reactor.addSystemEventTrigger({phase!r}, 'startup', os.kill, os.getpid(), signal.{number})"
    script = STOPPED_AT.format(when=when)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60.0, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "None"), run


WAITING = """
import os, signal
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from scistream.twistd import _stop_at_signals
waits = Deferred()
def shut_down():
    print("shuts down", flush=True)
    reactor.callLater(0, {then})
    return waits
_stop_at_signals(reactor, shut_down)
reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGTERM)
reactor.addSystemEventTrigger("during", "shutdown", print, "stops")
reactor.run()
print(reactor._exitSignal)
"""


@pytest.mark.parametrize(
    "then",
    ["waits.callback, None", "os.kill, os.getpid(), signal.SIGTERM", "os.kill, os.getpid(), signal.SIGINT"],
    ids=["the service lets it", "a second SIGTERM", "SIGINT"],
)
def test_a_daemon_that_waits_for_its_streams_stops_when_they_have_ended_or_at_a_second_signal(then: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WAITING.format(then=then)], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert (run.returncode, run.stdout.split("\n")) == (0, ["shuts down", "stops", "None", ""]), run
