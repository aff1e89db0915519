"""All messages of the control protocol, one frozen Struct each (protocol sections 5 and 6).

`Message` is their union, tagged by the field ``cmd``. Ranges and patterns are part of the types, so the codec refuses
invalid values when it decodes a line. Unknown fields are ignored, since a peer of a later version may send them; an
unknown ``cmd`` or value is refused. Connect, which only gateways send each other, is in `connect.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from scistream.protocol.address import Address, parse_network
from scistream.protocol.port_ranges import repeated

Role = Literal["PROD", "CONS"]
PROD: Role = "PROD"
CONS: Role = "CONS"

MAX_CHANNELS = 1024
MAX_GENERATION = 2**53
MIN_RATE, MAX_RATE = 1e-6, 10_000_000.0
"""Mbit/s of a whole stream."""
MAX_LIFE = 366 * 86400.0
PROBE_LIFE = 60.0
"""The longest life of a probe, in seconds."""
MAX_PROBE_SECONDS = 20.0
MAX_TEXT = 2000
MAX_PAGE_KEY = 64
MAX_REASON = 200
MAX_HOSTS = 16
MAX_OTHER_ADDRESSES = 64
"""For all names of a message together, so that they fit into a line with the longest connection map and credentials."""
MAX_RANGES = 64
MAX_RESETS = 16
MAX_NOTICES = 16
MAX_NOTICE = 400
"""How many reset reasons are reported for one stream."""
MAX_EVENTS = 64
"""How many events are kept for one side of a stream."""
MAX_EVENT = 300
"""The longest text of an event."""
MAX_PATHS = 16
"""How many paths over the WAN are reported for one stream at one gateway, and by an S2CS for all gateways together."""

Uid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Seq = Annotated[int, Meta(ge=1, le=2**53)]
UNSENT = 0
"""The `seq` of a command that has not been sent: the link gives it a number."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Measured = Annotated[float, Meta(ge=0)]
Channel = Annotated[int, Meta(ge=0, lt=MAX_CHANNELS)]
NumConn = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
Rate = Annotated[float, Meta(gt=0, le=MAX_RATE)]
Life = Annotated[float, Meta(gt=0, le=MAX_LIFE)]
Generation = Annotated[int, Meta(ge=1, le=MAX_GENERATION)]
AddressText = Annotated[str, Meta(min_length=3, max_length=261)]
Listeners = Annotated[list[AddressText], Meta(max_length=MAX_CHANNELS)]
SomeListeners = Annotated[list[AddressText], Meta(min_length=1, max_length=MAX_CHANNELS)]
Port = Annotated[int, Meta(ge=1, le=65535)]
ListenPorts = Annotated[list[Port], Meta(min_length=1, max_length=MAX_CHANNELS)]
PortRanges = Annotated[list[tuple[Port, Port]], Meta(max_length=MAX_RANGES)]
"""Ranges of ports, both ends included."""
NetworkTexts = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)]
OtherAddresses = Annotated[
    dict[AddressText, Annotated[list[AddressText], Meta(max_length=MAX_HOSTS)]], Meta(max_length=MAX_OTHER_ADDRESSES)
]
"""Maps an address that a name resolved to, to the other addresses of that name."""
Pem = Annotated[str, Meta(max_length=131072)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
AppKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
ConnectionMap = Annotated[dict[AddressText, AddressText], Meta(min_length=1, max_length=MAX_CHANNELS)]
WanTargets = Annotated[dict[AddressText, AddressText], Meta(min_length=1, max_length=MAX_CHANNELS)]
"""Maps the listeners of a producer's gateways to those of the consumer's gateways for the WAN."""
Boot = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
StoreId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""The random name of an S2CS's store. A gateway knows by it which S2CS reserved a stream."""
OwnerId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""A digest of a stream's owner, by which a gateway can tell users apart without learning their names."""
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Warnings = Annotated[list[Text], Meta(max_length=200)]
StateName = Annotated[str, Meta(max_length=32)]
CodeName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
"""The code of an ERROR: one of `ErrorCode`, or a code of a later version, which is treated as a plain failure."""
Protocol = Literal["tcp", "probe"]
"""What a stream carries: connections of applications, or test data between its gateways only."""
WanAbilities = Annotated[list[CodeName], Meta(max_length=8)]
"""What gateways can do to connect to those of the other side: "accept", "dial", or what a later version has added."""
ProbeSeconds = Annotated[float, Meta(gt=0, le=MAX_PROBE_SECONDS)]


class _Message(Struct, frozen=True, kw_only=True, tag_field="cmd", omit_defaults=True):
    """Base class of all messages."""


def _check_addresses(name: str, addresses: list[str] | None) -> None:
    for text in addresses or ():
        try:
            Address.parse(text)
        except ValueError as wrong:
            raise ValueError(f"{name}: {wrong}") from None


def _check_probe(protocol: str, seconds: float | None) -> None:
    if (protocol == "probe") != (seconds is not None):
        raise ValueError("probe_seconds: required for a probe, not allowed otherwise")


def _check_listen_ports(ports: list[int] | None, channels: int) -> None:
    if ports is None:
        return
    if len(ports) != channels:
        raise ValueError(f"listen_ports: {len(ports)} ports for {channels} channels: name one port for each channel")
    twice = repeated(ports)
    if twice is not None:
        raise ValueError(f"listen_ports: port {twice} is listed twice: each channel needs a port of its own")


def _check_wan_targets(role: Role, wan_dialer: Role, targets: dict[str, str] | None) -> None:
    if (targets is not None) != (role == PROD and wan_dialer == PROD):
        raise ValueError("wan_targets: required at the producer's side if it dials, not allowed otherwise")
    _check_addresses("wan_targets", [*(targets or {}), *(targets or {}).values()])


def _check_other_addresses(others: dict[str, list[str]] | None, listeners: Collection[str]) -> None:
    count = sum(map(len, (others or {}).values()))
    if count > MAX_OTHER_ADDRESSES:
        raise ValueError(f"other_addresses: {count} addresses, but at most {MAX_OTHER_ADDRESSES} are allowed")
    for listener, addresses in (others or {}).items():
        if listener not in listeners:
            raise ValueError(f"other_addresses: {listener!r} is not one of the addresses of this message")
        _check_addresses("other_addresses", addresses)
        for text in addresses:
            if Address.parse(text).numeric is None:
                raise ValueError(f"other_addresses: {text!r} is not a numeric address")


def _check_networks(name: str, networks: list[str] | None) -> None:
    for text in networks or ():
        try:
            parse_network(text)
        except ValueError as wrong:
            raise ValueError(f"{name}: {wrong}") from None


class Req(_Message, frozen=True, kw_only=True, tag="REQ"):
    """S2UC asks an S2CS for its side of a stream: `num_conn` channels at `rate` Mbit/s in all, in each direction.

    `expires` and `hello_timeout` are seconds from now; the facility chooses them if they are left out. `app_from`
    narrows the networks from which applications may connect. `listen_ports` are the ports of this side's listeners,
    one for each channel, in order; without it the gateways choose. With `protocol` probe no application takes part:
    the gateways send each other test data for `probe_seconds` in each direction. `wan_dialer` is the side whose
    gateways are to dial the others, if that is known already. Answered by RESP with `listeners`, `csr`, `expires` and
    `wan`.
    """

    uid: Uid
    role: Role
    seq: Seq
    num_conn: NumConn
    rate: Annotated[float, Meta(ge=MIN_RATE, le=MAX_RATE)]
    app_key_hash: Sha256
    expires: Life | None = None
    hello_timeout: Life | None = None
    wan_security: Literal["encrypt"] = "encrypt"
    app_from: NetworkTexts | None = None
    protocol: Protocol = "tcp"
    probe_seconds: ProbeSeconds | None = None
    label: Annotated[str, Meta(max_length=200)] | None = None
    listen_ports: ListenPorts | None = None
    wan_dialer: Role | None = None

    def __post_init__(self) -> None:
        _check_networks("app_from", self.app_from)
        _check_listen_ports(self.listen_ports, self.num_conn)
        _check_probe(self.protocol, self.probe_seconds)
        if self.protocol == "probe" and (self.expires is None or self.expires > PROBE_LIFE):
            raise ValueError(f"expires: required for a probe, and at most {PROBE_LIFE:g} s")


class ReqListeners(_Message, frozen=True, kw_only=True, tag="ReqListeners"):
    """An S2CS asks one of its S2DS to reserve these channels; `rate` is that gateway's share in Mbit/s.

    `owner` is the same for all streams of a user, and the gateway limits each owner's share of its resources by it.
    `store` names the store of the S2CS: for this stream the gateway takes commands only under that name from then on.
    `listen_ports` are the ports of the listeners, in the order of `channels`. Answered by RESP with `listeners`, `csr`,
    `boot` and `wan`.
    """

    uid: Uid
    role: Role
    seq: Seq
    channels: Annotated[list[Channel], Meta(min_length=1, max_length=MAX_CHANNELS)]
    rate: Rate
    expires: Life
    wan_security: Literal["encrypt"]
    app_from: NetworkTexts | None = None
    protocol: Protocol = "tcp"
    probe_seconds: ProbeSeconds | None = None
    owner: OwnerId | None = None
    store: StoreId | None = None
    listen_ports: ListenPorts | None = None

    def __post_init__(self) -> None:
        _check_networks("app_from", self.app_from)
        _check_probe(self.protocol, self.probe_seconds)
        _check_listen_ports(self.listen_ports, len(self.channels))
        if len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: a channel is listed twice")


class StartLstn(_Message, frozen=True, kw_only=True, tag="StartLstn"):
    """The initiator announces a channel to an element; the listening socket stays with the initiator."""

    uid: Uid
    role: Role
    seq: Seq
    channel: Channel


class Hello(_Message, frozen=True, kw_only=True, tag="Hello"):
    """An application joins. ProdApp gives the numeric addresses on which it listens; ConsApp gives none.

    `other_addresses` has the remaining addresses of each listener that was given by name; the program listens on at
    least one of them. There are at most `MAX_OTHER_ADDRESSES` in all.
    """

    uid: Uid
    role: Role
    seq: Seq
    app_key: AppKey
    listeners: Listeners | None = None
    other_addresses: OtherAddresses | None = None

    def __post_init__(self) -> None:
        _check_addresses("listeners", self.listeners)
        if self.role == PROD and not self.listeners:
            raise ValueError("listeners: a producer needs at least one address on which it listens")
        if self.role == CONS and self.listeners is not None:
            raise ValueError("listeners: not allowed for a consumer")
        for text in self.listeners or ():
            if Address.parse(text).numeric is None:
                raise ValueError(f"listeners: {text!r} is not a numeric address")
        _check_other_addresses(self.other_addresses, set(self.listeners or ()))


class ProdLstn(_Message, frozen=True, kw_only=True, tag="ProdLstn"):
    """The producer's S2CS tells S2UC where ProdApp listens. Not answered."""

    uid: Uid
    role: Role
    listeners: SomeListeners

    def __post_init__(self) -> None:
        _check_addresses("listeners", self.listeners)


class UpdateTargets(_Message, frozen=True, kw_only=True, tag="UpdateTargets"):
    """Set the target of each listener, and the credentials of the WAN leg, as one numbered generation.

    `expires` (seconds from now) makes the stream end when the other side's facility ends it; it never extends its
    life. The gateways get it too, and end the stream soon after that time if their S2CS does not. From an S2CS to its
    S2DS, an empty `data_conn_key` keeps the current credentials, `store` is as in `ReqListeners`, and
    `other_addresses` are alternative addresses of a target that was given by name, as in `Hello`.

    `wan_dialer` is the side whose gateways dial the others. If it is PROD, the consumer's gateways listen for the WAN
    too, and answer with `wan_listeners`, and the producer's gateways dial `wan_targets`. A consumer's targets in
    `connection_map` are dialled by nobody then.
    """

    uid: Uid
    role: Role
    seq: Seq
    generation: Generation
    connection_map: ConnectionMap
    data_conn_key: Pem
    expires: Life | None = None
    store: StoreId | None = None
    other_addresses: OtherAddresses | None = None
    wan_dialer: Role = CONS
    wan_targets: WanTargets | None = None

    def __post_init__(self) -> None:
        _check_addresses("connection_map", [*self.connection_map, *self.connection_map.values()])
        _check_wan_targets(self.role, self.wan_dialer, self.wan_targets)
        _check_other_addresses(self.other_addresses, set(self.connection_map.values()))


class StartConn(_Message, frozen=True, kw_only=True, tag="StartConn"):
    """The consumer's S2CS tells ConsApp to connect: one listener for each channel, in order."""

    uid: Uid
    role: Role
    seq: Seq
    listeners: SomeListeners

    def __post_init__(self) -> None:
        _check_addresses("listeners", self.listeners)


class Rel(_Message, frozen=True, kw_only=True, tag="REL"):
    """Release this stream. `store` is sent by an S2CS, as in `ReqListeners`."""

    uid: Uid
    role: Role
    seq: Seq
    store: StoreId | None = None


class Extend(_Message, frozen=True, kw_only=True, tag="Extend"):
    """Let one side of a stream end `expires` seconds from now, which may be later or earlier than before.

    An S2CS passes it on to all gateways of the side. `store` is sent by an S2CS, as in `ReqListeners`. If any gateway
    refuses, nothing changes.
    """

    uid: Uid
    role: Role
    seq: Seq
    expires: Life
    store: StoreId | None = None


class Status(_Message, frozen=True, kw_only=True, tag="Status"):
    """Ask for the state of a stream, or, if `uid` is null, of all streams that the sender may see.

    A page has `limit` streams and begins after the key `after`. With `events`, which needs a `uid`, the answer says
    what has happened to the stream.
    """

    uid: Uid | None
    role: Role | None
    seq: Seq
    after: Annotated[str, Meta(max_length=MAX_PAGE_KEY)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    events: bool = False


GatewayName = Annotated[str, Meta(min_length=1, max_length=255)]
Within = Annotated[float, Meta(ge=0, le=MAX_LIFE)]


class Drain(_Message, frozen=True, kw_only=True, tag="Drain"):
    """An administrator asks an S2CS to place no new streams on a gateway or, if `gateway` is null, on any.

    `action` is start, undo, or show, which changes nothing. `within` are the seconds from now after which the streams
    that are left are released; without it they go on until they end. `uid` and `role` are left out, because it is about
    no stream. Answered by RESP with `draining`.
    """

    uid: Uid | None = None
    role: Role | None = None
    seq: Seq
    action: Literal["start", "undo", "show"]
    gateway: GatewayName | None = None
    within: Within | None = None

    def __post_init__(self) -> None:
        if self.within is not None and self.action != "start":
            raise ValueError("within: allowed with the action start only")


class DrainProgress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that gets no new streams, and what is left of its streams.

    :param gateway: the name of the gateway; null for all gateways of the S2CS.
    :param by: the administrator who asked for it; empty if the server itself is about to stop.
    :param streams: sides of streams that are left.
    :param connections: their open connections, at these gateways.
    :param bytes: application bytes that they have carried since they were reserved, in both directions.
    :param seconds_left: until they are released; null if they may go on until they end.
    """

    gateway: GatewayName | None = None
    by: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    streams: Count = 0
    connections: Count = 0
    bytes: Count = 0
    seconds_left: Measured | None = None


class ChannelFigures(Struct, frozen=True, kw_only=True):
    """Traffic of one channel on one gateway since the channel was reserved.

    Bytes are application bytes, counted when they leave towards that application. `connections` are open now,
    `accepted` counts all connections so far, and `reset` those that ended abnormally.

    The other figures come from TCP, for the connections between the gateways, and are at most a few seconds old: the
    mean round-trip time in milliseconds, segments retransmitted since the channel was reserved, the delivery rate of
    all connections together in Mbit/s, and bytes that wait in this gateway or in its sockets. 0 if unknown. `ready`
    connections are open between the gateways and not yet used by an application; they count as none of the others.
    """

    channel: Channel
    bytes_to_consumer: Count = 0
    bytes_to_producer: Count = 0
    connections: Count = 0
    accepted: Count = 0
    reset: Count = 0
    rtt_ms: Measured = 0.0
    retransmits: Count = 0
    delivery_mbit: Measured = 0.0
    waiting: Count = 0
    ready: Count = 0


Cause = Literal["application", "far-side", "wan", "stranger", "gateway"]
"""What caused a reset: the application at this side (it reset or refused the connection, or is unreachable); the far
side, which passed on a reset; a failure of the WAN between the gateways; a peer that never showed the credentials of
the stream; or the gateway itself."""


class ResetReason(Struct, frozen=True, kw_only=True):
    """Why connections of a channel were reset at this side.

    :param cause: a `Cause`, or one that a later version has added.
    :param reason: a sentence for the user, the same for all connections that were reset for this reason.
    :param count: connections reset for this reason since the stream was reserved.
    :param seconds_ago: seconds since the last of these resets.
    """

    channel: Channel
    cause: CodeName
    reason: Annotated[str, Meta(max_length=MAX_REASON)]
    count: Count
    seconds_ago: Measured = 0.0


class BrokenChannel(Struct, frozen=True, kw_only=True):
    """A channel whose connections over the WAN have all failed for some time.

    :param reason: why the last one failed, a sentence for the user.
    :param seconds: since the first failure.
    """

    channel: Channel
    reason: Annotated[str, Meta(max_length=MAX_REASON)]
    seconds: Measured


BrokenChannels = Annotated[list[BrokenChannel], Meta(max_length=MAX_RESETS)]
Resets = Annotated[list[ResetReason], Meta(max_length=MAX_RESETS)]


Notices = Annotated[list[Annotated[str, Meta(max_length=MAX_NOTICE)]], Meta(max_length=MAX_NOTICES)]


NumericHost = Annotated[str, Meta(max_length=64)]


class PathFigures(Struct, frozen=True, kw_only=True):
    """The connections of a stream between two addresses of the WAN, over one gateway; only with Multipath TCP.

    :param local: the numeric address of this gateway; `remote` is the other gateway's. Both are empty for all paths
        together for which the list has no place.
    :param up: whether a connection can use the path.
    :param connections: open connections that can use it; estimated if there are very many.
    :param rtt_ms: their mean round-trip time in milliseconds; 0 if unknown.
    :param bytes_to_consumer: bytes over this path since the stream was reserved, TLS included; `bytes_to_producer`
        likewise.
    :param retransmits: segments retransmitted since the stream was reserved.
    :param failures: how often the path went down.
    :param seconds: since it last came or went.
    """

    local: NumericHost
    remote: NumericHost
    up: bool = False
    connections: Count = 0
    rtt_ms: Measured = 0.0
    bytes_to_consumer: Count = 0
    bytes_to_producer: Count = 0
    retransmits: Count = 0
    failures: Count = 0
    seconds: Measured = 0.0


PathList = Annotated[list[PathFigures], Meta(max_length=MAX_PATHS)]


class StreamEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that has happened to a stream at one facility.

    :param kind: ``state``, ``targets``, ``gateway``, ``resets``, ``extend``, ``release``, ``restart``, or a kind that a
        later version has added.
    :param seconds_ago: seconds since then, or since it happened last.
    :param state: the state that the stream has entered, for the kind ``state``.
    :param text: a sentence for the user.
    :param count: how often it has happened; for ``resets`` the number of connections.
    """

    kind: CodeName
    seconds_ago: Measured
    state: StateName = ""
    text: Annotated[str, Meta(max_length=MAX_EVENT)] = ""
    count: Count = 1


class LastError(Struct, frozen=True, kw_only=True):
    """The code and message of the ERROR with which a stream failed."""

    code: CodeName
    msg: Text


class ProbeResult(Struct, frozen=True, kw_only=True):
    """The result of a probe between two gateways, as measured at the consumer's gateway.

    :param reason: why the probe failed, a sentence for the user.
    :param connect_ms: milliseconds until the producer's gateway answered: TCP, TLS and one round trip.
    :param rtt_ms: the median round-trip time of several small messages.
    :param mbit_to_consumer: Mbit/s over all channels together; `mbit_to_producer` likewise.
    :param bytes: bytes that arrived, in both directions.
    :param bytes_right: whether every byte that arrived was the one that was sent.
    """

    state: Literal["running", "done", "failed"]
    reason: Text = ""
    connect_ms: float = 0.0
    rtt_ms: float = 0.0
    mbit_to_consumer: float = 0.0
    mbit_to_producer: float = 0.0
    bytes: Count = 0
    bytes_right: bool = True


class StreamStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stream as a server sees it. `listeners` are in the order of `channels`; times are in seconds.

    `wrong_hellos` counts Hellos with a wrong key since the S2CS started. `resets` are the latest reset reasons, newest
    first; `broken` lists channels that do not reach the other gateway. `store` is sent by an S2DS and names the store
    of the S2CS that reserved the stream. `silent` is sent by an S2CS: the gateways of the stream that do not answer,
    and for how many seconds. `listen_ports` are the ports that were requested by number. `wan` is what the gateways can
    do to connect to those of the other side, as in `Resp`; `wan_dialer` is the side whose gateways dial the others, if
    that was requested or targets are set; `wan_listeners` are as in `Resp`.
    `events` are what has happened, oldest first, if Status has asked for them; `events_dropped` counts older ones.
    `notices` are sentences for the user about what slows the stream, with the remedy. `paths` are those of connections
    that may use several over the WAN.
    """

    uid: Uid
    role: Role
    state: StateName
    owner: str = ""
    label: str | None = None
    rate: float = 0.0
    channels: list[Channel] = field(default_factory=list)
    listeners: Listeners = field(default_factory=list)
    csr: Pem = ""
    app_listeners: Listeners = field(default_factory=list)
    generation: Annotated[int, Meta(ge=0, le=MAX_GENERATION)] = 0
    connection_map: dict[AddressText, AddressText] = field(default_factory=dict)
    figures: list[ChannelFigures] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    seconds_left: float = 0.0
    last_error: LastError | None = None
    probe: ProbeResult | None = None
    wrong_hellos: int = 0
    resets: Resets = field(default_factory=list)
    store: StoreId | None = None
    broken: BrokenChannels = field(default_factory=list)
    silent: dict[Annotated[str, Meta(max_length=255)], Measured] = field(default_factory=dict)
    listen_ports: ListenPorts | None = None
    notices: Notices = field(default_factory=list)
    wan: WanAbilities | None = None
    wan_dialer: Role | None = None
    wan_listeners: Listeners = field(default_factory=list)
    paths: PathList = field(default_factory=list)
    events: Annotated[list[StreamEvent], Meta(max_length=MAX_EVENTS)] = field(default_factory=list)
    events_dropped: Count = 0

    def __post_init__(self) -> None:
        _check_addresses("listeners", self.listeners)
        _check_addresses("app_listeners", self.app_listeners)
        _check_addresses("connection_map", [*self.connection_map, *self.connection_map.values()])
        _check_addresses("wan_listeners", self.wan_listeners)


class GatewayCapacity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The total capacity of a gateway, used or free: ports, and Mbit/s in each direction.

    `hosts` and `first_port` say where it listens for streams; none of these addresses may be a target. `chosen_ports`
    are the ports that a stream may ask for by number; an older gateway grants none and leaves the field out. `wan` is
    what the gateway can do to connect to others, as in `Resp`. `draining` is there if the gateway is about to stop and
    takes no new streams: the seconds after which it ends those that are left. `elements` are those that it should have,
    and `elements_ready` those that take connections.
    """

    ports: Count
    rate: float
    hosts: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=MAX_HOSTS)] | None = None
    first_port: Port | None = None
    chosen_ports: PortRanges | None = None
    wan: WanAbilities | None = None
    draining: Measured | None = None
    elements: Count | None = None
    elements_ready: Count | None = None


class Resp(_Message, frozen=True, kw_only=True, tag="RESP"):
    """The answer to a command: the `state` of the stream, and the results of the command.

    `room` is the capacity of an S2DS. `more` is the key with which to ask for the next page of streams (`after`).
    `warnings` are sentences about certificates that expire soon, in an S2CS's answer to Status. `version` is the
    version of SciStream of an S2CS, in its answer to Status without a uid. `figures`, `resets` and `paths` are the
    final ones of a stream that an S2DS has released. `expires` is the life granted by a facility, in seconds from the
    REQ. `wan` is what all gateways of the stream can do to connect to those of the other side; without it they can do
    what older ones can: a producer's accept connections, a consumer's dial. `wan_listeners` are where a consumer's
    gateways listen for the producer's, one for each channel, in order. `draining` is
    the answer to Drain; an answer to Status has it if the sender is an administrator and something gets no new streams.
    """

    uid: Uid | None
    seq: Seq
    state: StateName
    msg: Text
    listeners: Listeners | None = None
    csr: Pem | None = None
    expires: Life | None = None
    boot: Boot | None = None
    streams: list[StreamStatus] | None = None
    more: str | None = None
    room: GatewayCapacity | None = None
    warnings: Warnings | None = None
    version: Annotated[str, Meta(max_length=64)] | None = None
    figures: Annotated[list[ChannelFigures], Meta(max_length=MAX_CHANNELS)] | None = None
    resets: Resets | None = None

    app_networks: NetworkTexts | None = None
    wan: WanAbilities | None = None
    wan_listeners: Listeners | None = None
    paths: PathList | None = None
    draining: Annotated[list[DrainProgress], Meta(max_length=MAX_CHANNELS)] | None = None

    def __post_init__(self) -> None:
        _check_networks("app_networks", self.app_networks)
        _check_addresses("listeners", self.listeners)
        _check_addresses("wan_listeners", self.wan_listeners)


class Error(_Message, frozen=True, kw_only=True, tag="ERROR"):
    """Refuse one command, or, without `seq`, report that a stream has ended.

    To a producer's application, `target-refused` without `seq` says that its listeners are not used and the stream
    goes on.
    """

    uid: Uid | None
    code: CodeName
    msg: Text
    seq: Seq | None = None
    role: Role | None = None


Command = Req | ReqListeners | StartLstn | Hello | UpdateTargets | StartConn | Extend | Rel | Status | Drain
Answer = Resp | Error
Message = Command | ProdLstn | Answer
StreamKey = tuple[str, Role]
"""Streams are identified by (uid, role), so that one S2CS or S2DS can serve both ends."""
