"""What an initiator says to its elements, and they to it: one JSON object a line, as on every link of SciStream.

The two ends are one program on one machine over a socket pair, which loses nothing: there is no repetition here. An
accepted connection goes over a second pair, with a `HandOver` that says what it is.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct

from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import Cause, Role
from scistream.tls.stream_channels import Credentials


class _Command(Struct, frozen=True, kw_only=True, tag_field="cmd", forbid_unknown_fields=True):
    """What all of them share."""


class ArmChannels(_Command, frozen=True, kw_only=True, tag="StartLstn"):
    """A stream is reserved: `slots` has the slot of each of its channels, `rate` is in Mbit/s, each way.

    The listening sockets stay with the initiator. An `owner` is the same for all streams of one user; empty: not known.
    """

    uid: str
    role: Role
    rate: float
    slots: dict[int, int]
    owner: str = ""


class SetTargets(_Command, frozen=True, kw_only=True, tag="UpdateTargets"):
    """New connections of each channel go to these addresses from now on.

    :ivar own: ports of this gateway that are targets all the same.
    :ivar other_addresses: of a channel, where to connect to if that fails.
    :ivar credentials: of the WAN leg. None: that is plain TCP too, which no stream asks for.
    """

    uid: str
    role: Role
    targets: dict[int, str]
    credentials: Credentials | None
    own: list[int] = []
    other_addresses: dict[int, list[str]] = {}


class CloseChannels(_Command, frozen=True, kw_only=True, tag="REL"):
    """Reset every connection of the stream, and forget it: not one byte crosses after the answer."""

    uid: str
    role: Role


class MakeRoom(_Command, frozen=True, kw_only=True, tag="MakeRoom"):
    """Others wait: end up to `count` connections of a channel that have had their time for the handshake.

    :ivar share: connections without a handshake that an address may have here; if it has more, they have less time.
    """

    uid: str
    role: Role
    channel: int
    count: int
    share: int


class SetNetworks(_Command, frozen=True, kw_only=True, tag="SetNetworks"):
    """Other gateways that have names are dialled in these networks only, from now on."""

    wan_networks: list[str]


class Ping(_Command, frozen=True, kw_only=True, tag="Beat"):
    """Is it alive?"""


ElementCommand = ArmChannels | SetTargets | CloseChannels | MakeRoom | SetNetworks | Ping


class NumberedCommand(Struct, frozen=True, kw_only=True):
    """An order with its number on this link, counted from 1."""

    seq: int
    order: ElementCommand


class Done(_Command, frozen=True, kw_only=True, tag="RESP"):
    """The order of that number was carried out."""

    seq: int


class Failed(_Command, frozen=True, kw_only=True, tag="ERROR"):
    """It was not."""

    seq: int
    code: ErrorCode
    msg: str


class LogLine(_Command, frozen=True, kw_only=True, tag="Log"):
    """A line for the log: what a person reads, and a level of `twisted.logger`."""

    level: str
    text: str


class Reset(Struct, frozen=True, kw_only=True):
    """So many connections of a channel were reset for one reason; `detail` of the last one is for the log alone."""

    uid: str
    role: Role
    channel: int
    cause: Cause
    reason: str
    count: int
    detail: str = ""


class ResetsReport(_Command, frozen=True, kw_only=True, tag="Resets"):
    """What was reset since the last report of it; each second there is one at most."""

    resets: list[Reset]


Report = Done | Failed | LogLine | ResetsReport


class HandOver(Struct, frozen=True, kw_only=True):
    """Beside this comes a descriptor: a connection that was accepted on this channel.

    :ivar number: its place among those of the channel, counted from 1; 0 where their order does not matter.
    """

    uid: str
    role: Role
    channel: Annotated[int, Meta(ge=0)]
    number: Annotated[int, Meta(ge=0)] = 0


MAX_PACKET = 1024
"""No `HandOver` is longer, in bytes."""

encode = msgspec.json.Encoder().encode
read_command: Any = msgspec.json.Decoder(NumberedCommand).decode
read_report: Any = msgspec.json.Decoder(cast(Any, Report)).decode
read_carry: Any = msgspec.json.Decoder(HandOver).decode
