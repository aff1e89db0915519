"""The messages between the initiator and its elements: one JSON object a line, as on every link of SciStream.

They go over a socket pair between processes of the same version, which loses nothing, so no message is repeated. An
accepted connection goes over a second pair, with a `HandOver` that describes it.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct, field

from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import CONS, Cause, Role
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.tls.stream_channels import Credentials


class _Command(Struct, frozen=True, kw_only=True, tag_field="cmd", forbid_unknown_fields=True):
    """The base of all messages."""


class ArmChannels(_Command, frozen=True, kw_only=True, tag="StartLstn"):
    """Prepare the channels of a stream, which has been reserved. The initiator keeps the listening sockets.

    :ivar rate: Mbit/s in each direction.
    :ivar slots: the slot of each channel in the shared figures.
    :ivar owner: the same for all streams of one user; empty if the user is not known.
    """

    uid: str
    role: Role
    rate: float
    slots: dict[int, int]
    owner: str = ""


class SetTargets(_Command, frozen=True, kw_only=True, tag="UpdateTargets"):
    """Connect new connections of each channel to these targets.

    :ivar targets: the address of each channel's target: of ProdApp at the producer's side, otherwise of the other
        gateway, if this one dials it.
    :ivar credentials: for TLS on the WAN leg. With None it is plain TCP, which only benchmarks and tests use.
    :ivar own: ports of this gateway that are allowed as targets.
    :ivar other_addresses: for a channel, the addresses to try if the target does not answer.
    :ivar wan_dialer: the role of the gateway that dials the other one.
    :ivar wan_targets: at the producer's side: the address of the other gateway for each channel, if this one dials it.
    """

    uid: str
    role: Role
    targets: dict[int, str]
    credentials: Credentials | None
    own: list[int] = []
    other_addresses: dict[int, list[str]] = {}
    wan_dialer: Role = CONS
    wan_targets: dict[int, str] = {}


class CloseChannels(_Command, frozen=True, kw_only=True, tag="REL"):
    """Reset all connections of a stream and forget it. No byte passes after the answer."""

    uid: str
    role: Role


class MakeRoom(_Command, frozen=True, kw_only=True, tag="MakeRoom"):
    """Reset connections of a channel that are slow in their handshake, since other connections wait.

    :ivar count: the number of connections to reset, at most.
    :ivar share: the number of connections without a handshake that an address may have here. If it has more, they have
        less time.
    """

    uid: str
    role: Role
    channel: int
    count: int
    share: int


class ChangeSettings(_Command, frozen=True, kw_only=True, tag="ChangeSettings"):
    """Apply other settings to later connections."""

    settings: ElementSettings


class SetHalfOpen(_Command, frozen=True, kw_only=True, tag="SetHalfOpen"):
    """Let this many connections of a channel wait for ProdApp, over all elements, where this gateway dials for it."""

    half_open: int


class PlaceAnswer(_Command, frozen=True, kw_only=True, tag="PlaceAnswer"):
    """Connect the connection for which the element has asked with a `PlaceRequest`, or refuse it.

    :ivar number: the number of the request.
    :ivar refusal: the limit that the connection would exceed, as a sentence; empty if it may be connected.
    """

    number: int
    refusal: str = ""


class Ping(_Command, frozen=True, kw_only=True, tag="Beat"):
    """Answer, to show that the element is alive."""


ElementCommand = ArmChannels | SetTargets | CloseChannels | MakeRoom | ChangeSettings | SetHalfOpen | PlaceAnswer | Ping


class NumberedCommand(Struct, frozen=True, kw_only=True):
    """A command with its sequence number, counted from 1; 0 if it needs no answer."""

    seq: int
    command: ElementCommand = field(name="order")


class Done(_Command, frozen=True, kw_only=True, tag="RESP"):
    """The command with this sequence number was carried out."""

    seq: int


class Failed(_Command, frozen=True, kw_only=True, tag="ERROR"):
    """The command with this sequence number failed; `code` and `msg` as in the control protocol."""

    seq: int
    code: ErrorCode
    msg: str


class LogLine(_Command, frozen=True, kw_only=True, tag="Log"):
    """A line for the log, with a level of `twisted.logger` and the fields of the event."""

    level: str
    text: str
    fields: dict[str, str | int | float | bool] = {}


class Reset(Struct, frozen=True, kw_only=True):
    """Connections of a channel that were reset for one reason.

    :ivar count: the number of connections.
    :ivar detail: details of the last one, for the log only.
    """

    uid: str
    role: Role
    channel: int
    cause: Cause
    reason: str
    count: int
    detail: str = ""


class ResetsReport(_Command, frozen=True, kw_only=True, tag="Resets"):
    """The connections reset since the last report. An element sends at most one report per second."""

    resets: list[Reset]


class PlaceRequest(_Command, frozen=True, kw_only=True, tag="Place"):
    """Ask for a place among the gateway's connections: another gateway wants ProdApp on a connection dialled here.

    The element gives the place back when the connection has ended, by counting it in the shared figures.

    :ivar number: a number of the element's own, which the answer repeats.
    """

    number: int
    uid: str
    role: Role
    channel: int


class PathSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The paths of a channel's connections between two addresses, with what they carried since the last report.

    :ivar local: the numeric address here; `remote` is the one at the other end. Both are empty for all others together.
    :ivar up: the number of connections that can use it now.
    :ivar rtt: their mean round-trip time in seconds.
    :ivar sent: bytes; likewise `received`.
    :ivar retransmits: segments.
    """

    local: str
    remote: str
    up: int = 0
    rtt: float = 0.0
    sent: int = 0
    received: int = 0
    retransmits: int = 0


class PathsReport(_Command, frozen=True, kw_only=True, tag="Paths"):
    """The paths of a channel's connections over the WAN at one element. It sends one report for each sample.

    :ivar settled: the number of connections that may have several paths and have had the time to open them.
    """

    uid: str
    role: Role
    channel: int
    element: int
    settled: int
    paths: list[PathSample]


Report = Done | Failed | LogLine | ResetsReport | PathsReport | PlaceRequest


class HandOver(Struct, frozen=True, kw_only=True):
    """The description of an accepted connection, whose descriptor comes with it.

    :ivar number: its number among the connections of the channel, counted from 1; 0 if their order does not matter.
    :ivar wan: True if it was accepted from the WAN.
    """

    uid: str
    role: Role
    channel: Annotated[int, Meta(ge=0)]
    number: Annotated[int, Meta(ge=0)] = 0
    wan: bool = False


MAX_PACKET = 1024
"""The greatest size of an encoded `HandOver` in bytes."""

encode = msgspec.json.Encoder().encode
read_command: Any = msgspec.json.Decoder(NumberedCommand).decode
read_report: Any = msgspec.json.Decoder(cast(Any, Report)).decode
read_hand_over: Any = msgspec.json.Decoder(HandOver).decode
