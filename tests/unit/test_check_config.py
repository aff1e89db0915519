"""`--check-config` finds what a start would find, and changes nothing; `--print-config` shows every setting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.internet.testing import MemoryReactorClock

from scistream.config import load, to_toml
from scistream.pki.authority import init_authority, issue
from scistream.protocol.messages import Req
from scistream.s2cs import dry_run as of_s2cs
from scistream.s2cs.record import Record
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2cs.store.database import Store
from scistream.s2cs.store.lock import StoreLock
from scistream.s2ds import dry_run as of_s2ds
from scistream.s2ds.settings import S2DSConfig, WanSettings

CONF = Path(__file__).parents[2] / "conf"
NOW = 1000.0
UID = "6857809e-18e6-4c61-81a4-3d698c907be6"
REQUEST = Req(uid=UID, role="PROD", seq=1, num_conn=1, rate=1.0, app_key_hash="0" * 64)
POLICY = '[[rules]]\nname = "all"\nissuer = "pki/ca.pem"\nidentities = ["ada@lab.example"]\nroles = ["PROD"]\n'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    init_authority(folder, "Example Light Source")
    issue(folder, "server", "s2cs.example")
    issue(folder, "controller", "s2cs")
    return folder


@pytest.fixture
def settings(tmp_path: Path, pki: Path) -> dict[str, Any]:
    """Return good settings of an S2CS, and make the files that they name."""
    (tmp_path / "policy.toml").write_text(POLICY.replace("pki/ca.pem", str(pki / "ca.pem")))
    authorities = [str(pki / "ca.pem")]
    return {
        "listen": f"127.0.0.1:{free_port()}",
        "state": str(tmp_path / "s2cs.sqlite"),
        "policy": str(tmp_path / "policy.toml"),
        "certificate": str(pki / "s2cs.example.pem"),
        "key": str(pki / "s2cs.example.key"),
        "authorities": authorities,
        "controller": {"certificate": str(pki / "s2cs.pem"), "key": str(pki / "s2cs.key"), "authorities": authorities},
        "gateways": [{"name": "dtn1", "address": "127.0.0.1:5001"}],
    }


def found(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """Return what is found wrong with settings of an S2CS; check that nothing was written."""
    file = folder / "s2cs.toml"
    file.write_text(tomli_w.dumps(settings))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    lines = of_s2cs.check(MemoryReactorClock(), load(file, S2CSConfig), file, NOW).lines
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return lines


def test_good_settings_of_an_s2cs_have_no_problem_and_leave_nothing_behind(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert found(tmp_path, settings) == ()


def test_an_s2cs_that_runs_is_no_problem_to_the_check_before_its_reload(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    host, _, port = settings["listen"].rpartition(":")
    store = Store(Path(settings["state"]))
    lock = StoreLock(Path(settings["state"]))
    with socket.create_server((host, int(port))):
        assert found(tmp_path, settings) == ()
    lock.release()
    store.close()


def _break_certificate(settings: dict[str, Any], folder: Path) -> str:
    settings["certificate"] = str(folder / "nowhere.pem")
    return "nowhere.pem"


def _break_controller(settings: dict[str, Any], folder: Path) -> str:
    settings["controller"]["key"] = settings["key"]
    return "does not belong to the first certificate in"


def _break_policy(settings: dict[str, Any], folder: Path) -> str:
    Path(settings["policy"]).write_text(POLICY.replace("PROD", "BOTH"))
    return "BOTH"


def _break_store(settings: dict[str, Any], folder: Path) -> str:
    Path(settings["state"]).write_text("no database at all, but long enough to be read as one" * 40)
    return "cannot be read as a store"


def _break_audit(settings: dict[str, Any], folder: Path) -> str:
    settings["audit"] = str(folder / "policy.toml" / "audit.jsonl")
    return "audit"


def _lose_gateway(settings: dict[str, Any], folder: Path) -> str:
    store = Store(Path(settings["state"]))
    store.save(
        Record(
            uid=UID,
            role="PROD",
            owner="ada",
            state="Releasing",
            request=REQUEST,
            plan={"dtn2": [0]},
            expires_at=NOW + 60.0,
        )
    )
    store._db.execute("PRAGMA journal_mode = DELETE")
    store.close()
    return f"'dtn2' is missing, and may hold 1 stream: {UID} (PROD)"


BREAKS: list[Callable[[dict[str, Any], Path], str]] = [
    _break_certificate,
    _break_controller,
    _break_policy,
    _break_store,
    _break_audit,
]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda one: str(one.__name__))
def test_each_thing_that_is_wrong_with_an_s2cs_is_named(
    tmp_path: Path, settings: dict[str, Any], break_it: Callable[[dict[str, Any], Path], str]
) -> None:
    named = break_it(settings, tmp_path)
    lines = found(tmp_path, settings)
    assert lines
    assert all(named in line for line in lines), lines


def test_all_that_is_wrong_with_an_s2cs_is_told_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    named = [break_it(settings, tmp_path) for break_it in BREAKS]
    lines = found(tmp_path, settings)
    for each in named:
        assert any(each in line for line in lines), (each, lines)


def test_a_gateway_that_is_missing_and_may_hold_a_stream_is_named_with_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    named = _lose_gateway(settings, tmp_path)
    [line] = [line for line in found(tmp_path, settings) if "gateways:" in line]
    assert named in line


def test_a_file_that_this_user_may_not_write_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    (tmp_path / "closed").mkdir(mode=0o500)
    settings["state"] = str(tmp_path / "closed" / "s2cs.sqlite")
    assert any("cannot be created" in line for line in found(tmp_path, settings))


def test_good_settings_of_a_gateway_have_no_problem_while_it_runs_either(tmp_path: Path, pki: Path) -> None:
    first = free_port()
    config = S2DSConfig(
        listen=f"127.0.0.1:{free_port()}",
        controller="scistream:controller:s2cs",
        certificate=str(pki / "s2cs.example.pem"),
        key=str(pki / "s2cs.example.key"),
        authorities=[str(pki / "ca.pem")],
        ports=f"{first}-{first}",
    )
    assert of_s2ds.check(MemoryReactorClock(), config, tmp_path / "s2ds.toml").lines == ()
    with socket.create_server(("127.0.0.1", first)):
        assert of_s2ds.check(MemoryReactorClock(), config, tmp_path / "s2ds.toml").lines == ()


def test_all_that_is_wrong_with_a_gateway_is_told_at_once(tmp_path: Path) -> None:
    wan = WanSettings(bind="192.0.2.77", congestion="nosuch")
    config = S2DSConfig(controller="c", certificate="none.pem", key="none.key", authorities=["none.pem"], wan=wan)
    lines = of_s2ds.check(MemoryReactorClock(), config, tmp_path / "s2ds.toml").lines
    for named in ("wan.bind: '192.0.2.77' cannot be listened on", "none.pem", "wan.congestion: 'nosuch'"):
        assert any(named in line for line in lines), (named, lines)


# -- the commands


def twistd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("twistd")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)


def test_the_command_says_that_all_is_well_and_what_takes_a_restart(tmp_path: Path, settings: dict[str, Any]) -> None:
    file = tmp_path / "s2cs.toml"
    file.write_text(tomli_w.dumps(settings))
    run = twistd("s2cs", "--config", str(file), "--check-config")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{file}: no problem found. A reload (SIGHUP) applies every setting except these")
    assert "listen, state" in run.stdout
    assert not Path(settings["state"]).exists()


def test_the_command_names_each_problem_and_ends_with_status_2(tmp_path: Path, settings: dict[str, Any]) -> None:
    named = [break_it(settings, tmp_path) for break_it in (_break_certificate, _break_policy)]
    file = tmp_path / "s2cs.toml"
    file.write_text(tomli_w.dumps(settings))
    run = twistd("s2cs", "--config", str(file), "--check-config")
    assert (run.returncode, run.stdout) == (2, "")
    for each, line in zip(named, run.stderr.splitlines(), strict=True):
        assert line.startswith(f"{file}: ")
        assert each in line


def test_the_settings_of_a_gateway_are_printed_with_their_defaults() -> None:
    run = twistd("s2ds", "--config", str(CONF / "s2ds.toml"), "--print-config")
    assert (run.returncode, run.stderr) == (0, "")
    assert tomllib.loads(run.stdout) == tomllib.loads(to_toml(load(CONF / "s2ds.toml", S2DSConfig)))
    assert tomllib.loads(run.stdout)["wan"]["accept"] is True


# -- TOML


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=3), st.text(st.characters(codec="utf-8")))
def test_printed_settings_are_read_back_as_they_were(crl: list[str], name: str) -> None:
    gateways = [GatewaySettings(name=name, address="127.0.0.1:1"), GatewaySettings(name="b", address="127.0.0.1:2")]
    config = replace(load(CONF / "s2cs.toml", S2CSConfig), gateways=gateways, crl=crl)
    read = tomllib.loads(to_toml(config))
    assert read["crl"] == crl
    assert [one["name"] for one in read["gateways"]] == [name, "b"]
    assert read["limits"]["links"] == config.limits.links
    assert "audit" in read
