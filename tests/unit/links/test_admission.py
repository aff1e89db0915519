"""Admission at a listener, in virtual time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from scistream import timing
from scistream.links import admission as guard_module
from scistream.links.admission import Admission, AdmissionController, Bounds, DecayingCounter, doubling
from scistream.protocol.address import address_group, parse_network

ATTACKER, USER = "192.0.2.66", "192.0.2.7"


class Listener:
    """An admission controller and its clock. Links that it closes itself are in `cut`."""

    def __init__(self, *, known_refusal: float = timing.FIRST_REFUSAL, **bounds: float) -> None:
        self.clock = Clock()
        self.admission_controller = AdmissionController(
            self.clock, Bounds(**bounds), "the listener", known_refusal=known_refusal
        )
        self.cut: list[Admission] = []

    def comes(self, host: str) -> Admission | None:
        admission = self.admission_controller.admit(host)
        if admission is not None:
            admission.opened(lambda _why: self.cut.append(admission))
        return admission

    def must_come(self, host: str) -> Admission:
        admission = self.comes(host)
        assert admission is not None
        return admission

    def fails(self, host: str, times: int = 1) -> None:
        for _ in range(times):
            admission = self.must_come(host)
            admission.failed("rubbish")
            admission.closed()

    def seconds_until_open(self, host: str, step: float = 0.25) -> float:
        began = self.clock.seconds()
        while (admission := self.comes(host)) is None:
            self.clock.advance(step)
        admission.closed()
        return self.clock.seconds() - began


# -- addresses


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a socket without an address", "a socket without an address"),
    ],
)
def test_an_ipv4_address_counts_alone_and_an_ipv6_address_with_its_neighbours(host: str, place: str) -> None:
    assert address_group(host) == place


def test_all_addresses_of_a_64_share_one_bound_and_the_next_64_has_its_own() -> None:
    listener = Listener(unproven_per_address=3, links_per_address=5)
    mine = [f"2001:db8:0:1::{number:x}" for number in range(1, 9)]
    admissions = [admission for host in mine if (admission := listener.comes(host)) is not None]
    assert len(admissions) == 3
    assert listener.comes("2001:db8:0:2::1") is not None
    assert listener.comes("::ffff:192.0.2.7") is not None
    for admission in admissions:
        admission.mark_proven(None)
    assert [listener.comes(host) is not None for host in mine[3:7]] == [True, True, False, False]


def test_a_64_waits_for_what_one_of_its_addresses_does_and_the_next_64_does_not() -> None:
    listener = Listener(failures=3)
    for number in range(1, 4):
        listener.fails(f"2001:db8:0:1::{number:x}")
    assert listener.comes("2001:db8:0:1:ffff::1") is None
    assert listener.comes("2001:db8:0:2::1") is not None
    assert listener.comes("2001:db8::1") is not None


def test_ipv4_addresses_that_come_mapped_into_ipv6_do_not_share_one_64() -> None:
    listener = Listener(failures=2)
    listener.fails("::ffff:192.0.2.66", 2)
    assert listener.comes(ATTACKER) is None
    assert listener.comes("::ffff:192.0.2.7") is not None
    assert listener.comes("::1") is not None


# -- how many


def test_unproven_links_of_one_address_are_bounded_and_others_still_come_in() -> None:
    listener = Listener(unproven_per_address=3)
    assert [listener.comes(ATTACKER) is not None for _ in range(5)] == [True, True, True, False, False]
    assert listener.comes(USER) is not None
    assert listener.admission_controller.refused == 2
    assert listener.cut == []


def test_an_address_at_its_limit_gets_in_at_the_expense_of_its_own_oldest_link_after_a_while() -> None:
    listener = Listener(unproven_per_address=2)
    oldest, _ = listener.must_come(ATTACKER), listener.must_come(ATTACKER)
    listener.clock.advance(timing.UNPROVEN_GRACE - 0.1)
    assert listener.comes(ATTACKER) is None
    listener.clock.advance(0.2)
    assert listener.comes(ATTACKER) is not None
    assert listener.cut == [oldest]
    assert (listener.admission_controller.links, listener.admission_controller.unproven) == (2, 2)


def test_a_full_listener_makes_room_at_the_expense_of_the_address_that_holds_most() -> None:
    listener = Listener(unproven=6, unproven_per_address=4)
    held = [listener.must_come(ATTACKER) for _ in range(4)]
    others = [listener.must_come("192.0.2.8"), listener.must_come("192.0.2.9")]
    assert listener.comes(USER) is not None
    assert listener.cut == held[:1]
    assert listener.admission_controller.unproven == 6
    assert listener.comes("192.0.2.8") is not None
    assert listener.cut == held[:2]
    assert not set(others) & set(listener.cut)


def test_the_address_with_most_links_of_a_full_listener_gets_no_more_at_once() -> None:
    listener = Listener(unproven=4, unproven_per_address=4)
    listener.must_come(USER)
    for _ in range(3):
        listener.must_come(ATTACKER)
    assert listener.comes(ATTACKER) is None
    assert listener.cut == []


def test_a_full_listener_makes_room_for_a_few_links_of_an_address_and_no_more() -> None:
    listener = Listener(unproven=40, unproven_per_address=20)
    for number in range(2):
        for _ in range(20):
            listener.must_come(f"198.51.100.{number}")
    assert [listener.comes(ATTACKER) is not None for _ in range(6)] == [True] * 4 + [False] * 2
    assert listener.comes(USER) is not None
    assert len(listener.cut) == 5


def test_a_listener_filled_by_many_addresses_replaces_the_oldest_link() -> None:
    listener = Listener(unproven=5)
    held = []
    for number in range(5):
        held.append(listener.must_come(f"198.51.100.{number}"))
        listener.clock.advance(0.01)
    assert listener.comes(USER) is not None
    assert listener.cut == held[:1]


def test_links_that_have_proved_themselves_leave_the_room_of_the_unproven_to_others() -> None:
    listener = Listener(unproven_per_address=2, links_per_address=5)
    for _ in range(5):
        assert listener.must_come(USER).mark_proven(None)
    assert listener.admission_controller.unproven == 0
    assert listener.comes(USER) is None, "links_per_address"
    assert listener.comes(ATTACKER) is not None


def test_links_in_all_are_bounded() -> None:
    listener = Listener(links=3)
    admissions = [listener.must_come(f"198.51.100.{number}") for number in range(3)]
    for admission in admissions:
        admission.mark_proven(None)
    assert listener.comes(USER) is None
    admissions[0].closed()
    admissions[0].closed()
    assert listener.comes(USER) is not None


def test_links_of_one_identity_are_bounded_wherever_they_come_from() -> None:
    listener = Listener(links_per_identity=2)
    first, second, third = (listener.must_come(f"198.51.100.{number}") for number in range(3))
    assert first.mark_proven("ada")
    assert second.mark_proven("ada")
    assert not third.mark_proven("ada")
    third.closed()
    assert listener.must_come(USER).mark_proven("grace")
    first.closed()
    assert listener.must_come(USER).mark_proven("ada")


def test_links_without_a_name_are_not_counted_as_one_identity() -> None:
    listener = Listener(links_per_identity=2)
    assert all(listener.must_come(USER).mark_proven(None) for _ in range(5))


# -- failures


def test_an_address_waits_after_too_many_failures_and_no_other_one_does() -> None:
    listener = Listener(failures=3)
    listener.fails(ATTACKER, 2)
    assert listener.comes(ATTACKER) is not None
    listener.fails(ATTACKER)
    assert listener.comes(ATTACKER) is None
    assert listener.comes(USER) is not None


def test_the_wait_doubles_up_to_a_limit() -> None:
    listener = Listener(failures=3, longest_refusal=10.0)
    listener.fails(ATTACKER, 3)
    waits = [listener.seconds_until_open(ATTACKER)]
    for _ in range(6):
        listener.fails(ATTACKER)
        waits.append(listener.seconds_until_open(ATTACKER))
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == 10.0


def test_a_quiet_time_lets_everything_fade() -> None:
    listener = Listener(failures=5)
    listener.fails(ATTACKER, 5)
    listener.clock.advance(10 * timing.REFUSALS_HALVE)
    listener.fails(ATTACKER, 4)
    assert listener.comes(ATTACKER) is not None


def test_a_link_counts_one_failure_however_many_bad_lines_it_says() -> None:
    listener = Listener(failures=2)
    admission = listener.must_come(ATTACKER)
    for _ in range(100):
        admission.failed("a bad line")
    assert listener.comes(ATTACKER) is not None


def test_a_link_that_proves_itself_clears_its_address() -> None:
    listener = Listener(failures=3)
    waiting = listener.must_come(USER)
    listener.fails(USER, 3)
    assert listener.comes(USER) is None
    assert waiting.mark_proven("ada")
    assert listener.comes(USER) is not None


def test_what_a_known_peer_does_is_not_held_against_its_address() -> None:
    listener = Listener(failures=1)
    admission = listener.must_come(USER)
    admission.mark_proven("ada")
    admission.failed("a bad line")
    assert listener.comes(USER) is not None


def test_where_somebody_has_proved_himself_the_wait_stays_short() -> None:
    listener = Listener(failures=2)
    listener.must_come(USER).mark_proven("ada")
    for _ in range(6):
        listener.fails(USER)
        assert listener.seconds_until_open(USER) <= timing.FIRST_REFUSAL


def test_a_gateway_s_controller_gets_in_despite_other_links_from_its_address() -> None:
    listener = Listener(known_refusal=0.0, failures=2, unproven=8, unproven_per_address=4)
    listener.must_come(USER).mark_proven("the controller")
    for _ in range(50):
        listener.fails(USER)
    for _ in range(20):
        listener.comes(USER)
    listener.clock.advance(timing.UNPROVEN_GRACE)
    assert listener.must_come(USER).mark_proven("the controller")


def test_a_gateway_s_controller_gets_in_from_its_network_though_nobody_has_proved_himself_there_yet() -> None:
    clock = Clock()
    networks = (parse_network("192.0.2.0/28"), parse_network("2001:db8::/48"))
    admission_controller = AdmissionController(
        clock, Bounds(failures=1), "the listener", known_refusal=0.0, known=networks
    )
    for host in (USER, "2001:db8::7", ATTACKER):
        for _ in range(5):
            admission = admission_controller.admit(host)
            if admission is not None:
                admission.failed("rubbish")
                admission.closed()
    assert admission_controller.admit(USER) is not None
    assert admission_controller.admit("2001:db8::8") is not None
    assert admission_controller.admit(ATTACKER) is None


def test_other_bounds_count_for_links_and_commands_that_come_from_then_on() -> None:
    listener = Listener(links=2, commands_per_second=100)
    first, _ = listener.must_come(USER), listener.must_come(USER)
    first.mark_proven("ada")
    listener.admission_controller.set_bounds(
        Bounds(links=3, commands_per_second=1, failures=1), (parse_network("192.0.2.0/28"),)
    )
    listener.must_come(USER).closed()
    pauses = [first.line_received() for _ in range(10)]
    assert pauses[0] == 0.0
    assert pauses[-1] >= 4.0, "one a second, after the burst of five seconds"
    listener.admission_controller.set_bounds(Bounds(links=1))
    assert listener.comes(USER) is None
    assert listener.cut == []


def test_networks_that_are_spared_can_be_given_and_taken_away() -> None:
    listener = Listener(known_refusal=0.0, failures=1)
    listener.admission_controller.set_bounds(Bounds(failures=1), (parse_network("192.0.2.0/28"),))
    for _ in range(5):
        listener.fails(USER)
    assert listener.comes(USER) is not None
    listener.admission_controller.set_bounds(Bounds(failures=1))
    listener.fails(USER)
    assert listener.comes(USER) is None


def test_links_that_are_up_are_left_alone_when_their_address_has_to_wait() -> None:
    listener = Listener(failures=1)
    admission = listener.must_come(USER)
    admission.mark_proven("ada")
    listener.admission_controller._sources[USER].is_proven = False
    listener.fails(USER, 1)
    assert listener.comes(USER) is None
    assert listener.cut == []


# -- commands


def test_commands_may_come_in_bursts_and_are_read_later_above_the_rate() -> None:
    listener = Listener(commands_per_second=10)
    admission, other = listener.must_come(USER), listener.must_come(USER)
    assert admission.line_received() == 0.0, "of an unproven link other things are bounded"
    admission.mark_proven("ada")
    other.mark_proven("ada")
    waits = [link.line_received() for _ in range(25) for link in (admission, other)]
    assert waits == [0.0] * 50, "five seconds' worth"
    assert admission.line_received() == pytest.approx(0.1)
    assert other.line_received() == pytest.approx(0.2), "they share one budget"
    listener.clock.advance(0.2)
    assert admission.line_received() == pytest.approx(0.1)
    listener.clock.advance(3600)
    assert [admission.line_received() for _ in range(50)] == [0.0] * 50
    assert admission.line_received() > 0


# -- its own memory


def test_the_table_of_addresses_is_bounded_and_keeps_those_that_hold_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_SOURCES", 10)
    listener = Listener(failures=1)
    admission = listener.must_come(USER)
    for number in range(1000):
        listener.fails(f"198.51.{number // 250}.{number % 250}")
    assert len(listener.admission_controller._sources) <= 11
    admission.closed()
    assert listener.admission_controller.links == 0


# -- anything at all


@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=50).map(sorted),
    st.floats(0, 10_000),
)
def test_a_fading_count_never_exceeds_how_often_it_happened_and_fades_to_nothing(
    times: list[float], later: float
) -> None:
    count = DecayingCounter()
    for number, at in enumerate(times, 1):
        assert 1.0 <= count.add(at, 1000.0) <= number
    end = times[-1]
    assert count.value_at(end + later) <= count.value_at(end)
    assert count.value_at(end + 40 * timing.REFUSALS_HALVE) < 0.001


@given(st.floats(-100, 1e6), st.floats(0.5, 1e4))
def test_a_wait_is_never_longer_than_the_longest(times: float, longest: float) -> None:
    seconds = doubling(1.0, times, longest)
    assert 0.0 <= seconds <= longest
    assert doubling(1.0, times + 1, longest) >= seconds


HOSTS = [*(f"198.51.100.{number}" for number in range(4)), "2001:db8::1", "2001:db8::2", "2001:db8:1::1"]


class AnyVisits(RuleBasedStateMachine):
    """The counts of the controller always equal the links that exist, in any sequence of events."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds = Bounds(
            links=12,
            links_per_address=6,
            unproven=6,
            unproven_per_address=3,
            links_per_identity=2,
            failures=3,
            longest_refusal=5.0,
        )
        self.clock = Clock()
        self.admission_controller = AdmissionController(self.clock, self.bounds, "the listener", known_refusal=1.0)
        self.there: dict[Admission, str] = {}
        self.proven: dict[Admission, str | None] = {}

    @rule(host=st.sampled_from(HOSTS))
    def somebody_comes(self, host: str) -> None:
        admission = self.admission_controller.admit(host)
        if admission is not None:
            self.there[admission] = address_group(host)
            admission.opened(lambda _why: self._gone(admission))

    def _gone(self, admission: Admission) -> None:
        assert admission not in self.proven, "only the unproven make room"
        del self.there[admission]

    @precondition(lambda self: self.there)
    @rule(data=st.data(), who=st.sampled_from(["ada", "grace", None]))
    def one_proves_itself(self, data: st.DataObject, who: str | None) -> None:
        admission = data.draw(st.sampled_from(list(self.there)))
        if admission not in self.proven:
            if admission.mark_proven(who):
                self.proven[admission] = who
            else:
                self._leaves(admission)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def one_fails(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.there))).failed("rubbish")

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def one_goes(self, data: st.DataObject) -> None:
        self._leaves(data.draw(st.sampled_from(list(self.there))))

    def _leaves(self, admission: Admission) -> None:
        admission.closed()
        admission.closed()
        del self.there[admission]
        self.proven.pop(admission, None)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def it_counts_right_and_keeps_its_bounds(self) -> None:
        unproven = [admission for admission in self.there if admission not in self.proven]
        assert self.admission_controller.links == len(self.there) <= self.bounds.links
        assert self.admission_controller.unproven == len(unproven) <= self.bounds.unproven
        assert all(count <= self.bounds.links_per_address for count in Counter(self.there.values()).values())
        places = Counter(self.there[admission] for admission in unproven)
        assert all(count <= self.bounds.unproven_per_address for count in places.values())
        names = Counter(name for name in self.proven.values() if name is not None)
        assert all(count <= self.bounds.links_per_identity for count in names.values())

    def teardown(self) -> None:
        for admission in list(self.there):
            self._leaves(admission)
        assert (self.admission_controller.links, self.admission_controller.unproven) == (0, 0)
        self.clock.advance(20 * timing.REFUSALS_HALVE)
        for host in HOSTS:
            assert self.admission_controller.admit(host) is not None, "after a quiet time everybody is let in"


TestAnyVisits = AnyVisits.TestCase
