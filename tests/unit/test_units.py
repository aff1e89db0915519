"""The units for systemd, as it reads them."""

from __future__ import annotations

import configparser
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from scistream import timing
from scistream.links.tls_links import BACKLOG
from support.requirements import needs

CONF = Path(__file__).parents[2] / "conf"
UNITS = sorted((CONF / "systemd").glob("*.service"))
EVERY_UNIT = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(unit)
    return parser["Service"]


@EVERY_UNIT
def test_systemd_finds_nothing_wrong_in_a_unit(unit: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    there = (
        tmp_path / unit.name
    )  # with a program that every machine has in the place of the one that may not be installed
    there.write_text(unit.read_text().replace("/opt/scistream/bin/twistd ", "/bin/true "))
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


@EVERY_UNIT
def test_systemd_is_notified_and_restarts_a_daemon_that_is_stuck(unit: Path) -> None:
    settings = service(unit)
    assert (settings["Type"], settings["Restart"], settings["NotifyAccess"]) == ("notify", "on-failure", "main")
    assert int(settings["WatchdogSec"]) >= 4 * timing.STATUS
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"


@EVERY_UNIT
def test_a_unit_without_its_settings_is_skipped(unit: Path) -> None:
    assert f"ConditionPathExists=/etc/scistream/{unit.stem}.toml\n" in unit.read_text()
    assert service(unit)["ExecStart"].endswith(f" {unit.stem} --config /etc/scistream/{unit.stem}.toml")


@EVERY_UNIT
def test_a_socket_unit_listens_where_its_daemon_does_by_default(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(unit.with_suffix(".socket"))
    listen = tomllib.loads((CONF / f"{unit.stem}.toml").read_text())["listen"]
    assert (parser["Socket"]["ListenStream"], int(parser["Socket"]["Backlog"])) == (listen, BACKLOG)


def test_folders_and_the_user_are_made_as_the_units_need_them() -> None:
    users = (CONF / "systemd" / "scistream.sysusers").read_text()
    folders = (CONF / "systemd" / "scistream.tmpfiles").read_text()
    assert re.search(r"^u scistream ", users, re.M)
    assert re.findall(r"^d (\S+) (\S+) (\S+) (\S+)$", folders, re.M) == [
        ("/etc/scistream", "0750", "root", "scistream"),
        ("/etc/scistream/pki", "0750", "root", "scistream"),
    ]
    for unit in UNITS:
        assert service(unit)["User"] == "scistream"


def test_systemd_understands_the_user_and_the_folders(tmp_path: Path) -> None:
    for program, name in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        needs(program)
        file = CONF / "systemd" / f"scistream.{name}"
        arguments = ["--dry-run"] if name == "sysusers" else ["--cat-config"]
        done = subprocess.run([program, *arguments, str(file)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
