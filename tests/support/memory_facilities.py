"""Two facilities, a user and applications in memory: real machines, links and stores on a `MemoryNetwork`.

What happens is read from what the parties log, as an operator would read it: `World.story` is the states that the
machine of a stream has been in at one party.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from scistream.app.controller import Controller, NoProgram
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD, GatewayCapacity
from scistream.s2cs.in_use import is_counted, stream_use
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.client import Client, Stream
from support.memory_network import HOST, MemoryNetwork, MemoryPorts, Program

T = TypeVar("T")

PROD_PORT, CONS_PORT = 5000, 6000
PROD_S2CS, CONS_S2CS = f"{HOST}:{PROD_PORT}", f"{HOST}:{CONS_PORT}"
DETECTOR = Address(HOST, 7000)


class Facility:
    """An S2CS at a port, and its gateways at the ports after it, with so many ports of 1 Gbit/s in all each."""

    def __init__(
        self,
        network: MemoryNetwork,
        folder: Path,
        port: int,
        gateways: int = 1,
        chosen_ports: str = "",
        ports: int = 8,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._ports = ports
        self._chosen_ports = chosen_ports
        self.network = network
        self.port = port
        self.gateway_ports = [port + 1 + number for number in range(gateways)]
        self._folder = folder
        self._started: list[DataServer | ControlServer] = []
        self.gateways = [self._gateway(at, at * 10) for at in self.gateway_ports]
        self.control = self.start_control()

    def _gateway(self, at: int, first: int) -> DataServer:
        settings = S2DSConfig(
            listen=f"{HOST}:{at}",
            insecure=True,
            ports=f"{first}-{first + self._ports - 1}",
            chosen_ports=self._chosen_ports,
            capacity="1Gbit",
            elements=0,
        )
        server = DataServer(self.network, settings, self._folder / f"{at}.toml")
        server.ports = MemoryPorts(first, first + self._ports - 1, settings.chosen_ranges)
        server.startService()
        self._started.append(server)
        return server

    def start_control(self, **options: Any) -> ControlServer:
        pool = [GatewaySettings(name=f"dtn{at}", address=f"{HOST}:{at}") for at in self.gateway_ports]
        settings = S2CSConfig(listen=f"{HOST}:{self.port}", gateways=pool, insecure=True)
        server = ControlServer(self.network, settings, self._folder / "s2cs.toml", wall=self.network.seconds, **options)
        server.startService()
        self._started.append(server)
        return server

    def stop(self) -> list[Deferred[Any]]:
        """Stop every server that still runs, also one whose place another has taken."""
        return [server.stopService() for server in self._started if server.running]

    def check_sums(self) -> None:
        """Check that the sums that the S2CS keeps of its live streams equal the sums over their records."""
        streams = self.control.streams
        counted = [held.record for held in streams.values() if is_counted(held.record)]
        for name in self.control.gateways:
            taken = [stream_use(record, name) for record in counted if name in record.plan]
            use = streams.use_of_gateway(name)
            assert use.rate == math.fsum(one.rate for one in taken)
            assert use.ports_of(GatewayCapacity(ports=8, rate=1.0)) == sum(one.ports for one in taken)
            assert dict(use.lent) == Counter(port for one in taken for port in one.lent)
            assert {held.record.key for held in streams.at_gateway(name)} == {
                record.key for record in counted if name in record.plan
            }

    def is_empty(self) -> bool:
        """Return True if all ports and all capacity of all gateways are free, and nothing listens there."""
        return not any(self.held()) and not self.listening()

    def held(self) -> list[tuple[int, float]]:
        """Ports and Mbit/s that each gateway has given out."""
        return [(lent(one), one.capacity.total - one.capacity.free) for one in self.gateways if is_used(one)]

    def listening(self) -> list[int]:
        """Return the reserved ports that accept connections now."""
        given = [sock for one in self.gateways for sock in one.ports._given]
        return sorted(sock.getsockname()[1] for sock in given if sock.listens)  # type: ignore[attr-defined]


def lent(gateway: DataServer) -> int:
    """How many ports of its range a gateway has given out."""
    return gateway.ports.last - gateway.ports.first + 1 - gateway.ports.free


def is_used(gateway: DataServer) -> bool:
    return lent(gateway) != 0 or gateway.capacity.free != gateway.capacity.total


class World:
    """Two facilities, and what is logged by anybody."""

    def __init__(self, folder: Path, gateways: int = 1, chosen_ports: str = "", ports: int = 8) -> None:
        self.network = MemoryNetwork()
        self._stories: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self.crashes: list[str] = []
        globalLogPublisher.addObserver(self._note)
        self.prod = Facility(self.network, folder / "prod", PROD_PORT, gateways, chosen_ports, ports)
        self.cons = Facility(self.network, folder / "cons", CONS_PORT, gateways, chosen_ports, ports)
        self.client = Client(insecure=True, reactor=self.network)
        self.running: list[Application] = []

    def close(self) -> None:
        """Stop all servers, so that no test leaves files or memory to those that come after it."""
        try:
            self.prod.check_sums()
            self.cons.check_sums()
            stopping = [*self.prod.stop(), *self.cons.stop()]
            self.network.run(5)
            assert all(stopped.called for stopped in stopping), "a server does not stop"
        finally:
            globalLogPublisher.removeObserver(self._note)
        assert self.crashes == []

    def _note(self, event: dict[str, Any]) -> None:
        if "state" in event and "party" in event:
            self._stories[event["party"], event["uid"], event.get("role", "")].append(event["state"])
        if "log_failure" in event:
            self.crashes.append(event["log_failure"].getTraceback())

    def story(self, party: str, role: str = "", uid: str = "") -> list[str]:
        """Return the states that a party's machine has been in, for the only stream if none is named."""
        told = [states for (who, what, side), states in self._stories.items() if (who, side) == (party, role)
                and uid in ("", what)]  # fmt: skip
        assert len(told) <= 1, f"{len(told)} streams at {party}: name one"
        return told[0] if told else []

    def state(self, party: str, role: str = "", uid: str = "") -> str:
        return (self.story(party, role, uid) or ["idle"])[-1]

    def result(self, deferred: Deferred[T], within: float = 5.0) -> T:
        """Let time pass until it is there."""
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        self.network.until(lambda: bool(outcome), within)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]  # type: ignore[no-any-return]

    def refusal(self, deferred: Deferred[Any], within: float = 5.0) -> StreamError:
        with pytest.raises(StreamError) as refused:
            self.result(deferred, within)
        return refused.value

    def request(self, **wishes: Any) -> Stream:
        """Request a stream that both sides reserve."""
        return self.result(self.ask(**wishes))

    def ask(self, **wishes: Any) -> Deferred[Stream]:
        return self.client.request(prod=PROD_S2CS, cons=CONS_S2CS, **{"rate": 100.0, **wishes}).deferred

    def application(self, join: str | Join, *command: str, listeners: tuple[Address, ...] = (DETECTOR,)) -> Application:
        found = join if isinstance(join, Join) else Join.parse(join)
        one = Application(self.network, found, listeners if found.role == PROD else (), command)
        self.running.append(one)
        return one

    def stream(self, **wishes: Any) -> Stream:
        """Set up a streaming stream with a ProdApp that serves."""
        stream = self.request(**wishes)
        self.application(stream.join[PROD], "detector")
        self.result(stream.provisioned().deferred)
        return stream

    def both_are(self, state: str) -> bool:
        return all(self.state("s2cs", role) == state for role in (PROD, CONS))

    def both_are_empty(self) -> bool:
        return self.prod.is_empty() and self.cons.is_empty()


class Application:
    """An application controller, what it announces and how it ends."""

    def __init__(self, network: MemoryNetwork, join: Join, listeners: tuple[Address, ...], command: tuple[str, ...]):
        program = Program(network, command) if command else NoProgram()
        self.notes: list[str] = []
        self.controller = controller = Controller(network, join, listeners, program, self.notes.append)
        self.ended_by: StreamError | None = None
        self.finished: Deferred[int] = controller.run().addCallbacks(self._ended, self._failed)
        self.error: StreamError | None = None
        self.program = program

    def _ended(self, reason: StreamError | None) -> int:
        self.ended_by = reason
        return 0

    def _failed(self, failure: Failure) -> int:
        failure.trap(StreamError)
        self.error = failure.value  # type: ignore[assignment]
        return 1
