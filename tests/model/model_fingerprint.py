"""A number that is the same for two states of the model that differ in nothing that matters.

What does not matter: how long ago anything was, how long recurring timers have still to run, how often something was
tried, the names that were made by chance, sentences for people. Remaining times of other timers are compared
coarsely. Names made by chance (boots, keys, authorities) are told apart by the order in which they appear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from model_network import FINITE, QUIET, Connection, Item

from scistream.logs import state_of
from scistream.wire.line import Link, decode
from scistream.wire.messages import Error, Hello, ProdLstn, Req, ReqListeners, Resp, StartConn, Status, UpdateTargets

if TYPE_CHECKING:
    from model_world import World

_COARSE = (2.5, 12.0, 25.0, 60.0)


def coarse(seconds: float) -> int:
    """The class of a remaining time."""
    return sum(seconds > limit for limit in _COARSE)


def fingerprint(world: World) -> int:
    """The number of the state that a world is in."""
    return hash(picture(world))


def picture(world: World) -> tuple[Any, ...]:
    """All that matters of the state that a world is in."""
    return _Painter(world).all()


def essence(world: World) -> list[tuple[str, Any]]:
    """Records, states, and what gateways hold: what a repetition must not change, and what time alone does not."""
    found: list[tuple[str, Any]] = []
    for name, control in world.controls.items():
        for held in control.streams.values():
            found.append((f"the record at {name}", msgspec.json.encode(held.record)))
            found.append((f"the state at {name}", state_of(held.machine)))
    for name, server in world.gateways.items():
        found.append((f"what {name} has promised", (len(server.ports._given), server.capacity._reserved)))
        for holding in server._holdings.values():
            core = holding._core
            found.append((f"the state at {name}", (state_of(holding.machine), core.generation, core.current)))
    for name, controller in world.applications.items():
        found.append((f"the state of {name}", state_of(controller.machine)))
    if world.user is not None:
        found.append(("the state of the user's client", (world.user.core.state, world.user.core.generation)))
    return found


class _Painter:
    def __init__(self, world: World) -> None:
        self.world = world
        self.names: dict[str, int] = {}
        self.connections: dict[int, int] = {}
        for index, connection in enumerate(world.network.connections):
            for end in (connection.client, connection.server):
                self.connections[id(link_of(end))] = index
        for gateway in world.gateways.values():
            self.name(gateway.boot)

    def all(self) -> tuple[Any, ...]:
        world = self.world
        return (
            tuple((name, one.alive, one.silent) for name, one in world.processes.items()),
            tuple(self.gateway(one) for one in world.gateways.values()),
            tuple(self.control(one) for one in world.controls.values()),
            self.user(),
            tuple((name, self.application(one)) for name, one in world.applications.items()),
            tuple(self.connection(one) for one in world.network.connections),
            tuple([self.item(one) for one in world.network.flight]),
            self.timers(),
            tuple(world.script),
            world.at_rest,
            bool(world.joins),
        )

    def name(self, text: str) -> int:
        """The place of a name among those seen so far."""
        return self.names.setdefault(text, len(self.names))

    # -- parties

    def gateway(self, server: Any) -> tuple[Any, ...]:
        return (
            tuple((key, self.holding(one)) for key, one in server._holdings.items()),
            len(server.ports._given),
            server.capacity._reserved,
            tuple(server.element.streams),
        )

    def holding(self, one: Any) -> tuple[Any, ...]:
        core = one._core
        element = one._server.element.streams.get((core.uid, core.role), {})
        return (
            state_of(one.machine),
            core.state,
            core.generation,
            self.update(core.current),
            self.update(core.update),
            self.callers(core.callers),
            core.last_error and core.last_error.code,
            tuple(core.listeners),
            tuple((channel, sock.listens) for channel, (sock, _) in one._listeners.items()),
            tuple(arming and (arming.target, self.name(arming.context.authority)) for arming in element.values()),
            one._rate,
            one._timer is not None and one._timer.active(),
            one.released_at is None,
            one._secret and self.name(one._secret.csr),
        )

    def control(self, server: Any) -> tuple[Any, ...]:
        return (
            tuple((key, self.held(one)) for key, one in server.streams.items()),
            tuple((*self.dialer(one.dialer), one.settled, one.room is None) for one in server.gateways.values()),
            tuple(server.store.written.items()),
            len(server._early),
        )

    def held(self, one: Any) -> tuple[Any, ...]:
        record, core = one.record, one.core
        return (
            state_of(one.machine),
            record.state,
            record.generation,
            self.name(record.content),
            tuple(record.app_listeners),
            record.greeted,
            tuple([self.name(boot) for boot in record.boots.values()]),
            tuple(record.listeners.values()),
            tuple([self.name(csr) for csr in record.csr.values()]),
            record.last_error and record.last_error.code,
            tuple(record.plan),
            self.callers(core.callers),
            tuple(sorted(core.owing)),
            tuple([error.code for error in core.refusals.values()]),
            self.update(core.update),
            core.before_update,
            tuple(core.listeners_told),
            core.hello_overdue,
            self.connections.get(id(one.app_link)),
            self.outbox(one.app_outbox),
            tuple(sorted(self.connections.get(id(link), -1) for link in one._owner_links)),
            tuple(timer.label for timer in one._timers if timer.active()),
        )

    def user(self) -> tuple[Any, ...]:
        user = self.world.user
        if user is None:
            return ()
        core, effects = user.core, user.stream._effects
        return (
            user.attaching,
            user.closed,
            state_of(effects.machine),
            core.state,
            core.generation,
            tuple(sorted(core.reached)),
            tuple((role, tuple(one.listeners or ()), self.name(one.csr or "")) for role, one in core.answers.items()),
            tuple(core.app_listeners),
            tuple(core.provisioned_for),
            tuple([self.update(one) for one in core.updates.values()]),
            tuple(sorted(core.owing)),
            core.error and core.error.code,
            tuple((role, error.code) for role, error in core.not_released.items()),
            effects._follows,
            tuple([self.dialer(server.dialer) for server in user.client._servers.values()]),
        )

    def application(self, one: Any) -> tuple[Any, ...]:
        return (
            state_of(one.machine),
            one._greeted,
            one._hello and one._hello.called,
            one._program is not None,
            one._finished.called,
            tuple(one._listeners),
            self.dialer(one._dialer),
        )

    # -- what parties are made of

    def update(self, command: UpdateTargets | None) -> Any:
        return command and (command.generation, self.name(_authority(command)), tuple(command.connection_map.items()))

    def dialer(self, one: Any) -> tuple[Any, ...]:
        return one.running, self.connections.get(id(one.link)), self.outbox(one.outbox)

    def outbox(self, one: Any) -> tuple[Any, ...]:
        now = self.world.network.now
        return tuple(
            [
                (
                    self.message(waiting.command),
                    waiting.give_up and waiting.give_up.kind is FINITE and coarse(waiting.give_up.when - now),
                    bool(waiting.sent_as),
                    _expected(waiting),
                )
                for waiting in one._waiting
            ]
        )

    def callers(self, callers: list[Any]) -> tuple[Any, ...]:
        found = []
        for caller in callers:
            if caller.link.is_up:
                index = self.connections.get(id(caller.link))
                if index is not None:
                    end = self.world.network.connections[index].client
                    found.append((index, _place(_outbox_of(link_of(end)), caller.seq)))
        return tuple(found)

    # -- the network

    def connection(self, one: Connection) -> tuple[Any, ...]:
        return tuple(
            [
                (end.process.party, end.open, end.closing, link_of(end).is_up, link_of(end)._bad_lines)
                for end in (one.client, one.server)
            ]
        )

    def item(self, one: Item) -> tuple[Any, ...]:
        hold = one.hold if one.hold is None or one.hold is QUIET else coarse(one.hold - self.world.network.now)
        if one.kind != "line":
            where = one.end and self.connections.get(id(link_of(one.end)))
            return one.kind, where, one.sender and one.sender.party, one.process and one.process.party, hold, one.text
        assert one.end is not None
        message = decoded(one.data)
        from_end = one.end.other if isinstance(message, _COMMANDS) else one.end
        link = link_of(from_end)
        return (
            self.connections.get(id(link_of(one.end))),
            one.end is one.end.connection.client,
            hold,
            self.message(message),
            _place(_outbox_of(link), getattr(message, "seq", None)),
        )

    def message(self, message: Any) -> tuple[Any, ...]:
        still, names = _content(message)
        return still, tuple([self.name(text) for text in names])

    def timers(self) -> tuple[Any, ...]:
        now = self.world.network.now
        finite, others = [], []
        for timer in self.world.network.timers:
            party = timer.process.party if timer.process is not None else timer.args
            if timer.kind is FINITE:
                finite.append((party, timer.label, coarse(timer.when - now)))
            else:
                others.append((party, timer.label))
        others.sort()
        return tuple(finite), tuple(others)


_COMMANDS = (Req, ReqListeners, Hello, UpdateTargets, StartConn, Status)


def link_of(end: Any) -> Link:
    """The project's link behind a transport."""
    protocol = end.protocol
    return getattr(protocol, "_protocol", protocol)  # type: ignore[no-any-return]


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
    """What an S2CS will compare the answer to a Status with, which it keeps nowhere else."""
    if type(waiting.command) is not Status or not waiting.result.callbacks:
        return None
    arguments = waiting.result.callbacks[0][0][1]
    return tuple(sorted(arguments[0])) if arguments and isinstance(arguments[0], set) else None


_lines: dict[bytes, Any] = {}


def decoded(line: bytes) -> Any:
    """The message of a line."""
    message = _lines.get(line)
    if message is None:
        if len(_lines) > 100_000:
            _lines.clear()
        message = _lines[line] = decode(line.rstrip(b"\n"))
    return message


def _authority(command: UpdateTargets) -> str:
    return command.data_conn_key.partition("\n")[0]


_contents: dict[int, tuple[Any, tuple[Any, tuple[str, ...]]]] = {}


def _content(message: Any) -> tuple[Any, tuple[str, ...]]:
    """What a message says, without its number and its sentences: what is always the same, and names made by chance."""
    known = _contents.get(id(message))
    if known is not None and known[0] is message:
        return known[1]
    if len(_contents) > 100_000:
        _contents.clear()
    found = _read(message)
    _contents[id(message)] = (message, found)
    return found


def _read(message: Any) -> tuple[Any, tuple[str, ...]]:
    kind, role = type(message).__name__, getattr(message, "role", None)
    if isinstance(message, UpdateTargets):
        return (kind, role, message.generation, tuple(message.connection_map.items())), (_authority(message),)
    if isinstance(message, Resp):
        streams = [
            (
                *(one.role, one.state, one.generation, tuple(one.app_listeners), tuple(one.listeners)),
                *(tuple(one.connection_map.items()), one.last_error and one.last_error.code),
            )
            for one in message.streams or []
        ]
        names = [text for text in (message.csr, message.boot, *(one.csr for one in message.streams or [])) if text]
        still = (kind, message.state, tuple(message.listeners or ()), tuple(streams), message.more)
        return still, tuple(names)
    if isinstance(message, Error):
        return (kind, role, message.code), ()
    if isinstance(message, Hello | ProdLstn | StartConn):
        return (kind, role, tuple(message.listeners or ())), ()
    if isinstance(message, Status):
        return (kind, role, message.uid is None, message.after), ()
    return (kind, role), ()
