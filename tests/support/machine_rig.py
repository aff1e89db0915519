"""Test doubles for a machine: effects that record their calls, and callers of its commands."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from scistream.protocol.messages import Error, Resp, UpdateTargets
from scistream.state_machines import Caller, state_of

Calls = list[tuple[Any, ...]]
"""The calls of effects, in order: the name of each in words, and its arguments."""


class Recorder:
    """Effects that record their calls.

    :param effects: the protocol of the machine's effects; a call of any other method is an error.
    """

    def __init__(self, effects: type[Any]) -> None:
        self._effects = effects
        self.calls: Calls = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_") or not hasattr(self._effects, name):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name.replace("_", " "), *arguments))

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        assert message.seq == caller.seq
        self.calls.append(("answer", message))


class Rig:
    """One machine with its effects, and callers for its commands.

    :param written: the object to whose attribute `state` the machine writes its state, if there is one.
    """

    def __init__(self, machine: Any, effects: Any, written: Any = None) -> None:
        self.machine = machine
        self.effects = effects
        self._written = written
        self._seqs = itertools.count(1)
        self._seen = 0

    def caller(self) -> Caller:
        """Return a caller whose command has a number of its own."""
        return Caller(cast(Any, None), next(self._seqs))

    @property
    def state(self) -> str:
        """The state of the machine, after a check that the same state is written down."""
        name = state_of(self.machine)
        assert self._written is None or name == self._written.state, "another state is written down"
        return name

    def news(self) -> Calls:
        """Return the calls of effects since the last call of this method."""
        news, self._seen = self.effects.calls[self._seen :], len(self.effects.calls)
        return news


class CommandedRig(Rig, ABC):
    """A machine that takes UpdateTargets and REL. Each of these methods returns the number of its command."""

    @abstractmethod
    def command(self, *args: Any, **kwargs: Any) -> UpdateTargets:
        """Return an UpdateTargets for the current state of the stream."""

    def update(self, *args: Any, **kwargs: Any) -> int:
        caller = self.caller()
        self.machine.update_targets(caller, self.command(*args, **kwargs))
        return caller.seq

    def rel(self) -> int:
        caller = self.caller()
        self.machine.rel(caller)
        return caller.seq


@dataclass(frozen=True)
class Input:
    """An input of a machine in a rig, how to give it, and its name in the state table.

    :ivar name: the method of the machine.
    :ivar called: returns the name in the table for a state; "" if the input does nothing there.
    """

    name: str
    give: Callable[[Any], Any]
    called: Callable[[str], str]


def always(name: str) -> Callable[[str], str]:
    """Return a function that gives an input the same name in every state."""
    return lambda _state: name


def kinds(news: Calls) -> list[str]:
    """Return the names of the effects that were called."""
    return [call[0] for call in news]
