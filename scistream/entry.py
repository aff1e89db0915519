"""Where the commands start. It imports nothing that takes time until an interrupt is taken care of."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import NoReturn


def s2uc() -> NoReturn:
    """Start the command `s2uc`."""
    _start("scistream.s2uc.cli")


def appctrl() -> NoReturn:
    """Start the command `appctrl`: first of all it hides the join string in its environment."""
    import_module("scistream.app.startup").prepare()
    _start("scistream.app.cli")


def scistream() -> NoReturn:
    """Start the command `scistream`."""
    _start("scistream.cli")


def _start(module: str) -> NoReturn:
    # While modules are imported there is nothing to clean up: an interrupt ends the process silently. An interrupt that
    # the caller ignores, as a shell does for its background, stays ignored. `Commands` takes over from here.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import_module(module).main()
    raise AssertionError("a command ends its process")
