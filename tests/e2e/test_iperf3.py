"""iperf3 in each of its directions, over one stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Streaming, World, free_ports

from support.facilities import HOST
from support.requirements import needs


@pytest.fixture(scope="module")
def stream(world: World) -> Iterator[Streaming]:
    needs("iperf3")
    port = free_ports()
    server = world.start("iperf3", "-s", "-p", str(port), "--forceflush")
    while "Server listening" not in server.line():
        pass
    with world.unchanged(), world.stream([f"{HOST}:{port}"], rate="50Gbit") as stream:
        yield stream


def measure(world: World, stream: Streaming, *options: str) -> dict[str, Any]:
    """Return the end of an iperf3 client's report, once its connections have left no trace."""
    host, _, port = stream.listeners[0].rpartition(":")
    with world.unchanged():
        done = world.run("iperf3", "-c", host, "-p", port, "-t", "1", "--json", *options)
    report = json.loads(done.stdout)
    assert "error" not in report
    end: dict[str, Any] = report["end"]
    return end


def test_iperf3_from_the_consumer_to_the_producer(world: World, stream: Streaming) -> None:
    end = measure(world, stream)
    assert end["sum_received"]["bytes"] > 0
    assert end["sum_sent"]["bytes"] >= end["sum_received"]["bytes"]


def test_iperf3_from_the_producer_to_the_consumer(world: World, stream: Streaming) -> None:
    end = measure(world, stream, "-R")
    assert end["sum_received"]["bytes"] > 0
    assert end["sum_sent"]["bytes"] >= end["sum_received"]["bytes"]


def test_iperf3_over_four_connections_of_one_channel_starves_none(world: World, stream: Streaming) -> None:
    end = measure(world, stream, "-P", "4")
    assert len(end["streams"]) == 4
    assert all(one["receiver"]["bytes"] > 0 for one in end["streams"])


def test_iperf3_in_both_directions_at_once(world: World, stream: Streaming) -> None:
    # Paced: its two ends, one thread each, otherwise wait for each other over any relay whose buffers fill first.
    end = measure(world, stream, "--bidir", "-b", "400M")
    assert end["sum_received"]["bytes"] > 0
    assert end["sum_received_bidir_reverse"]["bytes"] > 0
