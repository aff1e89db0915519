"""What a test needs of the machine. Where it is missing the test is skipped; where CI is set, it fails."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
from types import ModuleType
from typing import NoReturn

import pytest


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
    """Need an IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        missing("this machine has no address ::1")


def needs_root(why: str) -> None:
    """Need root, and skip the test for any other user, also in CI: it runs the tests as root, too."""
    if os.geteuid() != 0:
        pytest.skip(why)


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
