"""Daemons run in the sandbox of their units: as another user, with the mounts and system calls of the unit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from harness import World

from support.applications import MIB, accept, address_of, listen, noise, receive, sha256
from support.facilities import Machine, elements_of
from support.programs import Program
from support.requirements import NOBODY, needs, needs_root
from support.unit_sandbox import Sandbox

ROOT = Path(__file__).parents[2]
UNITS = {kind: ROOT / "conf" / "systemd" / f"{kind}.service" for kind in ("s2cs", "s2ds")}
PYTHON = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
"""What the Python of the tests needs, wherever it is installed."""


class UnitMachine(Machine):
    """Starts daemons as their units do.

    :param writable: the folder in the place of the unit's StateDirectory, which has the settings and certificates, too.
    """

    def __init__(self, writable: Path, readable: Path) -> None:
        self._writable = writable
        self._readable = readable

    def start(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Program:
        (kind,) = UNITS.keys() & set(command)
        sandbox = Sandbox(UNITS[kind], [*PYTHON, self._readable], [self._writable], NOBODY)
        return Program(sandbox.command(command), log, env)


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs_root("only root can build the sandbox of a unit")
    needs("systemd-analyze")
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, lab={"gateway": {"elements": 2}})
    for facility in world.facilities:
        machine = UnitMachine(facility.folder, folder / "users")
        for path in (facility.folder, *facility.folder.rglob("*"), folder / "users", folder / "users" / "ca.pem"):
            os.chown(path, NOBODY, NOBODY)
        for daemon in facility.daemons:
            daemon.machine = machine
    with world:
        yield world


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_stream_runs_in_the_sandbox_of_the_units(world: World) -> None:
    there, back = noise(3 * MIB, seed=1), noise(MIB, seed=2)
    with (
        listen() as detector,
        world.stream([address_of(detector)], rate="1Gbit") as stream,
        stream.connect() as analysis,
        accept(detector) as camera,
    ):
        camera.sendall(there)
        camera.shutdown(1)
        assert sha256(receive(analysis)) == sha256(there)
        analysis.sendall(back)
        analysis.shutdown(1)
        assert sha256(receive(camera)) == sha256(back)
    for daemon in world.daemons:
        for pid in (daemon.pid, *elements_of(daemon.pid)):
            status = status_of(pid)
            assert status["Uid"].split() == [str(NOBODY)] * 4
            assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for facility in world.facilities:
        assert facility.store.stat().st_mode & 0o777 == 0o600
        assert "plugin cache" not in facility.server.words()


TRIES = """
import ctypes, errno, json, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, function, *arguments):
    try:
        result = function(*arguments)
    except OSError as problem:
        found[name] = errno.errorcode[problem.errno]
    except PermissionError as problem:
        found[name] = errno.errorcode[problem.errno]
    else:
        found[name] = errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"
found = {}
refused("write /etc", open, "/etc/scistream-test", "w")
refused("write /proc/sys", open, "/proc/sys/net/ipv4/ip_forward", "w")
refused("write the program", open, sys.argv[1] + "/setup.cfg", "a")
refused("write the state", open, sys.argv[2] + "/written", "w")
refused("write /tmp", open, "/tmp/written", "w")
refused("raw packets", socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
refused("netlink", socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
refused("another user", os.setuid, 0)
refused("a namespace", libc.unshare, 0x10000000)
refused("a mount", libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
refused("the clock", time.clock_settime, time.CLOCK_REALTIME, time.time())
refused("a set-user-id program", os.chmod, "/tmp/written", 0o4755)
found["devices"] = sorted(os.listdir("/dev"))
found["umask"] = os.umask(0)
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", UNITS)
def test_the_sandbox_refuses_what_the_unit_says(world: World, kind: str) -> None:
    sandbox = Sandbox(UNITS[kind], PYTHON, [world.lab.folder], NOBODY)
    command = sandbox.command([sys.executable, "-c", TRIES, str(ROOT), str(world.lab.folder)])
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found.pop("devices")) <= {"fd", "full", "null", "random", "shm", "tty", "urandom", "zero"}
    assert found.pop("umask") == 0o077
    allowed = {name for name, result in found.items() if result == "allowed"}
    assert allowed == {"write the state", "write /tmp"}, found
    assert found["netlink"] == found["raw packets"] == "EAFNOSUPPORT"
    assert (found["write /etc"], found["write /proc/sys"]) == ("EROFS", "EROFS")
