"""What an S2CS counts for its metrics because nothing else keeps it."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from scistream.durations import Durations
from scistream.protocol.messages import CONS, PROD, Cause, Role

SETUP_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""The bounds of the histogram of setup times, in seconds: a stream may wait for hours for a batch job to start."""


CAUSES = frozenset(get_args(Cause))
"""The causes of resets that are counted apart; gateways of a later version may report others."""
OTHER_CAUSE = "other"
MOST_RESETS_COUNTED = 256
"""Reasons of resets of one stream that are counted, over all its gateways."""


class ServerCounts:
    """Counts since the S2CS was started."""

    def __init__(self) -> None:
        self.resets: Counter[tuple[str, Role]] = Counter()
        """Connections that were reset, as gateways have reported, by cause and side."""
        self.refusals: Counter[str] = Counter()
        """Errors with which commands were answered, by code."""
        self.handshakes: Counter[str] = Counter()
        """Control links that were not authenticated, by reason."""
        self.setup: dict[Role, Durations] = {PROD: Durations(SETUP_BOUNDS), CONS: Durations(SETUP_BOUNDS)}
        """Seconds from the request of a stream until it streamed for the first time, by side."""
