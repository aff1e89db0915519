"""The paths that are compared, all from a port of this machine to the same applications.

`DIRECT` has nothing in between; the peers' paths are made by peers.py; ours are two whole facilities with a stream
between them, or, for one hop, the relay alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from bench import peers
from bench.congestion import ForAll
from bench.errors import BenchError as BenchError
from bench.peers import FAR_NAME, HOST, Certificates, Endpoints, Program
from bench.processes import listens
from scistream.app.controller import Controller, NoProgram
from scistream.demo.children import Child, Children
from scistream.demo.facilities import DemoFacility, DemoPorts
from scistream.pki.authority import init_authority, issue
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.relay.leg import congestion_control
from scistream.s2ds.settings import parse_elements
from scistream.s2uc.client import Client, Stream

BULK, TRIPS, MANY, FLOOD = "bulk", "trips", "many", "flood"
OURS = "SciStream"
DIRECT = "direct"

CAPACITY = 400_000.0
RATE = 100_000.0
"""The capacity of a gateway and the rate of a stream in Mbit/s: more than a machine can move over loopback."""

MOST_STREAMS = 2
UNREAD = "64G"
"""The limit on waiting bytes at a gateway. By default a gateway refuses connections of a stream before the kernel runs
short of memory, but here the effect of such connections is measured."""

CONGESTION = "cubic"
"""The congestion control between our gateways, whose WAN is a loopback interface here, if this user may set it. Towards
applications it is the default. The peers have no such setting and use the system's."""

_USER = "ada@lab.example"
_POLICY = """[[rules]]
name = "bench"
issuer = {issuer}
identities = ["{user}"]
roles = ["PROD", "CONS"]
rate = "100Gbit"
num_conn = 16
streams = 4
"""
_UP_WITHIN = 30.0
_LOOK_AGAIN = 0.02


@dataclass(frozen=True)
class Route:
    """A path that is ready for connections.

    :param port: where to connect.
    :param roots: the processes that carry it; their CPU time counts, with that of their descendants.
    :param gateways: the processes among them that hold connections, whose memory is measured separately.
    :param children: the same processes, with their logs.
    :param close: ends them.
    """

    name: str
    port: int
    roots: Sequence[int]
    gateways: Sequence[int]
    children: Children | None
    close: Callable[[], Awaitable[Any]]

    def tails(self) -> list[str]:
        """Return the last lines of the processes' logs."""
        return self.children.tails() if self.children is not None else []


class Environment:
    """The common environment of all paths: a folder, the applications, certificates, and free ports.

    :param elements: the setting `elements` of our gateways.
    :param congestion: the congestion control of all programs on all sides; None: the usual one of each.
    """

    def __init__(
        self, reactor: Any, folder: Path, elements: str | int = "auto", congestion: ForAll | None = None
    ) -> None:
        self.reactor = reactor
        self.elements = elements
        self.congestion = congestion
        self.ports = DemoPorts()
        self.targets = {name: self.ports.take() for name in (BULK, TRIPS, MANY, FLOOD)}
        self.configurations: dict[str, str] = {}
        """The command lines and configurations of the peers that were started."""
        self._folder = folder
        self._numbers = count()
        self._applications = self.children("applications")
        authority = folder / "pki"
        trusted = init_authority(authority, "Bench").certificate
        near, far = issue(authority, "user", "near@bench.example"), issue(authority, "server", FAR_NAME)
        self.certificates = Certificates(trusted, near, far)

    def children(self, name: str) -> Children:
        """Create a group of processes that end together, with a folder of its own."""
        return Children(self.reactor, self.folder(name))

    def folder(self, name: str) -> Path:
        """Create a new folder."""
        path = self._folder / f"{next(self._numbers)}-{name}"
        path.mkdir(mode=0o700)
        return path

    def endpoints(self, application: str) -> Endpoints:
        """Return new ports for a path to an application."""
        return Endpoints(self.ports.take(), self.targets[application], self.ports.take())

    async def open(self) -> None:
        """Start the applications."""
        ports = {name: str(port) for name, port in self.targets.items()}
        commands = {
            "iperf3": [peers.found("iperf3"), "--server", "--bind", HOST, "--port", ports[BULK]],
            "serve-trips": [*python("bench.load"), "serve-trips", ports[TRIPS]],
            "serve-many": [*python("bench.load"), "serve-many", ports[MANY]],
            "serve-flood": [*python("bench.load"), "serve-flood", ports[FLOOD]],
        }
        started = [self._applications.start(name, words, {}, say_ended) for name, words in commands.items()]
        await self.until_listening(started, list(self.targets.values()))

    async def close(self) -> None:
        """End the applications."""
        await self._applications.end_all()

    async def until_listening(self, children: Sequence[Child], ports: Sequence[int]) -> None:
        """Wait until these processes listen on all of these ports.

        :raises BenchError: if they do not do so in time, or end.
        """
        deadline = self.reactor.seconds() + _UP_WITHIN
        for port in ports:
            while not listens(port):
                ended = any(child.end is not None for child in children)
                if ended or self.reactor.seconds() > deadline:
                    names = " and ".join(child.name for child in children)
                    log = [line for child in children for line in child.tail()]
                    raise BenchError(f"nothing listens on port {port}: {names} failed to start", log)
                await deferLater(self.reactor, _LOOK_AGAIN)


Builder = Callable[[Environment, str], Awaitable[Route]]
"""Builds a path to the application of that name."""

SharedBuilder = Callable[..., Awaitable[list[Route]]]
"""Builds a path to each of the applications named, all through the same processes; closing one closes all."""


async def direct(environment: Environment, application: str) -> Route:
    """Build the path without anything in between."""

    async def close() -> None:
        """Do nothing: the path has no processes."""

    return Route(DIRECT, environment.targets[application], [], [], None, close)


def one_hop(name: str, program_for: Callable[[Endpoints], Program]) -> Builder:
    """Return a builder for one hop through a peer, without TLS."""

    async def build(environment: Environment, application: str) -> Route:
        endpoints = environment.endpoints(application)
        (route,) = await _peer(environment, name, [endpoints], [program_for(endpoints)], [endpoints.enter])
        return route

    return build


def two_hops(name: str, programs_for: Callable[[Sequence[Endpoints], Certificates], list[Program]]) -> SharedBuilder:
    """Return a builder for two hops through a pair of a peer's processes, with TLS between them."""

    async def build(environment: Environment, *applications: str) -> list[Route]:
        endpoints = [environment.endpoints(application) for application in applications]
        programs = programs_for(endpoints, environment.certificates)
        ports = [port for each in endpoints for port in (each.middle, each.enter)]
        return await _peer(environment, name, endpoints, programs, ports)

    return build


def alone(build_all: SharedBuilder) -> Builder:
    """Return a builder for one path."""

    async def build(environment: Environment, application: str) -> Route:
        (route,) = await build_all(environment, application)
        return route

    return build


async def _peer(
    environment: Environment,
    name: str,
    endpoints: Sequence[Endpoints],
    programs: Sequence[Program],
    ports: Sequence[int],
) -> list[Route]:
    children = environment.children("peer")
    environment.configurations |= {program.name: program.shown() for program in programs}
    folder = environment.folder("configurations")
    try:
        started = [_start(children, program, folder / program.name) for program in programs]
        await environment.until_listening(started, ports)
    except BaseException:
        await children.end_all()
        raise
    pids = [child.pid for child in started]
    return [Route(name, each.enter, pids, pids, children, children.end_all) for each in endpoints]


def _start(children: Children, program: Program, folder: Path) -> Child:
    program.write(folder)
    return children.start(program.name, program.command(folder), {}, say_ended)


async def plain_hop(environment: Environment, application: str) -> Route:
    """Build one hop through our relay alone."""
    endpoints = environment.endpoints(application)
    children = environment.children("plain-hop")
    command = [
        *python("bench.plain_hop"),
        str(endpoints.enter),
        str(endpoints.target),
        str(parse_elements(environment.elements)),
        environment.congestion.name if environment.congestion else CONGESTION,
    ]
    try:
        child = children.start("plain-hop", command, {}, say_ended)
        await environment.until_listening([child], [endpoints.enter])
    except BaseException:
        await children.end_all()
        raise
    return Route(OURS, endpoints.enter, [child.pid], [child.pid], children, children.end_all)


async def gateways_for(
    environment: Environment, *applications: str, rate: float = RATE, wan: Mapping[str, Any] | None = None
) -> list[Route]:
    """Build paths through two gateways, with a stream to each of these applications; closing one closes all.

    :param rate: of each stream, in Mbit/s.
    :param wan: further settings in [wan] of both gateways.
    """
    children = environment.children("facilities")
    try:
        return await _Facilities(environment, children, rate, wan or {}).open(applications)
    except BaseException:
        await children.end_all()
        raise


class _Facilities:
    """The two facilities of our path with two hops."""

    def __init__(self, environment: Environment, children: Children, rate: float, wan: Mapping[str, Any]) -> None:
        self._rate = rate
        self._wan = wan
        folder = environment.folder("facilities")
        self._environment = environment
        self._children = children
        self._lab = DemoFacility(folder / "lab", "Lab", "lab", MOST_STREAMS, CAPACITY, environment.ports)
        self._centre = DemoFacility(folder / "centre", "Centre", "centre", MOST_STREAMS, CAPACITY, environment.ports)
        user = self._lab.user(_USER)
        self._policy = folder / "policy.toml"
        self._policy.write_text(_POLICY.format(issuer=json.dumps(str(self._lab.authority)), user=_USER))
        self._client = Client(
            certificate=user.certificate,
            key=user.key,
            authorities=[self._lab.authority, self._centre.authority],
            reactor=environment.reactor,
            remember=False,
        )
        self._streams: list[Stream] = []

    async def open(self, applications: Sequence[str]) -> list[Route]:
        """Start the facilities, and set up a stream to each application."""
        gateways, servers = [], []
        for facility in (self._lab, self._centre):
            everywhere = self._environment.congestion.name if self._environment.congestion else None
            settings = {
                "elements": self._environment.elements,
                "lan": {"congestion": everywhere or "auto"},
                "wan": {"congestion": everywhere or congestion_control("auto", CONGESTION), **self._wan},
                "limits": {"unread": UNREAD},
            }
            gateways.append(facility.start_gateway(self._children, say_ended, **settings))
        for facility in (self._lab, self._centre):
            await facility.gateway_ready(self._environment.reactor)
            trusted = [self._lab.authority, self._centre.authority]
            servers.append(facility.start_server(self._children, trusted, say_ended, policy=str(self._policy)))
        for facility in (self._lab, self._centre):
            await facility.server_ready(self._environment.reactor)
        pids = [child.pid for child in gateways]
        roots = [*pids, *(child.pid for child in servers)]
        return [
            Route(OURS, await self._ask(self._environment.targets[name]), roots, pids, self._children, self.close)
            for name in applications
        ]

    async def _ask(self, target: int) -> int:
        """Set up a stream as a user does; return the port to which the consumer connects."""
        reactor, prod, cons = self._environment.reactor, str(self._lab.s2cs), str(self._centre.s2cs)
        stream = await self._client.request(prod=prod, cons=cons, rate=self._rate, label="bench")
        self._streams.append(stream)
        producer = Controller(
            reactor, Join.parse(stream.join[PROD]), [Address(HOST, target)], NoProgram(), ignore
        ).run()
        told = NoProgram()
        consumer = Controller(reactor, Join.parse(stream.join[CONS]), [], told, ignore).run()
        await stream.provisioned()
        await gatherResults([producer, consumer])
        return Address.parse(told.listeners[0]).port

    async def close(self) -> None:
        """Release the streams and end all processes."""
        try:
            while self._streams:
                await self._streams.pop().release()
            await self._client.close()
        finally:
            await self._children.end_all()


def python(module: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-P", "-m", module]


def say_ended(child: Child) -> None:
    """Report a process that has ended although it should still run."""
    lines = "\n".join(child.tail())
    print(f"{child.name} ended unexpectedly ({child.end})\n{lines}", file=sys.stderr)


def ignore(_line: str) -> None:
    """Do nothing with the messages of a controller."""


PLAIN: dict[str, Builder] = {
    OURS: plain_hop,
    "HAProxy": one_hop("HAProxy", peers.haproxy),
    "nginx": one_hop("nginx", peers.nginx),
    "socat": one_hop("socat", peers.socat),
    DIRECT: direct,
}
"""One hop without TLS."""

SHARED_PAIRS: dict[str, SharedBuilder] = {
    OURS: gateways_for,
    "stunnel": two_hops("stunnel", peers.stunnel_pair),
    "nginx": two_hops("nginx", peers.nginx_pair),
    "HAProxy": two_hops("HAProxy", peers.haproxy_pair),
}
"""Two hops with mutual TLS 1.3 between them, to several applications through the same processes."""

PAIRS: dict[str, Builder] = {name: alone(build) for name, build in SHARED_PAIRS.items()}
"""Two hops with mutual TLS 1.3 between them."""

PROGRAMS = {"HAProxy": "haproxy", "nginx": "nginx", "stunnel": "stunnel", "socat": "socat"}
"""The program of each peer."""
