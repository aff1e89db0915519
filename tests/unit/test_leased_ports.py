"""The ports of tests: no two processes are given the same ones, whoever runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from scistream.demo.facilities import PORTS as DEMO_PORTS
from support import leased_ports
from support.leased_ports import PortLease, can_bind

TAKE = """
import sys
from support.leased_ports import PortLease
lease = PortLease()
print(*[lease.take() for _ in range(400)], lease.take(120), flush=True)
sys.stdin.read()
"""


def test_processes_that_run_at_once_get_different_ports() -> None:
    folder = Path(leased_ports.__file__).parents[1]
    runs = [
        subprocess.Popen([sys.executable, "-c", TAKE], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        given = []
        for run in runs:
            assert run.stdout is not None
            *ports, first = map(int, run.stdout.readline().split())
            given += [*ports, *range(first, first + 120)]
        assert len(given) == 3 * 520
        assert len(set(given)) == len(given)
    finally:
        for run in runs:
            run.communicate(timeout=30)


def test_ports_are_outside_those_of_outgoing_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased_ports, "_outgoing", lambda: (20_000, 50_000))
    lease = PortLease()
    try:
        ports = [lease.take() for _ in range(100)]
    finally:
        lease.close()
    assert not [port for port in ports if 20_000 <= port <= 50_000]


def test_ports_are_outside_those_of_demonstrations() -> None:
    lease = PortLease()
    try:
        ports = [lease.take(25) for _ in range(100)]
    finally:
        lease.close()
    assert not [port for port in ports if port in DEMO_PORTS or port + 24 in DEMO_PORTS]


def test_where_the_system_takes_nearly_all_ports_for_itself_there_are_some_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leased_ports, "_outgoing", lambda: (1024, 65_535))
    lease = PortLease()
    try:
        assert can_bind("127.0.0.1", lease.take())
    finally:
        lease.close()


def test_a_process_that_has_had_its_share_uses_its_oldest_ports_again() -> None:
    lease = PortLease()
    try:
        most = leased_ports._MOST_LEASED * leased_ports._BLOCK
        given = [lease.take(10) for _ in range(most // 10 + 3)]
        assert given[most // 10 :] == given[:3]
        assert len(lease._leases) == leased_ports._MOST_LEASED
    finally:
        lease.close()
