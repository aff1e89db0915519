"""What the machine of a stream at an S2CS does at Extend. No I/O.

Extend changes the end of the stream and nothing else, so it is not a state of its own: other commands are handled while
the gateways are asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from scistream.protocol.messages import Extend
from scistream.s2cs.machine_core import STORE_FULL, Core, Stream
from scistream.state_machines import Caller


def ask_gateways(stream: Stream, core: Core, caller: Caller, command: Extend) -> None:
    """Ask all gateways of the stream to let it end at the new time."""
    core.effects.extend(caller, command.expires)


def refuse(stream: Stream, core: Core, caller: Caller, command: Extend) -> None:
    """Refuse Extend for a stream that is reserving or updating, or that is over."""
    core.refuse_wrong_state(caller, "Extend")


def extended(stream: Stream, core: Core, callers: Sequence[Caller], seconds: float) -> None:
    """Write the new end, which all gateways have accepted. If that fails, take it back."""
    record = core.record
    before = core.effects.set_life(record, seconds)
    if core.save():
        for caller in callers:
            core.answer_with_state(caller, f"the stream ends in {seconds:.0f} s")
        return
    core.effects.set_life(record, before)
    core.effects.take_back(before)
    for caller in callers:
        core.refuse(caller, "no-capacity", f"{STORE_FULL}, so the stream ends as before: tell its operator")


def extended_too_late(stream: Stream, core: Core, callers: Sequence[Caller], seconds: float) -> None:
    """Refuse Extend for a stream that has ended while its gateways were asked."""
    for caller in callers:
        core.refuse_wrong_state(caller, "Extend")
