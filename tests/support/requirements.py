"""Requirements of a test. If the machine lacks one, the test is skipped.

If CI is set and the missing program can be installed, the test fails instead.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from scistream.s2ds.relay import mptcp

NOBODY = 65534
"""The user, and the group, who own nothing."""


def needs(*tools: str) -> None:
    """Need these programs."""
    for tool in tools:
        if shutil.which(tool) is None:
            missing(f"the program {tool} is not installed")


def needs_module(name: str) -> ModuleType:
    """Need a module, and give it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the module {name} is not installed")


def needs_ipv6() -> None:
    """Need an IPv6 loopback address, and skip the test without one, also in CI: a kernel cannot be given IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no address ::1")


def needs_mptcp() -> None:
    """Need Multipath TCP, and skip the test on a kernel without it, also in CI: a kernel cannot be given it."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, mptcp.PROTOCOL).close()
    except OSError as problem:
        lack = mptcp.lack() or ""
        if problem.errno == errno.EPROTONOSUPPORT:
            pytest.skip(lack)
        missing(lack)


def needs_root(why: str) -> None:
    """Need root, and skip the test for any other user, also in CI: it runs the tests as root, too."""
    if os.geteuid() != 0:
        pytest.skip(why)


WITHOUT_PRIVILEGES = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
AS_NOBODY = [*WITHOUT_PRIVILEGES, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def unprivileged(folder: Path, python: str | Path = sys.executable) -> list[str]:
    """Return the words to put before a command so that it runs without privileges in `folder`, which becomes its own.

    It runs as a user without rights or, if that user cannot run `python` with the package, as the user of this process
    without any capability.
    """
    if os.getuid() != 0:
        return []
    needs("setpriv")
    if not nobody_can_run(python, "import scistream", folder):
        return WITHOUT_PRIVILEGES
    os.chown(folder, NOBODY, NOBODY)
    return AS_NOBODY


def nobody_can_run(python: str | Path, script: str, folder: Path) -> bool:
    """Return True if a user without rights can run a script with this Python; only root can ask."""
    # `setpriv` lays its privileges down as it gives way to a program, and still finds that one by them.
    asked = [*AS_NOBODY, "env", str(python), "-c", script]
    return subprocess.run(asked, cwd=folder, capture_output=True, timeout=60).returncode == 0


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
