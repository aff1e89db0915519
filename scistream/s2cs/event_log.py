"""What has happened to a stream at this facility, kept in its record for its owner: bounded, the oldest dropped.

The audit trail tells the operator what users did; this tells a user what became of their stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from scistream import timing
from scistream.protocol.errors import printable
from scistream.protocol.messages import MAX_EVENT, MAX_EVENTS, ResetReason, StreamEvent
from scistream.s2cs.record import Record, RecordedEvent
from scistream.units import spoken_seconds

MOST_RESETS = 16
"""Events about resets in one log: gateways report reasons that applications and strangers can cause."""
MERGED_AMONG = 4
"""An event that equals one of the last few replaces it and counts it, so that no party can fill the log."""

_STATES = {
    "Reserving": "requested",
    "Listening": "the gateways have reserved",
    "Ready": "the application has said Hello",
    "Streaming": "targets are set: connections are forwarded",
    "Released": "the gateways have released it",
}
"""What each state means to the user. Updating is left out: what it leads to is noted. The text of Releasing is why."""


class EventLog:
    """The events of one stream.

    :param wall: returns the seconds since the epoch.
    """

    def __init__(self, record: Record, wall: Callable[[], float]) -> None:
        self._record = record
        self._wall = wall
        self._state = record.state if record.state != "Updating" else "Streaming"
        self._revision = record.revision
        self._life = record.life
        self._silent: set[str] = set()
        self._by = ""

    # -- what happens

    def note_changes(self) -> None:
        """Note what has changed in the record since the last call. To be called before the record is written."""
        record = self._record
        if self._life and abs(record.life - self._life) > timing.SAME_END:
            self._note_life()
        self._life = record.life
        if record.state == "Releasing" and self._state != "Releasing":
            self._enter("Releasing", self._why_over())
        elif record.state == "Streaming" and record.revision != self._revision:
            if self._revision:
                self._note("targets", "new targets are in force: new connections are forwarded there")
            self._revision = record.revision

    def state_changed(self, before: str, state: str) -> None:
        """Note a change of state. That to Releasing is noted with its reason, when the record is written."""
        goes_back = before == "Updating" and state in ("Listening", "Ready")
        if state in _STATES and state != self._state and not goes_back:
            self._enter(state, _STATES[state])

    def _enter(self, state: str, text: str) -> None:
        self._state = state
        self._note("state", text, state=state)

    def extended_by(self, name: str) -> None:
        """Note who has asked for another end; what comes of it is noted with the change of the record."""
        self._by = name

    def released_by(self, name: str) -> None:
        """Note who has asked for the release of a live stream."""
        if self._record.state not in ("Releasing", "Released"):
            self._note("release", f"release requested by {name}")

    def restarted(self) -> None:
        """Note that this S2CS was restarted while the stream went on."""
        self._note("restart", "the S2CS was restarted; the stream goes on")

    def note_gateway(self, name: str, *, silent: bool) -> None:
        """Note that a gateway of the stream does not answer, or answers again."""
        if silent and name not in self._silent:
            self._silent.add(name)
            self._note("gateway", f"gateway {name} does not answer")
        elif not silent and name in self._silent:
            self._silent.discard(name)
            self._note("gateway", f"gateway {name} answers again")

    def note_resets(self, gateway: str, resets: Iterable[ResetReason]) -> None:
        """Note why connections were reset: one event for each reason, with the number of connections so far.

        Connections of strangers are left out: anybody can cause them, and Status reports them.
        """
        for one in resets:
            if one.cause == "stranger":
                continue
            text = _shortened(f"gateway {gateway}, channel {one.channel}: {one.reason}")
            known = next((event for event in self._record.events if (event.kind, event.text) == ("resets", text)), None)
            if known is not None and known.count >= one.count:
                continue
            events = [event for event in self._record.events if event is not known]
            of_resets = [event for event in events if event.kind == "resets"]
            if len(of_resets) >= MOST_RESETS:
                events.remove(of_resets[0])
                self._record.events_dropped += 1
            event = RecordedEvent(at=self._wall() - one.seconds_ago, kind="resets", text=text, count=one.count)
            self._put(sorted([*events, event], key=lambda each: each.at))

    # -- for the user

    def events(self) -> list[StreamEvent]:
        """Return all events as a message has them, in the order of time."""
        now = self._wall()
        return [
            StreamEvent(
                kind=one.kind,
                seconds_ago=round(max(0.0, now - one.at), 3),
                state=one.state,
                text=one.text,
                count=one.count,
            )
            for one in self._record.events
        ]

    # -- inside

    def _note_life(self) -> None:
        life = spoken_seconds(self._record.life)
        if self._by:
            self._note("extend", f"it ends {life} after its request: set by {self._by}")
        else:
            self._note("extend", f"it ends {life} after its request, as the other side does")
        self._by = ""

    def _why_over(self) -> str:
        last = self._record.last_error
        return f"{last.code}: {last.msg}" if last is not None else "released"

    def _note(self, kind: str, text: str, *, state: str = "") -> None:
        events, text = self._record.events, _shortened(printable(text))
        count = 1
        for known in events[-MERGED_AMONG:]:
            if (known.kind, known.state, known.text) == (kind, state, text):
                events = [one for one in events if one is not known]
                count = known.count + 1
        self._put([*events, RecordedEvent(at=self._wall(), kind=kind, state=state, text=text, count=count)])

    def _put(self, events: list[RecordedEvent]) -> None:
        excess = max(0, len(events) - MAX_EVENTS)
        self._record.events_dropped += excess
        self._record.events = events[excess:]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_EVENT else f"{text[: MAX_EVENT - 4]} ..."


def size_of(events: Iterable[StreamEvent]) -> int:
    """Return how many bytes events take in a line."""
    return sum(len(msgspec.json.encode(one)) for one in events)
