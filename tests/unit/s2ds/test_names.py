"""The names of other gateways: looked up without a thread, at each dial, and under the same rules as numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from log_lines import logged
from twisted.internet import reactor as running
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock, deferLater
from twisted.names import common, dns, error
from twisted.names.server import DNSServerFactory

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.elements.element import _may_dial
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.names import MOST_ADDRESSES, DatagramSocket, look_up, use_dns
from scistream.s2ds.relay.target_names import Names
from support.leased_ports import leased

PATIENCE = 30.0
reactor: Any = running


class Zone(common.ResolverBase):
    """A name server's knowledge: of names that begin with `slow` it says nothing until it gives up."""

    def __init__(self) -> None:
        super().__init__()
        self._slow: list[Deferred[Any]] = []
        self._has_given_up = False

    def give_up(self) -> None:
        """Say that there are no names that begin with `slow`, from now on."""
        self._has_given_up = True
        while self._slow:
            self._slow.pop().errback(error.DNSNameError())

    def lookupAddress(self, name: bytes, timeout: Any = None) -> Any:
        return self._look(name, dns.Record_A("192.0.2.7"), dns.Record_A("192.0.2.8"))

    def lookupIPV6Address(self, name: bytes, timeout: Any = None) -> Any:
        return self._look(name, dns.Record_AAAA("2001:db8::7"))

    def _look(self, name: bytes, *records: Any) -> Any:
        answer: Deferred[Any] = Deferred()
        is_slow = name.startswith(b"slow")
        if name.startswith(b"none") or (is_slow and self._has_given_up):
            answer.errback(error.DNSNameError())
        elif is_slow:
            self._slow.append(answer)
        else:
            found = [dns.RRHeader(name, one.TYPE, dns.IN, 60, one, auth=True) for one in records]
            answer.callback((found, [], []))
        return answer


class WithNames:
    """The running reactor, with a name server of this test's own."""

    def __init__(self, server: tuple[str, int], zone: Zone) -> None:
        self.zone = zone
        use_dns(self, [server])

    def installNameResolver(self, resolver: Any) -> None:
        self.nameResolver = resolver

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest.fixture
def world() -> Iterator[WithNames]:
    port, zone = leased.take(), Zone()
    protocol = dns.DNSDatagramProtocol(DNSServerFactory(clients=[zone]))
    listening = reactor.listenUDP(port, protocol, interface="127.0.0.1")
    yield WithNames(("127.0.0.1", port), zone)
    listening.stopListening()


async def test_all_addresses_of_both_families_are_found(world: WithNames) -> None:
    assert await look_up(world, "gateway.example", PATIENCE) == ["2001:db8::7", "192.0.2.7", "192.0.2.8"]


async def test_a_name_without_an_address_has_none(world: WithNames) -> None:
    assert await look_up(world, "none.example", PATIENCE) == []
    assert await look_up(world, "x" * 70 + ".example", PATIENCE) == []


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_number_is_there_at_once(world: WithNames, host: str) -> None:
    found: list[Any] = []
    look_up(world, host, PATIENCE).addCallback(found.append)
    assert found == [[host]]


async def test_this_machine_s_own_name_is_both_loopback_addresses(world: WithNames) -> None:
    assert await look_up(world, "localhost", PATIENCE) == ["::1", "127.0.0.1"]


async def test_two_hundred_names_that_nobody_answers_for_keep_no_other_name_waiting(world: WithNames) -> None:
    slow = [look_up(world, f"slow{number}.example", PATIENCE) for number in range(200)]
    assert len(await look_up(world, "gateway.example", PATIENCE)) == 3
    assert not any(one.called for one in slow), "these are waited for all the time"
    world.zone.give_up()
    assert await gatherResults(slow) == 200 * [[]]
    deadline = reactor.seconds() + PATIENCE
    while sum(isinstance(reader, DatagramSocket) for reader in reactor.getReaders()):
        assert reactor.seconds() < deadline, "the sockets of some questions stay open"
        await deferLater(reactor, 0.01)


async def test_two_hundred_questions_leave_no_line_in_the_log(world: WithNames) -> None:
    with logged() as lines:
        found = await gatherResults([look_up(world, f"gateway{number}.example", PATIENCE) for number in range(200)])
        assert await look_up(world, "none.example", PATIENCE) == []
    assert found == 200 * [["2001:db8::7", "192.0.2.7", "192.0.2.8"]]
    assert lines == []


class Liar(DatagramProtocol):
    """A name server that answers a question with many datagrams that are no answer, and the right one after them."""

    def __init__(self) -> None:
        self._knowledge = Zone()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        assert self.transport is not None
        question = dns.Message()
        question.fromStr(datagram)
        another = dns.Message(id=(question.id + 1) % 2**16, answer=True).toStr()
        for _ in range(10):
            for noise in (b"", datagram[:2], datagram[:11], os.urandom(60), another):
                self.transport.write(noise, addr)
        answer = dns.Message(id=question.id, answer=True)
        answer.queries = question.queries
        name, kind = question.queries[0].name.name, question.queries[0].type
        record: Any = dns.Record_A("192.0.2.7") if kind == dns.A else dns.Record_AAAA("2001:db8::7")
        answer.answers = [dns.RRHeader(name, kind, dns.IN, 60, record)]
        self.transport.write(answer.toStr(), addr)


async def test_what_is_no_answer_to_a_question_is_passed_over_without_a_word() -> None:
    port = leased.take()
    listening = reactor.listenUDP(port, Liar(), interface="127.0.0.1")
    try:
        with logged() as lines:
            found = await look_up(WithNames(("127.0.0.1", port), Zone()), "gateway.example", PATIENCE)
    finally:
        await listening.stopListening()
    assert found == ["2001:db8::7", "192.0.2.7"]
    assert lines == []


# -- what an element knows of names


class Resolver:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.receivers: list[Any] = []

    def resolveHostName(self, receiver: Any, name: str) -> None:
        self.asked.append(name)
        self.receivers.append(receiver)

    def answer(self, *hosts: str) -> None:
        receiver = self.receivers.pop(0)
        for host in hosts:
            receiver.addressResolved(SimpleNamespace(host=host))
        receiver.resolutionComplete()


class Rig:
    def __init__(self, **settings: Any) -> None:
        self.clock: Any = Clock()
        self.resolver = self.clock.nameResolver = Resolver()
        usual = {"wan_networks": ["203.0.113.0/24", "127.0.0.0/8"], "control": 5001, "lent": [(5100, 5200)]}
        made = ElementSettings(**{**usual, **settings})
        self.names = Names(self.clock, lambda address, own: _may_dial(made, address, own))

    def dials(self, target: str, own: frozenset[int] = frozenset()) -> list[list[str]]:
        """Return what is dialled for a target once its name is resolved."""
        found: list[list[str]] = []
        looking = Deferred.fromCoroutine(self.names.addresses(Address.parse(target), own))
        looking.addCallback(lambda addresses: found.append([str(address) for address in addresses]))
        return found


def test_a_numeric_target_asks_nobody() -> None:
    rig = Rig()
    assert rig.dials("203.0.113.9:5100") == [["203.0.113.9:5100"]]
    assert rig.resolver.asked == []


def test_a_numeric_target_outside_the_networks_of_now_is_not_dialled() -> None:
    rig = Rig()
    assert rig.dials("198.51.100.1:5100") == [[]]


def test_where_the_system_has_no_ipv6_a_name_with_addresses_of_both_families_is_dialled(no_ipv6: None) -> None:
    rig = Rig(wan_networks=["2001:db8::/32", "203.0.113.0/24"])
    dialled = rig.dials("gateway.example:5100")
    rig.resolver.answer("2001:db8::7", "203.0.113.7")
    assert "203.0.113.7:5100" in dialled[0]


def test_a_name_is_asked_for_once_by_all_who_dial_it_now_and_again_after_a_while() -> None:
    rig = Rig()
    both = [rig.dials("gateway.example:5100"), rig.dials("gateway.example:5101")]
    rig.resolver.answer("203.0.113.7")
    assert both == [[["203.0.113.7:5100"]], [["203.0.113.7:5101"]]]
    assert rig.dials("gateway.example:5102") == [["203.0.113.7:5102"]]
    assert rig.resolver.asked == ["gateway.example"]
    rig.clock.advance(timing.NAME_KEPT)
    moved = rig.dials("gateway.example:5100")
    rig.resolver.answer("203.0.113.9")
    assert moved == [["203.0.113.9:5100"]]


def test_addresses_outside_the_networks_and_ways_back_to_this_gateway_are_never_dialled() -> None:
    rig = Rig()
    found = rig.dials("gateway.example:5100")
    rig.resolver.answer("198.51.100.1", "127.0.0.1", "2001:db8::1", "203.0.113.7")
    assert found == [["203.0.113.7:5100"]]
    assert rig.dials("gateway.example:5100", frozenset({5100})) == [["127.0.0.1:5100", "203.0.113.7:5100"]]


def test_the_address_that_answered_is_the_first_to_be_tried_the_next_time() -> None:
    rig = Rig()
    rig.dials("gateway.example:5100")
    rig.resolver.answer("203.0.113.1", "203.0.113.2", "203.0.113.3")
    rig.names.prefer(Address.parse("gateway.example:5100"), Address.parse("203.0.113.3:5100"))
    assert rig.dials("gateway.example:5100") == [["203.0.113.3:5100", "203.0.113.1:5100", "203.0.113.2:5100"]]
    rig.clock.advance(timing.NAME_KEPT)
    again = rig.dials("gateway.example:5100")
    rig.resolver.answer("203.0.113.1", "203.0.113.3", "203.0.113.4")
    assert again == [["203.0.113.3:5100", "203.0.113.1:5100", "203.0.113.4:5100"]]


def test_what_was_known_of_a_name_has_to_do_while_nobody_answers_for_it() -> None:
    rig = Rig()
    rig.dials("gateway.example:5100")
    rig.resolver.answer("203.0.113.1")
    rig.clock.advance(timing.NAME_KEPT)
    later = rig.dials("gateway.example:5100")
    assert later == []
    rig.clock.advance(timing.NAME_LOOKUP)
    assert later == [["203.0.113.1:5100"]]


def test_addresses_of_a_name_are_bounded() -> None:
    rig = Rig()
    found = rig.dials("gateway.example:5100")
    rig.resolver.answer(*(f"203.0.113.{number}" for number in range(1, 200)))
    assert len(found[0]) == MOST_ADDRESSES


def test_a_numeric_target_that_stands_for_a_name_is_dialled_at_all_addresses_of_it_the_last_that_answered_first() -> (
    None
):
    rig = Rig()
    target, *others = (Address("127.0.0.1", 7000), Address("::1", 7000), Address("127.0.0.2", 7000))

    def order() -> list[Address]:
        found: list[list[Address]] = []
        Deferred.fromCoroutine(rig.names.addresses(target, frozenset(), others, wan=False)).addCallback(found.append)
        return found[0]

    assert order() == [target, *others]
    rig.names.prefer(target, others[1])
    assert order() == [others[1], target, others[0]]
    rig.names.prefer(target, target)
    assert order() == [target, *others]
