"""The machine of one stream at an S2DS. It does no input or output itself: its `Effects` do.

================================== ============================ ===========
state                              input                        next
================================== ============================ ===========
Idle                               ReqListeners                 Reserving
Idle                               REL                          Released
Reserving                          bound                        Reserved
Reserving                          not bound                    Released
Reserved, Forwarding               UpdateTargets                Updating
Updating                           armed                        Forwarding
Updating                           target-refused, bad-message  as before it
Updating                           other failure                Releasing
Reserved, Updating, Forwarding     Extend                       same
Reserving, Reserved, Updating,     REL, expires, fault          Releasing
Forwarding
Releasing                          all closed                   Released
Releasing, Released                REL                          same
any                                any other command            same
================================== ============================ ===========

Reserved, Forwarding and Released wait for a command. After new targets, open connections keep their old target.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder

from scistream.protocol.errors import ErrorCode, StreamError
from scistream.protocol.messages import (
    ChannelFigures,
    Error,
    Extend,
    LastError,
    PathFigures,
    ReqListeners,
    ResetReason,
    Resp,
    Role,
    UpdateTargets,
)
from scistream.state_machines import SAME, Caller, build, on, wrong_state


class Effects(Protocol):
    """The actions of the machine. No effect raises; its result comes back as an input."""

    def bind(self, request: ReqListeners) -> None:
        """Reserve all ports and the capacity, or nothing, and make a key; then give `bound` or `not_bound`."""

    def arm(self, command: UpdateTargets) -> None:
        """Check targets and credentials, and listen on the channels; then give `armed` or `not_armed`."""

    def close(self) -> None:
        """Close listeners, reset connections, return ports and capacity, and forget the key.

        Then give `closed` with the last figures of each channel.
        """

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Answer a command."""

    def start_timer(self, seconds: float) -> None:
        """Give `expired` after `seconds`."""

    def shorten_life(self, seconds: float) -> None:
        """Give `expired` after `seconds`, unless it is due earlier."""

    def life_problem(self, seconds: float) -> StreamError | None:
        """Return why the stream cannot live for `seconds` from now, or None."""

    def set_life(self, seconds: float) -> None:
        """Give `expired` after `seconds`, in place of the time when it was due."""

    def stop_timer(self) -> None:
        """Cancel `expired`."""


class Stream(Protocol):
    """The inputs of the machine. An input returns nothing, and raises in no state."""

    def req_listeners(self, caller: Caller, request: ReqListeners) -> None:
        """Take ReqListeners from the controller."""

    def bound(self, listeners: list[str], csr: str) -> None:
        """Note that ports and capacity are reserved.

        :param listeners: the addresses to announce, in the order of the channels.
        :param csr: the certificate request for the stream's key.
        """

    def not_bound(self, error: StreamError) -> None:
        """Note that the reservation failed and nothing is reserved."""

    def update_targets(self, caller: Caller, command: UpdateTargets) -> None:
        """Take UpdateTargets from the controller."""

    def armed(self, wan_listeners: list[str]) -> None:
        """Note that the channels carry connections to the new targets.

        :param wan_listeners: where this gateway listens for those of the producer's side, in the order of the channels;
            empty unless they dial.
        """

    def not_armed(self, error: StreamError) -> None:
        """Note that the new targets were refused and the channels are unchanged.

        The stream goes on after `target-refused` and `bad-message`, and ends after any other error.
        """

    def extend(self, caller: Caller, command: Extend) -> None:
        """Take Extend from the controller."""

    def rel(self, caller: Caller) -> None:
        """Take REL from the controller."""

    def expired(self) -> None:
        """Note that the stream's life is over."""

    def failed(self, error: StreamError) -> None:
        """End the stream after a fault of this gateway in an effect."""

    def closed(self, figures: list[ChannelFigures]) -> None:
        """Note that all resources are released; `figures` are the last ones."""

    def _carry_out(self, caller: Caller, command: UpdateTargets) -> None:
        """Carry out an UpdateTargets with a new generation."""

    def _back_to_reserved(self) -> None:
        """Return to Reserved: the targets of the first UpdateTargets were refused."""

    def _back_to_forwarding(self) -> None:
        """Return to Forwarding with the old targets: those of a later UpdateTargets were refused."""

    def _fail(self, error: StreamError) -> None:
        """End the stream."""


@dataclass
class Core:
    """The data that all states of the machine share."""

    effects: Effects
    uid: str
    role: Role
    boot: str
    state: str = "Idle"
    request: ReqListeners | None = None
    listeners: list[str] = field(default_factory=list)
    csr: str = ""
    wan: list[str] = field(default_factory=list)
    """What this gateway can do to connect to others, as in RESP."""
    wan_listeners: list[str] = field(default_factory=list)
    """Where this gateway listens for those of the producer's side, in the order of the channels."""
    current: UpdateTargets | None = None
    last_error: LastError | None = None
    figures: list[ChannelFigures] = field(default_factory=list)
    resets: list[ResetReason] = field(default_factory=list)
    paths: list[PathFigures] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """The current generation; 0 before the first."""
        return self.current.generation if self.current is not None else 0

    def answer_with_state(self, caller: Caller, msg: str) -> None:
        """Answer with the state of the stream and its listeners, or with its last figures once it is released."""
        fields: dict[str, Any] = {}
        if self.listeners:
            fields = {"listeners": self.listeners, "csr": self.csr, "wan": self.wan or None}
            fields["wan_listeners"] = self.wan_listeners or None
        if self.state == "Released":
            fields["figures"], fields["resets"] = self.figures, self.resets
            fields["paths"] = self.paths or None
        self.effects.answer(
            caller, Resp(uid=self.uid, seq=caller.seq, state=self.state, msg=msg, boot=self.boot, **fields)
        )

    def answer_all_with_state(self, callers: Iterable[Caller], msg: str) -> None:
        """Answer each caller as `answer_with_state` does."""
        for caller in callers:
            self.answer_with_state(caller, msg)

    def refuse(self, caller: Caller, code: ErrorCode, msg: str) -> None:
        """Answer with an ERROR."""
        self.effects.answer(caller, Error(uid=self.uid, seq=caller.seq, code=code, msg=msg))

    def refuse_wrong_state(self, caller: Caller, what: str) -> None:
        """Answer that the current state does not allow the command `what`."""
        self.refuse(caller, "wrong-state", wrong_state(self.uid, self.state, _ALLOWS[self.state], what))

    def refuse_all(self, callers: Iterable[Caller], error: StreamError) -> None:
        """Answer all callers with the same ERROR."""
        for caller in callers:
            self.refuse(caller, error.code, error.msg)


_ALLOWS = {
    "Idle": "ReqListeners",
    "Reserving": "REL",
    "Reserved": "UpdateTargets, Extend and REL",
    "Updating": "Extend and REL",
    "Forwarding": "UpdateTargets, Extend and REL",
    "Releasing": "REL only",
    "Released": "REL only",
}


# -- the data of states


@dataclass
class Operation:
    """The data of Reserving, Updating and Releasing: the callers that get an answer when the operation is over."""

    waiting_callers: list[Caller]


@dataclass
class Reservation(Operation):
    """The data of Reserving."""


@dataclass
class Update(Operation):
    """The data of Updating: the command that is being carried out."""

    command: UpdateTargets


@dataclass
class Release(Operation):
    """The data of Releasing."""


def _reserve(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> Reservation:
    return Reservation([caller])


def _update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> Update:
    return Update([caller], command)


def _release(stream: Stream, core: Core, cause: Caller | StreamError) -> Release:
    return Release([] if isinstance(cause, StreamError) else [cause])


# -- ReqListeners


def _begin(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    core.request = request
    core.effects.bind(request)


def _bound(stream: Stream, core: Core, reservation: Reservation, listeners: list[str], csr: str) -> None:
    core.listeners, core.csr = list(listeners), csr
    assert core.request is not None
    core.effects.start_timer(core.request.expires)
    core.answer_all_with_state(reservation.waiting_callers, f"reserved {len(listeners)} listeners")


def _not_bound(stream: Stream, core: Core, reservation: Reservation, error: StreamError) -> None:
    core.last_error = LastError(code=error.code, msg=error.msg[:2000])
    core.refuse_all(reservation.waiting_callers, error)


def _req_while_reserving(
    stream: Stream, core: Core, reservation: Reservation, caller: Caller, request: ReqListeners
) -> None:
    if _is_request_of(core, request):
        reservation.waiting_callers.append(caller)
    _req_again(stream, core, caller, request)


def _req_again(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    if _is_request_of(core, request):
        core.answer_with_state(caller, f"stream is {core.state}")
    else:
        core.refuse(caller, "uid-in-use", f"stream {core.uid} exists already, with other fields")


def _req_too_late(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    if core.last_error is not None and _is_request_of(core, request):
        lost = StreamError.from_peer(core.last_error.code, core.last_error.msg)
        core.refuse(caller, lost.code, lost.msg)  # repeat the answer: the caller may not have received it
    else:
        core.refuse_wrong_state(caller, "ReqListeners")


def _is_request_of(core: Core, request: ReqListeners) -> bool:
    """Return True if `request` repeats the one that the stream was reserved for."""
    return core.request is not None and _fields(request) == _fields(core.request)


def _fields(request: ReqListeners) -> tuple[Any, ...]:
    return (
        request.channels,
        request.rate,
        request.wan_security,
        request.app_from,
        request.protocol,
        request.probe_seconds,
        request.listen_ports,
    )


# -- UpdateTargets


def _consider_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    """Carry out an UpdateTargets with a new generation, and answer any other: protocol section 7.4."""
    current = core.current
    if current is None or command.generation > current.generation:
        if current is not None and command.wan_dialer != current.wan_dialer:
            core.refuse(caller, "bad-message", "field wan_dialer: the side that dials cannot change")
            return
        stream._carry_out(caller, command)
    elif _version(command) == _version(current):
        core.answer_with_state(caller, f"generation {core.generation} is in force")
    else:
        msg = f"generation {command.generation} must be above {core.generation}, which is in force: send a higher one"
        core.refuse(caller, "wrong-state", msg)


def _carry_out_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    core.effects.arm(command)


def _version(command: UpdateTargets) -> tuple[Any, ...]:
    return (
        command.generation,
        command.connection_map,
        command.data_conn_key,
        command.wan_dialer,
        command.wan_targets,
    )


def _update_again(stream: Stream, core: Core, update: Update, caller: Caller, command: UpdateTargets) -> None:
    if _version(command) == _version(update.command):
        update.waiting_callers.append(caller)
        core.answer_with_state(caller, f"generation {command.generation} is being carried out")
    else:
        core.refuse_wrong_state(
            caller, f"generation {command.generation} while {update.command.generation} is being carried out"
        )


def _update_too_late(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    core.refuse_wrong_state(caller, "UpdateTargets")


def _armed(stream: Stream, core: Core, update: Update, wan_listeners: list[str]) -> None:
    core.current = update.command
    core.wan_listeners = list(wan_listeners)
    if core.current.expires is not None:
        core.effects.shorten_life(core.current.expires)
    core.answer_all_with_state(update.waiting_callers, f"generation {core.generation} is in force")


def _not_armed(stream: Stream, core: Core, update: Update, error: StreamError) -> None:
    if error.code not in ("target-refused", "bad-message"):
        stream._fail(error)
        return
    core.refuse_all(update.waiting_callers, error)
    if core.current is None:
        stream._back_to_reserved()
    else:
        stream._back_to_forwarding()


# -- Extend


def _extend(stream: Stream, core: Core, caller: Caller, command: Extend) -> None:
    problem = core.effects.life_problem(command.expires)
    if problem is not None:
        core.refuse(caller, problem.code, problem.msg)
        return
    core.effects.set_life(command.expires)
    core.answer_with_state(caller, f"the stream ends in {command.expires:.0f} s")


def _extend_too_late(stream: Stream, core: Core, caller: Caller, command: Extend) -> None:
    core.refuse_wrong_state(caller, "Extend")


# -- the end


def _rel(stream: Stream, core: Core, caller: Caller) -> None:
    core.effects.stop_timer()
    core.effects.close()


def _rel_meanwhile(stream: Stream, core: Core, operation: Operation, caller: Caller) -> None:
    core.refuse_all(operation.waiting_callers, StreamError("wrong-state", "the stream was released in the meantime"))
    _rel(stream, core, caller)


def _fail(stream: Stream, core: Core, error: StreamError) -> None:
    core.last_error = LastError(code=error.code, msg=error.msg[:2000])
    core.effects.stop_timer()
    core.effects.close()


def _fail_meanwhile(stream: Stream, core: Core, operation: Operation, error: StreamError) -> None:
    core.refuse_all(operation.waiting_callers, error)
    _fail(stream, core, error)


def _expired(stream: Stream, core: Core) -> None:
    stream._fail(StreamError("expired", "the time of this stream is over"))


def _rel_again(stream: Stream, core: Core, release: Release, caller: Caller) -> None:
    release.waiting_callers.append(caller)
    core.answer_with_state(caller, "closing its connections")


def _closed(stream: Stream, core: Core, release: Release, figures: list[ChannelFigures]) -> None:
    core.figures = figures
    core.listeners, core.wan_listeners, core.csr = [], [], ""
    core.answer_all_with_state(release.waiting_callers, "the stream is released")


def _rel_of_released(stream: Stream, core: Core, caller: Caller) -> None:
    core.answer_with_state(caller, "the stream is released")


def _rel_of_nothing(stream: Stream, core: Core, caller: Caller) -> None:
    core.refuse(caller, "unknown-uid", f"no stream {core.uid} was ever reserved here")


# -- the states and the table

_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving", _reserve)
Reserved = _builder.state("Reserved")
Updating = _builder.state("Updating", _update)
Forwarding = _builder.state("Forwarding")
Releasing = _builder.state("Releasing", _release)
Released = _builder.state("Released")

STATES = (Idle, Reserving, Reserved, Updating, Forwarding, Releasing, Released)
LIVE = (Reserving, Reserved, Updating, Forwarding)

_machine = build(
    _builder,
    STATES,
    [
        # ReqListeners
        on(Idle, Stream.req_listeners, Reserving, _begin),
        on(Reserving, Stream.req_listeners, SAME, _req_while_reserving),
        on((Reserved, Updating, Forwarding), Stream.req_listeners, SAME, _req_again),
        on((Releasing, Released), Stream.req_listeners, SAME, _req_too_late),
        on(Reserving, Stream.bound, Reserved, _bound),
        on(Reserving, Stream.not_bound, Released, _not_bound),
        # UpdateTargets
        on((Reserved, Forwarding), Stream.update_targets, SAME, _consider_update),
        on((Reserved, Forwarding), Stream._carry_out, Updating, _carry_out_update),
        on(Updating, Stream.update_targets, SAME, _update_again),
        on((Idle, Reserving, Releasing, Released), Stream.update_targets, SAME, _update_too_late),
        on(Updating, Stream.armed, Forwarding, _armed),
        on(Updating, Stream.not_armed, SAME, _not_armed),
        on(Updating, Stream._back_to_reserved, Reserved),
        on(Updating, Stream._back_to_forwarding, Forwarding),
        # Extend
        on((Reserved, Updating, Forwarding), Stream.extend, SAME, _extend),
        on((Idle, Reserving, Releasing, Released), Stream.extend, SAME, _extend_too_late),
        # the end
        on((Reserved, Forwarding), Stream.rel, Releasing, _rel),
        on(Reserving, Stream.rel, Releasing, _rel_meanwhile),
        on(Updating, Stream.rel, Releasing, _rel_meanwhile),
        on((Reserved, Forwarding), Stream._fail, Releasing, _fail),
        on(Reserving, Stream._fail, Releasing, _fail_meanwhile),
        on(Updating, Stream._fail, Releasing, _fail_meanwhile),
        on((Reserved, Forwarding), Stream.failed, Releasing, _fail),
        on(Reserving, Stream.failed, Releasing, _fail_meanwhile),
        on(Updating, Stream.failed, Releasing, _fail_meanwhile),
        on(LIVE, Stream.expired, SAME, _expired),
        on(Releasing, Stream.closed, Released, _closed),
        on(Idle, Stream.rel, Released, _rel_of_nothing),
        on(Releasing, Stream.rel, SAME, _rel_again),
        on(Released, Stream.rel, SAME, _rel_of_released),
    ],
    ignore_elsewhere=(
        Stream.bound,
        Stream.not_bound,
        Stream.armed,
        Stream.not_armed,
        Stream.expired,
        Stream.failed,
        Stream.closed,
        Stream._carry_out,
        Stream._back_to_reserved,
        Stream._back_to_forwarding,
        Stream._fail,
    ),
)


def new_stream(core: Core) -> Stream:
    """Return a machine in the state Idle."""
    return _machine(core)
