"""The schema of the audit trail: one Struct for each kind of line. docs/audit.rst explains every field, and a test
holds the two together. Nothing secret is a field: no key, no join string, no certificate.

A change that readers must know of raises `SCHEMA`.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from scistream.protocol.messages import Role

SCHEMA: Final = 1


class _Event(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    """What all lines say: when (RFC 3339, UTC), in which form, and which S2CS wrote it, by its `listen`."""

    time: str
    schema: Literal[1]
    server: str


class _StreamEvent(_Event, frozen=True, kw_only=True):
    """Which stream, which side of it this facility has, and who owns it, by whose word."""

    uid: str
    role: Role
    identity: str
    issuer: str | None


class ServerStartEvent(_Event, frozen=True, kw_only=True, tag="server-start"):
    """The S2CS serves from now on."""

    version: str
    gateways: list[str]
    streams: int
    insecure: bool


class ServerStopEvent(_Event, frozen=True, kw_only=True, tag="server-stop"):
    """The S2CS ends in order; its streams go on."""

    streams: int


class LinkRefusedEvent(_Event, frozen=True, kw_only=True, tag="link-refused"):
    """A link was refused by the listener, before or without a message of the protocol."""

    address: str
    reason: str
    repeated: int


class RequestEvent(_StreamEvent, frozen=True, kw_only=True, tag="request"):
    """A new stream is asked for. What became of it is in the lines after this one."""

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
    """What was said is no message of the protocol, or none that is for that link."""

    address: str
    identity: str | None
    issuer: str | None
    uid: str | None
    reason: str
    closed: bool
    repeated: int


class HelloEvent(_StreamEvent, frozen=True, kw_only=True, tag="hello"):
    """An application has proven itself, on a new link or with other listeners than before."""

    address: str
    listeners: list[str]
    repeated: int = 0


class StartEvent(_StreamEvent, frozen=True, kw_only=True, tag="start"):
    """The stream's first targets are in force: bytes can flow from now on."""

    generation: int
    gateways: list[str]
    targets: dict[str, str]


class TargetsEvent(_StreamEvent, frozen=True, kw_only=True, tag="targets"):
    """Later targets are in force in place of the earlier ones."""

    generation: int
    gateways: list[str]
    targets: dict[str, str]
    repeated: int = 0


class ResetsEvent(_StreamEvent, frozen=True, kw_only=True, tag="resets"):
    """Connections of the stream were reset at a gateway of this facility."""

    gateway: str
    channel: int
    cause: str
    reason: str
    count: int


class ImplausibleFiguresEvent(_StreamEvent, frozen=True, kw_only=True, tag="implausible-figures"):
    """A gateway has told figures of the stream that its rate does not allow; they are not counted."""

    gateway: str
    bytes_to_consumer: int
    bytes_to_producer: int
    connections: int
    most_bytes: int


class ReleaseEvent(_StreamEvent, frozen=True, kw_only=True, tag="release"):
    """Somebody who may has asked for the stream's end."""

    address: str
    by: str | None
    by_issuer: str | None


class EndEvent(_StreamEvent, frozen=True, kw_only=True, tag="end"):
    """Nothing of the stream is left at this facility."""

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
    """The trail could not be written for so long that lines were dropped."""

    count: int


_OfServer = ServerStartEvent | ServerStopEvent | LinkRefusedEvent
_OfCommands = RequestEvent | RefusedEvent | BadLineEvent
_OfStreams = HelloEvent | StartEvent | TargetsEvent | ResetsEvent | ImplausibleFiguresEvent | ReleaseEvent | EndEvent
Event = _OfServer | _OfCommands | _OfStreams | LinesLostEvent
KINDS: tuple[type[Any], ...] = Event.__args__


def line_of(event: Event) -> str:
    """An event as JSON, on one line and in ASCII alone, whatever text of others is in it."""
    return json.dumps(msgspec.to_builtins(event), ensure_ascii=True, separators=(",", ":"))


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Event)


def read_line(line: str | bytes) -> Event:
    """The event of a line.

    :raises msgspec.ValidationError: if the line is not as the schema says.
    """
    event: Event = _decoder.decode(line)
    return event
