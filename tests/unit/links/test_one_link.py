"""One link over one connection: its limits, its own answers, and its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_in_memory import Owner, Peer, SlowWire
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock

from scistream.links.admission import AdmissionController, Bounds
from scistream.links.backpressure import MAX_UNREAD
from scistream.links.link import MAX_BAD_LINES, Link
from scistream.protocol.codec import MAX_FIRST_LINE, MAX_LINE, decode
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, Error, Message, ProdLstn, Rel, Resp, Status
from support.message_strategies import UID, line, messages, without_lf

REL = line("REL")
STATUS = Status(uid=None, role=None, seq=1)


def stranger() -> Peer:
    """Return a client without a certificate, connected over TLS."""
    peer = Peer(plain_peer=None, authenticate=lambda _connection: None)
    peer.link.handshakeCompleted()
    return peer


def user() -> Peer:
    """Return a client with a certificate, connected over TLS."""
    peer = Peer(plain_peer=None, authenticate=lambda _connection: "ada")
    peer.link.handshakeCompleted()
    return peer


def server() -> Peer:
    """Return a server to which we have connected over TLS."""
    peer = Peer(accepted=False, authenticate=lambda _connection: "a server")
    peer.link.handshakeCompleted()
    return peer


def padded(size: int, message: bytes = REL) -> bytes:
    """Return a valid line of `size` bytes."""
    return message[:-1] + b" " * (size - len(message)) + b"}"


# -- coming up


def test_a_plain_link_is_up_at_once_with_the_peer_that_it_was_given() -> None:
    peer = Peer(plain_peer="anybody")
    assert peer.owner.ups == [peer.link]
    assert peer.link.peer == "anybody"


def test_a_tls_link_is_up_after_its_handshake_with_the_peer_that_the_certificate_names() -> None:
    asked: list[Any] = []

    def authenticate(connection: Any) -> str:
        asked.append(connection)
        return "ada"

    peer = Peer(plain_peer=None, authenticate=authenticate)
    assert peer.owner.ups == []
    peer.link.handshakeCompleted()
    assert peer.owner.ups == [peer.link]
    assert peer.link.peer == "ada"
    assert asked == [peer.wire.handle]


def test_messages_before_the_handshake_are_ignored() -> None:
    peer = Peer(authenticate=lambda _connection: "ada")
    peer.says(REL, b"rubbish")
    assert peer.owner.messages == []
    assert peer.reads() == []
    peer.link.handshakeCompleted()
    peer.says(REL)
    assert len(peer.owner.messages) == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_a_handshake_that_takes_more_than_10_seconds_is_cut_off_and_reported(accepted: bool) -> None:
    peer = Peer(accepted=accepted, authenticate=lambda _connection: "ada")
    peer.clock.advance(9.9)
    assert not peer.is_cut_off
    peer.clock.advance(0.2)
    assert peer.is_cut_off
    peer.goes()
    [reason] = peer.owner.downs
    assert isinstance(reason.value, StreamError)
    assert reason.value.msg == "no TLS handshake in 10 s"


@pytest.mark.parametrize("problem", [StreamError("not-authenticated", "who are you"), RuntimeError("oops")])
def test_a_peer_that_cannot_be_authenticated_is_cut_off_and_the_reason_reported(problem: Exception) -> None:
    def authenticate(_connection: Any) -> Any:
        raise problem

    peer = Peer(authenticate=authenticate)
    peer.link.handshakeCompleted()
    assert peer.is_cut_off
    peer.says(REL)
    peer.goes()
    assert peer.owner.ups == []
    assert peer.owner.messages == []
    assert peer.reads() == []
    assert [reason.value for reason in peer.owner.downs] == [problem]
    assert peer.clock.getDelayedCalls() == []


# -- messages


def test_messages_go_to_the_owner_and_answers_to_the_waiting_caller() -> None:
    peer = user()
    peer.says(REL, line("RESP"), line("ProdLstn"), line("ERROR"), line("Status"))
    assert [type(message) for message in peer.owner.messages] == [Rel, ProdLstn, Status]
    assert [type(answer) for answer in peer.owner.answers] == [Resp, Error]
    assert peer.reads() == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_carriage_return_before_the_end_of_a_line_is_ignored(end: bytes) -> None:
    peer = user()
    peer.link.dataReceived(REL + end + REL + end)
    assert peer.owner.messages == [decode(REL)] * 2


def test_a_line_may_come_in_pieces() -> None:
    peer = user()
    for number in range(len(REL)):
        peer.link.dataReceived(REL[number : number + 1])
    assert peer.owner.messages == []
    peer.link.dataReceived(b"\n")
    assert peer.owner.messages == [decode(REL)]


def test_a_bad_line_is_answered_with_an_error_that_names_the_field_and_changes_nothing() -> None:
    peer = user()
    peer.says(line("REL", seq=7, role="BOTH"))
    [error] = peer.reads()
    assert isinstance(error, Error)
    assert (error.uid, error.seq, error.code) == (UID, 7, "bad-message")
    assert "role" in error.msg
    assert peer.owner.messages == []
    assert not peer.is_closed


def test_a_line_of_which_nothing_can_be_read_is_answered_without_a_uid() -> None:
    peer = user()
    peer.says(b"GET / HTTP/1.1")
    assert peer.reads() == [
        Error(uid=None, code="bad-message", msg="the line is not JSON: JSON is malformed: invalid character (byte 0)")
    ]


@pytest.mark.parametrize(
    "answer",
    [
        line("RESP"),
        line("ERROR"),
        line("ERROR", seq=...),
        line("RESP", seq=0),
        line("RESP", surprise=1),
        line("ERROR", code="OOPS"),
        line("ERROR", msg="x" * 2001),
    ],
)
def test_answers_are_never_answered_not_even_bad_ones(answer: bytes) -> None:
    peer = user()
    peer.says(answer)
    assert peer.reads() == []


def test_the_eighth_bad_line_is_answered_and_closes_the_link() -> None:
    peer = user()
    peer.says(*[b"rubbish"] * (MAX_BAD_LINES - 1))
    assert not peer.is_closed
    peer.says(REL, b"rubbish", REL)
    assert peer.is_closed
    assert len(peer.reads()) == MAX_BAD_LINES
    assert peer.owner.messages == [decode(REL)], "what comes after it does not count"


def test_bad_answers_count_as_bad_lines() -> None:
    peer = server()
    peer.says(*[line("RESP", seq=0)] * MAX_BAD_LINES)
    assert peer.is_closed
    assert peer.reads() == []


def test_bad_lines_are_counted_over_the_life_of_a_link() -> None:
    peer = user()
    for _ in range(MAX_BAD_LINES):
        assert not peer.is_closed
        peer.says(REL, b"rubbish", REL)
        peer.clock.advance(3600)
    assert peer.is_closed


# -- long lines


@pytest.mark.parametrize("make", [user, server])
def test_a_line_may_have_262144_bytes_and_no_more(make: Callable[[], Peer]) -> None:
    assert MAX_LINE == 262_144
    peer = make()
    peer.says(padded(MAX_LINE))
    assert len(peer.owner.messages) == 1
    peer.says(padded(MAX_LINE + 1))
    assert peer.is_closed
    [error] = peer.reads()
    assert error == Error(uid=None, code="bad-message", msg="a line has at most 262144 bytes")


def test_a_line_that_does_not_end_closes_the_link_as_soon_as_it_is_too_long() -> None:
    peer = user()
    peer.link.dataReceived(b"x" * MAX_LINE)
    assert not peer.is_closed
    peer.link.dataReceived(b"x")
    assert peer.is_closed


def test_the_first_line_of_a_stranger_may_have_65536_bytes_and_no_more() -> None:
    assert MAX_FIRST_LINE == 65_536
    peer = stranger()
    peer.says(padded(MAX_FIRST_LINE))
    assert len(peer.owner.messages) == 1

    other = stranger()
    other.says(padded(MAX_FIRST_LINE + 1))
    assert other.owner.messages == []
    assert other.is_closed
    assert other.reads() == [Error(uid=None, code="bad-message", msg="a line has at most 65536 bytes")]


def test_lines_of_a_stranger_stay_short_until_it_is_authenticated() -> None:
    other = stranger()
    other.says(REL, padded(MAX_FIRST_LINE + 1))
    assert other.is_closed

    peer = stranger()
    peer.says(REL)
    peer.link.mark_proven(None)
    peer.says(padded(MAX_LINE))
    assert len(peer.owner.messages) == 2
    peer.says(padded(MAX_LINE + 1))
    assert peer.is_closed


def test_a_stranger_s_line_that_comes_byte_by_byte_and_never_ends_is_cut_at_the_same_length() -> None:
    peer = stranger()
    for _ in range(MAX_FIRST_LINE):
        peer.link.dataReceived(b"x")
    assert not peer.is_closed
    peer.link.dataReceived(b"x")
    assert peer.is_closed


def seconds_for(lines: bytes, size: int) -> float:
    """Return the processor time for lines in chunks of this size, the best of three."""
    taken = []
    for _ in range(3):
        peer = user()
        began = time.process_time()
        for at in range(0, len(lines), size):
            peer.link.dataReceived(lines[at : at + size])
        taken.append(time.process_time() - began)
        assert not peer.is_closed
    return min(taken)


def test_a_line_that_comes_byte_by_byte_costs_in_proportion_to_its_length() -> None:
    short = seconds_for(b"x" * 16_384, 1)
    assert seconds_for(b"x" * MAX_LINE, 1) < 3 * 16 * short, "16 times as long: a quadratic one takes 256 times as long"


class Curt(Owner):
    """An owner that answers each message."""

    def message_received(self, link: Link, message: Message) -> None:
        super().message_received(link, message)
        link.send(Error(uid=None, code="wrong-state", msg=""))


def test_lines_that_wait_for_a_peer_that_does_not_read_cost_in_proportion_to_their_number() -> None:
    def cost(count: int) -> float:
        taken = []
        for _ in range(3):
            wire = SlowWire()
            wire.bufferSize = 0  # each answer fills it
            peer = Peer(owner=Curt(), wire=wire)
            began = time.process_time()
            peer.link.dataReceived((REL + b"\n") * count)
            while wire.is_full:
                wire.drained()
            taken.append(time.process_time() - began)
            assert len(peer.owner.messages) == count
        return min(taken)

    assert cost(8000) < 3 * 16 * cost(500), "16 times as many: a quadratic one takes 256 times as long"


def test_a_peer_that_floods_a_closed_link_fills_no_memory_and_is_cut_off() -> None:
    peer = stranger()
    for _ in range(100):
        peer.link.dataReceived(b"x" * MAX_FIRST_LINE)
    assert peer.is_closed
    assert len(peer.link._lines) <= 2 * MAX_FIRST_LINE
    assert len(peer.reads()) == 1
    assert not peer.is_cut_off
    peer.clock.advance(10)
    assert peer.is_cut_off


# -- silence


def test_a_stranger_that_says_no_line_in_10_seconds_is_cut_off() -> None:
    peer = stranger()
    peer.clock.advance(9.9)
    peer.link.dataReceived(REL)
    assert not peer.is_cut_off
    peer.clock.advance(0.2)
    assert peer.is_cut_off, "half a line is no line"
    peer.goes()
    assert "no line in 10 s" in str(peer.owner.downs[0].value)


@pytest.mark.parametrize("first", [REL, b"rubbish"])
def test_a_stranger_that_is_not_authenticated_after_10_seconds_is_cut_off(first: bytes) -> None:
    peer = stranger()
    peer.clock.advance(9.9)
    peer.says(first)
    assert not peer.is_cut_off
    peer.clock.advance(0.2)
    assert peer.is_cut_off
    peer.goes()
    assert "no authentication in 10 s" in str(peer.owner.downs[0].value)


def test_a_peer_may_be_silent_once_it_is_authenticated() -> None:
    peer = stranger()
    peer.says(REL)
    peer.link.mark_proven(None)
    peer.clock.advance(86400)
    assert not peer.is_closed
    assert peer.clock.getDelayedCalls() == []


@pytest.mark.parametrize("make", [user, server, Peer])
def test_a_peer_that_is_known_may_be_silent(make: Callable[[], Peer]) -> None:
    peer = make()
    peer.clock.advance(86400)
    assert not peer.is_closed
    assert peer.clock.getDelayedCalls() == []


# -- the end


def test_the_owner_is_told_once_that_the_link_is_gone_and_no_timer_is_left() -> None:
    for peer in (stranger(), user(), server(), Peer(authenticate=lambda _connection: "ada")):
        peer.goes()
        assert [reason.type for reason in peer.owner.downs] == [ConnectionDone]
        assert not peer.link.is_up
        assert peer.clock.getDelayedCalls() == []


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize(("slow", "end"), [(1.0, 10.0), (1.0, 400 * 86400.0), (0.5, 30 * 86400.0), (2.0, 30 * 86400.0)])
def test_a_link_ends_when_what_its_peer_has_proved_itself_with_does(accepted: bool, slow: float, end: float) -> None:
    """Credentials expire by the wall clock, which may run slower or faster than the clock of timers."""
    clocks: list[Clock] = []
    peer = Peer(
        accepted=accepted,
        authenticate=lambda _connection: "ada",
        expiry=lambda _connection: (end - (clocks[0].seconds() * slow if clocks else 0.0), "it has ended"),
    )
    clocks.append(peer.clock)
    peer.link.handshakeCompleted()
    while peer.clock.seconds() * slow + 86400.0 * max(slow, 1) < end:
        peer.clock.advance(86400.0)
        assert peer.link.is_up
    assert peer.reads() == []
    for _ in range(60):
        peer.clock.advance(3600.0)
    (said,) = peer.reads()
    assert said == Error(uid=None, code="not-authenticated", msg="it has ended")
    assert not peer.link.is_up
    peer.goes()
    assert peer.clock.getDelayedCalls() == []


def test_what_has_ended_in_the_handshake_ends_the_link_at_once() -> None:
    peer = Peer(authenticate=lambda _connection: "ada", expiry=lambda _connection: (0.0, "it has ended"))
    peer.link.handshakeCompleted()
    assert not peer.link.is_up
    assert peer.reads() == [Error(uid=None, code="not-authenticated", msg="it has ended")]


def test_what_never_ends_has_no_timer() -> None:
    peer = Peer(authenticate=lambda _connection: "ada", expiry=lambda _connection: (math.inf, ""))
    peer.link.handshakeCompleted()
    assert peer.clock.getDelayedCalls() == []


def test_what_is_sent_on_a_link_that_is_down_is_dropped() -> None:
    peer = Peer(authenticate=lambda _connection: "ada")
    peer.link.send(STATUS)
    assert peer.reads() == []
    peer.link.handshakeCompleted()
    peer.link.send(STATUS)
    assert peer.reads() == [STATUS]
    peer.goes()
    peer.link.send(STATUS)
    peer.link.send_command(STATUS)
    assert peer.reads() == []


@pytest.mark.parametrize("make", [stranger, user, server])
def test_after_close_nothing_is_read_or_written_and_the_peer_has_10_seconds(make: Callable[[], Peer]) -> None:
    peer = make()
    peer.link.send(STATUS)
    peer.link.close()
    assert peer.is_closed
    assert not peer.is_cut_off, "what was written before must still arrive"
    peer.says(REL, b"rubbish")
    peer.link.send(STATUS)
    assert peer.owner.messages == []
    assert peer.reads() == [STATUS]
    peer.link.close()
    peer.clock.advance(9.9)
    assert not peer.is_cut_off
    peer.clock.advance(0.2)
    assert peer.is_cut_off


def test_a_peer_that_closes_in_time_is_not_cut_off() -> None:
    peer = user()
    peer.link.close()
    peer.goes()
    assert peer.clock.getDelayedCalls() == []
    assert not peer.is_cut_off


def test_a_link_can_be_closed_before_it_is_up_and_after_it_is_gone() -> None:
    peer = Peer(authenticate=lambda _connection: "ada")
    peer.link.close()
    assert peer.is_closed
    peer.goes()
    peer.link.close()
    assert peer.clock.getDelayedCalls() == []


def test_abort_closes_at_once() -> None:
    peer = user()
    peer.link.abort()
    assert peer.is_cut_off


# -- what is sent


def test_commands_are_numbered_from_one_on_each_link() -> None:
    peer = server()
    numbers = [peer.link.send_command(Rel(uid=UID, role=PROD, seq=0)) for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert [message.seq for message in peer.reads() if isinstance(message, Rel)] == [1, 2, 3]


def test_an_answer_has_the_number_of_its_command() -> None:
    peer = user()
    command = Rel(uid=UID, role=PROD, seq=9)
    peer.link.answer(command, "Released", "gone")
    peer.link.refuse(command, "unknown-uid", "never seen")
    peer.link.refuse(ProdLstn(uid=UID, role=PROD, listeners=["127.0.0.1:1"]), "not-authorized", "not from you")
    assert peer.reads() == [
        Resp(uid=UID, seq=9, state="Released", msg="gone"),
        Error(uid=UID, seq=9, code="unknown-uid", msg="never seen"),
        Error(uid=UID, code="not-authorized", msg="not from you"),
    ]


def test_a_reason_that_is_too_long_for_a_message_is_cut_and_still_arrives() -> None:
    peer = user()
    peer.link.refuse(Rel(uid=UID, role=PROD, seq=9), "target-refused", "x" * 5000)
    [error] = peer.reads()
    assert isinstance(error, Error)
    assert error.msg == "x" * 2000


def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    peer = user()
    brake = peer.wire.producer
    assert brake is not None
    assert peer.wire.streaming
    brake.pauseProducing()
    assert peer.wire.producerState == "paused"
    brake.resumeProducing()
    assert peer.wire.producerState == "producing"


class Verbose(Owner):
    """An owner that sends a long answer to each command."""

    def message_received(self, link: Link, message: Message) -> None:
        super().message_received(link, message)
        assert isinstance(message, Rel)
        link.send(ProdLstn(uid=UID, role=PROD, listeners=["127.0.0.1:10000"] * 1000))


def verbose_user() -> tuple[Peer, SlowWire]:
    wire = SlowWire()
    return Peer(owner=Verbose(), wire=wire), wire


def test_commands_of_a_peer_that_does_not_read_are_delayed_and_none_is_lost() -> None:
    peer, wire = verbose_user()
    heard = peer.owner.messages
    peer.says(*[line("REL", seq=number) for number in range(1, 101)])
    peer.link.dataReceived(line("REL", seq=101)[:7])
    assert 0 < len(heard) < 10, "it has answered until the transport was full"
    waiting = len(wire.value())
    assert waiting < 2 * SlowWire.bufferSize
    peer.link.dataReceived(line("REL", seq=101)[7:] + b"\n")  # what TLS has read already
    assert len(wire.value()) == waiting
    read = 0
    while wire.is_full:
        read += len(peer.reads())
        wire.drained()
    read += len(peer.reads())
    assert [message.seq for message in heard] == list(range(1, 102))
    assert read == 101
    assert not peer.is_cut_off


@pytest.mark.parametrize("reads", [False, True])
def test_a_peer_that_never_reads_what_comes_unasked_is_cut_off_and_one_that_reads_is_not(reads: bool) -> None:
    peer, wire = verbose_user()
    news = ProdLstn(uid=UID, role=PROD, listeners=["127.0.0.1:10000"] * 1000)
    written = 0
    for _ in range(2 * MAX_UNREAD // 18_000):
        peer.link.send(news)
        written = max(written, len(wire.value()))
        if reads:
            peer.reads()
            wire.drained()
    assert written <= MAX_UNREAD + 2 * MAX_LINE
    assert peer.is_cut_off is not reads
    peer.goes()
    assert peer.clock.getDelayedCalls() == []
    assert ("does not read" in str(peer.owner.downs[0].value)) is not reads


def test_a_peer_that_reads_nothing_can_be_closed_with_lines_of_it_unread() -> None:
    peer, wire = verbose_user()
    peer.says(*[REL] * 100)
    assert wire.is_full
    heard = len(peer.owner.messages)
    peer.link.close()
    wire.drained()
    assert len(peer.owner.messages) == heard
    peer.clock.advance(10)
    assert peer.is_cut_off


def test_the_owner_is_told_of_each_bad_line_and_of_the_one_that_closes_the_link() -> None:
    told: list[tuple[str | None, bool]] = []
    for bad in (line("REL", role=7), b"RESP", line("RESP", seq="x")):
        peer = user()
        peer.link.on_bad_line = lambda uid, why, closed: told.append((uid if why else "no reason", closed))
        peer.says(REL, *[bad] * 9)
        assert peer.is_closed
        assert told == [(decoded_uid(bad), False)] * 7 + [(decoded_uid(bad), True)]
        told.clear()
    peer = user()
    peer.link.on_bad_line = lambda uid, why, closed: told.append((uid if why else "no reason", closed))
    peer.says(b" " * (MAX_LINE + 1))
    assert told == [(None, True)]


def decoded_uid(bad: bytes) -> str | None:
    return UID if UID.encode() in bad else None


def test_a_peer_that_says_too_much_is_read_later_and_nothing_of_it_is_lost() -> None:
    listener = AdmissionController(Clock(), Bounds(commands_per_second=10), "the listener", known_refusal=0.0)
    admission = listener.admit("192.0.2.1")
    peer = Peer(admission=admission)
    peer.link.mark_proven("ada")
    peer.says(*[REL] * 50)
    assert peer.wire.producerState == "producing"
    peer.says(*[REL] * 20)
    assert peer.wire.producerState == "paused"
    assert len(peer.owner.messages) == 70
    peer.clock.advance(1.9)
    assert peer.wire.producerState == "paused"
    peer.clock.advance(0.2)
    assert peer.wire.producerState == "producing"


def test_a_link_that_rests_and_is_closed_leaves_no_timer_but_its_last_one() -> None:
    listener = AdmissionController(Clock(), Bounds(commands_per_second=1), "the listener", known_refusal=0.0)
    peer = Peer(admission=listener.admit("192.0.2.1"))
    peer.link.mark_proven("ada")
    peer.says(*[REL] * 10)
    assert peer.wire.producerState == "paused"
    peer.link.close()
    assert len(peer.clock.getDelayedCalls()) == 1
    peer.goes()
    assert peer.clock.getDelayedCalls() == []
    assert listener.links == 0


def test_the_peer_s_address_is_known_for_logs() -> None:
    assert user().link.address == "192.168.1.1:54321"


# -- anything at all


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(
        st.binary(max_size=60)
        | messages.map(without_lf)
        | messages.map(lambda message: without_lf(message)[:40])
        | st.sampled_from([b"\n", b"\r\n", b"\n\n\n", REL + b"\n", line("RESP", seq=0) + b"\n"]),
        max_size=12,
    ),
    make=st.sampled_from([stranger, user, server]),
)
def test_only_bad_lines_are_answered_and_nothing_is_raised_on_any_input(
    chunks: list[bytes], make: Callable[[], Peer]
) -> None:
    peer = make()
    for chunk in chunks:
        peer.link.dataReceived(chunk)
    answers: list[Message] = peer.reads()
    assert len(answers) <= MAX_BAD_LINES + 1
    assert all(isinstance(answer, Error) and answer.code == "bad-message" for answer in answers)
    peer.goes()
    assert peer.clock.getDelayedCalls() == []
