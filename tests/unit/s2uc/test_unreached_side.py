"""One side cannot be reached and the other refuses: the first must never learn of the stream."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

from scistream.protocol.codec import decode, encode
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Error, Message, Rel, Req, Resp
from scistream.s2uc.client import Client
from support.memory_network import HOST, MemoryNetwork

FULL, LATE = 5000, 6000


class Refusing(LineOnlyReceiver):
    """A server that refuses every request for lack of ports, and records the messages that it gets."""

    delimiter = b"\n"
    MAX_LENGTH = 100_000
    transport: Any

    def lineReceived(self, line: bytes) -> None:
        message = decode(line)
        self.factory.heard.append(message)
        if isinstance(message, Req):
            self.transport.write(encode(Error(uid=message.uid, seq=message.seq, code="no-ports", msg="full")))
        elif isinstance(message, Rel):
            self.transport.write(encode(Resp(uid=message.uid, seq=message.seq, state="Released", msg="")))


class Hearing(Factory):
    """The servers of one port, and the messages that they got."""

    protocol = Refusing
    noisy = False

    def __init__(self) -> None:
        self.heard: list[Message] = []


def test_a_server_that_comes_up_after_the_stream_has_ended_gets_no_request_for_it() -> None:
    network, full, late = MemoryNetwork(), Hearing(), Hearing()
    network.listenTCP(FULL, full)
    client = Client(insecure=True, reactor=network)
    failed: list[Any] = []
    asking = client.request(prod=f"{HOST}:{FULL}", cons=f"{HOST}:{LATE}", rate=100.0).deferred
    asking.addErrback(failed.append)
    network.until(lambda: bool(failed))
    assert failed[0].check(StreamError)
    assert "producer side: full" in str(failed[0].value)
    assert [type(message) for message in full.heard] == [Req, Rel]

    network.listenTCP(LATE, late)
    network.run(60.0)
    assert late.heard == []


def test_a_server_that_comes_up_during_the_release_gets_no_request_either() -> None:
    network, full, late = MemoryNetwork(), Hearing(), Hearing()
    network.listenTCP(FULL, full)
    network.lose = lambda line: b"Released" in line
    client = Client(insecure=True, reactor=network)
    asking = client.request(prod=f"{HOST}:{FULL}", cons=f"{HOST}:{LATE}", rate=100.0).deferred
    asking.addErrback(lambda _: None)
    network.until(lambda: any(isinstance(message, Rel) for message in full.heard))
    network.listenTCP(LATE, late)
    network.run(10.0)
    network.lose = lambda line: False
    network.run(60.0)
    assert [message for message in late.heard if isinstance(message, Req)] == []
