"""The machine of one stream at an S2CS. No I/O: what it wants done it asks of its `Effects`.

======================================= ====================================== =============
state                                   input                                  next
======================================= ====================================== =============
Idle                                    REQ                                    Reserving
Reserving                               last RESP                              Listening
Reserving                               ERROR, give-up                         Releasing
Reserving, Updating                     Hello                                  same
Listening                               Hello                                  Ready
Listening, Ready                        Hello timer                            Releasing
Ready, Streaming                        Hello                                  same
Ready, Streaming, Listening (CONS)      UpdateTargets                          Updating
Streaming (PROD)                        targets overdue                        Updating
Updating                                last RESP                              Streaming
Updating                                target-refused by all                  as before it
Updating                                bad-message by all                     as before it
Updating                                other ERROR, give-up                   Releasing
Reserving, Listening, Ready, Updating,  REL, expires, S2DS failed, policy      Releasing
Streaming
Reserving, Listening, Ready, Updating,  fault                                  Releasing
Streaming
Releasing                               last RESP, unknown-uid or new boot     Released
Releasing, Released                     REL                                    same
any                                     any other command                      same
======================================= ====================================== =============

Ready, Streaming and Released are idle: the stream rests there between operations.

Targets are overdue when ProdApp has said Hello with other listeners and the owner's client sends no UpdateTargets for
them. The machine then sets the targets of its own side by itself, under the credentials that are in force. An
UpdateTargets that arrives meanwhile waits for that, and is carried out afterwards.

Where the store cannot be written, no promise is made: a REQ ends as by an ERROR, and leaves nothing behind; a Hello and
an UpdateTargets are refused and change nothing. A release goes on all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder

from scistream.s2cs.record import (
    Record,
    content_of,
    map_problem,
    map_to_producer,
    ordered_listeners,
    part,
    same_request,
    share,
    spare_listeners,
    wrong_port,
)
from scistream.wire.errors import ErrorCode, StreamError
from scistream.wire.link import UNSENT, Caller
from scistream.wire.messages import (
    CONS,
    MAX_TEXT,
    PROD,
    Command,
    Error,
    LastError,
    ProdLstn,
    Rel,
    Req,
    Resp,
    StartConn,
    UpdateTargets,
)


class Effects(Protocol):
    """What the machine wants done. None of these raises (what does all the same comes back as `fault`), and none calls
    the machine before it returns, except through inputs that Automat postpones."""

    def save(self, record: Record) -> bool:
        """Write the record; False if it could not be written."""

    def forget(self, record: Record) -> None:
        """Nothing of this stream was ever written or reserved: it may be asked for as if it had never been."""

    def ask(self, gateway: str, command: Command) -> None:
        """Send a command to a gateway, in place of any earlier one about this stream that still waits there.

        The answer comes back as `gateway_answered`, `gateway_refused` or `gateway_released`.
        """

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Answer a command."""

    def tell_owner(self, message: ProdLstn | Error) -> None:
        """Send to the links on which the owner has spoken of this stream."""

    def tell_application(self, message: StartConn | Error) -> None:
        """Send to the application that said Hello, if its link is still there."""

    def start_timers(self, record: Record) -> None:
        """Feed `expired` and `hello_timeout` when the record's deadlines come."""

    def shorten_life(self, record: Record, seconds: float) -> None:
        """End the stream in so many seconds, unless it ends earlier already."""

    def stop_timers(self) -> None:
        """The stream is gone: no timer of it matters any more."""

    def await_targets(self) -> None:
        """Feed `targets_overdue` once the owner's client has had time to set targets for ProdApp's new listeners; at
        once if no client of the owner has a link here."""

    def has_owner_link(self) -> bool:
        """Whether a client of the owner that has spoken of this stream has a link here."""


class Stream(Protocol):
    """The inputs of the machine. None of them returns anything; none raises in any state."""

    def req(self, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
        """REQ from an authenticated user; `plan` spreads the channels over gateways if the stream is new."""

    def hello(self, caller: Caller, listeners: list[str]) -> None:
        """Hello, its `app_key` found right; `listeners` is empty for a consumer."""

    def update_targets(self, caller: Caller, command: UpdateTargets) -> None:
        """UpdateTargets from the owner."""

    def rel(self, caller: Caller) -> None:
        """REL from the owner."""

    def gateway_answered(self, gateway: str, answer: Resp) -> None:
        """A gateway's RESP to ReqListeners or UpdateTargets."""

    def gateway_refused(self, gateway: str, error: StreamError) -> None:
        """A gateway's ERROR to ReqListeners or UpdateTargets, or giving it up."""

    def gateway_released(self, gateway: str) -> None:
        """A gateway has nothing of this stream any more: it answered REL, or does not know the uid."""

    def gateway_lost(self, gateway: str, why: str) -> None:
        """A gateway has started anew, or has no such stream: what it held of it is gone."""

    def expired(self) -> None:
        """The stream's life is over."""

    def forbidden(self, why: str) -> None:
        """The policy of the facility lets the stream go on no longer; `why` is a sentence that names the rule."""

    def fault(self, error: StreamError) -> None:
        """An effect has failed by a fault of this S2CS, or nothing gets to the other side any more: the stream ends."""

    def hello_timeout(self) -> None:
        """No application has said Hello, or nobody has used it, in time."""

    def targets_overdue(self, problem: StreamError | None = None) -> None:
        """ProdApp listens elsewhere, and the owner's client has not set new targets; `problem` says why this S2CS may
        not set them either."""

    def _reserved(self) -> None:
        """All gateways have reserved."""

    def _greeted(self) -> None:
        """A Hello that came early counts now."""

    def _carry_out(self, caller: Caller | None, command: UpdateTargets) -> None:
        """An UpdateTargets has passed its checks; without a caller it is this machine's own."""

    def _armed(self) -> None:
        """All gateways have armed."""

    def _back_to_listening(self) -> None:
        """All gateways refused the targets."""

    def _back_to_ready(self) -> None:
        """All gateways refused the targets."""

    def _back_to_streaming(self) -> None:
        """All gateways refused the targets, or none was asked; the old map stays."""

    def _fail(self, code: ErrorCode, msg: str) -> None:
        """The stream cannot go on."""

    def _released(self) -> None:
        """No gateway has anything of it."""


@dataclass
class Core:
    """What the machine's states share: the record, and who and what is waited for."""

    effects: Effects
    record: Record
    callers: list[Caller] = field(default_factory=list)
    owing: set[str] = field(default_factory=set)
    refusals: dict[str, StreamError] = field(default_factory=dict)
    spares: dict[str, list[str]] = field(default_factory=dict)
    """Gateways that could take the place of one that cannot have the ports that are asked for by number."""
    other_addresses: dict[str, list[str]] = field(default_factory=dict)
    """Those of the Hello that is being heard."""
    update: UpdateTargets | None = None
    update_is_own: bool = False
    put_back: set[str] = field(default_factory=set)
    """Gateways that get the old targets again, since others have refused the new ones of this machine's own update."""
    postponed: list[tuple[Caller, UpdateTargets]] = field(default_factory=list)
    """What the owner's client has sent while the machine was setting targets by itself; repetitions of one command."""
    has_moved: bool = False
    """ProdApp has said Hello with other listeners since targets were last set."""
    before_update: str = "Ready"
    greeting: Caller | None = None
    listeners_told: list[str] = field(default_factory=list)
    hello_overdue: bool = False
    unwritten: bool = False

    # -- answers

    def resp(self, caller: Caller, state: str, msg: str, **fields: Any) -> None:
        self.effects.answer(caller, Resp(uid=self.record.uid, seq=caller.seq, state=state, msg=msg, **fields))

    def refuse(self, caller: Caller, code: ErrorCode, msg: str) -> None:
        self.effects.answer(caller, Error(uid=self.record.uid, seq=caller.seq, code=code, msg=msg))

    def present(self, caller: Caller, msg: str) -> None:
        """Answer with the state that the stream is in, and with all that a REQ asks for if it is there."""
        record = self.record
        if record.request is not None and len(record.listeners) == record.request.num_conn:
            listeners, csr = ordered_listeners(record), "".join(record.csr.values())
            self.resp(caller, record.state, msg, listeners=listeners, csr=csr, expires=record.life or None)
        else:
            self.resp(caller, record.state, msg)

    def release_callers(self) -> list[Caller]:
        waiting, self.callers = self.callers, []
        return waiting

    def release_all_callers(self) -> list[Caller]:
        postponed, self.postponed = self.postponed, []
        return self.release_callers() + [caller for caller, _ in postponed]

    # -- the record

    def enter(self, state: str) -> bool:
        """The state is entered: written down before anybody is told."""
        self.record.state = state
        return self.unwritten or self.effects.save(self.record)

    # -- gateways

    def ask_all(self, commands: Iterable[tuple[str, Command]]) -> None:
        pairs = list(commands)
        self.owing = {gateway for gateway, _ in pairs}
        self.refusals = {}
        for gateway, command in pairs:
            self.effects.ask(gateway, command)

    def tell_producer_listeners(self) -> None:
        record = self.record
        self.listeners_told = list(record.app_listeners)
        self.effects.tell_owner(ProdLstn(uid=record.uid, role=record.role, listeners=record.app_listeners))

    def tell_consumer_to_connect(self) -> None:
        record = self.record
        listeners = ordered_listeners(record)
        self.effects.tell_application(StartConn(uid=record.uid, role=record.role, seq=UNSENT, listeners=listeners))


_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving")
Listening = _builder.state("Listening")
Ready = _builder.state("Ready")
Updating = _builder.state("Updating")
Streaming = _builder.state("Streaming")
Releasing = _builder.state("Releasing")
Released = _builder.state("Released")

STATES = (Idle, Reserving, Listening, Ready, Updating, Streaming, Releasing, Released)
LIVE = (Reserving, Listening, Ready, Updating, Streaming)

# -- REQ


@Idle.upon(Stream.req).to(Reserving)
def _begin(stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
    record = core.record
    record.request = request
    record.owner = owner
    record.plan = {gateway: list(channels) for gateway, channels in plan.items()}
    core.callers = [caller]
    if not core.enter("Reserving"):
        core.unwritten = True
        record.plan = {}
        stream._fail("no-capacity", f"{_STORE_FULL}, so it takes no new stream: tell its operator")
        return
    core.effects.start_timers(record)
    core.ask_all((gateway, share(record, request, channels)) for gateway, channels in plan.items())


_STORE_FULL = "the store of this S2CS cannot be written"


def _req_again(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> None:
    record = core.record
    if owner != record.owner or not same_request(request, record.request):
        core.refuse(
            caller, "uid-in-use", f"stream {record.uid} is there already, with other fields: choose another uid"
        )
        return
    if record.state == "Reserving":
        core.callers.append(caller)
    core.present(caller, f"stream is {record.state}")
    if record.role == PROD and record.greeted and record.state != "Reserving":
        core.tell_producer_listeners()


for _state in LIVE:
    _state.upon(Stream.req).loop()(_req_again)


def _req_too_late(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> None:
    if owner != core.record.owner:
        core.refuse(caller, "uid-in-use", f"stream {core.record.uid} is not yours: choose another uid")
        return
    _wrong_state(core, caller, "a REQ")


for _state in (Releasing, Released):
    _state.upon(Stream.req).loop()(_req_too_late)

# -- reserving


@Reserving.upon(Stream.gateway_answered).loop()
def _one_reserved(stream: Stream, core: Core, gateway: str, answer: Resp) -> None:
    record = core.record
    channels = record.plan.get(gateway, [])
    listeners = answer.listeners or []
    if gateway not in core.owing:
        return
    if len(listeners) != len(channels) or not answer.csr or not answer.boot:
        stream._fail(
            "gateway-failed", f"gateway {gateway} gave {len(listeners)} listeners for {len(channels)} channels"
        )
        return
    assert record.request is not None
    wrong = wrong_port(record.request, channels, listeners)
    if wrong is not None:
        stream._fail("gateway-failed", f"gateway {gateway} {wrong}: tell its operator")
        return
    record.listeners.update(zip(channels, listeners, strict=True))
    record.csr[gateway] = answer.csr
    record.boots[gateway] = answer.boot
    core.owing.discard(gateway)
    if not core.owing:
        stream._reserved()


@Reserving.upon(Stream._reserved).to(Listening)
def _listen(stream: Stream, core: Core) -> None:
    if not core.enter("Listening"):
        stream._fail("no-capacity", f"{_STORE_FULL}, so it takes no new stream: tell its operator")
        return
    for caller in core.release_callers():
        core.present(caller, f"reserved {len(core.record.listeners)} listeners")
    if core.record.greeted:
        stream._greeted()
    if core.hello_overdue:
        stream.hello_timeout()


@Reserving.upon(Stream.gateway_refused).loop()
def _not_reserved(stream: Stream, core: Core, gateway: str, error: StreamError) -> None:
    if gateway not in core.owing:
        return
    core.refusals[gateway] = error
    if error.code == "no-ports" and core.spares.get(gateway):
        _ask_spare(stream, core, gateway)
    else:
        reasons = [_from_gateway(name, refusal)[1] for name, refusal in core.refusals.items()]
        stream._fail(_from_gateway(gateway, error)[0], "; ".join(reasons)[:MAX_TEXT])


def _ask_spare(stream: Stream, core: Core, gateway: str) -> None:
    """Ask another gateway for what one could not grant, and so does not hold."""
    record = core.record
    assert record.request is not None
    spare, *others = core.spares.pop(gateway)
    core.spares = {name: [one for one in left if one != spare] for name, left in core.spares.items()}
    core.spares[spare] = others
    channels = record.plan[spare] = record.plan.pop(gateway)
    core.owing = (core.owing - {gateway}) | {spare}
    if core.enter("Reserving"):  # written before it is asked, so that nothing is reserved that nobody knows of
        core.effects.ask(spare, share(record, record.request, channels))
    else:
        stream._fail("no-capacity", f"{_STORE_FULL}, so it takes no new stream: tell its operator")


def _from_gateway(gateway: str, error: StreamError) -> tuple[ErrorCode, str]:
    known: tuple[ErrorCode, ...] = ("no-ports", "no-capacity", "target-refused")
    code: ErrorCode = error.code if error.code in known else "gateway-failed"
    return code, f"gateway {gateway}: {error.msg}"


# -- Hello


def _remember_hello(core: Core, caller: Caller, listeners: list[str]) -> bool:
    """Note a Hello; False if it could not be written down."""
    record = core.record
    known = (record.greeted, record.app_listeners, record.other_addresses)
    record.greeted, record.app_listeners, record.other_addresses = True, list(listeners), dict(core.other_addresses)
    if known != (True, record.app_listeners, record.other_addresses) and not core.effects.save(record):
        record.greeted, record.app_listeners, record.other_addresses = known
        core.refuse(caller, "no-capacity", f"{_STORE_FULL}, so this Hello is not noted: tell its operator, come again")
        return False
    if record.role == PROD and (listeners != known[1] or _as_sets(record.other_addresses) != _as_sets(known[2])):
        core.has_moved = True
    return True


def _as_sets(addresses: dict[str, list[str]]) -> dict[str, set[str]]:
    return {listener: set(others) for listener, others in addresses.items()}


def _welcome(core: Core, caller: Caller) -> None:
    """Answer a Hello that is noted, with the state that it has led to."""
    record = core.record
    is_updated = record.state == "Updating" and core.before_update == "Streaming"
    if record.state != "Streaming" and not is_updated:
        msg = "welcome"  # an application controller shows its user what goes beyond this word
        if record.state == "Ready" and record.role == PROD and not core.effects.has_owner_link():
            msg += (
                "; the stream is not complete yet: the user who asked for it has to join both sides with "
                f"`s2uc attach {record.uid}`"
            )
    elif core.has_moved or (is_updated and record.role == PROD):
        msg = "welcome; new connections lead to these listeners as soon as the gateways have the new targets"
    else:
        msg = "welcome"
    core.resp(caller, record.state, msg + _spare(record))


def _spare(record: Record) -> str:
    """What an answer says of listeners of ProdApp that no channel leads to."""
    spare = spare_listeners(record)
    if not spare or record.request is None:
        return ""
    count = record.request.num_conn
    channels = "1 channel" if count == 1 else f"{count} channels"
    return f"; not used, since the stream has {channels}: {', '.join(spare)}"[:1000]


def _hello_early(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if _remember_hello(core, caller, listeners):
        _welcome(core, caller)


for _state in (Reserving, Updating):
    _state.upon(Stream.hello).loop()(_hello_early)


@Listening.upon(Stream.hello).loop()
def _first_hello(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if _remember_hello(core, caller, listeners):
        core.greeting = caller
        stream._greeted()


@Listening.upon(Stream._greeted).to(Ready)
def _become_ready(stream: Stream, core: Core) -> None:
    core.enter("Ready")
    greeting, core.greeting = core.greeting, None
    if greeting is not None:
        _welcome(core, greeting)
    if core.record.role == PROD:
        core.tell_producer_listeners()


@Ready.upon(Stream.hello).loop()
def _hello_when_ready(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == PROD and listeners != core.listeners_told:
        core.tell_producer_listeners()


@Streaming.upon(Stream.hello).loop()
def _hello_when_streaming(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == CONS:
        core.tell_consumer_to_connect()
    else:
        _tell_of_producer(core)


def _tell_of_producer(core: Core) -> None:
    """Tell the owner of ProdApp's listeners that are news, and see that new connections get there."""
    if core.record.app_listeners != core.listeners_told:
        core.tell_producer_listeners()
    if core.has_moved and core.record.state == "Streaming":
        core.effects.await_targets()


def _hello_too_late(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    _wrong_state(core, caller, "a Hello")


for _state in (Idle, Releasing, Released):
    _state.upon(Stream.hello).loop()(_hello_too_late)


def _late(stream: Stream, core: Core) -> None:
    stream._fail("timeout", "no application used the stream in time: its Hello timer ran out")


for _state in (Listening, Ready):
    _state.upon(Stream.hello_timeout).loop()(_late)


def _late_later(stream: Stream, core: Core) -> None:
    core.hello_overdue = True


for _state in (Reserving, Updating):
    _state.upon(Stream.hello_timeout).loop()(_late_later)

# -- UpdateTargets


def _consider_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    record = core.record
    if _repeats_update(core, caller, command):
        return
    problem = map_problem(record, command.connection_map)
    if problem is not None:
        core.refuse(caller, *problem)
    elif not command.data_conn_key:  # which would tell gateways to keep the credentials that they have
        core.refuse(caller, "bad-message", "field data_conn_key: it is empty, and has to be a bundle of certificates")
    else:
        stream._carry_out(caller, command)


def _repeats_update(core: Core, caller: Caller, command: UpdateTargets) -> bool:
    """Answer an UpdateTargets that is not news: protocol section 7.4."""
    record = core.record
    if command.generation > record.generation:
        return False
    if command.generation == record.generation and content_of(command) == record.content:
        core.present(caller, f"generation {record.generation} is in force")
    else:
        core.refuse(
            caller,
            "wrong-state",
            f"generation {command.generation} is not above {record.generation}, which is in force: send a higher one",
        )
    return True


for _state in (Ready, Streaming):
    _state.upon(Stream.update_targets).loop()(_consider_update)


@Listening.upon(Stream.update_targets).loop()
def _update_before_hello(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    if core.record.role == CONS:
        _consider_update(stream, core, caller, command)
    else:
        _wrong_state(core, caller, "UpdateTargets, until ProdApp says Hello")


@Updating.upon(Stream.update_targets).loop()
def _update_again(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    if core.update is not None and not core.update_is_own and _version(command) == _version(core.update):
        core.callers.append(caller)
        core.present(caller, f"generation {command.generation} is being carried out")
    elif core.update_is_own and all(_version(command) == _version(earlier) for _, earlier in core.postponed):
        earlier = core.postponed[0][1] if core.postponed else command
        core.postponed.append((caller, earlier))
        waiting = ", ".join(sorted(core.owing))
        core.present(caller, f"generation {command.generation} is carried out as soon as {waiting} has answered")
    else:
        being = core.update.generation if core.update is not None else core.record.generation
        _wrong_state(core, caller, f"generation {command.generation} while {being} is being carried out")


def _version(command: UpdateTargets) -> tuple[int, str]:
    return command.generation, content_of(command)


def _update_too_late(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    _wrong_state(core, caller, "UpdateTargets")


for _state in (Idle, Reserving, Releasing, Released):
    _state.upon(Stream.update_targets).loop()(_update_too_late)


def _carry_out_update(stream: Stream, core: Core, caller: Caller | None, command: UpdateTargets) -> None:
    record = core.record
    core.before_update = record.state
    core.update = command
    core.update_is_own = caller is None
    core.callers = [caller] if caller is not None else []
    core.put_back = set()
    core.has_moved = False
    record.is_own_update = core.update_is_own
    if core.update_is_own:
        record.own_updates += 1  # written before a gateway gets it: no number is ever used twice
    if not core.enter("Updating"):
        core.refusals = {}
        _RETURN[core.before_update](stream)
        return
    revision = command.generation + record.own_updates
    core.ask_all((gateway, part(record, gateway, command, revision)) for gateway in record.plan)


for _state in (Listening, Ready, Streaming):
    _state.upon(Stream._carry_out).to(Updating)(_carry_out_update)


@Streaming.upon(Stream.targets_overdue).loop()
def _follow_producer(stream: Stream, core: Core, problem: StreamError | None = None) -> None:
    record = core.record
    if not core.has_moved:
        return
    if problem is not None:
        core.has_moved = False
        core.effects.tell_application(_still_leads(record, problem.msg))
        return
    targets = map_to_producer(record)
    stream._carry_out(None, _own_update(record, targets))


def _own_update(record: Record, targets: dict[str, str]) -> UpdateTargets:
    return UpdateTargets(
        uid=record.uid,
        role=record.role,
        seq=UNSENT,
        generation=record.generation,
        connection_map=targets,
        data_conn_key="",
    )


@Updating.upon(Stream.gateway_answered).loop()
def _one_armed(stream: Stream, core: Core, gateway: str, answer: Resp) -> None:
    _update_answered(stream, core, gateway)


@Updating.upon(Stream.gateway_refused).loop()
def _not_armed(stream: Stream, core: Core, gateway: str, error: StreamError) -> None:
    if gateway not in core.owing:
        return
    core.refusals[gateway] = error
    if error.code in ("target-refused", "bad-message"):
        _update_answered(stream, core, gateway)
    else:
        stream._fail(*_from_gateway(gateway, error))


def _update_answered(stream: Stream, core: Core, gateway: str) -> None:
    core.owing.discard(gateway)
    if core.owing:
        return
    if not core.refusals:
        stream._armed()
    elif len(core.refusals) == len(core.record.plan) or core.put_back:
        _RETURN[core.before_update](stream)
    elif core.update_is_own:
        _put_back(core)
    else:
        gateway, error = next(iter(core.refusals.items()))
        stream._fail(*_from_gateway(gateway, error))


def _put_back(core: Core) -> None:
    """Give the old targets back to the gateways that have the new ones, since the others have refused those."""
    record = core.record
    core.put_back = record.plan.keys() - core.refusals.keys()
    core.owing = set(core.put_back)
    record.own_updates += 1
    core.enter("Updating")
    core.update = _own_update(record, record.connection_map)
    for gateway in sorted(core.put_back):
        core.effects.ask(gateway, part(record, gateway, core.update, record.revision))


_RETURN = {
    "Listening": lambda stream: stream._back_to_listening(),
    "Ready": lambda stream: stream._back_to_ready(),
    "Streaming": lambda stream: stream._back_to_streaming(),
}


@Updating.upon(Stream._armed).to(Streaming)
def _stream(stream: Stream, core: Core) -> None:
    record, update = core.record, core.update
    assert update is not None
    record.is_own_update = False
    if not core.update_is_own:
        record.generation, record.content = _version(update)
    if update.expires is not None:
        core.effects.shorten_life(record, update.expires)
    record.connection_map = dict(update.connection_map)
    core.update = None
    if not core.enter("Streaming") and not core.update_is_own:  # of its own the store has what a restart needs
        stream._fail("no-capacity", f"{_STORE_FULL}, so it cannot keep this stream: tell its operator")
        return
    for caller in core.release_callers():
        core.present(caller, f"generation {record.generation} is in force{_spare(record)}")
    _tell_what_hello_brought(core)
    _carry_out_postponed(stream, core)


def _tell_what_hello_brought(core: Core) -> None:
    """A Hello that came during an update has its effect after it."""
    record = core.record
    if record.role == CONS and record.greeted and record.state == "Streaming":
        core.tell_consumer_to_connect()
    elif record.role == PROD:
        _tell_of_producer(core)


def _carry_out_postponed(stream: Stream, core: Core) -> None:
    """What has come while the machine was setting targets by itself is looked at now."""
    postponed, core.postponed = core.postponed, []
    for caller, command in postponed:
        stream.update_targets(caller, command)


def _return(stream: Stream, core: Core) -> None:
    core.update = None
    core.record.is_own_update = bool(core.put_back & core.refusals.keys())
    core.enter(core.before_update)
    why = _why_not_updated(core)
    for caller in core.release_callers():
        core.refuse(caller, *why)
    if core.update_is_own:
        core.effects.tell_application(_still_leads(core.record, why[1]))
    elif core.record.role == PROD and why[0] == "target-refused":
        core.effects.tell_application(_news(core.record, *why))  # who said where to listen can mend it
    if not core.update_is_own and _leads_elsewhere(core.record):
        core.has_moved = True
    _tell_what_hello_brought(core)
    _carry_out_postponed(stream, core)
    if core.before_update == "Listening" and core.record.greeted:
        stream._greeted()
    if core.hello_overdue:
        stream.hello_timeout()


def _still_leads(record: Record, why: str) -> Error:
    """The news that ProdApp's listeners are not used. Its code says that the stream goes on: no end has it."""
    targets = ", ".join(sorted(set(record.connection_map.values())))
    return _news(
        record,
        "target-refused",
        f"new connections still lead to {targets[:1000]}, and not to where ProdApp listens now: {why[:500]}. The user "
        f"who asked for the stream can set its targets with `s2uc attach {record.uid}`",
    )


def _why_not_updated(core: Core) -> tuple[ErrorCode, str]:
    for gateway, error in core.refusals.items():
        code, msg = _from_gateway(gateway, error)
        return ("bad-message" if error.code == "bad-message" else code), msg
    return "no-capacity", f"{_STORE_FULL}, so the old targets stay: tell its operator"


Updating.upon(Stream._back_to_listening).to(Listening)(_return)
Updating.upon(Stream._back_to_ready).to(Ready)(_return)
Updating.upon(Stream._back_to_streaming).to(Streaming)(_return)

# -- the end


def _release_all(core: Core, stream: Stream) -> None:
    record = core.record
    core.effects.stop_timers()
    core.enter("Releasing")
    core.ask_all((gateway, Rel(uid=record.uid, role=record.role, seq=UNSENT)) for gateway in record.plan)
    if not core.owing:
        stream._released()


def _rel(stream: Stream, core: Core, caller: Caller) -> None:
    refuse = core.release_all_callers()
    core.callers = [caller]
    _release_all(core, stream)
    for other in refuse:
        core.refuse(other, "wrong-state", "the stream was released meanwhile")
    by_another = core.record.last_error
    gone = by_another.msg if by_another is not None else "the stream was released by its owner"
    core.effects.tell_application(_news(core.record, "released", gone))


def _failed(stream: Stream, core: Core, code: ErrorCode, msg: str) -> None:
    record = core.record
    record.last_error = LastError(code=code, msg=msg[:2000])
    callers = core.release_all_callers()
    _release_all(core, stream)
    for caller in callers:
        core.refuse(caller, code, msg)
    if not callers:
        core.effects.tell_owner(_news(record, code, msg))
    # To an application `target-refused` says that its stream goes on.
    core.effects.tell_application(_news(record, "gateway-failed" if code == "target-refused" else code, msg))


def _news(record: Record, code: ErrorCode, msg: str) -> Error:
    return Error(uid=record.uid, role=record.role, code=code, msg=msg)


def _expired(stream: Stream, core: Core) -> None:
    stream._fail("expired", "the time of this stream is over")


def _forbidden(stream: Stream, core: Core, why: str) -> None:
    stream._fail("not-authorized", why)


def _fault(stream: Stream, core: Core, error: StreamError) -> None:
    stream._fail(error.code, error.msg)


def _gateway_gone(stream: Stream, core: Core, gateway: str, why: str) -> None:
    if gateway in core.record.plan:
        core.owing.discard(gateway)
        stream._fail("gateway-failed", f"gateway {gateway}: {why}")


for _state in LIVE:
    _state.upon(Stream.rel).to(Releasing)(_rel)
    _state.upon(Stream._fail).to(Releasing)(_failed)
    _state.upon(Stream.expired).loop()(_expired)
    _state.upon(Stream.forbidden).loop()(_forbidden)
    _state.upon(Stream.fault).loop()(_fault)
    _state.upon(Stream.gateway_lost).loop()(_gateway_gone)


@Releasing.upon(Stream.rel).loop()
def _rel_again(stream: Stream, core: Core, caller: Caller) -> None:
    core.callers.append(caller)
    waiting = ", ".join(sorted(core.owing))
    core.resp(caller, "Releasing", f"waiting for {waiting} to confirm")


def _one_released(core: Core, stream: Stream, gateway: str) -> None:
    core.owing.discard(gateway)
    if not core.owing:
        stream._released()


@Releasing.upon(Stream.gateway_released).loop()
def _gateway_has_released(stream: Stream, core: Core, gateway: str) -> None:
    _one_released(core, stream, gateway)


@Releasing.upon(Stream.gateway_lost).loop()
def _gateway_has_lost(stream: Stream, core: Core, gateway: str, why: str) -> None:
    _one_released(core, stream, gateway)


@Releasing.upon(Stream._released).to(Released)
def _gone(stream: Stream, core: Core) -> None:
    core.enter("Released")
    if core.unwritten:
        core.effects.forget(core.record)
    for caller in core.release_callers():
        core.resp(caller, "Released", _GONE)


_GONE = "the stream is released"


@Released.upon(Stream.rel).loop()
def _rel_of_released(stream: Stream, core: Core, caller: Caller) -> None:
    core.resp(caller, "Released", _GONE)


@Idle.upon(Stream.rel).loop()
def _rel_of_nothing(stream: Stream, core: Core, caller: Caller) -> None:
    core.refuse(caller, "unknown-uid", f"no stream {core.record.uid} was ever asked for here")


def _wrong_state(core: Core, caller: Caller, what: str) -> None:
    record = core.record
    why = f" after {record.last_error.code}: {record.last_error.msg}" if record.last_error is not None else ""
    core.refuse(
        caller,
        "wrong-state",
        f"stream {record.uid} is {record.state}{why}; that allows {_ALLOWS[record.state]}, not {what}",
    )


_ALLOWS = {
    "Idle": "a REQ",
    "Reserving": "Hello and REL",
    "Listening": "Hello and REL (and UpdateTargets at the consumer's side)",
    "Ready": "Hello, UpdateTargets and REL",
    "Updating": "Hello and REL",
    "Streaming": "Hello, UpdateTargets and REL",
    "Releasing": "REL only",
    "Released": "REL only",
}

# -- what comes too late, or twice, changes nothing

for _state in (Idle, Listening, Ready, Streaming, Releasing, Released):
    _state.upon(Stream.gateway_answered).loop().returns(None)
    _state.upon(Stream.gateway_refused).loop().returns(None)
for _state in (Idle, *LIVE, Released):
    _state.upon(Stream.gateway_released).loop().returns(None)
for _state in (Idle, Released):
    _state.upon(Stream.gateway_lost).loop().returns(None)
for _state in (Idle, Releasing, Released):
    _state.upon(Stream.expired).loop().returns(None)
    _state.upon(Stream.forbidden).loop().returns(None)
    _state.upon(Stream.fault).loop().returns(None)
    _state.upon(Stream._fail).loop().returns(None)
for _state in STATES:
    if _state is not Streaming:
        _state.upon(Stream.targets_overdue).loop().returns(None)
for _state in (Idle, Streaming, Releasing, Released):
    _state.upon(Stream.hello_timeout).loop().returns(None)
for _state in STATES:
    if _state is not Reserving:
        _state.upon(Stream._reserved).loop().returns(None)
    if _state is not Listening:
        _state.upon(Stream._greeted).loop().returns(None)
    if _state not in (Listening, Ready, Streaming):
        _state.upon(Stream._carry_out).loop().returns(None)
    if _state is not Updating:
        _state.upon(Stream._armed).loop().returns(None)
        _state.upon(Stream._back_to_listening).loop().returns(None)
        _state.upon(Stream._back_to_ready).loop().returns(None)
        _state.upon(Stream._back_to_streaming).loop().returns(None)
    if _state is not Releasing:
        _state.upon(Stream._released).loop().returns(None)

_machine = _builder.build()


def new_stream(core: Core) -> Stream:
    """The machine of a stream that nobody has asked for yet."""
    return _machine(core)


def restored_stream(core: Core) -> Stream:
    """The machine of a stream found in the store after a restart.

    One that was in the middle of something cannot know how that ended: it is put into Reserving, from which
    `resume` releases it. Only targets that the S2CS was setting by itself can be set once more.
    """
    record = core.record
    if record.state == "Updating" and record.is_own_update:
        record.state = "Streaming"
    known = {state.name: state for state in (Listening, Ready, Streaming, Releasing, Released)}
    return _machine(core, known.get(record.state, Reserving))


def _leads_elsewhere(record: Record) -> bool:
    """Whether a channel leads to where ProdApp does not listen any more."""
    return record.role == PROD and not set(record.connection_map.values()) <= set(record.app_listeners)


def resume(stream: Stream, core: Core) -> None:
    """Go on after a restart: start the timers of a stream that rests, end one that was in the middle."""
    record = core.record
    if record.state in ("Listening", "Ready", "Streaming"):
        core.listeners_told = list(record.app_listeners)
        core.effects.start_timers(record)
        if record.greeted:
            stream._greeted()
        if record.is_own_update or _leads_elsewhere(record):
            core.has_moved = True
            core.effects.await_targets()
    elif record.state == "Releasing":
        _release_all(core, stream)
    elif record.state != "Released":
        stream._fail("gateway-failed", "the S2CS was restarted in the middle of an operation: ask for a new stream")
