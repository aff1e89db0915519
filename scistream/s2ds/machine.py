"""The machine of one stream at an S2DS. No I/O: what it wants done it asks of its `Effects`.

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
Reserving, Reserved, Updating,     REL, expires, fault          Releasing
Forwarding
Releasing                          all closed                   Released
Releasing, Released                REL                          same
any                                any other command            same
================================== ============================ ===========

Reserved, Forwarding and Released are idle. Connections that are open at a re-map finish on the old target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder

from scistream.wire.errors import ErrorCode, StreamError
from scistream.wire.link import Caller
from scistream.wire.messages import (
    ChannelFigures,
    Error,
    LastError,
    ReqListeners,
    ResetReason,
    Resp,
    Role,
    UpdateTargets,
)


class Effects(Protocol):
    """What the machine wants done. None of these raises; what comes of it is fed back as an input."""

    def bind(self, request: ReqListeners) -> None:
        """Reserve ports and capacity, all or none, and make a key: then `bound` or `not_bound`."""

    def arm(self, command: UpdateTargets) -> None:
        """Check targets and credentials and let the channels listen: then `armed` or `not_armed`."""

    def close(self) -> None:
        """Close listeners, reset connections, return ports and capacity, forget the key: then `closed`, with the
        last figures of each channel."""

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Answer a command."""

    def start_timer(self, seconds: float) -> None:
        """Feed `expired` after that time."""

    def shorten_life(self, seconds: float) -> None:
        """Feed `expired` after that time, unless it is fed earlier anyway."""

    def stop_timer(self) -> None:
        """The stream is gone: its end needs no timer any more."""


class Stream(Protocol):
    """The inputs of the machine. None of them returns anything; none raises in any state."""

    def req_listeners(self, caller: Caller, request: ReqListeners) -> None:
        """ReqListeners from the controller."""

    def bound(self, listeners: list[str], csr: str) -> None:
        """Ports and capacity are reserved; `listeners` are what others are told, in order of the channels."""

    def not_bound(self, error: StreamError) -> None:
        """Nothing could be reserved, and nothing is."""

    def update_targets(self, caller: Caller, command: UpdateTargets) -> None:
        """UpdateTargets from the controller."""

    def armed(self) -> None:
        """The channels carry connections to their targets."""

    def not_armed(self, error: StreamError) -> None:
        """The channels are as they were before; with `target-refused`
        and `bad-message` the stream goes on with that."""

    def rel(self, caller: Caller) -> None:
        """REL from the controller."""

    def expired(self) -> None:
        """The stream's life is over."""

    def failed(self, error: StreamError) -> None:
        """An effect has failed by a fault of this gateway: the stream ends."""

    def closed(self, figures: list[ChannelFigures]) -> None:
        """Nothing of the stream is left but its last figures."""

    def _carry_out(self, caller: Caller, command: UpdateTargets) -> None:
        """An UpdateTargets is news."""

    def _back_to_reserved(self) -> None:
        """The targets of the first UpdateTargets were refused."""

    def _back_to_forwarding(self) -> None:
        """The targets of a later UpdateTargets were refused: the old ones stay."""

    def _fail(self, error: StreamError) -> None:
        """The stream cannot go on."""


@dataclass
class Core:
    """What the machine's states share."""

    effects: Effects
    uid: str
    role: Role
    boot: str
    state: str = "Idle"
    request: ReqListeners | None = None
    listeners: list[str] = field(default_factory=list)
    csr: str = ""
    current: UpdateTargets | None = None
    update: UpdateTargets | None = None
    callers: list[Caller] = field(default_factory=list)
    last_error: LastError | None = None
    figures: list[ChannelFigures] = field(default_factory=list)
    resets: list[ResetReason] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """The generation in force; 0 before the first."""
        return self.current.generation if self.current is not None else 0

    def present(self, caller: Caller, msg: str) -> None:
        """Answer with the state that the stream is in, and with what was reserved, or carried when it is over."""
        fields: dict[str, Any] = {"listeners": self.listeners, "csr": self.csr} if self.listeners else {}
        if self.state == "Released":
            fields["figures"], fields["resets"] = self.figures, self.resets
        self.effects.answer(
            caller, Resp(uid=self.uid, seq=caller.seq, state=self.state, msg=msg, boot=self.boot, **fields)
        )

    def refuse(self, caller: Caller, code: ErrorCode, msg: str) -> None:
        self.effects.answer(caller, Error(uid=self.uid, seq=caller.seq, code=code, msg=msg))

    def wrong_state(self, caller: Caller, what: str) -> None:
        self.refuse(
            caller, "wrong-state", f"stream {self.uid} is {self.state}; that allows {_ALLOWS[self.state]}, not {what}"
        )

    def present_all(self, msg: str) -> None:
        callers, self.callers = self.callers, []
        for caller in callers:
            self.present(caller, msg)

    def refuse_all(self, error: StreamError) -> None:
        callers, self.callers = self.callers, []
        for caller in callers:
            self.refuse(caller, error.code, error.msg)


_ALLOWS = {
    "Idle": "ReqListeners",
    "Reserving": "REL",
    "Reserved": "UpdateTargets and REL",
    "Updating": "REL",
    "Forwarding": "UpdateTargets and REL",
    "Releasing": "REL only",
    "Released": "REL only",
}

_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving")
Reserved = _builder.state("Reserved")
Updating = _builder.state("Updating")
Forwarding = _builder.state("Forwarding")
Releasing = _builder.state("Releasing")
Released = _builder.state("Released")

STATES = (Idle, Reserving, Reserved, Updating, Forwarding, Releasing, Released)
LIVE = (Reserving, Reserved, Updating, Forwarding)

# -- ReqListeners


@Idle.upon(Stream.req_listeners).to(Reserving)
def _begin(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    core.state = "Reserving"
    core.request = request
    core.callers = [caller]
    core.effects.bind(request)


@Reserving.upon(Stream.bound).to(Reserved)
def _bound(stream: Stream, core: Core, listeners: list[str], csr: str) -> None:
    core.state = "Reserved"
    core.listeners, core.csr = list(listeners), csr
    assert core.request is not None
    core.effects.start_timer(core.request.expires)
    core.present_all(f"reserved {len(listeners)} listeners")


@Reserving.upon(Stream.not_bound).to(Released)
def _not_bound(stream: Stream, core: Core, error: StreamError) -> None:
    core.state = "Released"
    core.last_error = LastError(code=error.code, msg=error.msg[:2000])
    core.refuse_all(error)


def _req_again(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    if core.request is None or _fields(request) != _fields(core.request):
        core.refuse(caller, "uid-in-use", f"stream {core.uid} is there already, with other fields")
        return
    if core.state == "Reserving":
        core.callers.append(caller)
    core.present(caller, f"stream is {core.state}")


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


def _req_too_late(stream: Stream, core: Core, caller: Caller, request: ReqListeners) -> None:
    if core.last_error is not None and core.request is not None and _fields(request) == _fields(core.request):
        lost = StreamError.heard(core.last_error.code, core.last_error.msg)
        core.refuse(caller, lost.code, lost.msg)  # the answer that was lost, again
    else:
        core.wrong_state(caller, "ReqListeners")


for _state in LIVE:
    _state.upon(Stream.req_listeners).loop()(_req_again)
for _state in (Releasing, Released):
    _state.upon(Stream.req_listeners).loop()(_req_too_late)

# -- UpdateTargets


def _consider_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    """Carry out an UpdateTargets that is news, and answer any other: protocol section 7.4."""
    current = core.current
    if current is None or command.generation > current.generation:
        stream._carry_out(caller, command)
    elif command.generation == current.generation and _content(command) == _content(current):
        core.present(caller, f"generation {core.generation} is in force")
    else:
        msg = f"generation {command.generation} is not above {core.generation}, which is in force: send a higher one"
        core.refuse(caller, "wrong-state", msg)


def _carry_out_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    core.state = "Updating"
    core.callers = [caller]
    core.update = command
    core.effects.arm(command)


def _content(command: UpdateTargets) -> tuple[Any, ...]:
    return command.connection_map, command.data_conn_key


for _state in (Reserved, Forwarding):
    _state.upon(Stream.update_targets).loop()(_consider_update)
    _state.upon(Stream._carry_out).to(Updating)(_carry_out_update)


@Updating.upon(Stream.update_targets).loop()
def _update_again(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    update = core.update
    if update is not None and (command.generation, _content(command)) == (update.generation, _content(update)):
        core.callers.append(caller)
        core.present(caller, f"generation {command.generation} is being carried out")
    else:
        being = update.generation if update is not None else core.generation
        core.wrong_state(caller, f"generation {command.generation} while {being} is being carried out")


def _update_too_late(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    core.wrong_state(caller, "UpdateTargets")


for _state in (Idle, Reserving, Releasing, Released):
    _state.upon(Stream.update_targets).loop()(_update_too_late)


@Updating.upon(Stream.armed).to(Forwarding)
def _armed(stream: Stream, core: Core) -> None:
    core.state = "Forwarding"
    core.current, core.update = core.update, None
    if core.current is not None and core.current.expires is not None:
        core.effects.shorten_life(core.current.expires)
    core.present_all(f"generation {core.generation} is in force")


@Updating.upon(Stream.not_armed).loop()
def _not_armed(stream: Stream, core: Core, error: StreamError) -> None:
    core.update = None
    if error.code not in ("target-refused", "bad-message"):
        stream._fail(error)
        return
    core.refuse_all(error)
    if core.current is None:
        stream._back_to_reserved()
    else:
        stream._back_to_forwarding()


@Updating.upon(Stream._back_to_reserved).to(Reserved)
def _reserved_again(stream: Stream, core: Core) -> None:
    core.state = "Reserved"


@Updating.upon(Stream._back_to_forwarding).to(Forwarding)
def _forwarding_again(stream: Stream, core: Core) -> None:
    core.state = "Forwarding"


# -- the end


def _release(core: Core) -> None:
    core.state = "Releasing"
    core.effects.stop_timer()
    core.effects.close()


def _rel(stream: Stream, core: Core, caller: Caller) -> None:
    core.refuse_all(StreamError("wrong-state", "the stream was released meanwhile"))
    core.callers = [caller]
    _release(core)


def _fail(stream: Stream, core: Core, error: StreamError) -> None:
    core.last_error = LastError(code=error.code, msg=error.msg[:2000])
    core.refuse_all(error)
    _release(core)


def _expired(stream: Stream, core: Core) -> None:
    stream._fail(StreamError("expired", "the time of this stream is over"))


for _state in LIVE:
    _state.upon(Stream.rel).to(Releasing)(_rel)
    _state.upon(Stream._fail).to(Releasing)(_fail)
    _state.upon(Stream.failed).to(Releasing)(_fail)
    _state.upon(Stream.expired).loop()(_expired)


@Releasing.upon(Stream.rel).loop()
def _rel_again(stream: Stream, core: Core, caller: Caller) -> None:
    core.callers.append(caller)
    core.present(caller, "closing its connections")


@Releasing.upon(Stream.closed).to(Released)
def _closed(stream: Stream, core: Core, figures: list[ChannelFigures]) -> None:
    core.state = "Released"
    core.figures = figures
    core.listeners, core.csr = [], ""
    core.present_all("the stream is released")


@Released.upon(Stream.rel).loop()
def _rel_of_released(stream: Stream, core: Core, caller: Caller) -> None:
    core.present(caller, "the stream is released")


@Idle.upon(Stream.rel).to(Released)
def _rel_of_nothing(stream: Stream, core: Core, caller: Caller) -> None:
    core.state = "Released"
    core.refuse(caller, "unknown-uid", f"no stream {core.uid} was ever reserved here")


# -- what comes too late, or twice, changes nothing


def _unless(inputs: Callable[..., None], *states: Any) -> None:
    for state in STATES:
        if state not in states:
            state.upon(inputs).loop().returns(None)


_unless(Stream.bound, Reserving)
_unless(Stream.not_bound, Reserving)
_unless(Stream.armed, Updating)
_unless(Stream.not_armed, Updating)
_unless(Stream._carry_out, Reserved, Forwarding)
_unless(Stream._back_to_reserved, Updating)
_unless(Stream._back_to_forwarding, Updating)
_unless(Stream._fail, *LIVE)
_unless(Stream.expired, *LIVE)
_unless(Stream.failed, *LIVE)
_unless(Stream.closed, Releasing)

_machine = _builder.build()


def new_stream(core: Core) -> Stream:
    """The machine of a stream that the controller has not asked for yet."""
    return _machine(core)
