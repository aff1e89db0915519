"""The limits of a producer's gateway that dials: they are exact whatever the number of elements, and told."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import pytest_twisted
from gateways import PATIENCE, Make, Stream, both
from harness import World
from test_reloading import changed
from twisted.internet.threads import deferToThread

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2cs.audit.events import ResetsEvent, read_line
from scistream.s2ds.capacity import SharedLimits
from scistream.s2ds.elements.channel import REPLACED
from scistream.s2ds.elements.element import NO_DESCRIPTOR
from scistream.s2ds.elements.pool import NO_SHARE
from support.applications import (
    MIB,
    address_of,
    listen,
    receive_digest,
    reset,
    send,
)
from support.facilities import HOST, Facility
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")

FOUR = SharedLimits(connections=8)
"""One stream may have half of them."""


class ProdApp:
    """ProdApp, which greets each connection with a byte, and afterwards returns what it gets.

    :ivar accepted: how many connections have come.
    """

    def __init__(self, app: socket.socket) -> None:
        self._app = app
        self._app.settimeout(None)
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._app.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            sock.sendall(b"!")
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

    @contextmanager
    def running(self) -> Iterator[ProdApp]:
        """Accept connections."""
        self._thread.start()
        try:
            yield self
        finally:
            self._app.shutdown(socket.SHUT_RDWR)
            self._thread.join(PATIENCE)


def attempt(connect: Callable[[], socket.socket]) -> socket.socket | None:
    """ConsApp connects; return its end once ProdApp has greeted it, or None if it is reset; blocks."""
    try:
        sock = connect()
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b"!"
    except ConnectionResetError:
        return None
    return sock


async def attempts(stream: Stream, count: int) -> list[socket.socket]:
    """Open connections at once, and return those that reach ProdApp."""
    found = await both(*[lambda: attempt(stream.connect)] * count)
    return [sock for sock in found if sock is not None]


def echo(sock: socket.socket) -> bool:
    """Send some data, and return whether it comes back; then the connection ends."""
    sent: list[str] = []

    def talk() -> None:
        sent.append(send(sock, MIB))
        sock.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=talk)
    sending.start()
    received = receive_digest(sock)
    sending.join(PATIENCE)
    sock.close()
    return received == (MIB, sent[0])


@pytest.mark.parametrize("elements", [0, 2])
@pytest_twisted.ensureDeferred
async def test_a_share_of_four_lets_four_connections_through_and_never_five(make: Make, elements: int) -> None:
    stream = make(wan_dialer=PROD, elements=elements, limits=FOUR)
    await stream.ready()
    with ProdApp(stream.app).running() as program:
        open_now = await attempts(stream, 12)
        assert len(open_now) == program.accepted == 4
        for side in (stream.prod, stream.cons):
            await stream.until(lambda side=side: NO_SHARE in side.reasons)
        assert await attempts(stream, 1) == []

        for sock in open_now[:2]:
            assert await deferToThread(echo, sock)
        await stream.until(lambda: stream.prod.figures().connections == 2)
        more = await attempts(stream, 6)
        assert len(more) == 2
        assert program.accepted == 6

        stream.prod.elements.set_limits(SharedLimits(connections=12))
        more += await attempts(stream, 4)
        assert len(more) == 4
        stream.prod.elements.set_limits(SharedLimits(connections=2))
        assert await attempts(stream, 2) == []
        for sock in (*open_now[2:], *more):
            assert await deferToThread(echo, sock), "a lower limit leaves those that are open"
        assert program.accepted == 8
        await stream.until(lambda: stream.prod.figures().connections == stream.cons.figures().connections == 0)
        assert stream.prod.figures().accepted == 8
        assert len(await attempts(stream, 3)) == 1


async def one_by_one(stream: Stream, count: int) -> list[socket.socket]:
    """Return the connections that are let through: accepted ones count against the share once they are joined."""
    return [sock for _ in range(count) for sock in await attempts(stream, 1)]


def let_dial(stream: Stream, dialler: Role) -> None:
    """Set the targets again, with another dialler."""
    program = [Address(*stream.app.getsockname())]
    prod, cons = stream.bundles[PROD], stream.bundles[CONS]
    if dialler == PROD:
        gateways = [Address(*sock.getsockname()) for sock in stream.cons.wan_sockets] or stream.cons.listen_to_wan()
        stream.cons.arm(cons, [], PROD)
        stream.prod.arm(prod, program, PROD, gateways)
    else:
        stream.prod.arm(prod, program)
        stream.cons.arm(cons, [stream.prod.address()])


@pytest.mark.parametrize(("first", "then"), [(CONS, PROD), (PROD, CONS)])
@pytest_twisted.ensureDeferred
async def test_a_stream_has_one_share_when_its_dialler_changes(make: Make, first: Role, then: Role) -> None:
    stream = make(wan_dialer=first, ready=0, limits=FOUR)
    with ProdApp(stream.app).running() as program:
        open_now = await one_by_one(stream, 6)
        assert len(open_now) == 4
        let_dial(stream, then)
        assert await one_by_one(stream, 3) == []
        assert await deferToThread(echo, open_now.pop())
        await stream.until(lambda: stream.prod.figures().connections == 3)
        open_now += await one_by_one(stream, 3)
        assert len(open_now) == 4
        let_dial(stream, first)
        assert await one_by_one(stream, 2) == []
        assert program.accepted == 5
        for sock in open_now:
            assert await deferToThread(echo, sock)
        elements = stream.prod.elements
        await stream.until(lambda: not elements._connections_of(elements._streams[stream.uid, PROD]))
        assert len(await one_by_one(stream, 6)) == 4


@pytest.mark.parametrize("count", [1, 4])
@pytest_twisted.ensureDeferred
async def test_what_a_consumers_gateway_has_ready_takes_nothing_from_its_share(make: Make, count: int) -> None:
    stream = make(wan_dialer=PROD, ready=count)
    stream.cons.elements.set_limits(FOUR)
    await stream.until(lambda: stream.cons.figures().ready >= count)
    with ProdApp(stream.app).running() as program:
        for _ in range(2):
            open_now = await one_by_one(stream, 6)
            assert len(open_now) == 4
            assert stream.cons.figures().ready >= count, "it accepts those that are to be ready all the same"
            for sock in open_now:
                assert await deferToThread(echo, sock)
            await stream.until(lambda: stream.prod.figures().connections == stream.cons.figures().connections == 0)
        assert program.accepted == 8
    assert stream.cons.reasons == [NO_SHARE] * 4
    assert stream.prod.reasons == []
    await stream.cons.elements.close(stream.uid, CONS)
    elements = stream.cons.elements
    await stream.until(lambda: elements._connections_at(0) == 0)
    assert elements._figures.words[elements._figures.kept_ready(0)] == 0


@pytest_twisted.ensureDeferred
async def test_an_element_that_dies_gives_its_places_back(make: Make) -> None:
    stream = make(wan_dialer=PROD, elements=1, limits=FOUR)
    await stream.ready()
    with ProdApp(stream.app).running():
        assert len(await attempts(stream, 6)) == 4
        for member in stream.prod.elements._members:
            member._process.signalProcess("KILL")  # type: ignore[attr-defined]
        await stream.until(lambda: not stream.prod.is_ready())
        await stream.ready()
        await stream.until(lambda: stream.cons.figures().connections == 0)
        assert len(await attempts(stream, 6)) == 4


@pytest_twisted.ensureDeferred
async def test_an_element_without_descriptors_refuses_and_tells(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(wan_dialer=PROD, ready=1)
    await stream.until(lambda: stream.cons.figures().ready)
    with ProdApp(stream.app).running() as program:
        monkeypatch.setattr(stream.prod.elements, "_has_descriptors", lambda _member: False)
        assert await attempts(stream, 2) == []
        await stream.until(lambda: NO_DESCRIPTOR in stream.prod.reasons and NO_DESCRIPTOR in stream.cons.reasons)
        assert program.accepted == 0
        monkeypatch.undo()
        assert len(await attempts(stream, 2)) == 2


@pytest_twisted.ensureDeferred
async def test_only_so_many_connections_wait_for_the_program_and_the_others_follow(make: Make) -> None:
    stream = make(wan_dialer=PROD, limits=SharedLimits(half_open=2))
    host, port = stream.app.getsockname()
    stream.app.close()  # ProdApp has not started, so it is dialled again and again
    most = 0

    def note_joining() -> bool:
        nonlocal most
        channel = stream.prod.channel()
        most = max(most, len(channel._joining))
        return len(channel._claims) >= 2

    waiting = [deferToThread(attempt, stream.connect) for _ in range(6)]
    await stream.until(note_joining)
    assert most == 2
    stream.prod.elements.set_limits(SharedLimits(half_open=3))
    assert note_joining()
    assert most == 3
    stream.app = socket.create_server((host, port), backlog=16)
    stream._ends.append(stream.app)
    with ProdApp(stream.app).running() as program:
        ends = [await one for one in waiting]
        assert all(ends)
        assert program.accepted == 6
        for sock in ends:
            assert await deferToThread(echo, sock)


@pytest_twisted.ensureDeferred
async def test_what_waits_for_its_place_does_not_reach_a_program_that_has_moved(make: Make) -> None:
    stream = make(wan_dialer=PROD, limits=SharedLimits(half_open=1))
    stream.app.close()  # ProdApp is about to move
    channel = stream.prod.channel()
    first = await deferToThread(stream.connect)
    await stream.until(lambda: len(channel._joining) == 1)
    second = await deferToThread(stream.connect)
    await stream.until(lambda: len(channel._claims) == 1)
    stream.app = socket.create_server(("127.0.0.1", 0), backlog=16)
    stream._ends.append(stream.app)
    let_dial(stream, PROD)
    assert len(channel._claims) == 0
    with pytest.raises(ConnectionResetError):
        await deferToThread(second.recv, 1)
    for side in (stream.prod, stream.cons):
        await stream.until(lambda side=side: REPLACED in side.reasons)
    for relay in stream.prod.relays():
        relay.reset("it has waited long enough", "application")
    with pytest.raises(ConnectionResetError):
        await deferToThread(first.recv, 1)
    assert (stream.prod.figures().accepted, stream.prod.figures().reset) == (2, 2)
    with ProdApp(stream.app).running():
        (third,) = await attempts(stream, 1)
        assert await deferToThread(echo, third)
    await stream.until(lambda: stream.prod.elements._connections_at(0) == 0)


@pytest_twisted.ensureDeferred
async def test_what_came_before_a_reset_reaches_the_program_although_there_was_no_place_yet(make: Make) -> None:
    stream = make(wan_dialer=PROD, limits=SharedLimits(half_open=1))
    host, port = stream.app.getsockname()
    stream.app.close()
    first = await deferToThread(stream.connect)
    await stream.until(lambda: len(stream.prod.channel()._joining) == 1)
    second = await deferToThread(stream.connect)
    second.sendall(b"last words")
    await stream.until(lambda: len(stream.prod.channel()._claims) == 1)
    await stream.until(lambda: stream.cons.figures().bytes_to_producer == len(b"last words"))
    reset(second)
    await stream.until(lambda: stream.cons.figures().connections == 1)
    stream.app = socket.create_server((host, port), backlog=16)
    stream._ends.append(stream.app)
    stream.app.settimeout(PATIENCE)
    await deferToThread(stream.accept)
    there = await deferToThread(stream.accept)

    def read_all() -> bytes:
        found = b""
        with suppress(ConnectionResetError):
            while data := there.recv(100):
                found += data
        return found

    assert await deferToThread(read_all) == b"last words"
    first.close()


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_released_while_connections_wait_leaves_nothing(make: Make) -> None:
    stream = make(wan_dialer=PROD, dial_timeout=1.0, limits=SharedLimits(half_open=1))
    stream.app.close()
    waiting = [deferToThread(attempt, stream.connect) for _ in range(3)]
    await stream.until(lambda: len(stream.prod.channel()._claims) >= 1)
    elements = stream.prod.elements
    channel = stream.prod.channel()
    await elements.close(stream.uid, PROD)
    assert not channel.relays
    assert elements._connections_at(0) == 0
    figures = elements._figures
    assert figures.words[figures.kept_ready(0)] == 0
    assert [await one for one in waiting] == [None] * 3


# -- whole facilities


def resets(world: World, uid: str) -> dict[str, list[tuple[str, str]]]:
    """Return the cause and reason of the resets that each side tells the user."""
    sides = json.loads(world.s2uc("status", uid, "--json").stdout)["streams"][uid]
    return {role: [(one["cause"], one["reason"]) for one in side.get("resets", [])] for role, side in sides.items()}


def audited(facility: Facility, uid: str) -> set[str]:
    """Return the reasons for resets of a stream in the audit trail of a facility."""
    events = map(read_line, facility.store.with_suffix(".audit.jsonl").read_text().splitlines())
    return {event.reason for event in events if isinstance(event, ResetsEvent) and event.uid == uid}


def test_users_and_operators_of_both_sides_are_told_of_the_limit_and_a_reload_raises_it(
    fresh_world: Callable[..., World],
) -> None:
    closed = {"wan": {"bind": HOST, "accept": False}, "elements": 2, "limits": {"connections": 8}}
    world = fresh_world(lab={"gateway": closed})
    app = listen()
    with ProdApp(app).running(), world.unchanged(), world.stream([address_of(app)]) as stream:
        found = [attempt(stream.connect) for _ in range(6)]
        open_now = [sock for sock in found if sock is not None]
        assert len(open_now) == 4
        until(lambda: ("far-side", NO_SHARE) in resets(world, stream.uid)["CONS"], lambda: resets(world, stream.uid))
        until(lambda: ("gateway", NO_SHARE) in resets(world, stream.uid)["PROD"], lambda: resets(world, stream.uid))
        assert NO_SHARE in world.s2uc("status", stream.uid).stdout
        for facility in (world.lab, world.centre):
            until(lambda facility=facility: NO_SHARE in audited(facility, stream.uid), lambda: "it is not in the audit")
            assert NO_SHARE in facility.gateways[0].words()

        with changed(world.lab.gateways[0], limits={"connections": 12}):
            found = [attempt(stream.connect) for _ in range(4)]
            assert [sock is not None for sock in found] == [True, True, False, False]
        open_now += [sock for sock in found if sock is not None]
        assert all(map(echo, open_now))
        until(lambda: not open_connections(world, stream.uid), lambda: world.s2uc("status", stream.uid).stdout)
        found = [attempt(stream.connect) for _ in range(5)]
        assert [sock is not None for sock in found] == [True] * 4 + [False]
        assert all(echo(sock) for sock in found if sock is not None)


def open_connections(world: World, uid: str) -> int:
    """Return how many connections are open at the producer's gateway."""
    told = json.loads(world.s2uc("status", "--json", uid).stdout)["streams"][uid]["PROD"]
    return sum(channel["connections"] for channel in told["figures"])
