"""SciStream on a testbed: at each gateway an S2CS and an S2DS, on the laptop a user whom both facilities serve.

Certificates name addresses. An S2DS has the LAN address of its gateway for applications, the WAN address for the other
facility, and loopback for its S2CS; the S2CS listens on the WAN address, which its LAN reaches too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netns
import tomli_w
from testbed import Testbed
from testbed_addresses import Addresses

from scistream.pki.authority import init_authority, issue
from scistream.protocol.address import Address
from support import facilities
from support.facilities import Facility, GatewaySite, Machine, Site, files_of
from support.programs import INSTALLED, Program
from support.tcp_sockets import TcpSocket, tcp_sockets
from support.waiting import PATIENCE

PORT = 5000
PORTS = 16


@dataclass(frozen=True)
class Place:
    """The location of a facility: its gateway's host, its networks, and the gateway's addresses in them."""

    gateway: str
    lan: str
    lan_address: str
    wan: str
    wan_address: str


def places(v: Addresses) -> tuple[Place, Place]:
    """Return the places of the producer and of the consumer."""
    return (
        Place("pgw", v.producer_lan, v.pgw_lan, v.wan, v.pgw),
        Place("cgw", v.consumer_lan, v.cgw_lan, v.wan, v.cgw),
    )


class Host(Machine):
    """A host of a testbed, on which daemons run."""

    def __init__(self, testbed: Testbed, name: str) -> None:
        self._testbed = testbed
        self._name = name

    def start(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Program:
        """Start a program there; it ends with the testbed."""
        return self._testbed.start(self._name, command, env, log)

    def sockets(self, *states: int) -> list[TcpSocket]:
        """Return its TCP sockets in these states."""
        with netns.inside(self._testbed.namespace(self._name)):
            return tcp_sockets(*states)


def site(testbed: Testbed, place: Place, port: int) -> Site:
    """Return where a facility of a testbed is.

    :param port: of the S2CS; the S2DS listens on the next one, for streams on those from a hundred on.
    """
    return Site(
        server=Address(place.wan_address, port),
        gateways=[GatewaySite(Address("127.0.0.1", port + 1), range(port + 100, port + 100 + PORTS))],
        lan=place.lan_address,
        wan=place.wan_address,
        gateway_settings={"app_networks": [place.lan], "wan_networks": [place.wan]},
        machine=Host(testbed, place.gateway),
    )


@dataclass(frozen=True)
class Stream:
    """A stream with both applications greeted: where the consumer connects, one listener a channel."""

    uid: str
    listeners: list[Address]


class Facilities:
    """Two facilities and a user on a testbed that is up. As a context manager: running while it lasts.

    :param port: the first port at each gateway; other facilities on the same testbed take another.
    :param v: the version of IP of all of it, `testbed.v4` if not given.
    :param timing: limits that each S2DS has instead of those of `scistream.timing`.
    :param paths: the WAN addresses of each gateway that has several, by its host.
    :param gateway: further settings of each S2DS: ``wan_timeout="3s"``, ``wan={"congestion": "bbr"}``.
    """

    def __init__(
        self,
        testbed: Testbed,
        *,
        port: int = PORT,
        v: Addresses | None = None,
        timing: Mapping[str, float] | None = None,
        paths: Mapping[str, Sequence[str]] | None = None,
        **gateway: Any,
    ) -> None:
        self.testbed = testbed
        folder = _folder(testbed, port)
        users = init_authority(folder / "users", "Users of both").certificate
        self.producer, self.consumer = (
            Facility(
                _new(folder / place.gateway),
                place.gateway,
                users,
                site(testbed, place, port),
                gateway={
                    **gateway,
                    "wan": {**gateway.get("wan", {}), "paths": list((paths or {}).get(place.gateway, ()))},
                },
            )
            for place in places(v or testbed.v4)
        )
        for facility in self._both:
            for daemon in facility.gateways:
                daemon.timing = timing or {}
        homes = user_environment(testbed, port)
        settings = _new(Path(homes["XDG_CONFIG_HOME"]) / "scistream") / "s2uc.toml"
        authorities = [str(each.authority) for each in self._both]
        settings.write_text(
            tomli_w.dumps({**files_of(issue(folder / "users", "user", "ada")), "authorities": authorities})
        )
        self.env = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"} | homes

    @property
    def _both(self) -> tuple[Facility, Facility]:
        return self.producer, self.consumer

    def start(self) -> None:
        """Start all four servers and wait until they are ready."""
        facilities.start(*self._both)

    def __enter__(self) -> Facilities:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        facilities.end(*self._both)

    # The user

    def start_s2uc(self, *arguments: str) -> Program:
        """Start ``s2uc`` on the user's laptop."""
        return self.testbed.start("user", [str(INSTALLED / "s2uc"), *arguments], self.env)

    def s2uc(self, *arguments: str, timeout: float = 2 * PATIENCE) -> str:
        """Run ``s2uc``: what it says."""
        return self.start_s2uc(*arguments).end(timeout).stdout

    def request(self, num_conn: int = 1, rate: str = "5Gbit") -> Request:
        """Ask for a stream, and wait until both facilities have reserved."""
        between = ["--prod", self.producer.s2cs, "--cons", self.consumer.s2cs]
        wishes = ["--num-conn", str(num_conn), "--rate", rate]
        return Request(self, self.start_s2uc("request", "--json", *between, *wishes))

    @contextmanager
    def stream(self, listen: Sequence[Address], num_conn: int = 1, rate: str = "5Gbit") -> Iterator[Stream]:
        """Request a stream to a program that listens on the producer's LAN; release it at the end."""
        request = self.request(num_conn, rate)
        try:
            request.prod(listen).end()
            consumer = request.cons()
            request.streaming()
            found = json.loads(consumer.end().stdout)["listeners"]
            yield Stream(request.uid, [Address.parse(one) for one in found])
        finally:
            request.release()


def user_environment(testbed: Testbed, port: int = PORT) -> dict[str, str]:
    """With what ``s2uc`` finds the configuration and the memory of the user."""
    home = _folder(testbed, port) / "user"
    return {"XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state")}


def _folder(testbed: Testbed, port: int) -> Path:
    return testbed.folder / f"facilities-{port}"


class Request:
    """A running ``s2uc request`` that has printed that both facilities have reserved."""

    def __init__(self, facilities: Facilities, program: Program) -> None:
        first = json.loads(program.line(2 * PATIENCE))
        self.uid: str = first["uid"]
        self.join: dict[str, str] = first["join"]
        self._facilities = facilities
        self._program = program

    def prod(self, listen: Sequence[Address], command: Sequence[str] = ()) -> Program:
        """Start ``appctrl prod`` on the producer's LAN, for a program that listens there."""
        options = [word for listener in listen for word in ("--listen", str(listener))]
        return self._appctrl("plan", "PROD", "prod", *options, *(["--", *command] if command else []))

    def cons(self, command: Sequence[str] = ()) -> Program:
        """Start ``appctrl cons`` on the consumer's LAN."""
        return self._appctrl("clan", "CONS", "cons", *(["--", *command] if command else []))

    def _appctrl(self, host: str, role: str, *arguments: str) -> Program:
        env = {**self._facilities.env, "SCISTREAM_JOIN": self.join[role]}
        return self._facilities.testbed.start(host, [str(INSTALLED / "appctrl"), *arguments], env)

    def streaming(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until it streams: the last line of the command, which has ended with status 0."""
        last: dict[str, Any] = json.loads(self._program.end(timeout).stdout.splitlines()[-1])
        assert (last["uid"], last["state"]) == (self.uid, "Streaming")
        return last

    def release(self) -> None:
        """End the stream at both facilities."""
        self._facilities.s2uc("release", self.uid)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
