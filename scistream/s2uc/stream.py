"""Carry out what the machine of a stream decides, and report to the callers that wait for the stream.

A `ClientStream` belongs to one stream, and a `Server` is one S2CS. The public classes of the library, `Client` and
`Stream`, are in client.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList, FirstError, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.join_string import Join, hash_app_key, new_app_key
from scistream.protocol.messages import (
    CONS,
    MAX_GENERATION,
    MAX_LIFE,
    PROD,
    UNSENT,
    Command,
    Error,
    LastError,
    ProdLstn,
    Rel,
    Req,
    Resp,
    Role,
    Status,
    StreamStatus,
    UpdateTargets,
)
from scistream.s2uc.connection_map import connection_map, unused
from scistream.s2uc.extension import extend_both
from scistream.s2uc.machine import Core, Release, attached_stream, new_stream, remembered_stream
from scistream.s2uc.observers import Observers
from scistream.s2uc.server import Server
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.state_machines import data_of, guarded, trace

SIDE: dict[Role, str] = {PROD: "producer", CONS: "consumer"}
"""The words for each role in messages to people."""


DIALERS: dict[Role, str] = {
    CONS: "the consumer's gateways dial the producer's",
    PROD: "the producer's gateways dial the consumer's",
}
"""The sentence for people that says which side dials the other over the WAN."""


def check_sides(listen_ports: Mapping[Role, Sequence[int]]) -> None:
    """Check the keys of `listen_ports`.

    :raises ValueError: if a key is not a role.
    """
    for role in listen_ports:
        if role not in SIDE:
            raise ValueError(f"listen_ports: {role!r} is not a side of a stream: write {PROD!r} or {CONS!r}")


@dataclass(frozen=True)
class StreamRequest:
    """A user's request. `Client.request` documents the fields."""

    num_conn: int
    rate: float
    expires: float | None
    hello_timeout: float | None
    app_from: Sequence[str] | None
    label: str | None
    listen_ports: Mapping[Role, Sequence[int]] = field(default_factory=dict)
    wan_dialer: Role | None = None

    def req(self, uid: str, role: Role, app_key: str) -> Req:
        """Return the REQ for one side."""
        return Req(
            uid=uid,
            role=role,
            seq=1,
            num_conn=self.num_conn,
            rate=self.rate,
            app_key_hash=hash_app_key(app_key),
            expires=self.expires,
            hello_timeout=self.hello_timeout,
            app_from=list(self.app_from) if self.app_from is not None else None,
            label=self.label,
            listen_ports=list(self.listen_ports[role]) if role in self.listen_ports else None,
            wan_dialer=self.wan_dialer,
        )

    def check(self, uid: str) -> None:
        """Check that the protocol allows every value.

        :raises ValueError: if a value is out of range or of a wrong type.
        """
        check_sides(self.listen_ports)
        try:
            for role in SIDE:
                decode(encode(self.req(uid, role, new_app_key())))
        except BadMessageError as bad:
            raise ValueError(bad.msg) from None
        except TypeError as wrong:
            raise ValueError(str(wrong)) from None


class ClientStream:
    """The effects of one stream's machine.

    :param addresses: the address of the S2CS of each side.
    :param server_at: returns the server at an address.
    :param remembered: the stream was requested earlier: it can be checked, released or attached.
    :param app_keys: the keys of the applications of a remembered stream, if they are known.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        uid: str,
        addresses: dict[Role, Address],
        server_at: Callable[[Address], Server],
        *,
        remembered: bool,
        app_keys: Mapping[Role, str] | None = None,
    ) -> None:
        self.uid = uid
        self._guarded = guarded(self, self.log, self._failed, uid)
        """This object behind a guard: whatever the machine, the servers and answers call is called through it."""
        self.core = Core(self._guarded, uid)
        if remembered:
            self.core.reached = {PROD, CONS}
        self.core.sites = {role: str(address) for role, address in addresses.items()}
        self.machine = remembered_stream(self.core) if remembered else new_stream(self.core)
        self.observers = Observers(reactor, uid, self.sides)
        self._trace()
        self._was_remembered = remembered
        self._follows = not remembered  # messages of the sides are inputs of the machine
        self.connection_map: dict[str, str] = {}
        self.unused_listeners: list[str] = []
        self.reserve_seconds = 0.0
        self.provision_seconds = 0.0
        self.handed_out = remembered
        """True if the user has the stream and can release it. Otherwise it is released when the client closes."""
        self.on_reserved: Callable[[], None] = _nothing
        """Called when both sides have reserved, before the caller of `request` gets the stream."""
        self.on_extended: Callable[[float], None] = lambda _: None
        """Called with the seconds left when the stream has got another end."""
        self.on_released: Callable[[], None] = _nothing
        """Called when the stream is over and both sides have released it."""
        self._reactor = reactor
        self._addresses = addresses
        self._app_keys = dict(app_keys or {}) if remembered else {PROD: new_app_key(), CONS: new_app_key()}
        self._pending_commands: dict[Role, Deferred[Resp]] = {}
        self._pending_status: dict[Role, Deferred[Resp]] = {}
        self._reserved: list[Deferred[None]] = []
        self._streaming: list[Deferred[dict[str, str]]] = []
        self._ended: list[Deferred[None]] = []
        self._started_at = 0.0
        self._requested_life: float | None = None
        self._pending_listeners: list[str] | None = None
        """The newest listeners of ProdApp, if they came too soon after the last update and wait for their turn."""
        self._ends_at: dict[Role, float] = {}
        """When the stream ends at each facility, in the reactor's time."""
        self._servers = {role: server_at(address) for role, address in addresses.items()}
        for server in self._servers.values():
            server.add(self._guarded)

    def _trace(self) -> None:
        trace(self.machine, self.log, changed=self._state_changed, party="s2uc", uid=self.uid)

    def _state_changed(self, before: str, state: str) -> None:
        self.observers.state_changed(before, state, lambda: self.core.error)

    def request(self, request: StreamRequest) -> Deferred[None]:
        """Request the stream from both sides.

        :returns: fires when both sides have reserved. Cancelling it releases the stream.
        """
        commands = {role: request.req(self.uid, role, key) for role, key in self._app_keys.items()}
        waiting: Deferred[None] = Deferred(self._request_cancelled)
        self._reserved.append(waiting)
        self._started_at = self._reactor.seconds()
        self._requested_life = request.expires
        self.core.wanted_dialer = request.wan_dialer
        self.machine.request(commands)
        return waiting

    async def attach(self) -> None:
        """Continue the stream from the state that both sides report. If one side is over, release the other.

        :raises StreamError: if a side does not answer, or the stream is over at a side, or is released meanwhile.
        """
        deadline = self._reactor.seconds() + timing.FACILITY_ANSWER
        sides = await self.status()
        while any(side.state in ("Reserving", "Updating") for side in sides.values()):
            if self._reactor.seconds() > deadline:
                raise StreamError(
                    "timeout",
                    f"a side is still Reserving or Updating after {timing.FACILITY_ANSWER:g} s: try again later",
                )
            await deferLater(self._reactor, timing.STATE_POLL)
            sides = await self.status()
        for role in (PROD, CONS):
            if role not in sides or sides[role].state in ("Releasing", "Released"):
                self.machine.failed(self._why_over(role, sides.get(role)))
        if self.core.state in ("Releasing", "Released"):  # a side is over, or the user has released the stream
            await self.when_ended()
            self.check_ended()
            raise self._why_ended()
        self._adopt_state(sides)

    def _why_over(self, role: Role, side: StreamStatus | None) -> StreamError:
        if side is None:
            return StreamError("unknown-uid", f"the {SIDE[role]} side does not know stream {self.uid}")
        last = side.last_error or LastError(code="wrong-state", msg="it was released")
        return StreamError.from_peer(last.code, f"the {SIDE[role]} side is {side.state}: {last.msg}")

    def _adopt_state(self, sides: dict[Role, StreamStatus]) -> None:
        core = self.core
        for role, side in sides.items():
            core.answers[role] = Resp(
                uid=self.uid, seq=1, state=side.state, msg="", listeners=side.listeners, csr=side.csr, wan=side.wan
            )
        core.generation = max(side.generation for side in sides.values())
        before = core.state
        now = self._reactor.seconds()
        self._ends_at = {role: now + side.seconds_left for role, side in sides.items()}
        app = sides[PROD].app_listeners
        chosen = [side.wan_dialer for side in sides.values() if side.wan_dialer is not None]
        core.wanted_dialer = PROD if PROD in chosen else CONS if chosen else None
        core.choose_dialer()
        try:
            maps = connection_map(sides[PROD].listeners, sides[CONS].listeners, app) if app else None
        except ValueError as wrong:
            raise StreamError("gateway-failed", str(wrong)) from None
        in_force = {side.generation for side in sides.values()} == {core.generation} and all(
            side.state == "Streaming" for side in sides.values()
        )
        if in_force and maps is not None:
            self.connection_map = {**sides[CONS].connection_map, **sides[PROD].connection_map}
            same = sides[PROD].connection_map == maps[PROD]
            core.provisioned_for = list(app) if same else []
            self.machine = remembered_stream(core)
        else:
            self.machine = attached_stream(core)
        if core.state != before:
            self._state_changed(before, core.state)
        self._trace()
        self._follows = True
        if app:
            self.machine.prod_lstn(app)

    @property
    def listeners(self) -> dict[Role, list[str]]:
        """The listeners of each side that has reserved, one for each channel."""
        return {role: list(answer.listeners or []) for role, answer in self.core.answers.items()}

    def waits_for(self) -> str:
        """Return what is missing before the stream continues, to complete the sentence "waiting for ..."."""
        sides = []
        for role, answer in [*self._pending_commands.items(), *self._pending_status.items()]:
            if not answer.called:
                reason = self._servers[role].dialer.outbox.reason.rstrip(".")
                sides.append(f"the {SIDE[role]} side at {self._addresses[role]}" + (f": {reason}" if reason else ""))
        return " and ".join(sides) or ("the release" if self.core.state == "Releasing" else "ProdApp's Hello")

    def roles_at(self, server: Server) -> list[Role]:
        """Return the sides of this stream at a server."""
        return [role for role, each in self._servers.items() if each is server]

    def join_strings(self) -> dict[Role, str]:
        """Return the join string of each side; empty for a remembered stream."""
        return {
            role: str(Join(self.uid, key, self._addresses[role], role, self._servers[role].authority))
            for role, key in self._app_keys.items()
        }

    def _failed(self, effect: str, _error: StreamError) -> None:
        """End the stream after a method of this class has raised, in a way that no further failure can block."""
        error = StreamError("gateway-failed", f"s2uc itself failed ({effect}), so the stream is released: see its log")
        if effect == "ended" or self.core.state == "Released":
            self.core.error = self.core.error or error
            self._tell_ended()
        elif self.core.state == "Releasing":
            self._reactor.callLater(0, self._give_up_unanswered, error)
        elif self._follows:  # a failure while a stream is only checked does not end it
            self.machine.failed(error)

    def _give_up_unanswered(self, error: StreamError) -> None:
        """Stop waiting for each side that can no longer answer REL."""
        release = data_of(self.machine, Release)
        for role in list(release.pending_sides) if release is not None else ():
            answer = self._pending_commands.get(role)
            if answer is None or answer.called:
                self.machine.side_refused(role, error)

    # -- Effects

    def ask(self, role: Role, command: Command) -> None:
        """Send a command to a side, in place of any earlier one that is not answered yet."""
        earlier = self._pending_commands.pop(role, None)
        if earlier is not None:
            earlier.cancel()
        server = self._servers[role]
        if isinstance(command, Rel) and not self._follows:
            answer = server.ask_if_reached(command, timing.FACILITY_ANSWER)
        else:
            answer = server.dialer.ask(command, timing.FACILITY_ANSWER)
        self._pending_commands[role] = answer
        timeout = timing.FACILITY_RELEASE if isinstance(command, Rel) else timing.FACILITY_WORK
        answer.addTimeout(timeout, self._reactor, lambda *_: _still_working(command, timeout))
        answer.addCallbacks(self._guarded._command_answered, self._guarded._command_failed, (command,), {}, (role,))

    def _command_answered(self, answer: Resp, command: Command) -> None:
        """Take a final answer. A facility that has not granted what it was asked for fails the stream."""
        assert command.role is not None
        if isinstance(command, Req):
            count = len(answer.listeners or [])
            if 0 < count != command.num_conn:
                msg = f"its facility has granted {count} listeners for {command.num_conn} channels"
                self.machine.failed(StreamError("gateway-failed", f"{SIDE[command.role]} side: {msg}"))
                return
            if (reason := _ports_not_granted(command, answer.listeners or [])) is not None:
                self.machine.failed(StreamError("no-ports", f"{SIDE[command.role]} side: {reason}"))
                return
        self.machine.side_answered(command.role, answer)

    def abandon(self) -> None:
        """Stop waiting for the sides that have not confirmed a release."""
        release = data_of(self.machine, Release)
        for role in list(release.pending_sides) if release is not None else ():
            self.forget(role)
            self.machine.side_refused(role, StreamError("timeout", "s2uc stopped waiting"))

    def forget(self, role: Role) -> None:
        """Send no further command to a side."""
        answer = self._pending_commands.pop(role, None)
        if answer is not None:
            answer.cancel()

    def provision(self, generation: int) -> None:
        """Make the connection map and the credentials of a generation."""
        self._started_at = self._reactor.seconds()
        if generation > MAX_GENERATION:
            msg = f"a facility reports generation {generation - 1}, which is the last one: request a new stream"
            self.machine.failed(StreamError("gateway-failed", msg))
            return
        listeners = self.listeners
        requests = {role: answer.csr or "" for role, answer in self.core.answers.items()}
        try:
            maps = connection_map(listeners[PROD], listeners[CONS], self.core.app_listeners)
            keys = issue_credentials(self.uid, generation, MAX_LIFE, requests)
        except (StreamError, ValueError) as problem:
            error = problem if isinstance(problem, StreamError) else StreamError("gateway-failed", str(problem))
            self.machine.failed(error)
            return
        self.connection_map = {**maps[CONS], **maps[PROD]}
        self.unused_listeners = unused(self.core.app_listeners, len(listeners[PROD]))
        self.machine.targets_made(
            {
                role: UpdateTargets(
                    uid=self.uid,
                    role=role,
                    seq=UNSENT,
                    generation=generation,
                    connection_map=maps[role],
                    data_conn_key=keys[role],
                    expires=self._shorter_life(role),
                    # The machine completes the command for a producer that dials, when the consumer has answered.
                    wan_dialer=self.core.wan_dialer if role == CONS else CONS,
                )
                for role in maps
            }
        )

    def _shorter_life(self, role: Role) -> float | None:
        """Return the seconds left, for a side whose facility has granted more than the other, or else None.

        With it both sides end at the same time.
        """
        left = self.seconds_left
        return left if 0 < left < self._ends_at[role] - self._reactor.seconds() - timing.SAME_END else None

    @property
    def seconds_left(self) -> float:
        """Seconds until the stream ends at the facility that ends it first; 0 if that is unknown."""
        return float(max(0.0, min(self._ends_at.values(), default=0.0) - self._reactor.seconds()))

    async def extend(self, by: float) -> float:
        """Let the stream end `by` seconds later, at both sides or at neither. Return the seconds until then.

        :raises StreamError: as `extend_both`, or if a side does not answer.
        """
        left = await extend_both(self._reactor, self._servers, self.uid, await self.status(), by)
        self._ends_at = dict.fromkeys(self._servers, self._reactor.seconds() + left)
        self.on_extended(left)
        return left

    def reserved(self) -> None:
        """Give the stream to the caller of `request`."""
        for role, answer in self.core.answers.items():
            granted = [life for life in (answer.expires, self._requested_life) if life is not None]
            self._ends_at[role] = self._started_at + min(granted, default=MAX_LIFE)
        self.on_reserved()
        self.reserve_seconds = self._reactor.seconds() - self._started_at
        for waiting in _take_all(self._reserved):
            waiting.callback(None)

    def streaming(self) -> None:
        """Give the connection map to everyone who waits for it. Both sides end the stream at the same time now."""
        self._ends_at = dict.fromkeys(self._ends_at, min(self._ends_at.values(), default=0.0))
        self.provision_seconds = self._reactor.seconds() - self._started_at
        for waiting in _take_all(self._streaming):
            waiting.callback(self.connection_map)

    def ended(self) -> None:
        """Report the end to everyone who waits for the stream."""
        for server in self._servers.values():
            server.remove(self._guarded)
        if not self.core.not_released and not self.is_unknown:
            self.on_released()
        self._tell_ended()

    def _tell_ended(self) -> None:
        for reserved in _take_all(self._reserved):
            reserved.errback(Failure(self._why_ended()))
        for streaming in _take_all(self._streaming):
            streaming.errback(Failure(self._why_ended()))
        for ended in _take_all(self._ended):
            ended.callback(None)

    # -- callers that wait

    def when_streaming(self) -> Deferred[dict[str, str]]:
        """Return a Deferred that fires with the connection map when both sides stream."""
        waiting: Deferred[dict[str, str]] = Deferred(self._forget)
        if self.core.state == "Streaming":
            waiting.callback(self.connection_map)
        elif self.core.state == "Released":
            waiting.errback(Failure(self._why_ended()))
        else:
            self._streaming.append(waiting)
        return waiting

    def when_ended(self) -> Deferred[None]:
        """Return a Deferred that fires when the stream is over."""
        waiting: Deferred[None] = Deferred(self._forget)
        if self.core.state == "Released":
            waiting.callback(None)
        else:
            self._ended.append(waiting)
        return waiting

    def client_closes(self) -> None:
        """Release the stream if the user does not have it."""
        if not self.handed_out:
            self.machine.release()

    def when_released(self) -> Deferred[None]:
        """Return a Deferred that fires when no release is in progress."""
        return self.when_ended() if self.core.state == "Releasing" else succeed(None)

    def _request_cancelled(self, cancelled: Deferred[Any]) -> None:
        self._forget(cancelled)
        self.machine.release()

    def _forget(self, cancelled: Deferred[Any]) -> None:
        for waiters in (self._reserved, self._streaming, self._ended):
            if cancelled in waiters:
                cast("list[Deferred[Any]]", waiters).remove(cancelled)

    @property
    def is_unknown(self) -> bool:
        """True for a remembered stream of which no side had anything to release.

        The facilities may still have it, if it was requested with another certificate.
        """
        return self._was_remembered and self.core.unknown_at == set(self._servers)

    def check_released(self) -> None:
        """Check that the stream was released at both sides.

        :raises StreamError: if a side has not confirmed the release.
        """
        for role, error in self.core.not_released.items():
            raise StreamError(
                error.code,
                f"the {SIDE[role]} side at {self._addresses[role]} has not confirmed the release ({error.msg}); "
                "it releases by itself when the stream expires",
            )

    def check_ended(self) -> None:
        """Check that the stream has ended by a release.

        :raises StreamError: if it has failed, or a side has not confirmed the release.
        """
        if self.core.error is not None:
            raise self.core.error
        self.check_released()

    def _why_ended(self) -> StreamError:
        return self.core.error or StreamError("wrong-state", f"stream {self.uid} is released")

    # -- from the servers

    def _command_failed(self, failure: Failure, role: Role) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        closed_by_us = not self._servers[role].dialer.running
        if isinstance(error, StreamError) and not (error.code == "shutting-down" and closed_by_us):
            self.machine.side_refused(role, error)

    def message_received(self, server: Server, message: ProdLstn | Error) -> None:
        """Take a ProdLstn, or an ERROR that says that a side has failed. Only the server of that side may send it."""
        if not self._follows or message.role not in self.roles_at(server):
            return
        if isinstance(message, ProdLstn):
            self._note_listeners(message.listeners)
        elif message.role is not None:
            self.machine.failed(StreamError.from_peer(message.code, f"{SIDE[message.role]} side: {message.msg}"))

    def _note_listeners(self, listeners: list[str]) -> None:
        """Give ProdApp's listeners to the machine: at once, or the newest ones when a second has passed since."""
        left = self._started_at + timing.BETWEEN_TARGETS - self._reactor.seconds() if self.core.generation else 0.0
        if left <= 0 and self._pending_listeners is None:
            self.machine.prod_lstn(listeners)
            return
        if self._pending_listeners is None:
            self._reactor.callLater(left, self._guarded._apply_pending_listeners)
        self._pending_listeners = listeners

    def _apply_pending_listeners(self) -> None:
        listeners, self._pending_listeners = self._pending_listeners, None
        if listeners is not None:
            self.machine.prod_lstn(listeners)

    def link_up(self, server: Server) -> None:
        """Note that a server can be reached, and ask what may have changed meanwhile."""
        self.reached(server)
        self.poll(server)

    def reached(self, server: Server) -> None:
        """Note that a server can be reached, so that it may know of the stream from now on."""
        for role in self.roles_at(server):
            self.machine.reached(role)

    def link_failed_permanently(self, server: Server, reason: str) -> None:
        """Fail the stream, since a server cannot be reached with the user's certificates."""
        for role in self.roles_at(server) if self._follows else ():
            if self.core.state != "Releasing":
                where = f"{SIDE[role]} side at {self._addresses[role]}"
                self.machine.failed(StreamError("not-authenticated", f"{where}: {reason}"))
            if role not in self.core.answers:  # it has never accepted a link, so it cannot have reserved
                self.forget(role)
                self.machine.side_refused(role, StreamError("unknown-uid", reason))

    def poll(self, server: Server) -> None:
        """Ask for the state of a stream on which no operation is pending, in case a ProdLstn or an ERROR was lost."""
        if self._follows and self.core.state in ("Reserved", "Streaming"):
            for role in self.roles_at(server):
                answer = server.dialer.ask(Status(uid=self.uid, role=role, seq=UNSENT), timing.FACILITY_ANSWER)
                guarded_self = self._guarded
                answer.addCallbacks(guarded_self._status_answered, guarded_self._status_failed, (role,), {}, (role,))

    def _status_answered(self, answer: Resp, role: Role) -> None:
        for status in self._of_side(answer, role):
            if status.state in ("Releasing", "Released"):
                last = status.last_error or LastError(code="released", msg="the stream was released")
                self._lost(role, StreamError.from_peer(last.code, last.msg))
            else:
                self._note_end(role, status.seconds_left)
                if role == PROD and status.app_listeners:
                    self._note_listeners(status.app_listeners)

    def _note_end(self, role: Role, seconds: float) -> None:
        """Note when a facility ends its side, since another process may have extended the stream."""
        if role in self._ends_at:
            self._ends_at[role] = self._reactor.seconds() + seconds

    def _of_side(self, answer: Resp, role: Role) -> list[StreamStatus]:
        """Return what a facility reports about its own side; what it reports about the other is ignored."""
        return [status for status in answer.streams or [] if (status.uid, status.role) == (self.uid, role)]

    def _status_failed(self, failure: Failure, role: Role) -> None:
        failure.trap(StreamError, CancelledError)
        if isinstance(failure.value, StreamError) and failure.value.code == "unknown-uid":
            self._lost(role, failure.value)

    def _lost(self, role: Role, error: StreamError) -> None:
        if self.core.state in ("Reserved", "Streaming"):
            self.machine.failed(StreamError(error.code, f"{SIDE[role]} side: {error.msg}"))

    async def status(self) -> dict[Role, StreamStatus]:
        """Return what each side reports about the stream now; a side that does not know it is left out.

        :raises StreamError: if a side does not answer, or refuses.
        """
        questions = [self._status_of(role, self._servers[role].dialer.ask) for role in self._servers]
        try:
            answers = await gatherResults(questions, consumeErrors=True)
        except FirstError as first:
            raise cast(StreamError, first.subFailure.value) from None
        return {status.role: status for answer in answers for status in answer}

    async def sides(self, *, events: bool = False) -> tuple[dict[Role, StreamStatus], dict[Role, StreamError]]:
        """Return what each side that can be reached reports, and the error of each that cannot.

        :param events: ask for what has happened to the stream, too.
        """
        questions = [self._status_of(role, self._servers[role].ask_if_reached, events) for role in self._servers]
        answers: dict[Role, StreamStatus] = {}
        failures: dict[Role, StreamError] = {}
        for role, (_, result) in zip(self._servers, await DeferredList(questions, consumeErrors=True), strict=True):
            if isinstance(result, Failure):
                result.trap(StreamError)
                failures[role] = cast(StreamError, result.value)
            else:
                answers |= {status.role: status for status in result}
        return answers, failures

    def _status_of(
        self, role: Role, ask: Callable[[Command, float | None], Deferred[Resp]], events: bool = False
    ) -> Deferred[list[StreamStatus]]:
        def refused(failure: Failure) -> list[StreamStatus]:
            failure.trap(StreamError)
            error = cast(StreamError, failure.value)
            if error.code == "unknown-uid":
                return []
            raise StreamError(error.code, f"{SIDE[role]} side: {error.msg}") from None

        def answered(answer: Resp) -> list[StreamStatus]:
            self._servers[role].warnings = answer.warnings or []
            return self._of_side(answer, role)

        answer = ask(Status(uid=self.uid, role=role, seq=UNSENT, events=events), timing.FACILITY_ANSWER)
        self._pending_status[role] = answer
        return answer.addCallbacks(answered, refused)


def _ports_not_granted(request: Req, listeners: Sequence[str]) -> str | None:
    """Return a sentence about the first requested port that a facility has not granted; None if it granted all."""
    for port, listener in zip(request.listen_ports or (), listeners, strict=False):
        if Address.parse(listener).port != port:
            return (
                f"port {port} was requested, and its facility has granted {listener} instead: its version of SciStream "
                "does not support listen ports. Ask its operator to upgrade, or request no ports"
            )
    return None


def _still_working(command: Command, seconds: float) -> NoReturn:
    doing = {Req: "Reserving", UpdateTargets: "Updating", Rel: "Releasing"}[type(command)]
    raise StreamError("timeout", f"it is still {doing} after {seconds:g} s: a gateway there does not answer")


def _nothing() -> None:
    """Do nothing."""


W = TypeVar("W")


def _take_all(waiters: list[W]) -> list[W]:
    """Empty a list and return what was in it. Callbacks may then add to the list again."""
    taken = list(waiters)
    waiters.clear()
    return taken
