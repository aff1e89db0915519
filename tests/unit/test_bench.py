"""The benchmark's arithmetic, its configurations of the peers, and its measurements of processes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import arrivals, congestion, expectations, load, peers, processes, report
from bench.__main__ import PAGE, main
from bench.errors import SkippedError
from bench.peers import FAR_NAME, Certificates, Endpoints, Program
from bench.profiles import FULL, QUICK
from bench.rows import CPU, FIRST_BYTE, MEMORY, P50, THROUGHPUT, Figure, Row, absolute, failed, is_met, paired
from bench.workloads import Comparison, all_works
from scistream.pki.authority import init_authority, issue
from scistream.s2ds.relay import mptcp
from support.requirements import missing
from support.waiting import until

PROMISED = {"work", "peer", "ours", "theirs", "ratio", "reach", "met", "runs"}


@pytest.mark.parametrize(
    ("value", "reach", "figure", "met"),
    [
        (0.95, 1.0, THROUGHPUT, True),
        (0.949, 1.0, THROUGHPUT, False),
        (7.0, 1.0, THROUGHPUT, True),
        (1.05, 1.0, CPU, True),
        (1.051, 1.0, CPU, False),
        (0.1, 1.0, CPU, True),
        (84.0, 80.0, MEMORY, True),
        (84.1, 80.0, MEMORY, False),
        (115.0, 115.0, FIRST_BYTE, True),
        (115.1, 115.0, FIRST_BYTE, False),
    ],
)
def test_a_row_is_met_within_the_tolerance_of_its_figure(value: float, reach: float, figure: Figure, met: bool) -> None:
    assert is_met(value, reach, figure) is met


def test_the_ratio_is_the_median_over_pairs_and_not_that_of_the_medians() -> None:
    row = paired("a hop", THROUGHPUT, "nginx", [(1.0, 2.0), (10.0, 5.0), (3.0, 9.0)], 1.0)
    assert (row.ours, row.theirs) == (3.0, 5.0)
    assert row.ratio == 0.5  # of 0.5, 2 and 0.333
    assert row.met is False
    assert row.runs == 3


def test_less_is_better_for_time_and_memory() -> None:
    assert paired("a hop", CPU, "nginx", [(1.0, 2.0)], 1.0).met is True
    assert paired("a hop", P50, "nginx", [(2.0, 1.0)], 1.5).met is False
    assert absolute("a hop", MEMORY, [20.0], 24.0).met is True
    assert absolute("a hop", MEMORY, [30.0], 24.0).met is False


def test_rows_to_look_at_are_neither_met_nor_missed() -> None:
    assert paired("a hop", THROUGHPUT, "socat", [(1.0, 2.0)], None).met is None
    assert failed("a hop", THROUGHPUT, "socat", None).met is None


def test_what_could_not_be_measured_is_missed() -> None:
    row = failed("a hop", THROUGHPUT, "nginx", 1.0)
    assert row.met is False
    assert row.runs == 0
    assert report.words(row)[2:] == ["-", "-", "-", ">= 1 x", "MISSED", "0"]


def some_rows() -> list[Row]:
    return [
        paired("one hop plain, 1 connection", THROUGHPUT, "nginx", [(9.0, 10.0)], 1.0),
        paired("one hop plain, 1 connection", CPU, "nginx", [(0.9, 1.0)], 1.0),
        paired("one hop plain", P50, "socat", [(0.9, 1.0)], None),
        absolute("one hop plain", MEMORY, [20.5], 24.0),
    ]


def test_the_table_says_every_figure_its_ratio_and_whether_it_is_met() -> None:
    out = Console(file=io.StringIO(), width=200)
    out.print(report.table(some_rows()))
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (line,) = (line for line in lines if "throughput" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "one hop plain, 1 connection: throughput",
        "nginx",
        "9 Gbit/s",
        "10 Gbit/s",
        "0.90",
        ">= 1 x",
        "MISSED",
        "1",
    ]
    assert any("20.5 KiB" in line and "<= 24 KiB" in line for line in lines)
    assert any("2 of 3 targets met" in line for line in lines)


def test_results_are_written_as_promised_and_read_again(tmp_path: Path) -> None:
    written = report.save(some_rows(), {"processor": "one"}, tmp_path)
    found = json.loads((tmp_path / "latest.json").read_text())
    assert all(set(row) >= PROMISED for row in found)
    assert report.load(tmp_path) == (some_rows(), {"processor": "one"})
    if (tmp_path / "latest.svg") in written:
        assert (tmp_path / "latest.png").read_bytes().startswith(b"\x89PNG")
        assert "SciStream" in (tmp_path / "latest.svg").read_text()


def test_the_plot_has_each_program_once() -> None:
    rows = [*some_rows(), paired("one hop plain, 1 connection", THROUGHPUT, "socat", [(9.0, 3.0)], None)]
    assert report.bars(rows, THROUGHPUT) == {
        "one hop plain, 1 connection": {"SciStream": 9.0, "nginx": 10.0, "socat": 3.0}
    }
    assert report.bars(rows, MEMORY) == {}


@pytest.mark.parametrize("kind", ["", *(f" with {name}" for name in congestion.NAMES)])
def test_the_page_of_documentation_takes_a_result_in_and_changes_nowhere_else(kind: str) -> None:
    page = PAGE.read_text()
    once = report.into_page(page, some_rows(), {"processor": "one"}, kind)
    assert report.into_page(once, some_rows(), {"processor": "one"}, kind) == once
    assert "     - 9 Gbit/s\n" in once
    assert ":processor: one\n" in once
    assert once.partition(report.BEGIN.format(kind))[0] == page.partition(report.BEGIN.format(kind))[0]
    assert once.partition(report.END.format(kind))[2] == page.partition(report.END.format(kind))[2]


def test_expectations_follow_from_the_larger_cost_of_a_byte() -> None:
    rows = [
        paired("two gateways TLS, 1 connection", CPU, "nginx", [(0.8, 1.0)], 1.0),
        paired("two gateways TLS, 8 connections", CPU, "nginx", [(1.0, 1.0)], 1.0),
        paired("one hop plain, 8 connections", CPU, "nginx", [(9.0, 1.0)], 1.0),
    ]
    assert expectations.cost_of(rows) == 1.0
    assert expectations.processors(100, 0.5) == 9  # 12.5 GB/s x 0.5 s/GB / 0.7
    words = expectations.expectations(rows)
    assert "one gateway needs 0.5 s for 1 GB" in words
    assert "1 / 0.5 = 2 GB/s = 16 Gbit/s" in words
    with pytest.raises(ValueError, match="tls-1"):
        expectations.expectations(rows[2:])


def test_the_expectations_of_the_page_are_those_of_its_table() -> None:
    page = PAGE.read_text()
    table = page.partition(report.BEGIN.format(""))[2].partition(report.END.format(""))[0]
    costs = re.findall(r"\* - (two gateways TLS, \d connections?: CPU time)\n +- stunnel\n +- ([0-9.]+) s/GB\n", table)
    assert len(costs) == 2
    rows = [Row(work, "stunnel", float(cost), None, None, None, None, 1, "s/GB", "lower") for work, cost in costs]
    begin, end = expectations.BEGIN, expectations.END
    assert report.between(page, begin, end, expectations.expectations(rows)) == page


def test_the_works_and_what_they_reach_are_those_of_the_page() -> None:
    page = PAGE.read_text()
    workloads = all_works(3, 0)
    assert len({work.key for work in workloads}) == len(workloads)
    for work in workloads:
        assert f"``{work.key}``" in page
        assert work.failed_rows(), "each has a target"
        for row in work.failed_rows():
            assert report.words(row)[5] in page


def test_a_quick_run_leaves_out_only_peers_without_a_target() -> None:
    for work in all_works(3, 0):
        if isinstance(work, Comparison):
            wanted = {peer for reach in work.figures.values() for peer in reach}
            assert wanted < set(work.contestants(QUICK)) <= set(work.contestants(FULL)) == set(work.paths)
            assert work.contestants(QUICK)[0] == "SciStream"


def test_programs_that_are_missing_are_named_with_the_packages_that_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peers, "ADMINISTRATORS", ())
    found = CliRunner().invoke(main, ["--only", "plain-1", "--quick", "--results", str(tmp_path / "results")])
    assert found.exit_code == 2
    assert "apt-get install --no-install-recommends haproxy iperf3 nginx-light libnginx-mod-stream" in found.output
    assert not (tmp_path / "results").exists()


def test_help_explains_every_work() -> None:
    found = CliRunner().invoke(main, ["--help"])
    assert found.exit_code == 0
    for work in all_works(3, 0):
        assert f"  {work.key:13} {work.about}" in found.output


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    authority = init_authority(tmp_path / "pki", "Bench").certificate
    near = issue(tmp_path / "pki", "user", "near@bench.example")
    return Certificates(authority, near, issue(tmp_path / "pki", "server", FAR_NAME))


TWO = [Endpoints(20001, 20002, 20003), Endpoints(20004, 20005, 20006, ("127.0.0.2", "127.0.0.3", "127.0.0.4"))]
"""Two paths through the same processes, one of them between other addresses."""


def program_of(name: str, certificates: Certificates) -> list[Program]:
    if peers.missing([name]):
        missing(f"{name} is not installed")
    endpoints = Endpoints(20001, 20002, 20003)
    if name == "haproxy":
        return [peers.haproxy(endpoints), *peers.haproxy_pair(TWO, certificates)]
    return [peers.nginx(endpoints), *peers.nginx_pair(TWO, certificates)]


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_the_peers_accept_their_configurations(name: str, certificates: Certificates, tmp_path: Path) -> None:
    check = {"haproxy": ["-c"], "nginx": ["-t"]}[name]
    for program in program_of(name, certificates):
        folder = tmp_path / program.name
        program.write(folder)
        found = subprocess.run(
            [*program.command(folder), *check], capture_output=True, text=True, check=False, timeout=60
        )
        assert found.returncode == 0, found.stderr
        assert "deprecated" not in found.stderr


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_configurations_are_shown_without_keys(name: str, certificates: Certificates) -> None:
    for program in program_of(name, certificates):
        assert "PRIVATE" not in program.shown()
        assert "20001" in program.shown() or "20003" in program.shown()


def test_cpu_time_and_memory_of_descendants_count() -> None:
    work = "sum(range(10**7)); held = bytearray(64 * 2**20); print(flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert len(processes.tree([parent.pid])) == 2
        assert processes.memory_kib([parent.pid]) > 64 * 1024
        alive = processes.cpu_seconds([parent.pid])
        assert alive > 0
        assert processes.cpu_seconds([parent.pid]) >= alive
        parent.communicate(b"\n", timeout=60)


def test_the_cpu_time_of_descendants_that_ended_is_not_lost() -> None:
    before = processes.cpu_seconds([os.getpid()])
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True, timeout=60)
    used = os.times()
    assert processes.cpu_seconds([os.getpid()]) > before
    assert used.children_user > 0


def test_a_listener_is_seen_without_a_connection() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert not processes.listens(port)
        sock.listen()
        assert processes.listens(port)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert not processes.listens(port)


@pytest.fixture
def echo(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run an application of the benchmark in a process of its own; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.load", request.param, str(port)], cwd=PAGE.parents[1]
    ) as server:
        try:
            until(lambda: processes.listens(port) or server.poll() is not None, lambda: f"{port} is not served", 60)
            assert server.poll() is None
            yield port
        finally:
            server.kill()


@pytest.mark.parametrize("echo", ["serve-trips", "serve-many"], indirect=True)
def test_round_trips_are_counted_after_a_warm_up(echo: int) -> None:
    found = load.trips(echo, 100)
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert load.trips(echo, 1)["p50_us"] > 0, "the connection before has been closed"


@pytest.mark.parametrize("echo", ["serve-many"], indirect=True)
def test_connections_that_come_and_go_are_counted(echo: int) -> None:
    assert load.connects(echo, 0.2, 4)["per_second"] > 0


@pytest.mark.parametrize("echo", ["serve-many"], indirect=True)
def test_first_bytes_are_awaited_at_each_address_in_turn(echo: int) -> None:
    addresses = [f"127.0.0.1:{echo}", f"localhost:{echo}"]
    began = time.monotonic()
    found = load.first_bytes(3, 0.1, *addresses)
    assert time.monotonic() - began >= 0.25  # the last one begins half an interval after the second interval
    assert {name: len(taken) for name, taken in found.items()} == dict.fromkeys(addresses, 3)
    assert all(0 < one < 30_000 for taken in found.values() for one in taken)


@pytest.mark.parametrize("echo", ["serve-flood"], indirect=True)
def test_what_arrives_is_compared_with_a_rate(echo: int) -> None:
    found = load.arrivals(echo, 2, 1.0, 0.6)
    assert found["rate"] > 1.0
    assert found["burst_ms"] > 1000 * 0.5


def test_a_burst_is_the_most_that_any_window_is_above_the_rate() -> None:
    steady = [(number / 100, 1250) for number in range(100)]  # 1 Mbit/s
    assert arrivals.burst_of(steady, 1.0) == pytest.approx(0.01)
    assert arrivals.burst_of([*steady, (0.5, 12_500)], 1.0) == pytest.approx(0.11)
    assert arrivals.burst_of([(0.0, 1250), (9.0, 1250), (9.0, 1250)], 1.0) == pytest.approx(0.02)
    assert arrivals.rate_of(steady, 1250) == pytest.approx(1.0)


@pytest.mark.parametrize("echo", ["serve-many"], indirect=True)
def test_round_trips_are_counted_for_a_time(echo: int) -> None:
    began = time.monotonic()
    found = load.trips_for(echo, 0.2)
    assert time.monotonic() - began >= 0.2
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["count"] > 1


@pytest.mark.parametrize("echo", ["serve-many"], indirect=True)
def test_held_connections_pass_data_before_and_after(echo: int) -> None:
    command = [sys.executable, "-m", "bench.load", "hold", str(echo), "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PAGE.parents[1]) as holder:
        assert holder.stdout is not None
        assert json.loads(holder.stdout.readline()) == {"held": 100}
        assert holder.poll() is None
        holder.send_signal(signal.SIGUSR1)
        assert json.loads(holder.stdout.readline()) == {"passed_data": 100}
        assert holder.wait(60) == 0


def test_a_path_that_breaks_is_no_figure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as endpoints:
        port = endpoints.getsockname()[1]

        def hang_up() -> None:
            connection, _ = endpoints.accept()
            connection.recv(1)
            connection.close()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(hang_up)
            with pytest.raises(ConnectionError):
                load.trips(port, 10)
            done.result(60)


def test_a_congestion_control_for_all_is_refused_with_a_reason_and_changes_nothing_here() -> None:
    namespace, before = os.readlink("/proc/self/ns/net"), congestion.system_default()
    code = "from bench import congestion, errors\n"
    code += "try: congestion.use_for_all('nonsense')\nexcept errors.SkippedError as why: print(why)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PAGE.parents[1], timeout=60, check=True
    )
    if os.geteuid() == 0:
        assert re.match("--congestion nonsense: (this kernel does not have it|no network namespace)", found.stdout)
    else:
        assert "needs root" in found.stdout
    assert (os.readlink("/proc/self/ns/net"), congestion.system_default()) == (namespace, before)


def test_the_cost_of_several_paths_is_not_measured_where_the_kernel_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mptcp, "lack", lambda: "this kernel has no Multipath TCP")
    (work,) = (work for work in all_works(3, 0) if work.key == "multipath")
    with pytest.raises(SkippedError, match="this kernel has no Multipath TCP"):
        work.rows(None, QUICK, print).send(None)  # type: ignore[arg-type, attr-defined]


def test_work_that_needs_root_is_skipped_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (wan,) = (work for work in all_works(3, 0) if work.key == "wan")
    with pytest.raises(SkippedError, match="root"):
        wan.rows(None, QUICK, print).send(None)  # type: ignore[arg-type, attr-defined]
    with pytest.raises(SkippedError, match="root"):
        congestion.use_for_all("cubic")
