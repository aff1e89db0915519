"""The types of the JSON API, `/api/v1`: what each answer contains. `openapi.json` is generated from them.

Times are seconds since the epoch (UTC). Rates are Mbit/s, and bytes are bytes of applications. Nothing here is secret:
there are no keys, no join strings and no certificate requests. Fields may be added; a program that reads them must
ignore those that it does not know.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from scistream.protocol.messages import (
    ChannelFigures,
    LastError,
    PathFigures,
    ProbeResult,
    ResetReason,
    Role,
)


class StreamView(Struct, frozen=True, kw_only=True):
    """One side of a stream, in a list.

    :ivar key: identifies the side at this server: the uid, a slash and the role.
    :ivar owner: the name in the owner's certificate; `issuer` is the authority behind it.
    :ivar state: the state of this side, and `state_since` the time at which it began; null if that is not known.
    :ivar waits_for: what is missing before this side continues, to complete "waiting for ..."; empty if nothing is.
    :ivar expires_at: the end of the granted life.
    :ivar started_at: when the first targets came into force; null before.
    :ivar reserved_mbit: the rate that is reserved.
    :ivar connections: open connections of applications; `connections_total` also counts those that have ended.
    :ivar mbit_to_consumer: the rate at the last report of the gateways; null if it is not known, as while a gateway
        does not answer.
    :ivar rates_at: the time of that report.
    :ivar resets: connections that ended abnormally; `last_reset` is the reason of the latest one.
    :ivar problems: sentences about what is wrong now, the most important first.
    """

    key: str
    uid: str
    role: Role
    owner: str
    issuer: str | None
    label: str | None
    protocol: str
    state: str
    state_since: float | None
    waits_for: str
    requested_at: float
    expires_at: float
    started_at: float | None
    released_at: float | None
    channels: int
    reserved_mbit: float
    gateways: list[str]
    connections: int
    connections_total: int
    bytes_to_consumer: int
    bytes_to_producer: int
    mbit_to_consumer: float | None
    mbit_to_producer: float | None
    rates_at: float | None
    resets: int
    last_reset: str | None
    problems: list[str]


class StreamList(Struct, frozen=True, kw_only=True):
    """A page of the live streams, in the order of their keys.

    :ivar change: the number of the last change that was announced on `/events`: later ones may not be included.
    :ivar more: the key with which to ask for the next page (`after`); null on the last page.
    """

    time: float
    change: int
    total: int
    streams: list[StreamView]
    more: str | None


class ChannelView(Struct, frozen=True, kw_only=True):
    """One channel of a stream at this side.

    :ivar listener: where this side listens for its application (consumer) or the other gateway (producer).
    :ivar target: what connections lead to; null before targets are set.
    :ivar wan_listener: where the consumer's gateway listens for the producer's, if that one dials.
    :ivar figures: null before the gateway has reported any.
    :ivar broken_seconds: for how long all its connections over the WAN have failed; null if they have not.
    """

    channel: int
    gateway: str
    listener: str | None
    target: str | None
    wan_listener: str | None
    figures: ChannelFigures | None
    broken_seconds: float | None
    broken_reason: str | None


class RateHistory(Struct, frozen=True, kw_only=True):
    """The last minutes of a stream: one value of each list for each report of its gateways.

    :ivar times: seconds since the epoch, increasing. A gap longer than `gap` seconds means that nothing was reported.
    :ivar mbit_to_consumer: the rate since the report before.
    :ivar rtt_ms: the mean round-trip time between the gateways; 0 if unknown.
    :ivar retransmits: retransmitted segments per second.
    """

    key: str
    gap: float
    times: list[float]
    mbit_to_consumer: list[float]
    mbit_to_producer: list[float]
    rtt_ms: list[float]
    retransmits: list[float]


class StreamDetail(Struct, frozen=True, kw_only=True):
    """One side of a stream with everything that this server knows and may show.

    :ivar application: where the application listens, as it said in its Hello.
    :ivar application_linked: whether the application's controller is connected to this server.
    :ivar owner_linked: whether the owner's client is connected to this server and has sent a command about the stream.
    :ivar silent: the gateways that do not answer, and for how many seconds.
    :ivar notices: sentences of the gateways about what slows the stream.
    :ivar resets: the latest reasons of resets, newest first.
    """

    stream: StreamView
    channels: list[ChannelView]
    application: list[str]
    application_linked: bool
    owner_linked: bool
    hello_by: float
    generation: int
    wan_dialer: Role | None
    wrong_hellos: int
    silent: dict[str, float]
    notices: list[str]
    resets: list[ResetReason]
    paths: list[PathFigures]
    last_error: LastError | None
    probe: ProbeResult | None
    history: RateHistory


class StreamSides(Struct, frozen=True, kw_only=True):
    """The sides of one stream that this server has: one or both."""

    time: float
    change: int
    sides: list[StreamDetail]


class HistoryList(Struct, frozen=True, kw_only=True):
    """The last minutes of several streams. Streams that are not live are left out."""

    time: float
    histories: list[RateHistory]


class GatewayView(Struct, frozen=True, kw_only=True):
    """One gateway of the pool.

    :ivar address: where this server connects to it.
    :ivar state: `linked`; `silent` if it is connected but does not answer; `down` if it cannot be reached.
    :ivar since: when that began; null if it is not known.
    :ivar draining: whether it takes no new streams because its operator is going to stop it.
    :ivar mbit_total: its capacity in each direction; null while it is not known. `mbit_used` is reserved.
    :ivar ports_total: the ports from which it chooses; `ports_used` are reserved.
    :ivar elements: those that it should have; null if it does not report them. `elements_ready` take connections.
    :ivar certificate_ends: when its certificate expires; null if it is not connected.
    :ivar unknown_streams: streams on it of which this server has no record.
    """

    name: str
    address: str
    state: Literal["linked", "silent", "down"]
    since: float | None
    draining: bool
    streams: int
    mbit_total: float | None
    mbit_used: float
    ports_total: int | None
    ports_used: int
    elements: int | None
    elements_ready: int | None
    certificate_ends: float | None
    unknown_streams: int


class GatewayList(Struct, frozen=True, kw_only=True):
    """All gateways of the pool, in the order of the configuration."""

    time: float
    change: int
    gateways: list[GatewayView]


class EndView(Struct, frozen=True, kw_only=True):
    """A stream that has ended. `number` counts refusals and ends since the server started."""

    number: int
    time: str
    uid: str
    role: Role
    owner: str
    label: str | None
    duration: float
    bytes_to_consumer: int
    bytes_to_producer: int
    complete: bool
    code: str
    reason: str


class RefusalView(Struct, frozen=True, kw_only=True):
    """Something that was refused: a command, a line that is not a message, or a connection.

    :ivar what: the name of the command, `line` or `connection`.
    :ivar address: of the sender; `identity` is the name in its certificate.
    :ivar repeated: further refusals of the same kind that have no entry of their own.
    """

    number: int
    time: str
    what: str
    address: str
    identity: str | None
    uid: str | None
    code: str | None
    reason: str
    repeated: int


class RecentList(Struct, frozen=True, kw_only=True):
    """The latest refusals and ends since the server started, newest first.

    :ivar kept: how many of each the server keeps.
    """

    time: float
    change: int
    kept: int
    refusals: list[RefusalView]
    ends: list[EndView]


class ServerView(Struct, frozen=True, kw_only=True):
    """The server itself.

    :ivar draining: whether it accepts no new streams because its operator is going to stop it.
    :ivar streams: the live streams in each state.
    :ivar mbit_to_consumer: the sum over all streams whose rate is known.
    :ivar warnings: what an operator should do something about soon, such as certificates that expire.
    :ivar certificate_ends: when the first certificate of the server itself expires; null without certificates.
    """

    time: float
    change: int
    version: str
    listen: str
    started_at: float
    insecure: bool
    draining: bool
    streams: dict[str, int]
    mbit_to_consumer: float
    mbit_to_producer: float
    connections: int
    gateways: int
    gateways_linked: int
    certificate_ends: float | None
    warnings: list[str]


class ChangeEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has changed: the data of an event `change` of `/events`. Lists that are left out have not changed.

    :ivar change: the number of this change.
    :ivar streams: each stream that has changed, with its new values.
    :ivar gone: the keys of streams that are not live any more.
    :ivar refusals: new ones, newest first; `ends` likewise.
    """

    time: float
    change: int
    server: ServerView | None = None
    streams: list[StreamView] = []
    gone: list[str] = []
    gateways: list[GatewayView] = []
    refusals: list[RefusalView] = []
    ends: list[EndView] = []


class ApiError(Struct, frozen=True, kw_only=True):
    """Why a request was not answered. `code` is for programs, `reason` for people."""

    code: str
    reason: str
