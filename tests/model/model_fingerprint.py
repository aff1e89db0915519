"""A number that is equal for two equivalent states of the model.

What matters of records, machines and messages is derived from their types: see model_reading.py. What does not matter:
how long ago anything was, how long recurring timers have still to run, how often something was tried, the numbers of
links and of the commands on them, sentences for people. Remaining times of other timers are compared coarsely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from model_network import FINITE, QUIET, Connection, Item
from model_reading import callers_in, read

from scistream.protocol.codec import decode
from scistream.protocol.messages import Hello, Rel, Req, ReqListeners, StartConn, Status, UpdateTargets
from scistream.state_machines import data_of, state_of

if TYPE_CHECKING:
    from model_world import World

_COARSE = (2.5, 12.0, 25.0, 60.0)


def coarse(seconds: float) -> int:
    """Return the class of a remaining time."""
    return sum(seconds > limit for limit in _COARSE)


def essence(world: World) -> list[tuple[str, Any]]:
    """Return records, states, and what gateways hold: neither a repetition nor time alone may change these."""
    found: list[tuple[str, Any]] = []
    for name, control in world.controls.items():
        for held in control.streams.values():
            record = msgspec.structs.replace(held.record, events=[], events_dropped=0)
            found.append((f"the record at {name}", msgspec.json.encode(record)))
            found.append((f"the state at {name}", state_of(held.machine)))
    for name, server in world.gateways.items():
        found.append((f"what {name} has promised", (len(server.ports._given), server.capacity._reserved)))
        for holding in server._streams.values():
            core = holding._core
            found.append((f"the state at {name}", (state_of(holding.machine), core.generation, core.current)))
    for name, controller in world.applications.items():
        found.append((f"the state of {name}", state_of(controller.machine)))
    if world.user is not None:
        found.append(("the state of the user's client", (world.user.core.state, world.user.core.generation)))
    return found


class Painter:
    """Gives the fingerprints of one world; what it knows of parties that nothing has happened to, it keeps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, int] = {}
        self._links: dict[int, Any] = {}
        self._connections: list[tuple[Any, Connection]] = []
        self._now = -1.0

    def fingerprint(self) -> int:
        """Return the number of the state that the world is in."""
        world, network = self._world, self._world.network
        if network.rewired:
            network.rewired = False
            self._name_links()
            self._known.clear()
        if network.now != self._now:
            self._now = network.now
            self._known.clear()
        for party in network.touched:
            self._known.pop(party, None)
        network.touched.clear()
        return hash(
            (
                tuple([self._party(party, process) for party, process in world.processes.items()]),
                self._callers(),
                tuple(
                    [(key, _end(one.client), _end(one.server)) for key, one in self._connections],
                ),
                tuple([self._item(one) for one in network.flight]),
                self._timers(),
                len(world.script),
                world.at_rest,
                bool(world.joins),
            )
        )

    def _name_links(self) -> None:
        """Name each link by its ends, and by its place among those that have the same."""
        found: list[tuple[Any, Connection]] = []
        seen: dict[Any, int] = {}
        for one in self._world.network.connections:
            ends = one.client.process.party, one.server.process.party
            seen[ends] = seen.get(ends, -1) + 1
            found.append(((*ends, seen[ends]), one))
        found.sort(key=lambda named: named[0])
        self._connections = found
        self._links = {}
        for key, one in found:
            self._links[id(one.client.link)] = self._links[id(one.server.link)] = key

    def _party(self, party: str, process: Any) -> int:
        known = self._known.get(party)
        if known is None:
            world = self._world
            if party in world.gateways:
                what = self._gateway(world.gateways[party])
            elif party in world.controls:
                what = self._control(world.controls[party])
            elif party in world.applications:
                what = self._application(world.applications[party])
            elif world.user is not None and process is world.user.process:
                what = self._user(world.user)
            else:
                what = ()
            known = self._known[party] = hash((party, process.alive, process.silent, what))
        return known

    # -- parties

    def _gateway(self, server: Any) -> tuple[Any, ...]:
        return (
            server.boot,
            tuple([(key, self._holding(one)) for key, one in server._streams.items()]),
            len(server.ports._given),
            server.capacity._reserved,
            tuple(server.elements.streams),
        )

    def _holding(self, one: Any) -> tuple[Any, ...]:
        core = one._core
        element = one._server.elements.streams.get((core.uid, core.role), {})
        return (
            *_machine(one.machine, core),
            _listening(one._listeners),
            _listening(one._for_wan),
            tuple([arming and (arming.target, arming.gateway, arming.context) for arming in element.values()]),
            one._rate,
            one._timer is not None and one._timer.active(),
            one.released_at is None,
            one._secret and one._secret.csr,
            tuple(sorted(one.own_targets)),
        )

    def _control(self, server: Any) -> tuple[Any, ...]:
        return (
            tuple([(key, self._held(one)) for key, one in server.streams.items()]),
            tuple([(self._dialer(one.dialer), one.settled, one.room is None) for one in server.gateways.values()]),
            tuple(server.store.written.items()),
            tuple(server.unwritten),
            len(server._early),
        )

    def _held(self, one: Any) -> tuple[Any, ...]:
        links = self._links
        return (
            *_machine(one.machine, one.core),
            links.get(id(one.app_link)),
            self._outbox(one.app_outbox),
            tuple(sorted([links.get(id(link), ()) for link in one._owner_links])),
            tuple(
                [timer.label for timer in (*one._timers, one._release_retry) if timer is not None and timer.active()]
            ),
        )

    def _user(self, user: Any) -> tuple[Any, ...]:
        core, effects = user.core, user.stream._effects
        return (
            user.attaching,
            user.closed,
            *_machine(effects.machine, core),
            effects._follows,
            tuple([self._dialer(server.dialer) for server in user.client._servers.values()]),
        )

    def _application(self, one: Any) -> tuple[Any, ...]:
        return (
            *_machine(one.machine, one._core),
            one._hello_answered,
            one._hello and one._hello.called,
            one._finished.called,
            tuple(one._listeners),
            self._dialer(one._dialer),
        )

    # -- what parties are made of

    def _dialer(self, one: Any) -> tuple[Any, ...]:
        return one.running, self._links.get(id(one.link)), self._outbox(one.outbox)

    def _outbox(self, one: Any) -> tuple[Any, ...]:
        now = self._now
        return tuple(
            [
                (
                    read(waiting.command),
                    waiting.give_up and waiting.give_up.kind is FINITE and coarse(waiting.give_up.when - now),
                    bool(waiting.sent_as),
                    _expected(waiting),
                )
                for waiting in one._waiting
            ]
        )

    def _callers(self) -> tuple[Any, ...]:
        """Who waits for an answer, by the command that waits there, which may be answered or given up by now."""
        world = self._world
        found = []
        for party, control in world.controls.items():
            for held in control.streams.values():
                found += [(party, *self._caller(caller)) for caller in callers_in(data_of(held.machine, object))]
        for party, gateway in world.gateways.items():
            for holding in gateway._streams.values():
                found += [(party, *self._caller(caller)) for caller in callers_in(data_of(holding.machine, object))]
        return tuple(found)

    def _caller(self, caller: Any) -> tuple[Any, ...]:
        key = self._links.get(id(caller.link)) if caller.link.is_up else None
        if key is None:
            return ("nobody",)
        client = next(one.client for known, one in self._connections if known == key)
        return key, _place(_outbox_of(client.link), caller.seq)

    # -- the network

    def _item(self, one: Item) -> tuple[Any, ...]:
        hold = one.hold if one.hold is None or one.hold is QUIET else coarse(one.hold - self._now)
        if one.kind != "line":
            where = one.end and self._links.get(id(one.end.link))
            return one.kind, where, one.sender and one.sender.party, one.process and one.process.party, hold, one.text
        end = one.end
        assert end is not None
        message = decoded(one.data)
        place = _place(
            _outbox_of(end.other.link if isinstance(message, _COMMANDS) else end.link), getattr(message, "seq", None)
        )
        return self._links.get(id(end.link)), end is end.connection.client, hold, place, read(message)

    def _timers(self) -> tuple[Any, ...]:
        now = self._now
        finite, others = [], []
        for timer in self._world.network.timers:
            party = timer.process.party if timer.process is not None else timer.args[0]
            if timer.kind is FINITE:
                finite.append((party, timer.label, coarse(timer.when - now)))
            else:
                others.append((party, timer.label))
        others.sort()
        return tuple(finite), tuple(others)


def _machine(machine: Any, core: Any) -> tuple[Any, ...]:
    """Return what matters of a machine: its state, what its states share, and the data of the state."""
    return state_of(machine), read(core), read(data_of(machine, object))


def _listening(listeners: Any) -> tuple[Any, ...]:
    return tuple([(channel, one._sock.listens) for channel, one in listeners.by_channel.items()])


def _end(end: Any) -> tuple[Any, ...]:
    return end.open, end.closing, end.link.is_up, end.link._bad_lines


_COMMANDS = (Req, ReqListeners, Hello, UpdateTargets, StartConn, Status, Rel)


def _outbox_of(link: Any) -> Any:
    """Where the commands of this end of a link wait for their answers; None if they do no more."""
    owner = link.owner
    outbox = getattr(owner, "outbox", None)
    if outbox is not None:
        return outbox if owner.link is link else None
    for held in getattr(owner, "streams", {}).values():
        if held.app_link is link:
            return held.app_outbox
    return None


def _place(outbox: Any, seq: int | None) -> int | None:
    """Which waiting command has this number; -1 if none."""
    if seq is None:
        return None
    if outbox is not None:
        for index, waiting in enumerate(outbox._waiting):
            if seq in waiting.sent_as:
                return index
    return -1


def _expected(waiting: Any) -> Any:
    """Return what an S2CS will compare the answer to a Status with, which it keeps nowhere else."""
    if type(waiting.command) is not Status or not waiting.result._callbacks:
        return None
    arguments = waiting.result._callbacks[0][0][1]
    return tuple(sorted(arguments[0])) if arguments and isinstance(arguments[0], set) else None


_lines: dict[bytes, Any] = {}


def decoded(line: bytes) -> Any:
    """Return the message of a line."""
    message = _lines.get(line)
    if message is None:
        if len(_lines) > 100_000:
            _lines.clear()
        message = _lines[line] = decode(line.rstrip(b"\n"))
    return message
