"""Fixtures of the end-to-end tests: see `harness`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from harness import World

from support.programs import executed_programs
from support.wheel import installed_wheel


@pytest.fixture(scope="session")
def linux() -> None:
    """Gateways run on Linux, and so do these tests."""
    if sys.platform != "linux":
        pytest.skip("gateways run on Linux")


@pytest.fixture(scope="session", autouse=True)
def _forked(fork_server: None) -> None:
    """Fork the project's commands."""


@pytest.fixture
def executed() -> Iterator[None]:
    """Execute the commands of the test instead of forking them."""
    with executed_programs():
        yield


@pytest.fixture(scope="session")
def installed() -> Path:
    """Return the folder of the commands in an environment that has only the wheel and its dependencies."""
    return installed_wheel(Path(os.environ["SCISTREAM_TESTS_SHARED"]) / "wheel")


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two facilities with one gateway each, shared by the tests of a file."""
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def fresh_world(linux: None, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Return a function that makes a world for one test: ``fresh_world(lab={"gateways": 2})``."""
    with ExitStack() as worlds:

        def make(**options: Any) -> World:
            folder = tmp_path / f"world-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return worlds.enter_context(World(folder, **options))

        yield make


@pytest.fixture
def nothing_left(world: World) -> Iterator[None]:
    """Check that the test leaves no descriptor, port, stream or memory behind in any daemon of the world."""
    with world.unchanged():
        yield


@pytest_twisted.async_yield_fixture
async def make(linux: None) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that makes streams over two gateways of the test (see `gateways`); check what they leave."""
    from gateways import streams

    async with streams() as make_one:
        yield make_one
