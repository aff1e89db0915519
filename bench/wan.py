"""New connections, and bulk data, over a WAN with a round trip of 100 ms: the one of tests/testbed.

The testbed needs root and blocks, so a process of its own (`wan_testbed`) makes it and measures on it. It prints what
it does and finds as lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater

from bench.errors import BenchError, SkippedError
from bench.paths import DIRECT, OURS, PROGRAMS, Environment, python
from bench.profiles import Profile, Tell
from bench.rows import CPU, FIRST_BYTE, THROUGHPUT, Figure, Row, absolute, failed, paired
from scistream.demo.children import Child
from scistream.s2ds.settings import parse_elements

NOT_READY = "SciStream with ready = 0"
"""Our path without ready connections."""
ROUND_TRIP = "100 ms"
ONE_WAY = "50ms"

_BYTES_MS = {OURS: 115.0, NOT_READY: 320.0}
_FIGURES: Mapping[Figure, Mapping[str, float]] = {
    THROUGHPUT: {NOT_READY: 1.0, "stunnel": 1.0, "nginx": 1.0},
    CPU: {"stunnel": 1.0, "nginx": 1.0},
}
_FIGURES_BY_NAME = {figure.name: figure for figure in (FIRST_BYTE, *_FIGURES)}
_LOOK_AGAIN = 0.1
_DOWN_WITHIN = 30.0
"""Seconds for the removal of a testbed."""

Found = dict[tuple[str, str, Figure], list[float]]
"""For each loss, path and figure, what was measured."""


@dataclass(frozen=True)
class Wan:
    """The first byte of a new connection, and the throughput of one connection, for several losses."""

    key: str = "wan"
    about: str = "new connections and bulk data over a WAN of 100 ms, as root"
    limit: float = 300.0
    """Seconds that a run may take without a sign of life."""

    def contestants(self, profile: Profile) -> list[str]:
        """Return the names of the paths to measure, ours first."""
        peers = ["stunnel", "nginx", *(["HAProxy", DIRECT] if profile.all_peers else [])]
        return [OURS, NOT_READY, *peers]

    def programs(self, profile: Profile) -> set[str]:
        """Return the third-party programs that it needs."""
        return {"iperf3", "ip"} | {PROGRAMS[name] for name in self.contestants(profile) if name in PROGRAMS}

    async def rows(self, environment: Environment, profile: Profile, tell: Tell) -> list[Row]:
        """Measure, and return the rows of the result.

        :raises SkippedError: if this machine, or this user, cannot make the testbed.
        """
        if os.geteuid() != 0:
            raise SkippedError("network namespaces need root")
        found = await self._found(environment, profile, tell)
        return [row for loss in profile.losses for row in self._rows_of(loss, found)]

    def failed_rows(self) -> list[Row]:
        """Return the rows of the result if it could not be measured."""
        return [
            row
            for path in map(_path, ("0", "0.05%", "0.5%"))
            for row in (
                failed(path, FIRST_BYTE, None, _BYTES_MS[OURS]),
                failed(_without_ready(path), FIRST_BYTE, None, _BYTES_MS[NOT_READY]),
                *(failed(path, figure, peer, reach) for figure in _FIGURES for peer, reach in _FIGURES[figure].items()),
            )
        ]

    async def _found(self, environment: Environment, profile: Profile, tell: Tell) -> Found:
        plan = {
            "paths": self.contestants(profile),
            "losses": profile.losses,
            "first_bytes": profile.first_bytes,
            "rounds": profile.wan_rounds,
            "seconds": profile.wan_seconds,
            "elements": parse_elements(environment.elements),
            "congestion": environment.congestion and [environment.congestion.name, str(environment.congestion.machine)],
            "authority": str(environment.certificates.authority),
            "near": [str(environment.certificates.near.certificate), str(environment.certificates.near.key)],
            "far": [str(environment.certificates.far.certificate), str(environment.certificates.far.key)],
        }
        children = environment.children("wan")
        child = children.start("wan", [*python("bench.wan_testbed"), json.dumps(plan)], {}, lambda _: None)
        found: Found = {}
        lines = _Lines(child)
        try:
            last = environment.reactor.seconds()
            while child.end is None:
                await deferLater(environment.reactor, _LOOK_AGAIN)
                for line in lines.new():
                    last = environment.reactor.seconds()
                    _take(line, found, tell)
                if environment.reactor.seconds() - last > self.limit:
                    raise BenchError(f"nothing has happened on the testbed for {self.limit:g} s", child.tail())
            for line in lines.new():
                _take(line, found, tell)
        finally:
            await _ended(environment, child)
            await children.end_all()
        if not child.succeeded:
            raise BenchError(f"the measurement on the testbed failed ({child.end})", child.tail())
        return found

    @staticmethod
    def _rows_of(loss: str, found: Found) -> Iterator[Row]:
        path = _path(loss)
        peers = list(dict.fromkeys(name for at, name, _ in found if at == loss and name != OURS))
        for name, where in ((OURS, path), (NOT_READY, _without_ready(path))):
            yield absolute(where, FIRST_BYTE, found[loss, name, FIRST_BYTE], _BYTES_MS[name])
        for figure, reach in (*_FIGURES.items(), (FIRST_BYTE, dict[str, float]())):
            for peer in peers:
                theirs = found.get((loss, peer, figure), [])
                if theirs and (figure, peer) != (FIRST_BYTE, NOT_READY):  # which has a row of its own
                    pairs = list(zip(found[loss, OURS, figure], theirs, strict=True))
                    yield paired(path, figure, peer, pairs, reach.get(peer))


def _path(loss: str) -> str:
    return f"WAN of {ROUND_TRIP}, " + (f"{loss} loss" if loss != "0" else "no loss")


def _without_ready(path: str) -> str:
    return f"{path}, ready = 0"


class _Lines:
    """The lines that a process has printed so far."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._at = 0

    def new(self) -> Sequence[Any]:
        """Return the whole lines since the last call, from JSON."""
        text = self._child.out.read_text()
        whole = text.rfind("\n") + 1
        lines, self._at = text[self._at : whole].splitlines(), whole
        return [json.loads(line) for line in lines]


def _take(line: Any, found: Found, tell: Tell) -> None:
    """Take note of a line.

    :raises SkippedError: if it says that the testbed cannot be made.
    """
    if "skip" in line:
        raise SkippedError(line["skip"])
    if "tell" in line:
        tell(line["tell"])
    else:
        key = line["loss"], line["path"], _FIGURES_BY_NAME[line["figure"]]
        found.setdefault(key, []).extend(line["values"])


async def _ended(environment: Environment, child: Child) -> None:
    """Ask a process to end, and give it the time to remove its testbed."""
    if child.end is not None:
        return
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)
    ended: Deferred[None] = child.ended()
    ended.addTimeout(_DOWN_WITHIN, environment.reactor)
    with suppress(TimeoutError):
        await ended
