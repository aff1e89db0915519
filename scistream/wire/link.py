"""Links that last: commands paired with answers, repeated until answered, over connections that come and go.

`Outbox` holds the commands that wait for an answer and outlives any one connection.
`Dialer` is the service of a party that dials: it reconnects for ever and owns an outbox.
Protocol sections 7.3 (repetition) and 7.5 (reconnecting) are implemented here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
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
from scistream.logs import Tally
from scistream.wire.errors import StreamError
from scistream.wire.line import Lasts, Link
from scistream.wire.messages import (
    Answer,
    Command,
    Error,
    Message,
    Rel,
    Req,
    ReqListeners,
    Resp,
    UpdateTargets,
)

UNSENT = 0
"""The `seq` of a command that no link has numbered yet."""


@dataclass(frozen=True)
class Caller:
    """Who waits for an answer: a link, the number that the command has on it, and the command's name."""

    link: Link
    seq: int
    cmd: str = ""


def still_working(command: Command, answer: Resp) -> bool:
    """Whether this answer only says that the command is being carried out: the final one will follow."""
    if isinstance(command, Req | ReqListeners):
        return answer.state == "Reserving"
    if isinstance(command, UpdateTargets):
        return answer.state == "Updating"
    return isinstance(command, Rel) and answer.state == "Releasing"


@dataclass(eq=False)
class _Waiting:
    """One command without its final answer."""

    command: Command
    result: Deferred[Resp]
    patience: float | None
    next_repeat: float = field(default_factory=lambda: timing.FIRST_REPEAT)
    sent_as: set[int] = field(default_factory=set)
    repeat: IDelayedCall | None = None
    give_up: IDelayedCall | None = None


class Outbox:
    """The commands to one peer that wait for their answers.

    A command is repeated at once when a link comes up, otherwise after 2 s, doubling to 10 s, until it is
    answered, given up or cancelled.

    :param clock: for repetition and giving up.
    :param peer_name: how errors call the peer.
    """

    def __init__(self, clock: IReactorTime, peer_name: str) -> None:
        self._clock = clock
        self._link: Link | None = None
        self._waiting: dict[_Waiting, None] = {}
        self._sent: dict[int, _Waiting] = {}
        """By the numbers that the link has given them."""
        self.peer_name = peer_name
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, command: Command, patience: float | None) -> Deferred[Resp]:
        """Send a command until it is answered.

        :param command: with any `seq`: each sending gets the link's next one.
        :param patience: seconds after which it is given up; each answer that says that the work goes on
            starts them anew. None: never.
        :returns: fires with the final RESP, or fails with the StreamError of an ERROR, with `timeout` when given
            up, or with CancelledError when cancelled.
        """
        waiting = _Waiting(command, Deferred(lambda _: self._finish(waiting)), patience)
        self._waiting[waiting] = None
        self._restart_patience(waiting)
        self._send(waiting)
        return waiting.result

    def link_up(self, link: Link) -> None:
        """Send all that waits on this link from now on."""
        self._link = link
        self.trouble = ""
        self._sent.clear()
        for waiting in list(self._waiting):
            waiting.sent_as.clear()
            waiting.next_repeat = timing.FIRST_REPEAT
            self._send(waiting)

    def link_down(self, trouble: str) -> None:
        """The link is gone; `trouble` says why, for the error of a command that is given up."""
        self._link = None
        self.trouble = trouble
        self._sent.clear()
        for waiting in self._waiting:
            waiting.sent_as.clear()
            _cancel(waiting.repeat)

    def close(self, error: StreamError) -> None:
        """Fail all that waits: nobody will answer any more."""
        self._link = None
        for waiting in list(self._waiting):
            if waiting in self._waiting:  # the failure of one may have cancelled another
                self._finish(waiting)
                waiting.result.errback(Failure(error))

    def answered(self, answer: Answer) -> bool:
        """Pair an answer with its command; False if none waits for it."""
        waiting = self._sent.get(answer.seq) if answer.seq is not None else None
        if waiting is None:
            return False
        self._settle(waiting, answer)
        return True

    def _settle(self, waiting: _Waiting, answer: Answer) -> None:
        if isinstance(answer, Resp) and still_working(waiting.command, answer):
            self._restart_patience(waiting)
            return
        self._finish(waiting)
        if isinstance(answer, Error):
            waiting.result.errback(Failure(StreamError.heard(answer.code, answer.msg)))
        else:
            waiting.result.callback(answer)

    def _send(self, waiting: _Waiting) -> None:
        _cancel(waiting.repeat)
        if self._link is None:
            return
        seq = self._link.send_command(waiting.command)
        waiting.sent_as.add(seq)
        self._sent[seq] = waiting
        waiting.repeat = self._clock.callLater(waiting.next_repeat, self._send, waiting)
        waiting.next_repeat = min(waiting.next_repeat * 2, timing.LONGEST_REPEAT)

    def _restart_patience(self, waiting: _Waiting) -> None:
        _cancel(waiting.give_up)
        if waiting.patience is not None:
            waiting.give_up = self._clock.callLater(waiting.patience, self._give_up, waiting)

    def _give_up(self, waiting: _Waiting) -> None:
        self._finish(waiting)
        name = command_name(waiting.command)
        msg = f"{self.peer_name} did not answer {name} in {waiting.patience:.3g} s"
        if self.trouble:
            msg += f": {self.trouble}"
        waiting.result.errback(Failure(StreamError("timeout", msg)))

    def _finish(self, waiting: _Waiting) -> None:
        _cancel(waiting.repeat)
        _cancel(waiting.give_up)
        for seq in waiting.sent_as:
            self._sent.pop(seq, None)
        del self._waiting[waiting]


def command_name(message: Message) -> str:
    """The `cmd` of a message."""
    return str(message.__struct_config__.tag)


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()


class LinkFactory(Factory):
    """Makes a `Link` for each connection.

    :param build: gives the link of a new connection, or None to refuse it.
    """

    noisy = False

    def __init__(self, build: Callable[[IAddress | None], Link | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Link | None:
        return self._build(addr)


class Dialer(Service):
    """The lasting link of a party that dials.

    Set the `on_...` callables to hear of it. The delay before the next try doubles from 0.2 s to 5 s, with
    jitter, and starts anew at a valid line: a peer that accepts and says nothing is no success.

    :param endpoint: where to connect, TLS included.
    :param clock: for delays and time limits.
    :param peer_name: how logs and errors call the peer.
    :param authenticate: as for `Link`.
    :param explain: turns the reason of a lost connection into a sentence.
    :param lasts: as for `Link`.
    :param is_hopeless: tells from the reason whether dialling again cannot help; it is done all the same, since
        an operator may mend it, but `on_down` hears of it.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        peer_name: str,
        authenticate: Callable[[Any], Any] | None,
        explain: Callable[[Failure], str],
        is_hopeless: Callable[[Failure], bool],
        lasts: Lasts | None = None,
    ) -> None:
        self.clock = clock
        self.outbox = Outbox(clock, peer_name)
        self.link: Link | None = None
        self.on_up: Callable[[], None] = _nothing
        self.on_down: Callable[[str, bool], None] = _ignore
        self.on_poll: Callable[[], None] = _nothing
        self.on_message: Callable[[Link, Message], None] = _ignore_message
        self._explain = explain
        self._is_hopeless = is_hopeless
        self._failures = 0
        self._troubles: Tally[str] = Tally(clock, self._tell, "other troubles")
        self._poll: IDelayedCall | None = None
        factory = LinkFactory(lambda _address: Link(self, clock, authenticate, accepted=False, lasts=lasts))
        self._client = _Client(endpoint, factory, self._delay, clock, self._troubled, peer_name)

    @property
    def peer_name(self) -> str:
        """How logs and errors call the peer."""
        return self.outbox.peer_name

    def startService(self) -> None:
        super().startService()
        self._client.startService()
        self._poll = self.clock.callLater(timing.POLL, self._polled)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        _cancel(self._poll)
        self._troubles.stop()
        self.outbox.close(StreamError("shutting-down", f"the link to {self.peer_name} was closed"))
        if self.link is not None:
            self.link.close()
        return self._client.stopService()

    def ask(self, command: Command, patience: float | None) -> Deferred[Resp]:
        """Send a command until it is answered; see `Outbox.ask`."""
        return self.outbox.ask(command, patience)

    # -- LinkOwner

    def link_up(self, link: Link) -> None:
        self.link = link
        self.on_up()  # first, since it may ask anew what still waits to be sent
        self.outbox.link_up(link)

    def link_down(self, link: Link, reason: Failure) -> None:
        if self.link is link:
            self.link = None
        self._troubled(reason)

    def message_received(self, link: Link, message: Message) -> None:
        self._failures = 0
        self.on_message(link, message)

    def answer_received(self, link: Link, answer: Answer) -> None:
        self._failures = 0
        if not self.outbox.answered(answer) and isinstance(answer, Error):
            self.on_message(link, answer)

    # -- inside

    def _troubled(self, reason: Failure) -> None:
        trouble = self._explain(reason)
        if self.running:
            self._troubles.add(trouble)
        self.outbox.link_down(trouble)
        self.on_down(trouble, self._is_hopeless(reason))

    def _tell(self, trouble: str, count: int, _last: str) -> None:
        times = f" ({count} times)" if count > 1 else ""
        self._log.info(
            "no link to {peer_name}: {trouble}{times}", peer_name=self.peer_name, trouble=trouble, times=times
        )

    def _delay(self, _attempts: int) -> float:
        self._failures += 1
        delay = min(timing.FIRST_RECONNECT * 2.0 ** min(self._failures - 1, 10), timing.LONGEST_RECONNECT)
        return delay * random.uniform(0.5, 1.0)

    def _polled(self) -> None:
        self._poll = self.clock.callLater(timing.POLL, self._polled)
        if self.link is not None:
            self.on_poll()


@implementer(ILogObserver)
def _only_trouble(event: LogEvent) -> None:
    """Hand on what is more than the course of things."""
    if event["log_level"] >= LogLevel.warn:
        globalLogPublisher(event)


class _Client(ClientService):
    """A ClientService that also tells why it could not connect. Each try by itself is worth no line of the log."""

    _log = Logger(observer=_only_trouble)

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        factory: IProtocolFactory,
        delay: Callable[[int], float],
        clock: IReactorTime,
        failed: Callable[[Failure], None],
        peer_name: str,
    ) -> None:
        super().__init__(_Telling(endpoint, failed, peer_name), factory, delay, clock)


@implementer(IStreamClientEndpoint)
class _Telling:
    """An endpoint that reports each failure to connect."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[Failure], None], name: str) -> None:
        self._endpoint = endpoint
        self._failed = failed
        self._name = name

    def __repr__(self) -> str:
        """How Twisted's log calls it."""
        return self._name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        def report(reason: Failure) -> Failure:
            self._failed(reason)
            return reason

        return self._endpoint.connect(protocolFactory).addErrback(report)


def _nothing() -> None:
    """Nobody asked to hear of it."""


def _ignore(_trouble: str, _hopeless: bool) -> None:
    """Nobody asked to hear of it."""


def _ignore_message(_link: Link, _message: Message) -> None:
    """Nobody asked to hear of it."""
