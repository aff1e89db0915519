"""The commands of docs/tutorial.rst as they stand there, from the wheel, typed by an unprivileged user.

Its two machines are two network namespaces with a cable between them. ``scp`` is a stand-in that copies between the
home folders of the two.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import scistream
from support.lone_network import own_folder, run_alone
from support.requirements import needs
from support.typed_commands import scripts, typed

PAGE = Path(scistream.__file__).parents[1] / "docs" / "tutorial.rst"
HOSTS = {"lab": "lab.example", "ada": "lab.example", "centre": "centre.example"}
"""The machine of each terminal."""

TWO_MACHINES = """
ip link set lo up
unshare --net sleep infinity & centre=$!
until [ "$(readlink /proc/$centre/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link add cable type veth peer name cable netns $centre
ip addr add 192.0.2.10/24 dev cable
ip link set cable up
ip route add 198.51.100.0/24 dev cable
there="nsenter --target $centre --net"
$there ip link set lo up
$there ip addr add 198.51.100.20/24 dev cable
$there ip link set cable up
$there ip route add 192.0.2.0/24 dev cable
mount --bind hosts /etc/hosts
export PATH="$PWD/bin:$PATH" STEPS="$PWD/steps" HOMES="$PWD"
HOME="$PWD/lab.example" $PLAIN bash -em lab >lab.log 2>&1 & lab=$!
HOME="$PWD/lab.example" $PLAIN bash -em ada >ada.log 2>&1 & ada=$!
HOME="$PWD/centre.example" $there $PLAIN bash -em centre >centre.log 2>&1 & end=$!
wait $lab && wait $ada && wait $end
"""
SCP = """#!/bin/sh
# A stand-in for scp: it copies FILE to HOST:PATH, where a host is a home folder.
exec cp "$1" "$HOMES/${2%%:*}/${2#*:}"
"""


def test_the_commands_of_the_tutorial_lead_to_a_stream_between_two_machines(linux: None, installed: Path) -> None:
    needs("curl", "sha256sum")
    _, page = PAGE.read_text().split("\nThen make an empty folder")
    commands = typed(page)
    assert {command.terminal for command in commands} == set(HOSTS)
    waits = {"s2uc request": "ls joins/*.cons >/dev/null 2>&1"}
    with own_folder() as folder:
        for name in ("steps", "bin", *set(HOSTS.values())):
            (folder / name).mkdir()
        (folder / "bin" / "scp").write_text(SCP)
        (folder / "bin" / "scp").chmod(0o755)
        (folder / "hosts").write_text("127.0.0.1 localhost\n192.0.2.10 lab.example\n198.51.100.20 centre.example\n")
        for terminal, script in scripts(commands, waits).items():
            (folder / terminal).write_text(script)
        run_alone(folder, TWO_MACHINES, installed)
        said = {terminal: (folder / f"{terminal}.log").read_text() for terminal in HOSTS}
        sent, come = (
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("lab.example/stream/frames/scan.raw", "centre.example/stream/scan.raw")
        )
    assert sent == come
    assert f"{sent}  frames/scan.raw" in said["lab"]
    assert f"{come}  scan.raw" in said["centre"]
    assert "FAILED" not in said["ada"]
    assert len(re.findall(r"^ok ", said["ada"], re.MULTILINE)) > 5, "the probe has checked the path"
    assert re.search(r"^198\.51\.100\.20:\d+ --> 192\.0\.2\.10:\d+$", said["ada"], re.MULTILINE)
    assert re.search(r"^192\.0\.2\.10:\d+ --> 192\.0\.2\.10:7000$", said["ada"], re.MULTILINE)
    assert re.search(r"^released [-0-9a-f]{36}", said["ada"], re.MULTILINE)
