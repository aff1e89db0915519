"""The entry points of the commands. Slow imports come after the handling of interrupts is set up."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import NoReturn


def s2uc() -> NoReturn:
    """Start the command `s2uc`."""
    _start("scistream.s2uc.cli")


def appctrl() -> NoReturn:
    """Start the command `appctrl`, after hiding the join string in its environment."""
    import_module("scistream.app.startup").prepare()
    _start("scistream.app.cli")


def scistream() -> NoReturn:
    """Start the command `scistream`."""
    _start("scistream.cli")


def _start(module: str) -> NoReturn:
    # There is nothing to clean up while modules are imported: an interrupt ends the process without a traceback. If
    # the caller ignores interrupts, as a shell does for background jobs, they stay ignored. `Commands` sets the
    # handler of the command itself.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import_module(module).main()
    raise AssertionError("a command ends its process")
