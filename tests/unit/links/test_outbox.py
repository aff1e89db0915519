"""Commands that wait for answers: repetition, pairing, timeouts, cancellation."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scistream.links.outbox import Outbox, still_working
from scistream.protocol.codec import decode
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, UNSENT, Command, Error, Rel, Req, Resp, Status
from support.message_strategies import EXAMPLES, UID, line

REL = Rel(uid=UID, role=PROD, seq=UNSENT)
REQ = Req(uid=UID, role=PROD, seq=UNSENT, num_conn=1, rate=1.0, app_key_hash="0" * 64)


def command(cmd: str) -> Any:
    return decode(line(cmd))


class FakeLink:
    """A link that records what is sent on it, and when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[float, Command]] = []

    def send_command(self, command: Command) -> int:
        seq = len(self.sent) + 1
        self.sent.append((self._clock.seconds(), msgspec.structs.replace(command, seq=seq)))
        return seq

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.sent]


class Desk:
    """An outbox, its link, and the results of its commands."""

    def __init__(self, *, connected: bool = True) -> None:
        self.clock = Clock()
        self.outbox = Outbox(self.clock, "dtn1")
        self.results: list[Any] = []
        self.link = FakeLink(self.clock)
        if connected:
            self.outbox.link_up(cast(Any, self.link))

    def ask(self, what: Command = REL, timeout: float | None = None) -> Deferred[Resp]:
        asked = self.outbox.ask(what, timeout)
        asked.addBoth(lambda result: self.results.append(result.value if isinstance(result, Failure) else result))
        return asked

    def reconnect(self) -> None:
        self.link = FakeLink(self.clock)
        self.outbox.link_up(cast(Any, self.link))

    def run(self, seconds: float) -> None:
        """Advance the clock in steps of an eighth of a second."""
        self.clock.pump([0.125] * round(seconds * 8))

    def is_idle(self) -> bool:
        return not len(self.outbox) and not self.clock.getDelayedCalls()


def resp(seq: int, state: str = "Released") -> Resp:
    return Resp(uid=UID, seq=seq, state=state, msg="")


# -- repetition


def test_an_unanswered_command_is_repeated_after_2_4_8_10_and_10_seconds() -> None:
    desk = Desk()
    desk.ask()
    desk.clock.pump([0.5] * 100)
    assert desk.link.times == [0, 2, 6, 14, 24, 34, 44]


def test_each_sending_has_the_next_number_of_its_link() -> None:
    desk = Desk()
    desk.ask()
    desk.run(15)
    assert [sent.seq for _, sent in desk.link.sent] == [1, 2, 3, 4]
    assert all(msgspec.structs.replace(sent, seq=UNSENT) == REL for _, sent in desk.link.sent)


def test_a_command_waits_for_a_link_and_is_sent_at_once_on_a_new_one() -> None:
    desk = Desk(connected=False)
    desk.ask()
    desk.run(5)
    assert desk.link.sent == []
    desk.reconnect()
    assert desk.link.times == [5]


def test_repetition_restarts_on_a_new_link_and_stops_without_one() -> None:
    desk = Desk()
    desk.ask()
    desk.run(15)
    desk.outbox.link_down("the network was broken")
    old, sent = desk.link, len(desk.link.sent)
    desk.run(100)
    assert len(old.sent) == sent
    desk.reconnect()
    desk.run(7)
    assert desk.link.times == [115, 117, 121]
    assert len(old.sent) == sent


def test_commands_are_sent_in_the_order_in_which_they_were_asked() -> None:
    desk = Desk(connected=False)
    for what in (REQ, REL, Status(uid=UID, role=PROD, seq=UNSENT)):
        desk.ask(what)
    desk.reconnect()
    assert [type(sent) for _, sent in desk.link.sent] == [Req, Rel, Status]


def test_an_answered_command_is_not_repeated() -> None:
    desk = Desk()
    desk.ask(timeout=30)
    assert desk.outbox.answered(resp(1))
    desk.run(60)
    assert desk.link.times == [0]
    assert desk.results == [resp(1)]
    assert desk.is_idle()


# -- pairing


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_answer_to_any_sending_of_a_command_counts(number: int) -> None:
    desk = Desk()
    desk.ask()
    desk.run(7)
    assert len(desk.link.sent) == 3
    assert desk.outbox.answered(resp(number))
    assert desk.results == [resp(number)]
    for other in (1, 2, 3):
        assert not desk.outbox.answered(resp(other)), "the others come too late"
    assert desk.is_idle()


def test_answers_go_to_the_commands_that_they_are_numbered_for() -> None:
    desk = Desk()
    first, second = desk.ask(REL), desk.ask(REQ)
    assert desk.outbox.answered(resp(2))
    assert second.called
    assert not first.called
    assert desk.outbox.answered(Error(uid=UID, seq=1, code="unknown-uid", msg="never seen"))
    assert first.called
    [_, error] = desk.results
    assert isinstance(error, StreamError)
    assert (error.code, error.msg) == ("unknown-uid", "never seen")
    assert desk.is_idle()


def test_an_answer_that_nobody_waits_for_is_told_from_one_that_somebody_does() -> None:
    desk = Desk()
    desk.ask()
    assert not desk.outbox.answered(resp(2))
    assert not desk.outbox.answered(Error(uid=UID, code="expired", msg="over")), "it has no number"
    assert desk.results == []


@pytest.mark.parametrize("noticed", [False, True])
def test_numbers_of_a_lost_link_mean_nothing_on_the_next(noticed: bool) -> None:
    desk = Desk()
    desk.ask(REQ)
    desk.run(7)
    if noticed:
        desk.outbox.link_down("broken")
        assert not desk.outbox.answered(resp(1))
    desk.reconnect()
    assert not desk.outbox.answered(resp(3))
    assert desk.outbox.answered(resp(1))


# -- answers that say that the work goes on


WORKING = {"REQ": "Reserving", "ReqListeners": "Reserving", "UpdateTargets": "Updating", "REL": "Releasing"}
STATE_NAMES = ["Idle", "Reserving", "Listening", "Ready", "Updating", "Streaming", "Releasing", "Released", ""]


@pytest.mark.parametrize("state", STATE_NAMES)
@pytest.mark.parametrize("cmd", sorted(set(EXAMPLES) - {"RESP", "ERROR", "ProdLstn"}))
def test_only_the_state_of_being_carried_out_keeps_a_command_waiting(cmd: str, state: str) -> None:
    interim = WORKING.get(cmd) == state
    assert still_working(command(cmd), resp(1, state)) == interim
    desk = Desk()
    asked = desk.ask(command(cmd), 30)
    assert desk.outbox.answered(resp(1, state))
    assert asked.called is not interim
    assert desk.is_idle() is not interim


@pytest.mark.parametrize("cmd", WORKING)
def test_an_interim_answer_restarts_the_timeout(cmd: str) -> None:
    desk = Desk()
    asked = desk.ask(command(cmd), 5)
    for _ in range(10):
        desk.run(4.9)
        assert desk.outbox.answered(resp(1, WORKING[cmd]))
    desk.run(4.9)
    assert not asked.called
    desk.run(0.2)
    assert asked.called
    assert desk.results[0].code == "timeout"


def test_a_command_that_is_being_carried_out_is_still_repeated_until_the_final_answer() -> None:
    desk = Desk()
    desk.ask(REQ, 30)
    desk.outbox.answered(resp(1, "Reserving"))
    desk.run(3)
    assert len(desk.link.sent) == 2
    desk.outbox.answered(resp(1, "Listening"))
    assert desk.results == [resp(1, "Listening")]
    assert desk.is_idle()


# -- the end of waiting


def test_giving_up_names_the_peer_the_command_and_the_time() -> None:
    desk = Desk()
    desk.ask(REQ, 30)
    desk.clock.advance(29.9)
    assert desk.results == []
    desk.clock.advance(0.2)
    [error] = desk.results
    assert isinstance(error, StreamError)
    assert (error.code, error.msg) == ("timeout", "dtn1 did not answer REQ in 30 s")
    assert desk.is_idle()
    assert not desk.outbox.answered(resp(1))


def test_giving_up_says_why_there_is_no_link() -> None:
    desk = Desk(connected=False)
    desk.outbox.link_down("connection refused")
    desk.ask(REL, 2.5)
    desk.run(3)
    assert desk.results[0].msg == "dtn1 did not answer REL in 2.5 s: connection refused"


def test_a_problem_that_is_over_is_not_named() -> None:
    desk = Desk(connected=False)
    desk.outbox.link_down("connection refused")
    desk.reconnect()
    desk.ask(REL, 20)
    desk.run(21)
    assert desk.results[0].msg == "dtn1 did not answer REL in 20 s"


def test_a_command_without_a_limit_is_never_given_up() -> None:
    desk = Desk()
    desk.ask(REL, None)
    desk.clock.pump([5] * 20_000)
    assert desk.results == []
    assert len(desk.outbox) == 1
    assert len(desk.link.sent) == pytest.approx(10_000, rel=0.01)


def test_a_cancelled_command_is_not_sent_again_and_its_answer_comes_too_late() -> None:
    desk = Desk()
    asked, other = desk.ask(REQ, 30), desk.ask(REL, 30)
    asked.cancel()
    assert isinstance(desk.results[0], CancelledError)
    assert not desk.outbox.answered(resp(1))
    assert len(desk.outbox) == 1
    desk.run(3)
    assert [type(sent) for _, sent in desk.link.sent] == [Req, Rel, Rel]
    other.cancel()
    assert desk.is_idle()


def test_closing_fails_all_that_waits() -> None:
    desk = Desk()
    for what in (REQ, REL):
        desk.ask(what, 30)
    error = StreamError("shutting-down", "bye")
    desk.outbox.close(error)
    assert desk.results == [error, error]
    assert desk.is_idle()


def test_closing_bears_that_the_failure_of_one_command_cancels_another() -> None:
    desk = Desk()
    first, second = desk.outbox.ask(REQ, 30), desk.ask(REL, 30)
    first.addErrback(lambda _: second.cancel())
    desk.outbox.close(StreamError("shutting-down", "bye"))
    assert isinstance(desk.results[0], CancelledError)
    assert desk.is_idle()


def test_an_answer_may_lead_to_the_next_command() -> None:
    desk = Desk()

    def go_on(_answer: Resp) -> None:
        desk.ask(REL, 30)

    desk.outbox.ask(REQ, 30).addCallback(go_on)
    desk.outbox.answered(resp(1, "Listening"))
    desk.outbox.answered(resp(2))
    assert desk.results == [resp(2)]
    assert desk.is_idle()


def test_a_code_of_a_later_version_is_a_failure_that_keeps_its_name() -> None:
    desk = Desk()
    desk.ask()
    error = decode(line("ERROR", code="a-later-code", msg="why", seq=1))
    assert isinstance(error, Error)
    assert desk.outbox.answered(error)
    assert [str(result) for result in desk.results] == ["a-later-code: why"]
