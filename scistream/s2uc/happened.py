"""What has happened to a stream: the events that both facilities keep, merged by time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Role, StreamStatus


@dataclass(frozen=True)
class HappenedEvent:
    """Something that has happened to a stream at one side.

    :ivar at: seconds since the epoch, by the clock of this machine.
    :ivar role: the side whose facility has noted it.
    :ivar kind: ``state``, ``targets``, ``gateway``, ``resets``, ``extend``, ``release``, ``restart``, or a kind that a
        later version has added.
    :ivar state: the state that the side has entered, for the kind ``state``.
    :ivar text: a sentence for people.
    :ivar count: how often it has happened, `at` being the last time; for ``resets`` the number of connections.
    """

    at: float
    role: Role
    kind: str
    state: str
    text: str
    count: int


@dataclass(frozen=True)
class StreamEvents:
    """The events of a stream.

    :ivar events: of both sides, oldest first.
    :ivar dropped: for each side that has dropped older events, how many.
    :ivar without: the sides whose facility keeps no events, since it runs an earlier version.
    :ivar unreachable: why a side did not answer.
    """

    events: list[HappenedEvent]
    dropped: Mapping[Role, int] = field(default_factory=dict)
    without: list[Role] = field(default_factory=list)
    unreachable: Mapping[Role, StreamError] = field(default_factory=dict)


def merged(sides: Iterable[StreamStatus], unreachable: Mapping[Role, StreamError], now: float) -> StreamEvents:
    """Return the events of all sides in the order of time.

    :param now: seconds since the epoch.
    """
    sides = list(sides)
    events = [
        HappenedEvent(now - one.seconds_ago, side.role, one.kind, one.state, one.text, one.count)
        for side in sides
        for one in side.events
    ]
    return StreamEvents(
        events=sorted(events, key=lambda one: one.at),
        dropped={side.role: side.events_dropped for side in sides if side.events_dropped},
        without=[side.role for side in sides if not side.events],
        unreachable=dict(unreachable),
    )
