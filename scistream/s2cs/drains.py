"""Drains: gateways, or a whole S2CS, that get no new streams, and whose streams end before a deadline if there is one.

An administrator begins and ends a drain with the command Drain; the store keeps it, so a restart does not end it. A
gateway or an S2CS that is about to stop (`shutdown_grace`) drains too, until it has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream.links.link import Link
from scistream.links.outbox import cancel_call
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    MAX_NOTICE,
    MAX_NOTICES,
    MAX_TEXT,
    Drain,
    DrainProgress,
    Req,
    StreamStatus,
)
from scistream.s2cs.audit.trail import AuditTrail
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.live_streams import LiveStreams
from scistream.s2cs.placement import GatewayState, place_stream
from scistream.s2cs.policy.authorizer import identity_of
from scistream.s2cs.store.database import Store
from scistream.s2cs.stream import ServerStream
from scistream.units import spoken_seconds

EVERYTHING = ""
"""Stands for the whole S2CS where the name of a gateway is expected."""


class DrainedFacility(Protocol):
    """The parts of the server that drains need."""

    reactor: Any
    wall: Callable[[], float]
    store: Store
    audit: AuditTrail
    streams: LiveStreams

    @property
    def gateways(self) -> Mapping[str, GatewayLink]:
        """The pool, by name."""


@dataclass(eq=False)
class _Drain:
    """One drain.

    :ivar gateway: the name of the gateway, or `EVERYTHING`.
    :ivar by: the administrator who asked for it, in the form of `owner_of`; empty if the server is about to stop.
    :ivar ends_at: the monotonic time at which the streams that are left are released; None: they may go on.
    """

    gateway: str
    by: str = ""
    ends_at: float | None = None
    timer: IDelayedCall | None = None
    is_reported: bool = False
    """The log says already that no stream is left."""

    @property
    def place(self) -> str:
        """What is drained, for a sentence."""
        return f"gateway {self.gateway}" if self.gateway else "this S2CS"

    @property
    def state(self) -> str:
        """What happens there, for a sentence."""
        return f"{self.place} {'is being drained' if self.by else 'is about to stop'}"


class Drains:
    """All drains of one S2CS."""

    log = Logger()

    def __init__(self, server: DrainedFacility) -> None:
        self._server = server
        self._asked: dict[str, _Drain] = {}
        """By an administrator; kept in the store."""
        self._stopping: dict[str, _Drain] = {}
        """Gateways that have announced that they stop, and this S2CS itself."""
        self._stopped: Deferred[None] | None = None

    # -- questions

    def is_draining(self, gateway: str = EVERYTHING) -> bool:
        """Return True if a gateway gets no new streams, or, without an argument, none of them gets any."""
        return any(name in drains for drains in (self._asked, self._stopping) for name in (EVERYTHING, gateway))

    def progress(self) -> list[DrainProgress]:
        """Return everything that is drained, and what is left there."""
        return [self._progress(drain) for drain in self._all()]

    def warnings(self) -> list[str]:
        """Return a sentence for users about each drain."""
        return [
            f"{drain.state}: no new stream begins there{self._and_then(drain, ', and streams that are left')}"
            for drain in self._all()
        ]

    def with_notices(self, status: StreamStatus) -> StreamStatus:
        """Return the status of a stream with a notice about each drain that will end it."""
        if status.state in ("Releasing", "Released"):
            return status
        found = [
            f"{drain.state}{self._and_then(drain, ': this stream')}"[:MAX_NOTICE]
            for drain in self._all()
            if drain.ends_at is not None
            and (drain.gateway in status.gateways or (drain.gateway == EVERYTHING and drain.by))
        ]
        return msgspec.structs.replace(status, notices=[*found, *status.notices][:MAX_NOTICES]) if found else status

    def _all(self) -> list[_Drain]:
        drains = [*self._asked.values(), *self._stopping.values()]
        return sorted(drains, key=lambda drain: (drain.gateway, drain.by))

    def _and_then(self, drain: _Drain, whose: str) -> str:
        left = self._seconds_left(drain)
        if left is None or (drain.gateway == EVERYTHING and not drain.by):
            return ""
        verb = "are" if whose.endswith("left") else "is"
        return f"{whose} {verb} released in {spoken_seconds(left)}"

    def _seconds_left(self, drain: _Drain) -> float | None:
        return None if drain.ends_at is None else max(0.0, drain.ends_at - self._server.reactor.seconds())

    def _progress(self, drain: _Drain) -> DrainProgress:
        streams = self._streams_left(drain)
        pool = self._server.gateways.values()
        carriers = [one for one in pool if drain.gateway in (EVERYTHING, one.name)]
        figures = [
            channel for stream in streams for one in carriers for channel in one.figures.get(stream.record.key, ())
        ]
        left = self._seconds_left(drain)
        return DrainProgress(
            gateway=drain.gateway or None,
            by=identity_of(drain.by).name[:MAX_TEXT] if drain.by else "",
            streams=len(streams),
            connections=sum(one.connections for one in figures),
            bytes=sum(one.bytes_to_consumer + one.bytes_to_producer for one in figures),
            seconds_left=None if left is None else round(left, 3),
        )

    def _streams_left(self, drain: _Drain) -> list[ServerStream]:
        streams = self._server.streams
        if drain.gateway != EVERYTHING:
            return streams.at_gateway(drain.gateway)
        return [stream for stream in streams.values() if stream.record.state != "Released"]

    # -- placement

    def place(
        self, members: Sequence[GatewayState], request: Req
    ) -> tuple[Sequence[GatewayState], dict[str, list[int]]]:
        """Place a new stream as `place_stream` does, on gateways that are not drained only.

        :raises StreamError: as `place_stream` does, and `no-capacity` if all gateways are drained. The message names
            the gateways that are drained.
        """
        able = [one for one in members if not self.is_draining(one.name)]
        drained = [one.name for one in members if self.is_draining(one.name)]
        if EVERYTHING in self._asked or EVERYTHING in self._stopping or (drained and not able):
            what = ("gateway " if len(drained) == 1 else "gateways ") + ", ".join(drained[:4])
            why = self._why_everything() or f"{what} of this facility: no other gateway can be reached"
            raise StreamError("no-capacity", f"no new stream begins here: {why}. Ask its operator, or try again later")
        try:
            return place_stream(able, request)
        except StreamError as refusal:
            if not drained:
                raise
            more = f"; gateways that are being drained get no new streams: {', '.join(drained[:4])}"
            raise StreamError(refusal.code, refusal.msg + more) from None

    def _why_everything(self) -> str:
        drain = self._stopping.get(EVERYTHING) or self._asked.get(EVERYTHING)
        return "" if drain is None else drain.state.replace("this S2CS", "this facility's control server (S2CS)")

    # -- drains by an administrator

    def restore(self) -> None:
        """Take up the drains of the store again."""
        now, wall = self._server.reactor.seconds(), self._server.wall()
        for gateway, by, until in self._server.store.drains():
            if gateway == EVERYTHING or gateway in self._server.gateways:
                self._begin(_Drain(gateway, by, None if until is None else now + max(0.0, until - wall)), self._asked)
            else:
                self._forget(gateway)

    def carry_out(self, link: Link, command: Drain, by: str) -> list[DrainProgress]:
        """Carry out the command of an administrator, and return everything that is drained.

        :param by: the administrator, in the form of `owner_of`.
        :raises StreamError: `bad-message` if there is no such gateway; `no-capacity` if the store cannot be written.
        """
        gateway = command.gateway or EVERYTHING
        pool = self._server.gateways
        if gateway != EVERYTHING and gateway not in pool:
            raise StreamError("bad-message", f"there is no gateway {gateway!r} here, but {', '.join(sorted(pool))}")
        if command.action == "start":
            self._start(gateway, by, command.within)
        elif command.action == "undo":
            self._server.store.forget_drain(gateway)
            self._end(gateway, self._asked)
        else:
            for one in pool.values():
                if self.is_draining(one.name):
                    one.look_again()
        if command.action != "show":
            self._server.audit.drain(link, by, command.action, command.gateway, command.within)
        return self.progress()

    def _start(self, gateway: str, by: str, within: float | None) -> None:
        until = None if within is None else self._server.wall() + within
        self._server.store.note_drain(gateway, by, until)
        ends_at = None if within is None else self._server.reactor.seconds() + within
        self._end(gateway, self._asked)
        self._begin(_Drain(gateway, by, ends_at), self._asked)

    def pool_changed(self) -> None:
        """Forget the drains of gateways that are not in the pool any more."""
        for gateway in {*self._asked, *self._stopping} - {EVERYTHING, *self._server.gateways}:
            self._end(gateway, self._asked)
            self._end(gateway, self._stopping)
            self._forget(gateway)
        self._note_gateways()

    def _forget(self, gateway: str) -> None:
        with suppress(StreamError):  # the next start forgets it
            self._server.store.forget_drain(gateway)

    # -- gateways, and an S2CS, that stop

    def hear(self, gateway: GatewayLink) -> None:
        """Note whether a gateway has announced that it is about to stop."""
        seconds = gateway.room.draining if gateway.room is not None else None
        if seconds is None:
            self._end(gateway.name, self._stopping)
        elif gateway.name not in self._stopping:
            self._begin(_Drain(gateway.name, ends_at=self._server.reactor.seconds() + seconds), self._stopping)

    def shut_down(self, grace: float) -> Deferred[None]:
        """Take no new streams; fire when no stream is left, or after `grace` seconds. Streams that are left go on."""
        drain = _Drain(EVERYTHING, ends_at=self._server.reactor.seconds() + grace)
        if grace <= 0 or not self._streams_left(drain):
            return succeed(None)
        self._stopped = Deferred()
        self._begin(drain, self._stopping)
        return self._stopped

    def stop(self) -> None:
        """Stop all timers."""
        for drain in self._all():
            cancel_call(drain.timer)

    # -- what all drains have in common

    def _begin(self, drain: _Drain, drains: dict[str, _Drain]) -> None:
        drains[drain.gateway] = drain
        if drain.ends_at is not None:
            seconds = max(0.0, drain.ends_at - self._server.reactor.seconds())
            drain.timer = self._server.reactor.callLater(seconds, self._deadline, drain)
        for stream in self._server.streams.values():  # a stream that is being placed must not move there
            for spares in stream.core.spares.values():
                spares[:] = [name for name in spares if not self.is_draining(name)]
        self._note_gateways()
        self.log.info(
            "{state}: it gets no new streams{then}; streams left: {streams}",
            state=drain.state,
            then=self._and_then(drain, ", and streams that are left"),
            streams=len(self._streams_left(drain)),
        )
        self.streams_changed()

    def _end(self, gateway: str, drains: dict[str, _Drain]) -> None:
        drain = drains.pop(gateway, None)
        if drain is not None:
            cancel_call(drain.timer)
            self._note_gateways()
            self.log.info("{place} is not drained any more", place=drain.place)

    def _note_gateways(self) -> None:
        for name, gateway in self._server.gateways.items():
            gateway.is_drained = self.is_draining(name)

    def streams_changed(self) -> None:
        """Note that a stream may have ended: the log says when the last one at a drained gateway has."""
        for drain in self._all():
            if not drain.is_reported and not self._streams_left(drain):
                drain.is_reported = True
                self.log.info("{place} is drained: no stream is left", place=drain.place)
                if drain is self._stopping.get(EVERYTHING):
                    self._let_stop()

    def _deadline(self, drain: _Drain) -> None:
        """Release the streams that are left. Those of an S2CS that stops go on without it."""
        if drain is self._stopping.get(EVERYTHING):
            self._let_stop()
            return
        left = list(self._releasable(drain))
        if left:
            self.log.warn(
                "{place}: the time to end is over, so the streams that are left are released: {streams}",
                place=drain.place,
                streams=len(left),
            )
        who = f" by {identity_of(drain.by).name}, an administrator of this facility" if drain.by else ""
        msg = f"{drain.state}{who}, and the time for its streams to end is over: request a new stream"
        for stream in left:
            stream.machine.fault(StreamError("released", msg[:MAX_TEXT]))

    def _releasable(self, drain: _Drain) -> Iterator[ServerStream]:
        return (stream for stream in self._streams_left(drain) if stream.record.state != "Releasing")

    def _let_stop(self) -> None:
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)
