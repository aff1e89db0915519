"""The processors and memory that a process may use, by the machine and by its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from scistream.resources import memory, processors, tcp_memory
from scistream.s2ds.settings import MAX_ELEMENTS, GatewayLimits, S2DSConfig, parse_elements, usual_unread

HERE = len(os.sched_getaffinity(0))
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
PERIOD = 100_000
QUOTAS = st.none() | st.integers(1_000, 4 * HERE * PERIOD)
LIMITS = st.none() | st.integers(1 << 20, 4 * MACHINE)
WHERE = st.sampled_from(["", "outer", "outer/inner"])


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@given(st.dictionaries(WHERE, st.tuples(QUOTAS, LIMITS)))
def test_version_2_the_least_of_all_groups_around_a_process_counts(
    groups: dict[str, tuple[int | None, int | None]],
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "proc/self/cgroup", "0::/outer/inner")
        for where, (quota, limit) in groups.items():
            write(root / "sys/fs/cgroup" / where / "cpu.max", f"{'max' if quota is None else quota} {PERIOD}")
            write(root / "sys/fs/cgroup" / where / "memory.max", "max" if limit is None else str(limit))
        quotas = [math.ceil(quota / PERIOD) for quota, _ in groups.values() if quota is not None]
        assert processors(root) == min([HERE, *quotas])
        assert memory(root) == min([MACHINE, *(limit for _, limit in groups.values() if limit is not None)])


@given(st.dictionaries(WHERE, st.tuples(QUOTAS, LIMITS)), st.sampled_from(["cpu", "cpu,cpuacct"]))
def test_version_1_the_least_of_all_groups_around_a_process_counts(
    groups: dict[str, tuple[int | None, int | None]], controllers: str
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "proc/self/cgroup", f"4:memory:/outer/inner\n3:{controllers}:/outer/inner\n0::/")
        for where, (quota, limit) in groups.items():
            cpu = root / "sys/fs/cgroup" / controllers / where
            write(cpu / "cpu.cfs_quota_us", str(-1 if quota is None else quota))
            write(cpu / "cpu.cfs_period_us", str(PERIOD))
            if limit is not None:
                write(root / "sys/fs/cgroup/memory" / where / "memory.limit_in_bytes", str(limit))
        quotas = [math.ceil(quota / PERIOD) for quota, _ in groups.values() if quota is not None]
        assert processors(root) == min([HERE, *quotas])
        assert memory(root) == min([MACHINE, *(limit for _, limit in groups.values() if limit is not None)])


def test_a_group_that_is_seen_from_within_a_container_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/machine.slice/box")  # its name outside
    write(tmp_path / "sys/fs/cgroup/cpu.max", f"{PERIOD // 2} {PERIOD}")
    assert processors(tmp_path) == 1


def test_where_nothing_can_be_read_the_machine_counts(tmp_path: Path) -> None:
    assert (processors(tmp_path), memory(tmp_path)) == (HERE, MACHINE)


def test_no_gateway_has_more_elements_by_itself_than_it_may_have() -> None:
    assert 1 <= parse_elements("auto") <= min(HERE, MAX_ELEMENTS)
    assert parse_elements("auto", 64) == 64
    assert parse_elements("auto", MAX_ELEMENTS + 1) == MAX_ELEMENTS


def test_unread_bytes_take_half_of_what_tcp_has_or_a_quarter_of_the_memory_unless_it_is_set() -> None:
    assert usual_unread(tcp=800, memory=4000) == 400
    assert usual_unread(tcp=800, memory=1000) == 250
    assert S2DSConfig().most_unread == usual_unread(tcp_memory(), memory())
    assert S2DSConfig(limits=GatewayLimits(unread="3M")).most_unread == 3 * 2**20


def test_connections_take_half_the_memory_at_most_unless_their_number_is_set() -> None:
    assert S2DSConfig().most_connections == memory() // 2 // 2**20
    assert S2DSConfig(limits=GatewayLimits(connections=7)).most_connections == 7
