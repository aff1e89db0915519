"""Whole facilities for end-to-end tests: installed daemons, installed commands, real processes, loopback only.

A `World` is two facilities, "lab" with the producer and "centre" with the consumer, and one user whom both serve.
Its processes are asked to end with it, and by the kernel should the test run itself die. Nothing here runs a reactor.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.address import Address
from scistream.s2uc.history import StreamHistory
from support.leased_ports import can_bind, leased
from support.programs import INSTALLED, Program
from support.requirements import missing
from support.waiting import PATIENCE, until

HOST = "127.0.0.1"
CONTROLLER = "s2cs-controller"
MIB = 1024 * 1024
_LISTEN, _ESTABLISHED, _TIME_WAIT = 0x0A, 0x01, 0x06


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run blocking jobs at once, each in a thread, and give their results. They start no processes."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job) for job in jobs]
        return [one.result(2 * PATIENCE) for one in running]


# Applications in the test's own process


def listen(host: str = HOST) -> socket.socket:
    """A listener of a ProdApp on a free port."""
    sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
    sock.settimeout(PATIENCE)
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a listener listens, as the protocol writes it."""
    return str(Address(*sock.getsockname()[:2]))


def accept(listener: socket.socket) -> socket.socket:
    """The next connection."""
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def connect(listener: str) -> socket.socket:
    """A connection of a ConsApp."""
    address = Address.parse(listener)
    return socket.create_connection((address.host, address.port), timeout=PATIENCE)


def is_reset(listener: str, limit: float = PATIENCE) -> bool:
    """Whether a connection of a ConsApp is reset, be it before it knows that it was accepted."""
    try:
        with closing(connect(listener)) as sock:
            sock.settimeout(limit)
            return sock.recv(1) != b""
    except ConnectionResetError:
        return True


def noise(count: int, seed: int = 0) -> bytes:
    """The same `count` bytes each time, of no pattern."""
    return random.Random(seed).randbytes(count)


def receive(sock: socket.socket) -> bytes:
    """All until the other side ends its direction."""
    parts = []
    while part := sock.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """That many bytes, and no end before."""
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"the end came after {len(data)} of {count} bytes"
        data += part
    return data


def sha256(data: bytes) -> str:
    """What two heaps of bytes are compared by: shorter in a failure's report."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


# Ports


def free_ports(count: int = 1, host: str = HOST) -> int:
    """The first of so many free ports in a row, of those that this test process alone uses."""
    return leased.take(count, host)


@dataclass(frozen=True)
class _Socket:
    """A row of the kernel's table of TCP sockets."""

    local: int
    remote: int
    state: int


def _sockets() -> list[_Socket]:
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, remote, state = line.split()[1:4]
            found.append(_Socket(int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16), int(state, 16)))
    return found


def connections_to(port: int) -> int:
    """How many open connections lead there."""
    return sum(sock.remote == port and sock.state == _ESTABLISHED for sock in _sockets())


# Daemons


class Daemon:
    """An S2CS or an S2DS under twistd; it may be stopped or killed, and started again.

    :param kind: what twistd calls it.
    :param name: unique in its world.
    """

    programs = INSTALLED

    def __init__(self, kind: str, name: str, folder: Path, address: Address, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.address = address
        self.log = folder / f"{name}.log"
        self.file = folder / f"{name}.toml"
        self.file.write_text(_toml(settings))
        self._arguments = ["-n", "--pidfile=", f"--logfile={self.log}", kind, "--config", str(self.file)]
        self.program: Program | None = None
        self.env: dict[str, str] = {}
        """What its environment has besides the test's own, from its next start on."""

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self.program is not None
        return self.program.pid

    def start(self) -> None:
        """Start it; it is ready when `wait_until_ready` returns."""
        command = [str(self.programs / "twistd"), *self._arguments]
        self.program = Program(command, self.log.with_suffix(".err"), {**os.environ, **self.env})

    def wait_until_ready(self) -> None:
        """Wait until it listens."""
        until(self._is_ready, lambda: f"{self.name} does not listen on {self.address}:\n{self.words()}")

    def _is_ready(self) -> bool:
        assert self.program is not None
        assert self.program.process.poll() is None, f"{self.name} has ended:\n{self.words()}"
        return _Socket(self.address.port, 0, _LISTEN) in _sockets()

    def stop(self) -> None:
        """End it in order."""
        program, self.program = self.program, None
        assert program is not None
        program.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        program, self.program = self.program, None
        assert program is not None
        program.process.kill()
        program.process.wait(PATIENCE)

    def processes(self) -> list[int]:
        """Its own process, and those that it has started."""
        return [self.pid, *elements_of(self.pid)]

    def words(self) -> str:
        """All that it has logged."""
        logs = [path.read_text(errors="replace") for path in (self.log, self.log.with_suffix(".err")) if path.exists()]
        return "".join(logs)


def _toml(settings: Mapping[str, Any]) -> str:
    """TOML of these settings; a JSON string, number, truth value or list of strings is one of TOML too."""
    lines, sections = [], []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            sections.append(f"[{key}]\n{_toml(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            sections += [f"[[{key}]]\n{_toml(each)}" for each in value]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *sections]) + "\n"


# Facilities


class Gateway(Daemon):
    """An S2DS and its range of ports, `first_port` to `last_port`."""

    def __init__(self, name: str, facility: Facility, ports: int, settings: Mapping[str, Any]) -> None:
        self.host = facility.host
        self.first_port = free_ports(ports, facility.host)
        self.last_port = self.first_port + ports - 1
        address = Address(facility.host, free_ports(1, facility.host))
        mine = {
            "listen": str(address),
            "controller": f"scistream:controller:{CONTROLLER}",
            "authorities": [str(facility.authority)],
            "ports": f"{self.first_port}-{self.last_port}",
            "capacity": "100Gbit",
            "elements": 1,  # each costs half a second; what several have in common is in `test_elements`
            "lan": {"bind": facility.host},
            "wan": {"bind": facility.host},
            **_files(issue(facility.pki, "server", f"{name}-server", [facility.host])),
        }
        super().__init__("s2ds", name, facility.folder, address, {**mine, **settings})
        self._elements = settings.get("elements", mine["elements"])

    def wait_until_ready(self) -> None:
        """Wait for its elements, too: then it holds all that it holds at rest."""
        super().wait_until_ready()

        def ready() -> bool:
            said = {int(pid) for pid in re.findall(r"element \d+ is ready \(process (\d+)\)", self.words())}
            return len(said.intersection(elements_of(self.pid))) == self._elements

        until(ready, self.words)

    def ports_in_use(self) -> frozenset[int]:
        """The ports of its range that a socket is bound to, whether it listens, is connected, or only reserves."""
        mine = range(self.first_port, self.last_port + 1)
        seen = {sock.local for sock in _sockets() if sock.local in mine and sock.state != _TIME_WAIT}
        return frozenset(seen | {port for port in mine if not can_bind(self.host, port)})

    def offers(self, listener: str) -> bool:
        """Whether a listener is one of its ports."""
        return self.first_port <= Address.parse(listener).port <= self.last_port


class Facility:
    """An authority, an S2CS and its gateways, with all their files in a folder.

    :param host: the loopback address that all of it binds.
    :param gateways: how many, each with `ports` ports of its own.
    :param settings: further settings of its S2CS.
    :param gateway: further settings of each gateway.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        users: Path,
        *,
        host: str = HOST,
        gateways: int = 1,
        ports: int = 8,
        settings: Mapping[str, Any] | None = None,
        gateway: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.folder = folder
        self.pki = folder / "pki"
        self.authority = init_authority(self.pki, f"The {name}").certificate
        self.store = folder / "s2cs.sqlite"
        self.gateways = [Gateway(f"{name}-s2ds-{n}", self, ports, gateway or {}) for n in range(gateways)]
        address = Address(host, free_ports(1, host))
        mine: dict[str, Any] = {
            "listen": str(address),
            "state": str(self.store),
            "authorities": [str(users)],
            **_files(issue(self.pki, "server", f"{name}-s2cs", [host])),
            "controller": {**_files(issue(self.pki, "controller", CONTROLLER)), "authorities": [str(self.authority)]},
            "gateways": [{"name": each.name, "address": str(each.address)} for each in self.gateways],
        }
        self.server = Daemon("s2cs", f"{name}-s2cs", folder, address, {**mine, **(settings or {})})

    @property
    def s2cs(self) -> str:
        """Where its S2CS listens."""
        return str(self.server.address)

    @property
    def daemons(self) -> list[Daemon]:
        """The gateways, then the S2CS."""
        return [*self.gateways, self.server]

    def wait_for_links(self) -> None:
        """Wait until its S2CS has a connection to each gateway; both ends then have all that they hold at rest."""
        ports = {gateway.address.port for gateway in self.gateways}

        def linked() -> bool:
            return ports <= {sock.remote for sock in _sockets() if sock.state == _ESTABLISHED}

        until(linked, lambda: f"{self.server.name} has not reached its gateways:\n{self.server.words()}")

    def states(self) -> dict[tuple[str, str], str]:
        """The state of each stream in its store, by uid and role."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=PATIENCE)) as store:
            rows = store.execute("SELECT uid, role, state FROM stream").fetchall()
        return {(uid, role): state for uid, role, state in rows}


def _files(issued: Issued) -> dict[str, str]:
    return {"certificate": str(issued.certificate), "key": str(issued.key)}


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


def elements_of(pid: int) -> list[int]:
    """The processes that a gateway has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = stat.read_text().rpartition(") ")[2].split()
            if words[0] != "Z" and int(words[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


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
        """A connection of the consumer."""
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

    def start_release(self) -> Program:
        """The same, without waiting for it."""
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

    :param lab: how the producer's facility differs from the usual, as `Facility` takes it; `centre`: the consumer's.
    :param programs: the folder of the installed commands.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lab: Mapping[str, Any] | None = None,
        centre: Mapping[str, Any] | None = None,
        programs: Path = INSTALLED,
    ) -> None:
        self.folder = folder
        self.programs = programs
        users = init_authority(folder / "users", "Users of both").certificate
        for each in ("lab", "centre", "applications"):
            (folder / each).mkdir()
        self.lab = Facility(folder / "lab", "lab", users, **(lab or {}))
        self.centre = Facility(folder / "centre", "centre", users, **(centre or {}))
        for daemon in self.daemons:
            daemon.programs = programs
        settings = folder / "config" / "scistream" / "s2uc.toml"
        settings.parent.mkdir(parents=True)
        authorities = [str(each.authority) for each in self.facilities]
        settings.write_text(_toml({**_files(issue(folder / "users", "user", "ada")), "authorities": authorities}))
        self.env = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"}
        self.env.update(XDG_CONFIG_HOME=str(folder / "config"), XDG_STATE_HOME=str(folder / "state"))
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
            gateways = [gateway for facility in self.facilities for gateway in facility.gateways]
            servers = [facility.server for facility in self.facilities]
            for kind in (gateways, servers):
                for daemon in kind:
                    daemon.start()
                for daemon in kind:
                    daemon.wait_until_ready()
            for facility in self.facilities:
                facility.wait_for_links()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        died = [daemon.name for daemon in self.daemons if daemon.program and daemon.program.process.poll() is not None]
        ended = self._stop()
        words = {daemon.name: daemon.words() for daemon in self.daemons}
        for name, said in words.items():
            assert "Traceback" not in said, f"{name} has logged:\n{said[-10000:]}"
        assert not died, "\n".join(words[name][-4000:] for name in died)
        for name, status in ended.items():
            assert status == 0, f"{name} ended with status {status}:\n{words[name][-4000:]}"
            assert "Server Shut Down" in words[name]

    def _stop(self) -> dict[str, int]:
        for program in reversed(self._programs):
            program.stop()
        running = {daemon.name: daemon.program for daemon in self.daemons if daemon.program is not None}
        for program in running.values():
            program.ask_to_end()
        return {name: program.stop() for name, program in running.items()}

    # Programs

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> Program:
        """Start any program, with what the user's environment has; it ends with the world."""
        log = self.folder / "applications" / f"{len(self._programs)}-{Path(command[0]).name}.err"
        program = Program(command, log, {**self.env, **(env or {})})
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
        """A stream to a program that listens there already; released at the end, unless that has been done."""
        with self.request(num_conn, rate, **between) as requested:
            consumer, producer = self.cons(requested.join["CONS"]), self.prod(requested.join["PROD"], listen)
            requested.streaming()
            producer.end()
            yield Streaming(requested, _listeners(consumer))

    # What it takes up

    def footprint(self) -> Footprint:
        """What all daemons hold now."""
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
        """What happens inside leaves nothing behind in any daemon."""
        before = self.footprint()
        yield before
        assert_same(before, self.footprint)


def _listeners(consumer: Program) -> list[str]:
    found: list[str] = json.loads(consumer.end().stdout)["listeners"]
    return found


def refused_request(world: World, *options: str, prod: str = "", cons: str = "") -> str:
    """The one line of a request that fails, besides what it waits for; ``s2uc`` remembers no more than before."""
    between = ["--prod", prod or world.lab.s2cs, "--cons", cons or world.centre.s2cs]
    remembered = world.remembered.all()
    ended = world.start_s2uc("request", *between, *options).end(status=1)
    assert ended.stdout == ""
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("waiting for ")]
    assert world.remembered.all() == remembered
    return line


@contextmanager
def listeners(count: int, host: str = HOST) -> Iterator[list[socket.socket]]:
    """So many listeners of a ProdApp, closed at the end."""
    with ExitStack() as opened:
        yield [opened.enter_context(listen(host)) for _ in range(count)]
