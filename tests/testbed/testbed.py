"""Two facilities, a user and a WAN on one machine, as network namespaces. Linux, root, iproute2, tun and veth.

::

    plan ---LAN--- pgw ===WAN=== cgw ---LAN--- clan
                           |
                          user

A LAN is a veth pair between its application host and its gateway; the WAN is a process (`wan_router`) that carries
packets between tun devices of both gateways and the user's laptop. Nobody forwards from one network to another.
Application hosts have a route to the WAN address of their own gateway, which is local to it: its S2CS listens there,
for the user and for applications alike.

Everything of a testbed is in namespaces ``st<id>-...`` and in the folder ``/run/scistream-testbed/<id>``, so that any
process can find it by its id, and so that whatever is left over can be recognised.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netns
from testbed_addresses import V4, V6, Addresses
from wan_router import INTERFACE, SETTINGS, Counters, Settings

from scistream.units import parse_rate
from support.programs import Program
from support.waiting import PATIENCE, until

FOLDER = Path("/run/scistream-testbed")
HOSTS = ("plan", "pgw", "wan", "cgw", "clan", "user")
"""The producer's LAN and gateway, the WAN's router, the consumer's gateway and LAN, the user's laptop."""

ON_WAN = ("pgw", "cgw", "user")
MTU = 9000

_OFF = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/rp_filter",
    "ipv6/conf/all/accept_dad",  # a search for others with the same address, which takes seconds
    "ipv6/conf/default/accept_dad",
)
_LISTENING = "0A"
"""A listener's state in /proc/net/tcp, where its queues mean something else."""
_ID = re.compile(r"[a-z0-9]{1,8}\Z")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|)\Z")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|)\Z")


class TestbedError(Exception):
    """A testbed cannot be made, or does not exist; the message is readable."""

    __test__ = False  # pytest takes it for tests by its name


# Settings of the WAN, as people write them


def parse_time(text: str) -> float:
    """Seconds, from ``50ms``, ``2s``, ``300us`` or a number of seconds.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _TIME.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time: write it like 50ms, 2s or 300us")
    return float(match[1]) * _SECONDS[match[2]]


def parse_share(text: str) -> float:
    """Parse a share from 0 to 1, from ``1%`` or ``0.01``.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _SHARE.match(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else 2.0
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is no share: write it like 1% or 0.01, up to 100%")
    return share


def parse_limit(text: str) -> float:
    """Bit/s, from a rate as everywhere in SciStream (``100Mbit``); 0 from ``none``.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    return 0.0 if text.strip() in ("none", "0") else parse_rate(text) * 1e6


_PARSERS: dict[str, Callable[[str], Any]] = {
    "delay": parse_time,
    "jitter": parse_time,
    "loss": parse_share,
    "duplicate": parse_share,
    "reorder": parse_share,
    "rate": parse_limit,
    "queue": parse_time,
    "forget_idle": parse_time,
    "reset_idle": parse_time,
}


# What the WAN has carried


@dataclass(frozen=True)
class Traffic:
    """Counters of ways of the WAN; the keys are (from, to)."""

    ways: dict[tuple[str, str], Counters]

    def of(self, source: str, target: str) -> Counters:
        """Of one direction."""
        return self.ways[source, target]

    def between(self, one: str, other: str) -> Counters:
        """Of both directions together."""
        return _added(self.of(one, other), self.of(other, one), 1)

    def __sub__(self, before: Traffic) -> Traffic:
        """Return the traffic since `before`."""
        return Traffic({names: _added(now, before.ways[names], -1) for names, now in self.ways.items()})


def _added(one: Counters, other: Counters, sign: int) -> Counters:
    return Counters(**{name: value + sign * vars(other)[name] for name, value in vars(one).items()})


@dataclass(frozen=True)
class Way:
    """What the router says of one direction between two hosts."""

    source: str
    target: str
    settings: Settings
    counters: Counters
    held_bytes: int


# Testbeds


@dataclass
class Testbed:
    """A testbed, up or not; as a context manager, up while it lasts.

    :param id: up to 8 small letters and digits, unique on this machine; `Testbed.of_its_own` takes a random one.
    :param mtu: of the WAN, in bytes; the LANs always have 9000.
    :param seed: of the WAN's chances.
    :param lasting: whether it outlives this process (until `down`); else its processes end with it.
    """

    __test__ = False

    id: str = "0"
    mtu: int = MTU
    seed: int = 1
    lasting: bool = False
    v4: Addresses = V4
    v6: Addresses = V6
    _programs: list[Program] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not _ID.match(self.id):
            raise TestbedError(f"{self.id!r} is no id of a testbed: take 1 to 8 small letters and digits")

    @classmethod
    def of_its_own(cls, **options: Any) -> Testbed:
        """Return a testbed with a unique id."""
        return cls(f"t{secrets.token_hex(3)}", **options)

    @classmethod
    def existing(cls) -> list[Testbed]:
        """All testbeds of this machine, and what is left over of any."""
        ids = {entry.name for entry in FOLDER.iterdir()} if FOLDER.is_dir() else set()
        ids |= {
            match[1] for name in netns.names() if (match := re.match(rf"st([a-z0-9]+)-({'|'.join(HOSTS)})\Z", name))
        }
        return [cls(one) for one in sorted(ids) if _ID.match(one)]

    @property
    def folder(self) -> Path:
        """Its files."""
        return FOLDER / self.id

    def namespace(self, host: str) -> str:
        """Return the name of a host's network namespace.

        :raises TestbedError: there is no such host.
        """
        if host not in HOSTS:
            raise TestbedError(f"{host!r} is no host of a testbed: there are {', '.join(HOSTS)}")
        return f"st{self.id}-{host}"

    @property
    def namespaces(self) -> list[str]:
        """Those of all hosts."""
        return [self.namespace(host) for host in HOSTS]

    def is_up(self) -> bool:
        """Return True if its router answers."""
        try:
            self._ask({})
        except TestbedError:
            return False
        return True

    # Up and down

    def up(self) -> None:
        """Make it.

        :raises TestbedError: if this machine cannot have it, or it is there already.
        """
        lack = netns.missing()
        if lack is not None:
            raise TestbedError(lack)
        try:
            self.folder.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise TestbedError(
                f"testbed {self.id} is up, or left over: `scistream-testbed --id {self.id} down`"
            ) from None
        try:
            self._make()
        except subprocess.CalledProcessError as problem:
            self.down()
            raise TestbedError(f"{problem.cmd}: {problem.stderr.strip()}") from None
        except BaseException:
            self.down()
            raise

    def _make(self) -> None:
        netns.ip(*(f"netns add {name}" for name in self.namespaces))
        for host in HOSTS:
            netns.ip("link set lo up", namespace=self.namespace(host))
            with netns.inside(self.namespace(host)):  # which may have inherited something else
                for switch in _OFF:
                    with suppress(FileNotFoundError):
                        Path("/proc/sys/net", switch).write_text("0")
        self._lan("plan", "pgw", "producer_lan")
        self._lan("clan", "cgw", "consumer_lan")
        hosts = [f"{one}={self.namespace(one)}={getattr(self.v4, one)},{getattr(self.v6, one)}" for one in ON_WAN]
        options = [word for host in hosts for word in ("--host", host)]
        options += ["--control", str(self._control), "--mtu", str(self.mtu), "--seed", str(self.seed)]
        router = self.start("wan", [sys.executable, str(Path(__file__).with_name("wan_router.py")), *options])

        def ready() -> bool:
            assert router.process.poll() is None, f"the router has ended: {router}"
            return self.is_up()

        until(ready, lambda: f"the router is not ready: {router}")
        for host in ON_WAN:
            netns.ip(
                f"link set {INTERFACE} addrgenmode none mtu {self.mtu} txqueuelen 10000",
                f"link set {INTERFACE} up",
                *(f"addr add {v.at(v.wan, getattr(v, host))} dev {INTERFACE}" for v in self._versions),
                namespace=self.namespace(host),
            )

    @property
    def _versions(self) -> list[Addresses]:
        return [self.v4, self.v6] if Path("/proc/net/if_inet6").exists() else [self.v4]

    def _lan(self, host: str, gateway: str, network: str) -> None:
        inner, outer = self.namespace(host), self.namespace(gateway)
        netns.ip(f"link add lan0 mtu 9000 netns {inner} type veth peer name lan0 mtu 9000 netns {outer}")
        for name, address in ((inner, host), (outer, f"{gateway}_lan")):
            commands = ["link set lan0 up"]
            for v in self._versions:
                at = v.at(getattr(v, network), getattr(v, address))
                commands.append(f"addr add {at} dev lan0")
                if name == inner:
                    commands.append(f"route add {v.only(getattr(v, gateway))} via {getattr(v, f'{gateway}_lan')}")
            netns.ip(*commands, namespace=name)

    def down(self) -> None:
        """End all its processes and remove all of it, or what is left of it. Idempotent."""
        for program in reversed(self._programs):
            program.stop()
        self._programs.clear()
        netns.remove(self.namespaces)
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # there are others
            FOLDER.rmdir()

    def leftovers(self) -> list[str]:
        """Return what is left of it on this machine: nothing after `down`."""
        there = sorted(set(self.namespaces) & netns.names())
        pids = [f"process {pid}" for pid in sorted(netns.processes(there))]
        return [*there, *pids, *([str(self.folder)] if self.folder.exists() else [])]

    def __enter__(self) -> Testbed:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # Programs and sockets

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *argv]

    def start(
        self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Program:
        """Start a program on a host. It ends with the testbed.

        :param log: the file for its standard error, in the testbed's folder if not given.
        """
        log = log or self.folder / f"{host}-{Path(argv[0]).name}-{secrets.token_hex(4)}.err"
        program = Program(self.command(host, argv), log, env, lasting=self.lasting)
        if not self.lasting:
            self._programs.append(program)
        return program

    def exec(
        self, host: str, argv: Sequence[str], *, status: int | None = 0, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host to its end, with this status if one is given."""
        program = self.start(host, argv)
        try:
            return program.end(timeout, status=status)
        finally:
            program.stop()
            self._programs.remove(program)

    def open_socket(
        self, host: str, kind: int = socket.SOCK_STREAM, like: str = "0.0.0.0", protocol: int = 0
    ) -> socket.socket:
        """Open a socket of a host for this process, of the same IP version as `like`."""
        family = socket.AF_INET6 if ":" in like else socket.AF_INET
        with netns.inside(self.namespace(host)):
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(PATIENCE)
        return sock

    def listen(self, host: str, address: str, port: int = 0, backlog: int = 64) -> socket.socket:
        """Open a TCP listener on a host."""
        sock = self.open_socket(host, like=address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def connect(self, host: str, address: str, port: int, timeout: float = PATIENCE) -> socket.socket:
        """Open a TCP connection from a host."""
        sock = self.open_socket(host, like=address)
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    # The WAN

    def unacknowledged(self) -> list[str]:
        """Return the TCP sockets of all hosts that wait for an acknowledgement, as lines of /proc/net/tcp.

        They include the sockets of ended programs, which the kernel still has to close.
        """
        found = []
        for name in self.namespaces:
            with netns.inside(name):
                lines = [
                    line
                    for table in Path("/proc/thread-self/net").glob("tcp*")  # tcp6 where there is IPv6
                    for line in table.read_text().splitlines()[1:]
                ]
            for line in lines:
                _, _, _, state, queues, *_ = line.split()
                if state != _LISTENING and not queues.startswith("00000000:"):
                    found.append(f"{name} {line}")
        return found

    def wan(
        self,
        between: tuple[str, str] | None = None,
        *,
        one_way: bool = False,
        clear: bool = False,
        cut: bool | None = None,
        strip_multipath: bool | None = None,
        **settings: str,
    ) -> list[Way]:
        """Change how the WAN treats packets, and say how it does. What is not named stays as it is.

        :param between: two of `ON_WAN`; all of them otherwise.
        :param one_way: only from the first to the second.
        :param clear: everything as it was in the beginning, first.
        :param cut: nothing passes; False heals that.
        :param strip_multipath: a middlebox removes the option of Multipath TCP; False ends that.
        :param settings: `delay`, `jitter` ("50ms"; each way), `loss`, `duplicate`, `reorder` ("1%"),
            `rate` ("100Mbit", "none"), `queue` (with a rate: "100ms" of traffic wait, more is dropped);
            a middlebox that drops what belongs to connections that were idle for longer (`forget_idle`), or resets
            them then (`reset_idle`; "10s", "0" ends it).
        :raises TestbedError: the testbed is not up, or there is no such setting or host.
        :raises ValueError: a setting cannot be read.
        """
        wrong = sorted(set(settings) - SETTINGS)
        if wrong:
            raise TestbedError(f"the WAN has no {', '.join(wrong)}: it has {', '.join(sorted(SETTINGS))}")
        values = {name: _PARSERS[name](text) for name, text in settings.items()}
        values |= {
            name: value for name, value in (("cut", cut), ("strip_multipath", strip_multipath)) if value is not None
        }
        command: dict[str, Any] = {"settings": values, "clear": clear}
        if between is not None:
            if len({*between} & {*ON_WAN}) != 2:
                raise TestbedError(f"{' and '.join(between)}: name two of {', '.join(ON_WAN)}")
            command["ways"] = [between] if one_way else [between, between[::-1]]
        return self._ask(command)

    def reseed(self, seed: int) -> None:
        """Start the WAN's chances anew: the same packets then meet the same fate."""
        self._ask({"seed": seed})

    def counters(self) -> Traffic:
        """Return what the WAN has carried and dropped."""
        return Traffic({(way.source, way.target): way.counters for way in self._ask({})})

    @property
    def _control(self) -> Path:
        return self.folder / "wan.sock"

    def _ask(self, command: dict[str, Any]) -> list[Way]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5.0)
            try:
                sock.connect(str(self._control))
                with sock.makefile("rw") as lines:
                    lines.write(json.dumps(command) + "\n")
                    lines.flush()
                    answer = lines.readline()
            except OSError as problem:
                raise TestbedError(f"testbed {self.id} is not up ({problem.strerror or problem})") from None
        if not answer:
            raise TestbedError(f"the router of testbed {self.id} refuses {command}")
        return [
            Way(source, target, Settings(**way["settings"]), Counters(**way["counters"]), way["held_bytes"])
            for source, target, way in json.loads(answer)["ways"]
        ]
