"""The state machine of one stream at S2UC. It does no input or output: its `Effects` carry out what it decides.

================================== ============================= ============
state                              input                         next
================================== ============================= ============
Idle                               request                       Reserving
Idle                               release                       Released
Reserving                          both RESP                     Reserved
Reserved, Streaming                ProdLstn                      Provisioning
Provisioning                       map and credentials made      Updating
Updating                           both RESP (accepting first)   Streaming
Reserving, Reserved, Provisioning, any ERROR, give-up, release   Releasing
Updating, Streaming
Releasing                          both RESP                     Released
any                                anything else                 same
================================== ============================= ============

Streaming and Released are idle. Two ERRORs are special. If the producer's side answers `target-refused` and ProdApp
has said a new Hello meanwhile, the machine goes from Updating back to Provisioning, since the map was for listeners
that are gone. A side that answers `uid-in-use` has another stream with this uid: the machine does not release it there,
and waits for the other side, which may answer the same. A side that does not confirm a release in time is named in
`Core.not_released`, and the machine still ends in Released.

When both sides have reserved, the machine chooses the side whose gateways dial the others (`choose_dialer`), and fails
if neither can. The other side, which accepts their connections, gets its targets first. If that is the consumer's, its
answer says where its gateways listen, and the producer's side gets these addresses with its targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from automat import TypeMachineBuilder
from msgspec import structs

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, UNSENT, Command, Rel, Req, Resp, Role, UpdateTargets
from scistream.s2uc.wan_dialer import choose_dialer, wan_targets
from scistream.state_machines import SAME, begin_in, build, on


class Effects(Protocol):
    """The actions that the machine triggers. No effect raises; its result comes back as an input."""

    def ask(self, role: Role, command: Command) -> None:
        """Send a command to that side, in place of any earlier one that still waits there."""

    def forget(self, role: Role) -> None:
        """Send nothing more to a side that was never reached, so that it does not learn of the stream."""

    def provision(self, generation: int) -> None:
        """Make the connection map and the credentials, and call the input `targets_made` or `failed`."""

    def reserved(self) -> None:
        """Give the join strings to the user, since both sides have reserved."""

    def streaming(self) -> None:
        """Tell the user that both sides have armed this generation."""

    def ended(self) -> None:
        """Tell the user that the stream is over; `Core.error` and `Core.not_released` say how."""


class Stream(Protocol):
    """The inputs of the machine. An input returns nothing, and raises in no state."""

    def request(self, commands: Mapping[Role, Req]) -> None:
        """Ask both sides for a stream."""

    def reached(self, role: Role) -> None:
        """Note that a link to a side is up, so that the side may know of the stream."""

    def side_answered(self, role: Role, answer: Resp) -> None:
        """Take the final RESP to the command that waited at that side."""

    def side_refused(self, role: Role, error: StreamError) -> None:
        """Take an ERROR to the command that waited at that side, or note that its answer is no longer waited for."""

    def prod_lstn(self, listeners: list[str]) -> None:
        """Note where ProdApp listens, from ProdLstn or from Status."""

    def targets_made(self, commands: Mapping[Role, UpdateTargets]) -> None:
        """Take the UpdateTargets of a new generation, one for each side."""

    def failed(self, error: StreamError) -> None:
        """End the stream, since a side has failed or the user has stopped waiting."""

    def release(self) -> None:
        """Release the stream."""

    def _both_reserved(self) -> None:
        """Go on, since both sides have answered REQ."""

    def _provision(self) -> None:
        """Make targets, since ProdApp's listeners are known, or new ones are."""

    def _both_updated(self) -> None:
        """Go on, since both sides have answered UpdateTargets."""

    def _both_released(self) -> None:
        """Go on, since no answer to a REL is waited for any more."""


@dataclass
class Core:
    """The data that all states share: what both sides have reported about the stream."""

    effects: Effects
    uid: str
    state: str = "Idle"
    generation: int = 0
    reached: set[Role] = field(default_factory=set)
    answers: dict[Role, Resp] = field(default_factory=dict)
    app_listeners: list[str] = field(default_factory=list)
    provisioned_for: list[str] = field(default_factory=list)
    uid_in_use: dict[Role, StreamError] = field(default_factory=dict)
    """The sides that have another stream with this uid, which must not be released."""
    sites: dict[Role, str] = field(default_factory=dict)
    """The facility of each side, for messages to people."""
    wanted_dialer: Role | None = None
    """The side that the user has chosen to dial the WAN; None for either."""
    wan_dialer: Role = CONS
    """The side whose gateways dial the others, once both have reserved."""
    error: StreamError | None = None
    not_released: dict[Role, StreamError] = field(default_factory=dict)
    unknown_at: set[Role] = field(default_factory=set)
    """The sides that have no stream of this user with this uid, so that nothing was released there."""

    def sides_to_release(self) -> set[Role]:
        """Return the sides that may have reserved something for this stream."""
        return self.reached - self.uid_in_use.keys()

    def choose_dialer(self) -> None:
        """Choose the side that dials, from the answers of both.

        :raises StreamError: if neither side can.
        """
        wan = {role: answer.wan for role, answer in self.answers.items()}
        self.wan_dialer = choose_dialer(wan, self.sites, self.wanted_dialer)

    @property
    def update_order(self) -> tuple[Role, Role]:
        """The sides in the order in which they get targets: first the one that accepts, then the one that dials."""
        return (CONS, PROD) if self.wan_dialer == PROD else (PROD, CONS)


# -- the data of states


@dataclass
class Operation:
    """The data of Reserving, Updating and Releasing: the sides whose answer is awaited."""

    pending_sides: set[Role]


@dataclass
class Reservation(Operation):
    """The data of Reserving."""


@dataclass
class Update(Operation):
    """The data of Updating: the command for each side."""

    commands: dict[Role, UpdateTargets]


@dataclass
class Release(Operation):
    """The data of Releasing."""


def _reserve(stream: Stream, core: Core, commands: Mapping[Role, Req]) -> Reservation:
    return Reservation(set(commands))


def _update(stream: Stream, core: Core, commands: Mapping[Role, UpdateTargets]) -> Update:
    return Update({core.update_order[0]}, dict(commands))


def _release(stream: Stream, core: Core, *cause: StreamError) -> Release:
    return Release(core.sides_to_release())


# -- REQ


def _ask_both(stream: Stream, core: Core, commands: Mapping[Role, Req]) -> None:
    for role, command in commands.items():
        core.effects.ask(role, command)


def _side_reserved(stream: Stream, core: Core, reservation: Reservation, role: Role, answer: Resp) -> None:
    if not answer.listeners or not answer.csr:
        stream.failed(StreamError("gateway-failed", f"the {role} side answered REQ without listeners or csr"))
        return
    core.answers[role] = answer
    reservation.pending_sides.discard(role)
    if reservation.pending_sides:
        return
    if core.uid_in_use:
        _refused(stream, core, *next(iter(core.uid_in_use.items())))
        return
    try:
        core.choose_dialer()
    except StreamError as neither:
        stream.failed(neither)
    else:
        stream._both_reserved()


def _not_reserved(stream: Stream, core: Core, reservation: Reservation, role: Role, error: StreamError) -> None:
    if error.code == "uid-in-use":
        core.uid_in_use[role] = error
        reservation.pending_sides.discard(role)
        if reservation.pending_sides & core.reached:
            return
    _refused(stream, core, role, error)


def _reserved(stream: Stream, core: Core) -> None:
    core.effects.reserved()
    if core.app_listeners:
        stream._provision()


# -- ProdLstn


def _first_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)
    stream._provision()


def _note_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)


def _maybe_new_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)
    if core.app_listeners != core.provisioned_for:
        stream._provision()


def _start_provisioning(stream: Stream, core: Core) -> None:
    core.generation += 1
    core.provisioned_for = list(core.app_listeners)
    core.effects.provision(core.generation)


# -- UpdateTargets


def _update_first(stream: Stream, core: Core, commands: Mapping[Role, UpdateTargets]) -> None:
    first, _ = core.update_order
    core.effects.ask(first, commands[first])


def _side_updated(stream: Stream, core: Core, update: Update, role: Role, answer: Resp) -> None:
    if role not in update.pending_sides:
        return
    _, second = core.update_order
    if role == second:
        stream._both_updated()
        return
    command = update.commands[second]
    if second == PROD:
        try:
            targets = wan_targets(core.answers[PROD].listeners or [], answer.wan_listeners)
        except StreamError as wrong:
            stream.failed(wrong)
            return
        command = structs.replace(command, wan_dialer=PROD, wan_targets=targets)
    update.pending_sides = {second}
    core.effects.ask(second, command)


def _stream(stream: Stream, core: Core) -> None:
    core.effects.streaming()
    if core.app_listeners != core.provisioned_for:
        stream._provision()


def _not_updated(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    outdated = core.app_listeners != core.provisioned_for
    if role == PROD and error.code == "target-refused" and outdated:
        stream._provision()
    else:
        _refused(stream, core, role, error)


# -- the end


def _refused(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    side = "producer" if role == PROD else "consumer"
    stream.failed(StreamError(error.code, f"{side} side: {error.msg}"))


def _failed(stream: Stream, core: Core, error: StreamError) -> None:
    core.error = error
    _release_both(stream, core)


def _release_both(stream: Stream, core: Core) -> None:
    sides = core.sides_to_release()
    for role in (CONS, PROD):
        if role in sides:
            core.effects.ask(role, Rel(uid=core.uid, role=role, seq=UNSENT))
        else:
            core.effects.forget(role)
    if not sides:
        stream._both_released()


def _side_released(stream: Stream, core: Core, release: Release, role: Role, answer: Resp) -> None:
    _one_released(stream, release, role)


def _side_not_released(stream: Stream, core: Core, release: Release, role: Role, error: StreamError) -> None:
    if error.code == "unknown-uid":
        core.unknown_at.add(role)
    else:
        core.not_released[role] = error
    _one_released(stream, release, role)


def _one_released(stream: Stream, release: Release, role: Role) -> None:
    release.pending_sides.discard(role)
    if not release.pending_sides:
        stream._both_released()


def _ended(stream: Stream, core: Core) -> None:
    core.effects.ended()


def _reached(stream: Stream, core: Core, role: Role) -> None:
    core.reached.add(role)


# -- the states and the table

_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving", _reserve)
Reserved = _builder.state("Reserved")
Provisioning = _builder.state("Provisioning")
Updating = _builder.state("Updating", _update)
Streaming = _builder.state("Streaming")
Releasing = _builder.state("Releasing", _release)
Released = _builder.state("Released")

STATES = (Idle, Reserving, Reserved, Provisioning, Updating, Streaming, Releasing, Released)
LIVE = (Reserving, Reserved, Provisioning, Updating, Streaming)

_machine = build(
    _builder,
    STATES,
    [
        on(STATES, Stream.reached, SAME, _reached),
        # REQ
        on(Idle, Stream.request, Reserving, _ask_both),
        on(Reserving, Stream.side_answered, SAME, _side_reserved),
        on(Reserving, Stream.side_refused, SAME, _not_reserved),
        on(Reserving, Stream._both_reserved, Reserved, _reserved),
        # ProdLstn
        on(Reserved, Stream.prod_lstn, SAME, _first_listeners),
        on((Reserving, Provisioning, Updating), Stream.prod_lstn, SAME, _note_listeners),
        on(Streaming, Stream.prod_lstn, SAME, _maybe_new_listeners),
        on((Reserved, Updating, Streaming), Stream._provision, Provisioning, _start_provisioning),
        # UpdateTargets
        on(Provisioning, Stream.targets_made, Updating, _update_first),
        on(Updating, Stream.side_answered, SAME, _side_updated),
        on(Updating, Stream.side_refused, SAME, _not_updated),
        on(Updating, Stream._both_updated, Streaming, _stream),
        # the end
        on((Reserved, Provisioning, Streaming), Stream.side_refused, SAME, _refused),
        on(LIVE, Stream.failed, Releasing, _failed),
        on(LIVE, Stream.release, Releasing, _release_both),
        on(Releasing, Stream.side_answered, SAME, _side_released),
        on(Releasing, Stream.side_refused, SAME, _side_not_released),
        on(Releasing, Stream._both_released, Released, _ended),
        on(Idle, Stream.release, Released, _ended),
    ],
    ignore_elsewhere=(
        Stream.request,
        Stream.side_answered,
        Stream.side_refused,
        Stream.prod_lstn,
        Stream.targets_made,
        Stream.failed,
        Stream.release,
        Stream._both_reserved,
        Stream._provision,
        Stream._both_updated,
        Stream._both_released,
    ),
)


def new_stream(core: Core) -> Stream:
    """Make the machine of a stream that is not requested yet."""
    return _machine(core)


def remembered_stream(core: Core) -> Stream:
    """Make the machine of a stream that an earlier S2UC has requested, and that this one can release."""
    return begin_in(_machine, core, Streaming)


def attached_stream(core: Core) -> Stream:
    """Make the machine of a stream that an earlier S2UC has requested, and that this one continues.

    Both sides have reserved. `core` has their answers and the highest generation that either has seen. The next
    generation is made as soon as ProdApp's listeners are known.
    """
    return begin_in(_machine, core, Reserved)
