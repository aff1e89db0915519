"""The library of applications: a program that says Hello itself, as `appctrl` does for programs that cannot.

Works under Twisted (`task.react`) and under plain asyncio (`asyncio.run`). A producer listens first, then joins::

    async with producer(join_string, listen=["192.0.2.7:7000"]) as stream:
        ...                                     # consumers connect to port 7000
        error = await stream.ended()            # why the stream is over

A consumer is told where to connect::

    async with consumer(join_string) as stream:
        reader, writer = await asyncio.open_connection(*stream.addresses[0])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream.app.controller import Controller
from scistream.awaitable import Awaitable, current_reactor, leave
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD, Role


def producer(join: str, *, listen: Iterable[str], reactor: Any = None) -> Joined:
    """Join a stream as its producer: use the result in `async with`, whose block begins once the facility knows it.

    :param join: the producer's join string.
    :param listen: HOST:PORT of each listener, as the gateway reaches it, with a numeric host; one for each channel.
        The host 0.0.0.0 or [::] means this machine's address towards the S2CS. The program listens there already.
    :param reactor: the reactor; found when it is needed if not given.
    :raises StreamError: `bad-message`, if the join string or an address is wrong.
    """
    return Joined(_join_of(join, PROD), [_numeric(one) for one in listen], reactor)


def consumer(join: str, *, reactor: Any = None) -> Joined:
    """Join a stream as its consumer: use the result in `async with`, whose block begins once it may connect.

    :param join: the consumer's join string.
    :param reactor: the reactor; found when it is needed if not given.
    :raises StreamError: `bad-message`, if the join string is wrong.
    """
    return Joined(_join_of(join, CONS), [], reactor)


class Joined:
    """A stream that this program has joined, until the end of the `async with` block. Made by `producer` or `consumer`.

    Entering raises StreamError if the facility refuses, does not answer within 30 s, or the stream ends first.
    Leaving closes the link to the facility; the stream, and the connections over it, go on without it.
    """

    _log = Logger()

    def __init__(self, join: Join, listeners: Sequence[Address], reactor: Any) -> None:
        self.uid = join.uid
        self.role = join.role
        self.addresses: list[tuple[str, int]] = []
        """Host and port of each listener to connect to, one for each channel; empty for a producer."""
        self._join = join
        self._listeners = listeners
        self._reactor = reactor
        self._finds_reactor = reactor is None
        self._program = ThisProgram()
        self._controller: Controller | None = None
        self._is_over = False
        self._reason: StreamError | None = None
        self._waiting: list[Deferred[StreamError | None]] = []

    async def __aenter__(self) -> Joined:
        if self._controller is not None:
            raise StreamError("wrong-state", "this has been entered before: call producer() or consumer() again")
        if self._reactor is None:
            self._reactor = current_reactor()
        self._controller = Controller(self._reactor, self._join, self._listeners, self._program, self._note)
        self._controller.run().addCallbacks(self._ended, self._refused)
        try:
            found = await Awaitable(self._program.ready)
        except BaseException as problem:
            closing = self.close()
            if not isinstance(problem, GeneratorExit):
                await closing
            raise
        self.addresses = [(one.host, one.port) for one in map(Address.parse, found)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def ended(self) -> Awaitable[StreamError | None]:
        """Wait until the stream is over; gives the reason, or None if this program has left it first.

        :raises StreamError: `wrong-state`, before this is entered.
        """
        if self._controller is None:
            raise StreamError("wrong-state", "this has not been entered yet: use `async with`")
        waiting: Deferred[StreamError | None] = Deferred(self._forget)
        if self._is_over:
            waiting.callback(self._reason)
        else:
            self._waiting.append(waiting)
        return Awaitable(waiting)

    def close(self) -> Awaitable[None]:
        """Leave the stream, whatever is waited for. `async with` does it at its end."""
        return Awaitable(Deferred.fromCoroutine(self._close()))

    async def _close(self) -> None:
        self._program.leave()
        if self._controller is not None:
            await self._controller.closed()
        if self._finds_reactor and self._reactor is not None:
            reactor, self._reactor = self._reactor, None
            leave(reactor)

    def _ended(self, reason: StreamError | None) -> None:
        self._is_over = True
        self._reason = reason
        self._program.give_up(CancelledError())
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(reason)

    def _refused(self, failure: Failure) -> None:
        self._program.give_up(failure.value)
        self._ended(failure.value if isinstance(failure.value, StreamError) else None)

    def _forget(self, cancelled: Deferred[StreamError | None]) -> None:
        if cancelled in self._waiting:
            self._waiting.remove(cancelled)

    def _note(self, sentence: str) -> None:
        self._log.info("stream {uid}: {sentence}", uid=self.uid, sentence=sentence)


class ThisProgram:
    """Stands for the program that runs this code: it is told in place of being started."""

    def __init__(self) -> None:
        self.ready: Deferred[list[str]] = Deferred()
        """Fires with the listeners that a consumer connects to, once it may."""
        self._left: Deferred[None] = Deferred()

    def start(self, listeners: Sequence[str]) -> None:
        """Let it go on."""
        if not self.ready.called:
            self.ready.callback(list(listeners))

    def ended(self, _reactor: Any) -> Deferred[None]:
        """Fires when it wants no more of the stream."""
        return self._left

    def leave(self) -> None:
        """Note that the program has left the stream."""
        if not self._left.called:
            self._left.callback(None)

    def give_up(self, problem: BaseException | None) -> None:
        """Fail `ready` with this problem, unless the stream is ready already."""
        if not self.ready.called:
            self.ready.errback(Failure(problem))


def _join_of(text: str, role: Role) -> Join:
    try:
        join = Join.parse(text)
    except ValueError as wrong:
        raise StreamError("bad-message", str(wrong)) from None
    if join.role != role:
        sides = {PROD: "producer", CONS: "consumer"}
        raise StreamError(
            "bad-message",
            f"this join string is for the {sides[join.role]}: give it to {sides[join.role]}(), or take the one for the "
            f"{sides[role]}",
        )
    return join


def _numeric(text: str) -> Address:
    try:
        address = Address.parse(text)
    except ValueError as wrong:
        raise StreamError("bad-message", str(wrong)) from None
    if address.numeric is None:
        raise StreamError(
            "bad-message", f"{text}: gateways do not look up the names of applications: give a numeric address"
        )
    return address
