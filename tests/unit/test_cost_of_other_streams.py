"""What one event costs does not grow with the number of streams that have nothing to do with it.

The cost is the number of bytecode instructions that the code of this project runs, in all parties together: it is the
same in every run, on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
from test_users_who_mean_harm import Unwalked, a_request

import scistream
from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD, UNSENT, Hello, Message, Role, Status
from scistream.s2cs.live_streams import LiveStreams
from support.memory_facilities import CONS_PORT, PROD_PORT, World
from support.memory_network import HOST

ROOT = f"{Path(scistream.__file__).parent}/"
FEW, MANY = 4, 60
ALLOWED_FOR_EACH = 2
"""Instructions that each stream more may cost: far fewer than one step of a loop."""


class Meter:
    """Counts instructions of the project's code."""

    count = 0

    def _of_frame(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._of_instruction

    def _of_instruction(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        self.count += event == "opcode"
        return self._of_instruction

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count meanwhile."""
        before = sys.gettrace()
        sys.settrace(self._of_frame)
        try:
            yield
        finally:
            sys.settrace(before)


class Busy:
    """Two facilities with a stream that streams, its applications, and many other streams of the same owner."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, ports=2 * MANY)
        self.stream = self.world.stream()
        self.others: list[str] = []
        self.asker = self.link_to(PROD_PORT)
        self.other_asker = self.link_to(CONS_PORT)

    def link_to(self, port: int) -> Dialer:
        link = dialer(self.world.network, Address(HOST, port), "the S2CS", None)
        link.startService()
        self.world.network.until(lambda: link.link is not None)
        return link

    def grow(self, count: int) -> None:
        """Have so many other streams at each facility."""
        while len(self.others) < count:
            uid = str(uuid4())
            self.world.result(self.asker.ask(a_request(PROD, 1, uid), 30.0))
            self.world.result(self.other_asker.ask(a_request(CONS, 1, uid), 30.0))
            self.others.append(uid)
        self.world.network.run(16.0)  # a comparison with the gateways, which is due every 15 s, is over


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    busy = Busy(tmp_path)
    yield busy
    busy.world.close()


def cost_of(busy: Busy, prepare: Callable[[], Callable[[], object]], others: int) -> int:
    busy.grow(others)
    event = prepare()
    meter = Meter()
    with meter.on():
        event()
    return meter.count


def assert_that_others_cost_nothing(busy: Busy, prepare: Callable[[], Callable[[], object]]) -> None:
    cost_of(busy, prepare, FEW)  # the first time some things are looked up that are known afterwards
    few = cost_of(busy, prepare, FEW)
    many = cost_of(busy, prepare, MANY)
    assert few > 100, "nothing was counted"
    assert many - few <= ALLOWED_FOR_EACH * (MANY - FEW), f"{few} instructions became {many}"


@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_request_costs_the_same_however_many_streams_there_are(busy: Busy, role: Role) -> None:
    user = busy.link_to({PROD: PROD_PORT, CONS: CONS_PORT}[role])

    def prepare() -> Callable[[], object]:
        request = a_request(role, 1)
        return lambda: busy.world.result(user.ask(request, 30.0))

    assert_that_others_cost_nothing(busy, prepare)


def test_an_answer_of_an_application_costs_the_same_however_many_streams_there_are(busy: Busy) -> None:
    join = Join.parse(busy.stream.join[CONS])
    hello = Hello(uid=join.uid, role=CONS, seq=UNSENT, app_key=join.app_key)
    heard: list[Message] = []

    def prepare() -> Callable[[], None]:
        link = busy.link_to(CONS_PORT)
        link.on_message = lambda _link, message: heard.append(message)
        for uid in busy.others:  # so that its own link has to do with all of them
            busy.world.result(link.ask(Status(uid=uid, role=CONS, seq=UNSENT), 30.0))
        heard.clear()
        busy.world.result(link.ask(hello, 30.0))
        busy.world.network.until(lambda: bool(heard))
        (start,) = heard
        held = busy.world.cons.control.streams[join.uid, CONS]
        assert len(held.app_outbox) == 1

        def answer() -> None:
            assert link.link is not None
            link.link.answer(start, "Connected", "it connects")  # type: ignore[arg-type]
            busy.world.network.until(lambda: len(held.app_outbox) == 0)

        return answer

    assert_that_others_cost_nothing(busy, prepare)


@pytest.mark.parametrize("whose", ["a user", "an application"])
def test_a_link_that_ends_costs_the_same_however_many_streams_there_are(busy: Busy, whose: str) -> None:
    join = Join.parse(busy.stream.join[CONS])

    def prepare() -> Callable[[], None]:
        link = busy.link_to(CONS_PORT)
        if whose == "a user":
            busy.world.result(link.ask(Status(uid=busy.stream.uid, role=CONS, seq=UNSENT), 30.0))
        else:
            busy.world.result(link.ask(Hello(uid=join.uid, role=CONS, seq=UNSENT, app_key=join.app_key), 30.0))
        control = busy.world.cons.control
        before = len(control._links)

        def end() -> None:
            link.stopService()
            busy.world.network.until(lambda: len(control._links) < before)

        return end

    assert_that_others_cost_nothing(busy, prepare)


def test_the_link_of_a_gateway_comes_and_goes_without_a_look_at_streams_of_other_gateways(tmp_path: Path) -> None:
    world = World(tmp_path, gateways=2)
    try:
        asker = dialer(world.network, Address(HOST, PROD_PORT), "the S2CS", None)
        asker.startService()
        for _ in range(4):
            world.result(asker.ask(a_request(PROD, 1), 30.0))
        control = world.prod.control
        control.streams.__class__ = Unwalked
        at = {name: len(control.streams.at_gateway(name)) for name in control.gateways}
        assert sorted(at.values()) == [2, 2]
        assert world.network.sever(PROD_PORT + 1) == 1
        world.network.run(20.0)
        assert all(gateway.answers for gateway in control.gateways.values())
        control.streams.__class__ = LiveStreams
        assert len(control.streams) == 4
    finally:
        world.close()
