"""A client that connects to itself counts as refused."""

from __future__ import annotations

from link_in_memory import Owner, Wire
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from scistream.links.link import Link
from scistream.tls.explain import explain


def test_a_link_that_meets_itself_is_refused_and_says_nothing() -> None:
    for authenticate in (None, lambda _: "somebody"):
        owner, wire, clock = Owner(), Wire(), Clock()
        wire.peerAddr = wire.hostAddr = IPv4Address("TCP", "127.0.0.1", 5000)
        link = Link(owner, clock, authenticate, accepted=False)
        link.makeConnection(wire)
        assert wire.disconnected
        assert wire.value() == b""
        assert not link.is_up
        assert not owner.ups
        assert not clock.getDelayedCalls()
        assert isinstance(link.refusal, ConnectionRefusedError)
        assert "refused" in explain(link.refusal) or "listens" in explain(link.refusal)
