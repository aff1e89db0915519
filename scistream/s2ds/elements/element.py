"""An element: it carries connections of streams, in a process of its own (`worker.py`) or in the initiator's.

The initiator sends commands and hands over accepted connections. It also enforces the limits of streams.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Set
from functools import partial
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream import timing
from scistream.protocol.address import Address, has_every_address, inside, parse_network
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_REASON, PROD, Cause, Role, StreamKey
from scistream.s2ds.elements.channel import NOT_ARMED, ElementChannel, refuse
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
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.places import Places
from scistream.s2ds.elements.ready import MOST_OF_GATEWAY, ReadyBudget, ReadySetting
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.buffers import Buffers
from scistream.s2ds.relay.context import ChannelTarget, ConnectionEnding, RelayContext
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.receive_windows import StreamWindows, Windows, most_wide
from scistream.s2ds.relay.target_names import Names
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.tickets import tickets_for
from scistream.s2ds.relay.tls import tune
from scistream.s2ds.relay.token_bucket import TokenBucket
from scistream.s2ds.self_target import is_own_address

MOST_RESETS = 256
"""The number of reasons in one report of an element, over all streams."""
NO_DESCRIPTOR = "an element of the gateway is out of descriptors: raise the limit of open files (LimitNOFILE)"


class Element:
    """A buffer-and-forward element.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param figures: the shared figures, in which it writes the rows of its `number`.
    :param on_request: called with requests for places, which the initiator answers with `PlaceAnswer`.
    :param on_resets: called with the connections that were reset, once a second at most.
    :param on_paths: called with the paths of each channel's connections, at each sample.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        figures: SharedFigures,
        number: int,
        settings: ElementSettings,
        on_request: Callable[[PlaceRequest], None],
        on_resets: Callable[[list[Reset]], None] | None = None,
        on_paths: Callable[[PathsReport], None] | None = None,
    ) -> None:
        self._on_paths = on_paths
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
            Address.parse(settings.proxy) if settings.proxy else None,
            lambda: bool(self._settings.proxy) and has_every_address(self._settings.wan_networks),
            settings.mixed_paths,
        )
        self._figures = figures
        self._number = number
        self._streams: dict[StreamKey, _ElementStream] = {}
        self._windows = Windows(most_wide(figures.elements))
        self._budget = ReadyBudget(max(1, MOST_OF_GATEWAY // figures.elements))
        self._places = Places(on_request)
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
        elif isinstance(command, ChangeSettings):
            self._change_settings(command.settings)
        elif isinstance(command, SetHalfOpen):
            self._set_half_open(command.half_open)
        elif isinstance(command, PlaceAnswer):
            is_known = self._places.answered(command)
            if not is_known and not command.refusal:  # its stream is closed
                self._figures.words[self._figures.ended(self._number)] += 1

    def carry(self, hand_over: HandOver, sock: socket.socket) -> None:
        """Take over an accepted connection. Reset it if the channel has no target."""
        channel = self._channel(hand_over)
        if channel is None:
            refuse(sock)
            self._figures.words[self._figures.ended(self._number)] += 1
            self._note(hand_over.uid, hand_over.role, hand_over.channel, ConnectionEnding(False, NOT_ARMED))
        elif hand_over.wan:
            channel.carry_wan(sock)
        else:
            channel.carry(sock, hand_over.number)

    def lost(self, hand_over: HandOver) -> None:
        """Count a connection that was handed over and lost, since this process had no descriptor for it."""
        channel = self._channel(hand_over)
        if channel is None:
            self._figures.words[self._figures.ended(self._number)] += 1
        else:
            channel.count_lost(hand_over.number, wan=hand_over.wan)
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
        for farewell in list(self._context.farewells):
            farewell.end()
        self._context.pipes.close()

    def _channel(self, hand_over: HandOver) -> ElementChannel | None:
        stream = self._streams.get((hand_over.uid, hand_over.role))
        return stream.channels.get(hand_over.channel) if stream is not None else None

    def _sample_later(self) -> None:
        """Sample the figures after a while, as long as there are connections."""
        if self._sampling is None:
            self._sampling = self._context.reactor.callLater(timing.SAMPLE_INTERVAL, self._sample)

    def _sample(self) -> None:
        self._sampling = None
        for stream in self._streams.values():
            for channel in stream.channels.values():
                if channel.is_used:
                    channel.sample()
                    self._report_paths(channel)
                    self._sample_later()

    def _report_paths(self, channel: ElementChannel) -> None:
        report = channel.paths.report()
        if report is not None and self._on_paths is not None:
            self._on_paths(report)

    def _open(self, command: ArmChannels) -> None:
        if (command.uid, command.role) not in self._streams:
            self._streams[command.uid, command.role] = _ElementStream(
                self._context,
                self._figures,
                self._number,
                command,
                self._windows.of_stream(command.owner),
                self._budget,
                self._places,
                self._settings.ready,
                self._note,
                self._sample_later,
            )

    def _note(self, uid: str, role: Role, channel: int, ending: ConnectionEnding) -> None:
        if self._resets is not None:
            self._resets.add(uid, role, channel, ending)

    def _arm(self, command: SetTargets) -> None:
        """Set the targets of new connections; open connections keep their old target."""
        stream = self._streams.get((command.uid, command.role))
        if stream is None:
            raise StreamError("gateway-failed", f"an element does not know stream {command.uid} ({command.role})")
        context = tickets = None
        if command.credentials is not None:
            dials = command.wan_dialer == command.role
            context = command.credentials.context(self._settings.wan_cipher, dials=dials)
            tune(context)
            tickets = tickets_for(context, command.credentials.ticket_key, dials=dials)
        programs = command.targets if command.role == PROD else {}
        gateways: dict[int, str] = {}
        if command.wan_dialer == command.role:
            gateways = command.wan_targets if command.role == PROD else command.targets
        for number, channel in stream.channels.items():
            channel.set_target(
                ChannelTarget(
                    command.uid,
                    command.role,
                    number,
                    Address.parse(programs[number]) if number in programs else None,
                    Address.parse(gateways[number]) if number in gateways else None,
                    context,
                    own_ports=frozenset(command.own),
                    other_addresses=tuple(map(Address.parse, command.other_addresses.get(number, ()))),
                    tickets=tickets,
                )
            )

    def _close(self, command: CloseChannels) -> None:
        stream = self._streams.pop((command.uid, command.role), None)
        if stream is not None:
            if self._resets is not None:
                self._resets.flush()  # the initiator forgets the stream after the answer to this command
            cut = stream.close()
            for channel in stream.channels.values():
                self._report_paths(channel)
            self._windows.forget(stream.windows)
            self.log.info(
                "Stream {uid} ({role}) is closed; connections reset: {cut}", uid=command.uid, role=command.role, cut=cut
            )

    def _change_settings(self, settings: ElementSettings) -> None:
        """Apply other settings to later connections, and end those to networks that are no longer allowed.

        Only connections to other gateways that carry nothing yet are ended.
        """
        self._settings = settings
        self._context.change(
            settings.wan_timeout,
            settings.lan_congestion,
            settings.wan_congestion,
            Address.parse(settings.proxy) if settings.proxy else None,
        )
        wan_networks = settings.wan_networks
        networks, has_all = tuple(map(parse_network, wan_networks)), has_every_address(wan_networks)

        def is_allowed(address: Address) -> bool:
            numeric = address.numeric
            return has_all if numeric is None else inside(numeric, networks)

        for stream in self._streams.values():
            for channel in stream.channels.values():
                channel.drop_outside(is_allowed)

    def _set_half_open(self, half_open: int) -> None:
        self._places.half_open = half_open
        for stream in self._streams.values():
            for channel in stream.channels.values():
                channel.serve_claims()

    def _make_room(self, command: MakeRoom) -> None:
        stream = self._streams.get((command.uid, command.role))
        if stream is not None:
            stream.channels[command.channel].make_room(self._context.reactor.seconds(), command.count, command.share)


class _ElementStream:
    """One stream at an element."""

    def __init__(
        self,
        context: RelayContext,
        figures: SharedFigures,
        element: int,
        command: ArmChannels,
        windows: StreamWindows,
        budget: ReadyBudget,
        places: Places,
        ready: ReadySetting,
        note: Callable[[str, Role, int, ConnectionEnding], None],
        note_use: Callable[[], None],
    ) -> None:
        first = next(iter(command.slots.values()))
        self._to_consumer, self._to_producer = (
            _throttle(context.reactor, figures, element, command.rate, first, direction) for direction in (0, 1)
        )
        self.windows = windows
        self.channels = {
            channel: ElementChannel(
                context,
                figures,
                element,
                (command.uid, command.role),
                channel,
                slot,
                self._to_consumer,
                self._to_producer,
                windows,
                budget,
                places,
                ready,
                partial(note, command.uid, command.role, channel),
                note_use,
            )
            for channel, slot in command.slots.items()
        }

    def close(self) -> int:
        """Reset all connections, and return how many of applications there were."""
        cut = sum(channel.close() for channel in self.channels.values())
        self._to_producer.stop()
        self._to_consumer.stop()
        return cut


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
    return not is_own_address(address, [settings.control], settings.lent, own, to_wan=True)
