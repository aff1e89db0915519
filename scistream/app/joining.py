"""The library for applications: join a stream from a program, as `appctrl` does for unchanged programs.

It works under Twisted (`task.react`) and under plain asyncio (`asyncio.run`). A producer listens first, then joins::

    async with producer(join_string, listen=["192.0.2.7:7000"]) as stream:
        ...                                     # the consumer's connections arrive at port 7000
        error = await stream.ended()            # why the stream is over

A consumer learns where to connect::

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

__all__ = ["Joined", "consumer", "producer"]


def producer(join: str, *, listen: Iterable[str], reactor: Any = None) -> Joined:
    """Join a stream as its producer. Use the result in ``async with``; its block begins once the facility knows it.

    :param join: the producer's join string.
    :param listen: HOST:PORT of each listener, as the gateway reaches it, with a numeric host; one for each channel.
        The program has to listen there already. The host 0.0.0.0 or [::] stands for the address from which this
        machine reaches the S2CS.
    :param reactor: the Twisted reactor; by default the one that runs when the block is entered.
    :raises StreamError: `bad-message`, if the join string or an address is wrong.
    """
    return Joined(_join_of(join, PROD), [_numeric(text) for text in listen], reactor)


def consumer(join: str, *, reactor: Any = None) -> Joined:
    """Join a stream as its consumer. Use the result in ``async with``; its block begins once it may connect.

    :param join: the consumer's join string.
    :param reactor: the Twisted reactor; by default the one that runs when the block is entered.
    :raises StreamError: `bad-message`, if the join string is wrong.
    """
    return Joined(_join_of(join, CONS), [], reactor)


class Joined:
    """A stream that this program joins for the time of an ``async with`` block. Made by `producer` or `consumer`.

    Entering the block raises `StreamError` if the facility refuses, does not answer within 30 s, or the stream ends
    first. Leaving the block closes the link to the facility; the stream and its connections continue.
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
        self._program = CallingProgram()
        self._controller: Controller | None = None
        self._is_over = False
        self._reason: StreamError | None = None
        self._waiting: list[Deferred[StreamError | None]] = []

    async def __aenter__(self) -> Joined:
        if self._controller is not None:
            raise StreamError(
                "wrong-state", "a joined stream can be entered once only: call producer() or consumer() again"
            )
        if self._reactor is None:
            self._reactor = current_reactor()
        self._controller = Controller(self._reactor, self._join, self._listeners, self._program, self._note)
        self._controller.run().addCallbacks(self._ended, self._refused)
        try:
            listeners = await Awaitable(self._program.ready)
        except BaseException as problem:
            closing = self.close()
            if not isinstance(problem, GeneratorExit):
                await closing
            raise
        self.addresses = [(address.host, address.port) for address in map(Address.parse, listeners)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def ended(self) -> Awaitable[StreamError | None]:
        """Wait until the stream is over. Return the reason, or None if this program has left the stream first.

        :raises StreamError: `wrong-state`, outside the ``async with`` block.
        """
        if self._controller is None:
            raise StreamError("wrong-state", "the stream is not joined yet: use `async with`")
        waiting: Deferred[StreamError | None] = Deferred(self._forget)
        if self._is_over:
            waiting.callback(self._reason)
        else:
            self._waiting.append(waiting)
        return Awaitable(waiting)

    def close(self) -> Awaitable[None]:
        """Leave the stream and close the link. The end of the ``async with`` block does the same."""
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
        for deferred in waiting:
            deferred.callback(reason)

    def _refused(self, failure: Failure) -> None:
        self._program.give_up(failure.value)
        self._ended(failure.value if isinstance(failure.value, StreamError) else None)

    def _forget(self, cancelled: Deferred[StreamError | None]) -> None:
        if cancelled in self._waiting:
            self._waiting.remove(cancelled)

    def _note(self, sentence: str) -> None:
        self._log.info("stream {uid}: {sentence}", uid=self.uid, sentence=sentence)


class CallingProgram:
    """The program that uses this library. It is already running, so it is notified instead of being started."""

    def __init__(self) -> None:
        self.ready: Deferred[list[str]] = Deferred()
        """Fires when the stream is ready, with the listeners that a consumer connects to."""
        self._left: Deferred[None] = Deferred()

    def start(self, listeners: Sequence[str]) -> None:
        """Fire `ready`."""
        if not self.ready.called:
            self.ready.callback(list(listeners))

    def ended(self, _reactor: Any) -> Deferred[None]:
        """Return a Deferred that fires when the program leaves the stream."""
        return self._left

    def leave(self) -> None:
        """Note that the program has left the stream."""
        if not self._left.called:
            self._left.callback(None)

    def give_up(self, problem: BaseException | None) -> None:
        """Fail `ready` with this problem, unless it has fired."""
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
            f"this join string is for the {sides[join.role]}: pass it to {sides[join.role]}(), or use the one for the "
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
            "bad-message", f"{text}: gateways do not resolve the names of applications: use a numeric address"
        )
    return address
