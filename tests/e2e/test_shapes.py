"""Streams of other shapes: order of arrival, numbers of channels, listeners and gateways, and kinds of ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable

import pytest
from harness import Streaming, World, free_ports, together

from support.applications import MIB, accept, address_of, connect, listeners, noise, receive, receive_exactly, sha256
from support.facilities import HOST
from support.requirements import needs_ipv6
from support.waiting import until

DATA = noise(2 * MIB + 1)

nothing_left = pytest.mark.usefixtures("nothing_left")
FreshWorld = Callable[..., World]


def carries(stream: Streaming, channel: int, listener: socket.socket, data: bytes = DATA) -> None:
    """Check that a channel leads to this listener, and carries `data` there and reversed back, both at once."""
    with stream.connect(channel) as consumer, accept(listener) as producer:
        _, _, there, back = together(
            lambda: speak(consumer, data),
            lambda: speak(producer, data[::-1]),
            lambda: receive(producer),
            lambda: receive(consumer),
        )
        assert sha256(there) == sha256(data)
        assert sha256(back) == sha256(data[::-1])


def speak(sock: socket.socket, data: bytes) -> None:
    """Send all of it, and say that this is all."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def push(sock: socket.socket) -> None:
    """Send for as long as that goes."""
    while True:
        sock.sendall(DATA)


def swallow(sock: socket.socket) -> int:
    """Receive to the end: how many bytes."""
    count = 0
    while part := len(sock.recv(MIB)):
        count += part
    return count


def how_it_ends(job: Callable[[socket.socket], object], sock: socket.socket) -> object:
    """Return the result of a job, or the exception that it raises."""
    try:
        return job(sock)
    except OSError as problem:
        return problem


# Who comes when


@nothing_left
def test_a_late_consumer_is_told_at_once_where_to_connect(world: World) -> None:
    with listeners(1) as (listener,), world.request() as requested:
        world.prod(requested.join["PROD"], [address_of(listener)]).end()
        requested.streaming()
        assert requested.state("CONS") == "Streaming"
        assert "is Streaming" in world.s2uc("wait", requested.uid).stdout
        began = time.monotonic()
        told = world.cons_listeners(requested.join["CONS"])
        assert time.monotonic() - began < 8, "it waited for the next time that it asks"
        carries(Streaming(requested, told), 0, listener)


@nothing_left
def test_a_consumer_may_say_hello_before_the_producer(world: World) -> None:
    with listeners(1) as (listener,), world.request() as requested:
        consumer = world.cons(requested.join["CONS"])
        until(lambda: requested.state("CONS") == "Ready", lambda: f"the consumer is not known: {consumer}")
        assert requested.state("PROD") == "Listening"
        world.prod(requested.join["PROD"], [address_of(listener)]).end()
        requested.streaming()
        told = json.loads(consumer.end().stdout)
        assert told["uid"] == requested.uid
        carries(Streaming(requested, told["listeners"]), 0, listener)


LATE_PROGRAM = """
import socket, sys, time
time.sleep(2)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"here I am")
"""


@nothing_left
def test_a_program_that_listens_only_two_seconds_after_its_start_still_gets_its_connection(world: World) -> None:
    port = free_ports()
    late = [sys.executable, "-c", LATE_PROGRAM, str(port)]
    with world.request() as requested:
        program = world.prod(requested.join["PROD"], [f"{HOST}:{port}"], late)
        (told,) = world.cons_listeners(requested.join["CONS"])
        with connect(told) as consumer:
            assert receive(consumer) == b"here I am"
        requested.streaming()
        program.end()


# How many


@nothing_left
def test_two_streams_at_once_keep_their_bytes_apart(world: World) -> None:
    with (
        listeners(2) as (one, two),
        world.stream([address_of(one)]) as first,
        world.stream([address_of(two)]) as second,
    ):
        assert set(first.listeners).isdisjoint(second.listeners)
        together(
            lambda: carries(first, 0, one, noise(4 * MIB, seed=1)),
            lambda: carries(second, 0, two, noise(4 * MIB, seed=2)),
        )


@nothing_left
def test_the_end_of_one_stream_leaves_another_alone(world: World) -> None:
    with (
        listeners(2) as (one, two),
        world.stream([address_of(one)]) as staying,
        staying.connect() as consumer,
        accept(one) as producer,
    ):
        with world.stream([address_of(two)]) as leaving:
            carries(leaving, 0, two)
        _, received = together(lambda: producer.sendall(DATA), lambda: receive_exactly(consumer, len(DATA)))
        assert sha256(received) == sha256(DATA)


@nothing_left
def test_both_roles_of_a_stream_may_be_at_one_facility(world: World) -> None:
    with listeners(2) as (one, two), world.stream(list(map(address_of, (one, two))), 2, cons=world.lab) as stream:
        assert world.lab.states()[stream.uid, "PROD"] == world.lab.states()[stream.uid, "CONS"] == "Streaming"
        assert (stream.uid, "CONS") not in world.centre.states()
        assert all(world.lab.gateways[0].offers(listener) for listener in stream.listeners)
        assert len(world.lab.gateways[0].ports_in_use()) == 4
        carries(stream, 0, one)
        carries(stream, 1, two)


@nothing_left
def test_of_more_program_listeners_than_channels_the_rest_is_named_and_not_used(world: World) -> None:
    with listeners(3) as offered, world.request(num_conn=2) as requested:
        world.prod(requested.join["PROD"], list(map(address_of, offered))).end()
        last = requested.streaming()
        assert last["unused_listeners"] == [address_of(offered[2])]
        assert address_of(offered[2]) not in last["connection_map"].values()
        stream = Streaming(requested, world.cons_listeners(requested.join["CONS"]))
        carries(stream, 0, offered[0])
        carries(stream, 1, offered[1])


@nothing_left
def test_fewer_program_listeners_than_channels_are_used_in_turn(world: World) -> None:
    with listeners(2) as (even, odd), world.stream(list(map(address_of, (even, odd))), 4) as stream:
        assert len(set(stream.listeners)) == 4
        for channel in range(4):
            carries(stream, channel, odd if channel % 2 else even)


def test_a_pool_of_two_gateways_shares_the_channels_of_a_stream(fresh_world: FreshWorld) -> None:
    # Neither its ports nor its capacity would let one gateway take more than two of the four channels.
    pool = {"gateways": 2, "ports": 2, "gateway": {"capacity": "6Gbit"}}
    world = fresh_world(lab=pool, centre=pool)
    with (
        world.unchanged(),
        listeners(4) as offered,
        world.stream(list(map(address_of, offered)), 4, "10Gbit") as stream,
    ):
        for gateway in world.centre.gateways:
            assert sum(gateway.offers(listener) for listener in stream.listeners) == 2
        for facility in world.facilities:
            assert [len(gateway.ports_in_use()) for gateway in facility.gateways] == [2, 2]
        refused = world.s2uc("request", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, check=False)
        assert refused.returncode == 1
        assert "no-ports" in refused.stderr
        for channel, listener in enumerate(offered):
            carries(stream, channel, listener, noise(MIB, seed=channel))
        sides = json.loads(world.s2uc("status", stream.uid, "--json").stdout)["streams"][stream.uid]
        for side in sides.values():
            assert [one["bytes_to_consumer"] for one in side["figures"]] == [MIB] * 4


def test_all_of_it_works_over_ipv6(fresh_world: FreshWorld) -> None:
    needs_ipv6()
    six = {"host": "::1"}
    world = fresh_world(lab=six, centre=six)
    with (
        world.unchanged(),
        listeners(2, "::1") as offered,
        world.stream(list(map(address_of, offered)), 2) as stream,
    ):
        assert all(listener.startswith("[::1]:") for listener in stream.listeners)
        assert stream.requested.join["PROD"].count("[::1]:") == 1
        for channel, listener in enumerate(offered):
            carries(stream, channel, listener)


# How it ends


@nothing_left
def test_a_release_while_data_flows_resets_both_applications_and_closes_all_ports(world: World) -> None:
    with listeners(1) as (listener,), world.stream([address_of(listener)]) as stream:
        with stream.connect() as consumer, accept(listener) as producer:
            producer.sendall(DATA[:MIB])
            assert sha256(receive_exactly(consumer, MIB)) == sha256(DATA[:MIB])
            release = stream.requested.start_release()
            ends = together(lambda: how_it_ends(push, producer), lambda: how_it_ends(swallow, consumer))
        assert [type(end) for end in ends] == [ConnectionResetError, ConnectionResetError], ends
        release.end()
        assert not world.lab.gateways[0].ports_in_use()
        assert not world.centre.gateways[0].ports_in_use()
        with pytest.raises(ConnectionRefusedError):
            stream.connect()


@nothing_left
def test_a_release_resets_connections_on_which_nothing_moves(world: World) -> None:
    with (
        listeners(1) as (listener,),
        world.stream([address_of(listener)]) as stream,
        stream.connect() as consumer,
        accept(listener) as producer,
    ):
        stream.requested.release()
        for sock in (consumer, producer):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


# The program beside an application controller


@nothing_left
def test_the_exit_status_of_an_application_controller_is_its_programs(world: World) -> None:
    with listeners(1) as (listener,), world.stream([address_of(listener)]) as stream:
        consumers = [world.cons(stream.requested.join["CONS"], ["sh", "-c", end]) for end in ("exit 0", "exit 37")]
        killed = world.cons(stream.requested.join["CONS"], ["sh", "-c", "kill -9 $$"])
        producer = world.prod(stream.requested.join["PROD"], [address_of(listener)], ["sh", "-c", "exit 3"])
        consumers[0].end(status=0)
        consumers[1].end(status=37)
        killed.end(status=-9)  # the process that was started has become the program
        producer.end(status=3)


@nothing_left
def test_the_join_string_is_not_in_the_programs_environment_and_the_listeners_are(world: World) -> None:
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    with listeners(1) as (listener,), world.stream([address_of(listener)]) as stream:
        join = stream.requested.join
        producer = world.prod(join["PROD"], [address_of(listener)], show)
        consumer = world.cons(join["CONS"], show)
        of_producer, of_consumer = (json.loads(one.end().stdout) for one in (producer, consumer))
    for environment in (of_producer, of_consumer):
        assert environment["PATH"] == os.environ["PATH"]
        assert "SCISTREAM_JOIN" not in environment
        assert not any(secret in value for secret in join.values() for value in environment.values())
    assert json.loads(of_consumer["SCISTREAM_LISTENERS"]) == stream.listeners
    assert "SCISTREAM_LISTENERS" not in of_producer
