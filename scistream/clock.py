"""Time for timers."""

from __future__ import annotations

import time
from typing import Any


def run_on_monotonic_time(reactor: Any) -> None:
    """Let the timers of a reactor that has none yet follow the monotonic clock.

    A reactor's own `seconds` is wall time, which an operator or NTP may set back or forth.
    """
    reactor.seconds = time.monotonic
