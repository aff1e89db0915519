"""The elements of a gateway, as the initiator manages them: processes, or a single one in its own process.

`Elements` sends commands to all elements, and hands each accepted connection to the least busy one. If an element dies
or stops answering, the kernel resets its connections and the element is restarted.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, gatherResults, succeed
from twisted.logger import Logger

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role, StreamKey
from scistream.s2ds.capacity import STREAM_SHARE, SharedLimits, has_full_share
from scistream.s2ds.elements import shared_figures
from scistream.s2ds.elements.channel import MOST_HELD, NOT_ARMED, refuse
from scistream.s2ds.elements.commands import (
    ArmChannels,
    ChangeSettings,
    CloseChannels,
    ElementCommand,
    HandOver,
    MakeRoom,
    PathsReport,
    PlaceAnswer,
    PlaceRequest,
    Reset,
    SetHalfOpen,
    SetTargets,
)
from scistream.s2ds.elements.element import NO_DESCRIPTOR, Element
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.process import (
    ElementProcess,
    InProcessElement,
    descriptors_of,
    ignore_death,
    log_failure,
)
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.tls.stream_channels import Credentials

OWN_DESCRIPTORS = 12
"""An upper bound for the descriptors of an element without connections; each connection takes two more."""
ROOM_AT_ONCE = 32
"""The number of connections in a handshake to reset at once when there is no room for another."""
SHARE = 8
"""An address with more than 1 / `SHARE` of the connections in a handshake has less time for each."""


NO_SHARE = (
    "the stream has its full share of the gateway's connections: close some, or ask the gateway's operator to raise "
    "`connections` in [limits] or the limit of open files"
)
NO_OWNER_SHARE = (
    "the streams of this user have all the connections that one user may have: close some, or ask the gateway's "
    "operator to raise `connections` or `owner_share` in [limits]"
)
UNREAD = (
    "too many bytes of the stream wait at the gateway to be read by programs: make the programs read, close some "
    "connections, or ask the gateway's operator to raise `unread` in [limits]"
)
OWNER_UNREAD = (
    "too many bytes of this user's streams wait at the gateway to be read by programs: make the programs read, close "
    "some connections, or ask the gateway's operator to raise `unread` in [limits]"
)
NO_ELEMENT = "no element of the gateway can take a connection at the moment"
ELEMENT_DIED = "the element of the gateway that carried the connection has died"


def _ignore_reset(_reset: Reset) -> None:
    pass


def _ignore_paths(_report: PathsReport) -> None:
    pass


def _ignore_start_failure(_reason: str) -> None:
    pass


@dataclass
class _PlacedStream:
    """A stream, with the commands that a restarted element needs for it."""

    start: ArmChannels
    update: SetTargets | None = None
    handed_over: dict[tuple[int, int], int] = field(default_factory=dict)
    """The number of connections handed over, by element and channel."""
    handed_from_wan: dict[tuple[int, int], int] = field(default_factory=dict)
    """The same for connections from the WAN at the consumer's side."""
    granted: dict[tuple[int, int], int] = field(default_factory=dict)
    """The number of places granted to connections that this gateway has dialled for the producer."""
    numbers: dict[int, int] = field(default_factory=dict)
    """The number of the last connection that was handed over in order, by channel."""

    @property
    def key(self) -> StreamKey:
        """The uid and role of the stream."""
        return self.start.uid, self.start.role


@dataclass
class StreamTotals:
    """The sums of the figures of several streams, as in `ChannelFigures`; the last three are of this moment."""

    bytes_to_consumer: int = 0
    bytes_to_producer: int = 0
    accepted: int = 0
    retransmits: int = 0
    connections: int = 0
    ready: int = 0
    waiting: int = 0


def _add(totals: StreamTotals, one: ChannelFigures) -> None:
    totals.bytes_to_consumer += one.bytes_to_consumer
    totals.bytes_to_producer += one.bytes_to_producer
    totals.accepted += one.accepted
    totals.retransmits += one.retransmits


class Elements:
    """All elements of a gateway. Call `start` before the first connection is handed over, and `stop` at the end.

    :param reactor: an `IReactorProcess`, `IReactorSocket` and `IReactorTime`.
    :param count: the number of processes; 0: a single element in this process.
    :param slots: the number of channels that the gateway can have.
    :param settings: the settings of each element.
    :param limits: the limits that all streams share.
    :param on_reset: called for connections that were reset.
    :param on_start_failure: called with the reason when an element fails to start for the second time in a row and no
        other element is ready.
    :param on_paths: called with the paths of the connections of a channel at one element, as last sampled.
    :param in_order: whether connections of a channel are dialled in the order in which they were accepted.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        count: int,
        slots: int,
        settings: ElementSettings,
        limits: SharedLimits | None = None,
        on_reset: Callable[[Reset], None] = _ignore_reset,
        on_start_failure: Callable[[str], None] = _ignore_start_failure,
        on_paths: Callable[[PathsReport], None] = _ignore_paths,
        *,
        in_order: bool = True,
    ) -> None:
        self._reactor = reactor
        self._on_reset = on_reset
        self._on_start_failure = on_start_failure
        self._limits = limits or SharedLimits()
        self._in_order = in_order
        self._figures = SharedFigures.create(slots, max(count, 1))
        self.settings = self._first_settings = settings
        self._streams: dict[StreamKey, _PlacedStream] = {}
        self._members: list[_Member] = (
            [
                ElementProcess(
                    reactor,
                    self._figures,
                    number,
                    settings,
                    self._replay,
                    self._count_lost,
                    self._pass_on_resets,
                    self._place_requested,
                    self._start_failed,
                    on_paths,
                )
                for number in range(count)
            ]
            if count
            else [
                InProcessElement(
                    Element(
                        reactor,
                        self._figures,
                        0,
                        settings,
                        partial(self._place_requested, 0),
                        self._pass_on_resets,
                        on_paths,
                    )
                )
            ]
        )
        self._set_half_open()
        self._handed_over = [0] * len(self._members)
        """The connections handed over to each element so far, and the places granted to those that it dials."""
        self._ended_totals = {role: StreamTotals() for role in (CONS, PROD)}
        self._unread: dict[StreamKey, int] = {}
        self._unread_until = 0.0

    def start(self) -> None:
        """Start the processes."""
        for member in self._members:
            member.start()

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when each element has been ready once."""
        return DeferredList([member.has_started for member in self._members]).addCallback(lambda _: None)

    def stop(self) -> Deferred[None]:
        """Reset every connection; fire when all processes have ended."""
        stopping = DeferredList([member.stop() for member in self._members])
        return stopping.addCallback(lambda _: self._figures.close())

    def set_limits(self, limits: SharedLimits) -> None:
        """Apply other limits to new connections."""
        self._limits = limits
        self._set_half_open()

    def change_settings(self, settings: ElementSettings) -> None:
        """Apply other settings to later connections, at each element."""
        if settings == self.settings:
            return
        self.settings = settings
        for member in self._members:
            member.ask(ChangeSettings(settings=settings)).addErrback(log_failure)

    def _set_half_open(self) -> None:
        command = SetHalfOpen(half_open=self._limits.half_open)
        for member in self._members:
            member.ask(command).addErrback(ignore_death)  # a process that starts gets it first

    @property
    def count(self) -> int:
        """The number of elements."""
        return len(self._members)

    @property
    def restarts(self) -> int:
        """How often elements have ended and were started again."""
        return sum(member.restarts for member in self._members)

    def ready_count(self) -> int:
        """Return how many elements take connections now."""
        return sum(member.ready and member.is_alive() for member in self._members)

    def most_connections(self) -> int:
        """Return how many connections all elements have descriptors for."""
        return len(self._members) * ((descriptors_of(0) - OWN_DESCRIPTORS) // 2)

    # -- streams

    def open(self, uid: str, role: Role, rate: float, slots: Mapping[int, int], owner: str = "") -> None:
        """Add a stream, whose figures start at 0. Idempotent.

        :param rate: Mbit/s in each direction.
        :param slots: the slot of each channel, which no other stream may have until `close` has fired.
        :param owner: the same for all streams of one user; empty if the user is not known.
        """
        if (uid, role) in self._streams:
            return
        for slot in slots.values():
            self._figures.clear(slot)
        stream = _PlacedStream(ArmChannels(uid=uid, role=role, rate=rate, slots=dict(slots), owner=owner))
        self._streams[uid, role] = stream
        for member in self._members:
            member.ask(stream.start).addErrback(log_failure)

    def arm(
        self,
        uid: str,
        role: Role,
        targets: Mapping[int, Address],
        credentials: Credentials | None,
        own: Collection[int] = (),
        other_addresses: Mapping[int, Sequence[Address]] | None = None,
        *,
        wan_dialer: Role = CONS,
        wan_targets: Mapping[int, Address] | None = None,
    ) -> Deferred[None]:
        """Set the targets of new connections; open connections keep their old target.

        Fire when every element has the targets, or fail with the StreamError of one.

        :param own: ports of this gateway that are allowed as targets: WAN listeners of the same stream.
        :param other_addresses: for a channel, the addresses to try if the target does not answer.
        :param wan_dialer: the role of the gateway that dials the other one.
        :param wan_targets: at the producer's side: the other gateway for each channel, if this one dials it.
        """
        stream = self._streams[uid, role]
        stream.update = SetTargets(
            uid=uid,
            role=role,
            targets={channel: str(target) for channel, target in targets.items()},
            credentials=credentials,
            own=sorted(own),
            other_addresses={channel: list(map(str, found)) for channel, found in (other_addresses or {}).items()},
            wan_dialer=wan_dialer,
            wan_targets={channel: str(target) for channel, target in (wan_targets or {}).items()},
        )
        # If an element dies in the meantime, its successor gets this command before any connection.
        answers = [member.ask(stream.update).addErrback(ignore_death) for member in self._members]
        armed = gatherResults(answers, consumeErrors=True)
        return armed.addCallbacks(lambda _: None, lambda failure: failure.value.subFailure)

    def close(self, uid: str, role: Role) -> Deferred[list[ChannelFigures]]:
        """Reset all connections of a stream, and fire with its last figures; with none for an unknown stream.

        No byte passes after this has fired.
        """
        if (uid, role) not in self._streams:
            return succeed([])
        command = CloseChannels(uid=uid, role=role)
        closed = DeferredList([member.ask(command).addErrback(log_failure) for member in self._members])

        def last(_: object) -> list[ChannelFigures]:
            figures = self.figures(uid, role)
            for one in figures:
                _add(self._ended_totals[role], one)
            del self._streams[uid, role]
            return figures

        return closed.addCallback(last)

    def figures(self, uid: str, role: Role) -> list[ChannelFigures]:
        """Return the figures of each channel of a stream; none for an unknown stream."""
        stream = self._streams.get((uid, role))
        if stream is None:
            return []
        return [self._figures.figures(channel, slot) for channel, slot in stream.start.slots.items()]

    def totals(self, role: Role) -> StreamTotals:
        """Return what all streams of a side have carried since this gateway started, and what they hold now."""
        totals = replace(self._ended_totals[role])
        for stream in self._streams.values():
            if stream.start.role == role:
                for channel, slot in stream.start.slots.items():
                    one = self._figures.figures(channel, slot)
                    _add(totals, one)
                    totals.connections += one.connections
                    totals.ready += one.ready
                    totals.waiting += one.waiting
        return totals

    def joined(self, uid: str, role: Role, channel: int) -> int:
        """Return how many connections of a channel have been joined so far."""
        stream = self._streams.get((uid, role))
        slot = stream.start.slots.get(channel) if stream is not None else None
        if slot is None:
            return 0
        return sum(self._word(slot, member.number, shared_figures.JOINED) for member in self._members)

    def held(self, uid: str, role: Role, channel: int) -> int:
        """Return how many open connections of a channel get no large receive window, as last sampled."""
        stream = self._streams.get((uid, role))
        slot = stream.start.slots.get(channel) if stream is not None else None
        if slot is None:
            return 0
        return sum(self._word(slot, member.number, shared_figures.HELD) for member in self._members)

    # -- connections

    def has_room(self, uid: str, role: Role, channel: int, *, wan: bool) -> bool:
        """Return whether the channel can take a connection now, from the WAN or from an application.

        If too many of its connections are not joined yet, reset those from the WAN that are slow in their handshake, so
        that silent peers cannot keep others out for long.

        :raises OSError: if no element may open more descriptors.
        """
        stream = self._streams.get((uid, role))
        if stream is None or channel not in stream.start.slots:
            return True  # `carry` refuses the connection
        ready = [member for member in self._members if member.ready]
        if not any(member.is_alive() for member in ready):
            return False  # the connection waits at the listener for an element that is restarted
        if not any(self._has_descriptors(member) for member in ready):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        unjoined = self._unjoined if role == PROD or not wan else self._arriving
        if unjoined(stream, channel) < self._limits.half_open:
            return True
        if not wan:
            return False
        slot, word = stream.start.slots[channel], shared_figures.JOINING if role == PROD else shared_figures.ARRIVING
        fullest = max(self._members, key=lambda member: self._word(slot, member.number, word))
        share = max(1, self._limits.half_open // (SHARE * len(self._members)))
        command = MakeRoom(uid=uid, role=role, channel=channel, count=ROOM_AT_ONCE, share=share)
        fullest.ask(command).addErrback(log_failure)
        return unjoined(stream, channel) < self._limits.half_open

    def carry(self, uid: str, role: Role, channel: int, sock: socket.socket, *, wan: bool) -> None:
        """Hand an accepted connection to the least busy element, or reset it if no element can take it.

        That is the element with the fewest active connections of the channel; among equals the one with the fewest
        connections of the channel, then of all channels. The socket belongs to the element afterwards.

        :param wan: True for a connection from the WAN, False for one of an application.
        """
        stream = self._streams.get((uid, role))
        if stream is None or channel not in stream.start.slots:
            refuse(sock)
            self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=NOT_ARMED, count=1))
            return
        # What a consumer's gateway accepts from the WAN is no application's yet, and has a limit of its own.
        exceeded = None if wan and role == CONS else self._exceeded_limit(stream)
        if exceeded is not None:
            refuse(sock)
            self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=exceeded, count=1))
            return
        number = stream.numbers.get(channel, 0) + 1 if self._in_order and not wan else 0
        hand_over = HandOver(uid=uid, role=role, channel=channel, number=number, wan=wan)
        load = self._wan_load if wan else self._load
        handed_over = stream.handed_from_wan if wan and role == CONS else stream.handed_over
        for member in sorted(self._members, key=lambda member: load(stream, channel, member.number)):
            if member.ready and self._has_descriptors(member) and member.carry(hand_over, sock):
                if number:
                    stream.numbers[channel] = number
                key = member.number, channel
                handed_over[key] = handed_over.get(key, 0) + 1
                self._handed_over[member.number] += 1
                return
        refuse(sock)
        self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=NO_ELEMENT, count=1))

    def _place_requested(self, element: int, request: PlaceRequest) -> None:
        """Grant a place to a connection that an element has dialled for the producer, unless a limit forbids it.

        Whoever asks is answered with the figures of that moment, so no number of elements exceeds a limit together.
        """
        stream, member = self._streams.get((request.uid, request.role)), self._members[element]
        if stream is None or request.channel not in stream.start.slots:
            refusal: str | None = NOT_ARMED
        else:
            refusal = self._exceeded_limit(stream) or (None if self._has_descriptors(member) else NO_DESCRIPTOR)
            if refusal is None:
                key = element, request.channel
                stream.granted[key] = stream.granted.get(key, 0) + 1
                self._handed_over[element] += 1
        member.tell(PlaceAnswer(number=request.number, refusal=refusal or ""))

    def _pass_on_resets(self, resets: list[Reset]) -> None:
        for reset in resets:
            self._on_reset(reset)

    def _start_failed(self, reason: str) -> None:
        if not any(member.ready for member in self._members):
            # Report the first failure only: that of another element has the same reason.
            on_start_failure, self._on_start_failure = self._on_start_failure, _ignore_start_failure
            on_start_failure(reason)

    def _has_descriptors(self, member: _Member) -> bool:
        """Return whether an element may open two more descriptors; otherwise the kernel would drop the connection."""
        early = self._figures.words[self._figures.kept_ready(member.number)]
        return OWN_DESCRIPTORS + 2 * (self._connections_at(member.number) + 1) + early <= member.most_descriptors()

    def _exceeded_limit(self, stream: _PlacedStream) -> str | None:
        """Return why a stream gets no further connection, or None if it may have one."""
        percents = STREAM_SHARE, self._limits.owner_share
        places = sum((member.most_descriptors() - OWN_DESCRIPTORS) // 2 for member in self._members if member.ready)
        if self._limits.connections:
            places = min(places, self._limits.connections)
        left = places - sum(self._connections_at(member.number) for member in self._members)
        if left * 100 <= places * (100 - min(percents)):  # otherwise no stream can have its full share
            if has_full_share(self._connections_of(stream), left, STREAM_SHARE):
                return NO_SHARE
            if has_full_share(sum(map(self._connections_of, self._siblings(stream))), left, self._limits.owner_share):
                return NO_OWNER_SHARE
        if self._limits.unread:
            unread = self._unread_of_all()
            left = max(0, self._limits.unread - sum(unread.values()))
            if left * 100 <= self._limits.unread * (100 - min(percents)):
                if has_full_share(unread.get(stream.key, 0), left, STREAM_SHARE):
                    return UNREAD
                owned = sum(unread.get(one.key, 0) for one in self._siblings(stream))
                if has_full_share(owned, left, self._limits.owner_share):
                    return OWNER_UNREAD
        return None

    def _siblings(self, stream: _PlacedStream) -> list[_PlacedStream]:
        """Return all streams of the owner of a stream, itself included."""
        owner = stream.start.owner
        return [one for one in self._streams.values() if one.start.owner == owner] if owner else [stream]

    def _connections_of(self, stream: _PlacedStream) -> int:
        """Return how many connections of a stream count against its share.

        At a producer's gateway, these are the dialled ones that have a place, and the accepted ones that are joined or
        ready: the other gateway can let each ready one be an application's at any moment. There are both kinds after
        the dialler has changed. Accepted ones that are neither may be strangers, and have a limit of their own.
        """
        if stream.start.role == PROD:
            return sum(stream.granted.values()) + sum(
                self._channel_word(stream, channel, member.number, shared_figures.ACCEPTED_USED)
                - self._channel_word(stream, channel, member.number, shared_figures.GIVEN_BACK)
                for channel in stream.start.slots
                for member in self._members
            )
        return sum(
            self._on_its_way(stream, channel, member.number)
            + self._channel_word(stream, channel, member.number, shared_figures.OPEN)
            for channel in stream.start.slots
            for member in self._members
        )

    def _unread_of_all(self) -> dict[StreamKey, int]:
        """Return how many bytes of each stream wait to be read, as counted within the last second."""
        now = self._reactor.seconds()
        if now >= self._unread_until:
            self._unread_until = now + timing.COUNT_UNREAD
            self._unread = {
                key: sum(
                    self._word(slot, member.number, shared_figures.UNREAD)
                    for slot in stream.start.slots.values()
                    for member in self._members
                    if self._word(slot, member.number, shared_figures.OPEN)
                )
                for key, stream in self._streams.items()
            }
        return self._unread

    def _connections_at(self, element: int) -> int:
        """Return how many connections an element has, including those on their way to it."""
        return self._handed_over[element] - self._figures.words[self._figures.ended(element)]

    def _load(self, stream: _PlacedStream, channel: int, element: int) -> tuple[int, int, int, int]:
        """Return the load of an element for a channel.

        A connection of ConsApp goes to an element that has a ready connection for it, unless another element is less
        busy by more than one connection.

        :returns: its active connections of the channel, one less if one is ready; 0 if one is ready; all its
            connections of the channel, and all its connections.
        """
        on_its_way = self._on_its_way(stream, channel, element)
        there = self._channel_word(stream, channel, element, shared_figures.OPEN)
        active = min(there, self._channel_word(stream, channel, element, shared_figures.ACTIVE))
        is_ready = int(self._channel_word(stream, channel, element, shared_figures.READY) > on_its_way)
        if stream.update is not None and stream.update.wan_dialer != stream.start.role:
            is_ready *= MOST_HELD  # no other element can serve it soon
        return on_its_way + active - is_ready, not is_ready, on_its_way + there, self._connections_at(element)

    def _wan_load(self, stream: _PlacedStream, channel: int, element: int) -> tuple[int, int, int]:
        """Return the load of an element for a connection from the WAN, which is not yet one of an application."""
        ready = self._channel_word(stream, channel, element, shared_figures.READY)
        if stream.start.role == PROD:
            busy, _, there, total = self._load(stream, channel, element)
            return busy + 2 * ready, there, total
        arriving = ready + self._arriving_at(stream, channel, element)
        unserved = self._channel_word(stream, channel, element, shared_figures.UNSERVED)
        return arriving - unserved, arriving, self._connections_at(element)

    def _arriving(self, stream: _PlacedStream, channel: int) -> int:
        return sum(self._arriving_at(stream, channel, member.number) for member in self._members)

    def _arriving_at(self, stream: _PlacedStream, channel: int, element: int) -> int:
        """Return how many connections from the WAN are on their way or not verified, at the consumer's side."""
        on_its_way = stream.handed_from_wan.get((element, channel), 0) - self._channel_word(
            stream, channel, element, shared_figures.ARRIVED
        )
        return on_its_way + self._channel_word(stream, channel, element, shared_figures.ARRIVING)

    def _unjoined(self, stream: _PlacedStream, channel: int) -> int:
        return sum(
            self._on_its_way(stream, channel, member.number)
            + self._channel_word(stream, channel, member.number, shared_figures.JOINING)
            for member in self._members
        )

    def _on_its_way(self, stream: _PlacedStream, channel: int, element: int) -> int:
        """Return how many connections were handed over and are not taken over yet."""
        return stream.handed_over.get((element, channel), 0) - self._channel_word(
            stream, channel, element, shared_figures.TAKEN
        )

    def _channel_word(self, stream: _PlacedStream, channel: int, element: int, word: int) -> int:
        return self._word(stream.start.slots[channel], element, word)

    def _word(self, slot: int, element: int, word: int) -> int:
        return self._figures.words[self._figures.row(slot, element) + word]

    # -- an element that died

    def _count_lost(self, element: int) -> int:
        """Count the connections of an element that has died as reset, and return how many there were."""
        words, lost = self._figures.words, 0
        for (uid, role), stream in self._streams.items():
            for channel, slot in stream.start.slots.items():
                row = self._figures.row(slot, element)
                on_its_way = self._on_its_way(stream, channel, element)
                gone = words[row + shared_figures.OPEN] + on_its_way
                words[row + shared_figures.TAKEN] += on_its_way
                words[row + shared_figures.RESET] += gone
                from_wan = stream.handed_from_wan.get((element, channel), 0) - words[row + shared_figures.ARRIVED]
                words[row + shared_figures.ARRIVED] += from_wan
                words[row + shared_figures.GIVEN_BACK] = stream.granted.get((element, channel), 0)
                for word in (
                    shared_figures.READY,
                    shared_figures.ACCEPTED_USED,
                    shared_figures.ARRIVING,
                    shared_figures.UNSERVED,
                    shared_figures.OPEN,
                    shared_figures.JOINING,
                    shared_figures.RTT_US,
                    shared_figures.DELIVERY,
                    shared_figures.WAITING,
                    shared_figures.UNREAD,
                    shared_figures.ACTIVE,
                    shared_figures.HELD,
                    shared_figures.BUSY,
                    shared_figures.BUSY + 1,
                ):
                    words[row + word] = 0
                lost += gone
                if gone:
                    self._on_reset(
                        Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=ELEMENT_DIED, count=gone)
                    )
        words[self._figures.ended(element)] = self._handed_over[element]
        words[self._figures.kept_ready(element)] = 0
        return lost

    def _replay(self) -> list[ElementCommand]:
        """Return the commands for a restarted element."""
        commands: list[ElementCommand] = [SetHalfOpen(half_open=self._limits.half_open)]
        if self.settings != self._first_settings:
            commands.append(ChangeSettings(settings=self.settings))
        for stream in self._streams.values():
            commands.append(stream.start)
            if stream.update is not None:
                commands.append(stream.update)
        return commands


class _Member(Protocol):
    """An element in this process or in its own."""

    number: int
    ready: bool
    restarts: int
    has_started: Deferred[None]
    """Fires when the element is ready for the first time."""

    def start(self) -> None:
        """Start the element."""

    def stop(self) -> Deferred[None]:
        """End the element; fire when it has ended."""

    def ask(self, command: ElementCommand) -> Deferred[None]:
        """Have a command carried out; fail with its StreamError, or with `ElementDiedError`."""

    def is_alive(self) -> bool:
        """Return False if the element has ended, also if this process has not been told yet."""

    def tell(self, answer: PlaceAnswer) -> None:
        """Answer a request for a place."""

    def carry(self, hand_over: HandOver, sock: socket.socket) -> bool:
        """Hand over a connection. Return False if the element cannot take it now."""

    def most_descriptors(self) -> int:
        """Return how many descriptors the element may have open."""
