"""An application controller: keeps a link to the S2CS, says Hello for a program, and lets it start.

`Controller` carries out what the machine of a ProdApp or a ConsApp decides. It never touches the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.app.machine import Application, Core, new_consumer, new_producer
from scistream.links.link import Link
from scistream.links.outbox import UNSENT
from scistream.links.tls_links import pinned_dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, MAX_OTHER_ADDRESSES, PROD, Error, Hello, Message, Resp, StartConn
from scistream.state_machines import guarded, trace


class Program(Protocol):
    """The unchanged program."""

    def start(self, listeners: Sequence[str]) -> None:
        """Start it; a consumer connects to these listeners. It starts at most once."""

    def ended(self, reactor: Any) -> Deferred[None]:
        """Fires when the program is gone, or will not start any more. Asked once."""


class Nobody:
    """Stands for a program that somebody else starts: all that is asked for is where it connects."""

    def __init__(self) -> None:
        self.listeners: list[str] = []
        self._told: Deferred[None] = Deferred()

    def start(self, listeners: Sequence[str]) -> None:
        """Keep the listeners; that is all."""
        self.listeners = list(listeners)
        self._told.callback(None)

    def ended(self, _reactor: Any) -> Deferred[None]:
        """Fires when the listeners are known."""
        return self._told


class Controller:
    """Says Hello for one application of one stream.

    :param reactor: the reactor, with monotonic timers.
    :param join: what the join string says.
    :param listeners: where ProdApp listens; a wildcard host becomes the address that we reach the S2CS from.
    :param program: what is to be started.
    :param note: gets sentences for the user: what is waited for, and that the stream ended before the program.
    :param others: of a listener that was given by name, its other addresses.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        join: Join,
        listeners: Sequence[Address],
        program: Program,
        note: Callable[[str], None],
        others: Mapping[Address, Sequence[Address]] | None = None,
    ) -> None:
        self._other_addresses = _as_many_as_may_be(others or {})
        if sum(map(len, self._other_addresses.values())) < sum(map(len, (others or {}).values())):
            note(
                f"{MAX_OTHER_ADDRESSES} other addresses of names are told at most: the later listeners are looked for "
                "at the first address of their name alone. Give their addresses in place of the name"
            )
        self._reactor = reactor
        self._join = join
        self._listeners = listeners
        self._program = program
        self._note = note
        guarded_self = guarded(self, self.log, self._faulted, join.uid)
        self._guarded = guarded_self
        self._core = Core(guarded_self)
        self.machine: Application = (new_producer if join.role == PROD else new_consumer)(self._core)
        trace(self.machine, self.log, party="app", uid=join.uid, role=join.role)
        self._dialer = pinned_dialer(reactor, join.server, f"the S2CS at {join.server}", join.ca)
        self._dialer.on_up = guarded_self._up
        self._dialer.on_down = guarded_self._down
        self._dialer.on_poll = guarded_self._hello_if_answered
        self._dialer.on_message = guarded_self._heard
        self._told: list[str] | None = None
        self._said = ""
        self._greeted = False
        self._started = False
        self._is_missed = False
        self._give_up_at = 0.0
        self._hello: Deferred[Any] | None = None
        self._remark: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._finished: Deferred[StreamError | None] = Deferred(self._cancelled)
        self._closed: Deferred[None] = succeed(None)

    def run(self) -> Deferred[StreamError | None]:
        """Do it all; fires with None when the program has ended, or with the reason why the stream ended before it.

        :raises StreamError: if the S2CS refuses, or the stream ends before the application could start.
        """
        self._give_up_at = self._reactor.seconds() + timing.HELLO
        self._ended = self._program.ended(self._reactor)
        self._ended.addCallback(self._guarded._program_ended)
        self._remark_later(f"waiting for an answer of the S2CS at {self._join.server}, {timing.HELLO:g} s at most")
        self._dialer.startService()
        self.machine.start()
        return self._finished

    # -- Effects

    def say_hello(self) -> None:
        self._ask_hello()

    def serve(self) -> None:
        self._go_on([])

    def connect(self, listeners: list[str]) -> None:
        self._go_on(listeners)

    def finish(self, error: StreamError | None) -> None:
        if error is None or self._finished.called:
            return
        if self._started:
            self._note(f"the stream has ended ({error}); the program goes on")
        self._end(error)

    def _go_on(self, listeners: list[str]) -> None:
        """The application may begin."""
        self._stop_remark()
        self._program.start(listeners)
        self._started = True

    # -- the link

    def _ask_hello(self) -> None:
        if self._hello is not None:
            self._hello.cancel()
        told = self._listeners_to_tell()
        others = {one: self._other_addresses[one] for one in told or () if one in self._other_addresses}
        hello = Hello(
            uid=self._join.uid,
            role=self._join.role,
            seq=UNSENT,
            app_key=self._join.app_key,
            listeners=told,
            other_addresses=others or None,
        )
        timeout = None if self._greeted else max(0.0, self._give_up_at - self._reactor.seconds())
        self._hello = self._dialer.ask(hello, timeout)
        self._hello.addCallbacks(self._guarded._welcomed, self._guarded._refused)

    def _listeners_to_tell(self) -> list[str] | None:
        """A producer's listeners; once the S2CS knows them they stay as they are."""
        if self._join.role != PROD:
            return None
        if not self._greeted:
            self._told = [str(one) for one in self._reachable()]
        return self._told

    def _reachable(self) -> list[Address]:
        """The listeners as others reach them."""
        link = self._dialer.link
        own = link.transport.getHost().host if link is not None else None
        return [
            Address(own, one.port)
            if own is not None and one.numeric is not None and one.numeric.is_unspecified
            else one
            for one in self._listeners
        ]

    def _up(self) -> None:
        """Say at once who is there: the S2CS may have forgotten our link, or lost its StartConn."""
        if self._is_missed and not self._started:
            self._note(f"the link to the S2CS at {self._join.server} is back; waiting on")
        self._is_missed = False
        if self._hello is not None and not self._finished.called:
            self._ask_hello()

    def _hello_if_answered(self) -> None:
        """While we wait for StartConn; a Hello without an answer is repeated by the link itself."""
        if self._hello is not None and self._hello.called and not self._started and not self._finished.called:
            self._ask_hello()

    def _welcomed(self, answer: Resp) -> None:
        self._stop_remark()
        self._greeted = True
        self._note_answer(answer.msg)
        if self._join.role == CONS and not self._started:
            self._remark_later(
                f"the facility knows this consumer; waiting until its stream is ready (it is {answer.state})"
            )
        self.machine.welcomed()

    def _note_answer(self, msg: str) -> None:
        """Note what the S2CS says beyond "welcome", once."""
        said = printable(msg).removeprefix("welcome").removeprefix("; ")
        if said not in ("", self._said):
            self._note(said)
        self._said = said

    def _refused(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        if isinstance(failure.value, StreamError) and failure.value.code != "shutting-down":
            self.machine.failed(failure.value)

    def _down(self, reason: str, permanent: bool) -> None:
        if self._started or self._finished.called:
            return  # there is nothing left to wait for
        if permanent:
            self.machine.failed(StreamError("not-authenticated", f"the S2CS at {self._join.server}: {reason}"))
        elif not self._is_missed:
            self._is_missed = True
            seconds = self._give_up_at - self._reactor.seconds()
            until = "until it is back" if self._greeted else f"for {max(seconds, 0.0):.0f} s"
            self._note(f"no link to the S2CS at {self._join.server}: {reason}; trying again {until}")

    def _heard(self, link: Link, message: Message) -> None:
        if isinstance(message, StartConn) and message.uid == self._join.uid:
            link.answer(message, "Connected", "connecting")
            self.machine.start_conn(message.listeners)
        elif isinstance(message, Error) and message.uid == self._join.uid:
            self._consider(StreamError.heard(message.code, message.msg))

    def _consider(self, error: StreamError) -> None:
        """An ERROR that answers nothing is the end, unless it tells a producer that its listeners are not used."""
        if self._join.role == PROD and self._greeted and error.code == "target-refused":
            self._note(f"the stream goes on ({error})")
        else:
            self.machine.failed(error)

    # -- the end

    def closed(self) -> Deferred[None]:
        """Fires when the link is closed that was there when `run` came to its end."""
        return self._closed

    def _program_ended(self, _: None) -> None:
        self._ended = None
        self.machine.done()
        if not self._finished.called:
            self._end(None)

    def _end(self, error: StreamError | None) -> None:
        self._stop()
        self._settle(error)

    def _settle(self, error: StreamError | None) -> None:
        if error is None or self._started:
            self._finished.callback(error)
        else:
            self._finished.errback(Failure(error))

    def _faulted(self, name: str, _error: StreamError) -> None:
        """Something here has raised what it may not: the application does not wait for what will never come.

        It ends in a turn of the reactor of its own, since the link may be in the middle of something.
        """
        error = StreamError("wrong-state", f"`{name}` failed here, by a fault of SciStream itself: the log shows it")
        self._reactor.callLater(0, self._guarded._end_by_fault, error)

    def _end_by_fault(self, error: StreamError) -> None:
        if self._finished.called:
            return
        self.machine.failed(error)
        if not self._finished.called:  # it is the end itself that fails
            self._settle(error)
            self._stop()

    def _stop(self) -> None:
        self._stop_remark()
        if self._dialer.running:
            self._closed = self._dialer.stopService()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.addErrback(lambda failure: failure.trap(CancelledError))
            ended.cancel()

    def _cancelled(self, _finished: Deferred[StreamError | None]) -> None:
        self._stop()

    # -- remarks

    def _remark_later(self, sentence: str) -> None:
        """Say what is waited for, if that takes a while."""
        self._stop_remark()
        self._remark = self._reactor.callLater(timing.APP_SILENCE, self._note, sentence)

    def _stop_remark(self) -> None:
        if self._remark is not None and self._remark.active():
            self._remark.cancel()


def _as_many_as_may_be(others: Mapping[Address, Sequence[Address]]) -> dict[str, list[str]]:
    """The first of the other addresses, as many as a Hello takes."""
    left = MAX_OTHER_ADDRESSES
    first = {}
    for one, rest in others.items():
        if left and rest:
            first[str(one)] = list(map(str, rest[:left]))
            left -= len(first[str(one)])
    return first
