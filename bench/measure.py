"""One run of one load over one path, and what it has cost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater

from bench import peers
from bench.paths import BenchError as BenchError
from bench.paths import Environment, Route, python
from bench.peers import HOST
from bench.processes import cpu_seconds, memory_kib, tcp_kib
from bench.rows import CONNECTS, CPU, KERNEL, MEMORY, P50, P99, THROUGHPUT, Figure
from scistream.demo.children import Child

Sample = Mapping[Figure, float]

PATIENCE = 60.0
"""Seconds that a run may last beyond its own time."""
WORKERS = 8
"""Clients that make new connections at the same time."""
WARM_UP = 1
"""Connections that a path carries when its memory is measured first, by a client like that of the many: what is
loaded at first use is none of theirs, and what is shared with the client changes nothing. With more of these, buffers
and pages that they leave behind would be taken for free."""
_LOOK_AGAIN = 0.05
_STILL_KIB, _STILL_SECONDS = 256.0, 1.0
"""The kernel's memory is at rest while it changes by no more than this in this time."""


async def throughput(environment: Environment, route: Route, connections: int, seconds: int) -> Sample:
    """Bulk data from the producer to the consumer, by iperf3; CPU time only where processes are on the way."""
    port = str(route.port)
    command = [peers.found("iperf3"), "--client", HOST, "--port", port, "--parallel", str(connections)]
    before = cpu_seconds(route.roots)
    said = await _result(environment, route, [*command, "--reverse", "--time", str(seconds), "--json"], seconds)
    received = said["end"].get("sum_received", {"bytes": 0})
    if not received["bytes"]:
        raise BenchError(
            f"nothing arrived over {route.name}: {said.get('error', 'iperf3 does not say why')}", route.tails()
        )
    cost = cpu_seconds(route.roots) - before
    rate = {THROUGHPUT: received["bits_per_second"] / 1e9}
    return {**rate, CPU: cost / (received["bytes"] / 1e9)} if route.roots else rate


async def trips(environment: Environment, route: Route, count: int) -> Sample:
    """Small messages to and fro, one at a time."""
    said = await _result(environment, route, [*python("bench.load"), "trips", str(route.port), str(count)], 0)
    return {P50: said["p50_us"], P99: said["p99_us"]}


async def connects(environment: Environment, route: Route, seconds: float) -> Sample:
    """Connections that come, pass a byte each way, and go; several at a time."""
    command = [*python("bench.load"), "connects", str(route.port), str(seconds), str(WORKERS)]
    said = await _result(environment, route, command, seconds)
    return {CONNECTS: said["per_second"]}


async def memory(environment: Environment, route: Route, connections: int, seconds: float) -> Sample:
    """What each of so many connections holds while it is idle: at the gateway that holds more."""
    before = await _held(environment, route, WARM_UP, 0.0)
    after = await _held(environment, route, connections, seconds)
    grown = max(then - first for first, then in zip(before, after, strict=True))
    return {MEMORY: grown / (connections - WARM_UP)}


async def _held(environment: Environment, route: Route, connections: int, seconds: float) -> list[float]:
    """The memory of each gateway, in KiB, after so many connections have been idle for so long."""
    async with _holding(environment, route, connections, "hold"):
        await deferLater(environment.reactor, seconds)
        return [memory_kib([gateway]) for gateway in route.gateways]


@asynccontextmanager
async def _holding(environment: Environment, route: Route, connections: int, role: str, *arguments: str) -> Any:
    """Hold this many connections over a path by a client of this role, for the length of the block."""
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
    """Bulk data beside connections of another stream of the same gateways whose far ends read no more.

    :param other: that stream, whose producer sends without end.
    :param read: bytes that each of its consumers reads before it stops.
    :returns: the throughput, and what each stalled connection holds of the kernel's memory for TCP.
    """
    before = await _at_rest(environment)
    async with _holding(environment, other, connections, "stall", str(read)):
        held = await _at_rest(environment) - before
        found = await throughput(environment, route, 1, seconds)
    await _at_rest(environment)
    return {THROUGHPUT: found[THROUGHPUT], KERNEL: held / connections}


async def _at_rest(environment: Environment) -> float:
    """The kernel's memory for TCP in KiB, when it changes no more or has been waited for long enough."""
    deadline = environment.reactor.seconds() + PATIENCE
    now, before = tcp_kib(), -1.0
    while abs(now - before) > _STILL_KIB and environment.reactor.seconds() < deadline:
        await deferLater(environment.reactor, _STILL_SECONDS)
        now, before = tcp_kib(), now
    return now


async def _result(environment: Environment, route: Route, command: Sequence[str], seconds: float) -> Any:
    """Run a client to its end; gives the JSON that it has printed."""
    async with _running(environment, command) as child:
        await _end_of(environment, route, child, seconds + PATIENCE)
        return json.loads(child.out.read_text())


@asynccontextmanager
async def _running(environment: Environment, command: Sequence[str]) -> Any:
    """A client; what is left of it at the end is ended."""
    children = environment.children("load")
    try:
        yield children.start("load", command, {}, lambda _child: None)
    finally:
        await children.end_all()


async def _end_of(environment: Environment, route: Route, child: Child, seconds: float) -> None:
    """:raises BenchError: if it does not end well in so many seconds."""
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
