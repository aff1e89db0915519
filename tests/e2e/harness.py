"""Whole facilities for end-to-end tests: installed daemons, installed commands, real processes, loopback only.

A `World` is two facilities, "lab" with the producer and "centre" with the consumer, and one user whom both serve.
Its processes are asked to end with it, and by the kernel should the test run itself die. Nothing here runs a reactor.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from scistream.pki.authority import init_authority, issue
from scistream.s2uc.history import StreamHistory
from support import facilities
from support.applications import MIB, connect, noise, receive, send_all, sha256
from support.facilities import HOST, Daemon, Facility, files_of, loopback
from support.fork_server import TIMING
from support.leased_ports import leased
from support.programs import INSTALLED, Descriptors, Program
from support.requirements import missing
from support.tcp_sockets import CLOSE_WAIT, ESTABLISHED, tcp_sockets
from support.waiting import PATIENCE, until


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run blocking jobs at once, each in a thread, and give their results. They start no processes."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job) for job in jobs]
        return [one.result(2 * PATIENCE) for one in running]


def exchange(consumer: socket.socket, producer: socket.socket, *, seed: int) -> None:
    """Send some MiB in both directions at once, until both have ended, and compare digests."""
    there, back = noise(3 * MIB, seed=seed), noise(2 * MIB, seed=seed + 1)
    _, _, arrived, returned = together(
        partial(send_all, consumer, there),
        partial(send_all, producer, back),
        partial(receive, producer),
        partial(receive, consumer),
    )
    assert sha256(arrived) == sha256(there)
    assert sha256(returned) == sha256(back)


# Ports


def free_ports(count: int = 1, host: str = HOST) -> int:
    """Return the first of `count` consecutive free ports that only this test process uses."""
    return leased.take(count, host)


def connections_to(port: int) -> int:
    """How many open connections lead there."""
    return sum(sock.remote == port for sock in tcp_sockets(ESTABLISHED))


def _half_closed(ports: set[int]) -> bool:
    """Return whether a peer has closed its end of a connection to one of these ports, and the server has not."""
    return any(sock.local in ports for sock in tcp_sockets(CLOSE_WAIT))


# What it takes up


@dataclass(frozen=True)
class Footprint:
    """What the daemons of a world hold; by the name of the daemon, or of the facility."""

    descriptors: dict[str, int]
    ports: dict[str, frozenset[int]]
    live_streams: dict[str, int]
    memory: dict[str, int] = field(compare=False)
    """Bytes of memory of its own; no two moments are alike in it, so it is compared by `grown`."""

    def grown(self, before: Footprint) -> dict[str, int]:
        """How many bytes of memory each daemon holds more than before."""
        return {name: size - before.memory[name] for name, size in self.memory.items()}


MOST_GROWTH = 12 * MIB
"""Bytes of memory that whatever a test does may leave behind in a daemon. Most tests leave less than 1 MiB; the most
that was measured is 6 MiB, after 300 handshakes without an end, whose remains wait for the garbage collector."""


def assert_same(before: Footprint, after: Callable[[], Footprint], seconds: float = 15.0) -> None:
    """Wait until the daemons hold just what they held before, and hardly more memory."""

    def is_same() -> bool:
        now = after()
        return now == before and max(now.grown(before).values()) <= MOST_GROWTH

    until(is_same, lambda: f"before: {before}\nnow:    {after()}", seconds)


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open, also one whose files in /proc are root's, since it keeps secrets."""
    folder = f"/proc/{pid}/fd"
    try:
        return len(os.listdir(folder))
    except PermissionError:
        count = os.stat(folder).st_size  # what Linux tells since 6.2
    if not count:
        missing("only root can count the descriptors of a daemon on a kernel before 6.2")
    return count


def _memory(pid: int) -> int:
    """Bytes of memory that a process shares with no file: its heap, and what it has mapped besides."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024
    raise AssertionError(f"the kernel does not tell the memory of process {pid}")


# Worlds


@dataclass(frozen=True)
class Streaming:
    """A stream with both applications greeted: where the consumer connects, one listener a channel."""

    requested: Requested
    listeners: list[str]

    @property
    def uid(self) -> str:
        """The stream's name."""
        return self.requested.uid

    def connect(self, channel: int = 0) -> socket.socket:
        """Open a connection of the consumer."""
        return connect(self.listeners[channel])


class Requested:
    """A running ``s2uc request --json`` that has printed that both facilities have reserved.

    As a context manager it releases the stream at the end, unless that has been done.
    """

    def __init__(self, world: World, program: Program) -> None:
        self.world = world
        self.program = program
        first = json.loads(program.line())
        assert "join" in first, f"it is refused: {first}"
        self.uid: str = first["uid"]
        self.join: dict[str, str] = first["join"]
        self._released = False

    def streaming(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until it streams: the last line of the command, which has ended with status 0."""
        ended = self.program.end(timeout)
        last: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        assert (last["uid"], last["state"]) == (self.uid, "Streaming")
        return last

    def release(self) -> None:
        """End the stream at both facilities."""
        self._released = True
        self.world.s2uc("release", self.uid)

    def forget(self) -> None:
        """Note that the request has failed, so that nothing is left to release."""
        self._released = True

    def start_release(self) -> Program:
        """Start a release without waiting for it."""
        self._released = True
        return self.world.start_s2uc("release", self.uid)

    def __enter__(self) -> Requested:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._released:
            self.release()
            self.program.stop()  # if it waits still, it would hear of this when it asks the next time

    def state(self, role: str) -> str | None:
        """Its state in the store of a side's facility."""
        facility = self.world.lab if role == "PROD" else self.world.centre
        return facility.states().get((self.uid, role))


class World:
    """Two facilities with their daemons running, and a user with her configuration. Use it as a context manager.

    :param lab: how the producer's facility differs from the usual, as `loopback` and `Facility` take it.
    :param centre: the same of the consumer's facility.
    :param programs: the folder of the installed commands.
    :param timing: limits of `scistream.timing` that daemons and commands have instead of the usual ones, so that a test
        need not wait for long.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lab: Mapping[str, Any] | None = None,
        centre: Mapping[str, Any] | None = None,
        programs: Path = INSTALLED,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = folder
        self.programs = programs
        users = init_authority(folder / "users", "Users of both").certificate
        for each in ("lab", "centre", "applications"):
            (folder / each).mkdir()
        self.lab = _facility(folder / "lab", users, **(lab or {}))
        self.centre = _facility(folder / "centre", users, **(centre or {}))
        for daemon in self.daemons:
            daemon.programs = programs
            daemon.timing = timing or {}
        settings = folder / "config" / "scistream" / "s2uc.toml"
        settings.parent.mkdir(parents=True)
        authorities = [str(each.authority) for each in self.facilities]
        settings.write_text(
            tomli_w.dumps({**files_of(issue(folder / "users", "user", "ada")), "authorities": authorities})
        )
        self.env = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"}
        self.env.update(XDG_CONFIG_HOME=str(folder / "config"), XDG_STATE_HOME=str(folder / "state"))
        if timing:
            self.env[TIMING] = json.dumps(timing)
        self.remembered = StreamHistory(folder / "state" / "scistream" / "streams")
        """What the user's ``s2uc`` remembers."""
        self._programs: list[Program] = []

    @property
    def facilities(self) -> tuple[Facility, Facility]:
        """The producer's and the consumer's."""
        return self.lab, self.centre

    @property
    def daemons(self) -> list[Daemon]:
        """All of both facilities."""
        return [daemon for facility in self.facilities for daemon in facility.daemons]

    def __enter__(self) -> World:
        try:
            facilities.start(*self.facilities)
        except BaseException:
            facilities.stop(*self.facilities)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.stop()
        facilities.end(*self.facilities)

    # Programs

    def start(
        self, *command: str, env: Mapping[str, str] | None = None, descriptors: Descriptors | None = None
    ) -> Program:
        """Start any program, with what the user's environment has; it ends with the world."""
        log = self.folder / "applications" / f"{len(self._programs)}-{Path(command[0]).name}.err"
        program = Program(command, log, {**self.env, **(env or {})}, descriptors=descriptors)
        self._programs.append(program)
        return program

    def run(self, *command: str, status: int | None = 0, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return self.start(*command).end(timeout, status=status)

    def s2uc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``s2uc`` to its end; unless `check` is false it must succeed."""
        return self.run(str(self.programs / "s2uc"), *arguments, status=0 if check else None, timeout=2 * PATIENCE)

    def start_s2uc(self, *arguments: str) -> Program:
        """Start ``s2uc``."""
        return self.start(str(self.programs / "s2uc"), *arguments)

    def request(
        self,
        num_conn: int = 1,
        rate: str = "10Gbit",
        *options: str,
        prod: Facility | None = None,
        cons: Facility | None = None,
    ) -> Requested:
        """Ask for a stream and wait until both facilities have reserved."""
        between = ["--prod", (prod or self.lab).s2cs, "--cons", (cons or self.centre).s2cs]
        wishes = ["--num-conn", str(num_conn), "--rate", rate, *options]
        return Requested(self, self.start_s2uc("request", "--json", *between, *wishes))

    def prod(self, join: str, listen: Sequence[str], command: Sequence[str] = ()) -> Program:
        """Start ``appctrl prod`` for a program that listens there."""
        options = [word for listener in listen for word in ("--listen", listener)]
        return self._appctrl(join, "prod", *options, *(["--", *command] if command else []))

    def cons(self, join: str, command: Sequence[str] = ()) -> Program:
        """Start ``appctrl cons``."""
        return self._appctrl(join, "cons", *(["--", *command] if command else []))

    def cons_listeners(self, join: str) -> list[str]:
        """Say Hello for a consumer, and wait until it is told where to connect."""
        return _listeners(self.cons(join))

    def _appctrl(self, join: str, *arguments: str) -> Program:
        return self.start(str(self.programs / "appctrl"), *arguments, env={"SCISTREAM_JOIN": join})

    @contextmanager
    def stream(
        self, listen: Sequence[str], num_conn: int = 1, rate: str = "10Gbit", **between: Facility
    ) -> Iterator[Streaming]:
        """Request a stream to a program that already listens; release it at the end, unless that has been done."""
        with self.request(num_conn, rate, **between) as requested:
            consumer, producer = self.cons(requested.join["CONS"]), self.prod(requested.join["PROD"], listen)
            requested.streaming()
            producer.end()
            yield Streaming(requested, _listeners(consumer))

    # What it takes up

    def footprint(self) -> Footprint:
        """Return what all daemons hold, once they have closed the links that clients have closed.

        A daemon that a test has stopped does not close any: it is not waited for without end.
        """
        control = {each.server.address.port for each in self.facilities}
        with contextlib.suppress(AssertionError):
            until(lambda: not _half_closed(control), lambda: "links of clients that have gone are still open", 2.0)
        return Footprint(
            descriptors={each.name: sum(map(open_descriptors, each.processes())) for each in self.daemons},
            ports={each.name: each.ports_in_use() for facility in self.facilities for each in facility.gateways},
            live_streams={
                each.name: sum(state != "Released" for state in each.states().values()) for each in self.facilities
            },
            memory={each.name: sum(map(_memory, each.processes())) for each in self.daemons},
        )

    @contextmanager
    def unchanged(self) -> Iterator[Footprint]:
        """Check that the block leaves nothing behind in any daemon."""
        before = self.footprint()
        yield before
        assert_same(before, self.footprint)


def _facility(folder: Path, users: Path, **options: Any) -> Facility:
    """Return a facility on a loopback address, of the name of its folder."""
    where = {name: options.pop(name) for name in ("host", "gateways", "ports") if name in options}
    return Facility(folder, folder.name, users, loopback(**where), **options)


def _listeners(consumer: Program) -> list[str]:
    found: list[str] = json.loads(consumer.end().stdout)["listeners"]
    return found


def refused_request(world: World, *options: str, prod: str = "", cons: str = "") -> str:
    """Return the error line of a request that fails; check that ``s2uc`` remembers no more than before."""
    between = ["--prod", prod or world.lab.s2cs, "--cons", cons or world.centre.s2cs]
    remembered = world.remembered.all()
    ended = world.start_s2uc("request", *between, *options).end(status=1)
    assert ended.stdout == ""
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("waiting for ")]
    assert world.remembered.all() == remembered
    return line
