"""Pair commands with their answers, and repeat commands until they are answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorTime,
)
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Answer, Command, Error, Message, Rel, Req, ReqListeners, Resp, UpdateTargets


def still_working(command: Command, answer: Resp) -> bool:
    """Return True if `answer` only says that the command is being carried out, so that the final one will follow."""
    if isinstance(command, Req | ReqListeners):
        return answer.state == "Reserving"
    if isinstance(command, UpdateTargets):
        return answer.state == "Updating"
    return isinstance(command, Rel) and answer.state == "Releasing"


@dataclass(eq=False)
class _Waiting:
    """A command without its final answer."""

    command: Command
    result: Deferred[Resp]
    timeout: float | None
    next_repeat: float = field(default_factory=lambda: timing.FIRST_REPEAT)
    sent_as: set[int] = field(default_factory=set)
    repeat: IDelayedCall | None = None
    give_up: IDelayedCall | None = None


class Outbox:
    """The commands to one peer that wait for their answers.

    A command is sent again when a link comes up, and otherwise after 2 s, doubling up to 10 s, until it is answered,
    times out or is cancelled.

    :param clock: for repetition and time limits.
    :param peer_name: the name of the peer in errors.
    """

    def __init__(self, clock: IReactorTime, peer_name: str) -> None:
        self._clock = clock
        self._link: Link | None = None
        self._waiting: dict[_Waiting, None] = {}
        self._sent: dict[int, _Waiting] = {}
        """By their `seq` on the current link."""
        self.peer_name = peer_name
        self.reason = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, command: Command, timeout: float | None) -> Deferred[Resp]:
        """Send a command until it is answered.

        :param command: with any `seq`: it is replaced by the link's next one each time the command is sent.
        :param timeout: seconds without an answer after which to give up; an interim answer restarts them. None: never.
        :returns: fires with the final RESP, or fails with the StreamError of an ERROR, with a StreamError `timeout`,
            or with CancelledError.
        """
        waiting = _Waiting(command, Deferred(lambda _: self._finish(waiting)), timeout)
        self._waiting[waiting] = None
        self._restart_timeout(waiting)
        self._send(waiting)
        return waiting.result

    def link_up(self, link: Link) -> None:
        """Send all waiting commands on this link, and later ones too."""
        self._link = link
        self.reason = ""
        self._sent.clear()
        for waiting in list(self._waiting):
            waiting.sent_as.clear()
            waiting.next_repeat = timing.FIRST_REPEAT
            self._send(waiting)

    def link_down(self, reason: str) -> None:
        """Stop sending, and keep `reason` for the error of commands that time out."""
        self._link = None
        self.reason = reason
        self._sent.clear()
        for waiting in self._waiting:
            waiting.sent_as.clear()
            cancel_call(waiting.repeat)

    def close(self, error: StreamError) -> None:
        """Fail all waiting commands with `error`."""
        self._link = None
        for waiting in list(self._waiting):
            if waiting in self._waiting:  # the errback of one command may have cancelled another
                self._finish(waiting)
                waiting.result.errback(Failure(error))

    def answered(self, answer: Answer) -> bool:
        """Pass an answer to its command; return False if no command waits for it."""
        waiting = self._sent.get(answer.seq) if answer.seq is not None else None
        if waiting is None:
            return False
        self._settle(waiting, answer)
        return True

    def _settle(self, waiting: _Waiting, answer: Answer) -> None:
        if isinstance(answer, Resp) and still_working(waiting.command, answer):
            self._restart_timeout(waiting)
            return
        self._finish(waiting)
        if isinstance(answer, Error):
            waiting.result.errback(Failure(StreamError.from_peer(answer.code, answer.msg)))
        else:
            waiting.result.callback(answer)

    def _send(self, waiting: _Waiting) -> None:
        cancel_call(waiting.repeat)
        if self._link is None:
            return
        seq = self._link.send_command(waiting.command)
        waiting.sent_as.add(seq)
        self._sent[seq] = waiting
        waiting.repeat = self._clock.callLater(waiting.next_repeat, self._send, waiting)
        waiting.next_repeat = min(waiting.next_repeat * 2, timing.LONGEST_REPEAT)

    def _restart_timeout(self, waiting: _Waiting) -> None:
        cancel_call(waiting.give_up)
        if waiting.timeout is not None:
            waiting.give_up = self._clock.callLater(waiting.timeout, self._give_up, waiting)

    def _give_up(self, waiting: _Waiting) -> None:
        self._finish(waiting)
        name = command_name(waiting.command)
        msg = f"{self.peer_name} did not answer {name} in {waiting.timeout:.3g} s"
        if self.reason:
            msg += f": {self.reason}"
        waiting.result.errback(Failure(StreamError("timeout", msg)))

    def _finish(self, waiting: _Waiting) -> None:
        cancel_call(waiting.repeat)
        cancel_call(waiting.give_up)
        for seq in waiting.sent_as:
            self._sent.pop(seq, None)
        del self._waiting[waiting]


def command_name(message: Message) -> str:
    """Return the `cmd` of a message."""
    return str(message.__struct_config__.tag)


def cancel_call(call: IDelayedCall | None) -> None:
    """Cancel a delayed call, unless it is None or has been called or cancelled already."""
    if call is not None and call.active():
        call.cancel()
