"""The schema of the audit trail: one Struct for each kind of line.

docs/audit.rst explains every field, and a test compares the two. No field is secret: there are no keys, join strings or
certificates in the trail. Increment `SCHEMA` with every change that programs reading the trail must know of.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from scistream.protocol.messages import Role

SCHEMA: Final = 1
FIRST_BYTES: Final = b'{"event":"'
"""The bytes with which every line of the audit trail begins, and therefore every file of it."""


class _Event(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    """The fields of all lines: the time (RFC 3339, UTC), the schema, and the `listen` of the S2CS that wrote it."""

    time: str
    schema: Literal[1]
    server: str


class _StreamEvent(_Event, frozen=True, kw_only=True):
    """The fields of all lines about a stream: its uid, the side at this facility, and its owner with the issuer."""

    uid: str
    role: Role
    identity: str
    issuer: str | None


class ServerStartEvent(_Event, frozen=True, kw_only=True, tag="server-start"):
    """The S2CS has started."""

    version: str
    gateways: list[str]
    streams: int
    insecure: bool


class ServerStopEvent(_Event, frozen=True, kw_only=True, tag="server-stop"):
    """The S2CS has stopped cleanly; its streams go on."""

    streams: int


class LinkRefusedEvent(_Event, frozen=True, kw_only=True, tag="link-refused"):
    """The listener has refused a link before any message of the protocol."""

    address: str
    reason: str
    repeated: int


class RequestEvent(_StreamEvent, frozen=True, kw_only=True, tag="request"):
    """A user has requested a new stream. Later lines say what became of it."""

    address: str
    num_conn: int
    rate: float
    expires: float | None
    protocol: str
    app_from: list[str] | None
    listen_ports: list[int] | None
    label: str | None


class RefusedEvent(_Event, frozen=True, kw_only=True, tag="refused"):
    """A command was refused."""

    address: str
    identity: str | None
    issuer: str | None
    cmd: str
    uid: str | None
    role: Role | None
    code: str
    reason: str
    repeated: int


class BadLineEvent(_Event, frozen=True, kw_only=True, tag="bad-line"):
    """A link has sent a line that is not a message of the protocol, or not one that is allowed on this link."""

    address: str
    identity: str | None
    issuer: str | None
    uid: str | None
    reason: str
    closed: bool
    repeated: int


class HelloEvent(_StreamEvent, frozen=True, kw_only=True, tag="hello"):
    """An application has said Hello with the right key, on a new link or with other listeners than before."""

    address: str
    listeners: list[str]
    repeated: int = 0


class StartEvent(_StreamEvent, frozen=True, kw_only=True, tag="start"):
    """The first targets of the stream are in force, so bytes can flow."""

    generation: int
    gateways: list[str]
    targets: dict[str, str]


class TargetsEvent(_StreamEvent, frozen=True, kw_only=True, tag="targets"):
    """New targets of the stream have replaced the earlier ones."""

    generation: int
    gateways: list[str]
    targets: dict[str, str]
    repeated: int = 0


class ExtendEvent(_StreamEvent, frozen=True, kw_only=True, tag="extend"):
    """The owner or an administrator has changed the time at which the stream ends."""

    address: str
    by: str | None
    by_issuer: str | None
    life: float
    repeated: int = 0


class ResetsEvent(_StreamEvent, frozen=True, kw_only=True, tag="resets"):
    """Connections of the stream were reset at a gateway of this facility."""

    gateway: str
    channel: int
    cause: str
    reason: str
    count: int


class PathEvent(_StreamEvent, frozen=True, kw_only=True, tag="path"):
    """A path of the stream over the WAN has come or gone at a gateway of this facility."""

    gateway: str
    local: str
    remote: str
    up: bool
    failures: int


class ImplausibleFiguresEvent(_StreamEvent, frozen=True, kw_only=True, tag="implausible-figures"):
    """A gateway has reported figures that the rate of the stream does not allow; they are not counted."""

    gateway: str
    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    most_bytes: int


class ReleaseEvent(_StreamEvent, frozen=True, kw_only=True, tag="release"):
    """The owner or an administrator has released the stream."""

    address: str
    by: str | None
    by_issuer: str | None


class DrainEvent(_Event, frozen=True, kw_only=True, tag="drain"):
    """An administrator has begun or ended a drain."""

    address: str
    identity: str
    issuer: str | None
    action: Literal["start", "undo"]
    gateway: str | None
    within: float | None


class EndEvent(_StreamEvent, frozen=True, kw_only=True, tag="end"):
    """The stream has ended, and nothing of it is left at this facility."""

    label: str | None
    num_conn: int
    rate: float
    duration: float
    streaming: float
    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    reset: int
    complete: bool
    code: str
    reason: str


class LinesLostEvent(_Event, frozen=True, kw_only=True, tag="lines-lost"):
    """Lines were dropped because the trail could not be written for too long."""

    count: int


_OfServer = ServerStartEvent | ServerStopEvent | LinkRefusedEvent
_OfCommands = RequestEvent | RefusedEvent | BadLineEvent
_OfStreams = HelloEvent | StartEvent | TargetsEvent | ExtendEvent
_OfGateways = ResetsEvent | PathEvent | ImplausibleFiguresEvent
Event = _OfServer | _OfCommands | _OfStreams | _OfGateways | ReleaseEvent | DrainEvent | EndEvent | LinesLostEvent
KINDS: tuple[type[Any], ...] = Event.__args__


def line_of(event: Event) -> str:
    """Return an event as one line of JSON in ASCII. Text from users is escaped."""
    return json.dumps(msgspec.to_builtins(event), ensure_ascii=True, separators=(",", ":"))


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Event)


def read_line(line: str | bytes) -> Event:
    """Return the event of a line.

    :raises msgspec.ValidationError: if the line does not match the schema.
    """
    event: Event = _decoder.decode(line)
    return event
