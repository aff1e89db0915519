"""An element: it carries connections of streams, in a process of its own (`worker.py`) or in the initiator's.

The initiator sends commands and hands over accepted connections. It also enforces the limits of streams.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Set
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, field
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
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import prepare
from scistream.s2ds.relay.receive_windows import StreamWindows, Windows, most_wide
from scistream.s2ds.relay.relay import ChannelTarget, ConnectionEnding, Relay, RelayContext
from scistream.s2ds.relay.target_names import Names
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.tls import tune
from scistream.s2ds.relay.token_bucket import TokenBucket
from scistream.s2ds.relay.turns import Turn, Turns
from scistream.s2ds.self_target import is_own_address

MOST_PROVEN = 256
"""The number of verified peer addresses that a channel remembers."""

MOST_RESETS = 256
"""The number of reasons in one report of an element, over all streams."""
NOT_ARMED = "the channel has no target yet"
NO_DESCRIPTOR = "an element of the gateway is out of descriptors: raise the limit of open files (LimitNOFILE)"

SAMPLES = 200
"""The number of connections of one channel in a sample, from which its sums are estimated."""


class ElementSettings(Struct, frozen=True, kw_only=True):
    """The settings of all elements of a gateway; times in seconds.

    :ivar wan_timeout: how long the WAN may be interrupted before connections are reset.
    :ivar dial_timeout: the time limit for a connection to the target.
    :ivar handshake_timeout: the time limit for the TLS handshake on the WAN.
    :ivar lan_congestion: the congestion control of connections to applications; empty: the system's.
    :ivar wan_congestion: the congestion control of connections to other gateways; empty: the system's.
    :ivar buffer_size: the number of bytes in flight in each direction of a connection, at most.
    :ivar wan_cipher: the preferred cipher on the WAN.
    :ivar wan_networks: the networks in which gateways with names may be dialled.
    :ivar control: the port on which this gateway listens for its controller.
    :ivar lent: ranges of the ports that this gateway lends to streams, both ends included.
    :ivar multipath: whether connections to other gateways may use several paths.
    """

    wan_timeout: float = 60.0
    dial_timeout: float = field(default_factory=lambda: timing.DATA_DIAL)
    handshake_timeout: float = field(default_factory=lambda: timing.DATA_HANDSHAKE)
    lan_congestion: str = ""
    wan_congestion: str = ""
    buffer_size: int = 262144
    wan_cipher: str = "aes"
    wan_networks: list[str] = []
    control: int = 0
    lent: list[tuple[int, int]] = []
    multipath: bool = False


class Element:
    """A buffer-and-forward element.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param figures: the shared figures, in which it writes the rows of its `number`.
    :param on_resets: called with the connections that were reset, once a second at most.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        number: int,
        settings: ElementSettings,
        on_resets: Callable[[list[Reset]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._context = RelayContext(
            reactor,
            Buffers(settings.buffer_size),
            DeadPeerDetector(reactor, settings.wan_timeout),
            settings.dial_timeout,
            settings.handshake_timeout,
            settings.wan_timeout,
            settings.lan_congestion,
            settings.wan_congestion,
            Names(reactor, lambda address, own: _may_dial(self._settings, address, own)),
            settings.multipath,
        )
        self._figures = figures
        self._number = number
        self._streams: dict[StreamKey, _ElementStream] = {}
        self._windows = Windows(most_wide(figures.elements))
        self._sampling: IDelayedCall | None = None
        self._resets = _ResetReporter(reactor, on_resets) if on_resets is not None else None

    def carry_out(self, command: ElementCommand) -> None:
        """Carry out a command of the initiator. A repeated command has no effect.

        :raises StreamError: ``bad-message`` for credentials that OpenSSL refuses, ``gateway-failed`` for an unknown
            stream.
        """
        if isinstance(command, ArmChannels):
            self._open(command)
        elif isinstance(command, SetTargets):
            self._arm(command)
        elif isinstance(command, CloseChannels):
            self._close(command)
        elif isinstance(command, MakeRoom):
            self._make_room(command)
        elif isinstance(command, SetNetworks):
            self._settings = msgspec.structs.replace(self._settings, wan_networks=command.wan_networks)

    def carry(self, hand_over: HandOver, sock: socket.socket) -> None:
        """Take over an accepted connection. Reset it if the channel has no target."""
        channel = self._channel(hand_over)
        if channel is None:
            refuse(sock)
            self._figures.words[self._figures.ended(self._number)] += 1
            self._note(hand_over.uid, hand_over.role, hand_over.channel, ConnectionEnding(False, NOT_ARMED))
        else:
            channel.carry(self._context, sock, hand_over.number)
            if self._sampling is None:
                self._sampling = self._context.reactor.callLater(timing.SAMPLE_INTERVAL, self._sample)

    def lost(self, hand_over: HandOver) -> None:
        """Count a connection that was handed over and lost, since this process had no descriptor for it."""
        channel = self._channel(hand_over)
        if channel is None:
            self._figures.words[self._figures.ended(self._number)] += 1
        else:
            channel.count_lost(hand_over.number)
        self._note(hand_over.uid, hand_over.role, hand_over.channel, ConnectionEnding(False, NO_DESCRIPTOR))

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
        self._context.pipes.close()

    def _channel(self, hand_over: HandOver) -> _Channel | None:
        stream = self._streams.get((hand_over.uid, hand_over.role))
        return stream.channels.get(hand_over.channel) if stream is not None else None

    def _sample(self) -> None:
        self._sampling = None
        for stream in self._streams.values():
            for channel in stream.channels.values():
                if channel.is_used:
                    channel.sample()
                    self._sampling = self._sampling or self._context.reactor.callLater(
                        timing.SAMPLE_INTERVAL, self._sample
                    )

    def _open(self, command: ArmChannels) -> None:
        if (command.uid, command.role) not in self._streams:
            self._streams[command.uid, command.role] = _ElementStream(
                self._context.reactor,
                self._figures,
                self._number,
                command,
                self._windows.of_stream(command.owner),
                self._note,
            )

    def _note(self, uid: str, role: Role, channel: int, ending: ConnectionEnding) -> None:
        if self._resets is not None:
            self._resets.add(uid, role, channel, ending)

    def _arm(self, command: SetTargets) -> None:
        """Set the targets of new connections; open connections keep their old target."""
        stream = self._streams.get((command.uid, command.role))
        if stream is None:
            raise StreamError("gateway-failed", f"an element does not know stream {command.uid} ({command.role})")
        context = None
        if command.credentials is not None:
            context = command.credentials.context(self._settings.wan_cipher)
            tune(context)
        for channel, target in command.targets.items():
            stream.channels[channel].target = ChannelTarget(
                command.uid,
                command.role,
                channel,
                Address.parse(target),
                context,
                own_ports=frozenset(command.own),
                other_addresses=tuple(map(Address.parse, command.other_addresses.get(channel, ()))),
            )

    def _close(self, command: CloseChannels) -> None:
        stream = self._streams.pop((command.uid, command.role), None)
        if stream is not None:
            if self._resets is not None:
                self._resets.flush()  # the initiator forgets the stream after the answer to this command
            cut = stream.close()
            self._windows.forget(stream.windows)
            self.log.info(
                "Stream {uid} ({role}) is closed; connections reset: {cut}", uid=command.uid, role=command.role, cut=cut
            )

    def _make_room(self, command: MakeRoom) -> None:
        stream = self._streams.get((command.uid, command.role))
        if stream is not None:
            stream.channels[command.channel].make_room(self._context.reactor.seconds(), command.count, command.share)


class _ElementStream:
    """One stream at an element."""

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        element: int,
        command: ArmChannels,
        windows: StreamWindows,
        note: Callable[[str, Role, int, ConnectionEnding], None],
    ) -> None:
        first = next(iter(command.slots.values()))
        self._to_consumer, self._to_producer = (
            _throttle(reactor, figures, element, command.rate, first, direction) for direction in (0, 1)
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
                partial(note, command.uid, command.role, channel),
            )
            for channel, slot in command.slots.items()
        }

    def close(self) -> int:
        """Reset all connections, and return how many there were."""
        relays = [relay for channel in self.channels.values() for relay in channel.relays]
        for relay in relays:
            relay.cut()
        self._to_producer.stop()
        self._to_consumer.stop()
        return len(relays)


def _throttle(reactor: Any, figures: SharedFigures, element: int, rate: float, slot: int, direction: int) -> Throttle:
    """Return the throttle of one direction of a stream at this element.

    Its share of the rate is its share of the connections that wait for the rate on all elements.
    """
    words, all_busy = figures.words, figures.busy(slot, direction)
    here = all_busy[element]

    def share() -> float:
        elsewhere = sum(words[at] for at in all_busy if at != here)
        own = words[here] or 1
        return float(own / (own + elsewhere))

    def tell_busy(count: int) -> None:
        words[here] = count

    tokens = figures.tokens(slot, direction)
    return Throttle(reactor, TokenBucket(rate, time.monotonic, tokens, share, figures.elements), tell_busy)


class _Channel:
    """One channel at this element, with its open connections and its row of figures."""

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
        self.target: ChannelTarget | None = None
        self.relays: dict[Relay, tuple[int, int]] = {}
        """The open relays, with the retransmits and moved bytes of each at the last sample."""
        self._joining: dict[Relay, float] = {}
        self._proven: dict[str, None] = {}

    @property
    def is_used(self) -> bool:
        """True if the channel has connections, or figures of ended ones that a sample has to clear."""
        return bool(self.relays or self._words[self._row + shared_figures.RTT_US])

    def carry(self, context: RelayContext, sock: socket.socket, number: int) -> None:
        """Start a relay for an accepted connection, or reset it if the channel has no target."""
        words, row = self._words, self._row
        turn = Turn(self._turns, number)
        words[row + shared_figures.TAKEN] += 1
        if self.target is None:
            self._count_reset()
            turn.finish()
            refuse(sock)
            self._note(ConnectionEnding(False, NOT_ARMED))
            return
        words[row + shared_figures.OPEN] += 1
        words[row + shared_figures.JOINING] += 1
        words[row + shared_figures.ACTIVE] += 1
        relay = Relay(
            context,
            self.target,
            sock,
            self._to_producer,
            self._to_consumer,
            self._relay_ended,
            self._relay_joined,
            turn,
        )
        self.relays[relay] = 0, 0
        self._joining[relay] = context.reactor.seconds()
        relay.start()

    def count_lost(self, number: int) -> None:
        """Count a connection that was handed over and lost."""
        Turn(self._turns, number).finish()
        self._words[self._row + shared_figures.TAKEN] += 1
        self._count_reset()

    def _count_reset(self) -> None:
        self._words[self._row + shared_figures.RESET] += 1
        self._words[self._ended_at] += 1

    def make_room(self, now: float, count: int, share: int) -> None:
        """Reset connections that are slow in their handshake.

        Begin with the address that has the most of them, and end with addresses of verified gateways.

        :param now: the time in seconds.
        :param count: the number of connections to reset, at most.
        :param share: the number of connections in a handshake beyond which an address has less time for each.
        """
        by_address: dict[str, list[Relay]] = {}
        for relay in self._joining:
            if not relay.is_verified:
                by_address.setdefault(relay.source, []).append(relay)
        addresses = sorted(by_address, key=lambda address: (address in self._proven, -len(by_address[address])))
        slow = []
        for address in addresses:
            relays = by_address[address]
            is_suspect = address not in self._proven
            for left, relay in zip(range(len(relays), 0, -1), relays, strict=True):
                grace = timing.WAN_GRACE
                if is_suspect and left > share:
                    grace = timing.WAN_SHARE_GRACE if relay.has_received() else timing.WAN_SILENT_GRACE
                if now - self._joining[relay] >= grace:
                    slow.append(relay)
        for relay in slow[:count]:
            relay.reset("its TLS handshake was not complete while other connections waited", "stranger")

    def sample(self) -> None:
        """Write TCP's figures of the connections over the WAN into the row, estimated from some if there are many."""
        words, row = self._words, self._row
        chosen = [relay for relay in self.relays if relay not in self._joining]
        share = max(1.0, len(chosen) / SAMPLES)
        if share > 1.0:
            chosen = random.sample(chosen, SAMPLES)
        rtt = delivery = waiting = unread = active = held = 0.0
        for relay in chosen:
            one = relay.sample()
            rtt += one.rtt
            delivery += one.delivery_rate
            waiting += one.waiting
            unread += one.unread
            held += one.is_held
            retransmits, moved = self.relays[relay]
            active += one.moved != moved
            words[row + shared_figures.RETRANSMITS] += max(0, one.retransmits - retransmits)
            self.relays[relay] = one.retransmits, one.moved
        words[row + shared_figures.RTT_US] = int(rtt * share * 1e6)
        words[row + shared_figures.DELIVERY] = int(delivery * share)
        words[row + shared_figures.WAITING] = int(waiting * share)
        words[row + shared_figures.UNREAD] = int(unread * share)
        words[row + shared_figures.HELD] = int(held * share)
        words[row + shared_figures.ACTIVE] = int(active * share) + len(self._joining)

    def _relay_joined(self, relay: Relay) -> None:
        self._words[self._row + shared_figures.JOINED] += 1
        self._mark_joined(relay)

    def _mark_joined(self, relay: Relay) -> None:
        if relay.is_verified:
            self._proven.pop(relay.source, None)
            self._proven[relay.source] = None
            if len(self._proven) > MOST_PROVEN:
                del self._proven[next(iter(self._proven))]
        if self._joining.pop(relay, None) is not None:
            self._words[self._row + shared_figures.JOINING] -= 1

    def _relay_ended(self, relay: Relay, ending: ConnectionEnding) -> None:
        self._mark_joined(relay)
        self.relays.pop(relay, None)
        words, row = self._words, self._row
        words[row + shared_figures.OPEN] -= 1
        words[row + shared_figures.RESET] += not ending.clean
        words[self._ended_at] += 1
        if ending.reason:
            self._note(ending)


class _ResetReporter:
    """A reporter that collects the reasons for resets, and reports them once a second at most."""

    def __init__(self, reactor: Any, report: Callable[[list[Reset]], None]) -> None:
        self._reactor = reactor
        self._report = report
        self._counts: dict[tuple[str, Role, int, Cause, str], tuple[int, str]] = {}
        self._timer: IDelayedCall | None = None
        self._reported_at = -timing.RESETS_TOLD

    def add(self, uid: str, role: Role, channel: int, ending: ConnectionEnding) -> None:
        """Count a connection that was reset."""
        key = uid, role, channel, ending.cause, ending.reason[:MAX_REASON]
        if key not in self._counts and len(self._counts) >= MOST_RESETS:
            key = uid, role, channel, "gateway", "there are too many reasons to list all of them"
        count, _ = self._counts.get(key, (0, ""))
        self._counts[key] = count + 1, ending.detail[:MAX_REASON]
        if self._timer is None:
            due = max(0.0, self._reported_at + timing.RESETS_TOLD - self._reactor.seconds())
            self._timer = self._reactor.callLater(due, self.flush)

    def flush(self) -> None:
        """Report what was counted since the last report, if anything was."""
        if self._timer is None:
            return
        if self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._reported_at = self._reactor.seconds()
        counts, self._counts = self._counts, {}
        self._report(
            [
                Reset(uid=uid, role=role, channel=channel, cause=cause, reason=reason, count=count, detail=detail)
                for (uid, role, channel, cause, reason), (count, detail) in counts.items()
            ]
        )


def _may_dial(settings: ElementSettings, address: Address, own: Set[int]) -> bool:
    """Return True if an address of a gateway's name may be dialled. Numeric targets were checked before."""
    if address.numeric is None or not inside(address.numeric, tuple(map(parse_network, settings.wan_networks))):
        return False
    return not is_own_address(address, settings.control, settings.lent, own, to_wan=True)


def refuse(sock: socket.socket) -> None:
    """Reset an accepted connection that is not carried."""
    prepare(sock, timing.LAN_SILENCE)
    sock.close()
