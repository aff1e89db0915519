"""Answers of the JSON API from what the S2CS knows, and the record of what has changed since it was last asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Literal, Protocol

from twisted.internet.defer import Deferred, DeferredList

from scistream import __version__
from scistream.paging import page_key
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Role, StreamKey
from scistream.s2cs.audit.recent import MOST_RECENT
from scistream.s2cs.audit.trail import AuditTrail
from scistream.s2cs.drains import Drains
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.live_streams import LiveStreams
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.store.ledger import Ledger
from scistream.s2cs.stream import ServerStream
from scistream.s2cs.web.api_types import (
    EndView,
    GatewayList,
    GatewayView,
    HistoryList,
    RecentList,
    RefusalView,
    ServerView,
    StreamDetail,
    StreamList,
    StreamSides,
    StreamView,
)
from scistream.s2cs.web.history import FiguresHistory
from scistream.s2cs.web.views import (
    KnownStream,
    end_view,
    gateway_view,
    refusal_view,
    stream_detail,
    stream_view,
)
from scistream.tls.expiry import ExpiryWatch
from scistream.tls.reloadable import verified_path

MOST_LISTED = 500
"""Streams on one page of the list."""
MOST_HISTORIES = 100
"""Streams whose last minutes one answer contains."""
MOST_REFRESHED = 100
"""Streams on a gateway up to which all its figures are fetched every two seconds while somebody watches."""
_ROLES: tuple[Role, ...] = (CONS, PROD)


class MonitoredServer(Protocol):
    """The parts of the server that the API shows."""

    reactor: Any
    wall: Callable[[], float]
    config: S2CSConfig
    ledger: Ledger
    audit: AuditTrail
    streams: LiveStreams
    expiry: ExpiryWatch
    drains: Drains

    @property
    def gateways(self) -> Mapping[str, GatewayLink]:
        """The pool, by name."""

    @property
    def is_draining(self) -> bool:
        """True while no new streams are accepted because the server is to be stopped."""

    def find(self, key: StreamKey) -> ServerStream | None:
        """Return a live stream, or one that was released within a day, or None."""

    def operator_warnings(self) -> list[str]:
        """Return what an operator should do something about soon."""


class Monitor:
    """What the API answers, and what has changed.

    :param server: the S2CS.
    """

    def __init__(self, server: MonitoredServer) -> None:
        self._server = server
        self._started_at = server.wall()
        self.history = FiguresHistory(server.reactor.seconds)
        self.change = 0
        """The number of the last change that was announced."""
        self.on_change: Callable[[StreamKey], None] = _nobody
        """Called with each stream that has changed, begun or ended."""

    # -- from the server

    def stream_changed(self, key: StreamKey) -> None:
        """Note that the record of a stream has changed, or that the stream has begun or ended."""
        if key not in self._server.streams:
            self.history.forget(key)
        self.on_change(key)

    def figures_heard(self, gateway: str, figures: Mapping[StreamKey, list[ChannelFigures]]) -> None:
        """Take what a gateway has reported about streams."""
        if not self._server.config.http.listen:
            return
        for key, reported in figures.items():
            self.history.heard(key, gateway, reported)
            self.on_change(key)

    # -- streams

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return round(self._server.wall(), 3)

    @property
    def _to_wall(self) -> float:
        return float(self._server.wall() - self._server.reactor.seconds())

    def stream(self, key: StreamKey) -> StreamView | None:
        """Return a live stream, or None."""
        stream = self._server.streams.get(key)
        return stream_view(self._known(stream)) if stream is not None else None

    def streams(self, after: str, limit: int, owner: str | None, state: str | None) -> StreamList:
        """Return a page of the live streams.

        :param after: the key after which the page begins; empty: the first page.
        :param owner: only streams of owners with this name in their certificates.
        :param state: only streams in this state.
        """
        views: list[StreamView] = []
        more = None
        for stream in self._server.streams.after(after):
            if state not in (None, stream.record.state):
                continue
            if owner is not None and not stream.record.owner.startswith(owner):
                continue
            view = stream_view(self._known(stream))
            if owner not in (None, view.owner):
                continue
            if len(views) == limit:
                more = views[-1].key
                break
            views.append(view)
        return StreamList(time=self.now, change=self.change, total=len(self._server.streams), streams=views, more=more)

    def sides(self, uid: str, *, refresh: bool = True) -> Deferred[StreamSides | None]:
        """Return the sides of a stream, after its gateways have been asked for fresh figures.

        :param refresh: False: with the figures that are known.
        """
        names = {
            name
            for role in _ROLES
            if (stream := self._server.streams.get((uid, role))) is not None
            for name in stream.record.plan
        }
        links = [self._server.gateways[name] for name in sorted(names) if name in self._server.gateways]
        fetching = [gateway.fetch_figures(uid) for gateway in links] if refresh else []
        return DeferredList(fetching).addCallback(lambda _: self.sides_now(uid))

    def sides_now(self, uid: str) -> StreamSides | None:
        """Return the sides of a stream that are live or were released within a day; None if there are none."""
        found: list[StreamDetail] = []
        for role in _ROLES:
            stream = self._server.find((uid, role))
            if stream is not None:
                history = self.history.of(stream.record.key, self._to_wall)
                found.append(stream_detail(self._known(stream), history))
        return StreamSides(time=self.now, change=self.change, sides=found) if found else None

    def histories(self, keys: Iterable[StreamKey]) -> HistoryList:
        """Return the last minutes of live streams; at most `MOST_HISTORIES`."""
        live = [key for key in islice(keys, MOST_HISTORIES) if key in self._server.streams]
        return HistoryList(time=self.now, histories=[self.history.of(key, self._to_wall) for key in live])

    def _known(self, stream: ServerStream) -> KnownStream:
        record = stream.record
        return KnownStream(
            record=record,
            status=self._server.drains.with_notices(stream.status()),
            total=self._server.ledger.total(record),
            rates=self.history.latest(record.key),
            pending=stream.pending_gateways,
            application_linked=stream.app_link is not None,
            owner_linked=stream.has_owner_link(),
            to_wall=self._to_wall,
        )

    # -- gateways

    def gateways(self) -> list[GatewayView]:
        """Return all gateways of the pool."""
        addresses = {one.name: one.address for one in self._server.config.gateways}
        return [self._gateway(gateway, addresses.get(name, "")) for name, gateway in self._server.gateways.items()]

    def gateway_list(self) -> GatewayList:
        """Return all gateways of the pool, as an answer."""
        return GatewayList(time=self.now, change=self.change, gateways=self.gateways())

    def refresh(self) -> None:
        """Ask the gateways with few streams for all their figures. The others report every quarter of a minute."""
        for name, gateway in self._server.gateways.items():
            if len(self._server.streams.at_gateway(name)) <= MOST_REFRESHED:
                gateway.look_again()

    def _gateway(self, gateway: GatewayLink, address: str) -> GatewayView:
        state: Literal["linked", "silent", "down"] = "linked"
        if gateway.dialer.link is None:
            state = "down"
        elif not gateway.answers:
            state = "silent"
        path = verified_path(gateway.dialer.link) if not self._server.config.insecure else []
        return gateway_view(
            gateway.name,
            address,
            state=state,
            since=gateway.since + self._to_wall,
            draining=gateway.is_drained,
            room=gateway.last_room,
            uses=[self._server.streams.use_of_gateway(gateway.name), gateway.unknown_use],
            streams=len(self._server.streams.at_gateway(gateway.name)),
            certificate_ends=path[0].not_valid_after_utc.timestamp() if path else None,
            unknown_streams=len(gateway.unknown_streams),
        )

    # -- the server

    @property
    def recent_count(self) -> int:
        """How many refusals and ends there have been since the server started."""
        return self._server.audit.recent.count

    def refusals(self, after: int = 0) -> list[RefusalView]:
        """Return the refusals with higher numbers than `after`, newest first."""
        return [refusal_view(number, event) for number, event in self._server.audit.recent.refusals(after)]

    def ends(self, after: int = 0) -> list[EndView]:
        """Return the ends of streams with higher numbers than `after`, newest first."""
        return [end_view(number, event) for number, event in self._server.audit.recent.ends(after)]

    def recent(self) -> RecentList:
        """Return the latest refusals and ends."""
        return RecentList(
            time=self.now, change=self.change, kept=MOST_RECENT, refusals=self.refusals(), ends=self.ends()
        )

    def server(self) -> ServerView:
        """Return the server itself."""
        server = self._server
        rates = [one for key in server.streams if (one := self.history.latest(key)) is not None]
        gateways = server.gateways.values()
        first_end = server.expiry.first_end
        return ServerView(
            time=self.now,
            change=self.change,
            version=__version__,
            listen=server.config.listen,
            started_at=round(self._started_at, 1),
            insecure=server.config.insecure,
            draining=server.is_draining,
            streams=dict(Counter(stream.record.state for stream in server.streams.values())),
            mbit_to_consumer=round(sum(one.to_consumer for one in rates), 3),
            mbit_to_producer=round(sum(one.to_producer for one in rates), 3),
            connections=sum(one.connections for each in gateways for held in each.figures.values() for one in held),
            gateways=len(gateways),
            gateways_linked=sum(gateway.answers for gateway in gateways),
            certificate_ends=first_end.timestamp() if first_end is not None else None,
            warnings=server.operator_warnings(),
        )


def _nobody(_key: StreamKey) -> None:
    """Nobody listens for changes."""


def key_of(text: str) -> StreamKey | None:
    """Return the key of a stream in the form of `page_key`, or None if it is not one."""
    uid, _, role = text.partition("/")
    key: StreamKey = (uid, PROD if role == PROD else CONS)
    return key if page_key(key) == text else None
