"""The record of a stream at an S2CS, and what follows from the record: the parts of a command for each gateway,
and whether a request or a connection map fits it. No I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from scistream import timing
from scistream.links.outbox import UNSENT
from scistream.protocol.address import Address
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import (
    MAX_LIFE,
    PROD,
    LastError,
    ProbeResult,
    Req,
    ReqListeners,
    Role,
    StreamKey,
    UpdateTargets,
)


class Record(Struct, kw_only=True, omit_defaults=True):
    """What an S2CS keeps of a stream, in memory and in its store. Nothing in it is secret.

    `plan` says which channels each gateway holds, `boots` in which run of it; `life` is how many seconds were
    granted at REQ. `generation` is the owner's number of the targets, and `own_updates` counts how often this S2CS has
    asked gateways for others by itself; `is_own_update` says that it is not known whether all of them have the ones
    that it has asked for last. Deadlines are wall-clock seconds since the epoch, since they must survive a restart; so
    is `started_at`, when its first targets came into force.
    """

    uid: str
    role: Role
    owner: str
    state: str = "Idle"
    request: Req | None = None
    plan: dict[str, list[int]] = {}
    boots: dict[str, str] = {}
    listeners: dict[int, str] = {}
    csr: dict[str, str] = {}
    app_listeners: list[str] = []
    other_addresses: dict[str, list[str]] = {}
    greeted: bool = False
    generation: int = 0
    own_updates: int = 0
    is_own_update: bool = False
    content: str = ""
    connection_map: dict[str, str] = {}
    last_error: LastError | None = None
    life: float = 0.0
    expires_at: float = 0.0
    hello_by: float = 0.0
    started_at: float = 0.0
    released_at: float = 0.0

    @property
    def key(self) -> StreamKey:
        """(uid, role), by which streams are told apart."""
        return self.uid, self.role

    @property
    def revision(self) -> int:
        """The highest number under which gateways were asked for targets that this S2CS or its owner has set."""
        return self.generation + self.own_updates

    def may_be_held_by(self, gateway: str, now: float) -> bool:
        """Return True if a gateway may have ports and capacity for this stream, as far as the S2CS can know.

        :param now: seconds since the epoch.
        """
        return gateway in self.plan and self.state != "Released" and now < self.expires_at + timing.HELD_LONGER


def ports_at(record: Record, gateway: str) -> list[int]:
    """Return the ports that a stream has on a gateway, or has asked it for, as far as they are known."""
    channels = record.plan.get(gateway, [])
    known = [record.listeners[channel] for channel in channels if channel in record.listeners]
    if not known and record.request is not None and record.request.listen_ports is not None:
        return [record.request.listen_ports[channel] for channel in channels]
    return [Address.parse(listener).port for listener in known]


def wrong_port(request: Req, channels: Iterable[int], listeners: Iterable[str]) -> str | None:
    """Return what a gateway has granted in place of a port that was asked for, as the end of a sentence, or None."""
    if request.listen_ports is None:
        return None
    for channel, listener in zip(channels, listeners, strict=True):
        asked = request.listen_ports[channel]
        if Address.parse(listener).port != asked:
            return f"listens on {listener} where port {asked} was asked for"
    return None


def ordered_listeners(record: Record) -> list[str]:
    """Return the listeners of a stream, in the order of its channels."""
    return [record.listeners[channel] for channel in sorted(record.listeners)]


def content_of(command: UpdateTargets) -> str:
    """Return a digest of an UpdateTargets, which tells a repetition from another command of the same generation."""
    digest = hashlib.sha256(command.data_conn_key.encode())
    for listener, target in sorted(command.connection_map.items()):
        digest.update(f"\n{listener}>{target}".encode())
    return digest.hexdigest()


def same_request(one: Req, other: Req | None) -> bool:
    """Return True if both REQs ask for the same stream."""
    return other is not None and _fields(one) == _fields(other)


def _fields(request: Req) -> tuple[Any, ...]:
    return (
        request.num_conn,
        request.rate,
        request.app_key_hash,
        request.expires,
        request.hello_timeout,
        request.wan_security,
        request.app_from,
        request.protocol,
        request.probe_seconds,
        request.label,
        request.listen_ports,
    )


def reservation_for(record: Record, request: Req, channels: list[int]) -> ReqListeners:
    """Return the part of a request that one gateway is asked to reserve."""
    return ReqListeners(
        uid=request.uid,
        role=request.role,
        seq=UNSENT,
        channels=channels,
        rate=request.rate * len(channels) / request.num_conn,
        expires=record.life,
        app_from=request.app_from,
        wan_security=request.wan_security,
        protocol=request.protocol,
        probe_seconds=request.probe_seconds,
        owner=hashlib.sha256(record.owner.encode()).hexdigest()[:32],
        listen_ports=[request.listen_ports[channel] for channel in channels] if request.listen_ports else None,
    )


def update_for_gateway(record: Record, gateway: str, command: UpdateTargets, revision: int) -> UpdateTargets:
    """Return the part of an UpdateTargets for one gateway.

    :param revision: its generation at the gateway, above that of any earlier one.
    """
    held = {record.listeners[channel] for channel in record.plan[gateway]}
    targets = {there for here, there in command.connection_map.items() if here in held}
    return UpdateTargets(
        uid=command.uid,
        role=command.role,
        seq=UNSENT,
        generation=revision,
        connection_map={here: there for here, there in command.connection_map.items() if here in held},
        data_conn_key=command.data_conn_key,
        expires=min(MAX_LIFE, command.expires + timing.SHORTENED_LATER) if command.expires is not None else None,
        other_addresses={one: others for one, others in record.other_addresses.items() if one in targets} or None,
    )


def map_problem(record: Record, connection_map: Mapping[str, str]) -> tuple[ErrorCode, str] | None:
    """Return the code and the sentence that refuse a connection map, or None if it fits the stream."""
    mine = set(record.listeners.values())
    stranger = next((listener for listener in connection_map if listener not in mine), None)
    if stranger is not None:
        return "bad-message", f"field connection_map: {stranger} is no listener of this stream"
    missing = next((listener for listener in ordered_listeners(record) if listener not in connection_map), None)
    if missing is not None:
        return "bad-message", f"field connection_map: listener {missing} has no target"
    if record.role == PROD:
        offered = set(record.app_listeners)
        refused = next((target for target in connection_map.values() if target not in offered), None)
        if refused is not None:
            return "target-refused", f"target {refused} is not among the addresses that ProdApp said Hello with"
    return None


def map_to_producer(record: Record) -> dict[str, str]:
    """Return the connection map of the producer's side: its channels lead to the listeners of ProdApp in turn."""
    app = record.app_listeners
    return {here: app[number % len(app)] for number, here in enumerate(ordered_listeners(record))}


def spare_listeners(record: Record) -> list[str]:
    """Return the listeners of ProdApp beyond the number of channels that the map in force does not lead to."""
    if record.request is None:
        return []
    return [one for one in record.app_listeners[record.request.num_conn :] if one not in record.connection_map.values()]


def whole_probe(parts: Sequence[ProbeResult | None]) -> ProbeResult:
    """Return one result for what the gateways of a pool have measured at the same time, each with its own channels."""
    found = [part for part in parts if part is not None]
    failed = next((part for part in found if part.state == "failed"), None)
    if failed is not None:
        return failed
    if len(found) < len(parts) or any(part.state == "running" for part in found):
        return ProbeResult(state="running")
    return ProbeResult(
        state="done",
        connect_ms=max((part.connect_ms for part in found), default=0.0),
        rtt_ms=max((part.rtt_ms for part in found), default=0.0),
        mbit_to_consumer=sum(part.mbit_to_consumer for part in found),
        mbit_to_producer=sum(part.mbit_to_producer for part in found),
        bytes=sum(part.bytes for part in found),
        bytes_right=all(part.bytes_right for part in found),
    )
