"""The elements of a gateway, as the initiator has them: processes, or one in its own.

`Elements` gives orders to all of them and hands each accepted connection to the one with the least to do. An element
that dies, or answers no more, takes its own connections with it (the kernel resets them) and is started again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, gatherResults, succeed
from twisted.logger import Logger

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.messages import PROD, ChannelFigures, Role, StreamKey
from scistream.s2ds.capacity import STREAM_SHARE, USUAL, has_its_share
from scistream.s2ds.elements import shared_figures
from scistream.s2ds.elements.commands import (
    ArmChannels,
    CloseChannels,
    ElementCommand,
    HandOver,
    MakeRoom,
    Reset,
    SetNetworks,
    SetTargets,
)
from scistream.s2ds.elements.element import NOT_ARMED, Element, ElementSettings, refuse
from scistream.s2ds.elements.process import (
    ElementProcess,
    InProcessElement,
    descriptors_of,
    is_dead,
    log_failure,
)
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.token_bucket import SharedTokenStore
from scistream.tls.stream_channels import Credentials

OWN_DESCRIPTORS = 12
"""Descriptors of an element that has no connection, or a few more; each connection takes two."""
ROOM_AT_ONCE = 32
"""Connections without a handshake that make room for others when one is asked for."""
SHARE = 8
"""An address that has more than one of so many places for connections without a handshake has less time for each."""


NO_SHARE = (
    "the stream has as many connections as the gateway has places left for others: close some, or have `connections` "
    "in [limits] of the gateway, or its limit of open files, raised"
)
NO_OWNER_SHARE = (
    "the streams of this user have all the connections that one user may have: close some, or have `connections` or "
    "`owner_share` in [limits] of the gateway raised"
)
UNREAD = (
    "too many bytes of the stream wait at the gateway for programs that do not read them: let these read, or close "
    "some connections, or have `unread` in [limits] of the gateway raised"
)
OWNER_UNREAD = (
    "too many bytes of this user's streams wait at the gateway for programs that do not read them: let these read, or "
    "close some, or have `unread` in [limits] of the gateway raised"
)
NO_ELEMENT = "no element of the gateway takes connections just now"
ELEMENT_DIED = "the element of the gateway that carried it has ended"


def _nobody_hears(_reset: Reset) -> None:
    """Nobody asked why connections were reset."""


def _none(_stream: _PlacedStream, _channel: int) -> int:
    return 0


def _go_on(_why: str) -> None:
    """Elements are started again and again."""


@dataclass
class _PlacedStream:
    """What an element that is started again has to know of a stream."""

    start: ArmChannels
    update: SetTargets | None = None
    handed: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of an element and a channel: how many connections were handed over."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Of a channel: how many connections were handed over in order."""

    @property
    def key(self) -> StreamKey:
        return self.start.uid, self.start.role


class Elements:
    """All elements of a gateway. `start` before the first connection is handed over; `stop` ends them.

    :param reactor: an `IReactorProcess`, `IReactorSocket` and `IReactorTime`.
    :param count: how many processes; 0: none, the one element is in this process.
    :param slots: how many channels the gateway can have.
    :param settings: of each element.
    :param shared: what the streams share.
    :param in_order: whether connections of a channel are dialled in the order in which they were accepted.
    :param on_reset: hears why connections were reset.
    :param on_hopeless: hears why no element can be started, as an element fails to start for the second time in a row
        and none is ready.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        count: int,
        slots: int,
        settings: ElementSettings,
        shared: SharedTokenStore = USUAL,
        on_reset: Callable[[Reset], None] = _nobody_hears,
        on_permanent: Callable[[str], None] = _go_on,
        *,
        in_order: bool = True,
    ) -> None:
        self._reactor = reactor
        self._on_reset = on_reset
        self._on_permanent = on_permanent
        self._shared = shared
        self._in_order = in_order
        self._board = SharedFigures.create(slots, max(count, 1))
        self._networks: SetNetworks | None = None
        """What elements were told of networks since they were started; None: those of their settings count."""
        self._streams: dict[StreamKey, _PlacedStream] = {}
        self._members: list[_Member] = (
            [
                ElementProcess(
                    reactor, self._board, number, settings, self._replay, self._settle, self._hear, self._give_up
                )
                for number in range(count)
            ]
            if count
            else [InProcessElement(Element(reactor, self._board, 0, settings, self._hear))]
        )
        self._handed = [0] * len(self._members)
        self._unread: dict[StreamKey, int] = {}
        self._unread_until = 0.0

    def start(self) -> None:
        """Start the processes."""
        for member in self._members:
            member.start()

    def stop(self) -> Deferred[None]:
        """Reset every connection; fires when no process is left."""
        stopping = DeferredList([member.stop() for member in self._members])
        return stopping.addCallback(lambda _: self._board.close())

    def share(self, shared: SharedTokenStore) -> None:
        """Hold connections that come from now on to other bounds."""
        self._shared = shared

    def set_networks(self, wan_networks: list[str]) -> None:
        """Dial other gateways that have names in these networks only, from now on."""
        self._networks = SetNetworks(wan_networks=wan_networks)
        for member in self._members:
            member.ask(self._networks).addErrback(log_failure)

    def most_connections(self) -> int:
        """How many connections there are descriptors for, on all elements."""
        return len(self._members) * ((descriptors_of(0) - OWN_DESCRIPTORS) // 2)

    # -- streams

    def open(self, uid: str, role: Role, rate: float, slots: Mapping[int, int], owner: str = "") -> None:
        """A stream is reserved, at `rate` Mbit/s each way: its figures exist from here. Idempotent.

        :param slots: of each channel; nobody else has them until `close` has fired.
        :param owner: the same for all streams of one user; empty: not known.
        """
        if (uid, role) in self._streams:
            return
        for slot in slots.values():
            self._board.clear(slot)
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
    ) -> Deferred[None]:
        """New connections of each channel go to these addresses; those that are open finish on the old ones.

        :param own: ports of this gateway that are targets all the same: WAN listeners of the same stream.
        :param other_addresses: of a channel, where to connect to if that fails.

        Fires when every element has it, or fails with the StreamError of one.
        """
        stream = self._streams[uid, role]
        shown = {channel: str(target) for channel, target in targets.items()}
        others = {channel: list(map(str, found)) for channel, found in (other_addresses or {}).items()}
        stream.update = SetTargets(
            uid=uid, role=role, targets=shown, credentials=credentials, own=sorted(own), other_addresses=others
        )
        # An element that dies meanwhile hears it when it is started again, before it gets a connection.
        asked = [member.ask(stream.update).addErrback(is_dead) for member in self._members]
        armed = gatherResults(asked, consumeErrors=True)
        return armed.addCallbacks(lambda _: None, lambda failure: failure.value.subFailure)

    def close(self, uid: str, role: Role) -> Deferred[list[ChannelFigures]]:
        """Reset every connection of the stream. Not one byte crosses after this has fired, with its last figures;
        with none for a stream that is not open."""
        if (uid, role) not in self._streams:
            return succeed([])
        order = CloseChannels(uid=uid, role=role)
        closed = DeferredList([member.ask(order).addErrback(log_failure) for member in self._members])

        def last(_: object) -> list[ChannelFigures]:
            figures = self.figures(uid, role)
            del self._streams[uid, role]
            return figures

        return closed.addCallback(last)

    def figures(self, uid: str, role: Role) -> list[ChannelFigures]:
        """What each channel has carried so far; nothing for a stream that is not open."""
        stream = self._streams.get((uid, role))
        if stream is None:
            return []
        return [self._board.figures(channel, slot) for channel, slot in stream.start.slots.items()]

    def joined(self, uid: str, role: Role, channel: int) -> int:
        """How many connections of a channel have come about, from one application to the other gateway or back."""
        stream = self._streams.get((uid, role))
        slot = stream.start.slots.get(channel) if stream is not None else None
        if slot is None:
            return 0
        return sum(self._word(slot, member.number, shared_figures.JOINED) for member in self._members)

    # -- connections

    def has_room(self, uid: str, role: Role, channel: int) -> bool:
        """Whether the channel can take a connection now.

        If too many of it are not joined yet, connections from the WAN that have had their time for the handshake make
        room: whoever connects and says nothing keeps nobody out for long.

        :raises OSError: no element may open more descriptors.
        """
        stream = self._streams.get((uid, role))
        if stream is None or channel not in stream.start.slots:
            return True  # it will be refused
        ready = [member for member in self._members if member.ready]
        if not ready:
            return False
        if not any(self._has_descriptors(member) for member in ready):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if self._unjoined(stream, channel) < self._shared.half_open:
            return True
        if role != PROD:
            return False
        slot = stream.start.slots[channel]
        fullest = max(self._members, key=lambda member: self._word(slot, member.number, shared_figures.JOINING))
        share = max(1, self._shared.half_open // (SHARE * len(self._members)))
        order = MakeRoom(uid=uid, role=role, channel=channel, count=ROOM_AT_ONCE, share=share)
        fullest.ask(order).addErrback(log_failure)
        return self._unjoined(stream, channel) < self._shared.half_open

    def carry(self, uid: str, role: Role, channel: int, sock: socket.socket) -> None:
        """Hand an accepted connection to the element with the fewest of its channel that are new or carry bytes; among
        equals to the one with the fewest of its channel, and then of all.

        It is this process's no longer. If no element takes it, it is reset.
        """
        stream = self._streams.get((uid, role))
        if stream is None or channel not in stream.start.slots:
            refuse(sock)
            self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=NOT_ARMED, count=1))
            return
        too_much = self._too_much(stream)
        if too_much is not None:
            refuse(sock)
            self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=too_much, count=1))
            return
        number = stream.numbers.get(channel, 0) + 1 if self._in_order else 0
        carry = HandOver(uid=uid, role=role, channel=channel, number=number)
        for member in sorted(self._members, key=lambda member: self._load(stream, channel, member.number)):
            if member.ready and self._has_descriptors(member) and member.carry(carry, sock):
                stream.numbers[channel] = number
                key = member.number, channel
                stream.handed[key] = stream.handed.get(key, 0) + 1
                self._handed[member.number] += 1
                return
        refuse(sock)
        self._on_reset(Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=NO_ELEMENT, count=1))

    def _hear(self, resets: list[Reset]) -> None:
        for reset in resets:
            self._on_reset(reset)

    def _give_up(self, why: str) -> None:
        if not any(member.ready for member in self._members):
            on_permanent, self._on_permanent = self._on_permanent, _go_on  # the others that fail would say the same
            on_permanent(why)

    def _has_descriptors(self, member: _Member) -> bool:
        """Whether it may have two more: what it cannot have the kernel would drop on the way to it."""
        return OWN_DESCRIPTORS + 2 * (self._in_all(member.number) + 1) <= member.most_descriptors()

    def _too_much(self, stream: _PlacedStream) -> str | None:
        """Why a stream gets no further connection: with one more, others could be kept out."""
        percents = STREAM_SHARE, self._shared.owner_share
        places = sum((member.most_descriptors() - OWN_DESCRIPTORS) // 2 for member in self._members if member.ready)
        if self._shared.connections:
            places = min(places, self._shared.connections)
        left = places - sum(self._in_all(member.number) for member in self._members)
        if left * 100 <= places * (100 - min(percents)):  # or nobody can have so many
            if has_its_share(self._connections_of(stream), left, STREAM_SHARE):
                return NO_SHARE
            if has_its_share(sum(map(self._connections_of, self._siblings(stream))), left, self._shared.owner_share):
                return NO_OWNER_SHARE
        if self._shared.unread:
            unread = self._unread_of_all()
            left = max(0, self._shared.unread - sum(unread.values()))
            if left * 100 <= self._shared.unread * (100 - min(percents)):
                if has_its_share(unread.get(stream.key, 0), left, STREAM_SHARE):
                    return UNREAD
                owned = sum(unread.get(one.key, 0) for one in self._siblings(stream))
                if has_its_share(owned, left, self._shared.owner_share):
                    return OWNER_UNREAD
        return None

    def _siblings(self, stream: _PlacedStream) -> list[_PlacedStream]:
        """The streams of its owner, with itself."""
        owner = stream.start.owner
        return [one for one in self._streams.values() if one.start.owner == owner] if owner else [stream]

    def _connections_of(self, stream: _PlacedStream) -> int:
        """How many a stream has; from the WAN there may be strangers among those that are not joined, and they are
        bounded by themselves."""
        unjoined = self._unjoined if stream.start.role == PROD else _none
        return sum(
            self._on_its_way(stream, channel, member.number)
            + self._of(stream, channel, member.number, shared_figures.OPEN)
            for channel in stream.start.slots
            for member in self._members
        ) - sum(unjoined(stream, channel) for channel in stream.start.slots)

    def _unread_of_all(self) -> dict[StreamKey, int]:
        """How many bytes of each stream wait, as it was about a second ago."""
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

    def _in_all(self, element: int) -> int:
        """The connections that an element has, and those on their way to it."""
        return self._handed[element] - self._board.words[self._board.ended(element)]

    def _load(self, stream: _PlacedStream, channel: int, element: int) -> tuple[int, int, int]:
        """The connections of a channel at an element that are new or carry bytes, all that it has of the channel, and
        all that it has."""
        on_its_way = self._on_its_way(stream, channel, element)
        there = self._of(stream, channel, element, shared_figures.OPEN)
        active = min(there, self._of(stream, channel, element, shared_figures.ACTIVE))
        return on_its_way + active, on_its_way + there, self._in_all(element)

    def _unjoined(self, stream: _PlacedStream, channel: int) -> int:
        return sum(
            self._on_its_way(stream, channel, member.number)
            + self._of(stream, channel, member.number, shared_figures.JOINING)
            for member in self._members
        )

    def _on_its_way(self, stream: _PlacedStream, channel: int, element: int) -> int:
        """How many were handed over and are not taken yet."""
        return stream.handed.get((element, channel), 0) - self._of(stream, channel, element, shared_figures.TAKEN)

    def _of(self, stream: _PlacedStream, channel: int, element: int, word: int) -> int:
        return self._word(stream.start.slots[channel], element, word)

    def _word(self, slot: int, element: int, word: int) -> int:
        return self._board.words[self._board.row(slot, element) + word]

    # -- an element that died

    def _settle(self, element: int) -> int:
        """Count what went with an element: all that it had is reset. Gives how many that were."""
        words, lost = self._board.words, 0
        for (uid, role), stream in self._streams.items():
            for channel, slot in stream.start.slots.items():
                row = self._board.row(slot, element)
                on_its_way = self._on_its_way(stream, channel, element)
                gone = words[row + shared_figures.OPEN] + on_its_way
                words[row + shared_figures.TAKEN] += on_its_way
                words[row + shared_figures.RESET] += gone
                for word in (
                    shared_figures.OPEN,
                    shared_figures.JOINING,
                    shared_figures.RTT_US,
                    shared_figures.DELIVERY,
                    shared_figures.WAITING,
                    shared_figures.UNREAD,
                    shared_figures.ACTIVE,
                    shared_figures.BUSY,
                    shared_figures.BUSY + 1,
                ):
                    words[row + word] = 0
                lost += gone
                if gone:
                    self._on_reset(
                        Reset(uid=uid, role=role, channel=channel, cause="gateway", reason=ELEMENT_DIED, count=gone)
                    )
        words[self._board.ended(element)] = self._handed[element]
        return lost

    def _replay(self) -> list[ElementCommand]:
        """What a new element has to be told."""
        orders: list[ElementCommand] = [] if self._networks is None else [self._networks]
        for stream in self._streams.values():
            orders.append(stream.start)
            if stream.update is not None:
                orders.append(stream.update)
        return orders


class _Member(Protocol):
    """One element, wherever it is."""

    number: int
    ready: bool

    def start(self) -> None:
        """Bring it to life."""

    def stop(self) -> Deferred[None]:
        """End it; fires when it is gone."""

    def ask(self, order: ElementCommand) -> Deferred[None]:
        """Have an order carried out; fails with its StreamError, or with `ElementDiedError`."""

    def carry(self, carry: HandOver, sock: socket.socket) -> bool:
        """Hand a connection over; False if it cannot take one now."""

    def most_descriptors(self) -> int:
        """How many it may have open."""
