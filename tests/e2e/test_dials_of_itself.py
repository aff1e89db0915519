"""Connecting to an unused port of this machine never connects a socket to itself."""

from __future__ import annotations

import socket
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor

from scistream.protocol.address import Address
from scistream.s2ds.relay.leg import DialRefusedError
from scistream.s2ds.relay.plain import dial
from scistream.s2ds.relay.poller import poller_of
from support.leased_ports import leased

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


@pytest_twisted.ensureDeferred
async def test_a_socket_that_meets_itself_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port = leased.take()
    made = socket.socket

    class Bound(made):  # type: ignore[misc, valid-type]
        """Has the very port that it is about to dial, as the kernel may choose."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.bind(("127.0.0.1", port))

    monkeypatch.setattr("scistream.s2ds.relay.plain.socket.socket", Bound)
    with pytest.raises(DialRefusedError):
        await dial(reactor, poller_of(reactor), Address("127.0.0.1", port), "ProdApp", 5.0, 5.0, wan=False)
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", port)):  # the port is free again
        pass
