"""The record of a stream at an S2CS, and what is computed from the record alone. No I/O.

This includes the part of a command for each gateway, and checks of requests and connection maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import (
    CONS,
    MAX_LIFE,
    PROD,
    UNSENT,
    LastError,
    ProbeResult,
    Req,
    ReqListeners,
    Role,
    StreamKey,
    UpdateTargets,
)
from scistream.protocol.wan_abilities import ACCEPT, DIAL, abilities, common, needed


class RecordedEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that has happened to a stream; `at` is in seconds since the epoch, the rest as in `StreamEvent`."""

    at: float
    kind: str
    state: str = ""
    text: str = ""
    count: int = 1


class Record(Struct, kw_only=True, omit_defaults=True):
    """What an S2CS keeps about a stream, in memory and in its store. Nothing in a record is secret.

    `plan` has the channels of each gateway, and `boots` the boot of each gateway that reserved them; `life` is the
    granted life in seconds. `generation` is the owner's number of the targets in force. `own_updates` counts the
    updates of targets that this S2CS has made itself, and `is_own_update` is true while it is not known whether all
    gateways have carried out the last of them. `app_listeners` and `other_addresses` are what ProdApp said in its
    Hello. Times and deadlines are seconds since the epoch, since they must survive a restart; `started_at` is when the
    first targets came into force, and `state_since` when the state last changed (0 in records of older versions).
    `wan` has what each gateway has reported about its WAN side (None for an older one).
    `wan_dialer`, `wan_targets` and `wan_listeners` belong to the targets in force, except that the gateways of a
    consumer keep their WAN listeners if later targets are refused. `events` are the latest that have happened, oldest
    first, and `events_dropped` counts the older ones.
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
    state_since: float = 0.0
    wan: dict[str, list[str] | None] = {}
    wan_dialer: Role = CONS
    wan_targets: dict[str, str] = {}
    wan_listeners: dict[int, str] = {}
    events: list[RecordedEvent] = []
    events_dropped: int = 0

    @property
    def key(self) -> StreamKey:
        """The identity of the stream at this S2CS: (uid, role)."""
        return self.uid, self.role

    @property
    def revision(self) -> int:
        """The generation under which gateways were last sent targets, by the owner or by this S2CS."""
        return self.generation + self.own_updates

    def may_be_held_by(self, gateway: str, now: float) -> bool:
        """Return True if a gateway may still have ports and capacity reserved for this stream.

        :param now: seconds since the epoch.
        """
        return gateway in self.plan and self.state != "Released" and now < self.expires_at + timing.HELD_LONGER


def ports_at(record: Record, gateway: str) -> list[int]:
    """Return the ports of a stream on a gateway: those it has, or else those that were requested by number."""
    channels = record.plan.get(gateway, [])
    known = [record.listeners[channel] for channel in channels if channel in record.listeners]
    if not known and record.request is not None and record.request.listen_ports is not None:
        return [record.request.listen_ports[channel] for channel in channels]
    for_wan = [record.wan_listeners[channel] for channel in channels if channel in record.wan_listeners]
    return [Address.parse(listener).port for listener in known + for_wan]


def wrong_port(request: Req, channels: Iterable[int], listeners: Iterable[str]) -> str | None:
    """Return how the ports that a gateway granted differ from the requested ones, as a predicate, or None."""
    if request.listen_ports is None:
        return None
    for channel, listener in zip(channels, listeners, strict=True):
        asked = request.listen_ports[channel]
        if Address.parse(listener).port != asked:
            return f"listens on {listener}, but port {asked} was requested"
    return None


def ordered_listeners(record: Record) -> list[str]:
    """Return the listeners of a stream, in the order of its channels."""
    return [record.listeners[channel] for channel in sorted(record.listeners)]


def ordered_wan_listeners(record: Record) -> list[str]:
    """Return where a consumer's gateways listen for those of the producer, in the order of the channels."""
    return [record.wan_listeners[channel] for channel in sorted(record.wan_listeners)]


def wan_abilities(record: Record) -> list[str] | None:
    """Return what all gateways of a stream can do to connect to others; None if all of them are of an older version."""
    reports = [record.wan.get(gateway) for gateway in record.plan]
    return common(record.role, reports) if any(report is not None for report in reports) else None


def chosen_dialer(record: Record) -> Role | None:
    """Return the side whose gateways dial: that of the targets in force, or else the requested one, or None."""
    if record.generation:
        return record.wan_dialer
    return record.request.wan_dialer if record.request is not None else None


def content_of(command: UpdateTargets) -> str:
    """Return a digest of an UpdateTargets, to tell a repetition from another command of the same generation."""
    digest = hashlib.sha256(command.data_conn_key.encode())
    for listener, target in sorted(command.connection_map.items()):
        digest.update(f"\n{listener}>{target}".encode())
    if command.wan_dialer != CONS:
        digest.update(f"\n{command.wan_dialer}".encode())
    for listener, target in sorted((command.wan_targets or {}).items()):
        digest.update(f"\n{listener}>>{target}".encode())
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
        request.wan_dialer,
    )


def reservation_for(record: Record, request: Req, channels: list[int]) -> ReqListeners:
    """Return the command that asks one gateway to reserve its part of a stream."""
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

    :param revision: the generation for the gateway, higher than in any earlier command.
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
        wan_dialer=command.wan_dialer,
        wan_targets=_part_of(command.wan_targets, held),
    )


def _part_of(targets: Mapping[str, str] | None, held: Container[str]) -> dict[str, str] | None:
    """Return the WAN targets of the listeners of one gateway."""
    return None if targets is None else {here: there for here, there in targets.items() if here in held}


def targets_problem(record: Record, command: UpdateTargets) -> tuple[ErrorCode, str] | None:
    """Return the code and reason with which an UpdateTargets is refused, or None if it fits the stream."""
    return (
        map_problem(record, command.connection_map)
        or _listeners_problem(record, "wan_targets", command.wan_targets)
        or _dialer_problem(record, command.wan_dialer)
    )


def _dialer_problem(record: Record, wan_dialer: Role) -> tuple[ErrorCode, str] | None:
    if record.generation and wan_dialer != record.wan_dialer:
        side = "producer" if record.wan_dialer == PROD else "consumer"
        why = f"the {side}'s gateways dial the WAN connections of this stream, which cannot change: request a new one"
        return "bad-message", f"field wan_dialer: {why}"
    ability = needed(record.role, wan_dialer)
    if ability not in abilities(record.role, wan_abilities(record)):
        return "target-refused", unable(ability)
    return None


def unable(ability: str) -> str:
    """Return why targets are refused that need this ability of the gateways of a facility."""
    return (
        f"the gateways of this facility cannot {_WAN_WORDS[ability]}: `{ability}` in [wan] of a gateway's settings is "
        "false, or it is of a version without this setting"
    )


_WAN_WORDS = {ACCEPT: "accept WAN connections for this stream", DIAL: "dial the gateways of the other side"}


def _listeners_problem(record: Record, field: str, targets: Mapping[str, str] | None) -> tuple[ErrorCode, str] | None:
    """Return why a map does not have exactly the listeners of a stream, or None."""
    if targets is None:
        return None
    own = set(record.listeners.values())
    unknown = next((listener for listener in targets if listener not in own), None)
    if unknown is not None:
        return "bad-message", f"field {field}: {unknown} is not a listener of this stream"
    missing = next((listener for listener in ordered_listeners(record) if listener not in targets), None)
    if missing is not None:
        return "bad-message", f"field {field}: listener {missing} has no target"
    return None


def map_problem(record: Record, connection_map: Mapping[str, str]) -> tuple[ErrorCode, str] | None:
    """Return the code and reason with which a connection map is refused, or None if it fits the stream."""
    problem = _listeners_problem(record, "connection_map", connection_map)
    if problem is not None:
        return problem
    if record.role == PROD:
        offered = set(record.app_listeners)
        refused = next((target for target in connection_map.values() if target not in offered), None)
        if refused is not None:
            return "target-refused", f"target {refused} is not among the listeners in the Hello of ProdApp"
    return None


def map_to_producer(record: Record) -> dict[str, str]:
    """Return a connection map for the producer's side that assigns the listeners of ProdApp to channels in turn."""
    app = record.app_listeners
    return {here: app[number % len(app)] for number, here in enumerate(ordered_listeners(record))}


def spare_listeners(record: Record) -> list[str]:
    """Return the listeners of ProdApp that no channel leads to because there are more listeners than channels."""
    if record.request is None:
        return []
    return [one for one in record.app_listeners[record.request.num_conn :] if one not in record.connection_map.values()]


def whole_probe(parts: Sequence[ProbeResult | None]) -> ProbeResult:
    """Combine the results of a probe from all gateways, which measure their own channels at the same time.

    :param parts: the result of each gateway; None for a gateway that has none yet.
    """
    known = [part for part in parts if part is not None]
    failed = next((part for part in known if part.state == "failed"), None)
    if failed is not None:
        return failed
    if len(known) < len(parts) or any(part.state == "running" for part in known):
        return ProbeResult(state="running")
    return ProbeResult(
        state="done",
        connect_ms=max((part.connect_ms for part in known), default=0.0),
        rtt_ms=max((part.rtt_ms for part in known), default=0.0),
        mbit_to_consumer=sum(part.mbit_to_consumer for part in known),
        mbit_to_producer=sum(part.mbit_to_producer for part in known),
        bytes=sum(part.bytes for part in known),
        bytes_right=all(part.bytes_right for part in known),
    )
