"""Gateways of the version before Connect, at either side of a stream: both versions run as real daemons."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from harness import World, free_ports

from scistream.protocol.messages import CONS, PROD, Role
from support.applications import MIB, accept, address_of, connect, is_reset, listen, receive_digest, send
from support.facilities import HOST
from support.waiting import PATIENCE, until

OLDER = "c8993edcffbad8bd9b172205d1d26c0aabb1b22f"
"""The last commit whose gateways do not know Connect."""
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages of that commit."""
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this copy of the project has no history")
    command = [str(git), "-c", "safe.directory=*", "archive", OLDER, "scistream", "twisted"]
    packed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, timeout=60)
    if packed.returncode:
        pytest.skip(f"this copy of the project has no commit {OLDER[:7]}: {packed.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("older")
    unpack = [shutil.which("tar") or "tar", "--extract", "--directory", str(folder)]
    subprocess.run(unpack, input=packed.stdout, check=True, timeout=60)  # Python 3.11.2 knows no filters of tarfile
    return folder


@pytest.fixture(scope="module", params=[PROD, CONS])
def worlds(
    request: pytest.FixtureRequest, older: Path, linux: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Role]]:
    """Two facilities, and the side whose daemons are older."""
    world = World(tmp_path_factory.mktemp("both"))
    facility = world.lab if request.param == PROD else world.centre
    for daemon in facility.daemons:
        daemon.env = {"PYTHONPATH": str(older), "PYTHONSAFEPATH": "1"}
    with world:
        yield world, request.param


def test_a_stream_between_both_versions_carries_every_byte_and_nothing_else(worlds: tuple[World, Role]) -> None:
    world, old = worlds
    with closing(listen()) as detector, world.stream([address_of(detector)]) as stream, ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with connect(stream.listeners[0]) as consumer, accept(detector) as producer:
                for sender, receiver in ((consumer, producer), (producer, consumer)):
                    sending = pool.submit(_send, sender)
                    assert receive_digest(receiver) == (MIB, sending.result(PATIENCE))
        detector.settimeout(0.5)
        with pytest.raises(TimeoutError):  # no ready connection has reached it
            detector.accept()
        newer = world.centre if old == PROD else world.lab
        words = newer.gateways[0].words
        if old == PROD:
            until(lambda: "of a version without Connect" in words(), words)
        (older,) = (world.lab if old == PROD else world.centre).gateways
        assert "Connect" not in older.words()


def test_a_user_of_an_older_consumers_gateway_sees_a_reset_where_nobody_listens(worlds: tuple[World, Role]) -> None:
    world, _ = worlds
    with world.stream([f"{HOST}:{free_ports()}"]) as stream:
        assert is_reset(stream.listeners[0])


def _send(sock: socket.socket) -> str:
    digest = send(sock, MIB)
    sock.shutdown(socket.SHUT_WR)
    return digest
