"""What a gateway needs at rates that one machine cannot measure: arithmetic from the measured cost of a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.rows import CPU, Row, work_of

BEGIN, END = ".. the expectations begin here", ".. the expectations end here"

RATES = (10, 100, 400)
"""Gbit/s."""
BUSY = 0.7
"""The share of its time that a processor carries data: the rest is for interrupts, for other work, and for bursts."""
COPIES = 8
"""Bytes that cross the memory of a gateway for each byte carried, if no cache holds any: the interface writes it, the
kernel copies it to the relay, the relay decrypts or encrypts it, the kernel copies it back, the interface reads it."""
MTU = 9000
ROUND_TRIP = 0.1
"""Seconds, of the path whose buffers are computed."""
_PATHS = ("two gateways TLS, 1 connection", "two gateways TLS, 8 connections")


def cost_of(rows: Sequence[Row]) -> float:
    """Return the CPU time of a byte at both gateways, in s/GB: the larger one of those with 1 connection and with 8.

    :raises ValueError: if it was not measured.
    """
    wanted = {work_of(path, CPU) for path in _PATHS}
    found = [row.ours for row in rows if row.work in wanted and row.ours is not None]
    if not found:
        raise ValueError("the result has no CPU time of two gateways (tls-1, tls-8)")
    return max(found)


def expectations(rows: Sequence[Row]) -> str:
    """Return the arithmetic, and a table of it, as reStructuredText.

    :raises ValueError: if the cost of a byte was not measured.
    """
    both = cost_of(rows)
    one = both / 2
    each = 8 / one
    lines = [
        f"The CPU time of both gateways was {both:.4g} s/GB, so one gateway needs {one:.3g} s for 1 GB, and one",
        f"processor carries at most 1 / {one:.3g} = {1 / one:.3g} GB/s = {each:.3g} Gbit/s. For a rate of R Gbit/s,",
        "or R / 8 GB/s:",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    table = [["", *(f"{rate} Gbit/s" for rate in RATES)]]
    table.append(["data", *(f"{rate / 8:.4g} GB/s" for rate in RATES)])
    table.append([f"processors that are busy: R / 8 x {one:.3g}", *(f"{rate / 8 * one:.3g}" for rate in RATES)])
    table.append(
        [f"processors of each gateway, {BUSY:.0%} busy, and elements", *(str(processors(rate, one)) for rate in RATES)]
    )
    table.append(["connections: two for each element", *(str(connections(rate, one)) for rate in RATES)])
    table.append(
        [f"memory traffic, {COPIES} bytes a byte at most", *(f"{rate / 8 * COPIES:.4g} GB/s" for rate in RATES)]
    )
    table.append(
        [f"packets a second each way, MTU {MTU}", *(f"{rate * 1e9 / 8 / MTU / 1e6:.3g} million" for rate in RATES)]
    )
    flight = [rate / 8 * ROUND_TRIP for rate in RATES]
    table.append([f"data in flight, R / 8 x {ROUND_TRIP} s", *(f"{each:.4g} GB" for each in flight)])
    table.append(
        [
            "of it, for each of these connections",
            *(f"{1000 * held / connections(rate, one):.3g} MB" for rate, held in zip(RATES, flight, strict=True)),
        ]
    )
    for cells in table:
        lines += [f"   {'  -' if number else '* -'} {cell}".rstrip() for number, cell in enumerate(cells)]
    return "\n".join(lines)


def processors(rate: float, cost: float) -> int:
    """Return how many processors a gateway needs.

    :param rate: in Gbit/s.
    :param cost: the CPU time of a byte at this gateway, in s/GB.
    """
    return math.ceil(rate / 8 * cost / BUSY)


def connections(rate: float, cost: float) -> int:
    """Return how many connections fill the elements of a gateway evenly: two for each."""
    return 2 * processors(rate, cost)
