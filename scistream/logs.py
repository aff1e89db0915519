"""Log lines as events with fields, and the names of states in them.

Every party logs through `twisted.logger`; `trace` writes each transition of a machine, for example
``state=listening``. Nothing secret may be a field of an event.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

IDLE_STATES = frozenset({"Ready", "Streaming", "Released", "Reserved", "Forwarding"})
"""Where a stream rests between operations: the log says ``(idle)`` behind these."""


def state_of(machine: Any) -> str:
    """The name of the state that an Automat machine is in."""
    return str(machine.__automat_transitioner__._state.name)


def trace(machine: Any, log: Logger, idle: frozenset[str] = IDLE_STATES, **fields: Any) -> None:
    """Log every change of state of an Automat machine as an event.

    :param machine: what a TypeMachineBuilder's factory made.
    :param fields: go into each event (`party`, `uid`, `role`).
    """
    shown = " ".join(f"{name}={{{name}}}" for name in fields)

    def traced(old: Any, given: str, new: Any) -> None:
        if old is not new:
            log.info(
                shown + " state={state}{idle} (was {was}, after {given})",
                state=new.name.lower(),
                idle=" (idle)" if new.name in idle else "",
                was=old.name.lower(),
                given=given.lstrip("_"),
                **fields,
            )

    machine.__automat_transitioner__.setTrace(traced)
