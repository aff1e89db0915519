"""One S2CS as a client sees it: the link to it, and the streams with a side there."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Command, Error, Message, ProdLstn, Resp


class StreamAtServer(Protocol):
    """A stream with a side at a server, which tells it what happens there. `ClientStream` implements it."""

    @property
    def uid(self) -> str:
        """The uid of the stream."""

    def link_up(self, server: Server) -> None:
        """Note that the server can be reached, and ask what may have changed meanwhile."""

    def link_failed_permanently(self, server: Server, reason: str) -> None:
        """Fail, since the server cannot be reached with the user's certificates."""

    def reached(self, server: Server) -> None:
        """Note that the server can be reached, so that it may know of the stream from now on."""

    def poll(self, server: Server) -> None:
        """Ask for the state, in case a message was lost."""

    def message_received(self, server: Server, message: ProdLstn | Error) -> None:
        """Take a message about this stream."""

    def client_closes(self) -> None:
        """Release the stream if the user does not have it."""

    def when_released(self) -> Deferred[None]:
        """Return a Deferred that fires when no release is in progress."""


class Server:
    """One S2CS, with the link to it.

    :param link: the link, which is started when the first stream is added.
    """

    def __init__(self, link: Dialer) -> None:
        self.dialer = link
        self._by_uid: dict[str, set[StreamAtServer]] = {}
        self.authority: str | None = None
        """The digest of the authority that vouches for the server; None before the first connection."""
        self.warnings: list[str] = []
        """The latest warnings of the server, such as of certificates that expire soon."""
        link.on_up = self._up
        link.on_down = self._down
        link.on_poll = self._poll
        link.on_message = self._message_received

    def note_warnings(self, warnings: list[str]) -> None:
        """Keep the latest warnings of the server."""
        self.warnings = warnings

    def add(self, stream: StreamAtServer) -> None:
        """Tell a stream what happens at this server from now on."""
        self._by_uid.setdefault(stream.uid, set()).add(stream)
        if not self.dialer.running:
            self.dialer.startService()
        elif self.dialer.link is not None:
            stream.reached(self)

    def remove(self, stream: StreamAtServer) -> None:
        """Forget a stream that is over. Idempotent."""
        same_uid = self._by_uid.get(stream.uid, set())
        same_uid.discard(stream)
        if not same_uid:
            self._by_uid.pop(stream.uid, None)

    @property
    def streams(self) -> list[StreamAtServer]:
        """The streams that were added and not removed."""
        return [stream for same_uid in self._by_uid.values() for stream in same_uid]

    def ask_if_reached(self, command: Command, timeout: float | None) -> Deferred[Resp]:
        """Send a command until it is answered, but give up early if the server cannot be reached.

        :returns: as `Dialer.ask`; fails with `timeout` and the reason if there is no link after
            `timing.FACILITY_REACHED` seconds.
        """
        answer = self.dialer.ask(command, timeout)
        reason: list[str] = []

        def give_up() -> None:
            if self.dialer.link is None:
                reason.append(self.dialer.outbox.reason or "there was no answer")
                answer.cancel()

        def settled(result: Resp | Failure) -> Resp | Failure:
            if timer.active():
                timer.cancel()
            if reason:
                raise StreamError("timeout", f"{self.dialer.peer_name} cannot be reached: {reason[0]}")
            return result

        timer = self.dialer.clock.callLater(timing.FACILITY_REACHED, give_up)
        return answer.addBoth(settled)

    def _up(self) -> None:
        assert self.dialer.link is not None
        self.authority = self.dialer.link.peer or None
        for stream in self.streams:
            stream.link_up(self)

    def _down(self, reason: str, permanent: bool) -> None:
        if permanent:
            for stream in self.streams:
                stream.link_failed_permanently(self, reason)
            self.dialer.outbox.close(StreamError("not-authenticated", reason))

    def _poll(self) -> None:
        for stream in self.streams:
            stream.poll(self)

    def _message_received(self, _link: Link, message: Message) -> None:
        if isinstance(message, ProdLstn | Error) and message.uid is not None:
            for stream in list(self._by_uid.get(message.uid, ())):
                stream.message_received(self, message)
