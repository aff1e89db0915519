"""A large download with curl, and a tree of files with rsync, each from a server that appctrl starts."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

import pytest
from harness import World, free_ports

from support.applications import MIB, noise
from support.facilities import HOST
from support.requirements import needs

pytestmark = pytest.mark.usefixtures("nothing_left")

LARGE = 256 * MIB
MOST_MEMORY = 64 * MIB
"""What a gateway may have grown by when a download that is much larger has passed through it."""


def write_large_file(path: Path) -> str:
    """256 MiB, mostly holes, in which no two MiB are alike; its SHA-256."""
    digest, rest = hashlib.sha256(), bytes(MIB - 4096)
    with open(path, "wb") as file:
        for number in range(LARGE // MIB):
            start = noise(4096, seed=number)
            file.seek(number * MIB)
            file.write(start)
            digest.update(start)
            digest.update(rest)
        file.truncate(LARGE)
    return digest.hexdigest()


def write_tree(root: Path) -> None:
    """Write some hundred files of many sizes in folders, and a link."""
    chance = random.Random(0)
    for number in range(300):
        folder = root / f"run-{number % 7}" / f"part-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = chance.choice([0, 1, 4095, 65537]) if number % 10 else 2 * MIB
        (folder / f"frame {number}.raw").write_bytes(chance.randbytes(size))
    (root / "latest").symlink_to("run-6")


def digests(root: Path) -> dict[str, str]:
    """Return the contents of a tree: the digest of each file and the target of each link."""
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_curl_fetches_a_large_file(world: World, tmp_path: Path) -> None:
    needs("curl", "sha256sum")
    expected = write_large_file(tmp_path / "large.raw")
    port = free_ports()
    before = world.footprint()
    serve = [sys.executable, "-m", "http.server", "--bind", HOST, "--directory", str(tmp_path), str(port)]
    fetch = "curl --silent --show-error --fail http://{host}:{port}/large.raw | sha256sum"
    with world.request(rate="50Gbit") as requested:
        server = world.prod(requested.join["PROD"], [f"{HOST}:{port}"], serve)
        client = world.cons(requested.join["CONS"], ["sh", "-c", fetch])
        requested.streaming()
        assert client.end().stdout.split()[0] == expected
        grown = world.footprint().grown(before)
        assert max(grown.values()) < MOST_MEMORY, grown
    assert server.process.poll() is None, "the program outlives its stream"
    server.stop()


def test_rsync_copies_a_tree_of_files(world: World, tmp_path: Path) -> None:
    needs("rsync")
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_tree(source)
    port = free_ports()
    settings = tmp_path / "rsyncd.conf"
    as_ourselves = f"uid = {os.geteuid()}\ngid = {os.getegid()}\n" if os.geteuid() == 0 else ""
    settings.write_text(
        f"port = {port}\naddress = {HOST}\nuse chroot = no\nlog file = {tmp_path}/rsyncd.log\n{as_ourselves}"
        f"[run]\npath = {source}\nread only = yes\n"
    )
    serve = ["rsync", "--daemon", "--no-detach", f"--config={settings}"]
    with world.request() as requested:
        server = world.prod(requested.join["PROD"], [f"{HOST}:{port}"], serve)
        client = world.cons(requested.join["CONS"], ["rsync", "-a", "rsync://{host}:{port}/run/", f"{copy}/"])
        requested.streaming()
        client.end()
    server.stop()
    found = digests(copy)
    assert len(found) == 301
    assert found == digests(source)
