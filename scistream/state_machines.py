"""Build and trace state machines: the common part of the machines of all parties.

A machine is a flat table of transitions that Automat runs. This module also logs changes of state, words the answer to
a command in the wrong state, and keeps exceptions of effects away from machines. No I/O. No other module uses private
names of Automat.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from automat import TypeMachine, TypeMachineBuilder
from automat._typed import TypedDataState, TypedState

from scistream import timing
from scistream.protocol.errors import StreamError

if TYPE_CHECKING:
    from twisted.logger import Logger


class CoreWithState(Protocol):
    """The data that all states of a machine share, with the name of the current state, which only the machine sets."""

    state: str


Inputs = TypeVar("Inputs")
Core = TypeVar("Core", bound=CoreWithState)
Data = TypeVar("Data")
P = ParamSpec("P")
State: TypeAlias = TypedState[Inputs, Core] | TypedDataState[Inputs, Core, Any, ...]


class _Next(Enum):
    """Where a transition may lead besides another state."""

    SAME = "same"


SAME: Final = _Next.SAME
"""Used in place of the next state: the machine keeps its state and the state's data."""


@dataclass(frozen=True)
class Caller:
    """Who waits for an answer: a link, the `seq` of the command on it, and the command's name.

    :ivar link: the `scistream.links.link.Link` on which effects answer; machines do not use it.
    """

    link: Any
    seq: int
    cmd: str = ""


# -- the table


@dataclass(frozen=True)
class Transition(Generic[Inputs, Core]):
    """One row of a table of transitions, made by `on`."""

    states: tuple[State[Inputs, Core], ...]
    given: Callable[..., None]
    next: State[Inputs, Core] | _Next
    handler: Callable[..., None] | None


@overload
def on(
    states: State[Inputs, Core] | tuple[State[Inputs, Core], ...],
    given: Callable[Concatenate[Inputs, P], None],
    leads_to: State[Inputs, Core] | _Next,
    handler: Callable[Concatenate[Inputs, Core, P], None] | None = None,
) -> Transition[Inputs, Core]: ...
@overload
def on(
    states: TypedDataState[Inputs, Core, Data, ...],
    given: Callable[Concatenate[Inputs, P], None],
    leads_to: State[Inputs, Core] | _Next,
    handler: Callable[Concatenate[Inputs, Core, Data, P], None],
) -> Transition[Inputs, Core]: ...
def on(states: Any, given: Any, leads_to: Any, handler: Any = None) -> Transition[Any, Any]:
    """Make a row of a table: in any of `states`, the input `given` leads to the next state and calls `handler`.

    :param handler: gets the machine, its core, the data of the state that is left if it has a parameter for them, and
        the arguments of the input. It runs when the next state is entered, and may call inputs: they are postponed
        until it returns.
    """
    return Transition(states if isinstance(states, tuple) else (states,), given, leads_to, handler)


def build(
    builder: TypeMachineBuilder[Inputs, Core],
    states: Sequence[State[Inputs, Core]],
    table: Iterable[Transition[Inputs, Core]],
    *,
    ignore_elsewhere: Iterable[Callable[..., None]],
) -> TypeMachine[Inputs, Core]:
    """Build a machine from its table.

    :param ignore_elsewhere: the inputs that change nothing in the states for which they have no row. Every other input
        has a row for every state.
    :raises TypeError: if a handler does not fit its input, an input is missing in a state, or an input is in
        `ignore_elsewhere` although the table handles it in every state.
    """
    handled = set()
    for row in table:
        for state in row.states:
            handled.add((state, row.given))
            upon: Any = state.upon(row.given)
            registrar = upon.loop() if isinstance(row.next, _Next) else upon.to(row.next)
            registrar(_output(state, row))
    ignored, needed = set(ignore_elsewhere), set()
    for given in _inputs(builder.inputProtocol):
        for state in states:
            if (state, given) in handled:
                continue
            if given not in ignored:
                raise TypeError(f"the table does not say what {given.__name__} does in {state.name}")
            needed.add(given)
            state.upon(given).loop().returns(None)
    if needed != ignored:
        names = ", ".join(sorted(given.__name__ for given in ignored - needed))
        raise TypeError(f"{names}: to be ignored elsewhere, but the table has a row for every state")
    return builder.build()


@overload
def begin_in(
    machine: TypeMachine[Inputs, Core], core: Core, state: TypedState[Inputs, Core], data: None = None
) -> Inputs: ...
@overload
def begin_in(
    machine: TypeMachine[Inputs, Core], core: Core, state: TypedDataState[Inputs, Core, Data, ...], data: Data
) -> Inputs: ...
def begin_in(machine: Any, core: Any, state: Any, data: Any = None) -> Any:
    """Make a machine that begins in `state` instead of its first state, with the data of that state, if any."""
    core.state = state.name
    return machine(core, state) if data is None else machine(core, state, lambda *_: data)


def _inputs(protocol: Any) -> list[Callable[..., None]]:
    return [one for one in vars(protocol).values() if inspect.isfunction(one) and one.__module__ == protocol.__module__]


def _output(state: State[Inputs, Core], row: Transition[Inputs, Core]) -> Callable[..., None]:
    """Return what Automat calls for a transition.

    It writes the name of the state that is entered, forgets the data of the state that is left (Automat would keep
    them), and calls the handler.
    """
    entered = None if isinstance(row.next, _Next) else row.next.name
    has_data_next = isinstance(row.next, _Next | TypedDataState)
    has_data = isinstance(state, TypedDataState)
    wants_data = row.handler is not None and _takes_data(row.handler, row.given)
    if wants_data and not has_data:
        raise TypeError(f"{row.handler} wants the data of {state.name}, which has none")

    def output(machine: Any, core: Core, *args: object, **kwargs: object) -> None:
        if entered is not None:
            core.state = entered
        if has_data and not has_data_next:
            machine.__automat_data__ = None
        if row.handler is not None:
            row.handler(machine, core, *(args[1:] if has_data and not wants_data else args), **kwargs)

    return output


def _takes_data(handler: Callable[..., None], given: Callable[..., None]) -> bool:
    """Return True if a handler takes the data of a state before the arguments of its input."""
    arguments = list(inspect.signature(given).parameters)[1:]
    takes = list(inspect.signature(handler).parameters)[2:]
    if takes == arguments:
        return False
    if takes[1:] == arguments:
        return True
    raise TypeError(f"{handler} takes {takes} after the machine and its core, and {given.__name__} gives {arguments}")


# -- the state that a machine is in


def state_of(machine: Any) -> str:
    """Return the name of the state that a machine is in."""
    return str(machine.__automat_transitioner__._state.name)


def data_of(machine: Any, kind: type[Data]) -> Data | None:
    """Return the data of the state that a machine is in, if it has data of this kind."""
    data = machine.__automat_data__
    return data if isinstance(data, kind) else None


def wrong_state(uid: str, state: str, allowed: str, what: str) -> str:
    """Return the sentence that refuses a command which comes in the wrong state.

    :param state: the name of the state, and maybe why the stream is in it.
    :param allowed: the commands that it allows.
    :param what: the command that was given.
    """
    return f"stream {uid} is {state}; that allows {allowed}, not {what}"


# -- the log

_COMMANDS = {
    "req": "REQ",
    "req_listeners": "ReqListeners",
    "hello": "Hello",
    "hello_counts": "Hello",
    "prod_lstn": "ProdLstn",
    "update_targets": "UpdateTargets",
    "carry_out": "UpdateTargets",
    "start_conn": "StartConn",
    "rel": "REL",
}
"""Inputs of machines that are commands of the protocol, as the log calls them."""

MOST_SAME_CHANGES = 10
"""How often in a minute a machine's change from one state to another is logged."""


def trace(
    machine: Any,
    log: Logger,
    seconds: Callable[[], float] = time.monotonic,
    changed: Callable[[str, str], None] | None = None,
    **fields: Any,
) -> None:
    """Log the changes of state of a machine as events, for example ``state=listening``.

    A peer cannot fill the log: each change is logged a few times a minute, and the next logged event counts those that
    were left out.

    :param machine: a machine made by a TypeMachineBuilder's factory.
    :param seconds: returns the time.
    :param changed: called with the old and the new state at each change; the machine must not be used then.
    :param fields: fields of each event (`party`, `uid`, `role`).
    """
    shown = " ".join(f"{name}={{{name}}}" for name in fields)
    changes: Counter[tuple[str, str]] = Counter()
    began, hidden = seconds(), 0

    def traced(old: Any, given: str, new: Any) -> None:
        nonlocal began, hidden
        if old is new:
            return
        if changed is not None:
            changed(old.name, new.name)
        now = seconds()
        if now - began >= timing.TALLY:
            began = now
            changes.clear()
        changes[old.name, new.name] += 1
        if changes[old.name, new.name] > MOST_SAME_CHANGES:
            hidden += 1
            return
        more, hidden = f"; {hidden} earlier changes not shown" if hidden else "", 0
        log.info(
            shown + " state={state} (was {was}, after {given}){more}",
            state=new.name.lower(),
            was=old.name.lower(),
            given=_COMMANDS.get(given.lstrip("_"), given.strip("_").replace("_", " ")),
            more=more,
            **fields,
        )

    machine.__automat_transitioner__.setTrace(traced)


# -- the barrier

Effects = TypeVar("Effects")

OUR_FAULT = "it failed because of an internal error: see its log"


def guarded(effects: Effects, log: Logger, ends: Callable[[str, StreamError], None], uid: str) -> Effects:
    """Wrap effects so that they never raise.

    A machine has changed its state already when it calls an effect, so an exception would leave the stream in an
    undefined state. It is logged instead, and the stream ends.

    :param ends: called with the name of an effect that has raised, and the error with which to end the stream.
        Exceptions of `ends` itself are logged.
    """
    return cast(Effects, _Guarded(effects, log, ends, uid))


class _Guarded:
    """The effects of one stream. An effect that raises returns None."""

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
