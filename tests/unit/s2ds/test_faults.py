"""A fault in any effect of a stream at a gateway ends the stream: it is logged, and nothing stays reserved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from log_lines import logged
from planted_faults import PlantedError, break_method, logged_faults
from twisted.internet.address import IPv4Address
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Error, ReqListeners, Resp, Role, UpdateTargets
from scistream.s2ds.capacity import Capacity
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.elements.process import ElementDiedError, log_failure
from scistream.s2ds.ports import ONE_PATH, ListenPorts
from scistream.s2ds.service import SLOTS
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.stream import GatewayStream
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.shared_settings import networks
from scistream.state_machines import Caller
from support.leased_ports import leased

UID = "12345678-1234-4234-8234-123456789abc"
FIRST = leased.take(4)
EFFECTS = ["bind", "arm", "close", "answer", "start_timer", "shorten_life", "stop_timer"]


@dataclass
class Controller:
    """The link of the S2CS: keeps what is answered."""

    answers: list[Resp | Error] = field(default_factory=list)

    def send(self, message: Resp | Error) -> None:
        self.answers.append(message)


class OneAddress:
    """A name server for which every name has the same address."""

    def __init__(self, host: str) -> None:
        self._host = host

    def resolveHostName(self, receiver: Any, name: str) -> None:
        receiver.addressResolved(IPv4Address("TCP", self._host, 0))
        receiver.resolutionComplete()


class Machine:
    """A gateway with real ports and a real element, whose reactor does not run."""

    def __init__(self, role: Role = PROD, **networks_of: list[str]) -> None:
        self.role = role
        config = S2DSConfig(ports=f"{FIRST}-{FIRST + 3}", insecure=True, elements=0, **networks_of)
        self.reactor = EPollReactor()
        self.config = config
        self.boot = "b" * 32
        self.ports = ListenPorts(FIRST, FIRST + 3)
        self.wan_paths = ONE_PATH
        self.capacity = Capacity(1000.0)
        self.elements = Elements(self.reactor, 0, SLOTS, ElementSettings())
        self.app_networks = networks(config.app_networks)
        self.wan_networks = networks(config.wan_networks)
        self.dialled: Counter[int] = Counter()
        self.resets: Counter[Any] = Counter()
        self.controller = Controller()
        self.holding = GatewayStream(cast(Any, self), self.req())

    def wan_listeners(self, _uid: str) -> set[int]:
        return self.holding.wan_listeners() if hasattr(self, "holding") else set()

    def released(self, _holding: GatewayStream) -> None:
        """Do nothing, where a server would forget the stream later."""

    def close(self) -> None:
        self.holding._release_all()
        self.elements.stop()
        for timer in self.reactor.getDelayedCalls():
            timer.cancel()
        for reader in [*self.reactor.removeAll(), *self.reactor._internalReaders]:
            reader.connectionLost(None)
        self.reactor._poller.close()

    # what the controller says

    def caller(self) -> Caller:
        return Caller(cast(Any, self.controller), len(self.controller.answers) + 1)

    def req(self) -> ReqListeners:
        return ReqListeners(
            uid=UID, role=self.role, seq=1, channels=[0, 1], rate=100.0, expires=600.0, wan_security="encrypt"
        )

    def reserve(self) -> None:
        self.holding.machine.req_listeners(self.caller(), self.req())

    def update(
        self, target: str = "127.0.0.1:7000", generation: int = 1, others: dict[str, list[str]] | None = None
    ) -> None:
        core = self.holding._core
        pem = issue_credentials(UID, generation, 600.0, {self.role: core.csr})[self.role] if core.csr else "none"
        targets = dict.fromkeys(core.listeners or ["127.0.0.1:1"], target)
        command = UpdateTargets(
            uid=UID,
            role=self.role,
            seq=1,
            generation=generation,
            connection_map=targets,
            data_conn_key=pem,
            expires=300.0,
            other_addresses=others,
        )
        self.holding.machine.update_targets(self.caller(), command)

    def release(self) -> None:
        self.holding.machine.rel(self.caller())

    def holds_nothing(self) -> bool:
        return (
            self.ports.free == 4
            and self.capacity.free == 1000.0
            and not self.elements._streams
            and not self.reactor.getDelayedCalls()
        )


@pytest.fixture
def gateway() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(role: Role = PROD, **settings: list[str]) -> Machine:
        made.append(Machine(role, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the streams of a gateway log with a traceback."""
    return logged_faults(monkeypatch, GatewayStream)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("first", [True, False], ids=["instead of its work", "after its work"])
def test_a_fault_in_any_effect_at_any_time_ends_the_stream_and_leaves_nothing_reserved(
    gateway: Callable[..., Machine],
    faults: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: int,
    first: bool,
) -> None:
    world = gateway()
    calls = break_method(monkeypatch, GatewayStream, name, first=first, which=range(after, 1_000_000))
    world.reserve()
    world.reserve()
    world.update()
    world.update("127.0.0.1:7001", generation=2)
    world.release()
    world.release()
    assert world.holding._core.state == "Released"
    assert world.holds_nothing()
    assert len(faults) == (len(calls) > after), "it is logged once"
    if faults:
        assert isinstance(faults[0]["log_failure"].value, PlantedError)
        assert name in faults[0]["log_format"].format(**faults[0])


@pytest.mark.parametrize("name", ["bind", "arm"])
def test_callers_of_a_failed_command_are_answered(
    gateway: Callable[..., Machine], faults: list[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world = gateway()
    break_method(monkeypatch, GatewayStream, name, first=True)
    world.reserve()
    if name == "arm":
        world.update()
    answer = world.controller.answers[-1]
    assert isinstance(answer, Error)
    assert (answer.code, "see its log" in answer.msg) == ("gateway-failed", True)
    assert faults


def test_a_target_of_a_family_that_the_system_has_not_is_refused_with_a_sentence(
    gateway: Callable[..., Machine], faults: list[Any], request: pytest.FixtureRequest
) -> None:
    world = gateway(app_networks=["127.0.0.0/8", "2001:db8::/32"])
    world.reserve()
    request.getfixturevalue("no_ipv6")
    world.update(f"[2001:db8::7]:{FIRST}")
    answer = world.controller.answers[-1]
    assert isinstance(answer, Error)
    assert answer.code == "target-refused"
    assert answer.msg == (f"target [2001:db8::7]:{FIRST} is an IPv6 address, but this gateway does not support IPv6")
    assert world.holding._core.state == "Reserved"
    assert faults == []


def test_a_thousand_updates_to_names_that_may_not_be_dialled_are_a_few_lines(gateway: Callable[..., Machine]) -> None:
    world = gateway(CONS, wan_networks=["203.0.113.0/24"])
    world.reactor.installNameResolver(OneAddress("198.51.100.7"))
    with logged() as lines:
        world.reserve()
        for number in range(1000):
            world.update(f"gateway{number}.example:{FIRST}")
        world.release()
    assert [answer.code for answer in world.controller.answers[1:-1] if isinstance(answer, Error)] == (
        1000 * ["target-refused"]
    )
    told = [line for line in lines if "targets refused" in line]
    assert [line.partition("so far: ")[2].partition(";")[0] for line in told] == ["1", "10", "100", "1000"]
    assert "198.51.100.7" in told[-1]
    assert len(lines) < 50, lines


def test_a_thousand_addresses_of_prodapp_that_may_not_be_dialled_are_a_few_lines(
    gateway: Callable[..., Machine],
) -> None:
    world = gateway(app_networks=["127.0.0.0/8"])
    target = "127.0.0.1:7000"
    with logged() as lines:
        world.reserve()
        for generation in range(1, 101):
            others = [f"198.51.100.{number}:7000" for number in range(10)]
            world.update(target, generation, {target: others})
        world.release()
    told = [line for line in lines if "ignored because they may not be dialled" in line]
    counts = [line.partition("so far: ")[2].partition(";")[0] for line in told]
    assert counts == ["1", "10", "100", "1000", "2000"], "each address on both channels"
    assert "198.51.100.9:7000" in told[-1]


def test_an_element_that_could_not_do_what_it_was_told_is_in_the_log_and_one_that_died_is_not() -> None:
    with logged() as lines:
        log_failure(Failure(StreamError("no-capacity", "no memory")))
        log_failure(Failure(ElementDiedError()))
    assert len(lines) == 1
    assert "failed to carry out a command" in lines[0]
    assert "no memory" in lines[0]
