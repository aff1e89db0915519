"""The reasons for resets reach everyone who can act on them.

They are in the user's status, the audit trail and the gateway's log, which stays short however many there are.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import msgspec
import pytest
from harness import Streaming, World, free_ports, together

from scistream.protocol.messages import ResetReason
from scistream.s2cs.audit.events import ResetsEvent, read_line
from support.applications import accept, address_of, is_reset, listen, receive_exactly
from support.facilities import HOST
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("resets")) as made:
        yield made


def resets(world: World, uid: str) -> dict[str, list[ResetReason]]:
    """Return the reasons for resets of a stream that each side reports."""
    sides = msgspec.json.decode(world.s2uc("status", uid, "--json").stdout)["streams"][uid]
    return {role: msgspec.convert(side.get("resets", []), list[ResetReason]) for role, side in sides.items()}


def wait_for_reset(world: World, uid: str, role: str, cause: str, count: int = 1) -> ResetReason:
    """Wait until the newest reason of a side has this cause and count; return it."""

    def newest() -> ResetReason | None:
        told = resets(world, uid)[role]
        return told[0] if told and (told[0].cause, told[0].count >= count) == (cause, True) else None

    found: ResetReason = until(newest, lambda: f"no reset by {cause} at {role}: {resets(world, uid)}")
    return found


def ends_with_a_reset(sock: socket.socket) -> bool:
    """Return True if it is reset; anything else that ends it is an end in order."""
    try:
        return sock.recv(1) != b""
    except ConnectionResetError:
        return True


def abort(sock: socket.socket) -> None:
    """End a connection as a program does that crashes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_user_sees_that_nobody_listens_where_prodapp_said_it_does(world: World) -> None:
    nowhere = f"{HOST}:{free_ports()}"
    with world.stream([nowhere]) as stream:
        for _ in range(2):
            assert is_reset(stream.listeners[0])
        refused = f"ProdApp at {nowhere} refused the connection"
        told = wait_for_reset(world, stream.uid, "PROD", "application", 2)
        assert (told.channel, told.reason, told.count) == (0, refused, 2)
        assert told.seconds_ago < 60
        assert wait_for_reset(world, stream.uid, "CONS", "far-side").reason == refused
        assert "consumer, channel 0: 2 connections reset (far-side), last " in world.s2uc("status", stream.uid).stdout
        sentences = world.s2uc("status", stream.uid).stdout
        assert "producer, channel 0: 2 connections reset (application), last " in sentences
        assert f"ago: {refused}\n" in sentences
        lines = world.lab.store.with_suffix(".audit.jsonl").read_text().splitlines()
        audited = [
            event for event in map(read_line, lines) if isinstance(event, ResetsEvent) and event.uid == stream.uid
        ]
        assert {event.reason for event in audited} == {refused}
        assert audited[-1].count <= 2
    words = world.lab.gateways[0].words()
    assert f"uid={stream.uid} role=PROD connections reset so far: 1 (application): {refused}" in words


def test_all_connections_waiting_for_a_missing_prodapp_are_reset_together_and_later_ones_at_once(world: World) -> None:
    many = 50

    def seconds_until_all_are_reset(stream: Streaming) -> float:
        began = time.monotonic()
        assert all(together(*[partial(is_reset, stream.listeners[0], 40.0)] * many))
        return time.monotonic() - began

    with world.stream([f"{HOST}:{free_ports()}"]) as stream:
        assert 5.0 < seconds_until_all_are_reset(stream) < 18.0
        assert seconds_until_all_are_reset(stream) < 5.0


def test_an_application_that_resets_is_told_apart_from_a_gateway_that_is_gone(world: World) -> None:
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        consumer, producer = stream.connect(0), accept(detector)
        consumer.sendall(b"!")
        assert receive_exactly(producer, 1) == b"!"
        abort(consumer)
        with closing(producer):
            assert ends_with_a_reset(producer)
        told = wait_for_reset(world, stream.uid, "CONS", "application")
        assert (told.reason, told.count) == ("ConsApp reset the connection", 1)
        assert wait_for_reset(world, stream.uid, "PROD", "far-side").reason == "the other gateway reset the connection"


def test_many_resets_are_few_lines_in_the_logs_of_both_gateways(world: World) -> None:
    many = 200
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:

        def reset_one() -> None:
            consumer = stream.connect(0)
            consumer.sendall(b"!")
            with closing(accept(detector)) as producer:
                assert receive_exactly(producer, 1) == b"!"
                abort(consumer)
                assert ends_with_a_reset(producer)

        for _ in range(many):
            reset_one()
        assert wait_for_reset(world, stream.uid, "CONS", "application", many).count == many
    for facility in world.facilities:
        said = facility.gateways[0].words().splitlines()
        mine = [line for line in said if stream.uid in line and "connections reset so far" in line]
        assert 1 <= len(mine) <= 20, mine


def ready_connections(world: World, uid: str) -> int:
    """Return how many connections the consumer's gateway keeps ready."""
    told = json.loads(world.s2uc("status", "--json", uid).stdout)["streams"][uid]["CONS"]
    return sum(channel["ready"] for channel in told["figures"])


def test_a_user_learns_that_no_gateway_was_reached_and_the_log_has_the_reason(world: World) -> None:
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream:
        world.lab.gateways[0].kill()
        try:
            until(lambda: not ready_connections(world, stream.uid), world.centre.gateways[0].words)
            assert is_reset(stream.listeners[0])
            told = wait_for_reset(world, stream.uid, "CONS", "wan")
        finally:
            world.lab.gateways[0].start()
            world.lab.gateways[0].wait_until_ready()
            world.lab.wait_for_links()
        assert told.reason.startswith("the other gateway at ")
        assert told.reason.endswith(" could not be reached; see the log of this gateway for the reason")
    words = world.centre.gateways[0].words()
    assert f"{told.reason} (the other gateway at " in words
    assert "refused the connection)" in words
