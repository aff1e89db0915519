"""What keeps a fault in an effect from leaving a machine between two states.

A machine has moved on when it calls an effect, so nothing may be raised there. `guarded` stands between the two: what
an effect raises all the same is logged, and handed to a function that ends the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from twisted.logger import Logger

from scistream.wire.errors import StreamError

Effects = TypeVar("Effects")

OUR_FAULT = "it failed here, by a fault of its own: see its log"


def guarded(effects: Effects, log: Logger, ends: Callable[[str, StreamError], None], uid: str) -> Effects:
    """The same effects, none of which raises.

    :param ends: called with the name of an effect that has raised, and with the error to end the stream with; what
        it raises itself is logged.
    """
    return cast(Effects, _Guarded(effects, log, ends, uid))


class _Guarded:
    """Stands for the effects of one stream. An effect that raises gives None."""

    def __init__(self, effects: Any, log: Logger, ends: Callable[[str, StreamError], None], uid: str) -> None:
        self._effects = effects
        self._log = log
        self._ends = ends
        self._uid = uid
        self._known: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        effect = getattr(self._effects, name)
        if not callable(effect):
            return effect

        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return effect(*args, **kwargs)
            except Exception:
                self._tell(name)
            try:
                self._ends(name, StreamError("gateway-failed", OUR_FAULT))
            except Exception:
                self._tell(f"the end after {name}")
            return None

        return called

    def _tell(self, name: str) -> None:
        """Log a fault, once for each effect of a stream."""
        if name not in self._known:
            self._known.add(name)
            self._log.failure("uid={uid} {effect} failed, so the stream ends", uid=self._uid, effect=name)
