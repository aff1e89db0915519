"""Run a load over a path once, and measure its performance and cost."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater

from bench import load, peers
from bench.errors import BenchError
from bench.paths import Environment, Route, python
from bench.peers import HOST
from bench.processes import cpu_seconds, memory_kib, tcp_kib
from bench.rows import (
    BURST,
    CONNECTS,
    CPU,
    CPU_CONNECT,
    CPU_TRIP,
    KERNEL,
    MEMORY,
    OFF_RATE,
    P50,
    P99,
    THROUGHPUT,
    Sample,
)
from scistream.demo.children import Child

PATIENCE = 60.0
"""Seconds that a run may take beyond its own duration."""
WORKERS = 8
"""Clients that make new connections concurrently."""
WARM_UP = 1
"""Connections held by the same client when the memory of a path is measured for the first time, so that memory that is
allocated once is not attributed to connections. With more of them, the buffers and pages that they leave behind would
look free."""
SETTLE = 60.0
"""Seconds that the kernel's memory is given to become stable, as it does on a machine that does nothing else."""
_LOOK_AGAIN = 0.05
_STILL_KIB, _STILL_SECONDS = 256.0, 1.0
"""The kernel's memory is stable if it changes by no more than this within this time."""
_FILLED_KIB = 64
"""An unread connection takes at least this much, once its buffers are filled."""


async def throughput(environment: Environment, route: Route, connections: int, seconds: int) -> Sample:
    """Send bulk data from the producer to the consumer with iperf3; measure CPU time if the path has processes."""
    before = cpu_seconds(route.roots)
    said = await _result(environment, route, _iperf3(route, connections, seconds), seconds)
    received = _received(route, said)
    cost = cpu_seconds(route.roots) - before
    rate = {THROUGHPUT: received["bits_per_second"] / 1e9}
    return {**rate, CPU: cost / (received["bytes"] / 1e9)} if route.roots else rate


def _iperf3(route: Route, connections: int, seconds: int) -> list[str]:
    """Return the command line of a client that receives over a path."""
    to = ["--client", HOST, "--port", str(route.port), "--parallel", str(connections)]
    return [peers.found("iperf3"), *to, "--reverse", "--time", str(seconds), "--json"]


def _received(route: Route, said: Any) -> Any:
    """Return what iperf3 says of the data that has arrived.

    :raises BenchError: if nothing has.
    """
    received = said["end"].get("sum_received", {"bytes": 0})
    if not received["bytes"]:
        raise BenchError(
            f"nothing arrived over {route.name}: {said.get('error', 'iperf3 gives no reason')}", route.tails()
        )
    return received


async def trips(environment: Environment, route: Route, count: int) -> Sample:
    """Send small messages back and forth, one at a time."""
    before = cpu_seconds(route.roots)
    said = await _result(environment, route, [*python("bench.load"), "trips", str(route.port), str(count)], 0)
    cost = cpu_seconds(route.roots) - before
    found = {P50: said["p50_us"], P99: said["p99_us"]}
    return {**found, CPU_TRIP: 1e6 * cost / (count + load.WARM_UP)} if route.roots else found


async def trips_beside(environment: Environment, route: Route, bulk: Route, connections: int, seconds: float) -> Sample:
    """Send small messages back and forth while bulk data flows over another path through the same processes."""
    longer = math.ceil(2 * seconds) + 1  # both clients take a moment to start
    command = _iperf3(bulk, connections, longer)
    async with _running(environment, command) as child:
        trips = [*python("bench.load"), "trips-for", str(route.port), str(seconds)]
        said = await _result(environment, route, trips, seconds)
        if child.end is not None:
            raise BenchError(f"the bulk data over {route.name} ended too early ({child.end})", child.tail())
        await _end_of(environment, bulk, child, longer + PATIENCE)
        rate = _received(bulk, json.loads(child.out.read_text()))["bits_per_second"]
    return {P50: said["p50_us"], P99: said["p99_us"], THROUGHPUT: rate / 1e9}


async def connects(environment: Environment, route: Route, seconds: float) -> Sample:
    """Open connections, several concurrently, pass a byte in each direction, and close them."""
    command = [*python("bench.load"), "connects", str(route.port), str(seconds), str(WORKERS)]
    before = cpu_seconds(route.roots)
    said = await _result(environment, route, command, seconds)
    cost = cpu_seconds(route.roots) - before
    return {CONNECTS: said["per_second"], CPU_CONNECT: 1000 * cost / said["count"]}


async def rate(environment: Environment, route: Route, connections: int, rate: float, seconds: int) -> Sample:
    """Receive from a producer that sends without end, over a stream of this rate in Mbit/s."""
    command = [*python("bench.load"), "arrivals", str(route.port), str(connections), str(rate), str(seconds)]
    said = await _result(environment, route, command, seconds)
    return {OFF_RATE: 100 * abs(said["rate"] / rate - 1), BURST: said["burst_ms"]}


async def memory(environment: Environment, route: Route, connections: int, seconds: float) -> Sample:
    """Measure the memory of an idle connection, at the gateway that uses more."""
    before = await _held(environment, route, WARM_UP, 0.0)
    after = await _held(environment, route, connections, seconds)
    grown = max(then - first for first, then in zip(before, after, strict=True))
    return {MEMORY: grown / (connections - WARM_UP)}


async def _held(environment: Environment, route: Route, connections: int, seconds: float) -> list[float]:
    """Return the memory of each gateway in KiB after connections have been idle for `seconds`."""
    async with _holding(environment, route, connections, "hold"):
        await deferLater(environment.reactor, seconds)
        return [memory_kib([gateway]) for gateway in route.gateways]


@asynccontextmanager
async def _holding(environment: Environment, route: Route, connections: int, role: str, *arguments: str) -> Any:
    """Hold connections over a path, with a client of this role, while the block runs."""
    async with _running(
        environment, [*python("bench.load"), role, str(route.port), str(connections), *arguments]
    ) as child:
        deadline = environment.reactor.seconds() + PATIENCE + connections / 25
        while '"held"' not in child.out.read_text():
            if child.end is not None or environment.reactor.seconds() > deadline:
                raise BenchError(
                    f"{connections} connections could not be held over {route.name}", [*child.tail(), *route.tails()]
                )
            await deferLater(environment.reactor, _LOOK_AGAIN)
        yield
        os.kill(child.pid, signal.SIGUSR1)
        await _end_of(environment, route, child, PATIENCE)


async def beside_stalled(
    environment: Environment, route: Route, other: Route, connections: int, read: int, seconds: int
) -> Sample:
    """Send bulk data while consumers of another stream at the same gateways have stopped reading.

    :param other: the path of the other stream, whose producer sends without end.
    :param read: bytes that each of its consumers reads before it stops.
    :returns: the throughput, and the kernel's TCP memory for each stalled connection.
    """
    before = await _at_rest(environment)
    async with _holding(environment, other, connections, "stall", str(read)):
        held = await _at_rest(environment, before + _FILLED_KIB * connections) - before
        found = await throughput(environment, route, 1, seconds)
    await _at_rest(environment)
    return {THROUGHPUT: found[THROUGHPUT], KERNEL: held / connections}


async def _at_rest(environment: Environment, least: float = 0.0) -> float:
    """Wait until the kernel memory of our connections is stable, with a limit, and return it in KiB.

    :param least: KiB that it reaches at least: before that, it is stable only because nothing has arrived yet.
    """
    deadline = environment.reactor.seconds() + SETTLE
    now, before = tcp_kib(environment.ports.taken), -1.0
    while (now < least or abs(now - before) > _STILL_KIB) and environment.reactor.seconds() < deadline:
        await deferLater(environment.reactor, _STILL_SECONDS)
        now, before = tcp_kib(environment.ports.taken), now
    return now


async def _result(environment: Environment, route: Route, command: Sequence[str], seconds: float) -> Any:
    """Run a client to its end; return the JSON that it has printed."""
    async with _running(environment, command) as child:
        await _end_of(environment, route, child, seconds + PATIENCE)
        return json.loads(child.out.read_text())


@asynccontextmanager
async def _running(environment: Environment, command: Sequence[str]) -> Any:
    """Run a client during the block, and kill it afterwards if it is still running."""
    children = environment.children("load")
    try:
        yield children.start("load", command, {}, lambda _child: None)
    finally:
        await children.end_all()


async def _end_of(environment: Environment, route: Route, child: Child, seconds: float) -> None:
    """Wait for the end of a client.

    :raises BenchError: if it fails, or does not end within `seconds`.
    """
    ended: Deferred[None] = child.ended()
    ended.addTimeout(seconds, environment.reactor)
    try:
        await ended
    except TimeoutError as late:
        raise BenchError(
            f"a run over {route.name} did not end within {seconds:g} s", [*child.tail(), *route.tails()]
        ) from late
    if not child.succeeded:
        raise BenchError(f"a run over {route.name} failed ({child.end})", [*child.tail(), *route.tails()])
