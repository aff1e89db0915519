"""Places for connections that a producer's gateway has dialled: who gets one, and who waits, in virtual time."""

from __future__ import annotations

import socket
import sys
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.internet.task import Clock

from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2ds.capacity import STREAM_SHARE, SharedLimits
from scistream.s2ds.elements import shared_figures
from scistream.s2ds.elements.channel import NOT_ARMED
from scistream.s2ds.elements.commands import HandOver, PlaceAnswer, PlaceRequest, Reset, SetHalfOpen, SetTargets
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.places import TOO_MANY_JOINING, Claims, Places
from scistream.s2ds.elements.pool import NO_OWNER_SHARE, NO_SHARE, UNREAD, Elements
from scistream.s2ds.elements.ready import share_of_element
from scistream.s2ds.relay.wan import WanConnection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

ELEMENTS = 3
UIDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(3)]
KEY = UIDS[0], PROD


# -- the initiator


class StubMember:
    """An element that only notes the answers and the connections that it gets."""

    ready = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.handed_over: list[HandOver] = []
        self.answers: list[str] = []
        self.commands: list[object] = []

    def ask(self, command: object) -> Any:
        self.commands.append(command)
        return succeed(None)

    def tell(self, answer: PlaceAnswer) -> None:
        self.answers.append(answer.refusal)

    def carry(self, hand_over: HandOver, sock: socket.socket) -> bool:
        sock.close()
        self.handed_over.append(hand_over)
        return True

    def most_descriptors(self) -> int:
        return 1000


class Gateway:
    """The initiator of a producer's gateway that dials at first, with elements that only exist in the figures."""

    def __init__(self, limits: SharedLimits, owners: tuple[str, ...] = ("", "", "")) -> None:
        self.resets: list[Reset] = []
        self.elements = Elements(Clock(), ELEMENTS, 8, ElementSettings(), limits, on_reset=self.resets.append)
        self.members = [StubMember(number) for number in range(ELEMENTS)]
        self.elements._members = list(self.members)
        for slot, (uid, owner) in enumerate(zip(UIDS, owners, strict=True)):
            self.elements.open(uid, PROD, 10.0, {0: slot}, owner)
            self.let_dial(slot, PROD)
        self.open: list[tuple[int, int, bool]] = []
        """The stream and the element of each connection, and whether this gateway has accepted it."""

    def let_dial(self, stream: int, dialler: Role) -> None:
        """Let the gateway of that side dial for new connections of a stream."""
        self.elements._streams[UIDS[stream], PROD].update = SetTargets(
            uid=UIDS[stream], role=PROD, targets={}, credentials=None, wan_dialer=dialler
        )

    def ask(self, stream: int, element: int, channel: int = 0) -> str:
        """Ask for a place; return the reason for a refusal, or an empty text."""
        request = PlaceRequest(number=1, uid=UIDS[stream], role=PROD, channel=channel)
        self.elements._place_requested(element, request)
        refusal = self.members[element].answers.pop()
        if not refusal:
            self._begin(stream, element, is_accepted=False)
        return refusal

    def accept(self, stream: int) -> str:
        """Accept a connection, which is joined at once; return the reason for a refusal, or an empty text."""
        self.elements.carry(UIDS[stream], PROD, 0, socket.socket(), wan=True)
        if self.resets:
            return self.resets.pop().reason
        (element,) = (member.number for member in self.members if member.handed_over)
        self.members[element].handed_over.clear()
        self._begin(stream, element, is_accepted=True)
        return ""

    def _begin(self, stream: int, element: int, *, is_accepted: bool) -> None:
        """Begin a connection, as its element would."""
        figures = self.elements._figures
        row = figures.row(stream, element)
        figures.words[row + shared_figures.OPEN] += 1
        figures.words[row + shared_figures.TAKEN] += is_accepted
        figures.words[row + shared_figures.ACCEPTED_USED] += is_accepted
        self.open.append((stream, element, is_accepted))

    def end(self, which: int) -> None:
        """End a connection, as its element would."""
        stream, element, is_accepted = self.open.pop(which)
        figures = self.elements._figures
        row = figures.row(stream, element)
        figures.words[row + shared_figures.OPEN] -= 1
        figures.words[row + shared_figures.ACCEPTED_USED] -= is_accepted
        figures.words[row + shared_figures.GIVEN_BACK] += not is_accepted
        figures.words[figures.ended(element)] += 1

    def count(self, stream: int) -> int:
        return sum(one == stream for one, _, _ in self.open)

    def close(self) -> None:
        self.elements._figures.close()


def test_a_stream_gets_its_share_from_all_elements_together_and_never_more() -> None:
    gateway = Gateway(SharedLimits(connections=8))
    told = [gateway.ask(0, number % ELEMENTS) for number in range(12)]
    assert told == [""] * 4 + [NO_SHARE] * 8
    gateway.end(1)
    assert [gateway.ask(0, 2), gateway.ask(0, 2)] == ["", NO_SHARE]
    assert gateway.ask(1, 0) == "", "what is left is for other streams"
    gateway.close()


def test_the_streams_of_one_user_share_what_one_user_may_have() -> None:
    gateway = Gateway(SharedLimits(connections=16, owner_share=25), owners=("ada", "ada", "eve"))
    assert [gateway.ask(number % 2, number % ELEMENTS) for number in range(6)] == [""] * 4 + [NO_OWNER_SHARE] * 2
    assert [gateway.ask(2, 0) for _ in range(4)] == [""] * 3 + [NO_OWNER_SHARE]
    gateway.close()


def test_a_stream_with_too_many_unread_bytes_gets_no_place() -> None:
    gateway = Gateway(SharedLimits(connections=100, unread=1000))
    assert gateway.ask(0, 1) == ""
    figures = gateway.elements._figures
    row = figures.row(0, 1)
    figures.words[row + shared_figures.OPEN], figures.words[row + shared_figures.UNREAD] = 1, 600
    gateway.elements._unread_until = 0.0
    assert gateway.ask(0, 2) == UNREAD
    assert gateway.ask(1, 2) == ""
    gateway.close()


@pytest.mark.parametrize("unknown", ["stream", "channel"])
def test_what_the_initiator_does_not_know_gets_no_place(unknown: str) -> None:
    gateway = Gateway(SharedLimits())
    if unknown == "stream":
        del gateway.elements._streams[KEY]
    assert gateway.ask(0, 0, channel=7 if unknown == "channel" else 0) == NOT_ARMED
    assert gateway.elements._connections_at(0) == 0
    gateway.close()


def test_an_element_that_dies_gives_back_all_places() -> None:
    gateway = Gateway(SharedLimits(connections=8))
    assert [gateway.ask(0, number) for number in (0, 0, 0, 1, 1)] == ["", "", "", "", NO_SHARE]
    gateway.elements._count_lost(0)
    assert [gateway.ask(0, 1) for _ in range(4)] == ["", "", "", NO_SHARE]
    gateway.close()


def test_an_element_that_starts_learns_how_many_may_wait_for_the_program() -> None:
    gateway = Gateway(SharedLimits(half_open=7))
    assert SetHalfOpen(half_open=7) in gateway.elements._replay()
    gateway.elements.set_limits(SharedLimits(half_open=9))
    assert SetHalfOpen(half_open=9) in gateway.elements._replay()
    assert all(SetHalfOpen(half_open=9) in member.commands for member in gateway.members)
    gateway.close()


@pytest.mark.parametrize("first", [CONS, PROD])
def test_a_stream_has_one_share_when_its_dialler_changes(first: Role) -> None:
    gateway = Gateway(SharedLimits(connections=16))
    for dialler in (first, CONS if first == PROD else PROD):
        gateway.let_dial(0, dialler)
        told = [gateway.accept(0) if dialler == CONS else gateway.ask(0, number % ELEMENTS) for number in range(9)]
        assert told == ([""] * 8 + [NO_SHARE] if dialler == first else [NO_SHARE] * 9)
    gateway.close()


def test_an_element_that_dies_takes_nothing_of_the_share_with_it_of_either_kind() -> None:
    gateway = Gateway(SharedLimits(connections=8))
    assert [gateway.accept(0), gateway.ask(0, 0), gateway.accept(0), gateway.ask(0, 1)] == [""] * 4
    for element in range(ELEMENTS):
        gateway.elements._count_lost(element)
    for lost in gateway.open, gateway.resets:
        lost.clear()
    assert [gateway.accept(0) for _ in range(5)] == [""] * 4 + [NO_SHARE]
    gateway.close()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2), st.integers(0, ELEMENTS - 1)),
        st.tuples(st.just("accept"), st.integers(0, 2), st.just(0)),
        st.tuples(st.sampled_from([CONS, PROD]), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 24), st.just(0)),
    ),
    max_size=80,
)


@given(steps)
def test_no_order_of_events_gives_a_stream_more_or_less_than_its_share(steps: list[tuple[str, int, int]]) -> None:
    most = 10
    gateway = Gateway(SharedLimits(connections=most))
    for what, number, element in steps:
        if what == "limit":
            most = number
            gateway.elements.set_limits(SharedLimits(connections=most))
        elif what == "end" and gateway.open:
            gateway.end(number % len(gateway.open))
        elif what in (CONS, PROD):
            gateway.let_dial(number, cast(Role, what))
        elif what in ("ask", "accept"):
            used, left = gateway.count(number), most - len(gateway.open)
            is_full = used > 0 and used * (100 - STREAM_SHARE) >= left * STREAM_SHARE
            refusal = gateway.ask(number, element) if what == "ask" else gateway.accept(number)
            assert (refusal == "") == (not is_full)
    gateway.close()


# -- an element


class Channel:
    """A channel whose connections get the answers that a test gives."""

    def __init__(self, most: int) -> None:
        self.clock = Clock()
        self.requests: list[PlaceRequest] = []
        self.places = Places(self.requests.append)
        self.joining = 0
        self.given_back = 0
        self.answers: list[tuple[int, str]] = []
        self.claims = Claims(
            self.clock,
            self.places,
            KEY,
            0,
            lambda: most,
            lambda: self.joining,
            10.0,
            self.note,
            self.note_back,
        )

    def note(self, _wan: WanConnection, number: int, refusal: str) -> None:
        self.answers.append((number, refusal))
        self.joining += not refusal

    def note_back(self) -> None:
        self.given_back += 1

    def add(self, number: int) -> WanConnection:
        wan = cast(WanConnection, object())
        self.claims.add(wan, number)
        return wan

    def answer(self, refusal: str = "") -> bool:
        """Answer the oldest request that is not answered."""
        return self.places.answered(PlaceAnswer(number=self.requests.pop(0).number, refusal=refusal))


def test_whoever_claims_asks_at_once_and_is_told() -> None:
    channel = Channel(most=4)
    channel.add(1)
    channel.add(2)
    assert [(one.uid, one.role, one.channel) for one in channel.requests] == [(*KEY, 0)] * 2
    assert channel.answer()
    assert channel.answer("full")
    assert channel.answers == [(1, ""), (2, "full")]
    assert len(channel.claims) == 0
    assert not channel.clock.getDelayedCalls()


def test_those_beyond_the_limit_wait_in_order_until_fewer_wait_for_the_program() -> None:
    channel = Channel(most=2)
    for number in range(1, 6):
        channel.add(number)
    assert len(channel.requests) == 2, "a request counts as one that waits for ProdApp"
    channel.answer()
    channel.answer()
    channel.claims.serve()
    assert not channel.requests
    channel.joining -= 1
    channel.claims.serve()
    channel.answer("full")
    channel.answer()
    assert channel.answers == [(1, ""), (2, ""), (3, "full"), (4, "")], "a refused one makes room for the next"
    channel.clock.advance(10.0)
    assert channel.answers[4:] == [(5, TOO_MANY_JOINING)]
    assert not channel.requests


def test_a_place_for_a_connection_that_has_ended_is_given_back() -> None:
    channel = Channel(most=1)
    first, second, third = (channel.add(number) for number in (1, 2, 3))
    assert channel.claims.remove(first) == 1
    assert channel.claims.remove(second) == 2
    channel.answer()
    assert (channel.given_back, channel.answers) == (1, [])
    channel.answer()
    assert channel.answers == [(3, "")]
    assert third not in channel.claims
    assert not channel.clock.getDelayedCalls()


def test_a_channel_that_is_closed_forgets_its_requests() -> None:
    channel = Channel(most=1)
    channel.add(1)
    channel.add(2)
    channel.claims.close()
    assert not channel.answer()
    assert (channel.given_back, channel.answers, len(channel.claims)) == (0, [], 0)
    assert not channel.clock.getDelayedCalls()


def test_answers_that_come_at_once_keep_the_order() -> None:
    channel = Channel(most=1)
    channel.joining = 1
    for number in range(1, 101):
        channel.add(number)

    def refuse(request: PlaceRequest) -> None:
        channel.places.answered(PlaceAnswer(number=request.number, refusal="full"))

    channel.places._send = refuse
    channel.joining = 0
    channel.claims.serve()
    assert channel.answers == [(number, "full") for number in range(1, 101)]


@pytest.mark.parametrize("elements", [1, 2, 3, 16])
@pytest.mark.parametrize("total", [0, 1, 5, 64])
def test_the_shares_of_all_elements_are_the_whole(total: int, elements: int) -> None:
    for channel in range(3):
        shares = [share_of_element(total, channel, element, elements) for element in range(elements)]
        assert sum(shares) == total
        assert max(shares) - min(shares) <= 1
