"""A facility for tests: an authority, an S2CS and its gateways, as installed daemons in real processes.

A `Site` says where they listen and on which machine they run; `loopback` is that of most tests. Nothing here runs a
reactor.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.address import Address
from support.fork_server import TIMING
from support.leased_ports import HOST, can_bind, leased
from support.programs import INSTALLED, Program
from support.tcp_sockets import ESTABLISHED, HOLDING, LISTEN, TcpSocket, tcp_sockets
from support.waiting import PATIENCE, until

CONTROLLER = "s2cs-controller"


# Machines


class Machine:
    """Where daemons run: here, the machine and the network namespace of the tests."""

    def start(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Program:
        """Start a program there, whose standard error goes to a file."""
        return Program(command, log, env)

    def sockets(self, *states: int) -> list[TcpSocket]:
        """Return its TCP sockets in these states."""
        return tcp_sockets(*states)


def elements_of(pid: int) -> list[int]:
    """Return the processes that a gateway has started and that have not ended."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                state = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0]
                if state != "Z":
                    found.append(int(child))
    return sorted(found)


# Sites


@dataclass(frozen=True)
class GatewaySite:
    """Where a gateway listens: for its S2CS, and the ports for streams."""

    control: Address
    ports: range


@dataclass(frozen=True)
class Site:
    """Where a facility is.

    :ivar server: where its S2CS listens.
    :ivar lan: the address that gateways bind for applications.
    :ivar wan: the address that gateways bind for other gateways.
    :ivar gateway_settings: what the settings of each gateway say besides.
    """

    server: Address
    gateways: Sequence[GatewaySite]
    lan: str
    wan: str
    gateway_settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)


def loopback(host: str = HOST, gateways: int = 1, ports: int = 8) -> Site:
    """Return a site on a loopback address, at ports that no other test run uses.

    :param gateways: how many, each with `ports` ports of its own.
    """
    free = [(leased.take(ports, host), Address(host, leased.take(1, host))) for _ in range(gateways)]
    return Site(
        server=Address(host, leased.take(1, host)),
        gateways=[GatewaySite(control, range(first, first + ports)) for first, control in free],
        lan=host,
        wan=host,
        gateway_settings={"capacity": "100Gbit"},
    )


# Daemons


class Daemon:
    """An S2CS or an S2DS under twistd; it may be stopped or killed, and started again.

    :param kind: what twistd calls it.
    :param name: unique in its folder.
    :param address: where it listens for control links.
    """

    programs = INSTALLED

    def __init__(
        self,
        kind: str,
        name: str,
        folder: Path,
        address: Address,
        settings: Mapping[str, Any],
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine or Machine()
        self.name = name
        self.address = address
        self.log = folder / f"{name}.log"
        self.file = folder / f"{name}.toml"
        self.file.write_text(tomli_w.dumps(settings))
        self._arguments = ["-n", "--pidfile=", f"--logfile={self.log}", kind, "--config", str(self.file)]
        self.program: Program | None = None
        self.env: dict[str, str] = {}
        """What its environment has besides the test's own, from its next start on."""
        self.timing: Mapping[str, float] = {}
        """Limits that it has instead of those of `scistream.timing`, from its next start on, if it is forked."""
        self.before_start: Callable[[], None] = lambda: None
        """Called at the beginning of `start`."""

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self.program is not None
        return self.program.pid

    def start(self) -> None:
        """Start it; it is ready when `wait_until_ready` returns."""
        self.before_start()
        command = [str(self.programs / "twistd"), *self._arguments]
        env = {**os.environ, **self.env, **({TIMING: json.dumps(self.timing)} if self.timing else {})}
        self.program = self.machine.start(command, self.log.with_suffix(".err"), env)

    def wait_until_ready(self) -> None:
        """Wait until it listens."""
        until(self._is_ready, lambda: f"{self.name} does not listen on {self.address}:\n{self.words()}")

    def _is_ready(self) -> bool:
        assert self.program is not None
        assert self.program.process.poll() is None, f"{self.name} has ended:\n{self.words()}"
        return any(sock.local == self.address.port for sock in self.machine.sockets(LISTEN))

    def stop(self) -> None:
        """End it in order."""
        program, self.program = self.program, None
        assert program is not None
        program.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        program, self.program = self.program, None
        assert program is not None
        program.process.kill()
        program.process.wait(PATIENCE)

    def processes(self) -> list[int]:
        """Its own process, and those that it has started."""
        return [self.pid, *elements_of(self.pid)]

    def words(self) -> str:
        """All that it has logged."""
        logs = [path.read_text(errors="replace") for path in (self.log, self.log.with_suffix(".err")) if path.exists()]
        return "".join(logs)


class Gateway(Daemon):
    """An S2DS and its range of ports, `first_port` to `last_port`."""

    def __init__(self, name: str, facility: Facility, site: GatewaySite, settings: Mapping[str, Any]) -> None:
        self.host = facility.site.lan
        self.first_port, self.last_port = site.ports[0], site.ports[-1]
        mine = {
            "listen": str(site.control),
            "controller": f"scistream:controller:{CONTROLLER}",
            "authorities": [str(facility.authority)],
            "ports": f"{self.first_port}-{self.last_port}",
            "elements": 1,  # each costs half a second; what several have in common is in `test_elements`
            "lan": {"bind": facility.site.lan},
            "wan": {"bind": facility.site.wan},
            **files_of(issue(facility.pki, "server", f"{name}-server", [site.control.host])),
            **facility.site.gateway_settings,
        }
        sections = {key: {**mine[key], **settings[key]} for key in ("lan", "wan") if key in settings}
        everything = {**mine, **settings, **sections}
        super().__init__("s2ds", name, facility.folder, site.control, everything, facility.site.machine)
        self._elements = settings.get("elements", mine["elements"])

    def wait_until_ready(self) -> None:
        """Wait for its elements, too: then it holds all that it holds at rest."""
        super().wait_until_ready()

        def ready() -> bool:
            said = {int(pid) for pid in re.findall(r"element \d+ is ready \(process (\d+)\)", self.words())}
            return len(said.intersection(elements_of(self.pid))) == self._elements

        until(ready, self.words)

    def ports_in_use(self) -> frozenset[int]:
        """Return the ports of its range that a socket is bound to, listening, connected or only reserved."""
        mine = range(self.first_port, self.last_port + 1)
        seen = {sock.local for sock in self.machine.sockets(*HOLDING) if sock.local in mine}
        return frozenset(seen | {port for port in mine if not can_bind(self.host, port)})

    def offers(self, listener: str) -> bool:
        """Return True if a listener is one of its ports."""
        return self.first_port <= Address.parse(listener).port <= self.last_port


class Facility:
    """An authority, an S2CS and its gateways, with all their files in a folder.

    :param users: the certificate of the authority of its users.
    :param settings: further settings of its S2CS.
    :param gateway: further settings of each gateway.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        users: Path,
        site: Site,
        *,
        settings: Mapping[str, Any] | None = None,
        gateway: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.site = site
        self.folder = folder
        self.pki = folder / "pki"
        self.authority = init_authority(self.pki, f"The {name}").certificate
        self.store = folder / "s2cs.sqlite"
        self.gateways = [
            Gateway(f"{name}-s2ds-{number}", self, each, gateway or {}) for number, each in enumerate(site.gateways)
        ]
        mine: dict[str, Any] = {
            "listen": str(site.server),
            "state": str(self.store),
            "authorities": [str(users)],
            **files_of(issue(self.pki, "server", f"{name}-s2cs", [site.server.host])),
            "controller": {**files_of(issue(self.pki, "controller", CONTROLLER)), "authorities": [str(self.authority)]},
            "gateways": [{"name": each.name, "address": str(each.address)} for each in self.gateways],
        }
        self.server = Daemon("s2cs", f"{name}-s2cs", folder, site.server, {**mine, **(settings or {})}, site.machine)
        self._links_before = dict.fromkeys(self.gateways, 0)
        """How many links to each gateway the S2CS had made when one of the two was last started."""
        for gateway in self.gateways:
            gateway.before_start = partial(self._count_links, gateway)
        self.server.before_start = partial(self._count_links, *self.gateways)

    @property
    def s2cs(self) -> str:
        """Where its S2CS listens."""
        return str(self.server.address)

    @property
    def daemons(self) -> list[Daemon]:
        """The gateways, then the S2CS."""
        return [*self.gateways, self.server]

    def wait_for_links(self) -> None:
        """Wait until its S2CS has a link to each gateway; both ends then have all that they hold at rest.

        An open TCP connection is not enough: until its TLS handshake is complete, the S2CS gives the gateway no stream.
        """

        def linked() -> bool:
            connected = {sock.local for sock in self.site.machine.sockets(ESTABLISHED) if sock.is_accepted}
            return all(
                gateway.address.port in connected and self._links_made(gateway) > self._links_before[gateway]
                for gateway in self.gateways
            )

        until(linked, lambda: f"{self.server.name} has not reached its gateways:\n{self.server.words()}")

    def _links_made(self, gateway: Gateway) -> int:
        """Return how many links to a gateway the S2CS has made, according to its log."""
        return self.server.words().count(f"gateway {gateway.name} is connected\n")

    def _count_links(self, *gateways: Gateway) -> None:
        for gateway in gateways:
            self._links_before[gateway] = self._links_made(gateway)

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of each stream in its store, by uid and role."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=PATIENCE)) as store:
            rows = store.execute("SELECT uid, role, state FROM stream").fetchall()
        return {(uid, role): state for uid, role, state in rows}


def files_of(issued: Issued) -> dict[str, str]:
    return {"certificate": str(issued.certificate), "key": str(issued.key)}


# Several facilities


def start(*facilities: Facility) -> None:
    """Start all daemons of facilities, and wait until they hold all that they hold at rest."""
    gateways = [gateway for facility in facilities for gateway in facility.gateways]
    for daemons in (gateways, [facility.server for facility in facilities]):
        for daemon in daemons:
            daemon.start()
        for daemon in daemons:
            daemon.wait_until_ready()
    for facility in facilities:
        facility.wait_for_links()


def stop(*facilities: Facility) -> dict[Daemon, int]:
    """End the daemons that run, all at once. Return the status of each."""
    daemons = [daemon for facility in facilities for daemon in facility.daemons]
    running = {daemon: daemon.program for daemon in daemons if daemon.program is not None}
    for program in running.values():
        program.ask_to_end()
    return {daemon: program.stop() for daemon, program in running.items()}


def end(*facilities: Facility) -> None:
    """End the daemons that run, in order.

    :raises AssertionError: if one of them has died before, ends with a status other than 0, or has logged a traceback.
    """
    daemons = [daemon for facility in facilities for daemon in facility.daemons]
    died = [daemon for daemon in daemons if daemon.program and daemon.program.process.poll() is not None]
    ended = stop(*facilities)
    for daemon in daemons:
        assert "Traceback" not in daemon.words(), f"{daemon.name} has logged:\n{daemon.words()[-10000:]}"
    assert not died, "\n".join(f"{daemon.name} died:\n{daemon.words()[-4000:]}" for daemon in died)
    for daemon, status in ended.items():
        assert status == 0, f"{daemon.name} ended with status {status}:\n{daemon.words()[-4000:]}"
        assert "Server Shut Down" in daemon.words()
