"""Server-sent events: what has changed, once a second, to a bounded number of listeners.

A listener that reads slowly loses nothing and takes no memory: what changes while it is paused is only noted by key,
and it gets the newest values when it reads again. If it does not read for long, its connection is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

import msgspec
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from scistream import timing
from scistream.paging import page_key
from scistream.protocol.messages import StreamKey
from scistream.s2cs.web.api_types import ChangeEvent, GatewayView, ServerView
from scistream.s2cs.web.monitor import Monitor

MOST_LISTENERS = 32
MOST_ROWS = 250
"""Streams in one event, so that neither this server nor a page has to handle thousands at once."""


class EventConsumer(Protocol):
    """Where the events of a listener go: a response that is being sent."""

    def write(self, data: bytes) -> None:
        """Send some bytes."""

    def abort(self, why: str) -> None:
        """Close the connection at once."""


@implementer(IPushProducer)
class EventListener:
    """One listener.

    :param consumer: gets the events.
    :param uid: the stream that it watches; None: the lists.
    """

    def __init__(self, consumer: EventConsumer, uid: str | None) -> None:
        self._consumer = consumer
        self.uid = uid
        self.pending: dict[StreamKey, None] = {}
        """The streams that have changed since they were last sent, the oldest change first."""
        self.recent = 0
        self.server: ServerView | None = None
        self.gateways: list[GatewayView] = []
        self.paused_at: float | None = None
        self.sent_at = 0.0
        self._is_reading = True

    @property
    def is_reading(self) -> bool:
        """True if the listener takes data at once."""
        return self._is_reading

    def send(self, event: str, data: bytes) -> None:
        """Send an event. The data is one line."""
        self._consumer.write(b"event: %s\ndata: %s\n\n" % (event.encode(), data))

    def open(self) -> None:
        """Send the first bytes, with the time after which a lost connection is tried again."""
        self._consumer.write(b"retry: %d\n\n" % (timing.EVENTS_AGAIN * 1000))

    def abort(self, why: str) -> None:
        """Close the connection."""
        self._consumer.abort(why)

    def pauseProducing(self) -> None:
        """Send nothing for now, because the listener does not read."""
        self._is_reading = False

    def resumeProducing(self) -> None:
        """Go on."""
        self._is_reading, self.paused_at = True, None

    def stopProducing(self) -> None:
        """Send nothing any more."""
        self._is_reading = False


class EventHub:
    """Tells all listeners once a second what has changed.

    :param monitor: knows the streams and the server.
    """

    log = Logger()

    def __init__(self, reactor: Any, monitor: Monitor) -> None:
        self._reactor = reactor
        self._monitor = monitor
        self._listeners: dict[EventListener, None] = {}
        self._changed: dict[StreamKey, None] = {}
        self._next: IDelayedCall | None = None
        self._refreshed_at = -timing.WATCHED_FIGURES

    @property
    def is_full(self) -> bool:
        """True if there is no room for another listener."""
        return len(self._listeners) >= MOST_LISTENERS

    def add(self, listener: EventListener) -> None:
        """Send events to a listener from now on."""
        if not self._listeners:
            self._monitor.on_change = self._note
        self._listeners[listener] = None
        listener.recent = self._monitor.recent_count
        listener.sent_at = self._reactor.seconds()
        listener.open()
        if self._next is None:
            self._next = self._reactor.callLater(0.0, self._tick)

    def remove(self, listener: EventListener) -> None:
        """Send no more events to a listener."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            self.stop()

    def stop(self) -> None:
        """Stop, until a listener is added."""
        self._monitor.on_change = _ignore
        self._changed.clear()
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None

    def _note(self, key: StreamKey) -> None:
        self._changed[key] = None

    def _tick(self) -> None:
        self._next = self._reactor.callLater(timing.BETWEEN_EVENTS, self._tick)
        try:
            self._refresh()
            self._tell_all()
        except Exception:  # the next second may go better, and the streams must not suffer from it
            self.log.failure("cannot tell the readers of the status page what has changed")

    def _refresh(self) -> None:
        """Ask for new figures every other second, for as long as somebody watches."""
        now = self._reactor.seconds()
        if now - self._refreshed_at < timing.WATCHED_FIGURES:
            return
        self._refreshed_at = now
        if any(listener.uid is None for listener in self._listeners):
            self._monitor.refresh()
        for uid in {listener.uid for listener in self._listeners if listener.uid is not None}:
            self._monitor.sides(uid).addErrback(self._cannot_refresh)

    def _cannot_refresh(self, failure: Any) -> None:
        self.log.failure("cannot fetch the figures of a stream", failure=failure)

    def _tell_all(self) -> None:
        now = self._reactor.seconds()
        changed, self._changed = self._changed, {}
        self._monitor.change += 1
        server, gateways = self._monitor.server(), self._monitor.gateways()
        rows: dict[StreamKey, msgspec.Raw | None] = {}
        for listener in list(self._listeners):
            if listener.uid is None:
                listener.pending.update(changed)
            else:
                listener.pending.update((key, None) for key in changed if key[0] == listener.uid)
            if listener.is_reading:
                self._tell(listener, now, server, gateways, rows)
            elif listener.paused_at is None:
                listener.paused_at = now
            elif now - listener.paused_at > timing.SLOW_READER:
                self.remove(listener)
                listener.abort("the reader of the events does not read")

    def _tell(
        self,
        listener: EventListener,
        now: float,
        server: ServerView,
        gateways: list[GatewayView],
        rows: dict[StreamKey, msgspec.Raw | None],
    ) -> None:
        keys = list(islice(listener.pending, MOST_ROWS))
        for key in keys:
            del listener.pending[key]
        if listener.uid is not None:
            self._tell_stream(listener, now, bool(keys))
            return
        for key in keys:
            if key not in rows:
                view = self._monitor.stream(key)
                rows[key] = msgspec.Raw(_encode(view)) if view is not None else None
        recent = listener.recent
        listener.recent = self._monitor.recent_count
        has_server = listener.server is None or _content(server) != _content(listener.server)
        event = _Change(
            time=self._monitor.now,
            change=self._monitor.change,
            server=server if has_server else None,
            streams=[row for key in keys if (row := rows[key]) is not None],
            gone=[page_key(key) for key in keys if rows[key] is None],
            gateways=gateways if gateways != listener.gateways else [],
            refusals=self._monitor.refusals(recent),
            ends=self._monitor.ends(recent),
        )
        listener.server, listener.gateways = server, gateways
        is_empty = not (event.server or event.streams or event.gone or event.gateways or event.refusals or event.ends)
        if not is_empty or now - listener.sent_at >= timing.EVENTS_SILENT:
            listener.sent_at = now
            listener.send("change", _encode(event))

    def _tell_stream(self, listener: EventListener, now: float, has_changed: bool) -> None:
        if not has_changed and now - listener.sent_at < timing.EVENTS_SILENT:
            return
        assert listener.uid is not None
        listener.sent_at = now
        sides = self._monitor.sides_now(listener.uid)
        if sides is not None:
            listener.send("stream", _encode(sides))


class _Change(ChangeEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A `ChangeEvent` whose streams are already encoded, since many listeners may get them."""

    streams: list[msgspec.Raw] = msgspec.field(default_factory=list)  # type: ignore[assignment]


def _content(server: ServerView) -> ServerView:
    """Return the server without the values that differ in every answer."""
    return msgspec.structs.replace(server, time=0.0, change=0)


_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def _ignore(_key: StreamKey) -> None:
    """Nobody listens."""
