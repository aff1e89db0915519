"""The units for systemd, as it reads them."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path

import pytest

from support.requirements import needs

UNITS = sorted((Path(__file__).parents[2] / "conf" / "systemd").glob("*.service"))
EVERY_UNIT = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(unit)
    return parser["Service"]


@EVERY_UNIT
def test_systemd_finds_nothing_wrong_in_a_unit(unit: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    there = (
        tmp_path / unit.name
    )  # with a program that every machine has in the place of the one that may not be installed
    there.write_text(unit.read_text().replace("ExecStart=twistd ", "ExecStart=/bin/true "))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(there)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


@EVERY_UNIT
def test_a_unit_bounds_what_its_daemon_takes_and_does_not_repeat_a_refused_start(unit: Path) -> None:
    assert service(unit).keys() >= {"MemoryHigh", "MemoryMax", "TasksMax", "LimitNOFILE"}
    assert service(unit)["RestartPreventExitStatus"] == "2"


def test_an_element_that_is_killed_for_want_of_memory_does_not_end_its_gateway() -> None:
    (gateway,) = (unit for unit in UNITS if unit.stem == "s2ds")
    assert service(gateway)["OOMPolicy"] == "continue"
