"""What a probe says of another gateway that it cannot talk to, on real connections."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as running

from scistream.protocol.address import Address
from scistream.s2ds.probe.diagnose import diagnose_connection
from support.leased_ports import leased

reactor: Any = running


class FromThatPort:
    """The running reactor, whose connections come from the very port that they go to, as the system may choose it."""

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float) -> Any:
        return reactor.connectTCP(host, port, factory, timeout, bindAddress=(host, port))

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


async def test_a_connection_to_itself_does_not_count_as_an_accepting_gateway() -> None:
    target = Address("127.0.0.1", leased.take())
    from_elsewhere = await diagnose_connection(reactor, target)
    assert "refused" in from_elsewhere.text
    assert await diagnose_connection(FromThatPort(), target) == from_elsewhere
