"""Measure how long the library takes to set up a stream, from the first REQ to the last RESP.

There are two facilities on loopback, each with its own authority (real `twistd` processes), mutual TLS on every control
link, and new links for every stream. Both application controllers say Hello as soon as they have their join string.

    make bench ARGS='--only setup --streams 50'
    make bench ARGS='--only setup --half-open 1000'
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import DeferredList

from scistream.app.controller import Controller, NoProgram
from scistream.demo.children import Children
from scistream.demo.facilities import HOST, DemoFacility, DemoPorts
from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD
from scistream.s2uc.client import Client

REACH_MS = 150.0
REACH_BESIDE_MS = 1000.0
"""The target with half-open handshakes."""
CHANNELS = 4
FROM_ONE_ADDRESS = 40
"""Half-open handshakes from one address: more than a listener accepts from one address."""


async def measure(reactor: Any, streams: int, half_open: int) -> list[float]:
    """Set up streams, one after the other.

    :param half_open: unfinished handshakes at the producer's S2CS meanwhile, new ones for each stream.
    :returns: the duration of each set-up, in milliseconds.
    """
    attacker = count()
    with TemporaryDirectory(prefix="scistream-bench-") as name:
        children = Children(reactor, Path(name))
        os.environ["XDG_STATE_HOME"] = str(Path(name) / "state")  # to leave the user's own list of streams alone
        try:
            ports = DemoPorts()
            lab = DemoFacility(Path(name) / "lab", "Lab", "lab", CHANNELS, 1000.0, ports)
            centre = DemoFacility(Path(name) / "centre", "Centre", "centre", CHANNELS, 1000.0, ports)
            await _start(reactor, children, lab, centre)
            user = lab.user("ada@lab.example")
            taken = []
            for _ in range(streams):
                with _half_open(lab.s2cs, half_open, attacker):
                    taken.append(1000 * await _one(reactor, user, lab, centre))
        finally:
            await children.end_all()
    return taken


@contextmanager
def _half_open(address: Address, many: int, attacker: Iterator[int]) -> Iterator[None]:
    """Hold connections that begin a TLS handshake and send nothing more, from new loopback addresses each time."""
    with ExitStack() as opened:
        for number in range(many):
            if number % FROM_ONE_ADDRESS == 0:
                source = f"127.{next(attacker) // 250 % 200 + 50}.{next(attacker) % 250}.{next(attacker) % 250 + 1}"
            sock = opened.enter_context(socket.create_connection(address, timeout=60, source_address=(source, 0)))
            with suppress(OSError):  # the server may have closed it already
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        yield


async def _start(reactor: Any, children: Children, *facilities: DemoFacility) -> None:
    trusted = [facility.authority for facility in facilities]
    for facility in facilities:
        facility.start_gateway(children, _server_ended)
        await facility.gateway_ready(reactor)
        facility.start_server(children, trusted, _server_ended)
        await facility.server_ready(reactor)


def _server_ended(child: Any) -> None:
    print(f"{child.name} ended unexpectedly ({child.end})", *child.tail(), sep="\n", file=sys.stderr)


async def _one(reactor: Any, user: Issued, lab: DemoFacility, centre: DemoFacility) -> float:
    """Set up one stream and release it; return the duration of the set-up in seconds."""
    authorities = [lab.authority, centre.authority]
    async with Client(certificate=user.certificate, key=user.key, authorities=authorities, reactor=reactor) as client:
        began = reactor.seconds()
        stream = await client.request(prod=str(lab.s2cs), cons=str(centre.s2cs), num_conn=CHANNELS, rate=1000.0)
        producer = Controller(reactor, Join.parse(stream.join[PROD]), [Address(HOST, 9)], NoProgram(), _ignore).run()
        consumer = Controller(reactor, Join.parse(stream.join[CONS]), [], NoProgram(), _ignore).run()
        await stream.provisioned()
        seconds: float = reactor.seconds() - began
        await DeferredList([producer, consumer])
        await stream.release()
        return seconds


def _ignore(_line: str) -> None:
    """Do nothing with the messages of a controller, since no data is sent."""
