"""One S2CS as the user client sees it: its side of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import (
    Command,
    Error,
    Message,
    ProdLstn,
    Resp,
)

if TYPE_CHECKING:
    from scistream.s2uc.stream import ClientStream


class Server:
    """One S2CS, as a client sees it: its link, and the streams that it keeps for us."""

    def __init__(self, link: Dialer) -> None:
        self.dialer = link
        self._of_uid: dict[str, set[ClientStream]] = {}
        self.authority: str | None = None
        self.warnings: list[str] = []
        """What it has said last of certificates that expire soon."""
        link.on_up = self._up
        link.on_down = self._down
        link.on_poll = self._poll
        link.on_message = self._heard

    def add(self, effects: ClientStream) -> None:
        """A stream is to be kept there."""
        self._of_uid.setdefault(effects.uid, set()).add(effects)
        if not self.dialer.running:
            self.dialer.startService()
        elif self.dialer.link is not None:
            for role in effects.roles_at(self):
                effects.machine.reached(role)

    def remove(self, effects: ClientStream) -> None:
        """Forget a stream that is over. Idempotent."""
        same_uid = self._of_uid.get(effects.uid, set())
        same_uid.discard(effects)
        if not same_uid:
            self._of_uid.pop(effects.uid, None)

    @property
    def streams(self) -> list[ClientStream]:
        """The streams that are kept there."""
        return [effects for same_uid in self._of_uid.values() for effects in same_uid]

    def ask_if_reached(self, command: Command, timeout: float | None) -> Deferred[Resp]:
        """Send a command until it is answered, if the server can be reached within seconds.

        :returns: as of `Dialer.ask`; it fails with `timeout` and the reason if there is no link by then.
        """
        asked = self.dialer.ask(command, timeout)
        reason: list[str] = []

        def give_up() -> None:
            if self.dialer.link is None:
                reason.append(self.dialer.outbox.reason or "there was no answer")
                asked.cancel()

        def settled(result: Resp | Failure) -> Resp | Failure:
            if look.active():
                look.cancel()
            if reason:
                raise StreamError("timeout", f"{self.dialer.peer_name} cannot be reached: {reason[0]}")
            return result

        look = self.dialer.clock.callLater(timing.REACH, give_up)
        return asked.addBoth(settled)

    def _up(self) -> None:
        assert self.dialer.link is not None
        self.authority = self.dialer.link.peer or None
        for effects in self.streams:
            effects.link_up(self)

    def _down(self, reason: str, permanent: bool) -> None:
        if permanent:
            for effects in self.streams:
                effects.link_failed_permanently(self, reason)
            self.dialer.outbox.close(StreamError("not-authenticated", reason))

    def _poll(self) -> None:
        for effects in self.streams:
            effects.look(self)

    def _heard(self, _link: Link, message: Message) -> None:
        if isinstance(message, ProdLstn | Error) and message.uid is not None:
            for effects in list(self._of_uid.get(message.uid, ())):
                effects.heard(self, message)
