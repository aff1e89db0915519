"""The faults of the model: which exist, where they are tried, and how they are made.

A fault is a tuple: its kind, then what it needs. It is tried where the event that would come next has something to
do with it: damage to anything else would have the same effect before or after that event, and is tried there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model_fingerprint import decoded
from model_invariants import essence, may_change, unchanged_by
from model_network import LONG, QUIET, Item, Process
from model_stand_ins import Now
from model_world import USER, World, connections_of

Fault = tuple[Any, ...]

LATE = 45.0
"""Seconds that a late message takes, or a party that comes back late: longer than any patience."""
SOON = 1.0
"""Seconds after which a party comes back soon."""

NETWORK = frozenset({"lose", "repeat", "again late", "last", "late", "break", "break half", "early", "release"})
"""The kinds of faults of the network, and surprises by clocks and people."""
CRASH = frozenset({"crash", "crash inside", "silence"})
"""The kinds of faults of parties."""


@dataclass(frozen=True)
class Bounds:
    """How much may go wrong in one run.

    :param network: at most so many faults of `NETWORK`.
    :param crashes: and so many of `CRASH`.
    :param kinds: only faults of these kinds.
    :param comebacks: after how many seconds a party comes back (None: never).
    """

    network: int
    crashes: int
    kinds: frozenset[str] = NETWORK | CRASH
    comebacks: tuple[float | None, ...] = (SOON, LATE, None)

    def __str__(self) -> str:
        """As a person would write it."""
        kinds = "any" if self.kinds == NETWORK | CRASH else ", ".join(sorted(self.kinds))
        return f"{self.network} network + {self.crashes} crash ({kinds})"


def possible(world: World, event: Any, bounds: Bounds) -> Iterator[Fault]:
    """Yield the faults to try in place of, or right before, the event that would come next."""
    kinds = bounds.kinds
    for fault in (*_to_message(world, event), *_to_links(world, event), *_surprises(world, event)):
        if fault[0] in kinds:
            yield fault
    for party in _parties(world, event):
        if "crash" in kinds:
            yield from (("crash", party, comeback) for comeback in bounds.comebacks)
        if "silence" in kinds and party not in ("ProdApp", "ConsApp"):
            yield ("silence", party)


def _to_message(world: World, event: Any) -> Iterator[Fault]:
    if event[0] != "deliver":
        return
    item: Item = event[1]
    if item.kind == "line":
        yield ("lose",)
        if not item.repeated:
            yield ("repeat",)
            yield ("again late",)
    if item.kind == "dial":
        yield ("lose",)
    if item.kind in ("line", "dial", "lookup") and item.hold is None and not item.repeated:
        if len(world.network.flight) > 1:
            yield ("last",)
        if item.kind != "dial":
            yield ("late",)


def _to_links(world: World, event: Any) -> Iterator[Fault]:
    if event[0] == "deliver" and event[1].kind == "line":
        mine = event[1].end.connection
        if mine.is_open:
            yield ("break half", world.network.connections.index(mine))
        touched = connections_of(world, event[1].process)
    elif event[0] == "rest":
        touched = world.network.connections
    else:
        return
    for connection in touched:
        if connection.client.open:
            yield ("break", world.network.connections.index(connection))


def _surprises(world: World, event: Any) -> Iterator[Fault]:
    """Yield the faults in which a timer of the receiver goes off first, or the user releases at an odd moment."""
    process = world.target(event)
    if event[0] == "deliver" and process is not None:
        for index, timer in enumerate(world.network.timers):
            if timer.process is process and (timer.kind is LONG or timer.label == "_give_up"):
                yield ("early", index)
        user = world.user
        if user is not None and process is user.process and user.core.state not in ("Releasing", "Released"):
            yield ("release",)


def _parties(world: World, event: Any) -> list[str]:
    if event[0] == "deliver":
        item = event[1]
        concerned = [item.process, item.sender]
    elif event[0] == "fire":
        concerned = [event[1].process if event[1].label not in ("_polled", "_reconnect") else None]
    elif event[0] == "rest":
        concerned = list(world.processes.values())
    else:
        concerned = []
    found: list[str] = []
    for process in concerned:
        if process is not None and process.alive and not process.silent and process.party not in found:
            found.append(process.party)
    return found


def inside(world: World, event: Any, bounds: Bounds) -> Iterator[Fault]:
    """Crashes of an S2CS or the user's client in the middle of the event that came last, between two of its effects."""
    process = world.target(event)
    if "crash inside" in bounds.kinds and process is not None and process.party in (USER, *world.controls):
        for done in range(1, process.effects):
            yield ("crash inside", process.party, done, SOON)


# -- how they are done


def do(world: World, event: Any, fault: Fault) -> None:
    """Let a fault happen where `event` would have come next."""
    world.at_rest = False
    process = world.target(event)
    if process is not None:
        process.effects = 0
        Now.process = process
    try:
        _do(world, event, fault)
    except Exception:
        world.not_handled()


def _do(world: World, event: Any, fault: Fault) -> None:
    network, kind = world.network, fault[0]
    if kind == "lose":
        network.lose(event[1])
    elif kind == "repeat":
        repeat(world, event[1])
    elif kind == "again late":
        copy = event[1].copy()
        copy.hold = network.now + LATE
        network.flight.append(copy)
        network.deliver(event[1])
    elif kind in ("last", "late"):
        event[1].hold = QUIET if kind == "last" else network.now + LATE
    elif kind == "break":
        network.break_(network.connections[fault[1]])
    elif kind == "break half":
        network.break_half(network.connections[fault[1]])
    elif kind == "early":
        network.fire(network.timers[fault[1]])
    elif kind == "release":
        world.act("release")
    else:
        _do_to_party(world, event, fault)


def repeat(world: World, item: Item) -> None:
    """Deliver a line twice."""
    network = world.network
    copy = item.copy()
    network.flight.append(copy)
    network.deliver(item)
    if copy in network.flight:
        happen(world, ("deliver", copy))


def happen(world: World, event: Any) -> None:
    """Let come what comes next. A line that was delivered before must change nothing."""
    if event[0] != "deliver" or not event[1].repeated:
        world.do(event)
        return
    expected = may_change(world, event[1].data)
    before = essence(world)
    world.do(event)
    if not expected:
        world.broken.extend(unchanged_by(world, event[1].data, before))


def _do_to_party(world: World, event: Any, fault: Fault) -> None:
    kind, party = fault[0], fault[1]
    if kind == "crash":
        world.kill(party, fault[2], flush=False)
    elif kind == "crash inside":
        process: Process = world.processes[party]
        process.dies_after = fault[2]
        world.do(event)
        world.kill(party, fault[3], flush=True)
    else:
        world.network.silence(world.processes[party])


# -- in words


def words(world: World, event: Any) -> str:
    """Return what comes next, in words for a person."""
    kind = event[0]
    if kind == "deliver":
        return _item_words(event[1])
    if kind == "fire":
        return _timer_words(event[1])
    if kind == "act":
        return {
            "ask": "the user asks for a stream",
            "consumer": "ConsApp starts",
            "producer": "ProdApp starts",
            "other producer": "another ProdApp starts, which listens elsewhere",
            "leave": "the user's client goes away",
            "return": "the user's client comes back and attaches",
            "release": "the user releases the stream",
        }[event[1]]
    return {
        "lift": "time passes",
        "close": "the user's client ends",
        "rest": "everything is at rest",
        "skip": "what the people had left to do makes no sense any more",
    }[kind]


def _item_words(item: Item) -> str:
    to = item.process.party if item.process is not None else "a closed port"
    sender = item.sender.party if item.sender is not None else "the network"
    if item.kind == "dial":
        return f"{sender} connects to {to}"
    if item.kind == "lookup":
        return f"{to} learns the address of a name"
    if item.kind != "line":
        return f"{to} loses a link: {item.text}"
    again = ", once more" if item.repeated else ""
    return f"{message_words(item.data)} from {sender} reaches {to}{again}"


def message_words(data: bytes) -> str:
    """Return a line, in words for a person."""
    message = decoded(data)
    details = [getattr(message, name, None) for name in ("role", "state", "code", "generation")]
    shown = ", ".join(str(detail) for detail in details if detail)
    name = str(message.__struct_config__.tag)
    return f"{name} ({shown})" if shown else name


_TIMERS = {
    "_polled": "looks after its link",
    "_send": "repeats a command",
    "_give_up": "gives a command up",
    "_reconnect": "connects again",
    "expired": "sees the stream's time over",
    "hello_timeout": "sees the time for a Hello over",
    "_hung": "gives up connecting",
}


def _timer_words(timer: Any) -> str:
    if timer.process is None:
        return f"{timer.args[0]} comes back"
    return f"{timer.process.party} {_TIMERS.get(timer.label, 'waits no longer')}"


def fault_words(world: World, event: Any, fault: Fault) -> str:
    """Return a fault, in words for a person."""
    kind = fault[0]
    if kind in ("lose", "repeat", "again late", "last", "late"):
        what = message_words(event[1].data) if event[1].kind == "line" else "an attempt to connect"
        if event[1].kind == "lookup":
            what = "the answer to a look-up"
        to = event[1].process.party if event[1].process is not None else "a closed port"
        return {
            "lose": f"{what} to {to} is lost",
            "repeat": f"{what} reaches {to} twice",
            "again late": f"{what} reaches {to}, and will once more, {LATE:g} s later",
            "last": f"{what} to {to} is overtaken by all that is on its way",
            "late": f"{what} to {to} is held up for {LATE:g} s",
        }[kind]
    if kind in ("break", "break half"):
        connection = world.network.connections[fault[1]]
        ends = f"{connection.client.process.party} and {connection.server.process.party}"
        return f"the link between {ends} breaks" + (", and the latter is not told yet" if kind == "break half" else "")
    if kind == "early":
        return f"before that, {_timer_words(world.network.timers[fault[1]])}"
    if kind == "release":
        return "the user releases the stream"
    if kind == "silence":
        return f"{fault[1]} falls silent for good"
    comeback = fault[-1]
    back = f"is back {comeback:g} s later" if comeback is not None else "never comes back"
    if kind == "crash":
        return f"{fault[1]} crashes and {back}"
    return f"{words(world, event)}; {fault[1]} crashes after effect {fault[2]} of that and {back}"


__all__ = [
    "CRASH",
    "LATE",
    "NETWORK",
    "SOON",
    "USER",
    "Bounds",
    "Fault",
    "do",
    "fault_words",
    "happen",
    "inside",
    "possible",
]
