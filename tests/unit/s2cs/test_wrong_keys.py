"""Hellos with a wrong key, in virtual time and over links in memory from addresses that a test chooses."""

from __future__ import annotations

import uuid

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from scistream import timing
from scistream.links.link import Link
from scistream.protocol.codec import decode
from scistream.protocol.messages import CONS, Error, Hello
from scistream.s2cs import hello_throttle
from scistream.s2cs.hello_throttle import AT_ONCE, WrongKeys

UID = "12345678-1234-4234-8234-123456789abc"
ATTACKER, OTHER = "192.0.2.66", "192.0.2.67"


class Owner:
    """A link owner that ignores everything."""

    def link_up(self, link: object) -> None: ...
    def link_down(self, link: object, reason: object) -> None: ...
    def message_received(self, link: object, message: object) -> None: ...
    def answer_received(self, link: object, answer: object) -> None: ...


class Rig:
    """The `WrongKeys` of an S2CS, and links that try wrong keys."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wrong = WrongKeys(self.clock)

    def tries(self, host: str, uid: str = UID) -> tuple[Link, StringTransport]:
        wire = StringTransport(peerAddress=IPv4Address("TCP", host, 40000))
        link = Link(Owner(), self.clock, None, "anybody", accepted=True)
        link.makeConnection(wire)
        self.wrong.refuse(link, Hello(uid=uid, role=CONS, seq=1, app_key="k" * 43), "no such key")
        return link, wire

    def delay(self, host: str, uid: str = UID) -> float:
        """Return the seconds until one attempt is answered."""
        link, wire = self.tries(host, uid)
        began = self.clock.seconds()
        while not wire.value():
            assert self.wrong.has(link)
            self.clock.advance(0.25)
        assert not self.wrong.has(link)
        answer = decode(wire.value().strip())
        assert isinstance(answer, Error)
        assert (answer.uid, answer.seq, answer.code, answer.msg) == (uid, 1, "not-authorized", "no such key")
        assert wire.disconnecting
        return self.clock.seconds() - began


def other_uid() -> str:
    return str(uuid.uuid4())


def test_the_first_ones_are_answered_at_once_and_then_later_and_later_up_to_a_limit() -> None:
    rig = Rig()
    delays = [rig.delay(ATTACKER) for _ in range(AT_ONCE + 6)]
    assert delays[:AT_ONCE] == [0.0] * AT_ONCE
    assert delays[AT_ONCE : AT_ONCE + 3] == [1.0, 2.0, 4.0]
    assert delays[-1] == timing.LONGEST_WRONG_KEY


def test_an_address_that_tries_many_streams_is_slowed_down_and_another_address_is_not() -> None:
    rig = Rig()
    delays = [rig.delay(ATTACKER, other_uid()) for _ in range(AT_ONCE + 2)]
    assert delays[-1] > 0
    assert rig.delay(OTHER, other_uid()) == 0.0


def test_guesses_at_one_stream_are_slowed_down_from_wherever_they_come_and_at_another_they_are_not() -> None:
    rig = Rig()
    delays = [rig.delay(f"198.51.100.{number}") for number in range(AT_ONCE + 2)]
    assert delays[:AT_ONCE] == [0.0] * AT_ONCE
    assert delays[-1] > 0
    assert rig.delay(OTHER, other_uid()) == 0.0


def test_after_a_quiet_time_answers_come_at_once_again() -> None:
    rig = Rig()
    for _ in range(AT_ONCE + 6):
        rig.delay(ATTACKER)
    rig.clock.advance(600)
    assert rig.delay(ATTACKER) == 0.0


def test_a_link_that_goes_before_its_answer_leaves_nothing_behind() -> None:
    rig = Rig()
    for _ in range(AT_ONCE):
        rig.delay(ATTACKER)
    rig.clock.advance(10)  # their links have been closed
    before = len(rig.clock.getDelayedCalls())
    link, wire = rig.tries(ATTACKER)
    assert rig.wrong.has(link)
    rig.wrong.forget(link)
    assert not rig.wrong.has(link)
    assert len(rig.clock.getDelayedCalls()) == before
    assert wire.value() == b""


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello_throttle, "MOST_COUNTS", 50)
    rig = Rig()
    for number in range(200):
        rig.tries(f"198.51.100.{number}", other_uid())
    assert len(rig.wrong._counts) <= 50
