"""Connections whose consumer does not read: how little of the kernel's memory the gateways keep for them."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from hashlib import sha256

import pytest
from gateways import Make, Stream, both, sleep
from harness import Streaming, World, together

from scistream import timing
from scistream.pki.authority import issue
from scistream.s2ds.relay.leg import SMALL_RECEIVE_BUFFER
from support.applications import MIB, NOISE, accept, address_of, listen, receive, receive_digest, receive_exactly
from support.waiting import PATIENCE, until

_SO_MEMINFO = 55
_OF_A_SOCKET = struct.Struct("@9I")
"""Received, and its limit; sent, and its limit; held for more; waiting to be sent; and others: bytes of the kernel."""

STALLED = 50
MOST_OF_ONE = 2 * MIB
"""Of the kernel's memory at both gateways together."""


def kernel_memory(sock: socket.socket) -> int:
    """Bytes that the kernel keeps for a socket."""
    told = _OF_A_SOCKET.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _OF_A_SOCKET.size))
    return told[0] + told[4] + told[5]


def held(stream: Stream) -> int:
    """Return the kernel memory of all sockets of both gateways."""
    legs = [leg for side in (stream.prod, stream.cons) for relay in side.relays() for leg in relay._legs]
    return sum(kernel_memory(leg.sock) for leg in legs)


@pytest.mark.parametrize("distant", [False, True], ids=["near", "distant"])
async def test_a_stalled_connection_keeps_little_memory_and_loses_no_byte(
    make: Make, monkeypatch: pytest.MonkeyPatch, distant: bool
) -> None:
    if distant:
        monkeypatch.setattr(timing, "DISTANT", 0.0)
    stream = make()
    pairs = [await stream.pair() for _ in range(STALLED)]
    sent = dict.fromkeys((producer for _, producer in pairs), 0)
    quiet = 0
    while quiet < 20:  # until nothing goes in any more; the gateways have bounds, or this ends with the machine's
        before = sum(sent.values())
        for _, producer in pairs:
            producer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sent[producer] += producer.send(memoryview(NOISE)[sent[producer] % MIB :])
        quiet = quiet + 1 if sum(sent.values()) == before else 0
        await sleep(0.02)
    assert held(stream) < STALLED * MOST_OF_ONE, f"{held(stream) / STALLED / MIB:.1f} MiB each"
    for consumer, producer in pairs:
        producer.shutdown(socket.SHUT_WR)
        count, digest = (await both(lambda sock=consumer: receive_digest(sock)))[0]
        assert count == sent[producer]
        assert digest == sha256(NOISE * (count // MIB) + NOISE[: count % MIB]).hexdigest()


SOME = 704 * 1024
"""Fewer bytes than prove that a near connection is read."""


@pytest.mark.parametrize("distant", [False, True], ids=["near", "distant"])
async def test_the_window_of_a_distant_connection_grows_early_and_only_as_the_consumer_reads(
    make: Make, monkeypatch: pytest.MonkeyPatch, distant: bool
) -> None:
    if distant:
        monkeypatch.setattr(timing, "DISTANT", 0.0)
    stream = make()
    consumer, producer = await stream.pair()
    (relay,) = stream.cons.relays()
    wan = next(leg for leg in relay._legs if leg.wan)

    def window() -> int:
        return wan.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    producer.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < SOME:
            sent += producer.send(NOISE[sent:SOME])
    await stream.until(lambda: stream.cons.figures().bytes_to_consumer)
    unread = window()
    assert SMALL_RECEIVE_BUFFER <= unread <= 2 * SMALL_RECEIVE_BUFFER
    assert wan.has_small_window
    producer.settimeout(PATIENCE)
    _, got = await both(lambda: producer.sendall(NOISE[sent:SOME]), lambda: receive_exactly(consumer, SOME))
    assert got == NOISE[:SOME]
    assert wan.has_small_window != distant
    assert (window() > unread) == distant


MANY_STALLED = 100
READ_FIRST = 2 * MIB
BULK = 32 * MIB


def test_connections_that_were_read_fast_and_then_no_more_slow_no_other_stream_and_lose_no_byte(world: World) -> None:
    with (
        closing(listen()) as detector,
        closing(listen()) as other_detector,
        world.stream([address_of(detector)], rate="20Gbit") as stalled,
        world.stream([address_of(other_detector)], rate="20Gbit") as other,
        ExitStack() as ends,
    ):
        consumer = ends.enter_context(closing(other.connect(0)))
        producer = ends.enter_context(closing(accept(other_detector)))
        bulk = memoryview(NOISE * (BULK // MIB))
        wanted = sha256(bulk).digest()

        def seconds() -> float:
            """How long a transfer of the other stream takes; every byte of it is right."""
            begun = time.monotonic()
            _, got = together(lambda: producer.sendall(bulk), lambda: receive_exactly(consumer, BULK))
            taken = time.monotonic() - begun
            assert sha256(got).digest() == wanted
            return taken

        seconds()
        alone = [seconds() for _ in range(3)]
        pairs: list[tuple[socket.socket, socket.socket]] = []
        for _ in range(MANY_STALLED):
            reader = ends.enter_context(closing(stalled.connect(0)))
            writer = ends.enter_context(closing(accept(detector)))
            first = memoryview(NOISE * (READ_FIRST // MIB))
            _, got = together(
                lambda writer=writer, first=first: writer.sendall(first),
                lambda reader=reader: receive_exactly(reader, READ_FIRST),
            )
            assert got == first
            pairs.append((reader, writer))
        sent = stuffed([writer for _, writer in pairs])
        beside = [seconds() for _ in range(3)]
        assert min(beside) < 4 * min(alone), f"{alone} s alone, {beside} s beside {MANY_STALLED} that are stalled"
        for reader, writer in pairs:
            writer.settimeout(PATIENCE)
            writer.shutdown(socket.SHUT_WR)
            data = receive(reader)
            assert sha256(data).digest() == sha256((NOISE * (sent[writer] // MIB + 1))[: sent[writer]]).digest()


def stuffed(writers: list[socket.socket]) -> dict[socket.socket, int]:
    """Send on each as much as goes in, until nothing has for a while: how much that was."""
    sent = dict.fromkeys(writers, 0)
    quiet, deadline = 0, time.monotonic() + 3 * PATIENCE
    while quiet < 20:
        assert time.monotonic() < deadline, f"there was room for {sum(sent.values())} bytes, and still is"
        before = sum(sent.values())
        for writer in writers:
            writer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sent[writer] += writer.send(memoryview(NOISE)[sent[writer] % MIB :])
        quiet = quiet + 1 if sum(sent.values()) == before else 0
        time.sleep(0.02)
    return sent


PLACES = 30


def test_a_stream_leaves_as_many_connections_to_others_as_it_has_and_its_user_learns_why(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"gateway": {"limits": {"connections": PLACES}}})
    with (
        closing(listen()) as detector,
        closing(listen()) as other_detector,
        world.stream([address_of(detector)], rate="1Mbit") as greedy,
        world.stream([address_of(other_detector)], rate="1Mbit") as other,
        ExitStack() as ends,
    ):
        assert opened(greedy, detector, 2 * PLACES, ends) == PLACES // 2
        consumer = ends.enter_context(closing(other.connect(0)))
        producer = ends.enter_context(closing(accept(other_detector)))
        consumer.sendall(b"?")
        assert receive_exactly(producer, 1) == b"?"
        until(
            lambda: "full share of the gateway's connections" in world.s2uc("status", greedy.uid, "--json").stdout,
            lambda: "no reason",
        )


@contextlib.contextmanager
def user(world: World, name: str) -> Iterator[None]:
    """Request as another user meanwhile."""
    config = world.folder / f"config-{name}"
    settings = config / "scistream" / "s2uc.toml"
    settings.parent.mkdir(parents=True)
    issued = issue(world.folder / "users", "user", name)
    hers = (world.folder / "config" / "scistream" / "s2uc.toml").read_text()
    own = {"certificate": issued.certificate, "key": issued.key}
    kept = [line for line in hers.splitlines() if line.split(" = ")[0] not in own]
    settings.write_text("\n".join([*(f'{key} = "{path}"' for key, path in own.items()), *kept]))
    before, world.env = world.env, {**world.env, "XDG_CONFIG_HOME": str(config)}
    try:
        yield
    finally:
        world.env = before


def opened(stream: Streaming, detector: socket.socket, count: int, ends: ExitStack) -> int:
    """How many of so many new connections come about; they stay open."""
    come = 0
    for _ in range(count):
        try:
            consumer = ends.enter_context(closing(stream.connect(0)))
            consumer.sendall(b"!")
            producer = ends.enter_context(closing(accept_or_reset(detector, consumer)))
            assert receive_exactly(producer, 1) == b"!"
            come += 1
        except ConnectionError:
            pass
    return come


def test_a_user_with_many_streams_leaves_connections_to_other_users_and_learns_why(
    fresh_world: Callable[..., World],
) -> None:
    places = 40
    world = fresh_world(centre={"gateway": {"limits": {"connections": places}}})
    with ExitStack() as ends:
        detectors = [ends.enter_context(closing(listen())) for _ in range(4)]
        hers = [ends.enter_context(world.stream([address_of(detector)], rate="1Mbit")) for detector in detectors[:3]]
        come = [opened(stream, detector, places, ends) for stream, detector in zip(hers, detectors, strict=False)]
        assert come == [places // 2, places // 4, 0]
        until(
            lambda: "that one user may have" in world.s2uc("status", hers[2].uid, "--json").stdout, lambda: "no reason"
        )
        with user(world, "bob"), world.stream([address_of(detectors[3])], rate="1Mbit") as his:
            assert opened(his, detectors[3], places, ends) == places // 8


UNREAD = 16 * MIB


def test_a_stream_that_nobody_reads_gets_no_more_connections_until_somebody_does(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(centre={"gateway": {"limits": {"unread": str(UNREAD)}}})
    with (
        closing(listen()) as detector,
        closing(listen()) as other_detector,
        world.stream([address_of(detector)]) as unread,
        world.stream([address_of(other_detector)]) as other,
        ExitStack() as ends,
    ):
        stalled: list[tuple[socket.socket, socket.socket, int]] = []

        def refused() -> bool:
            """Return True if one more is refused; if not, it is filled, and nobody reads it."""
            try:
                consumer = ends.enter_context(closing(unread.connect(0)))
                consumer.sendall(b"!")
                producer = ends.enter_context(closing(accept_or_reset(detector, consumer)))
            except ConnectionError:
                return True
            assert receive_exactly(producer, 1) == b"!"
            stalled.append((consumer, producer, filled(producer)))
            return False

        until(refused, lambda: f"{len(stalled)} connections that nobody reads, and none is refused", 3 * PATIENCE)
        until(lambda: "wait at the gateway" in world.s2uc("status", unread.uid, "--json").stdout, lambda: "no reason")
        assert opened(other, other_detector, 1, ends) == 1
        for consumer, producer, sent in stalled:
            producer.shutdown(socket.SHUT_WR)
            data = receive(consumer)
            assert sha256(data).digest() == sha256((NOISE * (sent // MIB + 1))[:sent]).digest()
            consumer.close()
        until(lambda: opened(unread, detector, 1, ends), lambda: "no connection though all is read")


def filled(producer: socket.socket) -> int:
    """Send as much as goes in, until nothing has for a while: how much."""
    sent = 0
    producer.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            sent += producer.send(memoryview(NOISE)[sent % MIB :])
    return sent


def accept_or_reset(detector: socket.socket, consumer: socket.socket) -> socket.socket:
    """Accept the connection at the producer; raise ConnectionError if the consumer's is reset."""
    either = select.poll()
    for end in (detector, consumer):
        either.register(end, select.POLLIN)
    ready = dict(either.poll(1000 * PATIENCE))
    assert ready, f"neither a connection nor a reset within {PATIENCE:g} s"
    if detector.fileno() not in ready:
        consumer.recv(1)
    return accept(detector)
