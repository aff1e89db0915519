"""Shared code of tests of faults in a party: an unexpected exception, and what the party logs about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.logger import Logger


class PlantedError(Exception):
    """An unexpected exception, which no effect may raise."""


def logged_faults(patch: pytest.MonkeyPatch, party: type) -> list[Any]:
    """Return the list of what a class logs with a traceback from now on, which the log of other tests does not get."""
    events: list[Any] = []

    def note(event: Any) -> None:
        if "log_failure" in event:
            events.append(event)

    patch.setattr(party, "log", Logger(party.__module__, observer=note))
    return events


def break_method(
    patch: pytest.MonkeyPatch,
    party: type,
    name: str,
    *,
    first: bool,
    which: range | None = None,
    of: Callable[[Any], bool] = lambda _: True,
) -> list[str]:
    """Let calls of a method raise, before or after it has done its work; gives the list of its calls, which grows.

    :param first: whether it raises instead of its work.
    :param which: the numbers of the calls that raise; all, if not given.
    :param of: tells whose calls are counted.
    """
    real, calls = getattr(party, name), []

    def broken(one: Any, *args: Any) -> Any:
        if not of(one):
            return real(one, *args)
        calls.append(name)
        if which is not None and len(calls) - 1 not in which:
            return real(one, *args)
        if not first:
            real(one, *args)
        raise PlantedError(name)

    patch.setattr(party, name, broken)
    return calls
