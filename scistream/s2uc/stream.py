"""What carries out the decisions of a stream's machine at S2UC, and tells those who wait for it.

`ClientStream` belongs to one stream; a `Server` is one S2CS as a client sees it. The library's own face,
`Client` and `Stream`, is in client.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList, FirstError, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.outbox import UNSENT
from scistream.protocol.address import Address
from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.join_string import Join, hash_app_key, new_app_key
from scistream.protocol.messages import (
    CONS,
    MAX_GENERATION,
    MAX_LIFE,
    PROD,
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
from scistream.s2uc.machine import Core, Release, attached_stream, new_stream, remembered_stream
from scistream.s2uc.server import Server
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.state_machines import data_of, guarded, trace

SIDE: dict[Role, str] = {PROD: "producer", CONS: "consumer"}
"""How messages to people call a role."""


def check_sides(listen_ports: Mapping[Role, Sequence[int]]) -> None:
    """:raises ValueError: if ports are asked for at what is no side of a stream."""
    for role in listen_ports:
        if role not in SIDE:
            raise ValueError(f"listen_ports: {role!r} is no side of a stream: write {PROD!r} or {CONS!r}")


@dataclass(frozen=True)
class StreamRequest:
    """What a user asked for; what each field means is said at `Client.request`."""

    num_conn: int
    rate: float
    expires: float | None
    hello_timeout: float | None
    app_from: Sequence[str] | None
    label: str | None
    listen_ports: Mapping[Role, Sequence[int]] = field(default_factory=dict)

    def req(self, uid: str, role: Role, app_key: str) -> Req:
        """The REQ to one side."""
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
        )

    def check(self, uid: str) -> None:
        """See whether the protocol can carry it.

        :raises ValueError: if a value is out of the range that the protocol allows.
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
    """Carries out what the machine of one stream decides.

    :param addresses: of the S2CS of each side.
    :param server_at: gives the lasting link to the S2CS at an address.
    :param remembered: the stream was asked for earlier: it can be released and looked at.
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
    ) -> None:
        self.uid = uid
        self._guarded = guarded(self, self.log, self._failed, uid)
        """The same; what the machine, the servers and the answers call is called by it."""
        self.core = Core(self._guarded, uid)
        if remembered:
            self.core.reached = {PROD, CONS}
        self.machine = remembered_stream(self.core) if remembered else new_stream(self.core)
        trace(self.machine, self.log, party="s2uc", uid=uid)
        self._was_remembered = remembered
        self._follows = not remembered  # what the sides say moves the machine
        self.connection_map: dict[str, str] = {}
        self.unused_listeners: list[str] = []
        self.reserve_seconds = 0.0
        self.provision_seconds = 0.0
        self.handed_out = remembered
        """Whether anybody outside has the stream, to release it. What nobody has is released with the client."""
        self.on_reserved: Callable[[], None] = _nothing
        """Called when both sides have reserved, before anybody else hears of it."""
        self.on_released: Callable[[], None] = _nothing
        """Called when the stream is over and no side may still hold any of it."""
        self._reactor = reactor
        self._addresses = addresses
        self._app_keys: dict[Role, str] = {} if remembered else {PROD: new_app_key(), CONS: new_app_key()}
        self._asking: dict[Role, Deferred[Resp]] = {}
        self._looking: dict[Role, Deferred[Resp]] = {}
        self._reserved: list[Deferred[None]] = []
        self._streaming: list[Deferred[dict[str, str]]] = []
        self._ended: list[Deferred[None]] = []
        self._started = 0.0
        self._wish: float | None = None
        self._told: list[str] | None = None
        """Where ProdApp listens by the last word of its facility, while that waits for the time between two updates."""
        self._ends: dict[Role, float] = {}
        """When the life is over that each facility has granted."""
        self._servers = {role: server_at(address) for role, address in addresses.items()}
        for server in self._servers.values():
            server.add(self._guarded)

    def request(self, wishes: StreamRequest) -> Deferred[None]:
        """Ask both sides; fires when both have reserved. Cancelling it releases."""
        commands = {role: wishes.req(self.uid, role, key) for role, key in self._app_keys.items()}
        waiting: Deferred[None] = Deferred(self._request_cancelled)
        self._reserved.append(waiting)
        self._started = self._reactor.seconds()
        self._wish = wishes.expires
        self.machine.request(commands)
        return waiting

    async def attach(self) -> None:
        """Learn from both sides where the stream is, and go on from there; a half of a stream is released.

        :raises StreamError: if a side does not answer, or the stream is over there, or is released meanwhile.
        """
        deadline = self._reactor.seconds() + timing.ANSWER
        sides = await self.status()
        while any(side.state in ("Reserving", "Updating") for side in sides.values()):
            if self._reactor.seconds() > deadline:
                raise StreamError(
                    "timeout", f"a side is in the middle of an operation for {timing.ANSWER:g} s: try later"
                )
            await deferLater(self._reactor, timing.STATE_LOOK)
            sides = await self.status()
        for role in (PROD, CONS):
            if role not in sides or sides[role].state in ("Releasing", "Released"):
                self.machine.failed(self._why_over(role, sides.get(role)))
        if self.core.state in ("Releasing", "Released"):  # because of that, or by `release` meanwhile
            await self.when_ended()
            self.check_ended()
            raise self._why_ended()
        self._take_up(sides)

    def _why_over(self, role: Role, side: StreamStatus | None) -> StreamError:
        if side is None:
            return StreamError("unknown-uid", f"the {SIDE[role]} side does not know stream {self.uid}")
        last = side.last_error or LastError(code="wrong-state", msg="it was released")
        return StreamError.heard(last.code, f"the {SIDE[role]} side is {side.state}: {last.msg}")

    def _take_up(self, sides: dict[Role, StreamStatus]) -> None:
        core = self.core
        for role, side in sides.items():
            core.answers[role] = Resp(
                uid=self.uid, seq=1, state=side.state, msg="", listeners=side.listeners, csr=side.csr
            )
        core.generation = max(side.generation for side in sides.values())
        now = self._reactor.seconds()
        self._ends = {role: now + side.seconds_left for role, side in sides.items()}
        app = sides[PROD].app_listeners
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
        trace(self.machine, self.log, party="s2uc", uid=self.uid)
        self._follows = True
        if app:
            self.machine.prod_lstn(app)

    @property
    def listeners(self) -> dict[Role, list[str]]:
        """What each side that has reserved listens on, one for each channel."""
        return {role: list(answer.listeners or []) for role, answer in self.core.answers.items()}

    def waits_for(self) -> str:
        """What is missing before the stream goes on, in words for a person."""
        sides = []
        for role, asked in [*self._asking.items(), *self._looking.items()]:
            if not asked.called:
                reason = self._servers[role].dialer.outbox.reason
                sides.append(f"the {SIDE[role]} side at {self._addresses[role]}" + (f": {reason}" if reason else ""))
        return " and ".join(sides) or ("the release" if self.core.state == "Releasing" else "ProdApp's Hello")

    def roles_at(self, server: Server) -> list[Role]:
        """The sides of this stream that a server keeps."""
        return [role for role, one in self._servers.items() if one is server]

    def join_strings(self) -> dict[Role, str]:
        """The join string of each side; none of a stream that was asked for elsewhere."""
        return {
            role: str(Join(self.uid, key, self._addresses[role], role, self._servers[role].authority))
            for role, key in self._app_keys.items()
        }

    def _failed(self, effect: str, _error: StreamError) -> None:
        """An effect has raised, or hearing an answer has: end the stream, in a way that nothing can hold up."""
        error = StreamError("gateway-failed", f"s2uc itself failed ({effect}), so the stream is released: see its log")
        if effect == "ended" or self.core.state == "Released":
            self.core.error = self.core.error or error
            self._tell_ended()
        elif self.core.state == "Releasing":
            self._reactor.callLater(0, self._give_up_unasked, error)
        elif self._follows:  # a stream that is only looked at goes on
            self.machine.failed(error)

    def _give_up_unasked(self, error: StreamError) -> None:
        """Wait for no side from which no answer about a release can come any more."""
        release = data_of(self.machine, Release)
        for role in list(release.pending_sides) if release is not None else ():
            asked = self._asking.get(role)
            if asked is None or asked.called:
                self.machine.side_refused(role, error)

    # -- Effects

    def ask(self, role: Role, command: Command) -> None:
        earlier = self._asking.pop(role, None)
        if earlier is not None:
            earlier.cancel()
        server = self._servers[role]
        if isinstance(command, Rel) and not self._follows:
            asked = server.ask_if_reached(command, timing.ANSWER)
        else:
            asked = server.dialer.ask(command, timing.ANSWER)
        self._asking[role] = asked
        timeout = timing.RELEASE if isinstance(command, Rel) else timing.WORK
        asked.addTimeout(timeout, self._reactor, lambda *_: _still_working(command, timeout))
        asked.addCallbacks(self._guarded._answered, self._guarded._refused, (command,), {}, (role,))

    def _answered(self, answer: Resp, command: Command) -> None:
        """A final answer: what a facility has granted is what it was asked for, or the stream has failed."""
        assert command.role is not None
        if isinstance(command, Req):
            count = len(answer.listeners or [])
            if 0 < count != command.num_conn:
                msg = f"its facility has granted {count} listeners for {command.num_conn} channels"
                self.machine.failed(StreamError("gateway-failed", f"{SIDE[command.role]} side: {msg}"))
                return
            if (refused := _ports_not_granted(command, answer.listeners or [])) is not None:
                self.machine.failed(StreamError("no-ports", f"{SIDE[command.role]} side: {refused}"))
                return
        self.machine.side_answered(command.role, answer)

    def abandon(self) -> None:
        """The user waits no longer for the sides that have not confirmed a release."""
        release = data_of(self.machine, Release)
        for role in list(release.pending_sides) if release is not None else ():
            self.forget(role)
            self.machine.side_refused(role, StreamError("timeout", "nobody waited for it"))

    def forget(self, role: Role) -> None:
        asked = self._asking.pop(role, None)
        if asked is not None:
            asked.cancel()

    def provision(self, generation: int) -> None:
        self._started = self._reactor.seconds()
        if generation > MAX_GENERATION:
            msg = f"a facility speaks of generation {generation - 1}, and there is none after it: ask for a new stream"
            self.machine.failed(StreamError("gateway-failed", msg))
            return
        listeners = self.listeners
        requests = {role: answer.csr or "" for role, answer in self.core.answers.items()}
        try:
            maps = connection_map(listeners[PROD], listeners[CONS], self.core.app_listeners)
            keys = issue_credentials(self.uid, generation, self.seconds_left, requests)
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
                )
                for role in maps
            }
        )

    def _shorter_life(self, role: Role) -> float | None:
        """What to tell a side whose facility has granted more than the other one, so that both end together."""
        left = self.seconds_left
        return left if 0 < left < self._ends[role] - self._reactor.seconds() - timing.SAME_END else None

    @property
    def seconds_left(self) -> float:
        """How long the stream still lives, by the word of both facilities: the shorter of the two counts."""
        return float(max(0.0, min(self._ends.values(), default=0.0) - self._reactor.seconds()))

    def reserved(self) -> None:
        for role, answer in self.core.answers.items():
            granted = [life for life in (answer.expires, self._wish) if life is not None]
            self._ends[role] = self._started + min(granted, default=MAX_LIFE)
        self.on_reserved()
        self.reserve_seconds = self._reactor.seconds() - self._started
        for waiting in _emptied(self._reserved):
            waiting.callback(None)

    def streaming(self) -> None:
        self.provision_seconds = self._reactor.seconds() - self._started
        for waiting in _emptied(self._streaming):
            waiting.callback(self.connection_map)

    def ended(self) -> None:
        for server in self._servers.values():
            server.remove(self._guarded)
        if not self.core.not_released and not self.is_unknown:
            self.on_released()
        self._tell_ended()

    def _tell_ended(self) -> None:
        for reserved in _emptied(self._reserved):
            reserved.errback(Failure(self._why_ended()))
        for streaming in _emptied(self._streaming):
            streaming.errback(Failure(self._why_ended()))
        for ended in _emptied(self._ended):
            ended.callback(None)

    # -- those who wait

    def when_streaming(self) -> Deferred[dict[str, str]]:
        waiting: Deferred[dict[str, str]] = Deferred(self._forget)
        if self.core.state == "Streaming":
            waiting.callback(self.connection_map)
        elif self.core.state == "Released":
            waiting.errback(Failure(self._why_ended()))
        else:
            self._streaming.append(waiting)
        return waiting

    def when_ended(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self._forget)
        if self.core.state == "Released":
            waiting.callback(None)
        else:
            self._ended.append(waiting)
        return waiting

    def _request_cancelled(self, cancelled: Deferred[Any]) -> None:
        self._forget(cancelled)
        self.machine.release()

    def _forget(self, cancelled: Deferred[Any]) -> None:
        for waiters in (self._reserved, self._streaming, self._ended):
            if cancelled in waiters:
                cast("list[Deferred[Any]]", waiters).remove(cancelled)

    @property
    def is_unknown(self) -> bool:
        """Whether a stream that was asked for earlier is over, and no side had one of this user to release: it may be
        there all the same, of another user or under another certificate of hers."""
        return self._was_remembered and self.core.unknown_at == set(self._servers)

    def check_released(self) -> None:
        """:raises StreamError: if a side has not confirmed the release."""
        for role, error in self.core.not_released.items():
            raise StreamError(
                error.code,
                f"the {SIDE[role]} side at {self._addresses[role]} has not confirmed the release ({error.msg}); "
                "it releases by itself when the stream expires",
            )

    def check_ended(self) -> None:
        """:raises StreamError: if the stream ended otherwise than by a release."""
        if self.core.error is not None:
            raise self.core.error
        self.check_released()

    def _why_ended(self) -> StreamError:
        return self.core.error or StreamError("wrong-state", f"stream {self.uid} is released")

    # -- from the servers

    def _refused(self, failure: Failure, role: Role) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        closed_by_us = not self._servers[role].dialer.running
        if isinstance(error, StreamError) and not (error.code == "shutting-down" and closed_by_us):
            self.machine.side_refused(role, error)

    def heard(self, server: Server, message: ProdLstn | Error) -> None:
        """ProdLstn, or the news that a side has failed: from the server that keeps that side, and no other."""
        if not self._follows or message.role not in self.roles_at(server):
            return
        if isinstance(message, ProdLstn):
            self._prod_lstn(message.listeners)
        elif message.role is not None:
            self.machine.failed(StreamError.heard(message.code, f"{SIDE[message.role]} side: {message.msg}"))

    def _prod_lstn(self, listeners: list[str]) -> None:
        """Pass on where ProdApp listens: at once, or only the last word of several that come within a second."""
        left = self._started + timing.BETWEEN_TARGETS - self._reactor.seconds() if self.core.generation else 0.0
        if left <= 0 and self._told is None:
            self.machine.prod_lstn(listeners)
            return
        if self._told is None:
            self._reactor.callLater(left, self._guarded._tell_listeners)
        self._told = listeners

    def _tell_listeners(self) -> None:
        listeners, self._told = self._told, None
        if listeners is not None:
            self.machine.prod_lstn(listeners)

    def link_up(self, server: Server) -> None:
        """A server can be reached: what it says may have changed meanwhile."""
        for role in self.roles_at(server):
            self.machine.reached(role)
        self.look(server)

    def link_failed_permanently(self, server: Server, reason: str) -> None:
        """A server cannot be reached with the certificates that are there."""
        for role in self.roles_at(server) if self._follows else ():
            if self.core.state != "Releasing":
                where = f"{SIDE[role]} side at {self._addresses[role]}"
                self.machine.failed(StreamError("not-authenticated", f"{where}: {reason}"))
            if role not in self.core.answers:  # it has never let our REQ in
                self.forget(role)
                self.machine.side_refused(role, StreamError("unknown-uid", reason))

    def look(self, server: Server) -> None:
        """Ask for the state of a stream that rests: a lost ProdLstn or a lost ERROR comes this way."""
        if self._follows and self.core.state in ("Reserved", "Streaming"):
            for role in self.roles_at(server):
                asked = server.dialer.ask(Status(uid=self.uid, role=role, seq=UNSENT), timing.ANSWER)
                heard = self._guarded
                asked.addCallbacks(heard._looked, heard._looked_in_vain, (role,), {}, (role,))

    def _looked(self, answer: Resp, role: Role) -> None:
        for status in self._of_side(answer, role):
            if status.state in ("Releasing", "Released"):
                last = status.last_error or LastError(code="wrong-state", msg="the stream was released")
                self._lost(role, StreamError.heard(last.code, last.msg))
            elif role == PROD and status.app_listeners:
                self._prod_lstn(status.app_listeners)

    def _of_side(self, answer: Resp, role: Role) -> list[StreamStatus]:
        """What a facility says of the side that it keeps. It has no say in any other."""
        return [status for status in answer.streams or [] if (status.uid, status.role) == (self.uid, role)]

    def _looked_in_vain(self, failure: Failure, role: Role) -> None:
        failure.trap(StreamError, CancelledError)
        if isinstance(failure.value, StreamError) and failure.value.code == "unknown-uid":
            self._lost(role, failure.value)

    def _lost(self, role: Role, error: StreamError) -> None:
        if self.core.state in ("Reserved", "Streaming"):
            self.machine.failed(StreamError(error.code, f"{SIDE[role]} side: {error.msg}"))

    async def status(self) -> dict[Role, StreamStatus]:
        """What each side says of the stream now."""
        asked = [self._status_of(role, self._servers[role].dialer.ask) for role in self._servers]
        try:
            answers = await gatherResults(asked, consumeErrors=True)
        except FirstError as first:
            raise cast(StreamError, first.subFailure.value) from None
        return {status.role: status for answer in answers for status in answer}

    async def sides(self) -> tuple[dict[Role, StreamStatus], dict[Role, StreamError]]:
        """What each side that can be reached within seconds says of the stream, and why others say nothing."""
        asked = [self._status_of(role, self._servers[role].ask_if_reached) for role in self._servers]
        answers: dict[Role, StreamStatus] = {}
        reasons: dict[Role, StreamError] = {}
        for role, (_, result) in zip(self._servers, await DeferredList(asked, consumeErrors=True), strict=True):
            if isinstance(result, Failure):
                result.trap(StreamError)
                reasons[role] = cast(StreamError, result.value)
            else:
                answers |= {status.role: status for status in result}
        return answers, reasons

    def _status_of(
        self, role: Role, ask: Callable[[Command, float | None], Deferred[Resp]]
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

        asked = ask(Status(uid=self.uid, role=role, seq=UNSENT), timing.ANSWER)
        self._looking[role] = asked
        return asked.addCallbacks(answered, refused)


def _ports_not_granted(request: Req, listeners: Sequence[str]) -> str | None:
    """What a facility has granted in place of the ports that were asked for, as a sentence."""
    for asked, listener in zip(request.listen_ports or (), listeners, strict=False):
        if Address.parse(listener).port != asked:
            return (
                f"port {asked} was asked for, and its facility has granted {listener}: its SciStream is of a version "
                "that knows of no listen ports. Have it upgraded, or ask for none"
            )
    return None


def _still_working(command: Command, seconds: float) -> NoReturn:
    doing = {Req: "Reserving", UpdateTargets: "Updating", Rel: "Releasing"}[type(command)]
    raise StreamError("timeout", f"it is still {doing} after {seconds:g} s: a gateway there does not answer")


def _nothing() -> None:
    """Nobody asked to hear of it."""


W = TypeVar("W")


def _emptied(waiters: list[W]) -> list[W]:
    """Take all out of a list: what they do may put others in."""
    taken = list(waiters)
    waiters.clear()
    return taken
