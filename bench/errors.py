"""What goes wrong in a benchmark."""

from __future__ import annotations

from collections.abc import Sequence


class BenchError(Exception):
    """Something cannot be measured. The message is a sentence for the user.

    :param log: lines of logs with details.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = list(log)


class SkippedError(BenchError):
    """Something cannot be measured on this machine, or by this user. The message says why."""
