"""An application controller: it keeps a link to the S2CS, says Hello for a program, and starts the program.

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
from scistream.links.tls_links import pinned_dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, MAX_OTHER_ADDRESSES, PROD, UNSENT, Error, Hello, Message, Resp, StartConn
from scistream.state_machines import guarded, trace


class Program(Protocol):
    """The unchanged program."""

    def start(self, listeners: Sequence[str]) -> None:
        """Start the program; called once at most.

        :param listeners: the HOST:PORT to which a consumer connects, one for each channel; empty for a producer.
        """

    def ended(self, reactor: Any) -> Deferred[None]:
        """Return a Deferred that fires when the program has ended, or will not be started. Called once."""


class NoProgram:
    """A stand-in for a program that the controller does not start. It only stores where to connect."""

    def __init__(self) -> None:
        self.listeners: list[str] = []
        self._done: Deferred[None] = Deferred()

    def start(self, listeners: Sequence[str]) -> None:
        """Store the listeners."""
        self.listeners = list(listeners)
        self._done.callback(None)

    def ended(self, _reactor: Any) -> Deferred[None]:
        """Return a Deferred that fires when the listeners are known."""
        return self._done


class Controller:
    """The controller of one application in one stream.

    :param reactor: the reactor, with monotonic timers.
    :param join: the parsed join string.
    :param listeners: where ProdApp listens. A wildcard host is replaced by the address from which this machine
        reaches the S2CS.
    :param program: the program to start.
    :param note: called with sentences for the user: what the controller waits for, and how the stream ended.
    :param others: for each listener that was given by name, the other addresses of the name.
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
        self._other_addresses = _within_limit(others or {})
        if sum(map(len, self._other_addresses.values())) < sum(map(len, (others or {}).values())):
            note(
                f"the names of the listeners have more than {MAX_OTHER_ADDRESSES} further addresses, so that only the "
                "first address of some names is used: give --listen with addresses instead of names"
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
        self._announced: list[str] | None = None
        """The listeners in the last Hello."""
        self._last_note = ""
        self._hello_answered = False
        self._started = False
        self._link_lost = False
        self._give_up_at = 0.0
        self._hello: Deferred[Any] | None = None
        self._waiting_note: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._finished: Deferred[StreamError | None] = Deferred(self._cancelled)
        self._closed: Deferred[None] = succeed(None)

    def run(self) -> Deferred[StreamError | None]:
        """Join the stream, start the program, and stay until the program or the stream ends.

        :returns: fires with None when the program has ended, or with the reason if the stream ended before that.
        :raises StreamError: if the S2CS refuses, or the stream ends before the program is started.
        """
        self._give_up_at = self._reactor.seconds() + timing.HELLO
        self._ended = self._program.ended(self._reactor)
        self._ended.addCallback(self._guarded._program_ended)
        self._note_later(f"waiting for an answer from the S2CS at {self._join.server}, for at most {timing.HELLO:g} s")
        self._dialer.startService()
        self.machine.start()
        return self._finished

    # -- Effects

    def say_hello(self) -> None:
        """Say Hello to the S2CS until it answers."""
        self._send_hello()

    def serve(self) -> None:
        """Start a producer."""
        self._start_program([])

    def connect(self, listeners: list[str]) -> None:
        """Start a consumer, which connects to these listeners."""
        self._start_program(listeners)

    def finish(self, error: StreamError | None) -> None:
        """Close the link, with the error if the stream has failed. A program that runs continues."""
        if error is None or self._finished.called:
            return
        if self._started:
            self._note(f"the stream has ended ({error}); the program continues")
        self._end(error)

    def _start_program(self, listeners: list[str]) -> None:
        self._cancel_note()
        self._program.start(listeners)
        self._started = True

    # -- the link

    def _send_hello(self) -> None:
        if self._hello is not None:
            self._hello.cancel()
        listeners = self._listeners_to_announce()
        others = {one: self._other_addresses[one] for one in listeners or () if one in self._other_addresses}
        hello = Hello(
            uid=self._join.uid,
            role=self._join.role,
            seq=UNSENT,
            app_key=self._join.app_key,
            listeners=listeners,
            other_addresses=others or None,
        )
        timeout = None if self._hello_answered else max(0.0, self._give_up_at - self._reactor.seconds())
        self._hello = self._dialer.ask(hello, timeout)
        self._hello.addCallbacks(self._guarded._welcomed, self._guarded._refused)

    def _listeners_to_announce(self) -> list[str] | None:
        """Return a producer's listeners. They do not change any more once the S2CS knows them."""
        if self._join.role != PROD:
            return None
        if not self._hello_answered:
            self._announced = [str(address) for address in self._reachable_listeners()]
        return self._announced

    def _reachable_listeners(self) -> list[Address]:
        """Return the listeners with this machine's address in place of a wildcard host."""
        link = self._dialer.link
        own = link.transport.getHost().host if link is not None else None
        return [
            Address(own, one.port)
            if own is not None and one.numeric is not None and one.numeric.is_unspecified
            else one
            for one in self._listeners
        ]

    def _up(self) -> None:
        """Say Hello on the new link: the S2CS may have forgotten the old one, or its StartConn was lost."""
        if self._link_lost and not self._started:
            self._note(f"the link to the S2CS at {self._join.server} is back; still waiting")
        self._link_lost = False
        if self._hello is not None and not self._finished.called:
            self._send_hello()

    def _hello_if_answered(self) -> None:
        """Repeat Hello while waiting for StartConn. The link itself repeats a Hello that has no answer."""
        if self._hello is not None and self._hello.called and not self._started and not self._finished.called:
            self._send_hello()

    def _welcomed(self, answer: Resp) -> None:
        self._cancel_note()
        self._hello_answered = True
        self._note_answer(answer.msg)
        if self._join.role == CONS and not self._started:
            self._note_later(
                f"the facility knows this consumer; waiting until its stream is ready (now {answer.state})"
            )
        self.machine.welcomed()

    def _note_answer(self, msg: str) -> None:
        """Pass on what the S2CS says besides "welcome", unless it has said the same before."""
        text = printable(msg).removeprefix("welcome").removeprefix("; ")
        if text not in ("", self._last_note):
            self._note(text)
        self._last_note = text

    def _refused(self, failure: Failure) -> None:
        failure.trap(StreamError, CancelledError)
        if isinstance(failure.value, StreamError) and failure.value.code != "shutting-down":
            self.machine.failed(failure.value)

    def _down(self, reason: str, permanent: bool) -> None:
        if self._started or self._finished.called:
            return
        if permanent:
            self.machine.failed(StreamError("not-authenticated", f"the S2CS at {self._join.server}: {reason}"))
        elif not self._link_lost:
            self._link_lost = True
            seconds = self._give_up_at - self._reactor.seconds()
            until = "until it is back" if self._hello_answered else f"for {max(seconds, 0.0):.0f} s"
            self._note(f"no link to the S2CS at {self._join.server}: {reason}; trying again {until}")

    def _heard(self, link: Link, message: Message) -> None:
        if isinstance(message, StartConn) and message.uid == self._join.uid:
            link.answer(message, "Connected", "connecting")
            self.machine.start_conn(message.listeners)
        elif isinstance(message, Error) and message.uid == self._join.uid:
            self._error_received(StreamError.from_peer(message.code, message.msg))

    def _error_received(self, error: StreamError) -> None:
        """End with an ERROR that answers no command, unless it only says that new listeners are not used."""
        if self._join.role == PROD and self._hello_answered and error.code == "target-refused":
            self._note(f"the stream continues ({error})")
        else:
            self.machine.failed(error)

    # -- the end

    def closed(self) -> Deferred[None]:
        """Return a Deferred that fires when the link is closed, after `run` has finished."""
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
        """End after a method of this class has raised.

        It ends in the next turn of the reactor, since the link may be handling a message.
        """
        error = StreamError("wrong-state", f"appctrl itself failed ({name}): see its log")
        self._reactor.callLater(0, self._guarded._end_by_fault, error)

    def _end_by_fault(self, error: StreamError) -> None:
        if self._finished.called:
            return
        self.machine.failed(error)
        if not self._finished.called:  # the effect `finish` is what has failed
            self._settle(error)
            self._stop()

    def _stop(self) -> None:
        self._cancel_note()
        if self._dialer.running:
            self._closed = self._dialer.stopService()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.addErrback(lambda failure: failure.trap(CancelledError))
            ended.cancel()

    def _cancelled(self, _finished: Deferred[StreamError | None]) -> None:
        self._stop()

    # -- notes about waiting

    def _note_later(self, sentence: str) -> None:
        """Tell the user what the controller waits for, if it is still waiting after a moment."""
        self._cancel_note()
        self._waiting_note = self._reactor.callLater(timing.APP_SILENCE, self._note, sentence)

    def _cancel_note(self) -> None:
        if self._waiting_note is not None and self._waiting_note.active():
            self._waiting_note.cancel()


def _within_limit(others: Mapping[Address, Sequence[Address]]) -> dict[str, list[str]]:
    """Return the first of the other addresses, as many as a Hello can carry."""
    left = MAX_OTHER_ADDRESSES
    kept = {}
    for listener, rest in others.items():
        if left and rest:
            kept[str(listener)] = list(map(str, rest[:left]))
            left -= len(kept[str(listener)])
    return kept
