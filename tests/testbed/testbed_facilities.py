"""SciStream on a testbed: at each gateway an S2CS and an S2DS, on the laptop a user whom both facilities serve.

Certificates name addresses. An S2DS has the LAN address of its gateway for applications, the WAN address for the other
facility, and loopback for its S2CS; the S2CS listens on the WAN address, which its LAN reaches too.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netns
from testbed import Testbed
from testbed_addresses import Addresses

from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.address import Address
from support.programs import INSTALLED, Program
from support.waiting import PATIENCE, until

PORT = 5000
PORTS = 16
_CONTROLLER = "s2cs-controller"
_LISTEN, _ESTABLISHED = "0A", "01"


@dataclass(frozen=True)
class Place:
    """Where a facility stands: its gateway's host, its networks, and the gateway's addresses in them."""

    gateway: str
    lan: str
    lan_address: str
    wan: str
    wan_address: str


def places(v: Addresses) -> tuple[Place, Place]:
    """The producer's and the consumer's."""
    return (
        Place("pgw", v.producer_lan, v.pgw_lan, v.wan, v.pgw),
        Place("cgw", v.consumer_lan, v.cgw_lan, v.wan, v.cgw),
    )


class Facility:
    """An authority, an S2CS and an S2DS at a gateway, with all their files in a folder.

    :param port: of the S2CS; the S2DS listens on the next one, for streams on those from a hundred on.
    :param gateway: further settings of the S2DS.
    """

    def __init__(
        self, testbed: Testbed, place: Place, folder: Path, users: Path, port: int, gateway: Mapping[str, str]
    ) -> None:
        self.place = place
        self.s2cs = Address(place.wan_address, port)
        self._testbed = testbed
        self._folder = folder
        self._programs: dict[str, Program] = {}
        pki = folder / "pki"
        self.authority = init_authority(pki, f"The facility at {place.gateway}").certificate
        self._control = control = Address("127.0.0.1", port + 1)
        authorities = [str(self.authority)]
        s2ds = {
            "elements": 1,
            "listen": str(control),
            "controller": f"scistream:controller:{_CONTROLLER}",
            "authorities": authorities,
            "ports": f"{port + 100}-{port + 99 + PORTS}",
            "app_networks": [place.lan],
            "wan_networks": [place.wan],
            **_files(issue(pki, "server", "s2ds", [control.host])),
            **gateway,
        }
        legs = {"lan": {"bind": place.lan_address}, "wan": {"bind": place.wan_address}}
        (folder / "s2ds.toml").write_text(_toml(s2ds, legs))
        s2cs = {
            "listen": str(self.s2cs),
            "authorities": [str(users)],
            "gateways": [{"name": place.gateway, "address": str(control)}],
            **_files(issue(pki, "server", "s2cs", [place.wan_address])),
        }
        controller = {**_files(issue(pki, "controller", _CONTROLLER)), "authorities": authorities}
        (folder / "s2cs.toml").write_text(_toml(s2cs, {"controller": controller}))

    def start(self) -> None:
        """Start its servers; they are ready when `wait_until_ready` returns."""
        for kind in ("s2ds", "s2cs"):
            command = [str(INSTALLED / "twistd"), "-n", "--pidfile=", f"--logfile={self._log(kind)}"]
            command += [kind, "--config", str(self._folder / f"{kind}.toml")]
            self._programs[kind] = self._testbed.start(self.place.gateway, command)

    def wait_until_ready(self) -> None:
        """Wait until both listen, and the S2CS has its link to the S2DS."""

        def ready() -> bool:
            for program in self._programs.values():
                assert program.process.poll() is None, f"ended: {program}\n{self.words()}"
            states = self._states()
            return {_LISTEN, _ESTABLISHED} <= states[self._control.port] and _LISTEN in states[self.s2cs.port]

        until(ready, lambda: f"the servers at {self.place.gateway} are not ready:\n{self.words()}")

    def _states(self) -> Mapping[int, set[str]]:
        """Of the gateway's TCP sockets, by their port."""
        found: dict[int, set[str]] = defaultdict(set)
        with netns.inside(self._testbed.namespace(self.place.gateway)):
            for table in (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6")):
                for line in table.read_text().splitlines()[1:] if table.exists() else ():
                    local, _, state = line.split()[1:4]
                    found[int(local.rpartition(":")[2], 16)].add(state)
        return found

    def stop(self) -> None:
        """End its servers, in order.

        :raises AssertionError: if one has ended before, or has logged a traceback.
        """
        died = [kind for kind, program in self._programs.items() if program.process.poll() is not None]
        for program in self._programs.values():
            program.ask_to_end()
        for program in self._programs.values():
            program.stop()
        self._programs.clear()
        words = self.words()
        assert not died, f"{' and '.join(died)} at {self.place.gateway} ended early:\n{words}"
        assert "Traceback" not in words, words

    def words(self) -> str:
        """What its servers have logged."""
        logs = [(kind, self._log(kind)) for kind in ("s2ds", "s2cs")]
        return "\n".join(f"{kind}:\n{log.read_text()[-8000:]}" for kind, log in logs if log.exists())

    def _log(self, kind: str) -> Path:
        return self._folder / f"{kind}.log"


@dataclass(frozen=True)
class Stream:
    """A stream with both applications greeted: where the consumer connects, one listener a channel."""

    uid: str
    listeners: list[Address]


class Facilities:
    """Two facilities and a user on a testbed that is up. As a context manager: running while it lasts.

    :param port: the first port at each gateway; other facilities on the same testbed take another.
    :param v: the version of IP of all of it, `testbed.v4` if not given.
    :param gateway: further settings of each S2DS: ``wan_timeout="3s"``.
    """

    def __init__(self, testbed: Testbed, *, port: int = PORT, v: Addresses | None = None, **gateway: str) -> None:
        self.testbed = testbed
        folder = _folder(testbed, port)
        users = init_authority(folder / "users", "Users of both").certificate
        self.producer, self.consumer = (
            Facility(testbed, place, _new(folder / place.gateway), users, port, gateway)
            for place in places(v or testbed.v4)
        )
        homes = user_environment(testbed, port)
        settings = _new(Path(homes["XDG_CONFIG_HOME"]) / "scistream") / "s2uc.toml"
        authorities = [str(each.authority) for each in self._both]
        settings.write_text(_toml({**_files(issue(folder / "users", "user", "ada")), "authorities": authorities}, {}))
        self.env = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"} | homes

    @property
    def _both(self) -> tuple[Facility, Facility]:
        return self.producer, self.consumer

    def start(self) -> None:
        """Start all four servers and wait until they are ready."""
        for facility in self._both:
            facility.start()
        for facility in self._both:
            facility.wait_until_ready()

    def __enter__(self) -> Facilities:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for facility in self._both:
            facility.stop()

    # The user

    def start_s2uc(self, *arguments: str) -> Program:
        """Start ``s2uc`` on the user's laptop."""
        return self.testbed.start("user", [str(INSTALLED / "s2uc"), *arguments], self.env)

    def s2uc(self, *arguments: str, timeout: float = 2 * PATIENCE) -> str:
        """Run ``s2uc``: what it says."""
        return self.start_s2uc(*arguments).end(timeout).stdout

    def request(self, num_conn: int = 1, rate: str = "5Gbit") -> Request:
        """Ask for a stream, and wait until both facilities have reserved."""
        between = ["--prod", str(self.producer.s2cs), "--cons", str(self.consumer.s2cs)]
        wishes = ["--num-conn", str(num_conn), "--rate", rate]
        return Request(self, self.start_s2uc("request", "--json", *between, *wishes))

    @contextmanager
    def stream(self, listen: Sequence[Address], num_conn: int = 1, rate: str = "5Gbit") -> Iterator[Stream]:
        """A stream to a program that listens there, on the producer's LAN; released at the end."""
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


def _files(issued: Issued) -> dict[str, str]:
    return {"certificate": str(issued.certificate), "key": str(issued.key)}


def _toml(settings: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of these settings; strings, lists and flat tables of JSON are such of TOML too, but for the colon."""
    lines = [f"{key} = {_value(value)}" for key, value in settings.items()]
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_value(each)}' for key, each in value.items())}}}"
    return json.dumps(value)
