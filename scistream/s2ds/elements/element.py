"""An element: carries connections of streams, in a process of its own (`worker.py`) or in the initiator's.

The initiator gives it orders and hands it accepted connections. An element decides nothing about who may have what.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Set
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream import timing
from scistream.protocol.address import Address, inside, parse_network
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_REASON, Cause, Role, StreamKey
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
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.elements.target_names import Names
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import prepare
from scistream.s2ds.relay.receive_windows import StreamWindows, Windows, most_wide
from scistream.s2ds.relay.relay import ChannelTarget, ConnectionEnding, Relay, RelayContext
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.tls import tune
from scistream.s2ds.relay.token_bucket import TokenBucket
from scistream.s2ds.relay.turns import Turn, Turns
from scistream.s2ds.self_target import is_own_address

MOST_PROVEN = 256
"""Addresses of gateways that a channel remembers, since their connections have shown who they are."""

MOST_RESETS = 256
"""Reasons that an element tells at a time, of all streams together."""
NOT_ARMED = "the channel has no target yet"
NO_DESCRIPTOR = "an element of the gateway is out of descriptors: raise the limit of open files (LimitNOFILE)"

SAMPLES = 200
"""Connections of one channel that TCP is asked about each time; the sums are made of them."""


class ElementSettings(Struct, frozen=True, kw_only=True):
    """How every element of a gateway works; times in seconds.

    :ivar wan_timeout: that a break of the WAN may last before connections are reset.
    :ivar dial_timeout: for a connection to the target.
    :ivar handshake_timeout: for the TLS handshake on the WAN.
    :ivar lan_congestion: the congestion control of connections to applications; empty: the system's.
    :ivar wan_congestion: of those to other gateways.
    :ivar buffer_size: bytes in flight in each direction of a connection, at most.
    :ivar wan_cipher: which is preferred there.
    :ivar wan_networks: in which the addresses of other gateways lie that have names.
    :ivar control: the port of this gateway for its controller.
    :ivar lent: ranges of the ports that this gateway lends to streams, both ends included.
    """

    wan_timeout: float = 60.0
    dial_timeout: float = 10.0
    handshake_timeout: float = 10.0
    lan_congestion: str = ""
    wan_congestion: str = ""
    buffer_size: int = 262144
    wan_cipher: str = "aes"
    wan_networks: list[str] = []
    control: int = 0
    lent: list[tuple[int, int]] = []


class Element:
    """A buffer-and-forward element.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param figures: where it counts, in the rows of `number`.
    :param tell: called with why connections were reset, once a second at most.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        number: int,
        settings: ElementSettings,
        tell: Callable[[list[Reset]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._means = RelayContext(
            reactor,
            Buffers(settings.buffer_size),
            DeadPeerDetector(reactor, settings.wan_timeout),
            settings.dial_timeout,
            settings.handshake_timeout,
            settings.wan_timeout,
            settings.lan_congestion,
            settings.wan_congestion,
            Names(reactor, lambda address, own: _may_dial(self._settings, address, own)),
        )
        self._board = figures
        self._number = number
        self._streams: dict[StreamKey, _ElementStream] = {}
        self._windows = Windows(most_wide(figures.elements))
        self._sampling: IDelayedCall | None = None
        self._resets = _Resets(reactor, tell) if tell is not None else None

    def carry_out(self, order: ElementCommand) -> None:
        """Do what the initiator says. An order that was carried out already does nothing.

        :raises StreamError: ``bad-message`` for credentials that OpenSSL refuses, ``gateway-failed`` for a stream that
            is not there.
        """
        if isinstance(order, ArmChannels):
            self._open(order)
        elif isinstance(order, SetTargets):
            self._arm(order)
        elif isinstance(order, CloseChannels):
            self._close(order)
        elif isinstance(order, MakeRoom):
            self._make_room(order)
        elif isinstance(order, SetNetworks):
            self._settings = msgspec.structs.replace(self._settings, wan_networks=order.wan_networks)

    def carry(self, carry: HandOver, sock: socket.socket) -> None:
        """Take over an accepted connection. Where the channel is not armed it is reset."""
        of_channel = self._channel(carry)
        if of_channel is None:
            refuse(sock)
            self._board.words[self._board.ended(self._number)] += 1
            self._note(carry.uid, carry.role, carry.channel, ConnectionEnding(False, NOT_ARMED))
        else:
            of_channel.carry(self._means, sock, carry.number)
            if self._sampling is None:
                self._sampling = self._means.reactor.callLater(timing.SAMPLE, self._sample)

    def lost(self, carry: HandOver) -> None:
        """A connection that was handed over has not come: this process has no descriptor for it."""
        of_channel = self._channel(carry)
        if of_channel is None:
            self._board.words[self._board.ended(self._number)] += 1
        else:
            of_channel.lose(carry.number)
        self._note(carry.uid, carry.role, carry.channel, ConnectionEnding(False, NO_DESCRIPTOR))

    def stop(self) -> None:
        """Reset every connection."""
        if self._resets is not None:
            self._resets.flush()
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._means.pipes.close()

    def _channel(self, carry: HandOver) -> _Channel | None:
        stream = self._streams.get((carry.uid, carry.role))
        return stream.channels.get(carry.channel) if stream is not None else None

    def _sample(self) -> None:
        self._sampling = None
        for stream in self._streams.values():
            for of_channel in stream.channels.values():
                if of_channel.is_used:
                    of_channel.sample()
                    self._sampling = self._sampling or self._means.reactor.callLater(timing.SAMPLE, self._sample)

    def _open(self, order: ArmChannels) -> None:
        if (order.uid, order.role) not in self._streams:
            self._streams[order.uid, order.role] = _ElementStream(
                self._means.reactor,
                self._board,
                self._number,
                order,
                self._windows.of_stream(order.owner),
                self._note,
            )

    def _note(self, uid: str, role: Role, channel: int, ending: ConnectionEnding) -> None:
        if self._resets is not None:
            self._resets.add(uid, role, channel, ending)

    def _arm(self, order: SetTargets) -> None:
        """Those connections that are open finish on the old target."""
        stream = self._streams.get((order.uid, order.role))
        if stream is None:
            raise StreamError("gateway-failed", f"an element knows nothing of stream {order.uid} ({order.role})")
        context = None
        if order.credentials is not None:
            context = order.credentials.context(self._settings.wan_cipher)
            tune(context)
        for channel, target in order.targets.items():
            stream.channels[channel].arming = ChannelTarget(
                order.uid,
                order.role,
                channel,
                Address.parse(target),
                context,
                own=frozenset(order.own),
                others=tuple(map(Address.parse, order.other_addresses.get(channel, ()))),
            )

    def _close(self, order: CloseChannels) -> None:
        stream = self._streams.pop((order.uid, order.role), None)
        if stream is not None:
            if self._resets is not None:
                self._resets.flush()  # the answer to this order is the last that is heard of the stream
            cut = stream.close()
            self._windows.forget(stream.windows)
            self.log.info(
                "Stream {uid} ({role}) is closed; connections cut: {cut}", uid=order.uid, role=order.role, cut=cut
            )

    def _make_room(self, order: MakeRoom) -> None:
        stream = self._streams.get((order.uid, order.role))
        if stream is not None:
            stream.channels[order.channel].make_room(self._means.reactor.seconds(), order.count, order.share)


class _ElementStream:
    """What an element holds for one stream."""

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        element: int,
        order: ArmChannels,
        windows: StreamWindows,
        note: Callable[[str, Role, int, ConnectionEnding], None],
    ) -> None:
        first = next(iter(order.slots.values()))
        self._to_consumer, self._to_producer = (
            _throttle(reactor, figures, element, order.rate, first, direction) for direction in (0, 1)
        )
        self.windows = windows
        self.channels = {
            channel: _Channel(
                reactor,
                figures,
                element,
                slot,
                self._to_consumer,
                self._to_producer,
                windows,
                partial(note, order.uid, order.role, channel),
            )
            for channel, slot in order.slots.items()
        }

    def close(self) -> int:
        relays = [relay for channel in self.channels.values() for relay in channel.relays]
        for relay in relays:
            relay.cut()
        self._to_producer.stop()
        self._to_consumer.stop()
        return len(relays)


def _throttle(reactor: Any, figures: SharedFigures, element: int, rate: float, slot: int, direction: int) -> Throttle:
    """One direction of a stream at this element, which gets as much of the rate as its busy connections are of all."""
    words, everywhere = figures.words, figures.busy(slot, direction)
    here = everywhere[element]

    def share() -> float:
        others = sum(words[at] for at in everywhere if at != here)
        mine = words[here] or 1
        return float(mine / (mine + others))

    def tell_busy(count: int) -> None:
        words[here] = count

    return Throttle(reactor, TokenBucket(rate, time.monotonic, figures.tokens(slot, direction), share), tell_busy)


class _Channel:
    """One channel at this element, its open connections and its row of figures."""

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        element: int,
        slot: int,
        to_consumer: Throttle,
        to_producer: Throttle,
        windows: StreamWindows,
        note: Callable[[ConnectionEnding], None],
    ) -> None:
        self._note = note
        self._words = figures.words
        self._row = row = figures.row(slot, element)
        self._ended_at = figures.ended(element)
        self._to_consumer = Flow(to_consumer, windows, self._words, row + shared_figures.TO_CONSUMER)
        self._to_producer = Flow(to_producer, windows, self._words, row + shared_figures.TO_PRODUCER)
        self._turns = Turns(reactor, self._words, figures.turns(slot))
        self.arming: ChannelTarget | None = None
        self.relays: dict[Relay, tuple[int, int]] = {}
        """What is open, and how many segments it had sent again, and bytes moved, when it was last looked at."""
        self._joining: dict[Relay, float] = {}
        self._proven: dict[str, None] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is anything to say, or to take back, of its connections."""
        return bool(self.relays or self._words[self._row + shared_figures.RTT_US])

    def carry(self, means: RelayContext, sock: socket.socket, number: int) -> None:
        words, row = self._words, self._row
        turn = Turn(self._turns, number)
        words[row + shared_figures.TAKEN] += 1
        if self.arming is None:
            self._count_reset()
            turn.over()
            refuse(sock)
            self._note(ConnectionEnding(False, NOT_ARMED))
            return
        words[row + shared_figures.OPEN] += 1
        words[row + shared_figures.JOINING] += 1
        words[row + shared_figures.ACTIVE] += 1
        relay = Relay(means, self.arming, sock, self._to_producer, self._to_consumer, self._ended, self._opened, turn)
        self.relays[relay] = 0, 0
        self._joining[relay] = means.reactor.seconds()
        relay.start()

    def lose(self, number: int) -> None:
        """It was handed over and has not come."""
        Turn(self._turns, number).over()
        self._words[self._row + shared_figures.TAKEN] += 1
        self._count_reset()

    def _count_reset(self) -> None:
        self._words[self._row + shared_figures.RESET] += 1
        self._words[self._ended_at] += 1

    def make_room(self, now: float, count: int, share: int) -> None:
        """End connections that have taken long enough over their handshake.

        Those of the address that has most of them go first, those of a known gateway last.

        :param share: of which an address may have so many before it has less time.
        """
        by_address: dict[str, list[Relay]] = {}
        for relay in self._joining:
            if not relay.is_verified:
                by_address.setdefault(relay.source, []).append(relay)
        order = sorted(by_address, key=lambda address: (address in self._proven, -len(by_address[address])))
        old = []
        for address in order:
            relays = by_address[address]
            is_suspect = address not in self._proven
            for left, relay in zip(range(len(relays), 0, -1), relays, strict=True):
                grace = timing.WAN_GRACE
                if is_suspect and left > share:
                    grace = timing.WAN_SHARE_GRACE if relay.has_heard() else timing.WAN_SILENT_GRACE
                if now - self._joining[relay] >= grace:
                    old.append(relay)
        for relay in old[:count]:
            relay.reset("no TLS handshake yet, and others wait", "stranger")

    def sample(self) -> None:
        """Write down what TCP says of the connections to the other gateway; if there are many, of some of them."""
        words, row = self._words, self._row
        chosen = [relay for relay in self.relays if relay not in self._joining]
        share = max(1.0, len(chosen) / SAMPLES)
        if share > 1.0:
            chosen = random.sample(chosen, SAMPLES)
        rtt = delivery = waiting = unread = active = 0.0
        for relay in chosen:
            one = relay.sample()
            rtt += one.rtt
            delivery += one.delivery_rate
            waiting += one.waiting
            unread += one.unread
            retransmits, moved = self.relays[relay]
            active += one.moved != moved
            words[row + shared_figures.RETRANSMITS] += max(0, one.retransmits - retransmits)
            self.relays[relay] = one.retransmits, one.moved
        words[row + shared_figures.RTT_US] = int(rtt * share * 1e6)
        words[row + shared_figures.DELIVERY] = int(delivery * share)
        words[row + shared_figures.WAITING] = int(waiting * share)
        words[row + shared_figures.UNREAD] = int(unread * share)
        words[row + shared_figures.ACTIVE] = int(active * share) + len(self._joining)

    def _opened(self, relay: Relay) -> None:
        self._words[self._row + shared_figures.JOINED] += 1
        self._joined(relay)

    def _joined(self, relay: Relay) -> None:
        if relay.is_verified:
            self._proven.pop(relay.source, None)
            self._proven[relay.source] = None
            if len(self._proven) > MOST_PROVEN:
                del self._proven[next(iter(self._proven))]
        if self._joining.pop(relay, None) is not None:
            self._words[self._row + shared_figures.JOINING] -= 1

    def _ended(self, relay: Relay, ending: ConnectionEnding) -> None:
        self._joined(relay)
        self.relays.pop(relay, None)
        words, row = self._words, self._row
        words[row + shared_figures.OPEN] -= 1
        words[row + shared_figures.RESET] += not ending.well
        words[self._ended_at] += 1
        if ending.reason:
            self._note(ending)


class _Resets:
    """Gathers why connections were reset, and tells it once a second at most."""

    def __init__(self, reactor: Any, tell: Callable[[list[Reset]], None]) -> None:
        self._reactor = reactor
        self._tell = tell
        self._counts: dict[tuple[str, Role, int, Cause, str], tuple[int, str]] = {}
        self._timer: IDelayedCall | None = None
        self._told = -timing.RESETS_TOLD

    def add(self, uid: str, role: Role, channel: int, ending: ConnectionEnding) -> None:
        key = uid, role, channel, ending.cause, ending.reason[:MAX_REASON]
        if key not in self._counts and len(self._counts) >= MOST_RESETS:
            key = uid, role, channel, "gateway", "there are too many reasons to name them all"
        count, _ = self._counts.get(key, (0, ""))
        self._counts[key] = count + 1, ending.detail[:MAX_REASON]
        if self._timer is None:
            due = max(0.0, self._told + timing.RESETS_TOLD - self._reactor.seconds())
            self._timer = self._reactor.callLater(due, self.flush)

    def flush(self) -> None:
        """Tell what there is."""
        if self._timer is None:
            return
        if self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._told = self._reactor.seconds()
        counts, self._counts = self._counts, {}
        self._tell(
            [
                Reset(uid=uid, role=role, channel=channel, cause=cause, reason=reason, count=count, detail=detail)
                for (uid, role, channel, cause, reason), (count, detail) in counts.items()
            ]
        )


def _may_dial(settings: ElementSettings, address: Address, own: Set[int]) -> bool:
    """Whether an address of another gateway's name may be dialled; others were looked at before."""
    if address.numeric is None or not inside(address.numeric, tuple(map(parse_network, settings.wan_networks))):
        return False
    return not is_own_address(address, settings.control, settings.lent, own, to_wan=True)


def refuse(sock: socket.socket) -> None:
    """Reset a connection that nobody carries."""
    prepare(sock, timing.LAN_SILENCE)
    sock.close()
