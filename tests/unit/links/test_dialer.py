"""The lasting link of a client: it reconnects forever, and never too fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from link_in_memory import Wire
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.links.dialer import Dialer
from scistream.protocol.codec import decode
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, UNSENT, Error, Message, ProdLstn, Rel, Resp, Status
from support.message_strategies import UID, line

REL = Rel(uid=UID, role=PROD, seq=UNSENT)
DELAYS = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint whose attempts to connect wait until a test decides on them."""

    def __init__(self) -> None:
        self.attempts: list[tuple[IProtocolFactory, Deferred[Any]]] = []
        self.total = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred()
        self.attempts.append((protocolFactory, connecting))
        self.total += 1
        return connecting


class Caller:
    """A dialer, its server, and all events that it reports."""

    def __init__(self, **kwargs: Any) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.news: list[Any] = []
        self.dialer = Dialer(
            self.endpoint,
            self.clock,
            "dtn1",
            kwargs.get("authenticate"),
            lambda failure: f"because: {failure.value}",
            lambda failure: failure.check(StreamError) is not None,
        )
        self.dialer.on_up = lambda: self.news.append("up")
        self.dialer.on_down = lambda reason, permanent: self.news.append(("down", reason, permanent))
        self.dialer.on_poll = lambda: self.news.append("poll")
        self.dialer.on_message = lambda link, message: self.news.append(message)
        self.wire = Wire()
        self.protocol: Any = None

    def accept(self) -> None:
        """Let the server accept the pending connection."""
        factory, connecting = self.endpoint.attempts.pop()
        self.wire = Wire()
        self.protocol = factory.buildProtocol(self.wire.getPeer())
        self.protocol.makeConnection(self.wire)
        connecting.callback(self.protocol)

    def refuse(self) -> None:
        """Refuse the pending connection."""
        _, connecting = self.endpoint.attempts.pop()
        connecting.errback(Failure(ConnectionRefusedError("nobody there")))

    def says(self, *lines: bytes) -> None:
        self.protocol.dataReceived(b"".join(one + b"\n" for one in lines))

    def hangs_up(self, why: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(why or ConnectionLost("gone")))

    def reads(self) -> list[Message]:
        written = self.wire.value()
        self.wire.clear()
        return [decode(one) for one in written.splitlines()]

    def delay(self) -> float:
        """Return the time until the next attempt."""
        assert self.endpoint.attempts == []
        start = self.clock.seconds()
        while not self.endpoint.attempts:
            self.clock.advance(min(call.getTime() for call in self.clock.getDelayedCalls()) - self.clock.seconds())
            assert self.clock.seconds() - start < 60
        return self.clock.seconds() - start

    def told(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.news if isinstance(one, kind)]


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    caller.dialer.startService()
    yield caller
    stopping = caller.dialer.stopService() if caller.dialer.running else None
    if caller.dialer.link is not None:
        caller.hangs_up()
    assert stopping is None or stopping.called
    assert caller.clock.getDelayedCalls() == [], "a stopped dialer leaves nothing behind"


def in_order(measured: list[float], nominal: list[float]) -> bool:
    """Return True if delays are as expected, allowing for jitter that shortens each by up to half."""
    return all(high / 2 <= delay <= high for delay, high in zip(measured, nominal, strict=True))


# -- connecting


def test_it_dials_when_it_is_started_and_tells_when_the_link_is_up(caller: Caller) -> None:
    assert caller.endpoint.total == 1
    assert caller.news == []
    caller.accept()
    assert caller.news == ["up"]
    assert caller.dialer.link is not None


def test_what_waits_is_sent_as_soon_as_the_link_is_up(caller: Caller) -> None:
    answers: list[Any] = []
    caller.dialer.ask(REL, None).addCallback(answers.append)
    caller.accept()
    [sent] = caller.reads()
    assert isinstance(sent, Rel)
    assert sent.seq == 1
    caller.says(line("RESP", state="Released"))
    assert [answer.state for answer in answers] == ["Released"]


def test_what_is_asked_because_the_link_is_up_goes_out_too(caller: Caller) -> None:
    asked: list[Deferred[Resp]] = []
    caller.dialer.on_up = lambda: asked.append(caller.dialer.ask(Status(uid=None, role=None, seq=UNSENT), None))
    caller.dialer.ask(REL, None).addErrback(lambda _: None)
    caller.accept()
    assert [type(sent) for sent in caller.reads()] == [Rel, Status]
    asked[0].addErrback(lambda _: None)


def test_what_was_replaced_because_the_link_is_up_is_never_sent(caller: Caller) -> None:
    waiting = caller.dialer.ask(REL, None).addErrback(lambda _: None)
    caller.dialer.on_up = waiting.cancel
    caller.accept()
    assert caller.reads() == []


def test_what_is_unanswered_when_a_link_is_lost_is_asked_again_on_the_next(caller: Caller) -> None:
    caller.accept()
    caller.dialer.ask(REL, None).addErrback(lambda _: None)
    assert len(caller.reads()) == 1
    caller.hangs_up()
    assert caller.dialer.link is None
    caller.delay()
    caller.accept()
    assert len(caller.reads()) == 1


# -- reconnecting


def test_delays_double_from_a_fifth_of_a_second_to_five_seconds(caller: Caller) -> None:
    measured = []
    for _ in DELAYS:
        caller.refuse()
        measured.append(caller.delay())
    assert in_order(measured, DELAYS)


def test_a_peer_that_accepts_and_says_nothing_is_no_success(caller: Caller) -> None:
    measured = []
    for _ in DELAYS:
        caller.accept()
        caller.clock.advance(1)
        caller.hangs_up()
        measured.append(caller.delay())
    assert in_order(measured, DELAYS)


def test_a_bad_line_is_no_success(caller: Caller) -> None:
    measured = []
    for _ in DELAYS:
        caller.accept()
        caller.says(b"HTTP/1.1 400 Bad Request", line("RESP", seq=0))
        caller.hangs_up()
        measured.append(caller.delay())
    assert in_order(measured, DELAYS)


@pytest.mark.parametrize("valid", [line("RESP"), line("ERROR"), line("ProdLstn"), line("ERROR", seq=...)])
def test_a_valid_line_resets_the_delays(caller: Caller, valid: bytes) -> None:
    for _ in range(6):
        caller.refuse()
        caller.delay()
    caller.accept()
    caller.says(valid)
    caller.hangs_up()
    measured = [caller.delay()]
    for _ in range(3):
        caller.refuse()
        measured.append(caller.delay())
    assert in_order(measured, DELAYS[:4])


def test_clients_of_one_server_do_not_all_come_back_at_once() -> None:
    delays = set()
    for _ in range(20):
        caller = Caller()
        caller.dialer.startService()
        caller.accept()
        caller.hangs_up()
        delays.add(caller.delay())
    assert len(delays) > 10


# -- what it tells


def test_it_tells_why_it_could_not_connect(caller: Caller) -> None:
    caller.refuse()
    [(_, reason, permanent)] = caller.told(tuple)
    assert "nobody there" in reason
    assert not permanent


def test_a_command_that_is_given_up_says_why_there_is_no_link(caller: Caller) -> None:
    failed: list[Failure] = []
    caller.dialer.ask(REL, 1.0).addErrback(failed.append)
    caller.refuse()
    caller.clock.advance(1.0)
    caller.endpoint.attempts.clear()
    assert "dtn1 did not answer REL in 1 s: because:" in str(failed[0].value)


def test_it_tells_when_a_link_is_lost(caller: Caller) -> None:
    caller.accept()
    caller.hangs_up(ConnectionDone())
    assert caller.told(tuple) == [("down", f"because: {ConnectionDone()}", False)]


def test_a_server_that_is_not_the_right_one_is_hopeless_but_tried_again() -> None:
    def authenticate(_connection: Any) -> Any:
        raise StreamError("not-authenticated", "not who we meant")

    caller = Caller(authenticate=authenticate)
    caller.dialer.startService()
    caller.accept()
    caller.protocol.handshakeCompleted()
    assert caller.wire.disconnected
    caller.hangs_up()
    assert caller.news == [("down", "because: not-authenticated: not who we meant", True)]
    assert in_order([caller.delay()], DELAYS[:1])


def test_an_unasked_error_is_news_and_an_answer_that_nobody_waits_for_is_none(caller: Caller) -> None:
    caller.accept()
    caller.says(line("RESP", seq=9), line("ERROR", seq=...), line("ERROR", seq=9), line("ProdLstn"))
    assert [type(one) for one in caller.told(object) if one != "up"] == [Error, Error, ProdLstn]


def test_an_error_that_answers_a_command_is_no_news(caller: Caller) -> None:
    caller.accept()
    failed: list[Failure] = []
    caller.dialer.ask(REL, None).addErrback(failed.append)
    caller.says(line("ERROR", code="unknown-uid"))
    assert failed[0].check(StreamError)
    assert caller.news == ["up"]


def test_it_polls_every_15_seconds_while_there_is_a_link(caller: Caller) -> None:
    caller.clock.advance(16)
    assert "poll" not in caller.news
    caller.accept()
    caller.clock.pump([1.0] * 45)
    assert caller.news.count("poll") == 3
    caller.hangs_up()
    caller.clock.pump([1.0] * 31)
    assert caller.news.count("poll") == 3


# -- stopping


def test_stopping_fails_what_waits_and_closes_the_link(caller: Caller) -> None:
    caller.accept()
    failed: list[Failure] = []
    caller.dialer.ask(REL, 30).addErrback(failed.append)
    stopping = caller.dialer.stopService()
    assert str(failed[0].value) == "shutting-down: the link to dtn1 was closed"
    assert caller.wire.disconnecting
    assert not stopping.called
    caller.hangs_up(ConnectionDone())
    assert stopping.called
    caller.clock.advance(100)
    assert caller.endpoint.total == 1


def test_stopping_does_not_wait_for_a_server_that_never_closes(caller: Caller) -> None:
    caller.accept()
    caller.dialer.stopService()
    caller.clock.advance(10)
    assert caller.wire.disconnected
    caller.hangs_up()


def test_stopping_ends_an_attempt_to_connect(caller: Caller) -> None:
    assert caller.dialer.stopService().called


def test_stopping_between_two_attempts_ends_them(caller: Caller) -> None:
    caller.refuse()
    assert caller.dialer.stopService().called
    caller.clock.advance(100)
    assert caller.endpoint.total == 1


def test_it_can_be_started_again(caller: Caller) -> None:
    caller.accept()
    caller.dialer.stopService()
    caller.hangs_up()
    caller.dialer.startService()
    caller.accept()
    assert caller.news.count("up") == 2
