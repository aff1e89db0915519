"""Fixtures for all unit tests. This file also makes the modules in this folder importable."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import scistream.s2ds.settings
from scistream.resources import memory, processors, tcp_memory

if TYPE_CHECKING:
    from support.memory_facilities import World

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def _states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that no other test has, not yet made."""
    root = tmp_path_factory.mktemp("states")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_memory(_states: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the list of streams of whoever runs it, and none sees another's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(next(_states)))


@pytest.fixture(scope="session", autouse=True)
def _resources_read_once() -> Iterator[None]:
    """Read once what this process may use of the machine, and not at each start of one of hundreds of gateways."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (memory, processors, tcp_memory):
            patch.setattr(scistream.s2ds.settings, function.__name__, cache(function))
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two facilities in memory."""
    from support.memory_facilities import World

    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system know no IPv6, as a kernel that was built without it."""

    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr("socket.socket", WithoutIPv6)
