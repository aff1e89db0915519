"""The machine of one stream at an S2CS. It does no I/O: its `Effects` carry out what it decides.

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

In Ready, Streaming and Released no operation is in progress.

Targets are overdue when ProdApp has said Hello with other listeners and the owner's client has not sent UpdateTargets
for them in time. The machine then sets the targets of its own side, under the credentials that are in force. An
UpdateTargets that arrives meanwhile is postponed until that is done.

If the store cannot be written, a REQ fails and leaves nothing behind, and a Hello or an UpdateTargets is refused and
changes nothing. A release goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder
from msgspec import structs

from scistream.links.outbox import UNSENT, Caller
from scistream.protocol.errors import ErrorCode, StreamError
from scistream.protocol.messages import (
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
from scistream.s2cs.record import (
    Record,
    content_of,
    map_problem,
    map_to_producer,
    ordered_listeners,
    reservation_for,
    same_request,
    spare_listeners,
    update_for_gateway,
    wrong_port,
)
from scistream.state_machines import SAME, begin_in, build, data_of, on, wrong_state


class Effects(Protocol):
    """What the machine can do outside itself. No effect raises: an exception becomes the input `fault`.

    No effect calls the machine before it returns, except through inputs that Automat queues.
    """

    def save(self, record: Record) -> bool:
        """Write the record. Return False if that failed."""

    def forget(self, record: Record) -> None:
        """Remove a stream of which nothing was ever written or reserved, so that its uid is free again."""

    def ask(self, gateway: str, command: Command) -> None:
        """Send a command to a gateway, in place of an earlier one about this stream that still waits for its answer.

        The answer arrives as `gateway_answered`, `gateway_refused` or `gateway_released`.
        """

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Answer a command."""

    def tell_owner(self, message: ProdLstn | Error) -> None:
        """Send a message on all links on which the owner has sent a command about this stream."""

    def tell_application(self, message: StartConn | Error) -> None:
        """Send a message to the application that said Hello, if its link is up."""

    def start_timers(self, record: Record) -> None:
        """Start timers that give the inputs `expired` and `hello_timeout` at the deadlines of the record."""

    def shorten_life(self, record: Record, seconds: float) -> None:
        """End the stream in `seconds` from now, unless it ends earlier."""

    def stop_timers(self) -> None:
        """Stop all timers of the stream."""

    def await_targets(self) -> None:
        """Start the timer that gives the input `targets_overdue`.

        Until then the owner's client has time to set targets for the new listeners of ProdApp. The input comes at once
        if no client of the owner has a link here.
        """

    def has_owner_link(self) -> bool:
        """Return True if the owner has a link here on which it has sent a command about this stream."""


class Stream(Protocol):
    """The inputs of the machine. Inputs return nothing and never raise."""

    def req(self, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
        """Take REQ from an authenticated user.

        :param plan: the channels of each gateway, if the stream is new.
        """

    def hello(self, caller: Caller, listeners: list[str]) -> None:
        """Take a Hello with the right `app_key`.

        :param listeners: where ProdApp listens; empty for a consumer.
        """

    def update_targets(self, caller: Caller, command: UpdateTargets) -> None:
        """Take UpdateTargets from the owner."""

    def rel(self, caller: Caller) -> None:
        """Take REL from the owner."""

    def gateway_answered(self, gateway: str, answer: Resp) -> None:
        """Take a gateway's RESP to ReqListeners or UpdateTargets."""

    def gateway_refused(self, gateway: str, error: StreamError) -> None:
        """Take a gateway's ERROR to ReqListeners or UpdateTargets, or a timeout of its answer."""

    def gateway_released(self, gateway: str) -> None:
        """Note that a gateway has released this stream: it answered REL, or does not know the uid."""

    def gateway_lost(self, gateway: str, why: str) -> None:
        """End the stream, because a gateway has lost its reservation: it has restarted, or does not know the stream."""

    def expired(self) -> None:
        """End the stream, because its life is over."""

    def forbidden(self, why: str) -> None:
        """End the stream, because the facility's policy no longer allows it; `why` names the rule."""

    def fault(self, error: StreamError) -> None:
        """End the stream, because an effect has raised, or the other side is out of reach for too long."""

    def hello_timeout(self) -> None:
        """End the stream if no application has said Hello in time, or no targets were set in time."""

    def targets_overdue(self, problem: StreamError | None = None) -> None:
        """Set targets for the new listeners of ProdApp, because the owner's client has not done so in time.

        :param problem: why this S2CS must not set them itself.
        """

    def _reserved(self) -> None:
        """Continue after all gateways have reserved."""

    def _hello_counts(self, caller: Caller | None) -> None:
        """Become ready, because a Hello was noted; the caller is None if the Hello was answered before."""

    def _carry_out(self, caller: Caller | None, command: UpdateTargets) -> None:
        """Carry out an UpdateTargets that has passed its checks; the caller is None if this machine has made it."""

    def _armed(self) -> None:
        """Continue after all gateways have armed their channels."""

    def _back_to_listening(self) -> None:
        """Return to Listening, because all gateways refused the targets, or none was asked."""

    def _back_to_ready(self) -> None:
        """Return to Ready, because all gateways refused the targets, or none was asked."""

    def _back_to_streaming(self) -> None:
        """Return to Streaming with the old targets, because all gateways refused the new ones, or none was asked."""

    def _fail(self, error: StreamError, callers: Sequence[Caller] = ()) -> None:
        """End the stream because of an error, with which `callers` are refused."""

    def _released(self) -> None:
        """Continue after all gateways have released the stream."""


@dataclass
class Core:
    """The data that all states of the machine share."""

    effects: Effects
    record: Record
    spares: dict[str, list[str]] = field(default_factory=dict)
    """For each gateway, others that could replace it if it cannot grant the ports that are requested by number."""
    other_addresses: dict[str, list[str]] = field(default_factory=dict)
    """The other addresses in the Hello that is being handled."""
    has_moved: bool = False
    """ProdApp has said Hello with other listeners since targets were last set."""
    listeners_told: list[str] = field(default_factory=list)
    """The listeners in the last ProdLstn to the owner."""
    unwritten: bool = False
    """The REQ could not be written, so the store has nothing of the stream."""

    @property
    def state(self) -> str:
        """The name of the current state, which is kept in the record."""
        return self.record.state

    @state.setter
    def state(self, name: str) -> None:
        self.record.state = name

    # -- answers

    def resp(self, caller: Caller, msg: str, **fields: Any) -> None:
        """Answer a command with RESP and the current state."""
        self.effects.answer(caller, Resp(uid=self.record.uid, seq=caller.seq, state=self.state, msg=msg, **fields))

    def refuse(self, caller: Caller, code: ErrorCode, msg: str) -> None:
        """Answer a command with ERROR."""
        self.effects.answer(caller, Error(uid=self.record.uid, seq=caller.seq, code=code, msg=msg))

    def refuse_wrong_state(self, caller: Caller, what: str) -> None:
        """Answer that the current state does not allow a command.

        :param what: the name of the command.
        """
        record = self.record
        why = f" after {record.last_error.code}: {record.last_error.msg}" if record.last_error is not None else ""
        self.refuse(caller, "wrong-state", wrong_state(record.uid, self.state + why, _ALLOWS[self.state], what))

    def answer_with_state(self, caller: Caller, msg: str) -> None:
        """Answer a command with the current state, and with listeners and certificate requests if all are known."""
        record = self.record
        if record.request is not None and len(record.listeners) == record.request.num_conn:
            listeners, csr = ordered_listeners(record), "".join(record.csr.values())
            self.resp(caller, msg, listeners=listeners, csr=csr, expires=record.life or None)
        else:
            self.resp(caller, msg)

    # -- the record

    def save(self) -> bool:
        """Write the record, before any message about its new state is sent. Return False if that failed."""
        return self.unwritten or self.effects.save(self.record)

    # -- gateways

    def ask_all(self, commands: Iterable[tuple[str, Command]]) -> None:
        """Send its command to each gateway."""
        for gateway, command in commands:
            self.effects.ask(gateway, command)

    def tell_producer_listeners(self) -> None:
        """Send the listeners of ProdApp to the owner."""
        record = self.record
        self.listeners_told = list(record.app_listeners)
        self.effects.tell_owner(ProdLstn(uid=record.uid, role=record.role, listeners=record.app_listeners))

    def tell_consumer_to_connect(self) -> None:
        """Send the listeners of the consumer's side to ConsApp."""
        record = self.record
        listeners = ordered_listeners(record)
        self.effects.tell_application(StartConn(uid=record.uid, role=record.role, seq=UNSENT, listeners=listeners))


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


# -- the data of states


@dataclass
class Operation:
    """The data of Reserving, Updating and Releasing."""

    waiting_callers: list[Caller]
    """They are answered when the operation is done."""
    pending_gateways: set[str]
    """They have not answered yet."""

    @property
    def all_callers(self) -> list[Caller]:
        """All callers that have not been answered yet."""
        return self.waiting_callers


@dataclass
class Reservation(Operation):
    """The data of Reserving."""

    refusals: dict[str, StreamError] = field(default_factory=dict)
    hello_is_overdue: bool = False
    """The Hello timer has run out during the operation."""


@dataclass
class Update(Operation):
    """The data of Updating."""

    command: UpdateTargets
    """The command that is being carried out."""
    is_own: bool
    """This S2CS has made the command itself, so no caller waits for it."""
    before: str
    """The state in which the update began, and to which it returns if all gateways refuse."""
    refusals: dict[str, StreamError] = field(default_factory=dict)
    put_back: set[str] = field(default_factory=set)
    """Gateways that are sent the old targets again, because others have refused the new ones of an own update."""
    postponed: list[tuple[Caller, UpdateTargets]] = field(default_factory=list)
    """Commands from the owner's client during an own update: repetitions of one command."""
    hello_is_overdue: bool = False
    """The Hello timer has run out during the operation."""

    @property
    def all_callers(self) -> list[Caller]:
        """All callers that have not been answered yet."""
        return self.waiting_callers + [caller for caller, _ in self.postponed]


@dataclass
class Release(Operation):
    """The data of Releasing."""


def _reserve(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> Reservation:
    return Reservation([caller], set(plan))


def _update(stream: Stream, core: Core, caller: Caller | None, command: UpdateTargets) -> Update:
    callers = [caller] if caller is not None else []
    return Update(callers, set(core.record.plan), command, is_own=caller is None, before=core.state)


def _release(stream: Stream, core: Core, cause: Caller | StreamError, callers: Sequence[Caller] = ()) -> Release:
    return Release([] if isinstance(cause, StreamError) else [cause], set(core.record.plan))


# -- REQ


def _begin(stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]) -> None:
    record = core.record
    record.request = request
    record.owner = owner
    record.plan = {gateway: list(channels) for gateway, channels in plan.items()}
    if not core.save():
        core.unwritten = True
        record.plan = {}
        stream._fail(_NO_NEW_STREAM)
        return
    core.effects.start_timers(record)
    core.ask_all((gateway, reservation_for(record, request, channels)) for gateway, channels in plan.items())


_STORE_FULL = "the store of this S2CS cannot be written"
_NO_NEW_STREAM = StreamError("no-capacity", f"{_STORE_FULL}, so it accepts no new streams: tell its operator")


def _req_while_reserving(
    stream: Stream,
    core: Core,
    reservation: Reservation,
    caller: Caller,
    request: Req,
    owner: str,
    plan: Mapping[str, list[int]],
) -> None:
    if _is_request_of(core.record, request, owner):
        reservation.waiting_callers.append(caller)
    _answer_req_again(core, caller, request, owner)


def _req_again(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> None:
    record = core.record
    _answer_req_again(core, caller, request, owner)
    if record.role == PROD and record.greeted and _is_request_of(record, request, owner):
        core.tell_producer_listeners()


def _answer_req_again(core: Core, caller: Caller, request: Req, owner: str) -> None:
    record = core.record
    if _is_request_of(record, request, owner):
        core.answer_with_state(caller, f"stream is {record.state}")
    else:
        core.refuse(caller, "uid-in-use", f"stream {record.uid} already exists with other fields: choose another uid")


def _is_request_of(record: Record, request: Req, owner: str) -> bool:
    """Return True if this is a repetition of the owner's request for the stream."""
    return owner == record.owner and same_request(request, record.request)


def _req_too_late(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> None:
    if owner != core.record.owner:
        core.refuse(caller, "uid-in-use", f"stream {core.record.uid} is not yours: choose another uid")
        return
    core.refuse_wrong_state(caller, "a REQ")


# -- reserving


def _one_reserved(stream: Stream, core: Core, reservation: Reservation, gateway: str, answer: Resp) -> None:
    record = core.record
    channels = record.plan.get(gateway, [])
    listeners = answer.listeners or []
    if gateway not in reservation.pending_gateways:
        return
    if len(listeners) != len(channels) or not answer.csr or not answer.boot:
        msg = f"gateway {gateway} granted {len(listeners)} listeners for {len(channels)} channels"
        stream._fail(StreamError("gateway-failed", msg))
        return
    assert record.request is not None
    wrong = wrong_port(record.request, channels, listeners)
    if wrong is not None:
        stream._fail(StreamError("gateway-failed", f"gateway {gateway} {wrong}: tell its operator"))
        return
    record.listeners.update(zip(channels, listeners, strict=True))
    record.csr[gateway] = answer.csr
    record.boots[gateway] = answer.boot
    reservation.pending_gateways.discard(gateway)
    if not reservation.pending_gateways:
        stream._reserved()


def _listen(stream: Stream, core: Core, reservation: Reservation) -> None:
    if not core.save():
        stream._fail(_NO_NEW_STREAM, reservation.waiting_callers)
        return
    for caller in reservation.waiting_callers:
        core.answer_with_state(caller, f"reserved {len(core.record.listeners)} listeners")
    if core.record.greeted:
        stream._hello_counts(None)
    if reservation.hello_is_overdue:
        stream.hello_timeout()


def _not_reserved(stream: Stream, core: Core, reservation: Reservation, gateway: str, error: StreamError) -> None:
    if gateway not in reservation.pending_gateways:
        return
    reservation.refusals[gateway] = error
    if error.code == "no-ports" and core.spares.get(gateway):
        _ask_spare(stream, core, reservation, gateway)
    else:
        reasons = [_from_gateway(name, refusal).msg for name, refusal in reservation.refusals.items()]
        stream._fail(StreamError(_from_gateway(gateway, error).code, "; ".join(reasons)[:MAX_TEXT]))


def _ask_spare(stream: Stream, core: Core, reservation: Reservation, gateway: str) -> None:
    """Ask another gateway for the ports that this one could not grant."""
    record = core.record
    assert record.request is not None
    spare, *others = core.spares.pop(gateway)
    core.spares = {name: [one for one in left if one != spare] for name, left in core.spares.items()}
    core.spares[spare] = others
    channels = record.plan[spare] = record.plan.pop(gateway)
    reservation.pending_gateways = (reservation.pending_gateways - {gateway}) | {spare}
    if core.save():  # before the gateway is asked, so that it reserves nothing of which there is no record
        core.effects.ask(spare, reservation_for(record, record.request, channels))
    else:
        stream._fail(_NO_NEW_STREAM)


def _from_gateway(gateway: str, error: StreamError) -> StreamError:
    """Return the error of a gateway in the form in which users see it: with the name of the gateway."""
    known: tuple[ErrorCode, ...] = ("no-ports", "no-capacity", "target-refused")
    code: ErrorCode = error.code if error.code in known else "gateway-failed"
    return StreamError(code, f"gateway {gateway}: {error.msg}")


# -- Hello


def _remember_hello(core: Core, caller: Caller, listeners: list[str], leads_to: str | None = None) -> bool:
    """Note a Hello in the record. Return False if the record could not be written, so that the Hello was refused.

    :param leads_to: the state that is entered next, which is written together with the Hello.
    """
    record = core.record
    known = (record.greeted, record.app_listeners, record.other_addresses)
    record.greeted, record.app_listeners, record.other_addresses = True, list(listeners), dict(core.other_addresses)
    is_new = leads_to is not None or known != (True, record.app_listeners, record.other_addresses)
    if is_new and not core.effects.save(structs.replace(record, state=leads_to or record.state)):
        record.greeted, record.app_listeners, record.other_addresses = known
        msg = f"{_STORE_FULL}, so this Hello was not recorded: tell its operator, and try again"
        core.refuse(caller, "no-capacity", msg)
        return False
    if record.role == PROD and (listeners != known[1] or _as_sets(record.other_addresses) != _as_sets(known[2])):
        core.has_moved = True
    return True


def _as_sets(addresses: dict[str, list[str]]) -> dict[str, set[str]]:
    return {listener: set(others) for listener, others in addresses.items()}


def _welcome(core: Core, caller: Caller, *, is_updated: bool = False) -> None:
    """Answer a Hello that was noted.

    :param is_updated: the stream already has targets, which are being replaced.
    """
    record = core.record
    if record.state != "Streaming" and not is_updated:
        msg = "welcome"  # an application controller shows its user only what follows this word
        if record.state == "Ready" and record.role == PROD and not core.effects.has_owner_link():
            msg += (
                "; the stream is not complete yet: the user who requested it has to join both sides with "
                f"`s2uc attach {record.uid}`"
            )
    elif core.has_moved or (is_updated and record.role == PROD):
        msg = "welcome; new connections will go to these listeners as soon as the gateways have the new targets"
    else:
        msg = "welcome"
    core.resp(caller, msg + _spare(record))


def _spare(record: Record) -> str:
    """Return the part of an answer that names listeners of ProdApp to which no channel leads, or ""."""
    spare = spare_listeners(record)
    if not spare or record.request is None:
        return ""
    count = record.request.num_conn
    channels = "1 channel" if count == 1 else f"{count} channels"
    return f"; not used, since the stream has {channels}: {', '.join(spare)}"[:1000]


def _hello_early(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if _remember_hello(core, caller, listeners):
        _welcome(core, caller)


def _hello_while_updating(stream: Stream, core: Core, update: Update, caller: Caller, listeners: list[str]) -> None:
    if _remember_hello(core, caller, listeners):
        _welcome(core, caller, is_updated=update.before == "Streaming")


def _first_hello(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if _remember_hello(core, caller, listeners, leads_to="Ready"):
        stream._hello_counts(caller)


def _become_ready(stream: Stream, core: Core, caller: Caller | None) -> None:
    if caller is not None:  # `_first_hello` has written the state
        _welcome(core, caller)
    else:
        core.save()
    if core.record.role == PROD:
        core.tell_producer_listeners()


def _hello_when_ready(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == PROD and listeners != core.listeners_told:
        core.tell_producer_listeners()


def _hello_when_streaming(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == CONS:
        core.tell_consumer_to_connect()
    else:
        _tell_of_producer(core)


def _tell_of_producer(core: Core) -> None:
    """Send new listeners of ProdApp to the owner, and wait for targets to them."""
    if core.record.app_listeners != core.listeners_told:
        core.tell_producer_listeners()
    if core.has_moved and core.state == "Streaming":
        core.effects.await_targets()


def _hello_too_late(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    core.refuse_wrong_state(caller, "a Hello")


def _hello_timed_out(stream: Stream, core: Core) -> None:
    stream._fail(StreamError("timeout", "no application used the stream before its Hello timer ran out"))


def _hello_timed_out_while_reserving(stream: Stream, core: Core, reservation: Reservation) -> None:
    reservation.hello_is_overdue = True


def _hello_timed_out_while_updating(stream: Stream, core: Core, update: Update) -> None:
    update.hello_is_overdue = True


# -- UpdateTargets


def _consider_update(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    record = core.record
    if _repeats_update(core, caller, command):
        return
    problem = map_problem(record, command.connection_map)
    if problem is not None:
        core.refuse(caller, *problem)
    elif not command.data_conn_key:  # without it gateways keep the credentials that they have
        core.refuse(caller, "bad-message", "field data_conn_key: is empty, but must be a bundle of certificates")
    else:
        stream._carry_out(caller, command)


def _repeats_update(core: Core, caller: Caller, command: UpdateTargets) -> bool:
    """Answer an UpdateTargets that is not newer than the one in force: protocol section 7.4.

    Return False if the command is newer, and so was not answered.
    """
    record = core.record
    if command.generation > record.generation:
        return False
    if command.generation == record.generation and content_of(command) == record.content:
        core.answer_with_state(caller, f"generation {record.generation} is in force")
    else:
        core.refuse(
            caller,
            "wrong-state",
            f"generation {command.generation} is not above {record.generation}, which is in force: send a higher one",
        )
    return True


def _update_before_hello(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    if core.record.role == CONS:
        _consider_update(stream, core, caller, command)
    else:
        core.refuse_wrong_state(caller, "UpdateTargets, until ProdApp says Hello")


def _update_again(stream: Stream, core: Core, update: Update, caller: Caller, command: UpdateTargets) -> None:
    if not update.is_own and _version(command) == _version(update.command):
        update.waiting_callers.append(caller)
        core.answer_with_state(caller, f"generation {command.generation} is being carried out")
    elif update.is_own and all(_version(command) == _version(earlier) for _, earlier in update.postponed):
        earlier = update.postponed[0][1] if update.postponed else command
        update.postponed.append((caller, earlier))
        waiting = ", ".join(sorted(update.pending_gateways))
        msg = f"generation {command.generation} will be carried out as soon as {waiting} has answered"
        core.answer_with_state(caller, msg)
    else:
        current = update.command.generation
        core.refuse_wrong_state(caller, f"generation {command.generation} while {current} is being carried out")


def _version(command: UpdateTargets) -> tuple[int, str]:
    return command.generation, content_of(command)


def _update_too_late(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    core.refuse_wrong_state(caller, "UpdateTargets")


def _carry_out_update(stream: Stream, core: Core, caller: Caller | None, command: UpdateTargets) -> None:
    record, update = core.record, data_of(stream, Update)
    assert update is not None
    core.has_moved = False
    record.is_own_update = update.is_own
    if update.is_own:
        record.own_updates += 1  # written before it is sent, so that no number is used twice
    if not core.save():
        _RETURN[update.before](stream)
        return
    revision = command.generation + record.own_updates
    core.ask_all((gateway, update_for_gateway(record, gateway, command, revision)) for gateway in record.plan)


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


def _one_armed(stream: Stream, core: Core, update: Update, gateway: str, answer: Resp) -> None:
    _update_answered(stream, core, update, gateway)


def _not_armed(stream: Stream, core: Core, update: Update, gateway: str, error: StreamError) -> None:
    if gateway not in update.pending_gateways:
        return
    update.refusals[gateway] = error
    if error.code in ("target-refused", "bad-message"):
        _update_answered(stream, core, update, gateway)
    else:
        stream._fail(_from_gateway(gateway, error))


def _update_answered(stream: Stream, core: Core, update: Update, gateway: str) -> None:
    update.pending_gateways.discard(gateway)
    if update.pending_gateways:
        return
    if not update.refusals:
        stream._armed()
    elif len(update.refusals) == len(core.record.plan) or update.put_back:
        _RETURN[update.before](stream)
    elif update.is_own:
        _put_back(core, update)
    else:
        stream._fail(_from_gateway(*next(iter(update.refusals.items()))))


def _put_back(core: Core, update: Update) -> None:
    """Send the old targets to the gateways that have accepted the new ones, because others have refused them."""
    record = core.record
    update.put_back = record.plan.keys() - update.refusals.keys()
    update.pending_gateways = set(update.put_back)
    record.own_updates += 1
    core.save()
    update.command = _own_update(record, record.connection_map)
    for gateway in sorted(update.put_back):
        core.effects.ask(gateway, update_for_gateway(record, gateway, update.command, record.revision))


_RETURN = {
    "Listening": lambda stream: stream._back_to_listening(),
    "Ready": lambda stream: stream._back_to_ready(),
    "Streaming": lambda stream: stream._back_to_streaming(),
}


def _stream(stream: Stream, core: Core, update: Update) -> None:
    record, command = core.record, update.command
    record.is_own_update = False
    if not update.is_own:
        record.generation, record.content = _version(command)
    if command.expires is not None:
        core.effects.shorten_life(record, command.expires)
    record.connection_map = dict(command.connection_map)
    if not core.save() and not update.is_own:  # after an own update, the store already has what a restart needs
        error = StreamError("no-capacity", f"{_STORE_FULL}, so it cannot keep this stream: tell its operator")
        stream._fail(error, update.all_callers)
        return
    for caller in update.waiting_callers:
        core.answer_with_state(caller, f"generation {record.generation} is in force{_spare(record)}")
    _answer_hello_during_update(core)
    _carry_out_postponed(stream, update)


def _answer_hello_during_update(core: Core) -> None:
    """Send what a Hello that came during the update asks for: StartConn or ProdLstn."""
    record = core.record
    if record.role == CONS and record.greeted and record.state == "Streaming":
        core.tell_consumer_to_connect()
    elif record.role == PROD:
        _tell_of_producer(core)


def _carry_out_postponed(stream: Stream, update: Update) -> None:
    """Handle the commands that came during an own update."""
    for caller, command in update.postponed:
        stream.update_targets(caller, command)


def _return(stream: Stream, core: Core, update: Update) -> None:
    core.record.is_own_update = bool(update.put_back & update.refusals.keys())
    core.save()
    reason = _why_not_updated(update)
    for caller in update.waiting_callers:
        core.refuse(caller, reason.code, reason.msg)
    if update.is_own:
        core.effects.tell_application(_still_leads(core.record, reason.msg))
    elif core.record.role == PROD and reason.code == "target-refused":
        core.effects.tell_application(_news(core.record, reason))  # ProdApp can listen elsewhere
    if not update.is_own and _leads_elsewhere(core.record):
        core.has_moved = True
    _answer_hello_during_update(core)
    _carry_out_postponed(stream, update)
    if core.state == "Listening" and core.record.greeted:
        stream._hello_counts(None)
    if update.hello_is_overdue:
        stream.hello_timeout()


def _still_leads(record: Record, why: str) -> Error:
    """Return the message to ProdApp that its new listeners are not used.

    The code is `target-refused`, which is never used for the end of a stream, so ProdApp knows that the stream goes on.
    """
    targets = ", ".join(sorted(set(record.connection_map.values())))
    msg = (
        f"new connections still go to {targets[:1000]}, not to the listeners of ProdApp: {why[:500]}. The user who "
        f"requested the stream can set its targets with `s2uc attach {record.uid}`"
    )
    return _news(record, StreamError("target-refused", msg))


def _why_not_updated(update: Update) -> StreamError:
    for gateway, error in update.refusals.items():
        reason = _from_gateway(gateway, error)
        return StreamError("bad-message", reason.msg) if error.code == "bad-message" else reason
    return StreamError("no-capacity", f"{_STORE_FULL}, so the old targets stay in force: tell its operator")


def _leads_elsewhere(record: Record) -> bool:
    """Return True if a channel leads to an address on which ProdApp no longer listens."""
    return record.role == PROD and not set(record.connection_map.values()) <= set(record.app_listeners)


# -- release and failure


def _release_all(stream: Stream, core: Core) -> None:
    """Ask all gateways to release the stream."""
    record = core.record
    core.effects.stop_timers()
    core.save()
    core.ask_all((gateway, Rel(uid=record.uid, role=record.role, seq=UNSENT)) for gateway in record.plan)
    if not record.plan:
        stream._released()


def _rel(stream: Stream, core: Core, caller: Caller) -> None:
    _released_by_owner(stream, core, [])


def _rel_meanwhile(stream: Stream, core: Core, operation: Operation, caller: Caller) -> None:
    _released_by_owner(stream, core, operation.all_callers)


def _released_by_owner(stream: Stream, core: Core, waiting_callers: list[Caller]) -> None:
    _release_all(stream, core)
    for other in waiting_callers:
        core.refuse(other, "wrong-state", "the stream was released before this command was carried out")
    by_administrator = core.record.last_error
    msg = by_administrator.msg if by_administrator is not None else "the stream was released by its owner"
    core.effects.tell_application(_news(core.record, StreamError("released", msg)))


def _failed(stream: Stream, core: Core, error: StreamError, callers: Sequence[Caller] = ()) -> None:
    record, code, msg = core.record, error.code, error.msg
    record.last_error = LastError(code=code, msg=msg[:2000])
    _release_all(stream, core)
    for caller in callers:
        core.refuse(caller, code, msg)
    if not callers:
        core.effects.tell_owner(_news(record, error))
    # For an application, `target-refused` means that its stream goes on.
    end = StreamError("gateway-failed", msg) if code == "target-refused" else error
    core.effects.tell_application(_news(record, end))


def _failed_meanwhile(
    stream: Stream, core: Core, operation: Operation, error: StreamError, callers: Sequence[Caller] = ()
) -> None:
    _failed(stream, core, error, [*operation.all_callers, *callers])


def _news(record: Record, error: StreamError) -> Error:
    return Error(uid=record.uid, role=record.role, code=error.code, msg=error.msg)


def _expired(stream: Stream, core: Core) -> None:
    stream._fail(StreamError("expired", "the time of this stream is over"))


def _forbidden(stream: Stream, core: Core, why: str) -> None:
    stream._fail(StreamError("not-authorized", why))


def _fault(stream: Stream, core: Core, error: StreamError) -> None:
    stream._fail(error)


def _gateway_gone(stream: Stream, core: Core, gateway: str, why: str) -> None:
    if gateway in core.record.plan:
        stream._fail(StreamError("gateway-failed", f"gateway {gateway}: {why}"))


def _rel_again(stream: Stream, core: Core, release: Release, caller: Caller) -> None:
    release.waiting_callers.append(caller)
    waiting = ", ".join(sorted(release.pending_gateways))
    core.resp(caller, f"waiting for {waiting} to confirm")


def _gateway_has_released(stream: Stream, core: Core, release: Release, gateway: str) -> None:
    release.pending_gateways.discard(gateway)
    if not release.pending_gateways:
        stream._released()


def _gateway_has_lost(stream: Stream, core: Core, release: Release, gateway: str, why: str) -> None:
    _gateway_has_released(stream, core, release, gateway)


def _gone(stream: Stream, core: Core, release: Release) -> None:
    core.save()
    if core.unwritten:
        core.effects.forget(core.record)
    for caller in release.waiting_callers:
        core.resp(caller, _GONE)


_GONE = "the stream is released"


def _rel_of_released(stream: Stream, core: Core, caller: Caller) -> None:
    core.resp(caller, _GONE)


def _rel_of_nothing(stream: Stream, core: Core, caller: Caller) -> None:
    core.refuse(caller, "unknown-uid", f"no stream {core.record.uid} was ever requested here")


# -- the states and the table

_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving", _reserve)
Listening = _builder.state("Listening")
Ready = _builder.state("Ready")
Updating = _builder.state("Updating", _update)
Streaming = _builder.state("Streaming")
Releasing = _builder.state("Releasing", _release)
Released = _builder.state("Released")

STATES = (Idle, Reserving, Listening, Ready, Updating, Streaming, Releasing, Released)
LIVE = (Reserving, Listening, Ready, Updating, Streaming)

_machine = build(
    _builder,
    STATES,
    [
        # REQ
        on(Idle, Stream.req, Reserving, _begin),
        on(Reserving, Stream.req, SAME, _req_while_reserving),
        on((Listening, Ready, Updating, Streaming), Stream.req, SAME, _req_again),
        on((Releasing, Released), Stream.req, SAME, _req_too_late),
        on(Reserving, Stream.gateway_answered, SAME, _one_reserved),
        on(Reserving, Stream.gateway_refused, SAME, _not_reserved),
        on(Reserving, Stream._reserved, Listening, _listen),
        # Hello
        on(Reserving, Stream.hello, SAME, _hello_early),
        on(Updating, Stream.hello, SAME, _hello_while_updating),
        on(Listening, Stream.hello, SAME, _first_hello),
        on(Listening, Stream._hello_counts, Ready, _become_ready),
        on(Ready, Stream.hello, SAME, _hello_when_ready),
        on(Streaming, Stream.hello, SAME, _hello_when_streaming),
        on((Idle, Releasing, Released), Stream.hello, SAME, _hello_too_late),
        on((Listening, Ready), Stream.hello_timeout, SAME, _hello_timed_out),
        on(Reserving, Stream.hello_timeout, SAME, _hello_timed_out_while_reserving),
        on(Updating, Stream.hello_timeout, SAME, _hello_timed_out_while_updating),
        # UpdateTargets
        on((Ready, Streaming), Stream.update_targets, SAME, _consider_update),
        on(Listening, Stream.update_targets, SAME, _update_before_hello),
        on(Updating, Stream.update_targets, SAME, _update_again),
        on((Idle, Reserving, Releasing, Released), Stream.update_targets, SAME, _update_too_late),
        on((Listening, Ready, Streaming), Stream._carry_out, Updating, _carry_out_update),
        on(Streaming, Stream.targets_overdue, SAME, _follow_producer),
        on(Updating, Stream.gateway_answered, SAME, _one_armed),
        on(Updating, Stream.gateway_refused, SAME, _not_armed),
        on(Updating, Stream._armed, Streaming, _stream),
        on(Updating, Stream._back_to_listening, Listening, _return),
        on(Updating, Stream._back_to_ready, Ready, _return),
        on(Updating, Stream._back_to_streaming, Streaming, _return),
        # release and failure
        on((Listening, Ready, Streaming), Stream.rel, Releasing, _rel),
        on(Reserving, Stream.rel, Releasing, _rel_meanwhile),
        on(Updating, Stream.rel, Releasing, _rel_meanwhile),
        on((Listening, Ready, Streaming), Stream._fail, Releasing, _failed),
        on(Reserving, Stream._fail, Releasing, _failed_meanwhile),
        on(Updating, Stream._fail, Releasing, _failed_meanwhile),
        on(LIVE, Stream.expired, SAME, _expired),
        on(LIVE, Stream.forbidden, SAME, _forbidden),
        on(LIVE, Stream.fault, SAME, _fault),
        on(LIVE, Stream.gateway_lost, SAME, _gateway_gone),
        on(Releasing, Stream.gateway_released, SAME, _gateway_has_released),
        on(Releasing, Stream.gateway_lost, SAME, _gateway_has_lost),
        on(Releasing, Stream._released, Released, _gone),
        on(Idle, Stream.rel, SAME, _rel_of_nothing),
        on(Releasing, Stream.rel, SAME, _rel_again),
        on(Released, Stream.rel, SAME, _rel_of_released),
    ],
    ignore_elsewhere=(
        Stream.gateway_answered,
        Stream.gateway_refused,
        Stream.gateway_released,
        Stream.gateway_lost,
        Stream.expired,
        Stream.forbidden,
        Stream.fault,
        Stream.hello_timeout,
        Stream.targets_overdue,
        Stream._reserved,
        Stream._hello_counts,
        Stream._carry_out,
        Stream._armed,
        Stream._back_to_listening,
        Stream._back_to_ready,
        Stream._back_to_streaming,
        Stream._fail,
        Stream._released,
    ),
)


def new_stream(core: Core) -> Stream:
    """Make the machine of a new stream, which has no request yet."""
    return _machine(core)


def restored_stream(core: Core) -> Stream:
    """Make the machine of a stream that was read from the store after a restart.

    If an operation was in progress, its result is not known. The machine then begins in Reserving, and `resume`
    releases the stream. Only an own update of targets can be repeated instead.
    """
    record = core.record
    if record.state == "Updating" and record.is_own_update:
        return begin_in(_machine, core, Streaming)
    for state in (Listening, Ready, Streaming, Released):
        if state.name == record.state:
            return begin_in(_machine, core, state)
    if record.state == "Releasing":
        return begin_in(_machine, core, Releasing, Release([], set(record.plan)))
    return begin_in(_machine, core, Reserving, Reservation([], set()))


def resume(stream: Stream, core: Core) -> None:
    """Go on with a stream after a restart: start its timers, or release it if an operation was in progress."""
    record = core.record
    if record.state in ("Listening", "Ready", "Streaming"):
        core.listeners_told = list(record.app_listeners)
        core.effects.start_timers(record)
        if record.greeted:
            stream._hello_counts(None)
        if record.is_own_update or _leads_elsewhere(record):
            core.has_moved = True
            core.effects.await_targets()
    elif record.state == "Releasing":
        _release_all(stream, core)
    elif record.state != "Released":
        msg = "the S2CS was restarted during an operation on this stream: request a new stream"
        stream._fail(StreamError("gateway-failed", msg))
