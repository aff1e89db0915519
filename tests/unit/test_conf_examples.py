"""The commented examples in conf/: they load, name every setting, and show its default."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from scistream.config import load
from scistream.http.settings import GatewayHttpSettings, HttpSettings
from scistream.pki.authority import init_authority
from scistream.s2cs import service as s2cs_service
from scistream.s2cs.policy.file import AdministratorSection, PolicyFile, RuleSection, load_policy
from scistream.s2cs.settings import S2CSConfig, ServerLimits
from scistream.s2ds import service as s2ds_service
from scistream.s2ds.settings import GatewayLimits, S2DSConfig
from scistream.s2uc.options import read_file
from scistream.s2uc.settings import S2UCConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FILES: list[tuple[str, Any]] = [("s2cs.toml", S2CSConfig), ("s2ds.toml", S2DSConfig), ("s2uc.toml", S2UCConfig)]
NEEDED = {"certificate", "key", "authorities", "controller", "gateways"}


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_an_example_names_every_setting_and_no_other(name: str, kind: Any) -> None:
    load(CONF / name, kind)
    assert set(tomllib.loads((CONF / name).read_text())) == set(kind.__struct_fields__)


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_an_example_shows_the_defaults(name: str, kind: Any) -> None:
    shown = tomllib.loads((CONF / name).read_text())
    defaults = {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(kind)
    }
    for key in set(shown) - NEEDED - {"lan", "wan", "app_networks", "wan_networks", "limits", "http"}:
        assert shown[key] == defaults[key], key


def test_the_example_of_a_policy_names_every_setting_and_shows_the_defaults(tmp_path: Path) -> None:
    text = (CONF / "policy.toml").read_text()
    init_authority(tmp_path / "pki", "Demo Light Source")
    (tmp_path / "policy.toml").write_text(text)
    load_policy(tmp_path / "policy.toml")
    shown = tomllib.loads(text)
    assert set(shown) == set(PolicyFile.__struct_fields__)
    [rule], [administrators] = shown["rules"], shown["administrators"]
    assert set(administrators) == set(AdministratorSection.__struct_fields__)
    assert set(rule) == set(RuleSection.__struct_fields__)
    defaults = RuleSection(name="", issuer="", identities=[], roles=[])
    for key in set(rule) - {"name", "issuer", "identities", "roles"}:
        assert rule[key] == getattr(defaults, key), key


@pytest.mark.parametrize(("name", "kind"), [("s2cs.toml", ServerLimits), ("s2ds.toml", GatewayLimits)])
def test_an_example_shows_each_limit_with_its_default(name: str, kind: Any) -> None:
    assert tomllib.loads((CONF / name).read_text())["limits"] == msgspec.to_builtins(kind())


@pytest.mark.parametrize(("name", "kind"), [("s2cs.toml", HttpSettings), ("s2ds.toml", GatewayHttpSettings)])
def test_an_example_shows_each_setting_of_the_http_listener_with_its_default(name: str, kind: Any) -> None:
    assert tomllib.loads((CONF / name).read_text())["http"] == msgspec.to_builtins(kind())


@pytest.mark.parametrize("name", ["request.json", "release.json"])
def test_an_example_of_a_request_file_can_be_read(name: str) -> None:
    read_file(CONF / "examples" / name)


def test_the_example_for_the_kernel_has_settings_that_the_kernel_knows() -> None:
    lines = (CONF / "sysctl" / "90-scistream.conf").read_text().splitlines()
    settings = [line.partition(" = ") for line in lines if line and not line.startswith("#")]
    assert len(settings) >= 4
    for name, _, value in settings:
        file = Path("/proc/sys", *name.split("."))
        assert value
        if file.parent.is_dir():  # not every one is there in a network namespace, or on another system
            assert file.exists() or name.startswith("net.core"), name


UNITS = sorted((CONF / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_gives_up_what_its_daemon_has_no_need_of(unit: Path) -> None:
    lines = set(unit.read_text().splitlines())
    wanted = {
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "SystemCallFilter=@system-service",
    }
    assert wanted <= lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_understands_the_units_and_finds_little_exposed(tmp_path: Path) -> None:
    for unit in UNITS:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/scistream/bin/twistd", sys.executable))
        said = analyze("verify", "--man=no", str(copy))
        assert unit.name not in said.stderr, said.stderr
        exposed = analyze("security", "--offline=true", "--threshold=20", str(copy))
        assert exposed.returncode == 0, exposed.stdout


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# -- what a reload changes


def every_key(kind: Any, place: str = "") -> Iterator[str]:
    """Yield the keys of a configuration file, those in sections with the name of the section; `gateways` is one."""
    for setting in msgspec.structs.fields(kind):
        found = inspect.type_info(setting.type)
        types = found.types if isinstance(found, inspect.UnionType) else (found,)
        section = next((one for one in types if isinstance(one, inspect.StructType)), None)
        if section is None:
            yield place + setting.name
        else:
            yield from every_key(section.cls, f"{place}{setting.name}.")


@pytest.mark.parametrize(
    ("name", "kind", "fixed"),
    [("s2cs.toml", S2CSConfig, s2cs_service.NEEDS_RESTART), ("s2ds.toml", S2DSConfig, s2ds_service.NEEDS_RESTART)],
)
def test_the_reference_says_when_each_setting_takes_effect(name: str, kind: Any, fixed: Sequence[str]) -> None:
    page = (ROOT / "docs" / "reference" / "settings.rst").read_text()
    table = page.partition("What a reload changes\n")[2].partition(f"\n``{name}``:\n")[2].partition("\n``s2")[0]
    rows = re.findall(r"^   \* - (.*?)\n     - (.*?)(?=\n   \* |\Z)", table, re.MULTILINE | re.DOTALL)
    effect = {key: when for keys, when in rows[1:] for key in re.findall(r"``([a-z_.]+)``", keys)}
    assert sorted(effect) == sorted(every_key(kind))
    assert {key for key, when in effect.items() if when.strip() == "after a restart"} == set(fixed)
    assert all(when.startswith(("at once", "after a restart")) for when in effect.values())
