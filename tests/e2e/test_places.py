"""Connection slots of a gateway after aborted handshakes and in a loop of gateways; and a stopped gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256

from attackers import client_hello
from harness import Streaming, World, open_descriptors, together
from test_stalled import opened

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD
from support.applications import accept, address_of, is_reset, listen, noise, receive, receive_exactly
from support.facilities import HOST, Gateway
from support.waiting import PATIENCE, until

PLACES = 40
LIMITED = {"gateway": {"limits": {"connections": PLACES}}}
NONE_READY = {"gateway": {"wan": {"bind": HOST, "ready": 0}}}
"""Connections that are verified at the same time, as ready ones are, may exceed a limit by a few."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def abort(port: Address, said: bytes, *, reset: bool) -> None:
    """Open a connection, send `said` as part of a handshake, and end it."""
    with socket.create_connection(port, timeout=PATIENCE) as sock:
        sock.sendall(said)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def test_after_aborted_handshakes_and_resets_there_are_as_many_places_as_before_and_no_more(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab=LIMITED, centre=NONE_READY)
    gateway = world.lab.gateways[0]
    hello = client_hello()
    with closing(listen()) as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        at_rest = sum(map(open_descriptors, gateway.processes()))
        for _ in range(2):
            for number in range(3 * PLACES):
                abort(wan, (b"", hello[:20], hello, b"GET / HTTP/1.0\r\n\r\n")[number % 4], reset=number % 3 == 0)
            until(lambda: sum(map(open_descriptors, gateway.processes())) <= at_rest, gateway.words)
            with ExitStack() as ends:
                assert opened(stream, detector, PLACES, ends) == PLACES // 2
            until(lambda: sum(map(open_descriptors, gateway.processes())) <= at_rest, gateway.words)


def test_a_loop_of_gateways_of_two_facilities_ends_at_its_share_and_its_user_learns_why(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab=LIMITED, centre=LIMITED)
    gateways = [facility.gateways[0] for facility in world.facilities]
    with world.request(1, "100Mbit") as one, world.request(1, "100Mbit") as other:

        def listener(uid: str) -> str:
            streams = json.loads(world.s2uc("status", "--json", uid).stdout)["streams"]
            (told,) = streams[uid][CONS]["listeners"]
            return str(told)

        into_one, into_other = listener(one.uid), listener(other.uid)
        ends = [
            (world.cons(one.join[CONS]), world.prod(one.join[PROD], [into_other])),
            (world.cons(other.join[CONS]), world.prod(other.join[PROD], [into_one])),
        ]
        for requested, (_, producer) in zip((one, other), ends, strict=True):
            requested.streaming()
            producer.end()
        at_rest = [sum(map(open_descriptors, gateway.processes())) for gateway in gateways]
        assert is_reset(into_one)
        for gateway, before in zip(gateways, at_rest, strict=True):
            until(
                lambda gateway=gateway, before=before: sum(map(open_descriptors, gateway.processes())) <= before,
                gateway.words,
            )
        until(
            lambda: any(
                "full share of the gateway's connections" in world.s2uc("status", "--json", each.uid).stdout
                for each in (one, other)
            ),
            lambda: "neither stream tells why",
        )
        with (
            closing(listen()) as detector,
            world.stream([address_of(detector)], rate="1Mbit") as third,
            third.connect() as consumer,
            accept(detector) as producer,
        ):
            producer.sendall(b"still here")
            assert receive_exactly(consumer, 10) == b"still here"


@contextmanager
def stopped(gateway: Gateway) -> Iterator[None]:
    """All processes of a gateway stand still meanwhile, as those of a machine that is suspended."""
    processes = gateway.processes()
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def test_a_gateway_that_stands_still_is_named_others_go_on_and_it_comes_back_without_a_gap(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"gateways": 2})
    still, other = world.centre.gateways
    with ExitStack() as stack:
        by_gateway: dict[str, tuple[Streaming, socket.socket, socket.socket]] = {}
        for _ in range(2):
            detector = stack.enter_context(closing(listen()))
            stream = stack.enter_context(world.stream([address_of(detector)], rate="1Gbit"))
            consumer = stack.enter_context(closing(stream.connect()))
            ends = consumer, stack.enter_context(closing(accept(detector)))
            by_gateway[still.name if still.offers(stream.listeners[0]) else other.name] = (stream, *ends)
        assert set(by_gateway) == {still.name, other.name}, "each gateway has one of the two streams"
        halted, far, near = by_gateway[still.name]
        _, consumer, producer = by_gateway[other.name]
        data = noise(4 * 2**20)
        with stopped(still):
            sentence = re.compile(rf"gateway {still.name}: has not answered its S2CS for \d+ s", re.MULTILINE)
            until(
                lambda: sentence.search(world.s2uc("status", halted.uid).stdout),
                world.centre.server.words,
                3 * PATIENCE,
            )
            for _ in range(4):
                _, got = together(lambda: producer.sendall(data), lambda: receive_exactly(consumer, len(data)))
                assert sha256(got).digest() == sha256(data).digest()
            near.sendall(data[: 2**16])

        def send_the_rest() -> None:
            near.sendall(data[2**16 :])
            near.shutdown(socket.SHUT_WR)

        try:
            _, got = together(send_the_rest, lambda: receive(far))
        except (ConnectionResetError, BrokenPipeError):
            got = None  # an element that stood still for so long was taken for dead: that is told, and no gap
        assert got is None or sha256(got).digest() == sha256(data).digest()
        until(
            lambda: not sentence.search(world.s2uc("status", halted.uid).stdout),
            world.centre.server.words,
            3 * PATIENCE,
        )
