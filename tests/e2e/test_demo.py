"""``scistream demo`` as a user runs it: two whole facilities, a stream, its summary, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner

from scistream.demo.cli import demo
from support.requirements import unprivileged
from support.waiting import until

DEADLINE = 120.0
MARK = "SCISTREAM_TEST_MARK"
CONSUMER = f"{sys.executable} -P -m scistream.demo.consumer"
DETECTOR = f"{sys.executable} -P -m scistream.demo.detector"
LASTING = ("--seconds", "600", "--num-conn", "2", "--rate", "100Mbit")
"""Options of a run that a test ends: it takes little of the processors that other tests need."""
SERVER = f"{sys.executable} -P -c from twisted.scripts.twistd"


class Run:
    """One run of the demonstration, in a session, an environment and a folder for temporary files of its own."""

    def __init__(self, folder: Path, *options: str, launcher: Sequence[str] = (), before: str = "", **env: str) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.temporary.chmod(0o777)  # whoever runs it
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-c", f"{before}\nfrom scistream.demo.cli import demo; demo()", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=folder,
            env={
                **os.environ,
                MARK: self.mark,
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
                **env,
            },
        )

    def descendants(self) -> dict[int, str]:
        """Every other process that has inherited this run's mark: its pid and its command line.

        The servers keep their environment from all but root; the configuration file that they are given tells them.
        """
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line and (  # threads of the kernel have none
                        str(self.temporary) in line
                        or f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                    ):
                        found[int(entry.name)] = line
                except OSError:
                    continue
        return found

    def find(self, start: str, part: str = "") -> int:
        """Return the pid of the first process whose command line starts with `start` and contains `part`, or 0."""
        found = (pid for pid, line in self.descendants().items() if line.startswith(start) and part in line)
        return next(found, 0)

    def wait_until_streaming(self) -> None:
        """Wait until the consumer has been started, which means that the stream is there."""
        self.wait_for(lambda: self.find(CONSUMER))

    def wait_for(self, what: Callable[[], object], seconds: float = DEADLINE) -> None:
        def is_so() -> object:
            assert self.process.poll() is None, self.process.communicate(timeout=DEADLINE)
            return what()

        until(is_so, self.descendants, seconds)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    def clean_up(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)
        for pid in self.descendants():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*options: str, **how: Any) -> Run:
        runs.append(Run(how.pop("folder", tmp_path), *options, **how))
        return runs[-1]

    yield start
    for one in runs:
        one.clean_up()


def test_every_frame_arrives_and_nothing_is_left(run: Callable[..., Run]) -> None:
    total = (16 << 20) + 5
    one = run("--bytes", str(total), "--num-conn", "3", "--json")
    status, out, err = one.end()
    assert status == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["bytes"] == total
    assert (summary["frames"], summary["frames_lost"]) == (17, 0)
    assert summary["sha256_sent"] == summary["sha256_received"]
    assert summary["released"] is True
    assert summary["gbit_per_s"] > 0
    assert 0 < summary["setup_seconds"] < DEADLINE
    assert one.descendants() == {}
    assert list(one.temporary.iterdir()) == []


def test_an_unprivileged_user_needs_no_setting_for_it_and_is_told_the_summary(run: Callable[..., Run]) -> None:
    with TemporaryDirectory() as folder:  # pytest's own are closed to other users
        options = ["--seconds", "1", "--num-conn", "1", "--rate", "1Gbit"]
        one = run(*options, folder=Path(folder), launcher=unprivileged(Path(folder)))
        status, out, err = one.end()
        assert status == 0, err
        (arrived,) = re.findall(r"(\d+) arrived, 0 lost", out)
        assert int(arrived) > 1
        assert "equal at both ends" in out
        assert "yes, on both sides" in out
        assert "Streaming" in err
        one.clean_up()


def test_a_signal_in_the_middle_leaves_nothing(run: Callable[..., Run]) -> None:
    one = run(*LASTING)
    one.wait_until_streaming()
    one.process.send_signal(signal.SIGTERM)
    status, _, err = one.end()
    assert status == 1
    assert err.splitlines()[-1] == "scistream demo: stopped by SIGTERM; every process that it started has ended"
    assert "Traceback" not in err
    assert one.descendants() == {}
    assert list(one.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_servers_start_leaves_nothing(run: Callable[..., Run], number: signal.Signals) -> None:
    one = run(*LASTING)
    one.wait_for(lambda: one.find(SERVER))
    one.process.send_signal(number)
    status, _, err = one.end()
    assert status == 1
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in err
    assert one.descendants() == {}


@pytest.mark.parametrize("server", ["lab/s2ds.toml", "centre/s2cs.toml"])
def test_a_server_that_dies_is_named_with_its_last_words(run: Callable[..., Run], server: str) -> None:
    one = run(*LASTING)
    one.wait_until_streaming()
    os.kill(one.find(SERVER, server), signal.SIGKILL)
    status, _, err = one.end()
    assert status == 1
    name = server.removesuffix(".toml").replace("/", "-")
    assert err.splitlines()[-1] == f"scistream demo: {name} ended unexpectedly (SIGKILL)"
    assert "party=" in err
    assert one.descendants() == {}


@pytest.mark.parametrize(("program", "name"), [(CONSUMER, "consumer"), (DETECTOR, "detector")])
def test_a_program_that_dies_is_no_success(run: Callable[..., Run], program: str, name: str) -> None:
    one = run(*LASTING)
    one.wait_until_streaming()
    os.kill(one.find(program), signal.SIGKILL)
    status, _, err = one.end()
    assert status == 1
    assert name in err.splitlines()[-1]
    assert "Traceback" not in err
    assert one.descendants() == {}


def test_even_if_it_is_killed_nothing_goes_on_and_nothing_of_the_user_is_read_or_written(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    one = run(*LASTING, XDG_STATE_HOME=str(tmp_path / "state"), SCISTREAM_JOIN="the-user-s-own")
    one.wait_until_streaming()
    if os.geteuid() == 0:  # only root may look into processes that keep secrets
        known = one.descendants()
        assert len(known) >= 6, known
        for pid in known:
            assert b"the-user-s-own" not in Path(f"/proc/{pid}/environ").read_bytes(), known[pid]
    one.process.kill()
    one.process.wait(DEADLINE)
    until(lambda: not one.descendants(), one.descendants, 20)
    assert not (tmp_path / "state").exists()


TAKE = """
import socket
from scistream.demo import facilities
choose, chosen = facilities.DemoPorts.take, []
def take(self, count=1):
    first = choose(self, count)
    chosen.append(socket.create_server((facilities.HOST, first)) if len(chosen) == {} else None)
    return first
facilities.DemoPorts.take = take
"""
"""Another program that takes one of the ports, by the order of their choice, before it is used."""


@pytest.mark.parametrize(
    ("number", "problem", "words"),
    [
        (1, "listen", "lab-s2ds ended unexpectedly (status 2)"),
        (2, "other programs use all these ports", "lab-s2ds ended unexpectedly (status 2)"),
        (6, "listen", "the detector ended"),
    ],
    ids=["S2DS", "range", "detector"],
)
def test_a_port_that_another_program_takes_is_named(
    run: Callable[..., Run], number: int, problem: str, words: str
) -> None:
    status, _, err = run("--bytes", "1M", "--num-conn", "1", before=TAKE.format(number)).end()
    assert status == 1
    *_, reason, last = err.splitlines()
    assert "127.0.0.1" in reason
    assert problem in reason
    assert last.startswith(f"scistream demo: {words}")
    assert "Traceback" not in err


LIMITS = """
from scistream import timing
timing.DEMO_START = timing.DEMO_STEP = {}
timing.DEMO_BYTES = timing.DEMO_STOP = 2.0
"""


def test_a_detector_that_falls_silent_ends_the_demonstration(run: Callable[..., Run]) -> None:
    one = run(*LASTING, before=LIMITS.format(30.0))
    one.wait_until_streaming()
    os.kill(one.find(DETECTOR), signal.SIGSTOP)
    status, _, err = one.end()
    assert status == 1
    assert err.splitlines()[-1] == "scistream demo: no byte has arrived within 2 s"
    assert one.descendants() == {}


def test_a_facility_that_falls_silent_ends_the_demonstration(run: Callable[..., Run]) -> None:
    one = run(*LASTING, before=LIMITS.format(8.0))
    one.wait_for(lambda: one.find(SERVER, "centre/s2cs.toml"))
    os.kill(one.find(SERVER, "centre/s2cs.toml"), signal.SIGSTOP)
    status, _, err = one.end()
    assert status == 1
    assert err.splitlines()[-1].startswith("scistream demo: ")
    assert "Traceback" not in err
    assert one.descendants() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seconds", "1", "--bytes", "1M"), "exclude each other"),
        (("--rate", "fast"), "--rate"),
        (("--bytes", "many"), "--bytes"),
        (("--num-conn", "0"), "--num-conn"),
        (("--seconds", "-1"), "--seconds"),
    ],
)
def test_options_that_make_no_sense_are_bad_usage(options: tuple[str, ...], words: str) -> None:
    refused = CliRunner().invoke(demo, options)
    assert refused.exit_code == 2
    assert words in refused.stderr
