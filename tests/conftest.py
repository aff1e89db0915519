"""Fixtures for all tests. This file also makes the modules in this folder importable."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

pytest.register_assert_rewrite("support")

from support.leased_ports import leased  # noqa: E402
from support.programs import many_processes  # noqa: E402

OPEN = Path("/proc/self/fd")
FEW = 8
"""Descriptors that a file of tests may leave open: those of what this process made once and keeps, such as its reactor,
its threads, and fonts."""


SHARED = "SCISTREAM_TESTS_SHARED"
"""The variable that names a folder of all processes of a test run, in which other users may look."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Programs of the tests end by the signals that end programs, even where the tests run in the background."""
    if SHARED not in os.environ:
        os.environ[SHARED] = tempfile.mkdtemp(prefix="scistream-tests-")
        os.chmod(os.environ[SHARED], 0o711)
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(SHARED)))
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


WORKING = ("survival", "demo", "model", "tutorial", "bench_runs", "control_server_faults", "client_faults", "audit")
"""The files that keep a processor busy for longest, which are begun in the first half, so that no worker ends late."""
WAITING = (
    *("paths", "middleboxes", "ready_over_wan", "connect", "proxy", "who_dials", "dialled_limits", "left_networks"),
    *("hostile", "comebacks", "testbed", "unreached", "relay_paths", "stalled", "output_lost", "wan_toxics"),
    *("certificates", "elements", "probe", "relay", "reset_reasons", "programs", "backends", "reloading", "places"),
    *("one_side_gone",),
)
"""The files that wait for most of their time, the longest first, which are begun in the first three quarters. Side by
side they would leave the processors idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mix files that work, files that wait and short ones; put what looks at the other tests of its file after them."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    working, waiting = _named(WORKING, files), _named(WAITING, files)
    short = [file for file in files if file not in {*working, *waiting}]
    place = {
        file: share * index / len(kind)
        for kind, share in ((waiting, 0.75), (working, 0.5), (short, 1.0))
        for index, file in enumerate(kind)
    }
    items[:] = [
        item
        for file in sorted(place, key=lambda file: place[file])
        for item in sorted(files[file], key=lambda item: item.get_closest_marker("after_the_others") is not None)
    ]


def _named(names: tuple[str, ...], files: Iterable[Path]) -> list[Path]:
    """Return those of the files that have one of these names, in their order."""
    places = {f"test_{name}": place for place, name in enumerate(names)}
    return sorted((file for file in files if file.stem in places), key=lambda file: places[file.stem])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Rewrite the asserts of a share of the files, so that not each worker does it for all of them."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or sys.dont_write_bytecode:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    for file in sorted(Path(__file__).parent.rglob("test_*.py"))[number::count]:
        compiled = rewrite.get_cache_dir(file) / f"{file.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(file, compiled) is None and rewrite.try_makedirs(compiled.parent):
            status, code = rewrite._rewrite_test(file, session.config)
            rewrite._write_pyc(session.config.stash[rewrite.assertstate_key], code, status, compiled)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[None]:
    """Fork the project's commands, which takes little time, instead of executing them."""
    with many_processes():
        yield


@pytest.fixture(scope="session", autouse=True)
def _core_files() -> Iterator[None]:
    """Keep this process able to have core files: commands called within it would end that for all tests after them."""
    own, setrlimit = os.getpid(), resource.setrlimit

    def set_other_limits(number: int, limits: tuple[int, int]) -> None:
        if number != resource.RLIMIT_CORE or os.getpid() != own:
            setrlimit(number, limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "setrlimit", set_other_limits)
        yield


def pytest_collection_finish() -> None:
    """Keep modules and tests, which stay to the end, out of all garbage collections: most of their time went there."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _descriptors_closed() -> Iterator[None]:
    """Fail the last test of a file whose tests leave descriptors open: hundreds of files share one process."""
    before = _descriptors()
    yield
    if len(_descriptors() - before) > FEW:
        gc.collect()
    left = _descriptors() - before
    if len(left) > FEW:
        shown = "\n".join(sorted(what for _, what in left))
        pytest.fail(f"the tests of this file have left {len(left)} descriptors open:\n{shown}", pytrace=False)


def _descriptors() -> set[tuple[int, str]]:
    """Return the open descriptors of this process and their kinds, without its leases of ports, which it keeps."""
    found: set[tuple[int, str]] = set()
    if not OPEN.exists():
        return found  # gateways run on Linux alone, and so do the tests that open many
    for descriptor in map(int, os.listdir(OPEN)):
        try:
            found.add((descriptor, str((OPEN / str(descriptor)).readlink())))
        except FileNotFoundError:
            continue  # it was that of the list itself
    return {one for one in found if one[0] not in leased.descriptors()}
