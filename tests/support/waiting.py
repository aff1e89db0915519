"""Waits of tests: each has a limit and says what it waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0
"""Seconds after which something that should have happened has not."""
_LOOK_AGAIN = 0.02
_REST, _LONGEST_REST = 8.0, 0.5
"""How many times as long as a look the rest after it is, and the most seconds: what is waited for needs the processors.
"""


def until(condition: Callable[[], Any], what: Callable[[], object], seconds: float = PATIENCE) -> Any:
    """Block until `condition` gives something true, and return that.

    :raises AssertionError: with `what()`, if it takes more than this many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < deadline, what()
        time.sleep(min(max(_LOOK_AGAIN, _REST * (now - begun)), _LONGEST_REST))


async def until_in_reactor(
    reactor: Any, condition: Callable[[], Any], what: Callable[[], object], seconds: float = PATIENCE
) -> Any:
    """Do the same while the reactor runs on."""
    from twisted.internet.task import deferLater

    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        await deferLater(reactor, _LOOK_AGAIN / 4)
    return found
