"""Elements as processes, at installed gateways: what they share, and what is lost when one dies."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import msgspec
import pytest
from harness import Streaming, World, together

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.messages import ChannelFigures
from support.applications import MIB, accept, address_of, listen, noise, receive, receive_exactly, sha256
from support.facilities import HOST, Daemon, elements_of
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

COUNT = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Each gateway has two elements, and keeps no connections ready, which the tests would count as well."""
    settings = {
        "gateway": {"elements": COUNT, "wan": {"bind": HOST, "ready": 0}},
        "gateways": 1,
        "ports": 8,
    }
    with World(tmp_path_factory.mktemp("elements"), lab=settings, centre=settings) as made:
        for gateway in gateways(made):
            wait_for_elements(gateway)
        yield made


def gateways(world: World) -> list[Daemon]:
    return [*world.lab.gateways, *world.centre.gateways]


def wait_for_elements(gateway: Daemon, but: Collection[int] = ()) -> list[int]:
    """Wait until a gateway has said of all its elements, none of them one of the processes `but`, that they are ready.

    A process that was killed may still be there when its connections are reset.
    """

    def ready() -> list[int]:
        pids = elements_of(gateway.pid)
        said = {int(pid) for pid in re.findall(r"element \d is ready \(process (\d+)\)", gateway.words())}
        return pids if len(pids) == COUNT and set(pids) <= said and not set(but) & set(pids) else []

    return until(ready, gateway.words)


class Pairs:
    """Connections of a stream, each with both its ends."""

    def __init__(self, stream: Streaming, detector: socket.socket, many: int, channel: int = 0) -> None:
        self.consumers, self.producers = [], []
        for _ in range(many):
            consumer = stream.connect(channel)
            producer = accept(detector)
            self.consumers.append(consumer)
            self.producers.append(producer)

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (*self.consumers, *self.producers):
            sock.close()

    def talk(self) -> None:
        """Send a byte in each direction on every connection."""
        for consumer, producer in zip(self.consumers, self.producers, strict=True):
            for source, sink in ((consumer, producer), (producer, consumer)):
                source.sendall(b"!")
                assert receive_exactly(sink, 1) == b"!"


def is_reset(sock: socket.socket) -> bool:
    """Return True if a connection was reset; False when it is whole and nothing has come."""
    sock.settimeout(20.0)
    try:
        assert sock.recv(1) == b"", "nothing was sent"
    except ConnectionResetError:
        return True
    raise AssertionError("an end in order, and nobody had ended it")


def looks_whole(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        sock.settimeout(20.0)
    return False


def figures(world: World, stream: Streaming) -> dict[str, ChannelFigures]:
    """Of channel 0 at the consumer's and at the producer's gateway, as `s2uc status` tells them."""
    said = msgspec.json.decode(world.s2uc("status", stream.uid, "--json").stdout)
    sides = said["streams"][stream.uid]
    return {role: msgspec.convert(side["figures"][0], ChannelFigures) for role, side in sides.items()}


@pytest.mark.parametrize("many", [1, 7, 64])
def test_every_byte_arrives_both_ways_at_once_over_many_connections(world: World, many: int) -> None:
    each = 32 * MIB // many + 1
    with (
        closing(listen()) as detector,
        world.stream([address_of(detector)]) as stream,
        Pairs(stream, detector, many) as pairs,
    ):
        sent, got = {}, {}

        def say(key: tuple[int, str], sock: socket.socket) -> None:
            data = noise(each, seed=hash(key) % 1000)
            sent[key] = sha256(data)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        def hear(key: tuple[int, str], sock: socket.socket) -> None:
            got[key] = sha256(receive(sock))

        threads = [
            threading.Thread(target=job, args=((number, way), sock), daemon=True)
            for number, (consumer, producer) in enumerate(zip(pairs.consumers, pairs.producers, strict=True))
            for job, way, sock in (
                (say, "up", consumer),
                (hear, "up", producer),
                (say, "down", producer),
                (hear, "down", consumer),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert len(got) == 2 * many
        assert got == sent


def order_of_arrival(stream: Streaming, detector: socket.socket, many: int) -> list[int]:
    """Open so many connections back to back: in which order they reach the producer's program."""
    consumers: list[socket.socket] = []
    arrived = []
    try:
        for _ in range(many):
            consumers.append(stream.connect())
        for number, sock in enumerate(consumers):
            sock.sendall(bytes([number]))
        for _ in range(many):
            with accept(detector) as producer:
                arrived += receive_exactly(producer, 1)
    finally:
        for sock in consumers:
            sock.close()
    return arrived


def waited_for_a_processor(pid: int) -> float:
    """Return the seconds for which a process was ready to run and had no processor, so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def test_connections_opened_at_once_arrive_in_their_order(world: World) -> None:
    wanted, many = 60, 6  # the fewer at once, the shorter is a round, and the fewer wait for a processor meanwhile
    pids = [pid for gateway in gateways(world) for pid in gateway.processes()]
    rounds: list[tuple[float, bool]] = []

    def fluent() -> list[bool]:
        """Return which rounds were in order, of those in which no connection can have been late.

        Turns do not wait forever for a connection whose gateway or element gets no processor.
        """
        return [in_order for waited, in_order in rounds if waited < timing.HANDSHAKE_AHEAD]

    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        while len(fluent()) < wanted and len(rounds) < 10 * wanted:
            before = [waited_for_a_processor(pid) for pid in pids]
            in_order = order_of_arrival(stream, detector, many) == list(range(many))
            waited = max(waited_for_a_processor(pid) - had for pid, had in zip(pids, before, strict=True))
            rounds.append((waited, in_order))
    assert len(fluent()) >= wanted / 4, f"in {len(rounds)} rounds, only {len(fluent())} times had all a processor"
    assert all(fluent()), f"{fluent().count(False)} of {len(fluent())} rounds"


def test_one_that_never_shakes_hands_holds_nobody_up_for_long(world: World) -> None:
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        for _ in range(10):
            with socket.create_connection((wan.host, wan.port), timeout=20):
                began = time.monotonic()
                assert order_of_arrival(stream, detector, 4) == [0, 1, 2, 3]
                assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="1 byte"),
        pytest.param(16 * 1024 + 1, id="a record and a byte"),
        pytest.param(256 * MIB, id="256 MiB"),
        pytest.param(4096 * MIB, id="4 GiB", marks=pytest.mark.long),
    ],
)
def test_a_transfer_of_any_size_arrives_as_it_was_sent(world: World, size: int) -> None:
    block = noise(MIB)
    with (
        closing(listen()) as detector,
        world.stream([address_of(detector)]) as stream,
        Pairs(stream, detector, 1) as pairs,
    ):
        (consumer,), (producer,) = pairs.consumers, pairs.producers

        def say() -> str:
            digest, left, number = hashlib.sha256(), size, 0
            while left:
                part = (number.to_bytes(8, "big") + block)[: min(left, MIB)]  # no two of them are alike
                producer.sendall(part)
                digest.update(part)
                left -= len(part)
                number += 1
            producer.shutdown(socket.SHUT_WR)
            return digest.hexdigest()

        def hear() -> str:
            digest, count, room = hashlib.sha256(), 0, bytearray(MIB)
            while got := consumer.recv_into(room):
                digest.update(memoryview(room)[:got])
                count += got
            assert count == size
            return digest.hexdigest()

        sent, received = together(say, hear)
        assert received == sent


def connections_of(gateway: Daemon) -> list[int]:
    """How many TCP sockets each element of a gateway has."""
    counts = []
    for pid in elements_of(gateway.pid):
        counts.append(0)
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed since it was listed
                counts[-1] += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return counts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a process that keeps secrets")
def test_the_connections_of_one_listener_spread_evenly_over_the_elements(world: World) -> None:
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        before = {gateway.name: connections_of(gateway) for gateway in gateways(world)}
        for many in (1, 7, 16):
            with Pairs(stream, detector, many) as pairs:
                pairs.talk()
                for gateway in gateways(world):
                    now = connections_of(gateway)
                    more = [(after - was) / 2 for after, was in zip(now, before[gateway.name], strict=True)]
                    assert sum(more) == many
                    assert max(more) - min(more) <= 1, f"{gateway.name}: {more}"
            until(
                lambda: {gateway.name: connections_of(gateway) for gateway in gateways(world)} == before,
                lambda: "connections stay",
            )


@pytest.mark.parametrize("side", ["lab", "centre"])
def test_an_element_that_is_killed_takes_only_its_own_connections_with_it(world: World, side: str) -> None:
    (gateway,) = getattr(world, side).gateways
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        with Pairs(stream, detector, 8) as pairs:
            pairs.talk()
            filling = [
                threading.Thread(target=_push, args=(sock,), daemon=True)
                for sock in (*pairs.producers[:4], *pairs.consumers[4:])
            ]
            for thread in filling:
                thread.start()
            victim = elements_of(gateway.pid)[0]
            os.kill(victim, signal.SIGKILL)
            wait_for_elements(gateway, but=[victim])
            # Those that only wait tell at once what has become of them; the others are full of what was pushed.
            quiet = [*pairs.consumers[4:], *pairs.producers[:4]]
            cut = sum(not looks_whole(sock) for sock in quiet)
            assert cut == 4
            with Pairs(stream, detector, 4) as others:
                others.talk()
            for sock in (*pairs.consumers, *pairs.producers):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in filling:
                thread.join(20.0)
        mine = figures(world, stream)["PROD" if side == "lab" else "CONS"]
        assert mine.reset >= 4
        assert "connections reset: 4" in gateway.words()


def _push(sock: socket.socket) -> None:
    part = noise(65536)
    with suppress(OSError):
        while True:
            sock.sendall(part)


def test_a_connection_of_a_killed_element_is_reset_at_both_ends_while_data_flows(world: World) -> None:
    (gateway,) = world.lab.gateways
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        with Pairs(stream, detector, 1) as pairs:
            (consumer,), (producer,) = pairs.consumers, pairs.producers
            ended: dict[str, str] = {}

            def read() -> None:
                consumer.settimeout(20.0)
                try:
                    while consumer.recv(65536):
                        pass
                    ended["consumer"] = "end"
                except ConnectionResetError:
                    ended["consumer"] = "reset"

            def write() -> None:
                try:
                    while True:
                        producer.sendall(noise(65536))
                except (ConnectionResetError, BrokenPipeError):
                    ended["producer"] = "reset"

            threads = [threading.Thread(target=job, daemon=True) for job in (read, write)]
            for thread in threads:
                thread.start()
            killed = elements_of(gateway.pid)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            for thread in threads:
                thread.join(20.0)
            assert ended == {"consumer": "reset", "producer": "reset"}
        wait_for_elements(gateway, but=killed)
        with Pairs(stream, detector, 2) as others:  # the stream itself is as it was
            others.talk()


def test_an_element_that_answers_no_more_is_killed_and_replaced(world: World) -> None:
    (gateway,) = world.centre.gateways
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        with Pairs(stream, detector, 2) as pairs:
            pairs.talk()
            stuck = elements_of(gateway.pid)[0]
            os.kill(stuck, signal.SIGSTOP)
            stream.requested.release()  # waits for it, and is answered when it has been killed
            assert all(is_reset(sock) for sock in (*pairs.consumers, *pairs.producers))
        wait_for_elements(gateway, but=[stuck])
        assert "has not answered" in gateway.words()


def test_elements_end_with_the_initiator_that_is_killed(tmp_path: Path) -> None:
    with World(tmp_path, lab={"gateway": {"elements": COUNT}}) as made:
        (gateway,) = made.lab.gateways
        with closing(listen()) as detector, made.stream([address_of(detector)]) as stream:
            with Pairs(stream, detector, 4) as pairs:
                pairs.talk()
                mine = elements_of(gateway.pid)
                os.kill(mine[0], signal.SIGSTOP)  # also one that notices nothing by itself
                gateway.kill()
                assert all(is_reset(sock) for sock in (*pairs.consumers, *pairs.producers))
                until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), lambda: f"{mine} live on")
            gateway.start()
            gateway.wait_until_ready()


def test_the_rate_of_a_stream_holds_over_all_elements_together(world: World) -> None:
    with closing(listen()) as detector, world.stream([address_of(detector)], rate="80Mbit") as stream:
        with Pairs(stream, detector, 4) as pairs, ExitStack() as ending:
            for sock in pairs.producers:
                thread = threading.Thread(target=_push, args=(sock,), daemon=True)
                thread.start()
                ending.callback(thread.join, 20.0)
                ending.callback(sock.shutdown, socket.SHUT_RDWR)
            read = together(*[lambda sock=sock: _read_for(sock, 3.0) for sock in pairs.consumers])
        # 3 s of 10 MB, the first burst of 0.5 MB, and what each element may have put aside
        assert sum(read) <= 3.0 * 10e6 + 0.5e6 + 2 * COUNT * 262144
        assert min(read) > 0


def _read_for(sock: socket.socket, seconds: float) -> int:
    """How many bytes come within a time."""
    end, count = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        with suppress(TimeoutError):
            count += len(sock.recv(65536))
    return count


def test_the_figures_of_a_channel_say_what_tcp_knows_of_the_wan(world: World) -> None:
    with (
        closing(listen()) as detector,
        world.stream([address_of(detector)]) as stream,
        Pairs(stream, detector, 4) as pairs,
    ):
        pairs.talk()

        def measured() -> bool:
            return all(side.rtt_ms > 0 for side in figures(world, stream).values())

        until(measured, lambda: figures(world, stream))
        now = figures(world, stream)
        for side in now.values():
            assert (side.connections, side.accepted, side.reset) == (4, 4, 0)
            assert side.bytes_to_consumer == side.bytes_to_producer == 4
            assert side.delivery_mbit > 0
