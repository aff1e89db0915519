"""One gateway of an S2CS's pool: its lasting link, what room it has, and what it last said of its streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream.wire.errors import StreamError
from scistream.wire.link import UNSENT, Dialer
from scistream.wire.messages import ChannelFigures, ProbeResult, Rel, Resp, Room, Status, StreamKey, StreamStatus

STATUS_PATIENCE = 20.0
FIGURES_PATIENCE = 2.0


class Listener(Protocol):
    """Who hears what a gateway says."""

    def figures_heard(self, gateway: str, boot: str, figures: Mapping[StreamKey, list[ChannelFigures]]) -> None:
        """What streams have carried there since they were reserved."""

    def gateway_settled(self) -> None:
        """A gateway has said what it holds, or cannot be reached."""

    def held_by(self, gateway: str) -> set[StreamKey]:
        """The streams that this gateway must know of."""

    def gateway_knows(
        self, gateway: Gateway, boot: str, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]
    ) -> None:
        """What the gateway says of all its streams; `expected` is what `held_by` gave when it was asked."""


class Gateway:
    """One S2DS of the pool: its link, what room it has, and what it said of its streams last."""

    log = Logger()

    def __init__(self, server: Listener, name: str, link: Dialer) -> None:
        self._server = server
        self.name = name
        self.dialer = link
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self.dialer.on_poll = self._compare
        self.settled = False
        """Whether it is known if there is a gateway and what room it has; not while that is being found out."""
        self.room: Room | None = None
        """None as long as that is not known, and while the gateway is silent."""
        self._is_silent = False
        self.figures: dict[StreamKey, list[ChannelFigures]] = {}
        self.probes: dict[StreamKey, ProbeResult] = {}

    def fetch_figures(self, uid: str | None) -> Deferred[None]:
        """Ask for the figures of a stream, or of all; fires when they are here or too long in coming."""
        if self.dialer.link is None:
            return succeed(None)
        asked = self.dialer.ask(Status(uid=uid, role=None, seq=UNSENT), FIGURES_PATIENCE)
        return asked.addCallbacks(self._note_figures, _no_figures)

    def release(self, key: StreamKey) -> None:
        """Release what the gateway holds of a stream that nobody here knows."""
        uid, role = key
        self.dialer.ask(Rel(uid=uid, role=role, seq=UNSENT), None).addErrback(_no_figures)

    def _up(self) -> None:
        self.log.info("gateway {gateway} is there", gateway=self.name)
        self.settled = self.room is not None
        self._compare()

    def _down(self, trouble: str, hopeless: bool) -> None:
        if hopeless:
            self.log.error("gateway {gateway}: {trouble}", gateway=self.name, trouble=trouble)
        self._settle()

    def _settle(self) -> None:
        self.settled = True
        self._server.gateway_settled()

    def _compare(self) -> None:
        """Ask for all streams, page by page."""
        self._next_page(self._server.held_by(self.name), {}, None)

    def _next_page(self, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str | None) -> None:
        asked = self.dialer.ask(Status(uid=None, role=None, seq=UNSENT, after=after), STATUS_PATIENCE)
        asked.addCallbacks(self._page, self._no_page, (expected, known))

    def _no_page(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        error = failure.value
        is_late = isinstance(error, StreamError) and error.code == "timeout"
        if is_late and self.dialer.link is not None and not self._is_silent:
            self.log.warn("gateway {gateway} gets no new stream until it answers", gateway=self.name)
            self._is_silent, self.room = True, None
        self._settle()

    def _page(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]) -> None:
        for status in answer.streams or []:
            known[status.uid, status.role] = status
        if answer.more is not None:
            self._next_page(expected, known, answer.more)
            return
        self.figures = {key: status.figures for key, status in known.items()}
        self._server.figures_heard(self.name, answer.boot or "", self.figures)
        self.probes = {key: status.probe for key, status in known.items() if status.probe is not None}
        self.room = answer.room
        if self._is_silent:
            self.log.info("gateway {gateway} answers again", gateway=self.name)
            self._is_silent = False
        self._server.gateway_knows(self, answer.boot or "", expected, known)
        self._settle()

    def _note_figures(self, answer: Resp) -> None:
        heard = {(status.uid, status.role): status.figures for status in answer.streams or []}
        self.figures.update(heard)
        self._server.figures_heard(self.name, answer.boot or "", heard)
        for status in answer.streams or []:
            if status.probe is not None:
                self.probes[status.uid, status.role] = status.probe


def _no_figures(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)
