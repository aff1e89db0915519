"""The clock of this machine: whether something keeps it right, as the kernel says."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from scistream.check.findings import Finding, ok, unseen, warn

_TIMEX = struct.Struct("@I4x4qi4x")  # struct timex: modes, offset, freq, maxerror, esterror, status
_ROOM = 512
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC
_TOO_WRONG = 1.0
_REMEDY = "timedatectl set-ntp true, or install chrony (apt-get install chrony)"


@dataclass(frozen=True)
class ClockFacts:
    """The state of the clock of this machine, as the kernel reports it.

    :ivar is_synchronised: whether a program such as chronyd keeps it right.
    :ivar most_wrong: by how many seconds it may be wrong.
    """

    is_synchronised: bool
    most_wrong: float


def gather() -> ClockFacts | None:
    """Ask the kernel. Return None if it does not tell."""
    room = ctypes.create_string_buffer(_ROOM)  # no modes: the clock is only asked
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(room)
    except AttributeError:  # not Linux
        return None
    if state < 0:
        return None
    *_, most_wrong, _, status = _TIMEX.unpack_from(room)
    return ClockFacts(not status & _UNSYNCHRONISED, most_wrong / 1e6)


def findings(facts: ClockFacts | None) -> Iterator[Finding]:
    """Yield what is found about the clock."""
    name = "clock.synchronised"
    if facts is None:
        yield unseen(name, "whether the clock is synchronised (adjtimex)")
    elif not facts.is_synchronised:
        why = "nothing synchronises the clock, so that valid certificates may be refused as expired or not valid yet"
        yield warn(name, why, _REMEDY)
    elif facts.most_wrong > _TOO_WRONG:
        yield warn(name, f"the clock may be wrong by {facts.most_wrong:.1f} s", _REMEDY)
    else:
        yield ok(name, f"the clock is synchronised, and wrong by {facts.most_wrong * 1000:.3g} ms at most")
