"""One gateway of an S2CS's pool: its lasting link, what room it has, and what it last said of its streams."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.links.outbox import UNSENT
from scistream.protocol.address import Address, Network, inside, parse_network
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    MAX_PAGE_KEY,
    BrokenChannel,
    ChannelFigures,
    GatewayCapacity,
    ProbeResult,
    Rel,
    ResetReason,
    Resp,
    Status,
    StreamKey,
    StreamStatus,
)
from scistream.s2cs.in_use import GatewayUse, Taken

PAGE = 20
"""Streams that a gateway is asked for at a time."""
MOST_STREAMS = 65535
"""A stream has a port of its own at least, so no gateway has more."""
MOST_RELEASES = 1000
"""Streams that live here no more, and that a gateway is asked to release at the same time."""
MOST_NAMED = 20
"""Streams without a record that one line of the log names."""
MOST_ASKED = 32
"""Users who wait for fresh figures of a gateway at the same time: whoever asks often shall not keep it busy."""


class GatewayListener(Protocol):
    """Who hears what a gateway says."""

    def figures_heard(
        self, gateway: str, boot: str, figures: Mapping[StreamKey, list[ChannelFigures]]
    ) -> dict[StreamKey, list[ChannelFigures]]:
        """What streams have carried there since they were reserved; gives what of it can be."""

    def resets_heard(self, gateway: str, resets: Mapping[StreamKey, list[ResetReason]]) -> None:
        """Why connections of streams were reset there."""

    def gateway_settled(self) -> None:
        """A gateway has said what it holds, or cannot be reached."""

    def held_by(self, gateway: str) -> Collection[StreamKey]:
        """The streams that this gateway must know of."""

    def channels_held_by(self, gateway: str, key: StreamKey) -> Collection[int]:
        """The channels that this gateway has of one of them; none of any other stream."""

    def gateway_knows(
        self, gateway: GatewayLink, boot: str, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]
    ) -> None:
        """What the gateway says of all its streams; `expected` is what `held_by` gave when it was asked."""


class GatewayLink:
    """One S2DS of the pool: its link, what room it has, and what it said of its streams last."""

    log = Logger()

    def __init__(self, server: GatewayListener, name: str, link: Dialer) -> None:
        self._server = server
        self.name = name
        self.dialer = link
        self.dialer.on_up = self._up
        self.dialer.on_down = self._down
        self.dialer.on_poll = self._compare
        self.settled = False
        """Whether it is known if there is a gateway and what room it has; not while that is being found out."""
        self.room: GatewayCapacity | None = None
        """None as long as that is not known, and while the gateway is silent."""
        self._networks: tuple[Network, ...] | None = None
        """Where ProdApp's listeners may be for this gateway; None if it has not said."""
        self._is_silent = False
        self._dialled_since: float = link.clock.seconds()
        self._was_heard = False
        self._silent_since: float | None = self._dialled_since
        """Since when there has been no link to it, or no answer; None while it answers."""
        self._is_asked = False
        """For all its streams, page by page: once at a time."""
        self._releasing: set[StreamKey] = set()
        self.figures: dict[StreamKey, list[ChannelFigures]] = {}
        self.probes: dict[StreamKey, ProbeResult] = {}
        self.broken: dict[StreamKey, list[BrokenChannel]] = {}
        self._asked = 0
        self.strangers: dict[StreamKey, Taken] = {}
        """Streams on the gateway of which the S2CS has no record."""
        self.strangers_use = GatewayUse()
        """What these streams hold there."""
        self.is_compared = False
        """Whether it has once been looked at whole since this process was started."""

    @property
    def silent_seconds(self) -> float | None:
        """For how long the gateway has not been heard; None while it answers."""
        return None if self._silent_since is None else max(0.0, self.dialer.clock.seconds() - self._silent_since)

    @property
    def answers(self) -> bool:
        """Whether there is a link to it, on which it has answered what it was asked last."""
        return self.dialer.link is not None and self._silent_since is None and self.room is not None

    @property
    def keeps_credentials(self) -> bool:
        """Whether it takes targets without credentials; an older one has no `chosen_ports` and refuses them."""
        return self.room is not None and self.room.chosen_ports is not None

    def fetch_figures(self, uid: str | None) -> Deferred[None]:
        """Ask for the figures of a stream, or of all; fires when they are here or too long in coming, and at once if
        too many have been asked for: what is known must do then."""
        if self.dialer.link is None or self._asked >= MOST_ASKED:
            return succeed(None)
        self._asked += 1
        asked = self.dialer.ask(Status(uid=uid, role=None, seq=UNSENT), timing.GATEWAY_FIGURES)
        return (
            asked.addBoth(self._no_longer_asked)
            .addCallbacks(self._note_figures, self._no_figures)
            .addErrback(self._failed)
        )

    def check_targets(self, targets: Iterable[str]) -> None:
        """Whether this gateway connects to these, as far as it has said where ProdApp's listeners may be.

        :param targets: numeric addresses.
        :raises StreamError: `target-refused`.
        """
        if self._networks is None:
            return
        for text in targets:
            numeric = Address.parse(text).numeric
            if numeric is None or not inside(numeric, self._networks):
                where = ", ".join(map(str, self._networks)) or "none"
                raise StreamError(
                    "target-refused",
                    f"{text} is outside the networks that gateway {self.name} connects to ({where}): listen on an "
                    "address inside them, or have the operator add its network to `app_networks`",
                )

    def release(self, key: StreamKey, store: str | None) -> None:
        """Release what the gateway holds of a stream that lives here no more. One that waits for its answer already is
        not asked for again, and when there are very many the rest has its turn at a later comparison."""
        if key in self._releasing or len(self._releasing) >= MOST_RELEASES:
            return
        self._releasing.add(key)
        uid, role = key
        asked = self.dialer.ask(Rel(uid=uid, role=role, seq=UNSENT, store=store), None)
        asked.addErrback(_no_answer).addBoth(lambda _: self._releasing.discard(key))

    def note_strangers(self, strangers: dict[StreamKey, Taken]) -> None:
        """Remember the streams here of which the S2CS has no record, and say so once of each."""
        news = [key for key in strangers if key not in self.strangers]
        for key in self.strangers.keys() - strangers.keys():
            self.strangers_use.drop(key)
        for key, taken in strangers.items():
            self.strangers_use.put(key, taken)
        self.strangers = strangers
        if news:
            named = ", ".join(f"{uid} ({role})" for uid, role in news[:MOST_NAMED])
            self.log.warn(
                "gateway {gateway} holds {count} streams that this S2CS has no record of, and leaves them alone: "
                "{named}{rest}. Either another S2CS uses this gateway, or `state` names another or an older store than "
                "the one under which they were reserved. `twistd s2cs --release-unknown` releases them",
                gateway=self.name,
                count=len(news),
                named=named,
                rest=" and others" if len(news) > MOST_NAMED else "",
            )

    def _up(self) -> None:
        self.log.info("gateway {gateway} is there", gateway=self.name)
        self.settled = self.room is not None
        self._compare()

    def _down(self, reason: str, permanent: bool) -> None:
        if permanent:
            self.log.error("gateway {gateway}: {reason}", gateway=self.name, reason=reason)
        self._has_been_silent(0.0)
        if self._was_heard or permanent or self._has_had_time():
            self._settle()

    def _has_had_time(self) -> bool:
        """Whether a gateway that was started together with this S2CS would be there by now."""
        return self.dialer.clock.seconds() - self._dialled_since >= timing.EARLY_REQUEST

    def _answered(self) -> None:
        self._was_heard, self._silent_since = True, None

    def _has_been_silent(self, seconds: float) -> None:
        if self._silent_since is None:
            self._silent_since = self.dialer.clock.seconds() - seconds

    def _settle(self) -> None:
        self.settled = True
        self._server.gateway_settled()

    def _compare(self) -> None:
        """Ask for all streams, page by page."""
        if not self._is_asked:
            self._next_page(set(self._server.held_by(self.name)), {}, "")

    def _next_page(self, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str) -> None:
        self._is_asked = True
        command = Status(uid=None, role=None, seq=UNSENT, after=after or None, limit=PAGE)
        asked = self.dialer.ask(command, timing.GATEWAY_STATUS)
        asked.addCallbacks(self._page, self._no_page, (expected, known, after))

    def _no_page(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        self._is_asked = False
        error = failure.value
        is_late = isinstance(error, StreamError) and error.code == "timeout"
        if is_late:
            self._has_been_silent(timing.GATEWAY_STATUS)
        if is_late and self.dialer.link is not None and not self._is_silent:
            self.log.warn("gateway {gateway} gets no new stream until it answers", gateway=self.name)
            self._is_silent, self.room = True, None
        self._settle()

    def _page(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus], after: str) -> None:
        self._answered()
        self._is_asked = False
        for status in answer.streams or []:
            known[status.uid, status.role] = status
        if not _can_be(answer, known, after):
            self.log.error("gateway {gateway} gives pages of streams that cannot be: ignored", gateway=self.name)
            self.room = None
            self._settle()
        elif answer.more is not None:
            self._next_page(expected, known, answer.more)
        else:
            try:
                self._hear_all(answer, expected, known)
            except Exception:
                self.log.failure("What gateway {gateway} says could not be taken in", gateway=self.name)
            self._settle()

    def _hear_all(self, answer: Resp, expected: set[StreamKey], known: dict[StreamKey, StreamStatus]) -> None:
        self.figures, self.probes, self.broken = {}, {}, {}
        self._hear(answer.boot or "", known.values())
        self.room = answer.room
        if answer.app_networks is not None:
            self._networks = tuple(map(parse_network, answer.app_networks))
        if self._is_silent:
            self.log.info("gateway {gateway} answers again", gateway=self.name)
            self._is_silent = False
        self._server.gateway_knows(self, answer.boot or "", expected, known)
        self.is_compared = True

    def _failed(self, failure: Failure) -> None:
        self.log.failure("What gateway {gateway} says could not be taken in", failure=failure, gateway=self.name)

    def _no_longer_asked(self, outcome: Resp | Failure) -> Resp | Failure:
        self._asked -= 1
        return outcome

    def _no_figures(self, failure: Failure) -> None:
        _no_answer(failure)
        if isinstance(failure.value, StreamError) and failure.value.code == "timeout":
            self._has_been_silent(timing.GATEWAY_FIGURES)

    def _note_figures(self, answer: Resp) -> None:
        self._answered()
        self._hear(answer.boot or "", answer.streams or [])

    def _hear(self, boot: str, streams: Collection[StreamStatus]) -> None:
        """Note what streams have carried; a gateway has no say in any that is not on it."""
        heard, resets = {}, {}
        for status in streams:
            key = (status.uid, status.role)
            channels = self._server.channels_held_by(self.name, key)
            if channels:
                told = {one.channel: one for one in status.figures if one.channel in channels}
                heard[key] = list(told.values())
                self.broken[key] = [one for one in status.broken if one.channel in channels]
                resets[key] = [one for one in status.resets if one.channel in channels]
                if status.probe is not None:
                    self.probes[key] = status.probe
        self.figures.update(self._server.figures_heard(self.name, boot, heard))
        self._server.resets_heard(self.name, resets)


def _can_be(page: Resp, known: Collection[StreamKey], after: str) -> bool:
    """Whether pages that go on like this have an end; what a gateway says takes no memory without end."""
    goes_on = page.more is None or (page.more > after and len(page.more) <= MAX_PAGE_KEY)
    return goes_on and len(page.streams or []) <= PAGE and len(known) <= MOST_STREAMS


def _no_answer(failure: Failure) -> None:
    failure.trap(StreamError, CancelledError)
