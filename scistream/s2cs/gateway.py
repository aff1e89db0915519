"""One gateway of the pool: its link, its capacity, and its last report about its streams."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.links.link import Link
from scistream.protocol.address import Address, Network, inside, parse_network
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import (
    MAX_PAGE_KEY,
    UNSENT,
    BrokenChannel,
    ChannelFigures,
    Error,
    GatewayCapacity,
    Message,
    PathFigures,
    ProbeResult,
    Rel,
    ResetReason,
    Resp,
    Status,
    StreamKey,
    StreamStatus,
)
from scistream.s2cs.in_use import GatewayUse, StreamUse

PAGE = 20
"""Streams on one page of a gateway's Status."""
MOST_STREAMS = 65535
"""Streams that a gateway can have: each needs at least one port of its own."""
MOST_RELEASES = 1000
"""Streams without a live record that a gateway is asked to release at the same time."""
MOST_NAMED = 20
"""Streams without a record that one log line names."""
MOST_FIGURES_REQUESTS = 32
"""Requests for fresh figures that a gateway has to answer at the same time, so that users cannot keep it busy."""


class GatewayListener(Protocol):
    """The server that receives the reports of a gateway."""

    def figures_heard(
        self, gateway: str, boot: str, figures: Mapping[StreamKey, list[ChannelFigures]]
    ) -> dict[StreamKey, list[ChannelFigures]]:
        """Take what streams have carried on a gateway since they were reserved. Return the plausible figures."""

    def resets_heard(self, gateway: str, resets: Mapping[StreamKey, list[ResetReason]]) -> None:
        """Take the reasons for which connections of streams were reset on a gateway."""

    def paths_heard(self, gateway: str, paths: Mapping[StreamKey, list[PathFigures]]) -> None:
        """Take the paths over the WAN that streams use on a gateway."""

    def gateway_silent(self, gateway: str, silent: bool) -> None:
        """Note that a gateway does not answer any more, or answers again."""

    def gateway_settled(self) -> None:
        """Note that a gateway has reported its streams and capacity, or cannot be reached."""

    def held_by(self, gateway: str) -> Collection[StreamKey]:
        """Return the streams that a gateway must know."""

    def channels_held_by(self, gateway: str, key: StreamKey) -> Collection[int]:
        """Return the channels of a stream that a gateway must have; empty for a stream that it need not know."""

    def compare_streams(
        self, gateway: GatewayLink, boot: str, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]
    ) -> None:
        """Compare all streams of a gateway with the records.

        :param expected: the result of `held_by` when the gateway was asked.
        :param known: the streams that the gateway has reported.
        """


class GatewayLink:
    """One S2DS of the pool: its link, its capacity, and its last report about its streams.

    :param server: receives the reports.
    :param name: the name of the gateway in the configuration.
    :param link: dials the gateway.
    """

    log = Logger()

    def __init__(self, server: GatewayListener, name: str, link: Dialer) -> None:
        self._server = server
        self.name = name
        self.dialer = link
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self.dialer.on_poll = self._compare
        self.dialer.on_message = self._announced
        self.is_drained = False
        """The S2CS places no new streams on the gateway: its operator drains it, or it is about to stop."""
        self._looked_at = -math.inf
        self.settled = False
        """True if the S2CS knows the capacity of the gateway, or that it cannot be reached."""
        self.room: GatewayCapacity | None = None
        """The capacity of the gateway; None while it is not known, and while the gateway is silent."""
        self._networks: tuple[Network, ...] | None = None
        """The networks in which the gateway connects to ProdApp; None if it has not reported any."""
        self._is_silent = False
        self._dialled_since: float = link.clock.seconds()
        self._was_heard = False
        self._silent_since: float | None = self._dialled_since
        """When the gateway was last heard, if it does not answer; None while it answers."""
        self._answers_since = self._dialled_since
        self.last_room: GatewayCapacity | None = None
        """The capacity that the gateway reported last, also if it is silent now."""
        self._is_paging = False
        """True if pages of Status are being requested: once at a time."""
        self._releasing: set[StreamKey] = set()
        self.figures: dict[StreamKey, list[ChannelFigures]] = {}
        self.probes: dict[StreamKey, ProbeResult] = {}
        self.broken: dict[StreamKey, list[BrokenChannel]] = {}
        self.notices: dict[StreamKey, list[str]] = {}
        self.paths: dict[StreamKey, list[PathFigures]] = {}
        self._figures_requests = 0
        self.unknown_streams: dict[StreamKey, StreamUse] = {}
        """Streams on the gateway of which the S2CS has no record."""
        self.unknown_use = GatewayUse()
        """The ports and the rate that these streams use on the gateway."""
        self.is_compared = False
        """True if all its streams have been compared with the records since this process started."""

    @property
    def silent_seconds(self) -> float | None:
        """For how many seconds the gateway has not answered; None while it answers."""
        return None if self._silent_since is None else max(0.0, self.dialer.clock.seconds() - self._silent_since)

    @property
    def since(self) -> float:
        """When it began to answer, or to be silent, in the seconds of the clock."""
        return self._answers_since if self._silent_since is None else self._silent_since

    @property
    def answers(self) -> bool:
        """True if the gateway is connected and has answered the last request."""
        return self.dialer.link is not None and self._silent_since is None and self.room is not None

    @property
    def keeps_credentials(self) -> bool:
        """True if the gateway accepts targets without credentials; older versions, without `chosen_ports`, do not."""
        return self.room is not None and self.room.chosen_ports is not None

    def fetch_figures(self, uid: str | None) -> Deferred[None]:
        """Ask the gateway for fresh figures.

        The result fires when they have arrived or the gateway is too slow, and at once if the gateway is not connected
        or too many requests wait: then the last figures must do.

        :param uid: a stream; None for all streams.
        """
        if self.dialer.link is None or self._figures_requests >= MOST_FIGURES_REQUESTS:
            return succeed(None)
        self._figures_requests += 1
        answered = self.dialer.ask(Status(uid=uid, role=None, seq=UNSENT), timing.GATEWAY_FIGURES)
        return (
            answered.addBoth(self._figures_request_done)
            .addCallbacks(self._note_figures, self._no_figures)
            .addErrback(self._failed)
        )

    def check_targets(self, targets: Iterable[str]) -> None:
        """Check that the gateway connects to these targets, if it has reported its networks.

        :param targets: numeric addresses.
        :raises StreamError: `target-refused`.
        """
        if self._networks is None:
            return
        for text in targets:
            numeric = Address.parse(text).numeric
            if numeric is None or not inside(numeric, self._networks):
                where = ", ".join(map(str, self._networks)) or "none"
                raise StreamError(
                    "target-refused",
                    f"{text} is outside the networks that gateway {self.name} connects to ({where}): listen on an "
                    "address inside them, or ask the operator to add its network to `app_networks`",
                )

    def release(self, key: StreamKey, store: str | None) -> None:
        """Ask the gateway to release a stream that has no live record here.

        Do nothing if the gateway is already asked to release it, or has too many streams to release: the next
        comparison tries again.

        :param store: the name of the store under which the gateway has reserved.
        """
        if key in self._releasing or len(self._releasing) >= MOST_RELEASES:
            return
        self._releasing.add(key)
        uid, role = key
        answered = self.dialer.ask(Rel(uid=uid, role=role, seq=UNSENT, store=store), None)
        answered.addErrback(_no_answer).addBoth(lambda _: self._releasing.discard(key))

    def note_unknown_streams(self, unknown_streams: dict[StreamKey, StreamUse]) -> None:
        """Note the streams on the gateway of which the S2CS has no record. Log each of them once."""
        new = [key for key in unknown_streams if key not in self.unknown_streams]
        for key in self.unknown_streams.keys() - unknown_streams.keys():
            self.unknown_use.drop(key)
        for key, use in unknown_streams.items():
            self.unknown_use.put(key, use)
        self.unknown_streams = unknown_streams
        if new:
            named = ", ".join(f"{uid} ({role})" for uid, role in new[:MOST_NAMED])
            self.log.warn(
                "gateway {gateway} has {count} streams of which this S2CS has no record; they are left alone: "
                "{named}{rest}. Either another S2CS uses this gateway, or `state` names another store than the one "
                "under which they were reserved, or an older copy of it. `twistd s2cs --release-unknown` releases them",
                gateway=self.name,
                count=len(new),
                named=named,
                rest=" and others" if len(new) > MOST_NAMED else "",
            )

    def _up(self) -> None:
        self.log.info("gateway {gateway} is connected", gateway=self.name)
        self.settled = self.room is not None
        self._compare()

    def _down(self, reason: str, permanent: bool) -> None:
        if permanent:
            self.log.error("gateway {gateway}: {reason}", gateway=self.name, reason=reason)
        self._has_been_silent(0.0)
        if self._was_heard or permanent or self._has_had_time():
            self._settle()

    def _has_had_time(self) -> bool:
        """Return True if a gateway that was started together with this S2CS would be connected by now."""
        return self.dialer.clock.seconds() - self._dialled_since >= timing.EARLY_REQUEST

    def _answered(self) -> None:
        if self._silent_since is not None:
            self._answers_since = self.dialer.clock.seconds()
            self._server.gateway_silent(self.name, False)
        self._was_heard, self._silent_since = True, None

    def _has_been_silent(self, seconds: float) -> None:
        if self._silent_since is None:
            self._silent_since = self.dialer.clock.seconds() - seconds
            self._server.gateway_silent(self.name, True)

    def _settle(self) -> None:
        self.settled = True
        self._server.gateway_settled()

    def _compare(self) -> None:
        """Ask the gateway for all its streams, page by page, and compare them with the records."""
        if not self._is_paging:
            self._next_page(set(self._server.held_by(self.name)), {}, "")

    def look_again(self) -> None:
        """Ask the gateway for all its streams now, unless that was done a moment ago."""
        now = self.dialer.clock.seconds()
        if self.dialer.link is not None and now - self._looked_at >= timing.LOOK_AGAIN:
            self._looked_at = now
            self._compare()

    def _announced(self, _link: Link, message: Message) -> None:
        """Look at once what a gateway means that announces something, such as that it is about to stop."""
        if isinstance(message, Error) and message.uid is None and message.seq is None:
            self.log.warn("gateway {gateway} says: {reason}", gateway=self.name, reason=printable(message.msg))
            self.look_again()

    def _next_page(self, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str) -> None:
        self._is_paging = True
        command = Status(uid=None, role=None, seq=UNSENT, after=after or None, limit=PAGE)
        answered = self.dialer.ask(command, timing.GATEWAY_STATUS)
        answered.addCallbacks(self._page, self._no_page, (expected, known, after))

    def _no_page(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        self._is_paging = False
        error = failure.value
        is_late = isinstance(error, StreamError) and error.code == "timeout"
        if is_late:
            self._has_been_silent(timing.GATEWAY_STATUS)
        if is_late and self.dialer.link is not None and not self._is_silent:
            self.log.warn("gateway {gateway} does not answer: it gets no new streams until it does", gateway=self.name)
            self._is_silent, self.room = True, None
        self._settle()

    def _page(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str) -> None:
        self._answered()
        self._is_paging = False
        for status in answer.streams or []:
            known[status.uid, status.role] = status
        if not _is_valid_page(answer, known, after):
            self.log.error("gateway {gateway} sent an invalid page of streams, which is ignored", gateway=self.name)
            self.room = None
            self._settle()
        elif answer.more is not None:
            self._next_page(expected, known, answer.more)
        else:
            try:
                self._hear_all(answer, expected, known)
            except Exception:
                self.log.failure("cannot process the report of gateway {gateway}", gateway=self.name)
            self._settle()

    def _hear_all(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]) -> None:
        self.figures, self.probes, self.broken, self.notices, self.paths = {}, {}, {}, {}, {}
        self._hear(answer.boot or "", known.values())
        self.room = self.last_room = answer.room
        if answer.app_networks is not None:
            self._networks = tuple(map(parse_network, answer.app_networks))
        if self._is_silent:
            self.log.info("gateway {gateway} answers again", gateway=self.name)
            self._is_silent = False
        self._server.compare_streams(self, answer.boot or "", expected, known)
        self.is_compared = True

    def _failed(self, failure: Failure) -> None:
        self.log.failure("cannot process the report of gateway {gateway}", failure=failure, gateway=self.name)

    def _figures_request_done(self, outcome: Resp | Failure) -> Resp | Failure:
        self._figures_requests -= 1
        return outcome

    def _no_figures(self, failure: Failure) -> None:
        _no_answer(failure)
        if isinstance(failure.value, StreamError) and failure.value.code == "timeout":
            self._has_been_silent(timing.GATEWAY_FIGURES)

    def _note_figures(self, answer: Resp) -> None:
        self._answered()
        self._hear(answer.boot or "", answer.streams or [])

    def _hear(self, boot: str, streams: Collection[StreamStatus]) -> None:
        """Take the figures of streams. Those of channels that this gateway does not have are ignored."""
        figures, resets, paths = {}, {}, {}
        for status in streams:
            key = (status.uid, status.role)
            channels = self._server.channels_held_by(self.name, key)
            if channels:
                by_channel = {one.channel: one for one in status.figures if one.channel in channels}
                figures[key] = list(by_channel.values())
                self.broken[key] = [one for one in status.broken if one.channel in channels]
                self.notices[key] = status.notices
                self.paths[key] = paths[key] = status.paths
                resets[key] = [one for one in status.resets if one.channel in channels]
                if status.probe is not None:
                    self.probes[key] = status.probe
        self.figures.update(self._server.figures_heard(self.name, boot, figures))
        self._server.resets_heard(self.name, resets)
        self._server.paths_heard(self.name, paths)


def _is_valid_page(page: Resp, known: Collection[StreamKey], after: str) -> bool:
    """Return True if a page is within limits and its key advances, so that paging ends and its memory is bounded."""
    advances = page.more is None or (page.more > after and len(page.more) <= MAX_PAGE_KEY)
    return advances and len(page.streams or []) <= PAGE and len(known) <= MOST_STREAMS


def _no_answer(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)
