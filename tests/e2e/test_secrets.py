"""Keys and join strings stay in the memory of those who need them.

They are not in logs, stores, process lists, environments of children or core files, and out of reach of other
processes of the same user.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from harness import World, free_ports

from scistream.protocol.address import Address
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import CONS, PROD
from support.applications import address_of, listen
from support.facilities import HOST, elements_of
from support.programs import INSTALLED
from support.requirements import needs
from support.waiting import until


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two facilities that log all that they can."""
    debug = {"log_level": "debug"}
    with World(
        tmp_path_factory.mktemp("world"),
        lab={"settings": debug, "gateway": {**debug, "log_format": "json"}},
        centre={"settings": debug, "gateway": debug},
    ) as world:
        yield world


UNPRIVILEGED = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Root may read everything: where the tests run as root, spies and those they look at are root without capabilities."""

SPY = """
import sys
try:
    open(sys.argv[1], "rb").close()
except PermissionError:
    print("refused")
else:
    print("opened")
"""
WITH_CORES = """
import os, resource, sys
most = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def command_of(kind: str, tmp_path: Path) -> list[str]:
    """Return a command that holds secrets; it runs until it is ended, or for half a minute."""
    port, nobody_there = free_ports(), free_ports()
    if kind == "ordinary":
        return ["sleep", "60"]
    if kind == "s2uc":
        between = ["--prod", f"{HOST}:{nobody_there}", "--cons", f"{HOST}:{nobody_there}"]
        return [str(INSTALLED / "s2uc"), "request", "--insecure", *between]
    if kind == "appctrl":
        return [str(INSTALLED / "appctrl"), "cons", "--", "true"]
    settings = f'insecure = true\nlisten = "{HOST}:{port}"\n'
    if kind == "s2cs":
        settings += f'[[gateways]]\nname = "a"\naddress = "{HOST}:{nobody_there}"\n'
    file = tmp_path / f"{kind}.toml"
    file.write_text(settings)
    file.chmod(0o644)
    return [str(INSTALLED / "twistd"), "-n", "--pidfile=", kind, "--config", str(file)]


@contextmanager
def running(kind: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command as that user; only the command itself prevents core files in its folder."""
    join = Join(str(uuid4()), new_app_key(), Address(HOST, 9), CONS, None)
    process = subprocess.Popen(
        [sys.executable, "-c", UNPRIVILEGED, sys.executable, "-c", WITH_CORES, *command_of(kind, tmp_path)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path), "SCISTREAM_JOIN": str(join), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def as_user(command: Sequence[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run another program of the same user."""
    command = [sys.executable, "-c", UNPRIVILEGED, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)


def sees(pid: int, file: str, tmp_path: Path) -> str:
    """Return what another process of the same user gets when it opens a file in /proc."""
    return as_user([sys.executable, "-c", SPY, f"/proc/{pid}/{file}"], tmp_path).stdout.strip()


def wait_until_it_runs(process: subprocess.Popen[bytes]) -> None:
    """Until then it still has capabilities to lay down, and is closed to spies for that reason alone."""

    def runs() -> bool:
        assert process.poll() is None, "it has ended"
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        return len(arguments) > 1 and arguments[1] != b"-c"

    until(runs, lambda: f"process {process.pid} is not the program yet")


def wait_until_it_keeps_secrets(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    wait_until_it_runs(process)

    def keeps() -> bool:
        assert process.poll() is None, "it has ended"
        return sees(process.pid, "mem", tmp_path) == "refused"

    until(keeps, lambda: f"the memory of process {process.pid} is still open")


pytestmark = pytest.mark.usefixtures("linux")
SECRETIVE = ["s2cs", "s2ds", "s2uc", "appctrl"]


@pytest.mark.parametrize("kind", SECRETIVE)
def test_the_memory_of_a_process_with_secrets_is_closed_to_others_of_its_user(kind: str, tmp_path: Path) -> None:
    with running("ordinary", tmp_path) as control:
        wait_until_it_runs(control)
        assert sees(control.pid, "mem", tmp_path) == sees(control.pid, "environ", tmp_path) == "opened"
    with running(kind, tmp_path) as process:
        wait_until_it_keeps_secrets(process, tmp_path)
        assert sees(process.pid, "environ", tmp_path) == "refused"


def test_the_memory_of_an_element_is_closed_to_others_of_its_user(tmp_path: Path) -> None:
    with running("s2ds", tmp_path) as gateway:
        elements = until(lambda: elements_of(gateway.pid), lambda: "no element was started")
        for pid in elements:
            until(lambda pid=pid: sees(pid, "mem", tmp_path) == "refused", lambda: "the memory of an element is open")
            assert sees(pid, "environ", tmp_path) == "refused"


def test_no_debugger_of_the_same_user_gets_a_core_of_it(tmp_path: Path) -> None:
    needs("gcore")
    with running("ordinary", tmp_path) as control:
        wait_until_it_runs(control)
        assert as_user(["gcore", "-o", str(tmp_path / "control"), str(control.pid)], tmp_path).returncode == 0
        assert list(tmp_path.glob("control*"))
    with running("appctrl", tmp_path) as process:
        wait_until_it_keeps_secrets(process, tmp_path)
        assert as_user(["gcore", "-o", str(tmp_path / "stolen"), str(process.pid)], tmp_path).returncode != 0
        assert not list(tmp_path.glob("stolen*"))


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
@pytest.mark.parametrize("kind", SECRETIVE)
def test_a_crash_of_a_process_with_secrets_leaves_no_core_file(
    kind: str, tmp_path: Path, number: signal.Signals
) -> None:
    def crash(process: subprocess.Popen[bytes]) -> int:
        os.kill(process.pid, number)
        _, status = os.waitpid(process.pid, 0)
        assert os.WTERMSIG(status) == number
        return status

    with running("ordinary", tmp_path) as control:
        wait_until_it_runs(control)
        left_one = os.WCOREDUMP(crash(control))
    if not left_one:
        pytest.skip("no process leaves a core file on this machine")
    for file in tmp_path.glob("core*"):
        file.unlink()
    with running(kind, tmp_path) as process:
        wait_until_it_keeps_secrets(process, tmp_path)
        assert not os.WCOREDUMP(crash(process))
    assert not list(tmp_path.glob("core*"))


SHOW = """
import json, os, resource, sys
with open(sys.argv[1], "w") as file:
    seen = {"environ": dict(os.environ), "cores": resource.getrlimit(resource.RLIMIT_CORE)[1]}
    seen["own"] = open("/proc/self/environ", "rb").read().decode(errors="replace")
    json.dump(seen, file)
"""


def test_the_program_of_an_application_controller_never_sees_the_join_string(world: World, tmp_path: Path) -> None:
    with listen() as detector, world.request(1, "100Mbit") as requested:
        consumer = world.cons(requested.join[CONS], [sys.executable, "-c", SHOW, str(tmp_path / "seen")])
        world.prod(requested.join[PROD], [address_of(detector)]).end()
        requested.streaming()
        consumer.end()
        seen = json.loads((tmp_path / "seen").read_text())
        assert "SCISTREAM_LISTENERS" in seen["environ"], "the control: what it should see"
        assert "SCISTREAM_JOIN" not in seen["environ"]
        for role in (PROD, CONS):
            assert Join.parse(requested.join[role]).app_key not in json.dumps(seen)
        assert seen["cores"] != 0, "its core files are its own affair"


@pytest.mark.usefixtures("executed")
def test_a_stream_leaves_no_secret_in_any_log_or_store_or_in_the_list_of_processes(world: World) -> None:
    with listen() as detector:
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        asking = world.start_s2uc("-vv", "request", "--json", "--rate", "100Mbit", *between)
        first = json.loads(asking.line())
        joins = first["join"]
        keys = [Join.parse(joins[role]).app_key for role in (PROD, CONS)]
        appctrl = [str(world.programs / "appctrl"), "-vv"]
        camera_side = world.start(
            *appctrl, "prod", "--listen", address_of(detector), "--", "sleep", "60", env={"SCISTREAM_JOIN": joins[PROD]}
        )
        analysis_side = world.start(*appctrl, "cons", env={"SCISTREAM_JOIN": joins[CONS]})
        asking.end()
        (listener,) = json.loads(analysis_side.end().stdout)["listeners"]
        listed = b"".join(
            file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.parent.name != str(os.getpid())
        )
        assert b"appctrl" in listed, "the control"
        words = {daemon.name: daemon.words().encode() for daemon in world.daemons}
        assert all(b"UpdateTargets uid=" + first["uid"].encode() in said for said in words.values()), "the control"
        words["s2uc"] = asking.log.read_bytes()
        words["appctrl prod"], words["appctrl cons"] = camera_side.log.read_bytes(), analysis_side.log.read_bytes()
        words["the list of processes"] = listed
        for facility in world.facilities:
            for file in facility.folder.glob("s2cs.sqlite*"):
                words[str(file)] = file.read_bytes()
        world.s2uc("release", first["uid"])
        camera_side.stop()
    assert first["uid"].encode() in words["s2uc"], "the control: -vv says a lot"
    assert any(first["uid"].encode() in said for name, said in words.items() if "sqlite" in name)
    assert listener
    for name, said in words.items():
        for secret in keys:
            assert secret.encode() not in said, name
        assert b"PRIVATE KEY" not in said, name
