"""The machine of one stream at S2UC. No I/O: what it wants done it asks of its `Effects`.

================================== ============================= ============
state                              input                         next
================================== ============================= ============
Idle                               request                       Reserving
Idle                               release                       Released
Reserving                          both RESP                     Reserved
Reserved, Streaming                ProdLstn                      Provisioning
Provisioning                       map and credentials made      Updating
Updating                           both RESP (producer first)    Streaming
Reserving, Reserved, Provisioning, any ERROR, give-up, release   Releasing
Updating, Streaming
Releasing                          both RESP                     Released
any                                anything else                 same
================================== ============================= ============

Streaming and Released are idle. Two ERRORs have their own way. `target-refused` by the producer's side, when ProdApp
has said a new Hello meanwhile, leads from Updating back to Provisioning: the map was for listeners that are gone. After
`uid-in-use` what that side has is another stream, so it is not released there, and the other side's answer is waited
for, since it may say the same. A side that does not confirm a release in time is named in `Core.not_released`; the
machine still ends in Released, since nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from automat import TypeMachineBuilder

from scistream.wire.errors import StreamError
from scistream.wire.link import UNSENT
from scistream.wire.messages import CONS, PROD, Command, Rel, Req, Resp, Role, UpdateTargets


class Effects(Protocol):
    """What the machine wants done. None of these raises; what comes of it is fed back as an input."""

    def ask(self, role: Role, command: Command) -> None:
        """Send a command to that side, in place of any earlier one that still waits there."""

    def forget(self, role: Role) -> None:
        """Send nothing more to that side: it has never been reached, and must not hear of the stream now."""

    def provision(self, generation: int) -> None:
        """Make the connection map and the credentials: then `targets_made` or `failed`."""

    def reserved(self) -> None:
        """Both sides have reserved: the join strings can be given out."""

    def streaming(self) -> None:
        """Both sides have armed this generation."""

    def ended(self) -> None:
        """The stream is over; `Core.error` and `Core.not_released` say how."""


class Stream(Protocol):
    """The inputs of the machine. None of them returns anything; none raises in any state."""

    def request(self, commands: Mapping[Role, Req]) -> None:
        """The user asks for a stream."""

    def reached(self, role: Role) -> None:
        """A link to that side is up: from here on it may know of the stream."""

    def side_answered(self, role: Role, answer: Resp) -> None:
        """The final RESP to the command that waited at that side."""

    def side_refused(self, role: Role, error: StreamError) -> None:
        """An ERROR to the command that waited at that side, or giving it up."""

    def prod_lstn(self, listeners: list[str]) -> None:
        """Where ProdApp listens, from ProdLstn or from Status."""

    def targets_made(self, commands: Mapping[Role, UpdateTargets]) -> None:
        """The connection map and the credentials of a new generation are made."""

    def failed(self, error: StreamError) -> None:
        """A side says that its stream has failed, or the user's patience is over."""

    def release(self) -> None:
        """The user releases the stream."""

    def _both_reserved(self) -> None:
        """Both sides have answered REQ."""

    def _provision(self) -> None:
        """ProdApp's listeners are known, or new ones are."""

    def _both_updated(self) -> None:
        """Both sides have answered UpdateTargets."""

    def _both_released(self) -> None:
        """Both sides have answered REL, or were given up."""


@dataclass
class Core:
    """What the machine's states share: what both sides have said of the stream."""

    effects: Effects
    uid: str
    state: str = "Idle"
    generation: int = 0
    reached: set[Role] = field(default_factory=set)
    answers: dict[Role, Resp] = field(default_factory=dict)
    app_listeners: list[str] = field(default_factory=list)
    provisioned_for: list[str] = field(default_factory=list)
    updates: dict[Role, UpdateTargets] = field(default_factory=dict)
    owing: set[Role] = field(default_factory=set)
    taken: dict[Role, StreamError] = field(default_factory=dict)
    error: StreamError | None = None
    not_released: dict[Role, StreamError] = field(default_factory=dict)
    unknown_at: set[Role] = field(default_factory=set)
    """The sides that have no stream of this user with this uid, so that nothing was released there."""


_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving")
Reserved = _builder.state("Reserved")
Provisioning = _builder.state("Provisioning")
Updating = _builder.state("Updating")
Streaming = _builder.state("Streaming")
Releasing = _builder.state("Releasing")
Released = _builder.state("Released")

STATES = (Idle, Reserving, Reserved, Provisioning, Updating, Streaming, Releasing, Released)
LIVE = (Reserving, Reserved, Provisioning, Updating, Streaming)

# -- REQ


@Idle.upon(Stream.request).to(Reserving)
def _ask_both(stream: Stream, core: Core, commands: Mapping[Role, Req]) -> None:
    core.state = "Reserving"
    core.owing = set(commands)
    for role, command in commands.items():
        core.effects.ask(role, command)


@Reserving.upon(Stream.side_answered).loop()
def _side_reserved(stream: Stream, core: Core, role: Role, answer: Resp) -> None:
    if not answer.listeners or not answer.csr:
        stream.failed(StreamError("gateway-failed", f"the {role} side answered REQ without listeners or csr"))
        return
    core.answers[role] = answer
    core.owing.discard(role)
    if core.owing:
        return
    if core.taken:
        _refused(stream, core, *next(iter(core.taken.items())))
    else:
        stream._both_reserved()


@Reserving.upon(Stream.side_refused).loop()
def _not_reserved(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    if error.code == "uid-in-use":
        core.taken[role] = error
        core.owing.discard(role)
        if core.owing & core.reached:
            return
    _refused(stream, core, role, error)


@Reserving.upon(Stream._both_reserved).to(Reserved)
def _reserved(stream: Stream, core: Core) -> None:
    core.state = "Reserved"
    core.effects.reserved()
    if core.app_listeners:
        stream._provision()


# -- ProdLstn


@Reserved.upon(Stream.prod_lstn).loop()
def _first_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)
    stream._provision()


def _note_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)


for _state in (Reserving, Provisioning, Updating):
    _state.upon(Stream.prod_lstn).loop()(_note_listeners)


@Streaming.upon(Stream.prod_lstn).loop()
def _maybe_new_listeners(stream: Stream, core: Core, listeners: list[str]) -> None:
    core.app_listeners = list(listeners)
    if core.app_listeners != core.provisioned_for:
        stream._provision()


def _start_provisioning(stream: Stream, core: Core) -> None:
    core.state = "Provisioning"
    core.generation += 1
    core.provisioned_for = list(core.app_listeners)
    core.effects.provision(core.generation)


for _state in (Reserved, Updating, Streaming):
    _state.upon(Stream._provision).to(Provisioning)(_start_provisioning)

# -- UpdateTargets


@Provisioning.upon(Stream.targets_made).to(Updating)
def _update_producer(stream: Stream, core: Core, commands: Mapping[Role, UpdateTargets]) -> None:
    core.state = "Updating"
    core.updates = dict(commands)
    core.owing = {PROD}
    core.effects.ask(PROD, core.updates[PROD])


@Updating.upon(Stream.side_answered).loop()
def _side_updated(stream: Stream, core: Core, role: Role, answer: Resp) -> None:
    if role not in core.owing:
        return
    if role == PROD:
        core.owing = {CONS}
        core.effects.ask(CONS, core.updates[CONS])
    else:
        stream._both_updated()


@Updating.upon(Stream._both_updated).to(Streaming)
def _stream(stream: Stream, core: Core) -> None:
    core.state = "Streaming"
    core.effects.streaming()
    if core.app_listeners != core.provisioned_for:
        stream._provision()


# -- the end


def _refused(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    side = "producer" if role == PROD else "consumer"
    stream.failed(StreamError(error.code, f"{side} side: {error.msg}"))


def _failed(stream: Stream, core: Core, error: StreamError) -> None:
    core.error = error
    _release(stream, core)


def _release(stream: Stream, core: Core) -> None:
    core.state = "Releasing"
    core.owing = core.reached - set(core.taken)
    for role in (CONS, PROD):
        if role in core.owing:
            core.effects.ask(role, Rel(uid=core.uid, role=role, seq=UNSENT))
        else:
            core.effects.forget(role)
    if not core.owing:
        stream._both_released()


@Updating.upon(Stream.side_refused).loop()
def _not_updated(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    outdated = core.app_listeners != core.provisioned_for
    if role == PROD and error.code == "target-refused" and outdated:
        stream._provision()
    else:
        _refused(stream, core, role, error)


for _state in LIVE:
    if _state not in (Reserving, Updating):
        _state.upon(Stream.side_refused).loop()(_refused)
    _state.upon(Stream.failed).to(Releasing)(_failed)
    _state.upon(Stream.release).to(Releasing)(_release)


@Releasing.upon(Stream.side_answered).loop()
def _side_released(stream: Stream, core: Core, role: Role, answer: Resp) -> None:
    _one_released(stream, core, role)


@Releasing.upon(Stream.side_refused).loop()
def _side_not_released(stream: Stream, core: Core, role: Role, error: StreamError) -> None:
    if error.code == "unknown-uid":
        core.unknown_at.add(role)
    else:
        core.not_released[role] = error
    _one_released(stream, core, role)


def _one_released(stream: Stream, core: Core, role: Role) -> None:
    core.owing.discard(role)
    if not core.owing:
        stream._both_released()


@Releasing.upon(Stream._both_released).to(Released)
def _released(stream: Stream, core: Core) -> None:
    core.state = "Released"
    core.effects.ended()


@Idle.upon(Stream.release).to(Released)
def _nothing_to_release(stream: Stream, core: Core) -> None:
    core.state = "Released"
    core.effects.ended()


# -- a side may be reached at any time; what comes too late, or twice, changes nothing


def _reached(stream: Stream, core: Core, role: Role) -> None:
    core.reached.add(role)


for _state in STATES:
    _state.upon(Stream.reached).loop()(_reached)
    if _state is not Idle:
        _state.upon(Stream.request).loop().returns(None)
    if _state not in (Reserving, Updating, Releasing):
        _state.upon(Stream.side_answered).loop().returns(None)
    if _state not in (*LIVE, Releasing):
        _state.upon(Stream.side_refused).loop().returns(None)
    if _state not in LIVE:
        _state.upon(Stream.prod_lstn).loop().returns(None)
        _state.upon(Stream.failed).loop().returns(None)
    if _state not in (*LIVE, Idle):
        _state.upon(Stream.release).loop().returns(None)
    if _state is not Provisioning:
        _state.upon(Stream.targets_made).loop().returns(None)
    if _state is not Reserving:
        _state.upon(Stream._both_reserved).loop().returns(None)
    if _state not in (Reserved, Updating, Streaming):
        _state.upon(Stream._provision).loop().returns(None)
    if _state is not Updating:
        _state.upon(Stream._both_updated).loop().returns(None)
    if _state is not Releasing:
        _state.upon(Stream._both_released).loop().returns(None)

_machine = _builder.build()


def new_stream(core: Core) -> Stream:
    """The machine of a stream that nobody has asked for yet."""
    return _machine(core)


def remembered_stream(core: Core) -> Stream:
    """The machine of a stream that an earlier run of S2UC asked for: it can be released."""
    core.state = "Streaming"
    return _machine(core, Streaming)


def attached_stream(core: Core) -> Stream:
    """The machine of a stream that an earlier run of S2UC asked for and this one goes on with.

    Both sides have reserved, and `core` holds their answers and the highest generation that either has seen. The next
    generation is made as soon as ProdApp's listeners are known, unless both sides stream under the same one.
    """
    core.state = "Reserved"
    return _machine(core, Reserved)
