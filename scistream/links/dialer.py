"""Lasting links: a service that reconnects without end and owns an outbox."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing
from scistream.links.link import CredentialExpiry, Link
from scistream.links.outbox import Outbox, cancel_call
from scistream.logs import Tally
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Answer, Command, Error, Message, Resp


class LinkFactory(Factory):
    """Builds a `Link` for each connection.

    :param build: returns the link of a new connection, or None to refuse it.
    """

    noisy = False

    def __init__(self, build: Callable[[IAddress | None], Link | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Link | None:
        """Return what `build` returns."""
        return self._build(addr)


class Dialer(Service):
    """The lasting link of a party that connects to another.

    Set the `on_...` callables to be told about its events. The delay before the next attempt grows from 0.2 s to 5 s,
    with jitter. Only a valid line resets it: a peer that accepts and sends nothing counts as a failure.

    :param endpoint: where to connect, including TLS.
    :param clock: for delays and time limits.
    :param peer_name: the name of the peer in logs and errors.
    :param authenticate: as for `Link`.
    :param explain: turns the reason of a lost connection into a sentence.
    :param is_permanent: returns True if connecting again cannot succeed until an operator has changed something.
        The dialer goes on trying, but passes the result to `on_down`.
    :param expiry: as for `Link`.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        peer_name: str,
        authenticate: Callable[[Any], Any] | None,
        explain: Callable[[Failure], str],
        is_permanent: Callable[[Failure], bool],
        expiry: CredentialExpiry | None = None,
    ) -> None:
        self.clock = clock
        self.outbox = Outbox(clock, peer_name)
        self.link: Link | None = None
        self.on_up: Callable[[], None] = _nothing
        self.on_down: Callable[[str, bool], None] = _ignore
        self.on_poll: Callable[[], None] = _nothing
        self.on_message: Callable[[Link, Message], None] = _ignore_message
        self._explain = explain
        self._is_permanent = is_permanent
        self._failures = 0
        self._reasons: Tally[str] = Tally(clock, self._log_reason, "other reasons")
        self._poll: IDelayedCall | None = None
        factory = LinkFactory(lambda _address: Link(self, clock, authenticate, accepted=False, expiry=expiry))
        self._client = _Client(endpoint, factory, self._delay, clock, self._link_failed, peer_name)

    @property
    def peer_name(self) -> str:
        """The name of the peer in logs and errors."""
        return self.outbox.peer_name

    def startService(self) -> None:
        """Connect, and keep reconnecting."""
        super().startService()
        self._client.startService()
        self._poll = self.clock.callLater(timing.POLL, self._poll_peer)

    def stopService(self) -> Deferred[None]:
        """Close the link and fail all waiting commands; the Deferred fires when the connection is closed."""
        super().stopService()
        cancel_call(self._poll)
        self._reasons.stop()
        self.outbox.close(StreamError("shutting-down", f"the link to {self.peer_name} was closed"))
        if self.link is not None:
            self.link.close()
        return self._client.stopService()

    def ask(self, command: Command, timeout: float | None) -> Deferred[Resp]:
        """Send a command until it is answered; see `Outbox.ask`."""
        return self.outbox.ask(command, timeout)

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        """Use `link` from now on, and send all waiting commands."""
        self.link = link
        self.on_up()  # first, since it may replace commands that are waiting to be sent
        self.outbox.link_up(link)

    def link_down(self, link: Link, reason: Failure) -> None:
        """Report the loss of the link."""
        if self.link is link:
            self.link = None
        self._link_failed(reason)

    def message_received(self, link: Link, message: Message) -> None:
        """Pass a message to `on_message`."""
        self._failures = 0
        self.on_message(link, message)

    def answer_received(self, link: Link, answer: Answer) -> None:
        """Pass an answer to its command, or to `on_message` if it is an ERROR that answers none."""
        self._failures = 0
        if not self.outbox.answered(answer) and isinstance(answer, Error):
            self.on_message(link, answer)

    # -- inside

    def _link_failed(self, failure: Failure) -> None:
        reason = self._explain(failure)
        if self.running:
            self._reasons.add(reason)
        self.outbox.link_down(reason)
        self.on_down(reason, self._is_permanent(failure))

    def _log_reason(self, reason: str, count: int, _last: str) -> None:
        times = f" ({count} times)" if count > 1 else ""
        self._log.info("no link to {peer_name}: {reason}{times}", peer_name=self.peer_name, reason=reason, times=times)

    def _delay(self, _attempts: int) -> float:
        self._failures += 1
        delay = min(timing.FIRST_RECONNECT * 2.0 ** min(self._failures - 1, 10), timing.LONGEST_RECONNECT)
        return delay * random.uniform(0.5, 1.0)

    def _poll_peer(self) -> None:
        self._poll = self.clock.callLater(timing.POLL, self._poll_peer)
        if self.link is not None:
            self.on_poll()


@implementer(ILogObserver)
def _warnings_only(event: LogEvent) -> None:
    """Pass on warnings and errors only."""
    if event["log_level"] >= LogLevel.warn:
        globalLogPublisher(event)


class _Client(ClientService):
    """A ClientService that reports why it could not connect, and does not log each attempt."""

    _log = Logger(observer=_warnings_only)

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        factory: IProtocolFactory,
        delay: Callable[[int], float],
        clock: IReactorTime,
        failed: Callable[[Failure], None],
        peer_name: str,
    ) -> None:
        super().__init__(_ReportingEndpoint(endpoint, failed, peer_name), factory, delay, clock)


@implementer(IStreamClientEndpoint)
class _ReportingEndpoint:
    """An endpoint that reports each failure to connect."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[Failure], None], name: str) -> None:
        self._endpoint = endpoint
        self._failed = failed
        self._name = name

    def __repr__(self) -> str:
        """Return the name of the peer, for Twisted's log."""
        return self._name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect, and report a failure before passing it on."""

        def report(reason: Failure) -> Failure:
            self._failed(reason)
            return reason

        return self._endpoint.connect(protocolFactory).addErrback(report)


def _nothing() -> None:
    """Do nothing, where no callback is set."""


def _ignore(_reason: str, _permanent: bool) -> None:
    """Do nothing, where no callback is set."""


def _ignore_message(_link: Link, _message: Message) -> None:
    """Do nothing, where no callback is set."""
