"""What the machine of a stream at an S2CS works with: its inputs, its effects, and the data of its states. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scistream.protocol.errors import ErrorCode, StreamError
from scistream.protocol.messages import UNSENT, Command, Error, Extend, ProdLstn, Req, Resp, StartConn, UpdateTargets
from scistream.s2cs.record import Record, ordered_listeners, ordered_wan_listeners, wan_abilities
from scistream.state_machines import Caller, wrong_state


class Effects(Protocol):
    """The actions that the machine triggers. No effect raises: an exception becomes the input `fault`.

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

    def extend(self, caller: Caller, seconds: float) -> None:
        """Ask all gateways to end the stream in `seconds` from now; then give `extended`, or refuse the command."""

    def set_life(self, record: Record, seconds: float) -> float:
        """End the stream in `seconds` from now, in place of the time when it was due. Return how much was left."""

    def take_back(self, seconds: float) -> None:
        """Let the gateways end the stream in `seconds` from now, since an extension failed after they accepted it."""

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

    def extend(self, caller: Caller, command: Extend) -> None:
        """Take Extend from the owner. The policy allows it."""

    def extended(self, callers: Sequence[Caller], seconds: float) -> None:
        """Note that all gateways will end the stream in `seconds` from now."""

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
            self.resp(
                caller,
                msg,
                listeners=listeners,
                csr=csr,
                expires=record.life or None,
                wan=wan_abilities(record),
                wan_listeners=ordered_wan_listeners(record) or None,
            )
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
    "Listening": "Hello, Extend and REL (and UpdateTargets at the consumer's side)",
    "Ready": "Hello, UpdateTargets, Extend and REL",
    "Updating": "Hello and REL",
    "Streaming": "Hello, UpdateTargets, Extend and REL",
    "Releasing": "REL only",
    "Released": "REL only",
}


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


def begin_reservation(
    stream: Stream, core: Core, caller: Caller, request: Req, owner: str, plan: Mapping[str, list[int]]
) -> Reservation:
    """Return the data of Reserving: all gateways of the plan are asked."""
    return Reservation([caller], set(plan))


def begin_update(stream: Stream, core: Core, caller: Caller | None, command: UpdateTargets) -> Update:
    """Return the data of Updating: all gateways of the plan are asked, unless the store cannot be written."""
    callers = [caller] if caller is not None else []
    return Update(callers, set(core.record.plan), command, is_own=caller is None, before=core.state)


def begin_release(stream: Stream, core: Core, cause: Caller | StreamError, callers: Sequence[Caller] = ()) -> Release:
    """Return the data of Releasing. The cause is the caller of REL, or the error that ends the stream."""
    return Release([] if isinstance(cause, StreamError) else [cause], set(core.record.plan))


STORE_FULL = "the store of this S2CS cannot be written"


def gateway_error(gateway: str, error: StreamError) -> StreamError:
    """Return the error of a gateway in the form in which users see it: with the name of the gateway."""
    known: tuple[ErrorCode, ...] = ("no-ports", "no-capacity", "target-refused")
    code: ErrorCode = error.code if error.code in known else "gateway-failed"
    return StreamError(code, f"gateway {gateway}: {error.msg}")


def notice(record: Record, error: StreamError) -> Error:
    """Return an unsolicited Error about a stream, for its owner or its application."""
    return Error(uid=record.uid, role=record.role, code=error.code, msg=error.msg)
