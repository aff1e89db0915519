"""A finding: one line of the result of `scistream check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["OK", "WARN", "FAIL", "UNSEEN"]
"""UNSEEN: it could not be looked at, so that nothing is known."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    :ivar name: of the thing, the same in every version, such as ``kernel.receive-buffers``.
    :ivar why: what was seen, as a clause.
    :ivar remedy: what to do about it, a command to type where there is one; empty if nothing has to be done.
    """

    verdict: Verdict
    name: str
    why: str
    remedy: str = ""

    def line(self) -> str:
        """Return the finding as a line for a person."""
        return f"{self.verdict:<6}  {self.name}: {self.why}" + (f": {self.remedy}" if self.remedy else "")


def ok(name: str, why: str) -> Finding:
    """Return the finding that something is as it should be."""
    return Finding("OK", name, why)


def warn(name: str, why: str, remedy: str) -> Finding:
    """Return the finding that something costs speed or safety, or will fail later."""
    return Finding("WARN", name, why, remedy)


def fail(name: str, why: str, remedy: str) -> Finding:
    """Return the finding that something does not work."""
    return Finding("FAIL", name, why, remedy)


def unseen(name: str, what: str) -> Finding:
    """Return the finding that something could not be looked at."""
    return Finding("UNSEEN", name, f"not visible to this user: {what}")
