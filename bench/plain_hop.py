"""One hop of this project without TLS: only the listener and the elements of a gateway.

``python -m bench.plain_hop ENTER TARGET COUNT CONGESTION`` forwards connections from one port of this machine to
another, like HAProxy and nginx without TLS. No real gateway runs like this, since the leg between facilities always has
TLS.
"""

from __future__ import annotations

import socket
import sys
from functools import partial
from typing import Any

from scistream.cli_support import start_logging
from scistream.os_process import raise_descriptor_limit
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS
from scistream.reactors import run_on_monotonic_time
from scistream.s2ds.elements.element_settings import ElementSettings
from scistream.s2ds.elements.pool import Elements
from scistream.s2ds.ports import ChannelListener, ListenPorts

HOST = "127.0.0.1"
UID = "00000000-0000-0000-0000-000000000000"
RATE = 1e5
"""Mbit/s: more than can be forwarded."""


def main(enter: int, target: int, count: int, congestion: str) -> None:
    """Run until SIGTERM, with `count` element processes; 0 forwards in this process."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    start_logging(0)
    raise_descriptor_limit()
    run_on_monotonic_time(reactor)
    (sock,) = ListenPorts(enter, enter).reserve(HOST, 1)
    elements = Elements(reactor, count, 1, ElementSettings(lan_congestion=congestion, wan_congestion=congestion))
    elements.start()
    elements.open(UID, CONS, RATE, {0: 0})
    armed = elements.arm(UID, CONS, {0: Address(HOST, target)}, None)
    armed.addCallback(lambda _: _listen(reactor, sock, elements))
    reactor.addSystemEventTrigger("before", "shutdown", elements.stop)
    reactor.run()


def _listen(reactor: Any, sock: socket.socket, elements: Elements) -> None:
    def carry(accepted: socket.socket, _peer: Any) -> None:
        elements.carry(UID, CONS, 0, accepted, wan=False)

    ChannelListener(reactor, sock).start(carry, partial(elements.has_room, UID, CONS, 0, wan=False))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
