"""The reports of gateways: book what streams have carried, and compare the streams of a gateway with the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted.logger import Logger

from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_RATE, ChannelFigures, PathFigures, ResetReason, StreamKey, StreamStatus
from scistream.s2cs.audit.trail import AuditTrail
from scistream.s2cs.drains import Drains
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.gateway_addresses import PoolAddresses
from scistream.s2cs.in_use import StreamUse
from scistream.s2cs.live_streams import LiveStreams
from scistream.s2cs.policy.authorizer import Authorizer
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.store.database import Store
from scistream.s2cs.store.ledger import Ledger
from scistream.s2cs.stream import ServerStream
from scistream.s2cs.web.monitor import Monitor
from scistream.units import parse_seconds


class ReportedTo(Protocol):
    """The parts of the server that reports of gateways need."""

    config: S2CSConfig
    store: Store
    ledger: Ledger
    audit: AuditTrail
    authorizer: Authorizer
    streams: LiveStreams
    pool_addresses: PoolAddresses
    drains: Drains
    monitor: Monitor

    def find(self, key: StreamKey) -> ServerStream | None:
        """Return a live stream, or one that was released within a day, or None."""

    def write_again(self) -> None:
        """Write the records that could not be written before."""

    def gateway_settled(self) -> None:
        """Note that a gateway has reported its streams and capacity, or cannot be reached."""


class GatewayReports:
    """The receiver of the reports of all gateways: the `GatewayListener` of each `GatewayLink` of an S2CS.

    :param release_unknown: release streams of which the store has no record, when a gateway first reports them.
    """

    log = Logger()

    def __init__(self, server: ReportedTo, *, release_unknown: bool) -> None:
        self._server = server
        self.release_unknown = release_unknown

    def figures_heard(
        self, gateway: str, boot: str, figures: Mapping[StreamKey, list[ChannelFigures]]
    ) -> dict[StreamKey, list[ChannelFigures]]:
        """Book what streams have carried. Return the figures that are plausible."""
        plausible = {}
        for key, reported in figures.items():
            stream = self._server.streams.get(key)
            if stream is not None and stream.hear_figures(gateway, boot, reported):
                plausible[key] = reported
        self._server.ledger.write()
        self._server.monitor.figures_heard(gateway, plausible)
        return plausible

    def resets_heard(self, gateway: str, resets: Mapping[StreamKey, list[ResetReason]]) -> None:
        """Take the reasons for which connections of streams were reset on a gateway."""
        for key, reported in resets.items():
            stream = self._server.streams.get(key)
            if stream is not None:
                stream.hear_resets(gateway, reported)

    def paths_heard(self, gateway: str, paths: Mapping[StreamKey, list[PathFigures]]) -> None:
        """Take the paths over the WAN that streams use on a gateway."""
        for key, reported in paths.items():
            stream = self._server.streams.get(key)
            if stream is not None:
                stream.trail.paths_heard(gateway, reported)

    def gateway_silent(self, gateway: str, silent: bool) -> None:
        """Note that a gateway does not answer any more, or answers again, with each of its streams."""
        for stream in self._server.streams.at_gateway(gateway):
            stream.events.note_gateway(gateway, silent=silent)

    def gateway_settled(self) -> None:
        """Note that a gateway has reported its streams and capacity, or cannot be reached."""
        self._server.gateway_settled()

    def held_by(self, gateway: str) -> set[StreamKey]:
        """Return the streams that a gateway must know: those that it has reserved and is not known to have released."""
        return {stream.record.key for stream in self._server.streams.at_gateway(gateway) if stream.is_held_by(gateway)}

    def channels_held_by(self, gateway: str, key: StreamKey) -> list[int]:
        """Return the channels of a stream that a gateway must have; empty for a stream that it need not know."""
        stream = self._server.streams.get(key)
        return stream.record.plan[gateway] if stream is not None and stream.is_held_by(gateway) else []

    def compare_streams(
        self, gateway: GatewayLink, boot: str, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]
    ) -> None:
        """Compare all streams of a gateway with the records.

        Streams that the gateway has lost are ended here, and streams that are over are released there: protocol section
        7.6.

        :param expected: the result of `held_by` when the gateway was asked.
        :param known: the streams that the gateway has reported.
        """
        self._server.pool_addresses.learn(gateway.name, gateway.room)
        self._server.drains.hear(gateway)
        self._server.write_again()
        self._server.audit.flush()
        for stream in self._server.streams.at_gateway(gateway.name):
            key = stream.record.key
            if stream.is_of_another_boot(gateway.name, boot):
                stream.machine.gateway_lost(gateway.name, "it has restarted and lost this stream")
            elif stream.record.state == "Releasing":
                continue  # the answer to REL is still to come, with the last figures
            elif key in expected and (key not in known or known[key].state in ("Releasing", "Released")):
                stream.machine.gateway_lost(gateway.name, "it has released this stream by itself")
        self._treat_unexpected_streams(gateway, known)
        self._end_overdrawn(set(known))
        self._end_broken(set(known))

    def _treat_unexpected_streams(self, gateway: GatewayLink, known: dict[StreamKey, StreamStatus]) -> None:
        """Deal with streams on a gateway that it should not hold.

        A stream that is over according to the store is released. A record is written before anything is reserved, so a
        stream without a record was reserved by another S2CS, under another store, or under a newer copy of this one: it
        is left alone, unless the operator has asked for its release.
        """
        unknown_streams: dict[StreamKey, StreamUse] = {}
        for key, status in known.items():
            if status.state in ("Releasing", "Released"):
                continue
            stream = self._server.find(key) if key not in self._server.streams else self._server.streams[key]
            record = stream.record if stream is not None else None
            if record is not None and status.store in (None, self._server.store.id):
                if gateway.name not in record.plan or record.state == "Released":
                    self._release_other(gateway, status, "the stream is over")
            elif self.release_unknown and not gateway.is_compared:
                self._release_other(gateway, status, "there is no record of it, and --release-unknown was given")
            else:
                lent = tuple(Address.parse(one).port for one in (*status.listeners, *status.wan_listeners))
                ports = len(status.channels) + len(status.wan_listeners)
                unknown_streams[key] = StreamUse(ports, min(MAX_RATE, max(0.0, status.rate)), lent)
        gateway.note_unknown_streams(unknown_streams)

    def _release_other(self, gateway: GatewayLink, status: StreamStatus, why: str) -> None:
        self.log.warn(
            "releasing {uid} ({role}) on {gateway}: {why}",
            uid=status.uid,
            role=status.role,
            gateway=gateway.name,
            why=why,
        )
        gateway.release((status.uid, status.role), status.store)

    def _end_overdrawn(self, carried: set[StreamKey]) -> None:
        """End the streams whose owner has exceeded `bytes_per_day` of the policy."""
        for key in carried:
            stream = self._server.streams.get(key)
            reason = self._server.authorizer.overdrawn(stream.record) if stream is not None else None
            if stream is not None and reason is not None:
                stream.machine.forbidden(reason)

    def _end_broken(self, carried: set[StreamKey]) -> None:
        """End the streams with a channel that has been broken for longer than `release_broken_after`."""
        if not self._server.config.release_broken_after:
            return
        most = parse_seconds(self._server.config.release_broken_after)
        for key in carried:
            stream = self._server.streams.get(key)
            broken = stream.longest_broken_channel() if stream is not None else None
            if stream is not None and broken is not None and broken.seconds >= most:
                msg = (
                    f"channel {broken.channel} was broken and the stream carried no bytes for {broken.seconds:.0f} s: "
                    f"this facility releases such streams after {most:.0f} s (`release_broken_after`): {broken.reason}"
                )
                stream.machine.fault(StreamError("timeout", msg))
