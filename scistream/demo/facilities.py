"""A facility in a folder: its authority, its certificates, its configuration, and its two servers as processes.

A facility trusts its own authority for its servers, and the authorities of all facilities whose users it serves for
their users. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from scistream import timing
from scistream.demo.children import Child, Children
from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.address import Address

HOST = "127.0.0.1"

_TWISTD = [sys.executable, "-P", "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
_CONTROLLER = "s2cs-controller"
PORTS = range(24_000, 32_000)
"""Ports of demonstrations and benchmarks; tests of everything else use others."""
_TRIES = 200


class DemoError(Exception):
    """The demonstration has failed.

    :param message: a sentence for a person.
    :param log: lines of a log that explain it.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = list(log)


class DemoFacility:
    """One facility: an S2CS and one S2DS.

    :param folder: made for its files.
    :param name: its name in the authority's certificate.
    :param short: the prefix of the names of its processes.
    :param channels: the number of ports of its gateway.
    :param rate: the capacity of its gateway, in Mbit/s.
    :param ports: gives out free ports.
    """

    def __init__(self, folder: Path, name: str, short: str, channels: int, rate: float, ports: DemoPorts) -> None:
        self.name = name
        self._short = short
        self._pki = folder / "pki"
        self.authority = init_authority(self._pki, name).certificate
        self.s2cs = Address(HOST, ports.take())
        self.s2ds = Address(HOST, ports.take())
        self._folder = folder
        self._first_port = ports.take(channels)
        self._channels = channels
        self._rate = rate

    def user(self, name: str) -> Issued:
        """Issue a certificate for a user of this facility."""
        return issue(self._pki, "user", name)

    def start_gateway(self, children: Children, on_end: Callable[[Child], None], **more: Any) -> Child:
        """Write the configuration of the S2DS and start it. It obeys the S2CS of this facility only.

        :param more: additional settings of ``s2ds.toml``.
        """
        settings: dict[str, Any] = {
            "listen": str(self.s2ds),
            "controller": f"scistream:controller:{_CONTROLLER}",
            "authorities": [str(self.authority)],
            "ports": f"{self._first_port}-{self._first_port + self._channels - 1}",
            "capacity": f"{self._rate:.3f}Mbit",
            **_files(issue(self._pki, "server", "s2ds", [HOST])),
            **more,
        }
        return self._start(children, "s2ds", settings, on_end)

    def start_server(
        self, children: Children, trusted: Sequence[Path], on_end: Callable[[Child], None], **more: Any
    ) -> Child:
        """Write the configuration of the S2CS and start it.

        :param trusted: the authorities of the users whom it serves.
        :param more: additional settings of ``s2cs.toml``.
        """
        controller = _files(issue(self._pki, "controller", _CONTROLLER))
        settings: dict[str, Any] = {
            "listen": str(self.s2cs),
            "state": str(self._folder / "s2cs.sqlite"),
            "authorities": [str(path) for path in trusted],
            **_files(issue(self._pki, "server", "s2cs", [HOST])),
            "controller": {**controller, "authorities": [str(self.authority)]},
            "gateways": [{"name": f"{self._short}-gateway", "address": str(self.s2ds)}],
            **more,
        }
        return self._start(children, "s2cs", settings, on_end)

    async def gateway_ready(self, reactor: Any) -> None:
        """Wait until the S2DS accepts connections.

        :raises DemoError: if it does not within `timing.DEMO_START` seconds.
        """
        await _ready(reactor, f"the S2DS of the {self.name}", self.s2ds)

    async def server_ready(self, reactor: Any) -> None:
        """Wait until the S2CS accepts connections.

        :raises DemoError: if it does not within `timing.DEMO_START` seconds.
        """
        await _ready(reactor, f"the S2CS of the {self.name}", self.s2cs)

    def _start(self, children: Children, kind: str, settings: dict[str, Any], on_end: Callable[[Child], None]) -> Child:
        path = self._folder / f"{kind}.toml"
        path.write_text(_toml(settings))
        return children.start(f"{self._short}-{kind}", [*_TWISTD, kind, "--config", str(path)], {}, on_end)


class DemoPorts:
    """Free ports of this machine, each of which is given out once.

    They are below the ports that the system uses for outgoing connections, and are found by binding them.

    :ivar taken: the ports that were given out.
    """

    def __init__(self) -> None:
        self.taken: set[int] = set()

    def take(self, count: int = 1) -> int:
        """Return the first of `count` consecutive free ports.

        :raises DemoError: if no such ports are found.
        """
        for _ in range(_TRIES):
            first = random.randrange(PORTS.start, PORTS.stop - count)
            row = range(first, first + count)
            if self.taken.isdisjoint(row) and _all_free(row):
                self.taken.update(row)
                return first
        raise DemoError(f"found no {count} consecutive free ports between {PORTS.start} and {PORTS.stop}")


def _all_free(ports: range) -> bool:
    with ExitStack() as bound:
        try:
            for port in ports:
                bound.enter_context(socket.create_server((HOST, port)))
        except OSError:
            return False
    return True


async def _ready(reactor: Any, server: str, address: Address) -> None:
    deadline = reactor.seconds() + timing.DEMO_START
    while not await _accepts(reactor, address):
        if reactor.seconds() > deadline:
            raise DemoError(f"{server} does not listen on {address} after {timing.DEMO_START:g} s")
        await deferLater(reactor, timing.DEMO_LISTEN_POLL)


async def _accepts(reactor: Any, address: Address) -> bool:
    endpoint = TCP4ClientEndpoint(reactor, address.host, address.port, timeout=timing.DEMO_CONNECT)
    try:
        protocol = await endpoint.connect(Factory.forProtocol(Protocol))
    except ConnectError:
        return False
    assert isinstance(protocol, Protocol)
    assert protocol.transport is not None
    protocol.transport.loseConnection()
    return True


def _files(issued: Issued) -> dict[str, str]:
    return {"certificate": str(issued.certificate), "key": str(issued.key)}


def _toml(settings: dict[str, Any]) -> str:
    """Return the settings as TOML, in which strings and lists of strings are written as in JSON."""
    plain = {key: value for key, value in settings.items() if not _is_section(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in settings.items():
        if _is_section(value):
            head = f"[{key}]" if isinstance(value, dict) else f"[[{key}]]"
            for section in [value] if isinstance(value, dict) else value:
                lines += ["", head, _toml(section)]
    return "\n".join(lines) + "\n"


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
