"""Measure over the WAN of a testbed of its own, which it removes at the end: ``python -m bench.wan_testbed PLAN``.

`wan` starts it as root, with a plan in JSON. The applications are on the LANs, the gateways and the peers on the hosts
of gateways, so that all of them cross the same WAN. Each line of its output is a JSON object: what it does now, or what
it has measured.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench import peers
from bench.congestion import ForAll
from bench.paths import DIRECT, OURS, python
from bench.peers import Certificates, Endpoints
from bench.processes import cpu_seconds
from bench.rows import CPU, FIRST_BYTE, THROUGHPUT, Figure
from bench.wan import NOT_READY, ONE_WAY
from scistream.pki.authority import Issued
from scistream.protocol.address import Address

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "testbed"), str(TESTS)]

import netns  # noqa: E402
from testbed import Testbed  # noqa: E402
from testbed_facilities import Facilities  # noqa: E402

from support.tcp_sockets import LISTEN, tcp_sockets  # noqa: E402
from support.waiting import until  # noqa: E402

BULK, MANY = 7000, 7001
"""The ports of the applications, on the producer's LAN and, for the path without gateways, on its gateway's host."""
FACILITIES = {OURS: 5000, NOT_READY: 6000}
"""The first port of the facilities of each of our paths."""
PEERS = range(8000, 8100)
RATE, CAPACITY = "40Gbit", "100Gbit"
PAIRS: dict[str, Callable[[Sequence[Endpoints], Certificates], list[peers.Program]]] = {
    "stunnel": peers.stunnel_pair,
    "nginx": peers.nginx_pair,
    "HAProxy": peers.haproxy_pair,
}
INTERVAL = 1.0
"""Seconds between two new connections of a path."""
_PATIENCE = 60.0


@dataclass(frozen=True)
class WanRoute:
    """A path over the WAN.

    :param host: the host from which it is entered.
    :param bulk: where its bulk data comes from.
    :param many: where a byte is sent back.
    :param roots: the processes whose CPU time counts.
    """

    host: str
    bulk: Address
    many: Address
    roots: Sequence[int] = ()


class Measurement:
    """All of it, on a testbed that is up.

    :param plan: what `wan` asks for.
    """

    def __init__(self, testbed: Testbed, plan: Any) -> None:
        self._testbed = testbed
        self._plan = plan
        self._everywhere = ForAll(plan["congestion"][0], Path(plan["congestion"][1])) if plan["congestion"] else None
        self._ports = count(PEERS.start)
        self._routes: dict[str, WanRoute] = {}

    def run(self) -> None:
        """Start all paths, and measure for each loss."""
        if self._everywhere:
            for name in self._testbed.namespaces:
                with netns.inside(name):
                    self._everywhere.set_default()
        for host, address in (("plan", self._testbed.v4.plan), ("pgw", self._testbed.v4.pgw)):
            self._serve(host, address)
        self._testbed.wan(("pgw", "cgw"), delay=ONE_WAY)  # first: TCP remembers shorter round trips
        with ExitStack() as opened:
            for name in self._plan["paths"]:
                tell(f"starting {name}")
                self._routes[name] = opened.enter_context(self._route(name))
            for loss in self._plan["losses"]:
                self._testbed.wan(("pgw", "cgw"), loss=loss)
                self._first_bytes(loss)
                self._throughput(loss)

    def _serve(self, host: str, address: str) -> None:
        """Start the applications on a host."""
        iperf3 = [peers.found("iperf3"), "--server", "--bind", address, "--port", str(BULK)]
        self._testbed.start(host, iperf3)
        self._testbed.start(host, [*python("bench.load"), "serve-many-at", str(MANY), address])
        self._until_listening(host, BULK, MANY)

    def _until_listening(self, host: str, *ports: int) -> None:
        def listening() -> bool:
            with netns.inside(self._testbed.namespace(host)):
                return {*ports} <= {sock.local for sock in tcp_sockets(LISTEN)}

        until(listening, lambda: f"nobody listens on {ports} of {host}", _PATIENCE)

    # Paths

    @contextmanager
    def _route(self, name: str) -> Iterator[WanRoute]:
        v4 = self._testbed.v4
        if name in FACILITIES:
            with self._ours(name) as route:
                yield route
        elif name == DIRECT:
            yield WanRoute("cgw", Address(v4.pgw, BULK), Address(v4.pgw, MANY))
        else:
            yield self._peer(name)

    @contextmanager
    def _ours(self, name: str) -> Iterator[WanRoute]:
        """Start two facilities, with a stream to each application."""
        leg = {"congestion": self._everywhere.name} if self._everywhere else {}
        wan = {**leg, **({"ready": 0} if name == NOT_READY else {})}
        settings: dict[str, Any] = {"capacity": CAPACITY, "elements": self._plan["elements"], "lan": leg, "wan": wan}
        with Facilities(self._testbed, port=FACILITIES[name], **settings) as facilities, ExitStack() as streams:
            bulk, many = (
                streams.enter_context(facilities.stream([Address(self._testbed.v4.plan, port)], rate=RATE)).listeners[0]
                for port in (BULK, MANY)
            )
            both = (facilities.producer, facilities.consumer)
            yield WanRoute("clan", bulk, many, [daemon.pid for each in both for daemon in each.daemons])

    def _peer(self, name: str) -> WanRoute:
        """Start a pair of a peer's processes."""
        v4 = self._testbed.v4
        hosts = (v4.cgw_lan, v4.plan, v4.pgw)
        bulk, many = (Endpoints(next(self._ports), port, next(self._ports), hosts) for port in (BULK, MANY))
        near, far = PAIRS[name]([bulk, many], self._certificates())
        roots = []
        for host, program, ports in (
            ("pgw", far, (bulk.middle, many.middle)),
            ("cgw", near, (bulk.enter, many.enter)),
        ):
            folder = self._testbed.folder / program.name
            program.write(folder)
            roots.append(self._testbed.start(host, program.command(folder)).pid)
            self._until_listening(host, *ports)
        return WanRoute("clan", Address(v4.cgw_lan, bulk.enter), Address(v4.cgw_lan, many.enter), roots)

    def _certificates(self) -> Certificates:
        near, far = (Issued(*map(Path, self._plan[side])) for side in ("near", "far"))
        return Certificates(Path(self._plan["authority"]), near, far)

    # Runs

    def _first_bytes(self, loss: str) -> None:
        """Open connections over all paths, one a second over each, at the same time."""
        number = self._plan["first_bytes"]
        tell(f"{_loss(loss)}: {number} new connections over each path, one a second")
        clients = []
        for host in sorted({route.host for route in self._routes.values()}):
            mine = {str(route.many): name for name, route in self._routes.items() if route.host == host}
            command = [*python("bench.load"), "first-bytes", str(number), str(INTERVAL), *mine]
            clients.append((mine, self._testbed.start(host, command)))
        for mine, client in clients:
            said = json.loads(client.end(_PATIENCE + 2 * INTERVAL * number).stdout)
            for address, milliseconds in said.items():
                show(loss, mine[address], FIRST_BYTE, milliseconds)

    def _throughput(self, loss: str) -> None:
        """Send bulk data over each path in turn. Packets meet the same chances in each run of a turn."""
        for turn in range(1, self._plan["rounds"] + 1):
            for name, route in self._routes.items():
                tell(f"{_loss(loss)}: {name}, run {turn} of {self._plan['rounds']}")
                self._testbed.reseed(turn)
                self._bulk(loss, name, route)

    def _bulk(self, loss: str, name: str, route: WanRoute) -> None:
        seconds = self._plan["seconds"]
        to = ["--client", route.bulk.host, "--port", str(route.bulk.port)]
        command = [peers.found("iperf3"), *to, "--reverse", "--time", str(seconds), "--json"]
        before = cpu_seconds(route.roots)
        said = json.loads(self._testbed.exec(route.host, command, timeout=seconds + _PATIENCE).stdout)
        cost = cpu_seconds(route.roots) - before
        received = said["end"]["sum_received"]
        show(loss, name, THROUGHPUT, [received["bits_per_second"] / 1e9])
        if route.roots:
            show(loss, name, CPU, [cost / (received["bytes"] / 1e9)])


def _loss(loss: str) -> str:
    return "no loss" if loss == "0" else f"{loss} loss"


def tell(what: str) -> None:
    """Say what is done now."""
    print(json.dumps({"tell": what}), flush=True)


def show(loss: str, path: str, figure: Figure, values: Sequence[float]) -> None:
    """Say what was measured."""
    print(json.dumps({"loss": loss, "path": path, "figure": figure.name, "values": values}), flush=True)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the testbed is removed
    sys.exit("stopped")


def main(plan: Any) -> None:
    """Measure; a signal ends it in order."""
    signal.signal(signal.SIGTERM, _stop)
    lack = netns.missing()
    if lack is not None:
        print(json.dumps({"skip": lack}), flush=True)
        return
    with Testbed.of_its_own() as testbed:
        Measurement(testbed, plan).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
