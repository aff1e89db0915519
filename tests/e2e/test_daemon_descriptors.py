"""Daemons that are started with closed standard descriptors: no socket or pipe of theirs takes such a number."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import free_ports

from support.facilities import HOST
from support.requirements import needs_root
from support.waiting import PATIENCE, until

TWISTD = str(Path(sys.executable).parent / "twistd")


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_of_a_daemon_become_nothing(tmp_path: Path, closed: str) -> None:
    needs_root("only root may look into a process that keeps secrets")
    settings = f'insecure = true\nlisten = "{HOST}:{free_ports()}"\n[[gateways]]\nname = "a"\naddress = "{HOST}:9"\n'
    (tmp_path / "s2cs.toml").write_text(settings)
    log = tmp_path / "log"
    command = [TWISTD, "-n", "--pidfile=", f"--logfile={log}", "s2cs", "--config", str(tmp_path / "s2cs.toml")]
    with subprocess.Popen(["sh", "-c", f"exec {shlex.join(command)} {closed}"], stdin=subprocess.DEVNULL) as daemon:
        try:
            until(lambda: log.exists() and "starting" in log.read_text(), lambda: "it does not start")
            for number in range(3):
                seen = os.readlink(f"/proc/{daemon.pid}/fd/{number}")
                assert not seen.startswith(("anon_inode:", "socket:")), f"descriptor {number} is {seen}"
                if str(number) in closed or (number < 2 and "<>"[number] in closed.replace("2>", "")):
                    assert seen == "/dev/null"
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE) in (0, -signal.SIGTERM)  # it may not have come to its own handlers yet
