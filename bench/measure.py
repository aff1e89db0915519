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
from bench.paths import BenchProblem as BenchProblem
from bench.paths import Way, Yard, python
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


async def throughput(yard: Yard, way: Way, connections: int, seconds: int) -> Sample:
    """Bulk data from the producer to the consumer, by iperf3; CPU time only where processes are on the way."""
    door = str(way.port)
    command = [peers.found("iperf3"), "--client", HOST, "--port", door, "--parallel", str(connections)]
    before = cpu_seconds(way.roots)
    said = await _result(yard, way, [*command, "--reverse", "--time", str(seconds), "--json"], seconds)
    received = said["end"].get("sum_received", {"bytes": 0})
    if not received["bytes"]:
        raise BenchProblem(
            f"nothing arrived over {way.name}: {said.get('error', 'iperf3 does not say why')}", way.tails()
        )
    cost = cpu_seconds(way.roots) - before
    rate = {THROUGHPUT: received["bits_per_second"] / 1e9}
    return {**rate, CPU: cost / (received["bytes"] / 1e9)} if way.roots else rate


async def trips(yard: Yard, way: Way, count: int) -> Sample:
    """Small messages to and fro, one at a time."""
    said = await _result(yard, way, [*python("bench.load"), "trips", str(way.port), str(count)], 0)
    return {P50: said["p50_us"], P99: said["p99_us"]}


async def connects(yard: Yard, way: Way, seconds: float) -> Sample:
    """Connections that come, pass a byte each way, and go; several at a time."""
    command = [*python("bench.load"), "connects", str(way.port), str(seconds), str(WORKERS)]
    said = await _result(yard, way, command, seconds)
    return {CONNECTS: said["per_second"]}


async def memory(yard: Yard, way: Way, connections: int, seconds: float) -> Sample:
    """What each of so many connections holds while it is idle: at the gateway that holds more."""
    before = await _held(yard, way, WARM_UP, 0.0)
    after = await _held(yard, way, connections, seconds)
    grown = max(then - first for first, then in zip(before, after, strict=True))
    return {MEMORY: grown / (connections - WARM_UP)}


async def _held(yard: Yard, way: Way, connections: int, seconds: float) -> list[float]:
    """The memory of each gateway, in KiB, after so many connections have been idle for so long."""
    async with _holding(yard, way, connections, "hold"):
        await deferLater(yard.reactor, seconds)
        return [memory_kib([gateway]) for gateway in way.gateways]


@asynccontextmanager
async def _holding(yard: Yard, way: Way, connections: int, role: str, *arguments: str) -> Any:
    """Hold this many connections over a path by a client of this role, for the length of the block."""
    async with _running(yard, [*python("bench.load"), role, str(way.port), str(connections), *arguments]) as child:
        deadline = yard.reactor.seconds() + PATIENCE + connections / 25
        while '"held"' not in child.out.read_text():
            if child.end is not None or yard.reactor.seconds() > deadline:
                raise BenchProblem(
                    f"{connections} connections could not be held over {way.name}", [*child.tail(), *way.tails()]
                )
            await deferLater(yard.reactor, _LOOK_AGAIN)
        yield
        os.kill(child.pid, signal.SIGUSR1)
        await _end_of(yard, way, child, PATIENCE)


async def beside_stalled(yard: Yard, way: Way, other: Way, connections: int, read: int, seconds: int) -> Sample:
    """Bulk data beside connections of another stream of the same gateways whose far ends read no more.

    :param other: that stream, whose producer sends without end.
    :param read: bytes that each of its consumers reads before it stops.
    :returns: the throughput, and what each stalled connection holds of the kernel's memory for TCP.
    """
    before = await _at_rest(yard)
    async with _holding(yard, other, connections, "stall", str(read)):
        held = await _at_rest(yard) - before
        found = await throughput(yard, way, 1, seconds)
    await _at_rest(yard)
    return {THROUGHPUT: found[THROUGHPUT], KERNEL: held / connections}


async def _at_rest(yard: Yard) -> float:
    """The kernel's memory for TCP in KiB, when it changes no more or has been waited for long enough."""
    deadline = yard.reactor.seconds() + PATIENCE
    now, before = tcp_kib(), -1.0
    while abs(now - before) > _STILL_KIB and yard.reactor.seconds() < deadline:
        await deferLater(yard.reactor, _STILL_SECONDS)
        now, before = tcp_kib(), now
    return now


async def _result(yard: Yard, way: Way, command: Sequence[str], seconds: float) -> Any:
    """Run a client to its end; gives the JSON that it has printed."""
    async with _running(yard, command) as child:
        await _end_of(yard, way, child, seconds + PATIENCE)
        return json.loads(child.out.read_text())


@asynccontextmanager
async def _running(yard: Yard, command: Sequence[str]) -> Any:
    """A client; what is left of it at the end is ended."""
    children = yard.children("load")
    try:
        yield children.start("load", command, {}, lambda _child: None)
    finally:
        await children.end_all()


async def _end_of(yard: Yard, way: Way, child: Child, seconds: float) -> None:
    """:raises BenchProblem: if it does not end well in so many seconds."""
    ended: Deferred[None] = child.ended()
    ended.addTimeout(seconds, yard.reactor)
    try:
        await ended
    except TimeoutError as late:
        raise BenchProblem(
            f"a run over {way.name} did not end within {seconds:g} s", [*child.tail(), *way.tails()]
        ) from late
    if not child.succeeded:
        raise BenchProblem(f"a run over {way.name} failed ({child.end})", [*child.tail(), *way.tails()])
