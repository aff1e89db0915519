"""Let a forked gateway fork its elements instead of executing them.

A gateway has imported all that an element needs, and a test needs elements many times more often than it looks at how
one is executed. `fork_server` asks for this in the processes that it forks; elements that are executed are used where
gateways run in the process of the test, or are executed themselves.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from twisted.internet import process
from twisted.logger import LogBeginner, LogPublisher, globalLogPublisher

from scistream.s2ds.elements import worker

_START = ["-P", "-m", worker.__name__]
"""The arguments with which Python executes the module of an element; those of the element follow."""


def fork_elements() -> None:
    """Fork the elements that this process will start."""
    process.Process = _Process  # type: ignore[misc]


class _Process(process.Process):
    """A process that is forked if it is an element, and started as usual otherwise."""

    def _trySpawnInsteadOfFork(
        self, path: Any, uid: Any, gid: Any, executable: str, args: Sequence[str], environment: Any, kwargs: Any
    ) -> bool:
        if _is_element(args):
            return False
        return bool(super()._trySpawnInsteadOfFork(path, uid, gid, executable, args, environment, kwargs))

    def _execChild(self, path: Any, uid: Any, gid: Any, executable: str, args: Sequence[str], environment: Any) -> None:
        if _is_element(args):
            _become_element(args, environment)
        super()._execChild(path, uid, gid, executable, args, environment)


def _is_element(arguments: Sequence[str]) -> bool:
    return list(arguments[1 : 1 + len(_START)]) == _START


def _become_element(arguments: Sequence[str], environment: Mapping[str, str] | None) -> NoReturn:
    """Run an element in a process that was forked and has the element's descriptors; what the gateway had is left.

    The frames below this one keep all objects of the gateway alive, so that none closes a descriptor of the element.
    """
    gc.freeze()
    gc.enable()
    signal.set_wakeup_fd(-1)
    for ignored in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):  # as Python does at its start; Twisted undid it
        signal.signal(ignored, signal.SIG_IGN)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    LogPublisher.__init__(globalLogPublisher)
    worker.globalLogBeginner = LogBeginner(globalLogPublisher, sys.stderr, sys, warnings)  # type: ignore[attr-defined]
    del sys.modules["twisted.internet.reactor"]
    sys.argv = [worker.__file__, *arguments[1 + len(_START) :]]
    worker.main()
    os._exit(0)
