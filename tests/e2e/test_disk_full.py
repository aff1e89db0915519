"""The disk that holds an S2CS's store is full.

Requests are refused, nothing is half there, and all goes on when there is room. The disk is a tmpfs of the test.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import World, assert_same
from small_disk import Disk, small_disk

from support.applications import address_of, listen
from support.waiting import until

CANNOT = "the store of this S2CS cannot be written"
WRITES_AGAIN = 30.0
"""An S2CS looks at what it could not write as often as it hears from its gateways."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def world(disk: Disk, tmp_path: Path) -> Iterator[World]:
    """Run a world in which only the store of the lab is on that disk."""
    folder = tmp_path / "world"
    folder.mkdir()
    store = disk.folder / "s2cs.sqlite"
    settings = {"state": str(store), "audit": str(folder / "audit.jsonl")}
    world = World(folder, lab={"settings": settings}, timing={"POLL": 1.0})
    world.lab.store = store
    with world:
        with world.request():
            pass  # a first stream leaves what the later ones find there
        yield world
        disk.clear()


@pytest.fixture
def program() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


def refused(world: World, *options: str) -> str:
    """Return the error of a request that is refused."""
    ended = world.s2uc("request", *options, check=False)
    assert ended.returncode == 1, ended
    return ended.stderr


def is_sound(world: World) -> None:
    checked = world.run(str(world.programs / "scistream"), "store", "check", str(world.lab.store))
    assert "the store is sound" in checked.stdout


def test_a_request_on_a_full_disk_is_refused_and_its_uid_can_be_asked_for_when_there_is_room(
    world: World, disk: Disk
) -> None:
    uid = str(uuid.uuid4())
    within = ["--prod", world.lab.s2cs, "--cons", world.lab.s2cs, "--uid", uid]
    before = world.footprint()
    disk.fill()
    for _ in range(3):
        said = refused(world, *within)
        assert "no-capacity" in said
        assert f"{CANNOT}, so it accepts no new streams: tell its operator" in said
        assert_same(before, world.footprint)
        assert uid not in {key[0] for key in world.lab.states()}
        is_sound(world)
    disk.clear()
    again = world.request(1, "1Gbit", "--uid", uid, prod=world.lab, cons=world.lab)
    assert again.uid == uid
    assert again.state("PROD") == "Listening"
    again.release()
    is_sound(world)


def test_a_side_that_cannot_write_makes_the_other_side_let_go(world: World, disk: Disk) -> None:
    before = world.footprint()
    disk.fill()
    said = refused(world, "--prod", world.lab.s2cs, "--cons", world.centre.s2cs)
    assert f"producer side: {CANNOT}" in said
    assert_same(before, world.footprint)


def test_a_hello_on_a_full_disk_is_refused_and_comes_through_when_there_is_room(
    world: World, disk: Disk, program: socket.socket
) -> None:
    request = world.request()
    disk.fill()
    ended = world.prod(request.join["PROD"], [address_of(program)]).end(status=1)
    assert f"{CANNOT}, so this Hello was not recorded" in ended.stderr
    assert request.state("PROD") == "Listening"
    disk.clear()
    world.prod(request.join["PROD"], [address_of(program)]).end()
    request.streaming()
    request.release()


def test_targets_that_cannot_be_written_down_are_refused_and_both_sides_released(
    world: World, disk: Disk, program: socket.socket
) -> None:
    before = world.footprint()
    request = world.request(prod=world.centre, cons=world.lab)
    disk.fill()
    world.prod(request.join["PROD"], [address_of(program)])
    ended = request.program.end(status=1)
    assert f"consumer side: {CANNOT}, so the old targets stay" in ended.stderr
    disk.clear()
    assert_same(before, world.footprint, WRITES_AGAIN)


def test_a_release_goes_through_on_a_full_disk_and_is_written_down_when_there_is_room(
    world: World, disk: Disk, program: socket.socket
) -> None:
    before = world.footprint()
    with world.stream([address_of(program)]) as stream:
        disk.fill()
    held = world.footprint()
    assert held.ports == before.ports
    assert stream.requested.state("PROD") == "Streaming", "the disk knows no better"
    assert stream.requested.state("CONS") == "Released"
    disk.clear()
    until(lambda: stream.requested.state("PROD") == "Released", world.lab.server.words, WRITES_AGAIN)
    assert_same(before, world.footprint)
    is_sound(world)


def test_an_s2cs_that_is_killed_on_a_full_disk_finds_its_streams_there_again(
    world: World, disk: Disk, program: socket.socket
) -> None:
    with world.stream([address_of(program)]) as stream:
        disk.fill()
        world.lab.server.kill()
        is_sound(world)
        world.lab.server.start()
        world.lab.server.wait_until_ready()
        world.lab.wait_for_links()
        assert stream.requested.state("PROD") == "Streaming"
        with stream.connect() as sock:
            sock.sendall(b"goes on")
        disk.clear()
    assert stream.requested.state("PROD") == "Released"
    is_sound(world)
