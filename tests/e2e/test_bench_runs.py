"""``make bench`` as a user runs it, as briefly as possible: what it writes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench import peers
from bench.processes import tree
from support.requirements import missing, needs_root
from support.waiting import until

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0
STALLED = 60
BRIEFLY = f"""
from dataclasses import replace
from bench import __main__ as command, measure
measure.SETTLE = 6.0
command.QUICK = replace(command.QUICK, trips=500, stalled=({STALLED},), losses=("0",), first_bytes=2, wan_seconds=1)
command.main()
"""
"""The benchmark with little load, beside other tests, whose connections never let the kernel's memory become stable."""


class Run:
    """One run of the benchmark, with folders for temporary files and for results of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.results = folder / "results"
        self.process = subprocess.Popen(
            [sys.executable, "-c", BRIEFLY, "--quick", "--runs", "1", "--results", str(self.results), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )

    def end(self) -> tuple[str, str]:
        """Wait for it; gives what it has written."""
        return self.process.communicate(timeout=DEADLINE)

    def descendants(self) -> set[int]:
        return set(tree([self.process.pid])) - {self.process.pid}

    def until_processes(self, count: int) -> set[int]:
        """Wait until it has started so many."""
        until(
            lambda: len(self.descendants()) >= count or self.process.poll() is not None,
            lambda: f"of {count} processes there are {self.descendants()}",
            DEADLINE,
        )
        assert self.process.poll() is None, self.end()
        return self.descendants()


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in (Path("/proc") / str(pid) / "status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return a function that starts a benchmark whose peers are installed; stop those that are left at the end."""
    lacking = peers.missing(["haproxy", "iperf3", "nginx", "ss", "stunnel"])
    if lacking:
        missing(f"not installed: {' '.join(lacking)}")
    started: list[Run] = []

    def start(*options: str) -> Run:
        started.append(Run(tmp_path, *options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.terminate()
        each.process.wait(DEADLINE)


def test_a_run_prints_and_writes_its_rows_and_the_configurations_of_the_peers(run: Callable[..., Run]) -> None:
    one = run(
        *(word for key in ("tls-1", "trips-plain", "trips-tls", "setup") for word in ("--only", key)), "--streams", "3"
    )
    out, err = one.end()
    rows = json.loads((one.results / "latest.json").read_text())
    found = {(row["work"], row["peer"]): row for row in rows}
    for path, peer, reach in (("one hop plain", "HAProxy", 1.5), ("two gateways TLS", "stunnel", 1.25)):
        trips = found[f"{path}: round trip of 64 bytes, p50", peer]
        assert min(trips["ours"] or 0, trips["theirs"] or 0) > 0, err
        assert (trips["reach"], trips["runs"]) == (reach, 1)
    for figure in ("throughput", "CPU time"):
        for peer in ("stunnel", "nginx"):
            bulk = found[f"two gateways TLS, 1 connection: {figure}", peer]
            assert min(bulk["ours"], bulk["theirs"], bulk["ratio"]) > 0
    assert found["two facilities: set-up of a stream", None]["runs"] == 3
    assert one.process.returncode == (1 if any(row["met"] is False for row in rows) else 0)
    assert "sessionResume = no" in out
    assert "PRIVATE KEY" not in out
    assert all(str(row["work"]) in out for row in rows)
    assert "3 of 4: trips-tls (small messages, installed daemons): stunnel, run 1 of 1" in err
    assert list(one.temporary.iterdir()) == []


def test_a_stream_is_measured_alone_and_beside_connections_that_nobody_reads(run: Callable[..., Run]) -> None:
    one = run("--only", "stalled")
    _, err = one.end()
    rows = json.loads((one.results / "latest.json").read_text())
    for kind in ("never read", "read no further than 2 MiB"):
        (speed,) = [row for row in rows if row["work"] == f"beside {STALLED} connections {kind}: throughput"]
        assert min(speed["ours"] or 0, speed["theirs"] or 0) > 0, err
        assert (speed["peer"], speed["reach"]) == ("alone", 0.8)
        (memory,) = [
            row for row in rows if row["work"].startswith(f"beside {STALLED} connections {kind}: kernel memory")
        ]
        assert 256 < memory["ours"] < 16 * 1024, err
    assert list(one.temporary.iterdir()) == []


def test_messages_are_measured_beside_bulk_data_with_one_congestion_control_for_all(run: Callable[..., Run]) -> None:
    needs_root("a network namespace needs root")
    one = run("--only", "beside", "--congestion", "cubic")
    _, err = one.end()
    if "does not allow it" in err:
        pytest.skip(err)
    rows = json.loads((one.results / "cubic" / "latest.json").read_text())
    for many in ("1 connection", "8 connections"):
        path = f"two gateways TLS, messages beside bulk data over {many}"
        for figure, reach in (("round trip of 64 bytes, p50", 1.25), ("round trip of 64 bytes, p99", 1.3)):
            (trips,) = [row for row in rows if row["work"] == f"{path}: {figure}" and row["peer"] == "stunnel"]
            assert min(trips["ours"] or 0, trips["theirs"] or 0) > 0, err
            assert trips["reach"] == reach
        assert all(min(row["ours"], row["theirs"]) > 0 for row in rows if row["work"] == f"{path}: throughput")
    facts = json.loads((one.results / "cubic" / "machine.json").read_text())
    assert facts["congestion control"] == "cubic, of all programs"
    assert list(one.temporary.iterdir()) == []


def id_of_testbed_of(one: Run) -> str:
    """Return the id of the testbed that a run has made, once its router runs."""

    def found() -> str | None:
        for pid in one.descendants():
            with suppress(OSError):  # it has ended meanwhile
                command = (Path("/proc") / str(pid) / "cmdline").read_text().split("\0")
                if "--control" in command:
                    return Path(command[command.index("--control") + 1]).parent.name
        assert one.process.poll() is None, one.end()
        return None

    id: str = until(found, lambda: "no testbed", DEADLINE)
    return id


def left_of(id: str) -> list[Path]:
    """Return the namespaces and the folder of a testbed."""
    return [*Path("/run/netns").glob(f"st{id}-*"), *Path("/run/scistream-testbed").glob(id)]


def test_the_wan_is_measured_and_its_testbed_removed(run: Callable[..., Run]) -> None:
    needs_root("network namespaces need root")
    one = run("--only", "wan")
    id = id_of_testbed_of(one)
    assert left_of(id)
    _, err = one.end()
    if "skipped: " in err:
        pytest.skip(err)
    rows = json.loads((one.results / "latest.json").read_text())
    found = {(row["work"], row["peer"]): row for row in rows}
    path = "WAN of 100 ms, no loss"
    first = found[f"{path}: first byte of a new connection", None]
    assert (first["reach"], first["runs"]) == (115.0, 2), err
    assert first["ours"] >= 100
    not_ready = found[f"{path}, ready = 0: first byte of a new connection", None]
    assert (not_ready["reach"], not_ready["runs"]) == (320.0, 2)
    assert not_ready["ours"] >= 250
    for peer in ("stunnel", "nginx"):
        assert 250 < found[f"{path}: first byte of a new connection", peer]["theirs"] < 1000
        for figure in ("throughput", "CPU time"):
            row = found[f"{path}: {figure}", peer]
            assert min(row["ours"], row["theirs"], row["ratio"]) > 0
    assert left_of(id) == []
    assert list(one.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_testbed_outlives_a_run_that_is_interrupted_or_killed(run: Callable[..., Run], number: int) -> None:
    needs_root("network namespaces need root")
    one = run("--only", "wan")
    id = id_of_testbed_of(one)
    started = one.descendants()
    one.process.send_signal(number)
    one.end()
    until(lambda: not left_of(id), lambda: f"{left_of(id)}", DEADLINE)
    until(lambda: not any(lives(pid) for pid in started), lambda: f"of {started} some still run", DEADLINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_process_and_no_file(run: Callable[..., Run], number: int) -> None:
    one = run("--only", "trips-tls")
    started = one.until_processes(5)
    one.process.send_signal(number)
    _, err = one.end()
    assert one.process.returncode == 1
    assert "interrupted" in err
    assert not any(lives(pid) for pid in started)
    assert list(one.temporary.iterdir()) == []
    assert not one.results.exists()


def test_no_process_outlives_a_run_that_is_killed(run: Callable[..., Run]) -> None:
    one = run("--only", "trips-tls")
    started = one.until_processes(5)
    one.process.kill()
    one.end()
    until(lambda: not any(lives(pid) for pid in started), lambda: f"of {started} some still run", DEADLINE)
